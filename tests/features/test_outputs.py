"""Class scores in what a model returns, wherever it is run."""
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from helpers.models import ToyNet

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    attention_maps,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.features.outputs import class_scores, find_class_scores, without_order
from timm_icasc.task import PublicApproachTask


class ModelOutput(OrderedDict):
    """Hugging Face's: a dictionary whose entries are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as e:
            raise AttributeError(name) from e


WAYS = {
    'object': lambda scores, x: SimpleNamespace(loss=None, logits=scores),
    'model output': lambda scores, x: ModelOutput(hidden_states=(x,), logits=scores),
    'dictionary': lambda scores, x: {'features': x, 'logits': scores},
    'tuple': lambda scores, x: (scores, x),
    'list': lambda scores, x: [scores, x],
    'named tuple': lambda scores, x: namedtuple('Outputs', 'aux logits')(x, scores),
}


class Returns(ToyNet):
    def __init__(self, way):
        super().__init__()
        self.way = WAYS[way]

    def forward(self, x):
        return self.way(super().forward(x), x)


@pytest.fixture(params=WAYS)
def pair(request):
    """The model with scores alone, and the same model that returns them in another way."""
    plain, other = ToyNet(), Returns(request.param)
    other.load_state_dict(plain.state_dict())
    return plain, other


IMAGES, TARGET = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16).sin(), torch.tensor([0, 1])


def test_layers_and_maps(pair):
    layers = [resolve_layers(model, input_size=(3, 16, 16)) for model in pair]
    assert layers[0] == layers[1] and layers[0].last.path == 'stage'
    assert torch.equal(*(attention_maps(model, IMAGES) for model in pair))


@pytest.mark.parametrize('parameters', [{}, {'share': 0.5}, dict.fromkeys(
    ('weight_as_inner', 'weight_as_last', 'weight_ac'), 0.)])
def test_forward(pair, parameters):
    layers = resolve_layers(pair[0], input_size=(3, 16, 16))
    plain, other = (icasc_forward(model, IMAGES, TARGET, layers, ICASCConfig(**parameters)) for model in pair)
    assert torch.equal(plain.logits, other.logits)
    assert all(torch.equal(values, other.terms[name]) for name, values in plain.terms.items())


@pytest.mark.parametrize('kind, parameters', [
    (ICASCTask, {}), (ICASCTask, {'start_steps': 9}), (PublicApproachTask, {})])
def test_tasks(pair, kind, parameters):
    plain, other = (kind(model, verbose=False, **parameters)(IMAGES, TARGET) for model in pair)
    assert torch.equal(plain['loss'], other['loss']) and torch.equal(plain['output'], other['output'])


@pytest.mark.parametrize('output', [None, (), {}, {'logits': None}, 'logits', {'scores': torch.ones(2, 3)}, [None]])
def test_anything_else_is_refused_in_one_sentence(output):
    with pytest.raises(ICASCError, match=f"`model` returned {type(output).__name__} without class scores: [^.]*\\.$"):
        class_scores(output)


def test_two_sets_of_scores_leave_open_which_is_meant():
    scores = torch.zeros(2, 5)
    assert find_class_scores((scores, torch.zeros(2, 7))) is scores
    assert find_class_scores((scores, scores + 1)) is None
    with pytest.raises(ICASCError, match='several sets of class scores'):
        class_scores((scores, scores + 1))


def test_scores_of_broken_weights_have_no_order():
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([
        [1., 2., 3.], [1., -inf, 3.], [1., nan, 3.], [1., inf, 3.], [-inf, -inf, -inf], [nan, nan, nan],
        [-1e38, 0., 1e38]])
    assert without_order(scores).tolist() == [False, False, True, True, True, True, False]
