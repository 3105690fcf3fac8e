"""What an evaluation leaves: tables to read, JSON and CSV to load."""
import csv
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence
from zipfile import BadZipFile

import numpy as np

from ..errors import ICASCError
from .measures import class_table, confused_classes
from .records import Records

__all__ = ['RECORDS', 'format_table', 'image_rows', 'load_records', 'print_measures', 'save_records', 'write_csv',
           'write_evaluation', 'write_json']

RECORDS = 'records.npz'

TITLES = {
    'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops', 'top5_ten_crop': 'top-5 %, ten crops',
    'mAP': 'mAP % (VOC 2010-12)', 'mAP_11point': 'mAP % (VOC 2007)', 'mAP_sklearn': 'mAP % (scikit-learn)',
    'AUC': 'AUC %', 'mAP_ten_crop': 'mAP % (VOC 2010-12), ten crops', 'AUC_ten_crop': 'AUC %, ten crops',
    'ks': 'KS margin', 'ks_probability': 'KS at probability', 'ece': 'calibration error',
    'flip_overlap': 'overlap with the flipped', 'flip_iou': 'IoU with the flipped',
    'crop_overlap': 'overlap with the cropped', 'crop_iou': 'IoU with the cropped',
    'as_inner': 'L_AS inner (Eq. 3)', 'as_last': 'L_AS last (Eq. 3)', 'ac': 'L_AC (Eq. 5)',
    'overlap_inner': 'overlap inner', 'overlap_last': 'overlap last', 'zero_maps': 'zero maps',
    'overlap_cooccurring': 'overlap of co-occurring classes', 'pointing': 'pointing game',
    'energy': 'energy in the box', 'iou': 'box IoU', 'iou50': 'box IoU >= 0.5', 'no_map': 'no map',
    'box_area': 'box area (chance)', 'pointing_both': 'pointing game, both have maps',
    'energy_both': 'energy in the box, both have maps', 'iou_both': 'box IoU, both have maps',
    'iou50_both': 'box IoU >= 0.5, both have maps',
}


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return '-'
    if isinstance(value, float):
        return f'{value:.2f}' if abs(value) >= 10 else f'{value:.4f}'
    return str(value)


def format_table(rows: Sequence[Dict[str, Any]]) -> str:
    """Rows of equal keys as aligned columns under their names; the first column is text."""
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join(
        '  '.join([f'{first:<{widths[0]}}', *(f'{c:>{w}}' for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in cells)


def print_measures(values: Dict[str, Dict[str, float]]) -> None:
    """One line per measure, one column per checkpoint."""
    names = list(dict.fromkeys(name for column in values.values() for name in column))
    print(format_table([
        {'measure': TITLES.get(name, name), **{label: column.get(name) for label, column in values.items()}}
        for name in names]))


def write_json(path: Path, content: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            value = value.item()
        # NaN is not JSON.
        return None if isinstance(value, float) and not math.isfinite(value) else value
    path.write_text(json.dumps(plain(content), indent=2) + '\n')


def write_csv(path: Path, rows: Sequence[Dict[str, Any]]) -> None:
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def image_rows(records: Records) -> List[Dict[str, Any]]:
    """One row per image: classes, probabilities and every measure of it; several classes are separated by `;`."""
    rows = []
    confused = confused_classes(records)
    for i, index in enumerate(records.indices):
        target = records.targets[i]
        present = np.flatnonzero(target > 0) if records.multilabel else np.array([target])
        row = {
            'index': int(index), 'file': records.files[i], 'target': ';'.join(records.names[c] for c in present),
            'predicted': records.names[records.scores[i].argmax()],
            'target_probability': ';'.join(f'{records.scores[i, c]:.4g}' for c in present),
            'confused': records.names[confused[i]],
            'confused_probability': f'{records.scores[i, confused[i]]:.4g}'}
        row.update({name: f'{column[i]:.6g}' for name, column in records.images.items()})
        rows.append(row)
    return rows


def write_evaluation(folder: Path, records: Records, content: Dict[str, Any]) -> None:
    """eval.json (measures, classes, provenance), classes.csv, images.csv, pairs.csv with boxes, and records.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    table = class_table(records)
    write_json(folder / 'eval.json', {**content, 'classes': table})
    write_csv(folder / 'classes.csv', table)
    write_csv(folder / 'images.csv', image_rows(records))
    if records.pairs:
        named = [{'index': int(records.indices[row]), 'file': records.files[row], 'class_name': records.names[c]}
                 for row, c in zip(records.pairs['image'], records.pairs['class'], strict=True)]
        columns = {name: column for name, column in records.pairs.items() if name not in ('image', 'class')}
        write_csv(folder / 'pairs.csv', [
            {**head, **{name: f'{column[p]:.6g}' for name, column in columns.items()}} for p, head in enumerate(named)])
    save_records(folder / RECORDS, records)


def save_records(path: Path, records: Records) -> None:
    """Everything that a comparison needs, as one .npz file."""
    arrays = {'scores': records.scores, 'targets': records.targets, 'indices': records.indices,
              'files': np.array(records.files), 'label': np.array(records.label), 'names': np.array(records.names)}
    if records.ten_crop_scores is not None:
        arrays['ten_crop_scores'] = records.ten_crop_scores
    for group in ('images', 'pairs'):
        arrays.update({f'{group}/{name}': column for name, column in getattr(records, group).items()})
    np.savez_compressed(path, **arrays)


def load_records(path: Path) -> Records:
    """What `save_records` wrote.

    Raises:
        ICASCError: The file is not of that kind, or of an earlier version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        groups = {
            group: {name.split('/', 1)[1]: column for name, column in arrays.items() if name.startswith(f'{group}/')}
            for group in ('images', 'pairs')}
        return Records(
            str(arrays['label']), arrays['names'].tolist(), arrays['indices'], arrays['files'].tolist(),
            arrays['scores'], arrays['targets'], arrays.get('ten_crop_scores'), **groups)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as e:
        raise ICASCError(f"'{path}' holds no records of timm-icasc eval: {e}") from e
