"""What stands behind a feature of a model on meta tensors, run with random values."""
import pytest
import timm
import torch
from helpers.models import ToyNet, create

from timm_icasc import LayerResolutionError, attention_maps, explain, resolve_layers
from timm_icasc.features.layout import FeatureLayer
from timm_icasc.features.meta import Materialize
from timm_icasc.features.probe import Probe

SIZE = (3, 16, 16)
STEM, STAGE = FeatureLayer('stem', 'NCHW', 5, (8, 8)), FeatureLayer('stage', 'NCHW', 6, (4, 4))


def tail_of(model, size=SIZE):
    return Probe(model, size).tail


@pytest.fixture
def tail():
    with torch.device('meta'):
        return tail_of(ToyNet())


def test_scores_follow_from_the_values(tail):
    """Of each image alone as of several at once, with the same weights in every run."""
    values = torch.randn(3, 6, 4, 4)
    with tail.run(STAGE, values) as (feature, logits):
        assert logits.shape == (3, 4) and feature.is_leaf and torch.equal(feature, values)
    for value, expected in zip(values, logits, strict=True):
        with tail.run(STAGE, value[None]) as (_, alone):
            torch.testing.assert_close(alone[0], expected)


def test_gradients_are_the_derivatives(tail):
    value, step = torch.randn(1, 6, 4, 4), 1e-3
    with tail.run(STAGE, value) as (feature, logits):
        gradient, = torch.autograd.grad(logits[0, 2], feature)
    scores = []
    for sign in (1, -1):
        moved = value.clone()
        moved[0, 3, 1, 2] += sign * step
        with tail.run(STAGE, moved) as (_, logits):
            scores.append(logits[0, 2].item())
    assert (scores[0] - scores[1]) / (2 * step) == pytest.approx(gradient[0, 3, 1, 2].item(), rel=0.05)


def test_one_run_tells_the_gradients_of_all_that_is_behind(tail):
    gradients = tail.gradients(STEM)
    shapes = {path: tuple(g.shape) for (path, _), g in gradients.items()}
    assert shapes['stem'] == (1, 5, 8, 8) and shapes['stage'] == (1, 6, 4, 4) and shapes['stage.0'] == (1, 6, 4, 4)
    assert all(g.any() for g in gradients.values())
    assert 'stem' not in {path for path, _ in tail.gradients(STAGE)}


def test_nothing_passes_a_feature_that_is_held_fixed(tail):
    assert tail.gradients(STEM, fixed=STAGE)['stem', 0] is None


def test_what_is_overwritten_in_place_has_no_gradient_of_its_own():
    model = ToyNet()
    model.stage[1] = torch.nn.ReLU(inplace=True)
    found = tail_of(model.to('meta')).gradients(STEM)
    assert ('stage', 0) in found and ('stage.0', 0) not in found


def test_a_value_is_computed_as_the_model_computes_it():
    tail = tail_of(ToyNet(activation=torch.nn.ReLU).to('meta'))
    value = tail.value(STAGE)
    assert value.shape == (1, 6, 4, 4) and (value >= 0).all() and (value > 0).any()
    assert tail.value(STEM) is None  # there is the image alone before it


def test_of_a_large_stage_the_last_block_is_run_alone(monkeypatch):
    """With random weights in forty blocks, a large network would fill the memory."""
    with torch.device('meta'):
        model = create('resnet18')
    tail = tail_of(model, (3, 64, 64))
    monkeypatch.setattr('timm_icasc.features.tail.LARGE_STAGE', 2 ** 20)
    drawn = []
    draw = Materialize._draw
    monkeypatch.setattr(Materialize, '_draw', lambda self, x: drawn.append(tuple(x.shape)) or draw(self, x))
    value = tail.value(FeatureLayer('layer4', 'NCHW', 512, (2, 2)))
    assert value.shape == (1, 512, 2, 2) and (value >= 0).all() and (value > 0).any()
    assert drawn.count((512, 512, 3, 3)) == 2 and (512, 256, 3, 3) not in drawn  # layer4.1 and not layer4.0


def test_what_follows_an_activation_inside_a_block_does_not_hide_it():
    """Channel attention behind the last ReLU: its input has no value below 0."""
    with torch.device('meta'):
        model = timm.create_model('eca_vovnet39b')
    tail = tail_of(model, (3, 64, 64))
    for layer in (FeatureLayer('stages.2', 'NCHW', 768, (4, 4)), FeatureLayer('stages.3', 'NCHW', 1024, (2, 2))):
        value = tail.value(layer)
        assert (value >= 0).all() and (value > 0).any()


class Recurrent(torch.nn.Module):
    """Rows of a feature through an LSTM."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).view_as(x)


@pytest.mark.parametrize('between', [Recurrent(), torch.nn.Identity()])
def test_no_value_where_random_ones_do_not_reach(between):
    """An LSTM refuses weights of another device."""
    class Net(ToyNet):
        def __init__(self):
            super().__init__()
            self.between = between

        def forward(self, x):
            return self.fc(self.between(self.stage(self.stem(x))).mean((2, 3)))

    tail = tail_of(Net().to('meta'))
    value = tail.value(FeatureLayer('between', 'NCHW', 6, (4, 4)))
    assert value is None if isinstance(between, Recurrent) else value.shape == (1, 6, 4, 4)


def test_of_a_module_called_twice_the_last_call_is_meant():
    class Twice(ToyNet):
        def forward(self, x):
            x = self.stem(x)
            return self.fc(self.stage[1](self.stage[0](self.stem[1](x))).mean((2, 3)))

    tail = tail_of(Twice().to('meta'))
    again = FeatureLayer('stem.1', 'NCHW', 5, (8, 8))
    with tail.run(again, torch.ones(1, 5, 8, 8)) as (_, one), tail.run(again, torch.ones(1, 5, 8, 8)) as (_, other):
        assert torch.equal(one, other)


def test_the_model_is_left_as_it_was():
    with torch.device('meta'):
        model = create('resnet18').train()
    tail = tail_of(model, (3, 64, 64))
    layer = FeatureLayer('layer4', 'NCHW', 512, (2, 2))
    tail.gradients(layer)
    tail.value(layer)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.is_meta for p in model.parameters())


def test_weights_made_in_inference_mode_have_a_message_of_their_own():
    """The size of the images was blamed."""
    with torch.inference_mode():
        model = timm.create_model('resnet20_cifar', num_classes=3)
    images = torch.zeros(1, 3, 32, 32)
    for look in (
            resolve_layers, lambda model: attention_maps(model, images),
            lambda model: explain(model, images[0], normalised=True)):
        with pytest.raises(LayerResolutionError, match=r'`torch.inference_mode\(\)`.*: create or load .* outside'):
            look(model)
