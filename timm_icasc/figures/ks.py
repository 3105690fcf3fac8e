"""The KS chart: distribution of the true and of the most confusing class's probability, and their margin (Fig. 9)."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..explanation.canvas import check_format, save
from ..foreign_text import printable
from ..metrics import KolmogorovSmirnov

__all__ = ['ks_figure']

# Blue and vermilion of Okabe and Ito (2008), told apart by all readers; the dashes do without colour.
TARGET, CONFUSED = '#0072b2', '#d55e00'


def _steps(values: np.ndarray) -> tuple:
    """Corners of the empirical distribution function over [0, 1]."""
    x = np.concatenate([[0.], values, [1.]])
    return x, np.concatenate([[0.], np.arange(1, len(values) + 1) / len(values), [1.]])


def ks_figure(charts: dict[str, KolmogorovSmirnov], path: Path) -> Path:
    """One chart per checkpoint, side by side on common axes.

    Args:
        charts: Label -> statistic, from `evaluation.measures.ks_of`.
        path: File to write: .png, .pdf, .svg, .jpg or .webp.
    """
    check_format(path)
    figure = Figure(figsize=(4.2 * len(charts), 3.8), facecolor='white', layout='constrained')
    axes = figure.subplots(1, len(charts), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (label, chart) in zip(axes, charts.items(), strict=True):
        lines = [
            axis.step(*_steps(chart.confused), where='post', color=CONFUSED, linestyle='--', linewidth=1.8)[0],
            axis.step(*_steps(chart.target), where='post', color=TARGET, linewidth=1.8)[0]]
        below, above = sorted(
            np.searchsorted(v, chart.probability, side='right') / len(v)
            for v in (chart.target, chart.confused))
        axis.annotate(
            '', (chart.probability, above), (chart.probability, below),
            arrowprops={'arrowstyle': '<->', 'color': 'black', 'linewidth': 1.2})
        axis.set_title(f'margin {chart.margin:.3f} at {chart.probability:.3f}', fontsize=9)
        axis.text(
            0.5, 1.11, printable(label), fontsize=10, fontweight='bold', ha='center', transform=axis.transAxes,
            parse_math=False)
        axis.set_xlabel('probability')
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.grid(alpha=0.25)
    figure.legend(lines, ['most confusing class', 'true class'], loc='outside lower center', ncols=2, frameon=False)
    axes[0].set_ylabel('share of the classes with at most\nthis probability')
    return save(figure, path)
