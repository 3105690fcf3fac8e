"""Batch and layer normalisation.

With means `M(.)` over the values that are normalised together, `r = (M((x - M(x))^2) + eps)^-1/2`, `x^ = r (x - M(x))`,
and the gradient `h` of `x^`, that of `x` is

    J h = r (h - M(h) - x^ M(h x^)).

`J` is symmetric: the second derivative with respect to `h` is the same kernel again, applied to the cotangent `v`. With
`b = M(h x^)`, `p = M(v x^)`, `s = M(v h) - M(v) M(h)` that with respect to `x` is

    -r^2 [x^ (s - 3 p b) + b (v - M(v)) + p (h - M(h))] = -r [x^ M(h J v) + b J v + p J h].

The gradient `g` of the output makes `h = weight g`. (Epsilon is in `r` alone.)
"""
from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable

from .._precision import at_least_float32, full_precision
from .passes import is_features_only

__all__ = ['batch_norm', 'layer_norm']

aten = torch.ops.aten


def _batch_norm_backward(gradient, x, weight, mean, var, batch_mean, r, reserve, options, asked):
    """Gradients with respect to input, weight and bias, those asked for, by the kernel that belongs to the forward's.

    Args:
        mean: Running mean; in training mode None, as `var`.
        batch_mean: What the forward pass kept, as `r` and `reserve`.
        options: Training mode, epsilon, and the number of the kernel.
    """
    training, eps, kernel = options
    return aten._batch_norm_impl_index_backward(
        kernel, x, gradient, weight, mean, var, batch_mean, r, training, eps, asked, reserve)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        # What torch.batch_norm calls: it chooses between torch's own kernel, cuDNN's and MIOpen's.
        output, *kept, kernel = aten._batch_norm_impl_index(
            x, weight, bias, running_mean, running_var, training, momentum, eps,
            torch.backends.cudnn.enabled)
        running = (None, None) if training else (running_mean, running_var)
        ctx.save_for_backward(x, weight, *running, *kept)
        ctx.options = training, eps, kernel
        return output

    @staticmethod
    def backward(ctx, gradient):
        if is_features_only():
            to_x = _BatchNormInput.apply(
                gradient, *ctx.saved_tensors, ctx.options) if ctx.needs_input_grad[0] else None
            return to_x, *[None] * 7
        # With create_graph this is torch's own double backward.
        asked = list(ctx.needs_input_grad[:3])
        return *_batch_norm_backward(gradient, *ctx.saved_tensors, ctx.options, asked), *[None] * 5


def _batch_norm_input(gradient, x, weight, mean, var, batch_mean, r, reserve, options):
    """The gradient with respect to the input; in training mode also the sums `N M(g x^)` and `N M(g)`."""
    training = options[0]
    if training and weight is None:
        weight = torch.ones_like(r)  # kernels for GPUs take the type of the sums from it
    return _batch_norm_backward(
        gradient, x, weight, mean, var, batch_mean, r, reserve, options, [True, training, training])


def _sum_of_products(v, g, mean, r):
    """Sum of `r v (g - mean)` over the values of a channel: the weight's gradient, if `g` were the input."""
    return aten.native_batch_norm_backward(
        v, g, r, None, None, mean, r, True, 0., [False, True, False])[1]


class _BatchNormInput(torch.autograd.Function):
    """The gradient of batch normalisation with respect to its input."""

    @staticmethod
    def forward(ctx, gradient, x, weight, mean, var, batch_mean, r, reserve, options):
        to_x, *sums = _batch_norm_input(
            gradient, x, weight, mean, var, batch_mean, r, reserve, options)
        ctx.save_for_backward(gradient, x, weight, mean, var, batch_mean, r, reserve, *sums)
        ctx.options = options
        return to_x

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gradient, x, weight, mean, var, batch_mean, r, reserve, *sums = ctx.saved_tensors
        to_gradient, *sums_of_v = _batch_norm_input(
            cotangent, x, weight, mean, var, batch_mean, r, reserve, ctx.options)
        to_x = to_weight = None
        training, eps, _ = ctx.options
        if training:
            if any(ctx.needs_input_grad[1:3]):
                to_x, to_weight = _batch_norm_second(
                    gradient, cotangent, x, weight, batch_mean, r, *sums, *sums_of_v)
        elif ctx.needs_input_grad[2]:
            to_weight = _sum_of_products(
                cotangent, gradient, torch.zeros_like(mean), (var + eps).rsqrt_())
        return to_gradient, to_x, to_weight, *[None] * 6


