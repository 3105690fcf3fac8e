"""From the records of a checkpoint to its numbers: accuracy, average precision, KS statistic, attention, localisation.

Every number is a function of the images' records and of how often each image counts, so that a bootstrap can draw
the images anew (`bootstrap`). Shapes: `N` images, `C` classes.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..labels import MULTI, SINGLE, LabelKind
from ..metrics import (
    KolmogorovSmirnov,
    area_under_curve,
    expected_calibration_error,
    kolmogorov_smirnov,
    multilabel_metrics,
    per_class_metrics,
    voc_average_precision,
)
from ..objective.config import TERMS
from .image_records import ImageRecords

__all__ = [
    'MEASURES', 'Measure', 'OF_MAPS', 'ORDER', 'class_table', 'confused_classes', 'correct_predictions',
    'curve_measures', 'ks_of', 'mean_measures', 'measure_of', 'summarise',
]

# Every measure and its title, in the order of tables.
TITLES = {
    'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops', 'top5_ten_crop': 'top-5 %, ten crops',
    'mAP': 'mAP % (VOC 2010-12)', 'mAP_11point': 'mAP % (VOC 2007)', 'mAP_sklearn': 'mAP % (scikit-learn)',
    'AUC': 'AUC %', 'mAP_ten_crop': 'mAP % (VOC 2010-12), ten crops', 'AUC_ten_crop': 'AUC %, ten crops',
    'ks': 'KS margin', 'ks_probability': 'KS at probability', 'ece': 'calibration error',
    'overlap_inner': 'overlap inner', 'overlap_last': 'overlap last',
    'overlap_cooccurring': 'overlap of co-occurring classes',
    **{term.name: f'{term.title} (Eq. {term.equation})' for term in TERMS}, 'zero_maps': 'zero maps',
    'flip_overlap': 'overlap with the flipped', 'flip_iou': 'IoU with the flipped',
    'crop_overlap': 'overlap with the cropped', 'crop_iou': 'IoU with the cropped',
    'across_images': "correlation with other images' maps",
    'own_drop': 'own drop (logit)', 'other_drop': 'drop of other classes (logit)',
    'class_specificity': 'class-specificity', 'own_drop_random': 'own drop, random region',
    'other_drop_random': 'drop of other classes, random region',
    'class_specificity_random': 'class-specificity, random region', 'deletion': 'deletion (low is good)',
    'insertion': 'insertion', 'average_drop': 'average drop', 'average_increase': 'average increase',
    'silent_maps': 'silent maps', 'pointing': 'pointing game', 'energy': 'energy in the box', 'iou': 'box IoU',
    'iou50': 'box IoU >= 0.5', 'no_map': 'no map', 'box_area': 'box area (chance)',
    'pointing_both': 'pointing game, both have maps', 'energy_both': 'energy in the box, both have maps',
    'iou_both': 'box IoU, both have maps', 'iou50_both': 'box IoU >= 0.5, both have maps',
}

ORDER = tuple(TITLES)

OF_MAPS = frozenset(ORDER[ORDER.index('overlap_inner'):]) - {'box_area'}  # of the others, scores and boxes are enough

PAIR_MEASURES = ('pointing', 'energy', 'iou', 'iou50', 'no_map', 'box_area')


def confused_classes(records: ImageRecords) -> np.ndarray:
    """The class of highest score that is absent from the image, `[N]`, -1 where none is; ignored ones do not count."""
    return records.labels.most_confusing(records.scores, records.targets)


def ks_of(
        records: ImageRecords,
        rows: np.ndarray,
        confused: np.ndarray | None = None,
) -> KolmogorovSmirnov:
    """KS statistic over the images `rows`: probabilities of the true classes, and of the image's most confusing one.

    Where an image has several classes, each present one is an observation, and so is its highest-scoring absent one.
    `confused`: `confused_classes` of the records, where already known.
    """
    confused = confused_classes(records) if confused is None else confused
    rivals = rows[confused[rows] >= 0]
    return kolmogorov_smirnov(
        records.labels.true_scores(records.probabilities, records.targets, rows),
        records.probabilities[rivals, confused[rivals]])


def _correct(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Whether the target is among the `k` highest scores, `[N]`; equal scores, and NaN, count against it."""
    own = scores[np.arange(len(scores)), targets][:, None]
    return ((~(scores < own)).sum(1) <= k).astype(np.float64)


