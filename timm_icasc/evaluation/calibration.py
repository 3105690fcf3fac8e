"""Expected calibration error: does a probability of 70 % mean right in 70 of 100 cases?"""
import numpy as np

__all__ = ['expected_calibration_error']


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
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
