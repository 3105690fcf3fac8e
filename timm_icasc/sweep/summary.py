"""From the records of a study to its numbers: mean, deviation, difference to the baseline seed by seed, intervals.

Shapes: `S` seeds, `N` test images, `R` resamples.
"""
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from ..errors import ICASCError
from ..evaluation.bootstrap import LEVEL, percentile_interval
from ..evaluation.image_records import SAME_PIXELS
from ..evaluation.measures import OF_MAPS
from ..runs.epochs import SECONDS
from ..runs.tables import mean_and_deviation, paired_difference
from .run_record import correct_of
from .study import Study

__all__ = [
    'Difference', 'VariantSummary', 'difference', 'interval_over_seeds', 'interval_over_seeds_and_images',
    'missing_seeds', 'notes', 'summarise',
]

RESAMPLES = 10_000

SEED = 0


@dataclass(frozen=True)
class Difference:
    """Variant minus baseline, over the seeds that both have.

    Attributes:
        mean: Mean over the seeds.
        deviation: Sample standard deviation over the seeds; None for one seed.
        seeds: Number of pairs.
        low, high: Student's interval over the seeds; None for one seed.
        low_images, high_images: Bootstrap interval over seeds and test images; accuracy only, else None.
    """
    mean: float
    deviation: float | None
    seeds: int
    low: float | None = None
    high: float | None = None
    low_images: float | None = None
    high_images: float | None = None


@dataclass
class VariantSummary:
    """One variant over its finished seeds: measure -> mean and deviation, and -> difference to the baseline.

    `counts` says of how many seeds each mean is: a run has no overlap where all of its maps are empty. `other_layers`
    are those of its maps where the baseline, of the same network, has its maps from others: maps of two layers do not
    compare, and have no differences.
    """
    variant: str
    seeds: list[int]
    means: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    other_layers: tuple[str, ...] = ()


