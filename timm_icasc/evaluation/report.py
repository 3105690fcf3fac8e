"""What an evaluation leaves: tables to read, JSON and CSV to load."""
from pathlib import Path
from typing import Any

from ..runs.files import together
from ..runs.folder import CLASSES, EVALUATED, IMAGES, PAIRS, RECORDS
from ..runs.tables import text, write_csv, write_json
from .image_records import ImageRecords, save_records
from .measures import TITLES, class_table, confused_classes

__all__ = ['image_rows', 'print_measures', 'write_evaluation']


def print_measures(values: dict[str, dict[str, float]]) -> None:
    """One line per measure, one column per checkpoint."""
    names = list(dict.fromkeys(name for column in values.values() for name in column))
    print(text([
        {'measure': TITLES[name], **{label: column.get(name) for label, column in values.items()}}
        for name in names]))


def image_rows(records: ImageRecords) -> list[dict[str, Any]]:
    """One row per image: classes, probabilities and every measure of it; several classes are separated by `;`.

    Where every class is in the image, or ignored, it is confused with none.
    """
    rows = []
    confused, classes = confused_classes(records), records.labels.present(records.targets)
    for i, index in enumerate(records.indices):
        present, rival = classes[i], confused[i]
        row = {
            'index': int(index), 'file': records.files[i], 'target': ';'.join(records.names[c] for c in present),
            'predicted': records.names[records.scores[i].argmax()],
            'target_probability': ';'.join(f'{records.probabilities[i, c]:.4g}' for c in present),
            'confused': records.names[rival] if rival >= 0 else '',
            'confused_probability': f'{records.probabilities[i, rival]:.4g}' if rival >= 0 else ''}
        row.update({name: f'{column[i]:.6g}' for name, column in records.images.items()})
        rows.append(row)
    return rows


def _write_pairs(path: Path, records: ImageRecords) -> None:
    """One row per image and class that has boxes; nothing where there are none."""
    if records.pairs:
        named = [
            {'index': int(records.indices[row]), 'file': records.files[row], 'class_name': records.names[c]}
            for row, c in zip(records.pairs['image'], records.pairs['class'], strict=True)]
        columns = {name: column for name, column in records.pairs.items() if name not in ('image', 'class')}
        write_csv(path, [
            {**head, **{name: f'{column[p]:.6g}' for name, column in columns.items()}} for p, head in enumerate(named)])


def write_evaluation(folder: Path, records: ImageRecords, content: dict[str, Any]) -> None:
    """eval.json (measures, classes, provenance), classes.csv, images.csv, pairs.csv with boxes, and records.npz."""
    table, files = class_table(records), (CLASSES, IMAGES, PAIRS, RECORDS, EVALUATED)
    with together(*(folder / name for name in files)):
        _write_pairs(folder / PAIRS, records)
        write_csv(folder / CLASSES, table)
        write_csv(folder / IMAGES, image_rows(records))
        save_records(folder / RECORDS, records)
        write_json(folder / EVALUATED, {**content, 'classes': table})
