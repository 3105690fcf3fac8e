"""summary.csv of a run: a row for each epoch, written anew as a whole, under columns that fit every row."""
import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HubError, ICASCError, one_line
from .folder import BEST, RESULTS, SUMMARY, Run, read_checkpoint
from .tables import write_csv

__all__ = ['SECONDS', 'add_epoch', 'epoch_record', 'of_best_epoch', 'read_epochs', 'seconds_of_epochs']

SECONDS = 'eval_seconds'  # column of the time that an epoch took


def read_epochs(folder: Path, before: int) -> list[dict[str, str]]:
    """The rows of the epochs from 0 up to `before`, as they stand in the file; none without a file.

    Raises:
        ICASCError: It cannot be read.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return []
    try:
        content = path.read_text(encoding='utf-8')
        if '\0' in content:
            raise ValueError('it holds zero bytes')
        rows = [row for row in csv.DictReader(io.StringIO(content, newline='')) if None not in row]
        return [row for row in rows if int(float(row['epoch'])) < before]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as e:
        raise ICASCError(
            f"'{path}' is no table of epochs ({one_line(e)}): mend it, or move it away and its rows are lost.") from e


def add_epoch(folder: Path, epoch: int, values: dict[str, Any]) -> None:
    """Put the row of an epoch below those of the epochs before it; later ones, of a run that was cut, go.

    Args:
        folder: Of the run.
        epoch: Counted from 0.
        values: Column -> value. A column that other rows lack is empty there.
    """
    write_csv(folder / SUMMARY, [*read_epochs(folder, epoch), {'epoch': epoch, **values}])


def epoch_record(folder: Path, epoch: int) -> dict[str, float | None]:
    """Column -> value of one epoch, None where it is empty; empty where the file has no such row."""
    for row in read_epochs(folder, epoch + 1):
        if int(float(row['epoch'])) == epoch:
            return {name: float(value) if value else None for name, value in row.items()}
    return {}


def seconds_of_epochs(folder: Path, epochs: int) -> float | None:
    """The time that so many epochs took together, in however many sessions; None where the file does not tell."""
    found = [float(row.get(SECONDS) or 'nan') for row in read_epochs(folder, epochs)]
    return sum(found) if len(found) == epochs and all(map(math.isfinite, found)) else None


def of_best_epoch(run: Run) -> Run:
    """A finished run as of its best epoch: the weights of that epoch, and what was measured of them then.

    Results, checkpoint and table of epochs must tell of the same epoch, with the same value of what made it the best.

    Raises:
        HubError: There is no such checkpoint, or they do not agree.
        ICASCError: The checkpoint or the table cannot be read.
    """
    file = run.folder / BEST
    if not file.is_file():
        raise HubError(f"'{run.folder}' has no {BEST}: leave out `best`, for the weights of the last epoch.")
    told, checkpoint = run.results.get('best'), read_checkpoint(file)
    told = told if isinstance(told, dict) else {}
    epoch, metric = told.get('epoch'), next((name for name in told if name != 'epoch'), '')
    row = epoch_record(run.folder, epoch) if isinstance(epoch, int) else {}
    value = told.get(metric)
    agree = checkpoint['epoch'] == epoch and value == checkpoint.get('metric') == row.get(f'eval_{metric}')
    if value is None or not agree:
        raise HubError(
            f"'{file}' is of epoch {checkpoint['epoch'] + 1}, and {RESULTS} and {SUMMARY} beside it do not tell what "
            f'was measured of it; timm-icasc train --resume auto goes on, or leave out `best`.')
    measured = {
        name: number for name, number in row.items() if name.startswith(('train_', 'eval_')) and name != SECONDS}
    return replace(run, weights=BEST, results={**run.results, 'epochs': epoch + 1, 'last': measured})
