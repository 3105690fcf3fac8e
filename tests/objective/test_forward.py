"""The whole objective against one-image-at-a-time loops and finite differences."""
import dataclasses

import pytest
import torch
from helpers.models import create
from helpers.objective import (
    directional_derivatives,
    double_batch,
    layers_of,
    objective_value,
    reference_terms,
)

import timm_icasc.objective.forward as forward_module
from timm_icasc import ICASCConfig, ICASCError, attention_maps, icasc_forward
from timm_icasc.attention import trainable_methods


@pytest.mark.parametrize('name, attention', [
    # Features that are never negative, and signed ones.
    pytest.param(name, attention, marks=(
        pytest.mark.slow if name == 'convnext_atto' and attention not in ('ach', 'ach_signed') else ()))
    for name in ('toy', 'resnet20_cifar', 'convnext_atto') for attention in trainable_methods()])
def test_terms_equal_one_image_at_a_time_loops(name, attention, toy):
    model = (toy if name == 'toy' else create(name)).double().eval()
    images, target = double_batch(size=64 if name == 'convnext_atto' else 16)
    layers = layers_of(model, images)
    output = icasc_forward(model, images, target, layers, ICASCConfig(attention=attention, order=2))
    present = [[t] for t in target.tolist()]
    absent = [[c for c in range(output.logits.shape[1]) if c not in t] for t in present]
    expected = reference_terms(model, images, present, absent, layers, attention)
    assert set(output.terms) == set(expected)
    for term, values in expected.items():
        torch.testing.assert_close(output.terms[term].detach(), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('name', ['toy', 'resnet20_cifar'])
def test_permuting_the_batch_permutes_every_value_and_nothing_else(name, order, toy):
    model = (toy if name == 'toy' else create(name)).double().eval()
    images, target = double_batch(batch=5, size=32)
    layers, config, permutation = layers_of(model, images), ICASCConfig(order=order), torch.tensor([3, 1, 4, 0, 2])
    one = icasc_forward(model, images, target, layers, config)
    other = icasc_forward(model, images[permutation], target[permutation], layers, config)
    for ours, theirs in ((one.terms, other.terms), (one.maps, other.maps)):
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key][permutation], rtol=1e-10, atol=1e-14)
    grads = [
        torch.autograd.grad(o.weighted_sum(config), list(model.parameters()), allow_unused=True)
        for o in (one, other)]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


SHALLOW = {'convnext_atto': {'depths': (1, 1, 2, 1)}, 'vit_tiny_patch16_224': {'depth': 4}}


@pytest.mark.parametrize('name, attention', [
    # Every method on one architecture, every architecture with one method; the other pairs are slow tests.
    pytest.param(name, attention, marks=[] if name == 'resnet20_cifar' or attention == 'ach' else pytest.mark.slow)
    for name in ('resnet20_cifar', 'convnext_atto', 'vit_tiny_patch16_224')
    for attention in trainable_methods()
    # It has no map before a LayerNorm: test_attention.py.
    if (name, attention) != ('vit_tiny_patch16_224', 'hires_cam')])
def test_order_2_parameter_gradient_equals_finite_differences(name, attention):
    """Cross-entropy and every term at once, the mask included, on real timm architectures in float64."""
    model = create(name, **SHALLOW.get(name, {})).double().eval()
    torch.manual_seed(3)
    for p in model.parameters():  # LayerScale and biases away from their trivial initial values
        p.data.add_(0.02 * torch.randn_like(p))
    images, target = double_batch(batch=2, size=32 if 'cifar' in name else 64)
    layers = layers_of(model, images)
    # A gentle mask: at omega = 100 its own curvature would need smaller steps than float64 allows.
    config = ICASCConfig(attention=attention, order=2, mask_grad=True, omega=5.)
    for analytical, numerical in directional_derivatives(
            model, lambda: objective_value(model, images, target, layers, config)):
        assert analytical == pytest.approx(numerical, rel=2e-5, abs=1e-7)


def test_mask_without_gradient_is_a_constant(monkeypatch, toy):
    """mask_grad=False: finite differences with the mask held where it is."""
    model = toy.double().eval()
    images, target = double_batch()
    layers, config = layers_of(model, images), ICASCConfig(order=2, omega=5.)
    fixed = []
    original = forward_module.target_mask
    monkeypatch.setattr(forward_module, 'target_mask', lambda *args: fixed[0] if fixed else original(*args).detach())
    fixed.append(original(icasc_forward(model, images, target, layers, config).maps['target_last'].detach(), omega=5.))
    held = list(directional_derivatives(model, lambda: objective_value(model, images, target, layers, config)))
    monkeypatch.setattr(forward_module, 'target_mask', original)
    parameters = list(model.parameters())
    free = torch.autograd.grad(objective_value(model, images, target, layers, config), parameters)
    moving = torch.autograd.grad(
        objective_value(model, images, target, layers, dataclasses.replace(config, mask_grad=True)), parameters)
    for analytical, numerical in held:
        assert analytical == pytest.approx(numerical, rel=1e-6)
    generator = torch.Generator().manual_seed(7)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for p in parameters]
    along = [sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item() for grads in (free, moving)]
    assert along[0] == pytest.approx(held[0][1], rel=1e-6)
    assert along[1] != pytest.approx(held[0][1], rel=1e-3)


