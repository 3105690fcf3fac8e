"""summary.csv of a run: a row for each epoch, written anew as a whole, under columns that fit every row."""
import csv
import io
from pathlib import Path
from typing import Any

from ..errors import ICASCError, one_line
from .folder import SUMMARY
from .tables import write_csv

__all__ = ['SECONDS', 'add_epoch', 'epoch_record', 'read_epochs']

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
