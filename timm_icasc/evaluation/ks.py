"""Kolmogorov-Smirnov statistic: how far apart are the probabilities of the true and of the most confusing class?"""
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ['KolmogorovSmirnov', 'kolmogorov_smirnov']


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """Two samples of probabilities and the place of the largest distance of their distribution functions (Fig. 9).

    Attributes:
        margin: `max_p |F_confused(p) - F_target(p)|`, the KS statistic, in [0, 1]. Negative where the confused classes
            have the larger probabilities.
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
        margin=float(-result.statistic_sign * result.statistic), probability=float(result.statistic_location),
        target=np.sort(target), confused=np.sort(confused))
