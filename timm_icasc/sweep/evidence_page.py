"""What a study has shown, to read: tables in Markdown between two marks of a page, tables for the terminal, curves."""
import os
import statistics
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.measures import TITLES, measure_of
from ..foreign_text import code_span, markdown_text, printable
from ..runs.files import replacing
from ..runs.tables import around_marks, markdown, mean_sd, replace_between
from .study import Study
from .summary import Difference, VariantSummary, missing_seeds, notes

__all__ = ['accuracy_table', 'curves_figure', 'measure_tables', 'write_page']

# Separability, calibration and robustness of the maps; then what only images of several classes, or boxes, tell.
TABLES = (
    ('overlap_last', 'overlap_inner', 'ks', 'ece', 'flip_overlap', 'flip_iou', 'crop_overlap', 'crop_iou', 'zero_maps'),
    ('AUC', 'overlap_cooccurring', 'no_map', 'pointing', 'energy', 'iou', 'box_area'))

Rows = list[dict[str, str]]


def _interval(low: float | None, high: float | None) -> str:
    return '-' if low is None else f'{low:+.2f} to {high:+.2f}'


def accuracy_table(summaries: list[VariantSummary], records: dict[str, dict[str, Any]]) -> Rows:
    """One row per variant: accuracy on both splits, difference to the baseline, its two intervals, time."""
    main, record = measure_of(summaries[0].means).key, next(iter(records.values()))
    title, split = TITLES[main], record['evaluated']['split']
    selection, rows = record['options']['val_split'], []
    for s in summaries:
        d: Difference | None = s.differences.get(main)
        row = {'variant': s.variant, 'seeds': ' '.join(map(str, s.seeds))}
        if selection != split:
            last = s.differences.get(f'last_{main}')
            row[f'{title}, {selection}'] = mean_sd(*s.means[f'last_{main}'])
            row[f'difference, {selection}'] = '-' if last is None else f'{last.mean:+.2f}'
        row[f'{title}, {split}'] = mean_sd(*s.means[main])
        row['difference'] = '-' if d is None else mean_sd(d.mean, d.deviation, sign='+') + _of_seeds(
            d.seeds, len(s.seeds))
        row['95 % over seeds'] = '-' if d is None else _interval(d.low, d.high)
        if main == 'top1':
            row['95 % over seeds and images'] = '-' if d is None else _interval(d.low_images, d.high_images)
        row['s/epoch'] = f"{s.means['seconds'][0]:.0f}"
        rows.append(row)
    return rows


def _of_seeds(count: int, seeds: int) -> str:
    """How many of the seeds a number is of, where it is not all of them."""
    return f', {count} of {seeds} seeds' * (count < seeds)


def measure_tables(summaries: list[VariantSummary]) -> list[Rows]:
    """Tables of the other measures, each with its difference to the baseline; none where no run has such a measure."""
    tables = []
    for names in TABLES:
        if not any(name in s.means for s in summaries for name in names):
            continue
        rows = []
        for s in summaries:
            row = {'variant': s.variant}
            for name in names:
                if any(name in other.means for other in summaries):
                    count, change = s.counts.get(name, 0), s.differences.get(name)
                    few = _of_seeds(count, len(s.seeds))
                    told = f' ({change.mean:+.3f}{_of_seeds(change.seeds, count)})' if change else ''
                    row[TITLES[name]] = f'{mean_sd(*s.means[name], 3)}{few}{told}' if count else '-'
            rows.append(row)
        tables.append(rows)
    return tables


def _versions(records: dict[str, dict[str, Any]]) -> str:
    def several(values: list[str]) -> str:
        return ', '.join(markdown_text(value) for value in sorted(set(map(str, values))))

    own = list(records.values())
    commits = several([str(r['commit'])[:10] + ' with changes' * r['dirty'] for r in own])
    return (
        f"Commit {commits}; torch {several([r['versions']['torch'] for r in own])}, timm "
        f"{several([r['versions']['timm'] for r in own])}; {several([r['machine']['processor'] for r in own])}, "
        f"{several([r['machine']['device'] for r in own])}, "
        f"threads {several([r['machine']['threads'] for r in own])}.")