@pytest.mark.parametrize('attention', trainable_methods())
def test_order_1_takes_the_channel_weights_as_constants(attention, toy):
    model = toy.double().eval()
    images, target = double_batch()
    layers = layers_of(model, images)
    outputs = {
        order: icasc_forward(model, images, target, layers, ICASCConfig(attention, order=order)) for order in (1, 2)}
    for name in outputs[1].maps:
        assert torch.equal(outputs[1].maps[name], outputs[2].maps[name])
    head = {order: torch.autograd.grad(
        output.weighted_sum(ICASCConfig()), model.fc.weight, allow_unused=True)[0]
        for order, output in outputs.items()}
    assert head[1] is None, 'the head acts on the maps through the channel weights alone'
    assert head[2].any()


@pytest.mark.parametrize('weights, maps', [
    ({'weight_as_inner': 0.}, {'target_last', 'confused_last', 'target_inner'}),
    ({'weight_as_last': 0.}, {'target_last', 'target_inner', 'confused_inner'}),
    ({'weight_ac': 0.}, {'target_last', 'confused_last', 'target_inner', 'confused_inner'}),
    ({'weight_as_inner': 0., 'weight_ac': 0.}, {'target_last', 'confused_last'}),
    ({'weight_as_inner': 0., 'weight_as_last': 0.}, {'target_last', 'target_inner'}),
    ({'weight_as_inner': 0., 'weight_as_last': 0., 'weight_ac': 0.}, set()),
])
def test_a_term_of_weight_zero_is_not_computed(weights, maps, toy):
    """Table 3's ablations: neither its maps nor the gradients behind them; the other terms keep their values."""
    images, target = (x for x in double_batch())
    model = toy.double().eval()
    layers = layers_of(model, images)
    everything = icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    output = icasc_forward(model, images, target, layers, ICASCConfig(order=2, **weights))
    assert set(output.maps) == maps
    assert {f'weight_{name}' for name in output.terms}.isdisjoint(weights)
    assert len(output.terms) == 3 - len(weights)
    for name, values in output.terms.items():
        torch.testing.assert_close(values, everything.terms[name])


def test_class_gradients_stop_at_the_inner_layer(toy):
    """Nothing before the inner layer is traversed: a stem whose backward fails does not matter to order 1's maps."""
    class Forbidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError('traversed the part before the inner layer')

    images, target = double_batch()
    model = toy.double().eval()
    layers = layers_of(model, images)
    model.stem.register_forward_pre_hook(lambda module, args: (Forbidden.apply(args[0].requires_grad_()),))
    icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    attention_maps(model, images, layer='inner')


def test_inference_gives_the_same_values_without_a_graph():
    model = create('resnet20_cifar').eval()
    images, target = torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    layers = layers_of(model, images)
    expected = icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    with torch.inference_mode():
        output = icasc_forward(model, images, target, layers, ICASCConfig(), inference=True)
    for name, values in output.terms.items():
        assert not values.requires_grad
        torch.testing.assert_close(values, expected.terms[name].detach())
    assert not output.logits.requires_grad



def test_a_random_rival_is_for_training_alone(toy):
    model = toy.double().eval()
    images, target = double_batch(batch=8, size=32)
    layers, config = layers_of(model, images), ICASCConfig(rival='random')
    plain = icasc_forward(model, images, target, layers, ICASCConfig())
    drawn = [icasc_forward(model, images, target, layers, config) for _ in range(10)]
    rivals = torch.stack([output.classes.confused.argmax(1) for output in drawn])
    assert (rivals != target).all() and (rivals.unique(dim=0).shape[0] > 1)
    for output in drawn:
        same = (output.classes.confused == plain.classes.confused).all(1)
        for term, values in output.terms.items():
            torch.testing.assert_close(values[same], plain.terms[term][same])
        torch.testing.assert_close(output.terms['ac'], plain.terms['ac'], msg='which has no rival')
    measured = icasc_forward(model, images, target, layers, config, inference=True)
    assert torch.equal(measured.classes.confused, plain.classes.confused)


@pytest.mark.parametrize('arguments, message', [
    ({'layers': ('stem', 'stage')}, r"layers must be the answer of resolve_layers.*\('stem', 'stage'\)"),
    ({'config': {'order': 1}}, 'config must be an ICASCConfig, got dict'),
    ({'images': [torch.zeros(3, 16, 16)]}, 'images must be a tensor .* got list'),
    ({'images': {'pixel_values': torch.zeros(2, 3, 16, 16)}}, r"NaFlex patches, patches.*batch\['pixel_values'\]"),
    ({'images': torch.zeros(0, 3, 16, 16)}, 'images must hold at least one'),
    ({'model': 'resnet18'}, "`model` must be a torch.nn.Module, got 'resnet18'"),
    ({'multilabel': 'no'}, "`multilabel` must be True or False, got 'no'"),
])
def test_arguments_of_another_kind_are_named(arguments, message, toy):
    images, target = double_batch()
    toy.double()
    given = {
        'model': toy, 'images': images, 'layers': layers_of(toy, images), 'config': ICASCConfig(), **arguments}
    with pytest.raises(ICASCError, match=message):
        icasc_forward(target=target, **given)
