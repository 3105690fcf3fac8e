"""The function mode in which a model's tail is twice differentiable: which operation stands in for which."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .._precision import at_least_float32, is_autocasting
from ..errors import ICASCError
from . import norms, operations

__all__ = ['EQUIVALENTS', 'ONCE_DIFFERENTIABLE', 'TwiceDifferentiable']


def _lowered(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Tensors in the precision in which autocast runs convolutions and attention."""
    device = next(x for x in tensors if x is not None).device.type
    if not is_autocasting(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x is not None and x.dtype == torch.float32 else x for x in tensors]


def _made(*parameters: torch.Tensor | None) -> bool:
    """Whether any is made in the forward pass: it may be made from features, and pass their gradient on."""
    return any(p is not None and not p.is_leaf for p in parameters)


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str) or input.ndim != 4 or _made(weight, bias):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return operations.convolution(*_lowered(input, weight, bias), stride, padding, dilation, groups)


def _by_math_kernel(function: Callable) -> Callable:
    """The function with the kernel of scaled dot-product attention that torch can differentiate twice."""
    def call(*args, **kwargs):
        with sdpa_kernel(SDPBackend.MATH):
            return function(*args, **kwargs)
    return call


def _attention(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
):
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return _by_math_kernel(F.scaled_dot_product_attention)(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return operations.attention(*_lowered(query, key, value), scale)


def _gelu(input, *, approximate='none'):
    return operations.activation(input, 'gelu') if approximate == 'none' else F.gelu(
        input, approximate=approximate)


def _silu(input, inplace=False):
    if inplace and input._is_view():
        return F.silu(input, inplace=True)
    return operations.activation(input, 'silu', inplace)


def _hardsigmoid(input, inplace=False):
    output = F.relu6(input + 3) / 6
    return input.copy_(output) if inplace else output


def _batch_norm(
        input,
        running_mean,
        running_var,
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
):
    # Of one value a channel torch says what is wrong.
    if _made(weight, bias) or (training and input.numel() == input.shape[1]):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return norms.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    if _made(weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    device = input.device.type
    if device != 'cpu' and is_autocasting(device):
        # So does autocast, but on the CPU.
        input, weight, bias = (
            None if t is None else at_least_float32(t) for t in (input, weight, bias))
    return norms.layer_norm(input, normalized_shape, weight, bias, eps)


# Without a second derivative, or with a dear one -> what stands in for it.
EQUIVALENTS = {
    F.conv2d: _convolution,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.scaled_dot_product_attention: _attention,
    # torch.nn.MultiheadAttention's; it calls the one above where no function mode sees it.
    F.multi_head_attention_forward: _by_math_kernel(F.multi_head_attention_forward),
    F.hardsigmoid: _hardsigmoid,
}

ONCE_DIFFERENTIABLE = (
    F.scaled_dot_product_attention, F.multi_head_attention_forward, F.hardsigmoid)


class TwiceDifferentiable(TorchFunctionMode):
    """Run the operations of the tail by equivalents of equal value that have a second derivative, or a cheaper one."""

    def __init__(self, checkpointing: bool):
        super().__init__()
        self.checkpointing = checkpointing

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if not self.checkpointing:
            func = EQUIVALENTS.get(func, func)
        elif func in ONCE_DIFFERENTIABLE:
            raise ICASCError(
                f'order=2 does not work with gradient checkpointing on a model that calls {func.__name__} behind the '
                f'inner layer: the recomputation would run another kernel. Use `order=1`, or turn checkpointing off.')
        return func(*args, **(kwargs or {}))
