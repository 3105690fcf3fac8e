"""Rows of values as a table to read, and as CSV and JSON files to load."""
import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['format_table', 'mean_and_deviation', 'write_csv', 'write_json']


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return '-'
    if isinstance(value, float):
        return f'{value:.2f}' if abs(value) >= 10 else f'{value:.4f}'
    return str(value)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as aligned columns under their names; the first column is text."""
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join(
        '  '.join([f'{first:<{widths[0]}}', *(f'{c:>{w}}' for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in cells)


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


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1) from two values on."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
