"""The record of a finished run: all that the tables need, in one JSON file to be kept under version control."""
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from ..data import fingerprint
from ..errors import ICASCError, first_of, one_line
from ..evaluation.image_records import load_records
from ..evaluation.measures import correct_predictions
from ..evaluation.restore import open_dataset
from ..foreign_files import read_json, read_yaml
from ..labels import SINGLE
from ..runs.epochs import SECONDS, read_epochs
from ..runs.find import has_begun
from ..runs.folder import (
    ARGUMENTS,
    EVALUATED,
    EVALUATION,
    LAST,
    RECORDS,
    SUMMARY,
    fingerprints_in,
    open_run,
    read_mapping,
)
from ..runs.tables import write_json
from ..training.arguments import parse_args
from .study import PlannedRun, Study, changed_options, measured_by

__all__ = ['check_same_images', 'check_unchanged', 'correct_of', 'make_record', 'read_records', 'record_path']

# What the tables and the check of changes read.
NEEDED = {
    'variant': str, 'seed': int, 'commit': str | None, 'dirty': bool, 'versions': dict, 'machine': dict,
    'evaluated': dict, 'final': dict, 'curve': list, 'options': dict}

EVALUATED_KINDS = {'split': str, 'images': int, 'attention': str, 'arguments': list}


def record_path(study: Study, run: PlannedRun) -> Path:
    return study.records / f'{run.name}.json'


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # a loss term that had not set in


def _curve(folder: Path, epochs: int) -> list[dict[str, Any]]:
    rows = [
        {name: int(value) if name == 'epoch' else _number(value) for name, value in row.items()}
        for row in read_epochs(folder, epochs)]
    if [row['epoch'] for row in rows] != list(range(epochs)):
        raise ICASCError(
            f"'{folder / SUMMARY}' does not tell of all {epochs} epochs: remove '{folder}', and the sweep does the run "
            f'again.')
    return rows


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _pack(correct: np.ndarray) -> str:
    return np.packbits(correct.astype(bool)).tobytes().hex()


def correct_of(record: dict[str, Any]) -> np.ndarray | None:
    """Whether the prediction was right, image by image, `[N]`; None in records of multi-label runs."""
    packed = record.get('correct')
    if packed is None:
        return None
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed['bits']), dtype=np.uint8))
    return bits[:packed['images']].astype(bool)