def correct_predictions(records: ImageRecords) -> np.ndarray:
    """Whether the class of highest score is the true one, `[N]`; single-label records."""
    return _correct(records.scores, records.targets, 1)


def _mean_over_classes(score: Callable, records: ImageRecords, rows: np.ndarray) -> float:
    """Mean over the classes of `score(scores, present)` on the images `rows`, in percent; ignored ones are left out."""
    scores, targets = records.scores[rows], records.targets[rows]
    values = []
    for c in range(targets.shape[1]):
        known = targets[:, c] >= 0
        values.append(score(scores[known, c], targets[known, c] > 0))
    return 100 * _mean_of(np.array(values))


def mean_measures(records: ImageRecords) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measures that are means: name -> numerator and weight of each image, `[N]` both; the value is sum over sum."""
    columns: dict[str, np.ndarray] = {}
    if records.labels is SINGLE:
        several = [(1, 'top1'), (5, 'top5')] if records.scores.shape[1] > 5 else [(1, 'top1')]
        for k, name in several:
            columns[name] = 100 * _correct(records.scores, records.targets, k)
            if records.ten_crop_probabilities is not None:
                columns[f'{name}_ten_crop'] = 100 * _correct(records.ten_crop_probabilities, records.targets, k)
    columns.update(records.images)
    result = {
        name: (np.nan_to_num(column), (~np.isnan(column)).astype(np.float64))
        for name, column in columns.items()}
    for name in PAIR_MEASURES if records.pairs else ():
        numerator, weight = np.zeros(len(records.indices)), np.zeros(len(records.indices))
        np.add.at(numerator, records.pairs['image'], records.pairs[name])
        np.add.at(weight, records.pairs['image'], 1)
        result[name] = (numerator, weight)
    return result


def curve_measures(records: ImageRecords) -> dict[str, Callable[[np.ndarray], float]]:
    """Measures of the images together: name -> function of the rows that count (a row may occur several times)."""
    confused = confused_classes(records)
    result = {'ks': lambda rows: ks_of(records, rows, confused).margin}
    if records.labels is MULTI:
        result['mAP'] = lambda rows: _mean_over_classes(voc_average_precision, records, rows)
        result['AUC'] = lambda rows: _mean_over_classes(area_under_curve, records, rows)
        if records.ten_crop_probabilities is not None:
            crops = replace(records, scores=records.ten_crop_probabilities)
            result['mAP_ten_crop'] = lambda rows: _mean_over_classes(voc_average_precision, crops, rows)
            result['AUC_ten_crop'] = lambda rows: _mean_over_classes(area_under_curve, crops, rows)
    else:
        confidence, correct = records.probabilities.max(1), correct_predictions(records)
        result['ece'] = lambda rows: expected_calibration_error(confidence[rows], correct[rows])
    return result


def summarise(records: ImageRecords) -> dict[str, float]:
    """All measures of a checkpoint.

    Returns:
        - 'top1', 'top5' (from 6 classes on), with '_ten_crop': accuracy in percent
        - 'mAP', 'mAP_11point', 'mAP_sklearn', 'AUC' (several classes per image): `metrics.multilabel_metrics`; 'mAP'
          and 'AUC' also with '_ten_crop'
        - 'ks', 'ks_probability': margin of the KS chart (Fig. 9) and the probability at which it occurs
        - 'ece' (one class per image): `metrics.expected_calibration_error`
        - 'overlap_inner', 'overlap_last': histogram intersection of the target's and the confused class's map
        - the loss terms, by their names in `objective.config.TERMS` (Eqs. 3 and 5), without training
        - 'zero_maps': share of images with a map of zeros
        - 'flip_overlap', 'flip_iou', 'crop_overlap', 'crop_iou', where asked for: `robustness.map_robustness`; and
          'across_images': mean of `robustness.across_images`
        - 'own_drop', 'other_drop', 'class_specificity', each also with '_random', 'deletion', 'insertion',
          'average_drop', 'average_increase', 'silent_maps', where asked for: `faithfulness.map_faithfulness`
        - 'overlap_cooccurring': histogram intersection of the maps of classes in one image, by default the last layer's
        - 'pointing', 'energy', 'iou', 'iou50', 'no_map', 'box_area': `boxes.localise`, means over the classes in
          the images that have boxes
    """
    rows = np.arange(len(records.indices))
    values = {}
    if records.labels is MULTI:
        known = records.known  # a head may have more outputs than the data set has classes
        metrics = multilabel_metrics(
            records.scores[:, :known], records.targets, records.names[:known])
        values = {name: value for name, value in metrics.items() if not name.startswith('AP_')}
    values.update(
        {name: f(rows) for name, f in curve_measures(records).items() if name not in values})
    values['ks_probability'] = ks_of(records, rows).probability
    for name, (numerator, weight) in mean_measures(records).items():
        values[name] = float(numerator.sum() / weight.sum()) if weight.sum() else np.nan
    return {name: values[name] for name in sorted(values, key=ORDER.index)}


def _mean_of(column: np.ndarray) -> float:
    return float(np.nanmean(column)) if len(column) and not np.isnan(column).all() else np.nan


def class_table(records: ImageRecords) -> list[dict[str, object]]:
    """One row per class that occurs: number of images, accuracy or average precision, confusion, localisation."""
    table = []
    confused = confused_classes(records)
    known, several = records.known, records.labels is MULTI
    if several:
        curves = per_class_metrics(
            records.scores[:, :known], records.targets, records.names[:known])
    else:
        correct = correct_predictions(records)
    for c, name in enumerate(records.names[:known]):
        chosen = records.labels.contains(records.targets, c)
        if not chosen.any():
            continue
        row: dict[str, object] = {'class': name, 'images': int(chosen.sum())}
        if several:
            row.update({key: curves[c][key] for key in ('AP', 'AP_11point', 'AP_sklearn', 'AUC')})
        else:
            row['top1'] = 100 * _mean_of(correct[chosen])
        rivals = confused[chosen & (confused >= 0)]
        row['confused_with'] = records.names[np.bincount(rivals).argmax()] if len(rivals) else ''
        for key in ('overlap_inner', 'overlap_last'):
            if key in records.images:
                row[key] = _mean_of(records.images[key][chosen])
        if records.pairs:
            own = records.pairs['class'] == c
            row.update({key: _mean_of(records.pairs[key][own]) for key in PAIR_MEASURES})
        table.append(row)
    return table


@dataclass(frozen=True)
class Measure:
    """What a classifier is judged by, in per cent: key in the metrics, name, name on the Hub, labels, meaning."""
    key: str
    name: str
    hub_type: str
    labels: LabelKind
    meaning: str


MEASURES = (
    Measure('top1', 'Top-1 accuracy', 'accuracy', SINGLE, 'the share of images whose true class scores highest'),
    Measure(
        'mAP', 'Mean average precision', 'mean_average_precision', MULTI,
        'the area under the interpolated precision-recall curve (VOC 2010 to 2012), averaged over the classes'),
)


def measure_of(metrics: dict[str, float]) -> Measure:
    """What a run is judged by: top-1 accuracy, or mean average precision where images have several classes.

    Raises:
        KeyError: The metrics hold neither.
    """
    for measure in MEASURES:
        if measure.key in metrics:
            return measure
    raise KeyError(', '.join(measure.key for measure in MEASURES))
