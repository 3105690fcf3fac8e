"""Rows of values as tables: to read, in the terminal and in Markdown, and to load; means, paired differences."""
import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import DataRow, TableFormat, tabulate

from ..errors import ICASCError, one_line
from ..foreign_text import Markdown, csv_cell, markdown_text, printable
from .files import write_text

__all__ = [
    'around_marks', 'cell_of', 'markdown', 'marks', 'mean_and_deviation', 'mean_sd', 'paired_difference',
    'replace_between', 'text', 'write_csv', 'write_json',
]

Rows = Sequence[dict[str, Any]]

NOTHING = '-'

# Cells as they are, without blanks that fill them up: a wider one does not change the lines of all others.
MARKDOWN = TableFormat(
    lineabove=None, linebelowheader=lambda widths, _: '|' + '---|' * len(widths), linebetweenrows=None, linebelow=None,
    headerrow=DataRow('| ', ' | ', ' |'), datarow=DataRow('| ', ' | ', ' |'), padding=0, with_header_hide=None)


def cell_of(value: Any, digits: int) -> Any:
    """A float with so many decimals, a dash for None and NaN; other values as they are."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return NOTHING
    return f'{value:.{digits}f}' if isinstance(value, float) else value


def _digits(name: Any, values: Iterable[Any]) -> int:
    """Decimals of numbers that are compared with each other, so that 7.50 stands beside 15.00."""
    numbers = [abs(v) for v in values if isinstance(v, float) and v == v]
    greatest = max(numbers, default=0)
    return 2 if '%' in str(name) or greatest >= 10 else 4


def _cells(rows: Rows) -> list[list[Any]]:
    names = list(rows[0])
    if names[0] == 'measure':  # the values of a measure stand beside each other, in other tables below each other
        digits = [[_digits(row['measure'], row.values())] * len(names) for row in rows]
    else:
        digits = [[_digits(name, (row[name] for row in rows)) for name in names]] * len(rows)
    return [[cell_of(*cell) for cell in zip(row.values(), each, strict=True)] for row, each in zip(
        rows, digits, strict=True)]


def text(rows: Rows, left: int = 1) -> str:
    """Rows of equal keys as aligned columns under their names; the first `left` columns are text."""
    if not rows:
        return ''
    alignment = ['left' if i < left else 'right' for i in range(len(rows[0]))]
    # The names as a row: as headers they would be wider by two blanks.
    cells = [list(map(printable, row)) for row in (list(rows[0]), *_cells(rows))]
    table = tabulate(cells, tablefmt='plain', disable_numparse=True, colalign=alignment)
    return '\n'.join(line.rstrip() for line in table.splitlines())


def markdown(rows: Rows) -> str:
    """Rows of equal keys as a table in Markdown; cells are text, unless they are `Markdown` themselves."""
    if not rows:
        return ''
    names, *cells = [
        [str(cell) if isinstance(cell, Markdown) else markdown_text(cell) for cell in row]
        for row in (list(rows[0]), *_cells(rows))]
    return tabulate(cells, names, MARKDOWN, disable_numparse=True, stralign=None)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; numpy's numbers become Python's, and what is not finite becomes null."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            value = value.item()
        # NaN is not JSON.
        return None if isinstance(value, float) and not math.isfinite(value) else value
    write_text(path, json.dumps(plain(content), indent=2) + '\n')


def write_csv(path: Path, rows: Rows) -> None:
    """Write CSV; a row that lacks a column of others leaves it empty, and no cell is a spreadsheet's formula."""
    rows = [{csv_cell(key): csv_cell(value) for key, value in row.items()} for row in rows]
    content = io.StringIO(newline='')
    writer = csv.DictWriter(content, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, content.getvalue())


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1) from two values on."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_sd(mean: float, deviation: float | None, digits: int = 2, sign: str = '') -> str:
    """'mean ± standard deviation', the mean alone without one.

    Args:
        mean: Such as `mean_and_deviation` gives it.
        deviation: Likewise.
        digits: After the point.
        sign: '+' for a difference, which then always has its sign.
    """
    return f'{mean:{sign}.{digits}f}' + (f' ± {deviation:.{digits}f}' if deviation is not None else '')


def paired_difference(
        own: Mapping[int, float | None],
        baseline: Mapping[int, float | None],
) -> dict[int, float]:
    """Seed -> own value minus the baseline's, for the seeds that have both."""
    return {
        seed: value - baseline[seed] for seed, value in sorted(own.items())
        if value is not None and baseline.get(seed) is not None}


def marks(name: str) -> tuple[str, str]:
    """The two lines of a page between which something generated stands."""
    return f'<!-- {name} begins -->', f'<!-- {name} ends -->'


def around_marks(path: Path, name: str) -> tuple[str, str]:
    """What stands in a file before and after the generated part, the marks included.

    Raises:
        ICASCError: The file or its marks are missing, or it is no text.
    """
    begin, end = marks(name)
    try:
        content = path.read_text(encoding='utf-8') if path.is_file() else ''
    except ValueError as e:
        raise ICASCError(f"'{path}' is not UTF-8: {one_line(e)}.") from e
    before, found, rest = content.partition(begin)
    between, closed, after = rest.partition(end)
    if not found or not closed:
        raise ICASCError(f"'{path}' has no lines '{begin}' and '{end}'.")
    return before + begin, end + after


def replace_between(path: Path, name: str, content: str) -> None:
    """Put `content` between the two marks of a file; the rest stays.

    Raises:
        ICASCError: The file or its marks are missing, or it cannot be written.
    """
    before, after = around_marks(path, name)
    write_text(path.resolve(), f'{before}\n{content}\n{after}')
