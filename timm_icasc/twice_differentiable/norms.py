"""Batch normalisation.

With the mean `m` over the `N` values of a channel, `r = 1 / sqrt(var + eps)`, `x^ = r (x - m)`, and `M(.)` for means,
the gradient of the output `g` becomes that of the input,

    BatchNorm'(g) = weight r (g - M(g) - x^ M(g x^)).

It is symmetric as a map of `g`: the second derivative with respect to `g` is the same kernel again, applied to the
cotangent `v`, which also gives `M(v)` and `M(v x^)`. With `s = M(v (g - M(g)))`, `b = M(g x^)`, `p = M(v x^)`,

    d / d weight = N r (s - p b),
    d / d x = -weight r^2 [x^ (s - 3 p b) + b (v - M(v)) + p (g - M(g))].
"""
from typing import Optional

import torch
from torch.autograd.function import once_differentiable

from ..precision import at_least_float32
from .passes import is_features_only

__all__ = ['batch_norm']

aten = torch.ops.aten


def _batch_norm_backward(gradient, x, weight, mean, var, batch_mean, batch_scale, reserve, options, asked):
    """Gradients with respect to input, weight and bias, those asked for, by the kernel that belongs to the forward's.

    Args:
        mean: Running mean; in training mode None, as `var`.
        batch_mean: What the forward pass kept, as `batch_scale` (`r`) and `reserve`.
        options: Training mode, epsilon, and the number of the kernel.
    """
    training, eps, kernel = options
    return aten._batch_norm_impl_index_backward(
        kernel, x, gradient, weight, mean, var, batch_mean, batch_scale, training, eps, asked, reserve)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        # What torch.batch_norm calls: it chooses between torch's own kernel, cuDNN's and MIOpen's.
        output, *kept, kernel = aten._batch_norm_impl_index(
            x, weight, bias, running_mean, running_var, training, momentum, eps, torch.backends.cudnn.enabled)
        running = (None, None) if training else (running_mean, running_var)
        ctx.save_for_backward(x, weight, *running, *kept)
        ctx.options = training, eps, kernel
        return output

    @staticmethod
    def backward(ctx, gradient):
        if is_features_only():
            to_x = _BatchNormInput.apply(gradient, *ctx.saved_tensors, ctx.options) if ctx.needs_input_grad[0] else None
            return to_x, *[None] * 7
        # With create_graph this is torch's own double backward.
        asked = list(ctx.needs_input_grad[:3])
        return *_batch_norm_backward(gradient, *ctx.saved_tensors, ctx.options, asked), *[None] * 5


class _BatchNormInput(torch.autograd.Function):
    """The gradient of batch normalisation with respect to its input."""

    @staticmethod
    def forward(ctx, gradient, x, weight, mean, var, batch_mean, batch_scale, reserve, options):
        training = options[0]
        to_x, *sums = _batch_norm_backward(
            gradient, x, weight, mean, var, batch_mean, batch_scale, reserve, options, [True, training, training])
        ctx.save_for_backward(gradient, x, weight, mean, var, batch_mean, batch_scale, reserve, *sums)
        ctx.options = options
        return to_x

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gradient, x, weight, mean, var, batch_mean, batch_scale, reserve, sum_gx, sum_g = ctx.saved_tensors
        training = ctx.options[0]
        to_x = to_weight = None
        to_gradient, sum_vx, sum_v = _batch_norm_backward(
            cotangent, x, weight, mean, var, batch_mean, batch_scale, reserve, ctx.options, [True, training, training])
        if training:
            if any(ctx.needs_input_grad[1:3]):
                to_x, to_weight = _batch_norm_second(
                    gradient, cotangent, x, weight, batch_mean, batch_scale, sum_gx, sum_g, sum_vx, sum_v)
        elif ctx.needs_input_grad[2]:
            to_weight = aten.native_batch_norm_backward(
                cotangent, gradient, None, torch.zeros_like(mean), var, None, None, False, ctx.options[1],
                [False, True, False])[1]
        return to_gradient, to_x, to_weight, *[None] * 6


def _batch_norm_second(g, v, x, weight, mean, r, sum_gx, sum_g, sum_vx, sum_v):
    """Gradients with respect to input and weight, of the input's gradient in training mode, given its cotangent `v`.

    The sums are those over the values of a channel: `N M(g x^)`, `N M(g)`, `N M(v x^)`, `N M(v)`.
    """
    count = x.numel() // x.shape[1]
    # N r s, the sum of r v (g - M(g)): the weight's gradient, if g were the input.
    sum_vg = aten.native_batch_norm_backward(
        v, g, None, None, None, sum_g / count, r, True, 0., [False, True, False])[1]
    mean, r, sum_gx, sum_g, sum_vx, sum_v, sum_vg = (
        at_least_float32(t) for t in (mean, r, sum_gx, sum_g, sum_vx, sum_v, sum_vg))
    product = sum_vx * r
    to_weight = None if weight is None else torch.addcmul(sum_vg, product, sum_gx, value=-1 / count).to(weight.dtype)
    scale = (r.square() if weight is None else r.square() * weight).mul_(-1 / count)
    of_x = sum_vg.addcmul_(product, sum_gx, value=-3 / count).mul_(scale)
    of_v, of_g = scale * sum_gx, scale * sum_vx
    rest = (of_x * mean).addcmul_(of_v, sum_v, value=1 / count).addcmul_(of_g, sum_g, value=1 / count)
    of_x, of_v, of_g, rest = (t.view(-1, *[1] * (x.ndim - 2)) for t in (of_x, of_v, of_g, rest))
    return (x * of_x).addcmul_(v, of_v).addcmul_(g, of_g).sub_(rest).to(x.dtype), to_weight


def batch_norm(
        x: torch.Tensor,
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        weight: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
) -> torch.Tensor:
    """`F.batch_norm`, for more than one value per channel."""
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, training, momentum, eps)
