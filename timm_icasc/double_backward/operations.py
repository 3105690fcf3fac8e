"""Convolutions, activations and attention.

Shapes: `B` batch, `h` heads, `N` query tokens, `M` key tokens, `D` channels of a head.
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .._precision import at_least_float32, full_precision
from .passes import is_features_only

__all__ = ['activation', 'attention', 'convolution']

aten = torch.ops.aten


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, options):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.bias_size = options, None if bias is None else [bias.shape[0]]
        return aten.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        if is_features_only():
            return _ConvolutionInput.apply(
                gradient, weight, x.detach(), ctx.options), None, None, None
        # With create_graph this is torch's own double backward.
        asked = list(ctx.needs_input_grad[:3])
        return *aten.convolution_backward(
            gradient, x, weight, ctx.bias_size, *ctx.options, asked), None


class _ConvolutionInput(torch.autograd.Function):
    """The gradient of a convolution with respect to its input, bilinear in the output's gradient and the weight."""

    @staticmethod
    def forward(ctx, gradient, weight, x, options):
        ctx.save_for_backward(gradient, weight)
        ctx.options = options
        return aten.convolution_backward(gradient, x, weight, None, *options, [True, False, False])[
            0]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gradient, weight = ctx.saved_tensors
        to_gradient = to_weight = None
        if ctx.needs_input_grad[0]:
            to_gradient = aten.convolution(cotangent, weight, None, *ctx.options)
        if ctx.needs_input_grad[1]:
            to_weight = aten.convolution_backward(
                gradient, cotangent, weight, None, *ctx.options, [False, True, False])[1]
        return to_gradient, to_weight, None, None


def convolution(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
) -> torch.Tensor:
    """`F.conv2d`, for padding in numbers."""
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    return _Convolution.apply(x, weight, bias, (*pairs, False, [0, 0], groups))


def _gelu_second(x: torch.Tensor) -> torch.Tensor:
    """`d2/dx2 x Phi(x) = phi(x) (2 - x^2)`, with the normal distribution's function `Phi` and density `phi`."""
    square = x * x
    density = (square * -0.5).exp_()
    return square.neg_().add_(2).mul_(density).mul_((2 * math.pi) ** -0.5)


def _silu_second(x: torch.Tensor) -> torch.Tensor:
    """`d2/dx2 x s(x) = s (1 - s) (2 + x (1 - 2 s))`, with the sigmoid `s`."""
    s = x.sigmoid()
    return (1 - 2 * s).mul_(x).add_(2).mul_(s).mul_(1 - s)


# Name -> the function, the gradient's kernel, the second derivative.
_ACTIVATIONS = {
    'gelu': (aten.gelu, aten.gelu_backward, _gelu_second),
    'silu': (aten.silu, aten.silu_backward, _silu_second),
}


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, name):
        ctx.save_for_backward(x)
        ctx.name = name
        return _ACTIVATIONS[name][0](x)

    @staticmethod
    def backward(ctx, gradient):
        return _ActivationGradient.apply(gradient, *ctx.saved_tensors, ctx.name), None


class _ActivationInPlace(torch.autograd.Function):
    """Of `x`, which it overwrites; gradients go by a copy that was made before, with the graph of `x` until then."""

    @staticmethod
    def forward(ctx, x, copy, name):
        ctx.save_for_backward(copy)
        ctx.name = name
        ctx.mark_dirty(x)
        return x.copy_(_ACTIVATIONS[name][0](copy))

    @staticmethod
    def backward(ctx, gradient):
        return None, _ActivationGradient.apply(gradient, *ctx.saved_tensors, ctx.name), None


class _ActivationGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient, x, name):
        ctx.save_for_backward(gradient, x)
        ctx.name = name
        return _ACTIVATIONS[name][1](gradient, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gradient, x = ctx.saved_tensors
        _, first, second = _ACTIVATIONS[ctx.name]
        to_x = second(x).mul_(gradient).mul_(cotangent) if ctx.needs_input_grad[1] else None
        return first(cotangent, x), to_x, None


def activation(x: torch.Tensor, name: str, inplace: bool = False) -> torch.Tensor:
    """`F.gelu` (exact) or `F.silu`, by name; `inplace` of what is no view."""
    return _ActivationInPlace.apply(x, x.clone(), name) if inplace else _Activation.apply(x, name)


class _Attention(torch.autograd.Function):
    """The fused kernel and its own backward pass, whose graph is kept inside."""

    @staticmethod
    def forward(ctx, query, key, value, scale):
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        with torch.enable_grad():
            output = F.scaled_dot_product_attention(*inputs, scale=scale)
        # Saved, not kept as an attribute: the graph inside goes when the backward pass lets go of this one.
        ctx.save_for_backward(query, key, value, output, *inputs)
        ctx.scale = scale
        return output.detach()

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, output, *inputs = ctx.saved_tensors
        return *_AttentionGradient.apply(
            gradient, query, key, value, ctx.scale, (output, inputs)), None


class _AttentionGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient, query, key, value, scale, fused):
        ctx.save_for_backward(gradient, query, key, value)
        ctx.scale = scale
        output, inputs = fused
        return torch.autograd.grad(output, inputs, gradient, retain_graph=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_query, to_key, to_value):
        gradient, query, key, value = ctx.saved_tensors
        # A backward pass called inside autocast must not lower the products once more.
        with full_precision(query.device):
            return *_attention_double_backward(
                gradient, query, key, value, to_query, to_key, to_value, ctx.scale), None, None


def _attention_double_backward(
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        to_query: torch.Tensor,
        to_key: torch.Tensor,
        to_value: torch.Tensor,
        scale: float | None,
) -> tuple[torch.Tensor, ...]:
    """What the gradients `dQ, dK, dV` of attention owe to `dO, Q, K, V`, given their cotangents `Q', K', V'`.

    With `P = softmax(s Q K^T)`, `O = P V`, `dP = dO V^T`, `U = dP - rowsum(P dP)`, `dS = P U`:
    `dQ = s dS K`, `dK = s dS^T Q`, `dV = P^T dO`. The attention matrices live in this call only.

    Returns:
        Gradients with respect to `dO` and `Q` `[B, h, N, D]`, `K` and `V` `[B, h, M, D]`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = query.dtype
    # Half precision holds the factors of the products; sums over a row of attention are taken in float32.
    probability = at_least_float32(query @ key.mT).mul_(scale).softmax(-1)
    centred = at_least_float32(gradient @ value.mT)
    centred -= (probability * centred).sum(-1, keepdim=True)
    tangent = at_least_float32(to_query @ key.mT)
    tangent += query @ to_key.mT
    tangent *= scale
    tangent -= (probability * tangent).sum(-1, keepdim=True)
    to_scores = tangent * centred
    to_scores += gradient @ to_value.mT
    to_scores -= (probability * to_scores).sum(-1, keepdim=True)
    to_scores = to_scores.mul_(probability).mul_(scale).to(dtype)
    to_products = tangent.mul_(probability).to(dtype)
    score_gradient = centred.mul_(probability).mul_(scale).to(dtype)
    probability = probability.to(dtype)
    return (
        to_products @ value + probability @ to_value,
        to_scores @ key + score_gradient @ to_key,
        to_scores.mT @ query + score_gradient.mT @ to_query,
        to_products.mT @ gradient,
    )


def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None = None,
) -> torch.Tensor:
    """`F.scaled_dot_product_attention` without mask or dropout; `[B, h, N, D]`, keys and values `[B, h, M, D]`."""
    return _Attention.apply(query, key, value, scale)
