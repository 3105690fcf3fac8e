"""Is B better than A? The same images for both, drawn anew many times: a paired bootstrap interval.

Shapes: `N` images, `R` resamples.
"""
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from ..labels import check_same_classes
from .image_records import SAME_PIXELS, ImageRecords
from .measures import ORDER, curve_measures, mean_measures

__all__ = ['LEVEL', 'check_same_maps', 'compare', 'percentile_interval']

SEED = 0

LEVEL = 0.95

BOTH = ('pointing', 'energy', 'iou', 'iou50')

Mean = tuple[np.ndarray, np.ndarray]  # numerator and weight of each image


def _mean(counts: np.ndarray, numerator: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = counts @ weight
    return np.divide(counts @ numerator, total, out=np.full(len(counts), np.nan), where=total > 0)


def check_same_maps(
        settings: dict[str, Any],
        others: dict[str, Any],
        where: str,
        elsewhere: str,
) -> None:
    """Raise DataError where maps were, or will be, made in another way; other networks have other layers.

    Args:
        settings: Of `ImageRecords`, or a part of them.
        others: Likewise.
        where: Whose the settings are.
        elsewhere: Whose the others are.
    """
    differ = [name for name, value in settings.items() if name in others and others[name] != value]
    if 'architecture' in differ:
        differ = [name for name in differ if name not in ('architecture', 'layers')]
    if differ:
        raise DataError(
            f"'{where}' and '{elsewhere}' have different maps: "
            f"{', '.join(f'`{name}` {settings[name]} and {others[name]}' for name in differ)}. Evaluate both with the "
            'same.')


def _check_pixels(a: ImageRecords, b: ImageRecords) -> None:
    """Refuse images that have their names alone in common; tell of those that were prepared in other ways."""
    own, other = a.preparation, b.preparation
    differ = [name for name, value in own.items() if name in other and other[name] != value]
    if differ:
        ways = ', '.join(f'{name} {own[name]} and {other[name]}' for name in differ)
        warnings.warn(
            f"'{a.label}' and '{b.label}' were given their images in other ways ({ways}), which is in every "
            f'difference.', stacklevel=4)
    elif a.pixels is not None and b.pixels is not None:
        others = int((np.abs(a.pixels - b.pixels).max(1) > SAME_PIXELS).sum())
        if others:
            raise DataError(
                f"'{a.label}' and '{b.label}' were evaluated on images of the same names, {others} of {len(a.files)} "
                f'with other content: look at `data_dir` and `val_split`.')


def _check_comparable(a: ImageRecords, b: ImageRecords) -> None:
    same_images = a.files == b.files and np.array_equal(a.indices, b.indices)
    if not same_images or not np.array_equal(a.targets, b.targets):
        raise DataError(
            f"'{a.label}' and '{b.label}' were not evaluated on the same images: they cannot be compared in pairs.")
    check_same_classes(a.names[:a.known], b.names[:b.known], f"'{a.label}'", f"'{b.label}'")
    check_same_maps(a.settings, b.settings, a.label, b.label)
    _check_pixels(a, b)


def _with_common_pairs(own: ImageRecords, other: ImageRecords) -> ImageRecords:
    """The records with those classes of the images alone that both have boxes of: crops may differ."""
    if not own.pairs or not other.pairs:
        return own
    classes = max(len(own.names), len(other.names))
    keys, others = (r.pairs['image'] * classes + r.pairs['class'] for r in (own, other))
    chosen = np.isin(keys, others)
    return replace(own, pairs={name: column[chosen] for name, column in own.pairs.items()})


def _where_both_have_maps(
        own: ImageRecords,
        other: ImageRecords,
) -> dict[str, Mean]:
    """Localisation over those classes of the images of which neither checkpoint's map is zero, names with '_both'."""
    if not own.pairs or not other.pairs:
        return {}
    mapped = (own.pairs['no_map'] == 0) & (other.pairs['no_map'] == 0)
    chosen = replace(own, pairs={name: column[mapped] for name, column in own.pairs.items()})
    return {f'{name}_both': value for name, value in mean_measures(chosen).items() if name in BOTH}


def _of_common_images(own: dict[str, Mean], other: dict[str, Mean]) -> dict[str, Mean]:
    """The means that both have, over the images of which both have a value: maps of zeros have no overlap."""
    result = {}
    for name in [name for name in own if name in other]:
        (numerator, weight), (_, others) = own[name], other[name]
        both = (weight > 0) & (others > 0)
        result[name] = np.where(both, numerator, 0), np.where(both, weight, 0)
    return result


def compare(
        a: ImageRecords,
        b: ImageRecords,
        resamples: int = 1000,
) -> dict[str, dict[str, float]]:
    """Differences B - A with percentile intervals (Efron and Tibshirani, 1993).

    In each resample, N images are drawn with replacement, the same ones for both, and every measure is computed anew:
    means from the images' records, average precision, AUC and the KS statistic from the scores. The interval holds
    the chance of the test images; that of training (another seed) is not in it.

    Args:
        a: Records of the first checkpoint.
        b: Records of the second one, on the same images.
        resamples: Number of resamples `R`.

    A mean is over the images of which both have a value: a map of zeros has no overlap with another one.
    Localisation is compared twice: over all classes of the images that have boxes in the crops of both, and ('_both')
    over those of which neither map is zero. The latter are a choice that the checkpoints themselves have made.

    Returns:
        Measure -> 'a', 'b', 'difference' (B - A), 'low' and 'high' (95 % interval), 'share_above' (share of resamples
        in which B is larger; equal ones count half), 'images' (number of images that it is of).

    Raises:
        DataError: The two were not evaluated on the same images, by name and content, or not with the same classes or
            maps.
    """
    _check_comparable(a, b)
    a, b = _with_common_pairs(a, b), _with_common_pairs(b, a)
    count = len(a.indices)
    generator = np.random.default_rng(SEED)
    rows = generator.integers(count, size=(resamples, count))
    result = {}
    curves_a, curves_b = curve_measures(a), curve_measures(b)
    everything = np.arange(count)
    for name in [name for name in curves_a if name in curves_b]:
        f, g = curves_a[name], curves_b[name]
        drawn = np.array([(f(r), g(r)) for r in tqdm(rows, desc=f'bootstrap of {name}', leave=False, disable=None)])
        result[name] = _interval(f(everything), drawn[:, 0], g(everything), drawn[:, 1], count)
    means_a, means_b = (
        {**mean_measures(own), **_where_both_have_maps(own, other)}
        for own, other in ((a, b), (b, a)))
    means_a, means_b = _of_common_images(means_a, means_b), _of_common_images(means_b, means_a)
    counts = np.stack([np.bincount(r, minlength=count) for r in rows]).astype(np.float64)
    for name in means_a:
        if name == 'box_area':  # of the data, not of a model
            continue
        whole = [_mean(np.ones((1, count)), *m[name])[0] for m in (means_a, means_b)]
        result[name] = _interval(
            whole[0], _mean(counts, *means_a[name]), whole[1], _mean(counts, *means_b[name]),
            int((means_a[name][1] > 0).sum()))
    return {name: result[name] for name in sorted(result, key=ORDER.index)}


def percentile_interval(drawn: np.ndarray) -> tuple[float, float]:
    """Between what the middle `LEVEL` of the draws lies."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _interval(
        a: float,
        drawn_a: np.ndarray,
        b: float,
        drawn_b: np.ndarray,
        images: int,
) -> dict[str, float]:
    difference = drawn_b - drawn_a
    difference = difference[~np.isnan(difference)]
    low, high = percentile_interval(difference) if len(difference) else (np.nan, np.nan)
    above = (difference > 0).mean() + (difference == 0).mean() / 2 if len(difference) else np.nan
    return {
        'a': float(a), 'b': float(b), 'difference': float(b - a), 'low': low, 'high': high,
        'share_above': float(above), 'images': images}
