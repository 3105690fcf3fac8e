"""Measuring attention on held-out images."""
import pytest
import torch
from helpers.models import ToyNet, create
from helpers.objective import double_batch

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    TargetError,
    attention_maps,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.attention import METHODS
from timm_icasc.labels import MULTI
from timm_icasc.losses import attention_overlap
from timm_icasc.objective.separability import evaluate_attention


def test_means_over_images_whatever_the_batches(toy):
    images, target = torch.randn(7, 3, 16, 16), torch.arange(7) % 4
    whole = evaluate_attention(toy, [(images, target)])
    parts = evaluate_attention(toy, [(images[:2], target[:2]), (images[2:], target[2:])])
    assert whole == pytest.approx(parts, rel=1e-5)
    output = icasc_forward(toy, images, target, resolve_layers(toy, input_size=(3, 16, 16)), ICASCConfig())
    for name, values in output.terms.items():
        assert whole[name] == pytest.approx(values.mean().item(), rel=1e-5)
    overlap = attention_overlap(output.maps['target_last'], output.maps['confused_last'])
    assert whole['overlap_last'] == pytest.approx(overlap.nanmean().item(), rel=1e-5)


def test_batches_are_brought_to_the_model(toy):
    """Loaders leave theirs in main memory where nothing fetches them ahead (--no-prefetcher)."""
    class Elsewhere:
        def __init__(self, tensor):
            self.tensor = tensor

        def to(self, device):
            assert device == toy.fc.weight.device
            return self.tensor

    images, target = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    brought = evaluate_attention(toy, [(Elsewhere(images), Elsewhere(target))])
    assert brought == evaluate_attention(toy, [(images, target)])


def test_targets_as_lists(toy):
    images = torch.randn(2, 3, 16, 16)
    assert evaluate_attention(toy, [(images, [0, 1])]) == evaluate_attention(toy, [(images, torch.tensor([0, 1]))])
    present = [[1., 0., 0., 1.], [0., 1., 0., -1.]]
    assert evaluate_attention(toy, [(images, present)], labels=MULTI) == evaluate_attention(
        toy, [(images, torch.tensor(present))], labels=MULTI)


IMAGES, TARGET = torch.zeros(2, 3, 16, 16), torch.tensor([0, 1])


@pytest.mark.parametrize('batches, error, said', [
    ([{'image': IMAGES, 'label': TARGET}], ICASCError, r"got a dictionary of \['image', 'label'\].*b\['image'\]"),
    ((IMAGES, TARGET), ICASCError, r'got Tensor: \[\(images, target\)\] makes them of one batch'),
    (IMAGES, ICASCError, 'pairs of images and targets, got Tensor'),
    ([(IMAGES, TARGET, TARGET)], ICASCError, 'pairs of images and targets, got 3 items'),
    ([(IMAGES, ['cat', 'dog'])], TargetError, r"targets must be class indices \[B\].* got \['cat', 'dog'\]"),
    ([(IMAGES, [[0], [0, 1]])], TargetError, r'got \[\[0\], \[0, 1\]\]')])
def test_what_are_no_pairs(batches, error, said, toy):
    with pytest.raises(error, match=f'`batches`.*{said}'):
        evaluate_attention(toy, batches)


def test_every_term_is_measured_whatever_its_weight(toy):
    batch = [(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))]
    values = evaluate_attention(toy, batch, ICASCConfig(weight_ac=0., weight_as_inner=0., weight_as_last=0.))
    assert set(values) == {'as_inner', 'as_last', 'ac', 'overlap_inner', 'overlap_last', 'zero_maps'}


@pytest.mark.parametrize('name', METHODS)
def test_maps_of_every_method_are_those_that_are_drawn(name):
    """Of the score that the method takes, though only the pair of classes is measured here."""
    model, images = create('resnet20_cifar').eval(), torch.randn(6, 3, 32, 32)
    target, layers = torch.arange(6), resolve_layers(model, input_size=(3, 32, 32))
    confused = model(images).scatter(1, target[:, None], -torch.inf).argmax(1)
    measured = evaluate_attention(model, [(images, target)], ICASCConfig(attention=name))
    output = icasc_forward(model, images, target, layers, ICASCConfig(attention=name), inference=True)
    for layer in ('inner', 'last'):
        drawn = attention_maps(model, images, torch.stack([target, confused], 1), method=name, layer=layer)
        assert drawn.any()
        for k, which in enumerate(('target', 'confused')):
            torch.testing.assert_close(output.maps[f'{which}_{layer}'], drawn[:, k], rtol=1e-4, atol=1e-7)
        overlap = attention_overlap(*drawn.unbind(1)).nanmean().item()
        assert measured[f'overlap_{layer}'] == pytest.approx(overlap, rel=1e-3, nan_ok=True)


def test_zero_maps_are_counted_and_kept_out_of_the_overlap():
    torch.manual_seed(0)
    model = ToyNet()
    with torch.no_grad():
        model.fc.weight[1] = -model.fc.weight[1].abs()  # nothing argues for class 1
        model.fc.bias.copy_(torch.tensor([0., 9., 0., 0.]))
    values = evaluate_attention(model, [(torch.randn(4, 3, 16, 16), torch.tensor([0, 2, 3, 0]))])
    assert values['zero_maps'] == 1 and values['overlap_last'] != values['overlap_last']


def test_broken_weights_and_no_images_are_said(toy):
    with pytest.raises(ICASCError, match='holds no image'):
        evaluate_attention(toy, [])
    images = torch.randn(2, 3, 16, 16)
    images[1] = torch.nan
    with pytest.raises(ICASCError, match='NaN or infinite'):
        evaluate_attention(toy, [(images, torch.tensor([0, 1]))])


def test_batches_made_in_inference_mode(toy):
    toy.double()
    with torch.inference_mode():
        images, target = double_batch()
        found = evaluate_attention(toy, [(images, target)])
    assert found == evaluate_attention(toy, [(images.clone(), target.clone())])


def test_the_model_is_left_as_it_was():
    model = create('resnet20_cifar').train()
    model.layer1.eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_attention(model, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))])
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