def _batch_norm_second(g, v, x, weight, mean, r, sum_gx, sum_g, sum_vx, sum_v):
    """Gradients of the input's gradient with respect to input and weight, given its cotangent `v`; training mode."""
    count = x.numel() // x.shape[1]
    sum_vg = _sum_of_products(v, g, sum_g / count, r)
    mean, r, sum_gx, sum_g, sum_vx, sum_v, sum_vg = (
        at_least_float32(t) for t in (mean, r, sum_gx, sum_g, sum_vx, sum_v, sum_vg))
    product = sum_vx * r
    to_weight = None if weight is None else torch.addcmul(
        sum_vg, product, sum_gx, value=-1 / count).to(weight.dtype)
    scale = (r.square() if weight is None else r.square() * weight).mul_(-1 / count)
    of_x = sum_vg.addcmul_(product, sum_gx, value=-3 / count).mul_(scale)
    of_v, of_g = scale * sum_gx, scale * sum_vx
    rest = (of_x * mean).addcmul_(of_v, sum_v, value=1 / count).addcmul_(
        of_g, sum_g, value=1 / count)
    of_x, of_v, of_g, rest = (t.view(-1, *[1] * (x.ndim - 2)) for t in (of_x, of_v, of_g, rest))
    return (x * of_x).addcmul_(v, of_v).addcmul_(g, of_g).sub_(rest).to(x.dtype), to_weight


def batch_norm(
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
) -> torch.Tensor:
    """`F.batch_norm`, for more than one value per channel."""
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, training, momentum, eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, shape, eps):
        output, mean, r = aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.shape = shape
        return output

    @staticmethod
    def backward(ctx, gradient):
        x, weight, bias, mean, r = ctx.saved_tensors
        if is_features_only():
            return _LayerNormInput.apply(gradient, x, weight, mean, r, ctx.shape), *[None] * 4
        # With create_graph this is torch's own double backward.
        asked = list(ctx.needs_input_grad[:3])
        return *aten.native_layer_norm_backward(
            gradient, x, ctx.shape, mean, r, weight, bias, asked), None, None


class _LayerNormInput(torch.autograd.Function):
    """The gradient of layer normalisation with respect to its input."""

    @staticmethod
    def forward(ctx, gradient, x, weight, mean, r, shape):
        ctx.save_for_backward(gradient, x, weight, mean, r)
        ctx.shape = shape
        return aten.native_layer_norm_backward(
            gradient, x, shape, mean, r, weight, None, [True, False, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        gradient, x, weight, mean, r = ctx.saved_tensors
        inputs = [
            None if t is None else at_least_float32(t).contiguous()
            for t in (gradient, cotangent, x, weight, mean, r)]
        with full_precision(x.device):  # autocast would take dot products in half precision
            results = _layer_norm_second(*inputs, ctx.shape)
        return *[
            None if result is None else result.to(t.dtype)
            for result, t in zip(results, (gradient, x, weight), strict=True)], None, None, None


def _layer_norm_second(g, v, x, weight, mean, r, shape):
    """Gradients of the input's gradient with respect to `g`, input and weight, given its cotangent `v`."""
    def backward(gradient, x, mean, r, weight, which):
        asked = [which == 'input', which == 'weight', False]
        return aten.native_layer_norm_backward(gradient, x, shape, mean, r, weight, None, asked)[
            asked.index(True)]

    jv, jh = backward(v, x, mean, r, None, 'input'), backward(g, x, mean, r, weight, 'input')
    to_g, h, to_weight = jv, g, None
    if weight is not None:
        to_g, h = jv * weight, g * weight
        # The sum of g J v over the rows: the weight's gradient, if J v were the normalised input.
        to_weight = backward(g, jv, torch.zeros_like(mean), torch.ones_like(r), weight, 'weight')
    normalised = (x - mean).mul_(r)
    scale = r / -(jv.numel() // r.numel())

    def scaled_mean(x, y):
        return torch.linalg.vecdot(x.flatten(-len(shape)), y.flatten(-len(shape))).view_as(r).mul_(
            scale)
    of_jv, of_jh = scaled_mean(h, normalised), scaled_mean(v, normalised)
    of_normalised = scaled_mean(h, jv)
    to_x = normalised.mul_(of_normalised).addcmul_(jv, of_jv).addcmul_(jh, of_jh)
    return to_g, to_x, to_weight


def layer_norm(
        x: torch.Tensor,
        shape: Sequence[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
) -> torch.Tensor:
    """`F.layer_norm`."""
    return _LayerNorm.apply(x, weight, bias, shape, eps)
