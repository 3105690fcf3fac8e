"""Attention maps against explicit loops, derivative checks, and two independent implementations."""
import argparse

import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import GradCAM as TorchcamGradCAM

from timm_icasc import ICASCConfig, attention_maps
from timm_icasc.attention import ATTENTION_METHODS, METHODS, Method, grad_cam_plus_plus
from timm_icasc.cli import figure, segment
from timm_icasc.evaluation.options import add_evaluation_arguments
from timm_icasc.training.arguments import build_parser

B, K, H, W = 2, 3, 4, 5


@pytest.fixture
def features_and_gradients():
    generator = torch.Generator().manual_seed(0)
    # Small enough to keep away from the poles of the Grad-CAM++ weights, where nothing can be compared.
    features = 0.05 * torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    gradients = torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    return features, gradients


def loop_map(features, gradients, weight_of_channel):
    """`ReLU(sum_k w_k F_k)`, one pixel at a time."""
    result = torch.zeros(B, H, W, dtype=torch.float64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                total = 0.
                for k in range(K):
                    total += weight_of_channel(features[b, k], gradients[b, k]) * features[b, k, i, j].item()
                result[b, i, j] = max(total, 0.)
    return result


def grad_cam_weight(feature, gradient):
    return sum(gradient[i, j].item() for i in range(H) for j in range(W)) / (H * W)


def channel_weighted_weight(feature, gradient):
    return sum(max(gradient[i, j].item(), 0.) for i in range(H) for j in range(W)) / (H * W)


def grad_cam_plus_plus_weight(feature, gradient):
    """The published form with second and third powers, not the reduced one."""
    feature_sum = sum(feature[i, j].item() for i in range(H) for j in range(W))
    weight = 0.
    for i in range(H):
        for j in range(W):
            g = gradient[i, j].item()
            if g != 0:
                weight += g ** 2 / (2 * g ** 2 + feature_sum * g ** 3) * max(g, 0.)
    return weight


WEIGHTS = {
    'ach': channel_weighted_weight, 'grad_cam': grad_cam_weight, 'grad_cam_plus_plus': grad_cam_plus_plus_weight}

every_method = pytest.mark.parametrize('method', [m.function for m in METHODS.values()], ids=list(METHODS))


@pytest.mark.parametrize('name', METHODS)
def test_equals_explicit_loops(name, features_and_gradients):
    features, gradients = features_and_gradients
    gradients[0, 1, 2, 3] = 0.  # a pixel without gradient
    torch.testing.assert_close(
        METHODS[name].function(features, gradients), loop_map(features, gradients, WEIGHTS[name]),
        rtol=1e-12, atol=1e-14)


@every_method
def test_first_and_second_derivatives(method, features_and_gradients):
    inputs = [x.requires_grad_() for x in features_and_gradients]
    assert torch.autograd.gradcheck(method, inputs)
    assert torch.autograd.gradgradcheck(method, inputs)


@every_method
def test_classes_as_a_leading_dimension(method, features_and_gradients):
    features, gradients = features_and_gradients
    several = torch.stack([gradients, -gradients, 2 * gradients])
    together = method(features, several)
    assert together.shape == (3, B, H, W)
    for one, expected in zip(together, several, strict=True):
        torch.testing.assert_close(one, method(features, expected))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@every_method
def test_half_precision_is_computed_in_float32(method, dtype, features_and_gradients):
    features, gradients = (x.to(dtype) for x in features_and_gradients)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = method(features, gradients)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, method(features.double(), gradients.double()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', METHODS)
def test_area_normalised_maps_scale_with_the_area(name):
    """The same pixels four times over: maps with weights of means stay, if the gradients do; sums grow by four."""
    method = METHODS[name]
    features, gradients = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 1e-3)
    small = method.function(features, gradients)
    large = method.function(features.repeat(1, 1, 2, 2), gradients.repeat(1, 1, 2, 2))
    assert large.mean().item() == pytest.approx(small.mean().item() * (1 if method.area_normalised else 4), rel=0.05)


def choices(parser, option):
    return next(list(action.choices) for action in parser._actions if option in action.option_strings)


@pytest.fixture
def parsers():
    """Makes the parsers that have the options."""
    def build():
        made = [argparse.ArgumentParser() for _ in range(3)]
        for parser, add in zip(
                made, (add_evaluation_arguments, figure.add_arguments, segment.add_arguments), strict=True):
            add(parser)
        return choices(build_parser(), '--icasc-attention'), *(choices(parser, '--attention') for parser in made)
    return build


@pytest.mark.parametrize('trainable', [False, True])
def test_a_method_is_added_by_one_row(trainable, monkeypatch, small_resnet, parsers):
    def total(features, gradients):
        """The features' rectified sum, whatever the class."""
        return features.sum(-3).relu() + 0 * gradients.sum(-3)

    monkeypatch.setitem(METHODS, 'total', Method(total, 'Total', trainable, area_normalised=False))
    for_training, for_evaluation, for_figures, for_segmentation = parsers()
    assert ('total' in for_training) == ('total' in for_evaluation) == trainable
    assert 'total' in for_figures and 'total' in for_segmentation
    if trainable:
        assert ICASCConfig(attention='total').attention == 'total'
    else:
        with pytest.raises(ValueError, match='attention must be one of'):
            ICASCConfig(attention='total')
    model, images, classes = small_resnet
    maps = attention_maps(model, images, classes, method='total')
    torch.testing.assert_close(maps[:, 0], model.forward_features(images).sum(1).relu().detach())


def test_what_may_be_chosen(parsers):
    every, trained = list(METHODS), ['ach', 'grad_cam']
    assert parsers() == (trained, trained, every, every)
    assert ATTENTION_METHODS == {name: method.function for name, method in METHODS.items()}


def test_grad_cam_plus_plus_pole_is_finite():
    """`2 + G sum(F) = 0`: the pixel weight has a pole there."""
    features = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    gradients = torch.tensor([[-1., 1.], [2., 3.]], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    result = grad_cam_plus_plus(features, gradients)
    result.sum().backward()
    assert result.isfinite().all() and gradients.grad.isfinite().all()


@pytest.fixture(scope='module')
def small_resnet():
    torch.manual_seed(0)
    return timm.create_model('resnet18', num_classes=7).eval(), torch.randn(2, 3, 64, 64), [3, 5]


@pytest.mark.parametrize('layer, path', [('last', 'layer4'), ('inner', 'layer3')])
def test_grad_cam_equals_torchcam(layer, path, small_resnet):
    model, images, classes = small_resnet
    with TorchcamGradCAM(model, path) as extractor:
        expected, = extractor(classes, model(images), normalized=False)
    ours = attention_maps(model, images, torch.tensor(classes)[:, None], method='grad_cam', layer=layer)
    torch.testing.assert_close(ours[:, 0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('method, reference', [('grad_cam', GradCAM), ('grad_cam_plus_plus', GradCAMPlusPlus)])
@pytest.mark.parametrize('layer, path', [('last', 'layer4'), ('inner', 'layer3')])
def test_equals_pytorch_grad_cam(method, reference, layer, path, small_resnet):
    model, images, classes = small_resnet
    # Its Grad-CAM++ adds 1e-6 to each denominator; float64 keeps the rest of the comparison tight.
    model, images = model.double(), images.double()
    targets = [ClassifierOutputTarget(c) for c in classes]
    target_layer = model.get_submodule(path)
    with reference(model, [target_layer]) as cam:
        cam(images, targets)
        raw = cam.get_cam_image(
            images, target_layer, targets, cam.activations_and_grads.activations[0].numpy(),
            cam.activations_and_grads.gradients[0].numpy(), eigen_smooth=False)
    ours = attention_maps(model, images, torch.tensor(classes)[:, None], method=method, layer=layer)[:, 0]
    model.float()
    expected = torch.from_numpy(raw).clamp(min=0)
    assert expected.max() > 0
    # 1e-6 beside 2 G^2 matters for the smallest gradients of Grad-CAM++ only.
    tolerance = 1e-10 if method == 'grad_cam' else 0.05
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.max().item())
