"""Tap features during one forward pass, on the path to the logits, and keep the tail twice differentiable.

Nothing outlives the context: no hook, no changed module, no global setting.
"""
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from . import twice_differentiable
from .errors import ICASCError
from .features import FeatureLayer
from .modules import is_checkpointing, unwrap_model
from .precision import at_least_float32

__all__ = ['capture_features', 'hold_batch_norm_statistics']


@contextmanager
def hold_batch_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are.

    With gradient checkpointing, taking the gradient of a score runs layers again, and each run would count the batch
    once more. (The recomputation in the user's own backward pass does, with ICASC or without.)
    """
    norms = [m for m in unwrap_model(model).modules()
             if isinstance(m, nn.modules.batchnorm._NormBase) and m.training and m.track_running_stats]
    before = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
    try:
        for m in norms:
            m.momentum = 0.
        yield
    finally:
        for m, momentum, count in before:
            m.momentum = momentum
            m.num_batches_tracked.copy_(count)


def _lowered(*tensors: Optional[torch.Tensor]) -> List[Optional[torch.Tensor]]:
    """Tensors in the precision in which autocast runs convolutions and attention."""
    device = next(x for x in tensors if x is not None).device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x is not None and x.dtype == torch.float32 else x for x in tensors]


def _made(*parameters: Optional[torch.Tensor]) -> bool:
    """Whether any is made in the forward pass: it may be made from features, and pass their gradient on."""
    return any(p is not None and not p.is_leaf for p in parameters)


def _convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str) or x.ndim != 4 or _made(weight, bias):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    x, weight, bias = _lowered(x, weight, bias)
    return twice_differentiable.convolution(x, weight, bias, stride, padding, dilation, groups)


def _by_math_kernel(function: Callable) -> Callable:
    """The function with the kernel of scaled dot-product attention that torch can differentiate twice."""
    def call(*args, **kwargs):
        with sdpa_kernel(SDPBackend.MATH):
            return function(*args, **kwargs)
    return call


def _attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, *, scale=None, enable_gqa=False):
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        return _by_math_kernel(F.scaled_dot_product_attention)(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return twice_differentiable.attention(*_lowered(query, key, value), scale)


def _gelu(input, *, approximate='none'):
    return twice_differentiable.activation(input, 'gelu') if approximate == 'none' else F.gelu(
        input, approximate=approximate)


def _silu(input, inplace=False):
    return twice_differentiable.activation(input, 'silu')


def _hardsigmoid(input, inplace=False):
    return F.relu6(input + 3) / 6


def _batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    # Of one value a channel torch says what is wrong.
    if _made(weight, bias) or (training and x.numel() == x.shape[1]):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return twice_differentiable.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def _layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    if _made(weight, bias):
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    device = x.device.type
    if device != 'cpu' and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # So does autocast, but on the CPU.
        x, weight, bias = (None if t is None else at_least_float32(t) for t in (x, weight, bias))
    return twice_differentiable.layer_norm(x, normalized_shape, weight, bias, eps)


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
ONCE_DIFFERENTIABLE = (F.scaled_dot_product_attention, F.multi_head_attention_forward, F.hardsigmoid)


class _TwiceDifferentiable(TorchFunctionMode):
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
                f'inner layer: the recomputation would run another kernel. Use order=1, or turn checkpointing off.')
        return func(*args, **(kwargs or {}))


@contextmanager
def capture_features(
        model: nn.Module,
        layers: Sequence[FeatureLayer],
        order: int = 2,
        leaves: bool = False,
        tail_mode: Optional[TorchFunctionMode] = None,
        first_feature: Optional[torch.Tensor] = None,
) -> Iterator[Dict[str, torch.Tensor]]:
    """Capture the outputs of `layers` in the forward pass that runs inside the context.

    Args:
        model: The model that will be called; wrappers (DistributedDataParallel) are looked through.
        layers: Layers to tap, from `resolve_layers`.
        order: 2 makes what follows the first tap twice differentiable; with 1 the forward pass is untouched.
        leaves: Build no graph before the first tap, whose output becomes a leaf: gradients then stop there. For maps
            at inference; the features carry no gradient to the parameters before the tap.
        tail_mode: Entered behind the first tap.
        first_feature: Taken in place of the first tap's output: the tail runs on it, with its graph. No graph is built
            before that tap.

    Yields:
        Dictionary from module path to feature, in the layer's own layout, filled by the forward pass.
    """
    model = unwrap_model(model)
    features: Dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        def tap(layer: FeatureLayer):
            def hook(module, args, output):
                feature = layer.get(output)
                if not features:
                    torch.set_grad_enabled(True)
                    if order == 2:
                        stack.enter_context(_TwiceDifferentiable(is_checkpointing(model)))
                    if tail_mode is not None:
                        stack.enter_context(tail_mode)
                    if first_feature is not None:
                        feature = first_feature
                handed_on = feature
                if not feature.requires_grad:
                    # A frozen or unrecorded trunk: the graph starts here. A leaf must not be overwritten in place.
                    feature = feature.detach().requires_grad_()
                    handed_on = feature.clone()
                elif layer.modified_in_place:
                    handed_on = feature.clone()
                features[layer.path] = feature
                return layer.replace(output, handed_on)
            return hook

        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(not leaves and first_feature is None))
        for layer in layers:
            handle = model.get_submodule(layer.path).register_forward_hook(tap(layer))
            stack.callback(handle.remove)
        yield features
