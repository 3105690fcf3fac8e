"""Attention maps against explicit loops, derivative checks, and two independent implementations."""
import argparse
import copy
from functools import partial

import pytest
import torch
from helpers.models import FAMILIES, create
from pytorch_grad_cam import FinerCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam import methods as torchcam

from timm_icasc import ICASCConfig, ICASCTask, attention_maps, icasc_forward, resolve_layers
from timm_icasc.attention import (
    METHODS,
    Method,
    channel_weighted,
    channel_weighted_signed,
    contrasted_score,
    grad_cam_plus_plus,
    xgrad_cam,
)
from timm_icasc.cli import figure, segment
from timm_icasc.evaluation.options import add_evaluation_arguments
from timm_icasc.features.tap import capture_features
from timm_icasc.training.arguments import build_parser

B, K, H, W = 2, 3, 4, 5


@pytest.fixture
def features_and_gradients():
    generator = torch.Generator().manual_seed(0)
    # Small enough to keep away from the poles of the Grad-CAM++ weights, where nothing can be compared.
    features = 0.05 * torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    gradients = torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    return features, gradients


def loop_map(features, gradients, weight):
    """`ReLU(sum_k w_k F_k)`, one pixel at a time."""
    result = torch.zeros(B, H, W, dtype=torch.float64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                total = 0.
                for feature, gradient in zip(features[b], gradients[b], strict=True):
                    total += weight(feature, gradient, i, j) * feature[i, j].item()
                result[b, i, j] = max(total, 0.)
    return result


def loop_sum(value, *tensors):
    return sum(value(*(x[i, j].item() for x in tensors)) for i in range(H) for j in range(W))


def grad_cam_weight(feature, gradient, *pixel):
    return loop_sum(float, gradient) / (H * W)


def channel_weighted_weight(feature, gradient, *pixel):
    return loop_sum(lambda g: max(g, 0.), gradient) / (H * W)


def xgrad_cam_weight(feature, gradient, *pixel):
    return loop_sum(lambda f, g: f * g, feature, gradient) / loop_sum(float, feature)


def grad_cam_plus_plus_weight(feature, gradient, *pixel):
    """The published form with second and third powers, not the reduced one."""
    feature_sum = sum(feature[i, j].item() for i in range(H) for j in range(W))
    weight = 0.
    for i in range(H):
        for j in range(W):
            g = gradient[i, j].item()
            if g != 0:
                weight += g ** 2 / (2 * g ** 2 + feature_sum * g ** 3) * max(g, 0.)
    return weight


def doubled(features, gradients):
    """Signed features as twice as many that are not, and their gradients."""
    return torch.cat([features.relu(), (-features).relu()], 1), torch.cat([gradients, -gradients], 1)


LOOPS = {
    'ach': lambda f, g: loop_map(f, g, channel_weighted_weight),
    'grad_cam': lambda f, g: loop_map(f, g, grad_cam_weight),
    'grad_cam_plus_plus': lambda f, g: loop_map(f, g, grad_cam_plus_plus_weight),
    'ach_signed': lambda f, g: loop_map(*doubled(f, g), channel_weighted_weight),
    'hires_cam': lambda f, g: loop_map(f, g, lambda feature, gradient, i, j: gradient[i, j].item()),
    'layer_cam': lambda f, g: loop_map(f, g, lambda feature, gradient, i, j: max(gradient[i, j].item(), 0.)),
    'xgrad_cam': lambda f, g: loop_map(f, g, xgrad_cam_weight),
    'finer_cam': lambda f, g: loop_map(f, g, grad_cam_weight),
}

every_method = pytest.mark.parametrize('method', [m.function for m in METHODS.values()], ids=list(METHODS))


@pytest.mark.parametrize('name', METHODS)
def test_equals_explicit_loops(name, features_and_gradients):
    features, gradients = features_and_gradients
    gradients[0, 1, 2, 3] = 0.  # a pixel without gradient
    expected = LOOPS[name](features, gradients)
    assert (expected > 0).sum() > 5
    torch.testing.assert_close(
        METHODS[name].function(features, gradients), expected, rtol=1e-12, atol=1e-14)


@every_method
def test_first_and_second_derivatives(method, features_and_gradients):
    inputs = [x[:, :2, :2, :3].clone().requires_grad_() for x in features_and_gradients]
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
def test_area_normalised_maps_scale_with_the_area(name, features_and_gradients):
    """Beside nine times as much that belongs to no image: `1/Z` alone knows of it, in the weights that are means."""
    method, padding = METHODS[name], (W, W, H, H)
    small = method.function(*features_and_gradients)
    large = method.function(*(torch.nn.functional.pad(x, padding) for x in features_and_gradients))
    expected = torch.nn.functional.pad(small / 9 if method.area_normalised else small, padding)
    torch.testing.assert_close(large, expected)


@every_method
def test_no_gradient_or_no_feature_gives_a_map_of_zeros(method, features_and_gradients):
    for silenced in (0, 1):
        inputs = [x.clone() for x in features_and_gradients]
        inputs[silenced].zero_()
        inputs = [x.requires_grad_() for x in inputs]
        result = method(*inputs)
        result.sum().backward()
        assert not result.any() and all(x.grad.isfinite().all() for x in inputs)


@every_method
def test_nan_is_handed_on(method, features_and_gradients):
    for spoiled in (0, 1):
        inputs = [x.clone() for x in features_and_gradients]
        inputs[spoiled][0, 1, 2, 3] = torch.nan
        result = method(*inputs)
        assert result[0, 2, 3].isnan() and result[1].isfinite().all()


@every_method
def test_a_grid_without_pixels(method):
    assert method(torch.ones(B, K, 0, 0), torch.ones(B, K, 0, 0)).shape == (B, 0, 0)


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
    assert ('total' in for_training) == trainable
    assert 'total' in for_evaluation and 'total' in for_figures and 'total' in for_segmentation
    model, images, classes = small_resnet
    config, layers = ICASCConfig(attention='total'), resolve_layers(model, input_size=(3, 64, 64))
    forward = partial(icasc_forward, model, images, torch.tensor(classes), layers, config)
    if trainable:
        assert ICASCTask(model, config=config, verbose=False).config == config
        forward()
    else:
        for train in (forward, partial(ICASCTask, model, config=config, verbose=False)):
            with pytest.raises(ValueError, match="attention must be one of .* in training, got 'total'"):
                train()
    assert forward(inference=True).maps['target_last'].shape == (2, 2, 2), 'measured it may be'
    maps = attention_maps(model, images, classes, method='total')
    torch.testing.assert_close(maps[:, 0], model.forward_features(images).sum(1).relu().detach())


def test_what_may_be_chosen(parsers):
    every, trained = list(METHODS), ['ach', 'grad_cam', 'ach_signed', 'hires_cam', 'layer_cam']
    assert parsers() == (trained, every, every, every)


class TestSignedFeatures:
    """Eq. 2 of `[ReLU(F), ReLU(-F)]`."""

    @pytest.mark.parametrize('zeros', [False, True])
    def test_is_eq_2_where_no_feature_is_negative(self, zeros, features_and_gradients):
        """To the last bit, and so are its derivatives, at a feature of 0 as well."""
        features, gradients = features_and_gradients
        features = features.relu() if zeros else features.abs()
        assert (features == 0).any() == zeros
        found, expected = [], []
        for method, results in ((channel_weighted_signed, found), (channel_weighted, expected)):
            inputs = [features.clone().requires_grad_(), gradients.clone().requires_grad_()]
            maps = method(*inputs)
            first = torch.autograd.grad((maps ** 2).sum(), inputs, create_graph=True)
            second = torch.autograd.grad(sum((x ** 2).sum() for x in first), inputs)
            results += [maps, *first, *second]
        assert torch.equal(found[0], expected[0]) and found[0].any()
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)

    @pytest.mark.parametrize('feature, gradient, silent', [
        ([-1., -2.], [1., 3.], True),  # a channel that only lacks what argues for the class
        ([1., 2.], [-1., -3.], True),
        ([-1., 0.], [1., 0.], True),
        ([-1., -2.], [-1., 0.], False),
        ([0., 1.], [1., 0.], False),  # of the same sign, not at the same pixel
        ([0., -1.], [2., -1.], False),  # gradients of both signs, any feature
        ([1., -1.], [0., 1e-6], False),  # features of both signs, any gradient
    ])
    def test_when_it_is_silent(self, feature, gradient, silent):
        """If no channel has a gradient and a feature of the same sign, and only then."""
        features, gradients = (torch.tensor(x).view(1, 1, 1, 2) for x in (feature, gradient))
        assert (channel_weighted_signed(features, gradients).amax() == 0) == silent
        assert (gradients.view(2, 1) * features.view(1, 2) <= 0).all() == silent

    def test_no_channel_silences_another(self, features_and_gradients):
        """Where Eq. 2 has no map because most features are negative."""
        features, gradients = features_and_gradients
        features = features - 1
        assert not channel_weighted(features, gradients).any()
        assert (channel_weighted_signed(features, gradients) > 0).all()


