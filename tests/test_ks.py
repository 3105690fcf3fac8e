"""The KS statistic against its definition, by loops over every threshold."""
import numpy as np
import pytest

from timm_icasc.evaluation.ks import kolmogorov_smirnov


@pytest.mark.parametrize('seed', range(4))
def test_margin_and_its_place(seed):
    generator = np.random.default_rng(seed)
    target, confused = generator.beta(5, 2, 40), generator.beta(2, 5, 60)
    best, place = -1., None
    for p in sorted([*target, *confused]):
        distance = sum(c <= p for c in confused) / 60 - sum(t <= p for t in target) / 40
        if distance > best:
            best, place = distance, p
    result = kolmogorov_smirnov(target, confused)
    assert result.margin == pytest.approx(best) and result.probability == place
    assert (np.diff(result.target) >= 0).all() and len(result.confused) == 60


def test_the_sign_tells_which_is_larger():
    high, low = np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3])
    assert kolmogorov_smirnov(high, low).margin == 1
    assert kolmogorov_smirnov(low, high).margin == -1
    assert kolmogorov_smirnov(low, low).margin == 0


@pytest.mark.filterwarnings('error')
def test_single_values_have_a_margin_too():
    result = kolmogorov_smirnov(np.array([0.7]), np.array([0.2]))
    assert result.margin == 1 and result.probability == 0.2


def test_nothing_to_compare():
    assert np.isnan(kolmogorov_smirnov(np.array([]), np.array([0.1])).margin)
