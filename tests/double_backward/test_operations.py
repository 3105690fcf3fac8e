"""Second derivatives against finite differences, loops, and torch's own."""
import copy
import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from timm_icasc.double_backward import (
    activation,
    attention,
    batch_norm,
    convolution,
    features_only,
    layer_norm,
)
from timm_icasc.double_backward.mode import TwiceDifferentiable


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_convolution(groups):
    inputs = leaf(2, 4, 5, 6), leaf(4, 4 // groups, 3, 3), leaf(4)

    def function(x, weight, bias):
        return convolution(x, weight, bias, stride=2, padding=(1, 0), dilation=1, groups=groups)
    assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('name', ['gelu', 'silu'])
def test_activation(name):
    inputs = (leaf(3, 7),)
    assert torch.autograd.gradcheck(lambda x: activation(x, name), inputs)
    assert torch.autograd.gradgradcheck(lambda x: activation(x, name), inputs)


def second_derivative(name, x):
    if name == 'silu':
        s = 1 / (1 + math.exp(-x))
        return 2 * s * (1 - s) + x * s * (1 - s) * (1 - 2 * s)
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return 2 * density - x * x * density


@pytest.mark.parametrize('name', ['gelu', 'silu'])
def test_second_derivative_of_an_activation_one_number_at_a_time(name):
    x = torch.tensor([-30., -2., -0.1, 0., 0.7, 5., 30.], dtype=torch.float64, requires_grad=True)
    first, = torch.autograd.grad(activation(x, name).sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.sum(), x)
    expected = torch.tensor([second_derivative(name, value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize('num_keys', [5, 7])
def test_attention(num_keys):
    inputs = leaf(2, 2, 5, 3), leaf(2, 2, num_keys, 3), leaf(2, 2, num_keys, 3)
    assert torch.autograd.gradcheck(attention, inputs) and torch.autograd.gradgradcheck(attention, inputs)
    torch.testing.assert_close(attention(*inputs, 0.3), F.scaled_dot_product_attention(*inputs, scale=0.3))


def test_attention_in_half_precision():
    """Products in bfloat16, sums in float32: the second derivative stays within the rounding of the inputs."""
    exact = [leaf(1, 2, 6, 8) for _ in range(3)]

    def second(inputs):
        first = torch.autograd.grad(attention(*inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    lowered = [x.detach().bfloat16().requires_grad_() for x in exact]
    for ours, expected in zip(
            second(lowered), second([x.detach().double().requires_grad_() for x in lowered]),
            strict=True):
        assert (ours.double() - expected).norm() < 0.03 * expected.norm()


def test_attention_is_not_lowered_by_a_backward_pass_inside_autocast():
    inputs = [leaf(1, 2, 6, 8).detach().float().requires_grad_() for _ in range(3)]
    first = torch.autograd.grad(attention(*inputs).square().sum(), inputs, create_graph=True)
    total = sum(g.square().sum() for g in first)
    expected = torch.autograd.grad(total, inputs, retain_graph=True)
    with torch.autocast('cpu', torch.bfloat16):
        ours = torch.autograd.grad(total, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_features_only_leaves_out_the_weights_alone():
    """The features' gradient, and its own gradient to the weights, are the same."""
    x, weight = leaf(2, 4, 5, 5), leaf(4, 1, 3, 3)

    def derivatives(function):
        score = function(x, weight, None, 1, 1, 1, 4).pow(3).sum()
        with features_only(score):
            first, = torch.autograd.grad(score, x, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), (x, weight))

    for ours, expected in zip(derivatives(convolution), derivatives(F.conv2d), strict=True):
        torch.testing.assert_close(ours, expected)
    ordinary, = torch.autograd.grad(convolution(x, weight, None, 1, 1, 1, 4).sum(), weight)
    assert ordinary.any()


def test_a_pass_of_another_model_meanwhile_has_all_its_gradients():
    """A thread may train one while another thread takes maps of a copy; nothing is left behind."""
    inputs, others = (leaf(2, 4, 5, 5), leaf(4, 1, 3, 3)), (leaf(2, 4, 5, 5), leaf(4, 1, 3, 3))
    score, other = (convolution(*pair, None, 1, 1, 1, 4).pow(3).sum() for pair in (inputs, others))
    with features_only(score):
        found = torch.autograd.grad(other, others, retain_graph=True)
        assert torch.autograd.grad(score, inputs, retain_graph=True, allow_unused=True)[1] is None
    for ours, after in zip(found, torch.autograd.grad(other, others), strict=True):
        assert torch.equal(ours, after)
    assert torch.autograd.grad(score, inputs)[1].any()


def test_the_graph_inside_attention_goes_with_the_backward_pass():
    inputs = [leaf(1, 1, 4, 2) for _ in range(3)]
    output = attention(*inputs)
    output.sum().backward()
    with pytest.raises(RuntimeError, match='after they have already been freed'):
        output.sum().backward()


def input_gradient(function, number, *inputs):
    """The gradient with respect to the first input, with its graph, as the objective takes it."""
    score = (function(*inputs).square() * number).sum()
    with features_only(score):
        return torch.autograd.grad(score, inputs[0], create_graph=True)[0]


def given(function, x, affine, *options):
    """The inputs, and a function of them alone: of the input, or of weight and bias too."""
    parameters = (leaf(*affine), leaf(*affine)) if affine else (None, None)
    return (x, *parameters) if affine else (x,), lambda x, weight=None, bias=None: function(x, weight, bias, *options)


def assert_derivatives(ours, torchs, inputs):
    """Value, first and second derivatives against finite differences and against torch's own."""
    number = torch.randn_like(inputs[0])
    assert torch.autograd.gradcheck(ours, inputs) and torch.autograd.gradgradcheck(ours, inputs)
    assert torch.autograd.gradcheck(lambda *inputs: input_gradient(ours, number, *inputs), inputs)
    torch.testing.assert_close(ours(*inputs), torchs(*inputs), rtol=0, atol=0)
    first, expected = (input_gradient(function, number, *inputs) for function in (ours, torchs))
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    for one, other in zip(*(torch.autograd.grad((g ** 3).sum(), inputs) for g in (first, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('statistics', ['of the batch', 'of the batch, kept', 'running'])
@pytest.mark.parametrize('shape', [(5, 3), (3, 2, 4), (2, 3, 2, 2)], ids=str)
def test_batch_norm(shape, statistics, affine):
    channels, training = shape[1], statistics != 'running'
    running = (torch.randn(channels).double(), torch.rand(channels).double() + 0.5)

    def norm(function):
        def call(x, weight, bias):
            mean, var = (None, None) if statistics == 'of the batch' else (t.clone() for t in running)
            return function(x, mean, var, weight, bias, training, 0.1, 0.05)  # an epsilon that counts
        return call
    inputs, ours = given(norm(batch_norm), leaf(*shape), (channels,) if affine else None)
    _, torchs = given(norm(F.batch_norm), leaf(*shape), None)
    assert_derivatives(ours, torchs, inputs)


@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('shape', [(3,), (2, 3)], ids=str)
def test_layer_norm(shape, affine):
    def norm(function):
        return lambda x, weight, bias: function(x, shape, weight, bias, 0.05)
    inputs, ours = given(norm(layer_norm), leaf(4, 2, 3), shape if affine else None)
    _, torchs = given(norm(F.layer_norm), leaf(4, 2, 3), None)
    assert_derivatives(ours, torchs, inputs)


def second_derivatives_in_loops(x, g, weight, v, eps):
    """What `sum(v dx)`, with the gradient `dx` of normalised values, owes to `x`, `g` and `weight`; lists of numbers.

    From `dx_i = r (h_i - mean(h) - y_i mean(h y))`, `y_i = r (x_i - mean(x))`, `h = weight g`, term by term.
    """
    n = len(x)
    numbers = range(n)
    mean = sum(x) / n
    r = (sum((a - mean) ** 2 for a in x) / n + eps) ** -0.5
    y = [r * (a - mean) for a in x]
    h = [w * a for w, a in zip(weight, g, strict=True)]
    mean_h, mean_hy = sum(h) / n, sum(a * b for a, b in zip(h, y, strict=True)) / n
    to_x = []
    for j in numbers:
        dr = -r * r * y[j] / n  # of 1 / sqrt(var + eps)
        dy = [dr * y[i] / r + r * ((i == j) - 1 / n) for i in numbers]
        d_mean_hy = sum(h[i] * dy[i] for i in numbers) / n
        to_x.append(sum(
            v[i] * (dr * (h[i] - mean_h - y[i] * mean_hy) - r * (dy[i] * mean_hy + y[i] * d_mean_hy))
            for i in numbers))
    to_h = [sum(v[i] * r * ((i == j) - 1 / n - y[i] * y[j] / n) for i in numbers) for j in numbers]
    return to_x, [w * a for w, a in zip(weight, to_h, strict=True)], [a * b for a, b in zip(g, to_h, strict=True)]


@pytest.mark.parametrize('norm', ['batch', 'layer'])
def test_second_derivative_of_a_norm_one_number_at_a_time(norm):
    x, g, v = leaf(6, 3), leaf(6, 3), torch.randn(6, 3, dtype=torch.float64)
    rows = norm == 'layer'
    weight = leaf(3)
    output = layer_norm(x, (3,), weight, None, 0.05) if rows else batch_norm(
        x, None, None, weight, None, True, 0.1, 0.05)
    with features_only(output):
        first, = torch.autograd.grad(output, x, g, create_graph=True)
    found = torch.autograd.grad(first, (x, g, weight), v)
    every_weight = weight.expand_as(x)
    # One list of numbers for each group that is normalised together.
    groups = [(t if rows else t.T).tolist() for t in (x, g, every_weight, v)]
    expected = [torch.tensor(t, dtype=torch.float64) for t in zip(
        *(second_derivatives_in_loops(*group, 0.05) for group in zip(*groups, strict=True)), strict=True)]
    to_x, to_g, to_weight = expected if rows else [t.T for t in expected]
    for ours, loops in zip(found, (to_x, to_g, to_weight.sum(0)), strict=True):
        torch.testing.assert_close(ours, loops, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('make, layout', [
    (lambda: torch.nn.BatchNorm2d(4), torch.contiguous_format),
    (lambda: torch.nn.BatchNorm2d(4), torch.channels_last),
    (lambda: torch.nn.BatchNorm2d(4, affine=False), torch.contiguous_format),
    (lambda: torch.nn.BatchNorm2d(4).eval(), torch.channels_last),
    (lambda: torch.nn.LayerNorm(5), torch.contiguous_format),
    (lambda: torch.nn.LayerNorm((6, 5)), torch.channels_last),
], ids=['BatchNorm', 'channels last', 'without weights', 'evaluation', 'LayerNorm', 'LayerNorm over an area'])
@pytest.mark.parametrize('dtype, of_parameters', [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_norms_keep_precision_and_layout(make, layout, dtype, of_parameters):
    """Types and strides are torch's; values are within the rounding of those that float64 gives."""
    x = (3 + 2 * torch.randn(8, 4, 6, 5)).to(dtype).contiguous(memory_format=layout)
    number, module = torch.randn(8, 4, 6, 5), make().to(of_parameters)

    def derivatives(replace, x, module):
        with TwiceDifferentiable(checkpointing=False) if replace else nullcontext():
            x = x.detach().requires_grad_()
            output = module(x)
        score = (output * number.to(x.dtype)).sum()
        with features_only(score):
            first, = torch.autograd.grad(score, x, create_graph=True)
        second = torch.autograd.grad(
            (first * number.to(x.dtype) * 8).square().sum(), (x, *[p for n, p in module.named_parameters()
                                                                  if n == 'weight']), allow_unused=True)
        return [t for t in (output, first, *second) if t is not None]

    exact = derivatives(False, x.double(), copy.deepcopy(module).double())
    torchs = derivatives(False, x, copy.deepcopy(module))
    for ours, other, expected in zip(derivatives(True, x, copy.deepcopy(module)), torchs, exact, strict=True):
        assert (ours.dtype, ours.stride()) == (other.dtype, other.stride())
        assert (ours.double() - expected).norm() <= (1e-5 if dtype == torch.float32 else 0.05) * expected.norm()


@pytest.mark.parametrize('kwargs', [
    {}, {'momentum': 0.}, {'momentum': None}, {'affine': False}, {'track_running_stats': False}], ids=str)
def test_batch_norm_keeps_running_statistics_as_torch_does(kwargs):
    states = []
    for mode in (nullcontext(), TwiceDifferentiable(checkpointing=False)):
        generator, module = torch.Generator().manual_seed(1), torch.nn.BatchNorm2d(3, **kwargs)
        with mode:
            outputs = [module(torch.randn(4, 3, 5, 5, generator=generator)) for _ in range(3)]
            outputs.append(module.eval()(torch.randn(4, 3, 5, 5, generator=generator)))
        states.append([*outputs, *module.state_dict().values()])
    for ours, torchs in zip(*states, strict=True):
        assert torch.equal(ours, torchs)
