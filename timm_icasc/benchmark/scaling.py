"""How the cost of a training step grows with the batch and with the area of the images."""
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import linregress

from ..errors import ICASCError
from .cost import interleaved_seconds
from .steps import PLAIN, STEPS, BenchmarkSetting, create_model, make_step

__all__ = ['fit_line', 'measure_scaling', 'scaling_figure', 'scaling_lines', 'scaling_rows']

# Multiples of the batch size, and of the area of the model's own images.
BATCHES = (0.5, 1, 1.5, 2, 3)

AREAS = (0.25, 0.5, 1, 1.5, 2)

SERIES = {'batch': 'images in a batch', 'area': 'pixels of an image'}

# Black, vermilion and blue of Okabe and Ito (2008), told apart by all readers; the markers do without colour.
STYLES = dict(zip(STEPS, (('black', 'o'), ('#0072b2', 's'), ('#d55e00', '^')), strict=True))


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Seconds as intercept + slope * size, by least squares, through points of at least two sizes.

    Returns:
        'intercept'; 'slope'; 'r2', the share of the variance that the line explains; and 'largest_residual', of any
        point from the line, as a fraction of the seconds measured there.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    line = linregress(x, y)
    residuals = y - (line.intercept + line.slope * x)
    return {
        'intercept': float(line.intercept), 'slope': float(line.slope), 'r2': float(line.rvalue ** 2),
        'largest_residual': float(np.abs(residuals / y).max())}


def _batch_sizes(batch_size: int) -> list[int]:
    # BatchNorm cannot train on a single value: some architectures normalise one per image.
    return sorted({max(2, round(factor * batch_size)) for factor in BATCHES})


def _sides(side: int, unit: int) -> list[int]:
    """Sides of about `AREAS` times the area, in whole `unit`s: others are padded or cut inside the network."""
    return sorted({max(2, round(factor ** 0.5 * side / unit)) * unit for factor in AREAS})


def _settings(name: str, setting: BenchmarkSetting) -> dict[str, list[BenchmarkSetting]]:
    """What to measure, by series."""
    model, (_, height, width) = create_model(name, replace(setting, device='meta'))
    unit = max([int(entry.get('reduction', 1)) for entry in getattr(model, 'feature_info', None) or ()], default=32)
    series = {
        'batch': [replace(setting, batch_size=size) for size in _batch_sizes(setting.batch_size)],
        'area': [replace(setting, img_size=side) for side in _sides(round((height * width) ** 0.5), unit)]}
    for argument, settings in zip(('batch_size', 'img_size'), series.values(), strict=True):
        if len(settings) < 3:
            raise ICASCError(f'a line needs three sizes: give {name} a larger `{argument}`.')
    return series


def measure_scaling(
        name: str,
        setting: BenchmarkSetting,
        repeats: int,
) -> dict[str, dict[str, Any]]:
    """Median seconds of a step over the batch size, and over the area of the images, with the lines through them.

    All steps of a series take turns, so that what disturbs the machine falls on every size alike.

    Returns:
        By series ('batch', 'area'): 'points', each with batch_size, side and seconds by step, and 'lines' by step.
    """
    results = {}
    for series, settings in _settings(name, setting).items():
        sides = [create_model(name, replace(s, device='meta'))[1][1:] for s in settings]
        steps = {f'{step} {i}': make_step(name, step, s) for i, s in enumerate(settings) for step in STEPS}
        seconds = interleaved_seconds(
            steps, torch.device(setting.device), repeats, f'{name}: {series}', setting.warm_up)
        points = [
            {'batch_size': s.batch_size, 'height': height, 'width': width,
             'seconds': {step: seconds[f'{step} {i}'] for step in STEPS}}
            for i, (s, (height, width)) in enumerate(zip(settings, sides, strict=True))]
        lines = {step: fit_line(_sizes(series, points), [p['seconds'][step] for p in points]) for step in STEPS}
        results[series] = {'points': points, 'lines': lines}
    return results


def _sizes(series: str, points: list[dict[str, Any]]) -> list[int]:
    return [p['batch_size'] if series == 'batch' else p['height'] * p['width'] for p in points]


def _linearity(line: dict[str, float]) -> str:
    return f"R2 {line['r2']:.4f}, off the line by at most {line['largest_residual']:.1%}"


def scaling_rows(name: str, results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """The table of one model: every point of both series."""
    rows = []
    for point in (point for result in results.values() for point in result['points']):
        images, side, plain = point['batch_size'], point['height'], point['seconds'][PLAIN]
        pixels = images * side * point['width']
        rows += [
            {'model': name, 'step': step, 'batch': str(images), 'side': str(side), 's/step': f'{seconds:.4f}',
             'ratio': f'{seconds / plain:.2f}', 's/image': f'{seconds / images:.4f}',
             'ns/pixel': f'{seconds / pixels * 1e9:.1f}'} for step, seconds in point['seconds'].items()]
    return rows


def scaling_lines(name: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """How straight the lines through both series are."""
    return [
        f'{name}, {step}, line over the {SERIES[series]}: {_linearity(line)}'
        for series, result in results.items() for step, line in result['lines'].items()]


def scaling_figure(models: dict[str, dict[str, Any]]) -> Figure:
    """A row of two charts per model: seconds over the batch size and over the area, with the lines.

    Args:
        models: Name -> what `measure_scaling` gave.
    """
    figure = Figure(figsize=(9., 3.4 * len(models)), facecolor='white', layout='constrained')
    for row, (name, results) in zip(
        figure.subplots(len(models), 2, squeeze=False), models.items(), strict=True):
        for axis, (series, result) in zip(row, results.items(), strict=True):
            sizes = np.asarray(_sizes(series, result['points']))
            first = result['points'][0]
            ends = np.array([0, sizes.max()])
            for step, (color, marker) in STYLES.items():
                line = result['lines'][step]
                axis.plot(ends, line['intercept'] + line['slope'] * ends, color=color, linewidth=1)
                axis.plot(
                    sizes, [p['seconds'][step] for p in result['points']], marker, color=color, markersize=5,
                    label=f"{step}: R\u00b2 {line['r2']:.4f}")
            fixed = f"{first['height']} x {first['width']}" if series == 'batch' else f"batch {first['batch_size']}"
            axis.set_title(f'{name}, {fixed}', fontsize=10, parse_math=False)
            axis.set_xlabel(SERIES[series])
            axis.set_ylabel('seconds per step')
            axis.set_xlim(left=0)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.25)
            axis.legend(frameon=False, fontsize=8)
    return figure
