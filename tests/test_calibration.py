"""Expected calibration error against a loop over the bins, and its extremes."""
import numpy as np
import pytest

from timm_icasc.evaluation.calibration import expected_calibration_error


@pytest.mark.parametrize('bins', [1, 10, 15])
def test_equals_a_loop_over_the_bins(bins):
    generator = np.random.default_rng(0)
    confidence = generator.random(200)
    confidence[:4] = 0., 1., 0.2, 0.4  # edges
    correct = generator.random(200) < confidence ** 2
    error = 0.
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        members = [i for i, p in enumerate(confidence) if low < p <= high or b == p == 0]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            error += len(members) / 200 * abs(accuracy - mean)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(error)


def test_extremes():
    sure = np.ones(10)
    assert expected_calibration_error(sure, np.ones(10, bool)) == 0
    assert expected_calibration_error(sure, np.zeros(10, bool)) == 1
    assert expected_calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))