@pytest.mark.parametrize('feature', [
    [[1., -1.], [0.5, -0.5]], [[0.1, 0.2], [-0.3, 0.]], [[1e-40, 0.], [-2e-40, 1e-40]], [[1e-40, 1e-40], [0., 1e-42]],
], ids=['zero', 'rounding', 'tiny zero', 'tiny'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_xgrad_cam_of_a_channel_that_adds_up_to_nothing(feature, dtype):
    features = torch.tensor(feature, dtype=dtype).view(1, 1, 2, 2).requires_grad_()
    gradients = torch.tensor([[-1., 1.], [2., 3.]], dtype=dtype).view(1, 1, 2, 2).requires_grad_()
    result = xgrad_cam(features, gradients)
    result.sum().backward()
    assert result.isfinite().all() and features.grad.isfinite().all() and gradients.grad.isfinite().all()
    assert result.max() < 1e-38, 'a weight is at most as large as the gradients, or there is none'


class TestContrastedScore:
    """Finer-CAM's: a class minus those whose scores are nearest."""

    @pytest.mark.parametrize('num_classes', [2, 3, 4, 9])
    def test_equals_explicit_loops(self, num_classes):
        logits = torch.randn(5, num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for c in range(num_classes):
            cotangent = torch.zeros_like(logits)
            cotangent[:, c] = 1.
            found = contrasted_score(logits, cotangent)
            for b, scores in enumerate(logits.tolist()):
                others = sorted(set(range(num_classes)) - {c}, key=lambda d, s=scores: abs(s[d] - s[c]))[:3]
                expected = [float(d == c) - 0.6 / len(others) * (d in others) for d in range(num_classes)]
                assert found[b].tolist() == pytest.approx(expected)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        """Of scores as large as float16 holds."""
        logits = (6e4 * torch.eye(5)[:2] - torch.arange(5.)).to(dtype)
        cotangent = torch.eye(5)[:2].to(dtype)
        found, expected = (contrasted_score(logits.to(t), cotangent.to(t)).double() for t in (dtype, torch.float64))
        assert contrasted_score(logits, cotangent).dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

    def test_several_classes_count_as_one(self):
        logits = torch.tensor([[0., 4., 2.1, 9., 1.8, -5.], [3.] * 6, [0., 4., 2.1, 9., 1.8, -5.]])
        cotangent = torch.tensor([[1., 1., 0., 0., 0., 0.], [1.] * 6, [0.] * 6])
        found = contrasted_score(logits, cotangent)
        # Their mean is 2; nearest are 2.1, 1.8 and then, at a distance of 7 each, 9 and -5.
        assert found[0, :5:2].tolist() == pytest.approx([1, -0.4, -0.4]) and found[0].sum() == pytest.approx(0.8)
        assert not found[1:].any(), 'nothing to be compared with, nothing chosen'

    def test_classes_that_a_head_masks_are_no_comparison(self):
        logits = torch.tensor([[1., -torch.inf, 0., -torch.inf]])
        found = contrasted_score(logits, torch.tensor([[1., 0., 0., 0.]]))
        assert found[0].tolist() == pytest.approx([1., 0., -0.6, 0.])
        assert not contrasted_score(logits[:, :2], torch.tensor([[1., 0.]])).any()

    def test_a_single_class(self):
        with pytest.raises(ValueError, match='`finer_cam` holds a class against others'):
            contrasted_score(torch.ones(2, 1), torch.ones(2, 1))

    @pytest.mark.parametrize('layer', ['inner', 'last'])
    def test_maps_are_grad_cam_of_that_score(self, layer, small_resnet):
        """Also in a loss, with the score's own graph."""
        model, images, classes = small_resnet
        model, images = model.double(), images.double()
        resolved = getattr(resolve_layers(model, input_size=(3, 64, 64)), layer)
        with capture_features(model, [resolved]) as features:
            logits = model(images)
        feature = features[resolved.path]
        score = 0.
        for row, c in zip(logits, classes, strict=True):
            others = sorted(set(range(7)) - {c}, key=lambda d, r=row, c=c: abs(r[d] - r[c]).item())[:3]
            score = score + row[c] - 0.6 * sum(row[d] for d in others) / 3
        gradient, = torch.autograd.grad(score, feature, create_graph=True)
        expected = METHODS['grad_cam'].function(feature, gradient)
        drawn = torch.tensor(classes)[:, None]
        maps = attention_maps(model, images, drawn, method='finer_cam', layer=layer, create_graph=True)[:, 0]
        torch.testing.assert_close(maps, expected)
        parameters = list(model.get_submodule(resolved.path).parameters())
        torch.testing.assert_close(*(
            torch.autograd.grad(x.square().sum(), parameters, retain_graph=True) for x in (maps, expected)))
        plain = attention_maps(model, images, drawn, method='grad_cam', layer=layer)[:, 0]
        model.float()
        assert (maps - plain).abs().max() > 0.1 * plain.max(), 'it is no Grad-CAM'


def check_maps(model, images, method, grid):
    """Maps of the grid's shape, finite, and as alone as in a batch."""
    maps = attention_maps(model, images, classes=[0, 3], method=method)
    assert maps.shape == (2, 2, *grid) and maps.isfinite().all() and (maps >= 0).all()
    alone = attention_maps(model, images[1:], classes=3, method=method)[0, 0]
    torch.testing.assert_close(maps[1, 1], alone, rtol=1e-3, atol=1e-4 * maps.max().item())


@pytest.fixture(scope='module')
def exact_family(family):
    """In float64: HiResCAM before a LayerNorm is in float32 what rounding makes of the batch."""
    model, images, (*_, last_grid) = family
    return copy.deepcopy(model).double(), images.double(), last_grid


# The other methods in every family are slow tests.
@pytest.mark.parametrize('method', [
    pytest.param(method, marks=() if method in ('ach', 'grad_cam') else pytest.mark.slow) for method in METHODS])
def test_every_method_of_every_family(method, exact_family):
    model, images, grid = exact_family
    check_maps(model, images, method, grid)


@pytest.fixture(scope='module', params=['convnext_atto', 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
def layout(request):
    """NCHW, NHWC, NLC."""
    *_, grid = FAMILIES[request.param]
    return create(request.param).double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64), grid


@pytest.mark.parametrize('method', METHODS)
def test_every_method_in_every_layout(method, layout):
    model, images, grid = layout
    check_maps(model, images, method, grid)


def test_grad_cam_plus_plus_pole_is_finite():
    """`2 + G sum(F) = 0`: the pixel weight has a pole there."""
    features = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    gradients = torch.tensor([[-1., 1.], [2., 3.]], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    result = grad_cam_plus_plus(features, gradients)
    result.sum().backward()
    assert result.isfinite().all() and gradients.grad.isfinite().all()


@pytest.fixture(scope='module')
def small_resnet():
    return create('resnet18', num_classes=7).eval(), torch.randn(2, 3, 64, 64), [3, 5]


def test_hires_cam_has_no_map_before_a_layer_norm():
    """What is normalised pixel by pixel has no scale that a score could depend on; the other methods do not mind."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 4, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 1).double()
    score = head(torch.nn.functional.layer_norm(features, [16], eps=0).tanh().mean((1, 2))).sum()
    gradients, = torch.autograd.grad(score, features)
    maps = {
        name: method.function(*(x.detach().movedim(-1, 1) for x in (features, gradients))).amax().item()
        for name, method in METHODS.items()}
    assert maps.pop('hires_cam') < 1e-15 and min(maps.values()) > 1e-3


every_layer = pytest.mark.parametrize('layer, path', [('last', 'layer4'), ('inner', 'layer3')])


@pytest.mark.parametrize('method, reference', [
    ('grad_cam', 'GradCAM'), ('layer_cam', 'LayerCAM'), ('xgrad_cam', 'XGradCAM'),
    pytest.param('finer_cam', 'FinerCAM', marks=pytest.mark.skipif(
        not hasattr(torchcam, 'FinerCAM'), reason='torchcam has it since 0.5, for Python 3.11 and later'))])
@every_layer
def test_equals_torchcam(method, reference, layer, path, small_resnet):
    model, images, classes = small_resnet
    with getattr(torchcam, reference)(model, path) as extractor:
        expected, = extractor(classes, model(images), normalized=False)
    ours = attention_maps(model, images, torch.tensor(classes)[:, None], method=method, layer=layer)
    torch.testing.assert_close(ours[:, 0], expected, rtol=1e-4, atol=1e-7)
    assert expected.max() > 0


def raw_map(cam, model, images, targets, path):
    """What pytorch-grad-cam computes before it scales a map to the image, rectified."""
    target_layer = model.get_submodule(path)
    activations, gradients = (
        values[0].numpy() for values in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients))
    raw = cam.get_cam_image(images, target_layer, targets, activations, gradients, eigen_smooth=False)
    return torch.from_numpy(raw).clamp(min=0)


@pytest.mark.parametrize('method, reference, tolerance', [
    ('grad_cam', GradCAM, 1e-10), ('hires_cam', HiResCAM, 1e-10), ('layer_cam', LayerCAM, 1e-10),
    # These add to the denominators: 1e-6 beside 2 G^2 matters for the smallest gradients, 1e-7 for the smallest sums.
    ('grad_cam_plus_plus', GradCAMPlusPlus, 0.05), ('xgrad_cam', XGradCAM, 1e-6)])
@every_layer
def test_equals_pytorch_grad_cam(method, reference, tolerance, layer, path, small_resnet):
    model, images, classes = small_resnet
    # float64 keeps the comparison tight beside what is added to denominators.
    model, images = model.double(), images.double()
    targets = [ClassifierOutputTarget(c) for c in classes]
    with reference(model, [model.get_submodule(path)]) as cam:
        cam(images, targets)
        expected = raw_map(cam, model, images, targets, path)
    ours = attention_maps(model, images, torch.tensor(classes)[:, None], method=method, layer=layer)[:, 0]
    model.float()
    assert expected.max() > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.max().item())


@every_layer
def test_finer_cam_equals_pytorch_grad_cam(layer, path):
    """Where one class is compared: of several it weighs the mean by their probabilities, which ours does not."""
    model, images = create('resnet18', num_classes=2).double().eval(), torch.randn(2, 3, 64, 64).double()
    cam = FinerCAM(model, [model.get_submodule(path)])
    with cam.base_cam:
        # 0.6 is the strength of the authors' aggregate; its own default is 1.
        cam(images, targets=None, alpha=0.6, comparison_categories=[1])
        expected = raw_map(cam.base_cam, model, images, None, path)
    ours = attention_maps(model, images, topk=1, method='finer_cam', layer=layer)[:, 0]
    assert expected.max() > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7 * expected.max().item())