def make_record(study: Study, run: PlannedRun, folder: Path, environment: dict[str, str]) -> Path:
    """Write the record of the finished and evaluated run in `folder`; returns its file.

    Raises:
        ICASCError: The folder lacks a file, or it is not what timm-icasc train and `timm-icasc eval` write.
    """
    path = record_path(study, run)
    try:
        result, evaluated = open_run(folder).results, folder / EVALUATION
        evaluation = read_json(evaluated / EVALUATED)
        images, curve = load_records(evaluated / RECORDS), _curve(folder, result['epochs'])
        commit = result['commit'] or ''
        record = {
            'study': study.name, 'variant': run.variant, 'seed': run.seed, 'command': result['command'],
            'method': result['method'], 'commit': commit.removesuffix('-dirty') or None,
            'dirty': commit.endswith('-dirty'), 'versions': result['versions'],
            'machine': {
                'processor': _processor(), 'cores': os.cpu_count(), 'device': result['device'],
                'threads': environment['OMP_NUM_THREADS'], 'system': platform.platform()},
            'wall_time': sum(row[SECONDS] for row in curve),  # of all epochs, interrupted or not
            'evaluated': {
                **{name: evaluation[name] for name in ('dataset', 'split', 'images', 'attention', 'layers')},
                'sha256': images.sha256, 'arguments': list(study.evaluation),
                'pixels': None if images.pixels is None else images.pixels.mean(0).tolist(),
                'preparation': images.preparation},
            'final': evaluation['measures'], 'curve': curve, 'options': run.options,
        }
        if images.labels is SINGLE:
            record['correct'] = {'images': len(images.indices), 'bits': _pack(correct_predictions(images))}
        _check(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        kind = '' if isinstance(e, ICASCError) else f'{type(e).__name__} '
        raise ICASCError(f"no record of '{folder}': {kind}{one_line(e, 400)}") from e
    write_json(path, record)
    return path


def _check(record: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError where a record is not what `make_record` writes."""
    for kinds, values in ((NEEDED, record), (EVALUATED_KINDS, record['evaluated'])):
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise TypeError(name)
    if not record['curve'] or not isinstance(record['options']['val_split'], str):
        raise ValueError('curve')
    main = 'top1' if 'correct' in record else 'mAP'
    if None in (record['final'][main], record['curve'][-1][f'eval_{main}']):
        raise ValueError(main)
    pixels = record['evaluated'].get('pixels') or ()  # earlier records have none
    numbers = [*record['final'].values(), *pixels, *(value for row in record['curve'] for value in row.values())]
    if not all(value is None or isinstance(value, (int, float)) for value in numbers):
        raise TypeError('final')
    for row in record['curve']:
        row[SECONDS] + 0, row['epoch'], row[f'eval_{main}']
    for part, names in (('versions', ('torch', 'timm')), ('machine', ('processor', 'device', 'threads'))):
        [record[part][name] for name in names]
    correct = correct_of(record)
    if correct is not None and len(correct) != record['evaluated']['images']:
        raise ValueError('correct')


def read_records(study: Study) -> dict[str, dict[str, Any]]:
    """Name of each finished run of the study -> its record.

    Raises:
        ICASCError: A record cannot be read.
    """
    records = {}
    for run in study.runs:
        path = record_path(study, run)
        if path.is_file():
            try:
                record = read_json(path)
                _check(record)
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise ICASCError(f"'{path}' is no record of a run; remove it, and the sweep does the run again.") from e
            records[run.name] = record
    return records


def _arguments(folder: Path) -> dict[str, Any]:
    """The options of a run that has begun.

    Raises:
        ICASCError: They cannot be read.
    """
    try:
        return read_mapping(folder / ARGUMENTS, read_yaml)
    except ICASCError as e:
        raise ICASCError(f"{e} Remove '{folder}', and the sweep does the run again.") from e


def check_unchanged(study: Study, records: dict[str, dict[str, Any]], output: Path | None) -> None:
    """Refuse a study of which a variant was changed after it has run, or begun to run, or the evaluation.

    Args:
        study: As its file has it now.
        records: Of `read_records`.
        output: Folder of the runs that have begun; None where the records alone are meant.

    Raises:
        ICASCError: Names the variant, the options and what to remove.
    """
    for name, record in records.items():
        earlier = record['evaluated']['arguments']
        if measured_by(earlier) != measured_by(study.evaluation):
            raise ICASCError(
                f"'{name}' was evaluated with '{' '.join(earlier)}', the study says '{' '.join(study.evaluation)}': "
                f"take 'evaluate' back, or remove the records, and the sweep evaluates the finished runs again.")
    for run in study.runs:
        begun = [(record_path(study, run), records[run.name]['options'])] if run.name in records else []
        if output is not None and has_begun(folder := output / run.name):
            begun.append((folder, _arguments(folder)))
        for path, earlier in begun:
            if changed := changed_options(run.options, earlier):
                said = first_of(f'{name} was {earlier[name]!r}, is {run.options[name]!r}' for name in changed)
                raise ICASCError(
                    f"variant '{run.variant}' is not what '{path}' was made with: {said}. "
                    f'Give the changed variant another name, or remove what is there.')


def check_same_images(run: PlannedRun, folder: Path) -> None:
    """Raise ICASCError where a run has begun on other images than those of the folder that is named now."""
    before = _arguments(folder).get('data_dir') if has_begun(folder) else None
    if not run.data_dir or not before or os.path.realpath(before) == os.path.realpath(run.data_dir):
        return
    then = fingerprints_in(folder / LAST).get('val')
    now = fingerprint(open_dataset(parse_args(run.arguments)))
    if then and now and then != now:
        raise ICASCError(
            f"'{folder}' was begun on the images of '{before}', those of `data_dir={run.data_dir}` are others: name "
            f'another `output`, or remove what is there.')
