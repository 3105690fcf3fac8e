"""Second derivatives against finite differences, loops, and torch's own."""
import math

import pytest
import torch
import torch.nn.functional as F

from timm_icasc.twice_differentiable import activation, attention, convolution, features_only


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
    for ours, expected in zip(second(lowered), second([x.detach().double().requires_grad_() for x in lowered]),
                              strict=True):
        assert (ours.double() - expected).norm() < 0.03 * expected.norm()


def test_features_only_leaves_out_the_weights_alone():
    """The features' gradient, and its own gradient to the weights, are the same."""
    x, weight = leaf(2, 4, 5, 5), leaf(4, 1, 3, 3)

    def derivatives(function):
        score = function(x, weight, None, 1, 1, 1, 4).pow(3).sum()
        with features_only():
            first, = torch.autograd.grad(score, x, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), (x, weight))

    for ours, expected in zip(derivatives(convolution), derivatives(F.conv2d), strict=True):
        torch.testing.assert_close(ours, expected)
    ordinary, = torch.autograd.grad(convolution(x, weight, None, 1, 1, 1, 4).sum(), weight)
    assert ordinary.any()


def test_the_graph_inside_attention_goes_with_the_backward_pass():
    inputs = [leaf(1, 1, 4, 2) for _ in range(3)]
    output = attention(*inputs)
    output.sum().backward()
    with pytest.raises(RuntimeError, match='after they have already been freed'):
        output.sum().backward()
