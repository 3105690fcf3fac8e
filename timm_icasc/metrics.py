"""Class scores in, numbers out: calibration, KS margin, average precision, and the evaluator of several classes."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from .errors import DataError, ICASCError, NonFiniteLossError
from .losses import multilabel_soft_margin

__all__ = [
    'KolmogorovSmirnov', 'MultiLabelEvaluator', 'area_under_curve', 'expected_calibration_error',
    'kolmogorov_smirnov', 'multilabel_metrics', 'per_class_metrics', 'voc_average_precision',
]


def expected_calibration_error(
        confidence: np.ndarray,
        correct: np.ndarray,
        bins: int = 15,
) -> float:
    """`sum_b n_b / N |accuracy_b - confidence_b|` over bins of equal width (Guo et al., ICML 2017).

    Args:
        confidence: Probability of the predicted class, `[N]`, in [0, 1].
        correct: Whether the prediction is right, `[N]`.
        bins: Number of bins; a value on an edge belongs to the bin below it.

    Returns:
        In [0, 1]; NaN without images.
    """
    if not len(confidence):
        return np.nan
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """Two samples of probabilities and the place of the largest distance of their distribution functions (Fig. 9).

    Attributes:
        margin: In [-1, 1]; its size is the KS statistic, `max_p |F_confused(p) - F_target(p)|`. Negative where the
            confused classes have the larger probabilities.
        probability: The `p` at which it occurs.
        target: Probabilities of the true classes, sorted.
        confused: Probabilities of the most confusing classes, sorted.
    """
    margin: float
    probability: float
    target: np.ndarray
    confused: np.ndarray


def kolmogorov_smirnov(target: np.ndarray, confused: np.ndarray) -> KolmogorovSmirnov:
    """Compare the probabilities of the true classes `[n]` with those of the most confusing ones `[m]`."""
    if not len(target) or not len(confused):
        return KolmogorovSmirnov(np.nan, np.nan, np.sort(target), np.sort(confused))
    # The p value plays no part; its exact computation takes time, the other one divides by zero for single values.
    with np.errstate(divide='ignore', invalid='ignore'):
        result = stats.ks_2samp(target, confused, method='asymp')
    # scipy: +1 where the first sample's distribution function is the larger one there, so its values are smaller.
    return KolmogorovSmirnov(
        margin=float(-result.statistic_sign * result.statistic),
        probability=float(result.statistic_location),
        target=np.sort(target), confused=np.sort(confused))


def voc_average_precision(scores: np.ndarray, present: np.ndarray, definition: str = 'area') -> float:
    """Average precision of one class as PASCAL VOC defines it.

    The precision at a recall is the largest precision at that recall or a higher one. Images of equal score share one
    threshold, so that their order does not matter.

    Args:
        scores: Scores of the images `[N]`, ignored ones left out.
        present: Whether the class is present, `[N]`.
        definition: 'area', the area under that curve (VOC 2010 to 2012), or '11-point', its mean at the recalls 0, 0.1,
            ..., 1 (VOC 2007).

    Returns:
        A value in [0, 1]; NaN where the class is present nowhere.
    """
    if definition not in ('area', '11-point'):
        raise ValueError(f"definition must be 'area' or '11-point', got '{definition}'.")
    if not np.any(present):
        return float('nan')
    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # recall ascending, without scikit-learn's end point (0, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    if definition == 'area':
        return float(np.sum(np.diff(recall, prepend=0.) * precision))
    # A recall of 0.3 may come out as 0.30000000000000004 or 0.2999...
    return float(
        np.mean([precision[recall >= t - 1e-9].max(initial=0.) for t in np.linspace(0, 1, 11)]))


def area_under_curve(scores: np.ndarray, present: np.ndarray) -> float:
    """Of the receiver operating characteristic of one class, 0 to 1; NaN where no image has it, or every one."""
    return float(roc_auc_score(present, scores)) if present.any() and not present.all() else float('nan')


def per_class_metrics(
        scores: np.ndarray,
        targets: np.ndarray,
        class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """The measures of each class, in percent.

    Args:
        scores: Logits or probabilities `[N, C]`.
        targets: `[N, C]`, 1, 0 or -1.
        class_names: Names of the classes.

    Returns:
        For each class 'class', 'images' (in which it is present), 'AP' (VOC's area), 'AP_11point', 'AP_sklearn'
        (scikit-learn's, without interpolation), 'AUC'; NaN where the class is present nowhere (AUC: or everywhere).

    Raises:
        NonFiniteLossError: A score is NaN or infinite.
    """
    finite = np.isfinite(scores[:, :len(class_names)]).all(1)
    if not finite.all():
        raise NonFiniteLossError(
            f'the class scores of {(~finite).sum()} of {len(finite)} images are NaN or infinite: a training has broken '
            f'the weights, with too high a rate perhaps (`lr`).')
    rows = []
    for c, name in enumerate(class_names):
        counted = targets[:, c] >= 0
        score, present = scores[counted, c], targets[counted, c] == 1
        rows.append({
            'class': name,
            'images': int(present.sum()),
            'AP': 100 * voc_average_precision(score, present, 'area'),
            'AP_11point': 100 * voc_average_precision(score, present, '11-point'),
            'AP_sklearn': 100 * float(average_precision_score(present, score)) if present.any() else float('nan'),
            'AUC': 100 * area_under_curve(score, present),
        })
    return rows


def multilabel_metrics(
        scores: np.ndarray,
        targets: np.ndarray,
        class_names: Sequence[str],
) -> dict[str, float]:
    """Means over the classes, in percent, and each class's average precision; arguments as `per_class_metrics`.

    Returns:
        'mAP' (VOC 2010 to 2012), 'mAP_11point' (VOC 2007), 'mAP_sklearn', 'AUC', and 'AP_<class>' as in 'mAP'. Classes
        without a present image are left out.

    Raises:
        DataError: No class is present in some images and absent in others.
        NonFiniteLossError: A score is NaN or infinite.
    """
    rows = per_class_metrics(scores, targets, class_names)
    if all(np.isnan(row['AUC']) for row in rows):
        raise DataError('No class is present in some of the validation images and absent in others: take more images.')
    return {
        **{f'm{key}' if key != 'AUC' else key: float(np.nanmean([row[key] for row in rows]))
           for key in ('AP', 'AP_11point', 'AP_sklearn', 'AUC')},
        **{f"AP_{row['class']}": row['AP'] for row in rows if not np.isnan(row['AP'])},
    }


class MultiLabelEvaluator:
    """Collects predictions and computes `multilabel_metrics` and the loss, as timm's evaluators are used.

    Args:
        max_samples: Count no more than this many images (the padding of a distributed sampler).
        class_names: Names of the classes, in the order of the logits (default: their indices); logits beyond them are
            not looked at.
    """
    default_metric = 'mAP'

    def __init__(self, max_samples: int | None = None, class_names: Sequence[str] | None = None):
        self.max_samples = max_samples
        self.class_names = class_names
        self.logits: list[torch.Tensor] = []
        self.targets: list[torch.Tensor] = []

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add logits `[B, C]` and targets `[B, C]`."""
        self.logits.append(output.detach().float().cpu())
        self.targets.append(target.detach().float().cpu())

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """'loss' and the measures, over the images of all processes.

        Raises:
            ICASCError: There was no `update` before.
        """
        if not self.logits:
            raise ICASCError('compute() measures what update() was given, which is nothing so far.')
        pair = tuple(torch.cat(values)[:self.max_samples] for values in (self.logits, self.targets))
        if distributed:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, pair)
            pair = tuple(torch.cat(values) for values in zip(*gathered, strict=True))
        logits, targets = pair
        names = self.class_names or [str(c) for c in range(logits.shape[1])]
        scores, labels = (values[:, :len(names)].numpy() for values in pair)
        return {
            'loss': multilabel_soft_margin(logits, targets).mean().item(),
            **multilabel_metrics(scores, labels, names)}