def interval_over_seeds(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's interval of the mean of paired differences `[S]`; None for one seed.

    It holds the chance of the seed, on these test images: mean ± t(S - 1) x deviation / sqrt(S), as of a paired t test.
    A bootstrap of so few would be too narrow: of three it can't leave the span from the smallest to the largest.
    """
    if len(differences) < 2:
        return None, None
    mean, deviation = mean_and_deviation(differences)
    half = float(t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * deviation / len(differences) ** 0.5
    return mean - half, mean + half


def interval_over_seeds_and_images(differences: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the mean of `[S, N]` differences, seeds and test images drawn anew, each by itself.

    All seeds are tested on the same images, so that both are drawn crosswise: it holds the chance of the seed (as far
    as `S` seeds show it; with one seed not at all) and that of the test images.
    """
    seeds, images = differences.shape
    generator = np.random.default_rng(SEED)
    drawn = np.empty(RESAMPLES)
    for r in range(RESAMPLES):
        chosen = differences[generator.integers(seeds, size=seeds)].mean(0)
        drawn[r] = chosen[generator.integers(images, size=images)].mean()
    return percentile_interval(drawn)


def _measures(record: dict[str, Any]) -> dict[str, float | None]:
    """Measures of the evaluation, and of the last epoch, which are of the split that the trainer looked at."""
    last = {
        f'last_{name.removeprefix("eval_")}': value for name, value in record['curve'][-1].items()
        if name.startswith('eval_')}
    seconds = statistics.fmean(row[SECONDS] for row in record['curve'])
    return {**record['final'], **last, 'seconds': seconds}


def difference(
        own: dict[int, dict[str, Any]],
        baseline: dict[int, dict[str, Any]],
        measure: str,
) -> Difference | None:
    """Difference of a measure, seed by seed; None where no seed has it for both.

    Args:
        own: Seed -> record of the variant.
        baseline: Seed -> record of the baseline.
        measure: Name of a measure.
    """
    differences = paired_difference(*(
        {seed: _measures(record).get(measure) for seed, record in records.items()}
        for records in (own, baseline)))
    if not differences:
        return None
    mean, deviation = mean_and_deviation(list(differences.values()))
    result = {'low_images': None, 'high_images': None}
    if measure == 'top1':
        pairs = [(correct_of(own[seed]), correct_of(baseline[seed])) for seed in differences]
        rows = np.stack([100. * a - 100. * b for a, b in pairs])
        result['low_images'], result['high_images'] = interval_over_seeds_and_images(rows)
    low, high = interval_over_seeds(list(differences.values()))
    return Difference(mean, deviation, len(differences), low, high, **result)


def missing_seeds(study: Study, records: dict[str, dict[str, Any]], quote: str = '') -> str:
    """The runs without a record, as `variant seed seed, variant seed`; empty where none is missing.

    Args:
        study: All runs.
        records: Name of a run -> its record.
        quote: What stands on both sides of a variant's name.
    """
    missing: dict[str, list[str]] = {}
    for run in study.runs:
        if run.name not in records:
            missing.setdefault(run.variant, []).append(str(run.seed))
    return ', '.join(f"{quote}{variant}{quote} {' '.join(seeds)}" for variant, seeds in missing.items())


def layers_note(summaries: list[VariantSummary], quote: str) -> str:
    """Which variants have maps from other layers than the baseline's, and what that means; empty where none has.

    Args:
        summaries: Of all variants.
        quote: What stands on both sides of a name.
    """
    return ' '.join(
        f"Maps of {quote}{s.variant}{quote} are from "
        f"{' and '.join(f'{quote}{layer}{quote}' for layer in s.other_layers)}, the baseline's from other layers: "
        f'their measures do not compare.' for s in summaries if s.other_layers)


def notes(
        study: Study,
        records: dict[str, dict[str, Any]],
        summaries: list[VariantSummary],
        quote: str = '',
) -> list[str]:
    """What has to be said below the tables; arguments as of `layers_note` and `equal_note`."""
    found = layers_note(summaries, quote), equal_note(study, records, quote)
    return [note for note in found if note]


def _results(record: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was measured of a run, its times aside."""
    return record['final'], [
        {name: value for name, value in row.items() if name.startswith('eval_') and name != SECONDS}
        for row in record['curve']]


def equal_note(study: Study, records: dict[str, dict[str, Any]], quote: str) -> str:
    """Variants that have the baseline's results to the last digit, with every seed; empty where there is none.

    Args:
        study: All runs.
        records: Name of a run -> its record.
        quote: What stands on both sides of a variant's name.
    """
    by_variant: dict[str, dict[int, Any]] = {}
    for record in records.values():
        by_variant.setdefault(record['variant'], {})[record['seed']] = _results(record)
    baseline = by_variant.pop(study.baseline, {})
    equal = []
    for variant, own in by_variant.items():
        seeds = own.keys() & baseline.keys()
        if seeds and all(own[seed] == baseline[seed] for seed in seeds):
            equal.append(f'{quote}{variant}{quote}')
    return '' if not equal else (
        f"{', '.join(equal)}: every result is that of {quote}{study.baseline}{quote}, to the last digit, so that what "
        f'the variant changes has done nothing. The logs of its runs may say why.')


def _network_and_layers(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What the maps were made with; earlier records have layers where the options name them, else none."""
    evaluated, options = record['evaluated'], record['options']
    named = () if '--layers' in evaluated['arguments'] else options.get('icasc_layers') or ()
    layers = evaluated.get('layers') or [layer.partition(':')[0] for layer in named]  # without the layout
    return options.get('model', ''), tuple(layers)


def _other_layers(
        own: dict[int, dict[str, Any]],
        baseline: dict[int, dict[str, Any]],
) -> tuple[str, ...]:
    """Layers of the variant's maps where they are not those of the baseline's, of the same network; else none."""
    if not baseline:
        return ()
    network, layers = _network_and_layers(next(iter(own.values())))
    other, others = _network_and_layers(next(iter(baseline.values())))
    return layers if network == other and others and layers != others else ()


def _digest(evaluated: dict[str, Any]) -> str | None:
    return evaluated.get('sha256')  # earlier records have none


def _name(evaluated: dict[str, Any]) -> str:
    return Path(str(evaluated.get('dataset') or '')).name


def _check_same_images(records: dict[str, dict[str, Any]]) -> None:
    images = {name: record['evaluated']['images'] for name, record in records.items()}
    if len(set(images.values())) > 1:
        few, many = min(images, key=images.get), max(images, key=images.get)
        raise ICASCError(
            f"'{few}' was evaluated on {images[few]} images, '{many}' on {images[many]}: runs are "
            f"compared on the same images; remove the records of the wrong ones, and look at `data_dir`.")
    for what in (_digest, _name):
        of_record = {name: value for name, record in records.items() if (value := what(record['evaluated']))}
        if len(set(of_record.values())) > 1:
            first = next(iter(of_record))
            other = next(name for name in of_record if of_record[name] != of_record[first])
            raise ICASCError(
                f"'{first}' and '{other}' were evaluated on different images: runs are compared on the same ones; "
                f'remove the records of the wrong ones, and look at `data_dir`.')
    _check_pixels(records)


def _check_pixels(records: dict[str, dict[str, Any]]) -> None:
    """Raise ICASCError where images of the same names, prepared alike, have other content."""
    first: dict[str, tuple[str, np.ndarray]] = {}
    for name, record in records.items():
        evaluated = record['evaluated']
        if not evaluated.get('pixels'):  # earlier records have none
            continue
        pixels = np.array(evaluated['pixels'])
        other, expected = first.setdefault(str(evaluated.get('preparation')), (name, pixels))
        if np.abs(pixels - expected).max() > SAME_PIXELS:
            raise ICASCError(
                f"'{other}' and '{name}' were evaluated on images of the same names and other content: remove the "
                f'records of the wrong ones, and look at `data_dir`.')


def summarise(study: Study, records: dict[str, dict[str, Any]]) -> list[VariantSummary]:
    """The variants that have a record, in the study's order.

    Raises:
        ICASCError: Records are of different images.
    """
    _check_same_images(records)
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    for run in study.runs:
        if run.name in records:
            by_variant.setdefault(run.variant, {})[run.seed] = records[run.name]
    summaries = []
    for variant in (name for name in study.variants if name in by_variant):
        own = by_variant[variant]
        summary = VariantSummary(variant, sorted(own))
        columns: dict[str, list[float]] = {}
        for record in own.values():
            for name, value in _measures(record).items():
                if value is not None:
                    columns.setdefault(name, []).append(value)
        summary.means = {name: mean_and_deviation(values) for name, values in columns.items()}
        summary.counts = {name: len(values) for name, values in columns.items()}
        if variant != study.baseline:
            baseline = by_variant.get(study.baseline, {})
            summary.other_layers = _other_layers(own, baseline)
            for name in columns:
                if summary.other_layers and name in OF_MAPS:
                    continue
                found = difference(own, baseline, name)
                if found is not None:
                    summary.differences[name] = found
        summaries.append(summary)
    return summaries
