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
    LayerResolutionError,
    attention_maps,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.features.outputs import class_scores, find_class_scores, scores_of, without_order
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
    with pytest.raises(ICASCError, match='several tensors of one shape'):
        class_scores((scores, scores + 1))


def test_probabilities_beside_the_scores_leave_open_which_is_meant():
    """The remedy was to return the scores first, which they were."""
    class Both(ToyNet):
        def forward(self, x):
            scores = super().forward(x)
            return scores, scores.softmax(1)
    with pytest.raises(LayerResolutionError, match=r"several tensors of one shape, .* or a dictionary with 'logits'"):
        resolve_layers(Both(), input_size=(3, 16, 16))


class WithFeatures(ToyNet):
    """Returns the pooled features too, before or behind the scores, or by name."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        features = self.stage(self.stem(x)).mean((2, 3))
        return self.order(features.flatten(1), self.fc(features))


def test_features_before_the_scores_are_not_taken_for_them():
    with pytest.raises(LayerResolutionError, match=r'returns \(2, 6\) first, .* computes \(2, 4\) from it'):
        resolve_layers(WithFeatures(lambda features, scores: (features, scores)), input_size=(3, 16, 16))
    for order in (lambda features, scores: (scores, features),
                  lambda features, scores: {'features': features, 'logits': scores},
                  lambda features, scores: namedtuple('Outputs', 'features logits')(features, scores),
                  lambda features, scores: namedtuple('Outputs', 'logits coarse')(scores, scores[:, :2] + 1)):
        layers = resolve_layers(WithFeatures(order), input_size=(3, 16, 16))
        assert layers == resolve_layers(ToyNet(), input_size=(3, 16, 16))


def test_scores_of_broken_weights_have_no_order():
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor([
        [1., 2., 3.], [1., -inf, 3.], [1., nan, 3.], [1., inf, 3.], [-inf, -inf, -inf], [nan, nan, nan],
        [-1e38, 0., 1e38]])
    assert without_order(scores).tolist() == [False, False, True, True, True, True, False]


WAYS_TO_RUN = {
    'maps': lambda model, images: attention_maps(model, images),
    'forward': lambda model, images: icasc_forward(
        model, images, TARGET, resolve_layers(model, input_size=(3, 16, 16)), ICASCConfig()),
    'shared': lambda model, images: ICASCTask(model, share=0.5, verbose=False)(images, TARGET),
    'before it sets in': lambda model, images: ICASCTask(model, start_steps=9, verbose=False)(images, TARGET),
    'public approach': lambda model, images: PublicApproachTask(model, verbose=False)(images, TARGET)}


@pytest.mark.parametrize('images, message', [
    ((255 * IMAGES.abs()).to(torch.uint8), '`images` are torch.uint8, and `model` takes normalised floats'),
    (IMAGES.double(), r'`images` are torch.float64, the weights .* torch.float32: `images.to\(torch.float32\)`'),
    (IMAGES.to('meta'), r"`images` are on meta, the weights of `model` on cpu: `images.to\('cpu'\)`")])
@pytest.mark.parametrize('run', WAYS_TO_RUN)
def test_images_that_the_weights_cannot_take(run, images, message):
    with pytest.raises(ICASCError, match=message):
        WAYS_TO_RUN[run](ToyNet(), images)


class TakesBytes(ToyNet):
    def forward(self, x):
        return super().forward(x.float() / 255)


def test_a_model_may_take_other_images_than_its_weights_are():
    images = (255 * IMAGES.abs()).to(torch.uint8)
    plain, other = ToyNet(), TakesBytes()
    other.load_state_dict(plain.state_dict())
    assert torch.equal(attention_maps(other, images), attention_maps(plain, images / 255))
    with torch.autocast('cpu', torch.bfloat16):
        assert attention_maps(plain, IMAGES.bfloat16()).isfinite().all()


def test_a_model_without_values():
    with pytest.raises(ICASCError, match='`images` are torch.float64'):
        scores_of(ToyNet().to('meta'), IMAGES.to('meta', torch.float64))


def test_other_errors_of_a_model_stay_as_they_are():
    class Fails(ToyNet):
        def forward(self, x):
            raise RuntimeError('of its own')
    with pytest.raises(RuntimeError, match='of its own'):
        scores_of(Fails(), IMAGES)
