"""The parameters of the objective and the table of its terms, checked."""
import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from helpers.objective import double_batch, layers_of

import timm_icasc.objective.forward as forward_module
from timm_icasc import ICASCConfig, icasc_forward
from timm_icasc.objective.config import TERMS


@pytest.mark.parametrize('field, value', [
    ('weight_ac', '1'), ('theta', float('nan')), ('omega', float('inf')), ('omega', 0), ('omega', -1.), ('sigma', 1.5),
    ('attention', 'gradcam'), ('order', 3), ('mask_scale', 'mean'), ('weight_ac', -1.),
    ('weight_as_last', float('nan')), ('multilabel_maps', 'each'), ('rival', 'next'),
    ('mask_grad', 'no')])
def test_bad_parameters_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ICASCConfig(**{field: value})


def test_numbers_of_numpy():
    config = ICASCConfig(weight_ac=np.float32(0.5), theta=np.float64(0.75), omega=np.int64(50))
    assert config == ICASCConfig(weight_ac=0.5, theta=0.75, omega=50.) and hash(config) == hash(copy.deepcopy(config))
    assert json.loads(config.to_json_string()) == config.to_dict()
    with pytest.raises(ValueError, match='weight_ac must be a finite number'):
        ICASCConfig(weight_ac=np.float32('nan'))


def test_a_share_of_the_most_confused_has_no_random_rival():
    with pytest.raises(ValueError, match="share below 1 .* or rival='random'"):
        ICASCConfig(share=0.5, rival='random')


def test_it_does_not_change():
    """A mistyped parameter must not be taken for one, nor a change come after the checks."""
    config = ICASCConfig()
    for name in ('order', 'wieght_ac'):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f'cannot set {name}: .* dataclasses.replace'):
            setattr(config, name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        del config.order
    assert config == ICASCConfig() and hash(config) == hash(ICASCConfig()) != hash(ICASCConfig(order=2))


def test_what_trainers_of_other_libraries_do_to_a_models_config():
    """transformers' Trainer writes `use_cache`; its reporters ask for a dictionary or for JSON."""
    config = ICASCConfig(order=2)
    config.use_cache = True
    assert config == ICASCConfig(order=2) and config.to_dict() == dataclasses.asdict(config)
    assert json.loads(config.to_json_string()) == config.to_dict() and 'use_cache' not in config.to_dict()
    assert ICASCConfig(**config.to_dict()) == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)


def test_every_term_has_a_weight_of_one():
    weights = [name for name in ICASCConfig.names() if name.startswith('weight_')]
    assert weights == [f'weight_{term.name}' for term in TERMS]
    assert ICASCConfig().weights == {term.name: 1. for term in TERMS}


def test_other_weights():
    config = ICASCConfig(order=2)
    assert config.with_weights(0.5) == dataclasses.replace(config, **{f'weight_{term.name}': 0.5 for term in TERMS})
    assert list(config.with_weights(1., 2., 3.).weights.values()) == [1., 2., 3.]
    with pytest.raises(ValueError):
        config.with_weights(1., 2.)


def test_a_row_of_the_table_is_all_that_a_term_is(monkeypatch, toy):
    """A loss of one's own, of two maps of the last layer and two parameters."""
    def loss(target, confused, mask, theta, sigma):
        assert target.shape == confused.shape == mask.shape
        return (target - confused).mean((1, 2)) * theta + sigma

    row = dataclasses.replace(
        TERMS[2], layer='last', classes=('target', 'confused'), loss=loss, parameters=('theta', 'sigma'))
    monkeypatch.setattr(forward_module, 'TERMS', (row,))
    images, target = double_batch()
    model = toy.double()
    output = icasc_forward(model, images, target, layers_of(model, images), ICASCConfig())
    assert set(output.maps) == {'target_last', 'confused_last'} and set(output.terms) == {row.name}
    expected = (output.maps['target_last'] - output.maps['confused_last']).mean((1, 2)) * 0.8 + 0.55
    assert output.terms[row.name].tolist() == pytest.approx(expected.tolist())