def _body(
        study: Study,
        records: dict[str, dict[str, Any]],
        summaries: list[VariantSummary],
        figure: Path,
) -> str:
    first = next(iter(records.values()))
    epoch = 'last epoch' if '--best' not in first['evaluated']['arguments'] else 'best epoch of each run'
    main = measure_of(summaries[0].means).key
    over_images = (
        ' "Over seeds and images": bootstrap in which seeds and images are drawn anew; with one seed it holds '
        'the chance of the images alone, with few it is too narrow.' if main == 'top1' else '')
    parts = [
        f'{len(records)} of {len(study.runs)} runs; {first["evaluated"]["images"]} images of '
        f'{code_span(first["evaluated"]["split"])}, {epoch}. {_versions(records)}',
        markdown(accuracy_table(summaries, records)),
        f'*Mean ± standard deviation over the seeds. Differences are to `{study.baseline}`, seed by seed. "Over '
        f'seeds": Student\'s interval of the mean difference, on these images.{over_images} Seconds are wall '
        f'time of an epoch with its validation, and whatever else the machine was doing.*',
        *map(markdown, measure_tables(summaries)),
        f'*Mean ± standard deviation over the seeds (difference to `{study.baseline}`). All variants are measured with '
        f'{markdown_text(first["evaluated"]["attention"])} maps.*',
        f'![{TITLES[main]} by epoch]({quote(figure.as_posix())})',
    ]
    for note in notes(study, records, summaries, quote='`'):
        parts.insert(-1, f'*{note}*')
    if missing := missing_seeds(study, records, quote='`'):
        parts.append(f'Not run yet, with these seeds: {missing}.')
    return '\n\n'.join(parts)


def curves_figure(study: Study, records: dict[str, dict[str, Any]], path: Path) -> Path:
    """Accuracy by epoch on the split that the trainer looked at, mean over the seeds; the band holds all of them."""
    record = next(iter(records.values()))
    main = measure_of(record['final']).key
    figure = Figure(figsize=(9, 5), facecolor='white', layout='constrained')
    axis = figure.subplots()
    for i, variant in enumerate(study.variants):
        curves = [
            {row['epoch'] + 1: row[f'eval_{main}'] for row in r['curve'] if row[f'eval_{main}'] is not None}
            for r in records.values() if r['variant'] == variant]
        if not curves:
            continue
        epochs = sorted(set.intersection(*map(set, curves)))  # those that all runs have, and have validated
        columns = [[curve[epoch] for curve in curves] for epoch in epochs]
        plain = variant == study.baseline
        style = {'color': 'black' if plain else f'C{i % 10}', 'linestyle': ('-', '--', ':')[i // 10 % 3]}
        axis.plot(
            epochs, [statistics.fmean(c) for c in columns], label=variant,
            linewidth=2.4 if plain else 1.3, **style)
        axis.fill_between(
            epochs, [min(c) for c in columns], [max(c) for c in columns], color=style['color'],
            alpha=0.12, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel('epoch')
    axis.set_ylabel(f"{TITLES[main]}, {printable(record['options']['val_split'])}", parse_math=False)
    axis.grid(alpha=0.25)
    figure.legend(loc='outside right upper', frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, metadata={'Software': None})
    return path


def write_page(
        study: Study,
        records: dict[str, dict[str, Any]],
        summaries: list[VariantSummary],
) -> Path:
    """Put tables and figure of the study between its two marks in the page; the rest of the page stays.

    Raises:
        ICASCError: The page or its marks are missing, or it cannot be written.
    """
    name = f'study {study.name}'
    around_marks(study.report, name)  # before the figure is drawn
    figure = curves_figure(study, records, study.records.parent / f'{study.name}.png')
    body = _body(study, records, summaries, Path(os.path.relpath(figure, study.report.parent)))
    replace_between(study.report, name, body)
    return study.report
