"""Tap features during one forward pass, on the path to the logits, and keep the tail twice differentiable.

Nothing outlives the context: no hook, no changed module, no global setting.
"""
from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .errors import ICASCError
from .features import FeatureLayer
from .modules import is_checkpointing, unwrap_model

__all__ = ['capture_features', 'hold_batch_norm_statistics']

# torch.nn.MultiheadAttention calls the first inside the second, where no function mode sees it.
ATTENTION_FUNCTIONS = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


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


class _TwiceDifferentiable(TorchFunctionMode):
    """Run the operations whose backward has no derivative by equivalents that have one.

    The fused kernels of scaled dot-product attention give way to the math kernel, hardsigmoid to its definition.
    """

    def __init__(self, checkpointing: bool):
        super().__init__()
        self.checkpointing = checkpointing

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (*ATTENTION_FUNCTIONS, F.hardsigmoid) and self.checkpointing:
            raise ICASCError(
                f'order=2 does not work with gradient checkpointing on a model that calls {func.__name__} behind the '
                f'inner layer: the recomputation would run another kernel. Use order=1, or turn checkpointing off.')
        if func in ATTENTION_FUNCTIONS:
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func is F.hardsigmoid:
            x = args[0] if args else kwargs['input']
            return F.relu6(x + 3) / 6
        return func(*args, **kwargs)


@contextmanager
def capture_features(
        model: nn.Module,
        layers: Sequence[FeatureLayer],
        order: int = 2,
        leaves: bool = False,
) -> Iterator[Dict[str, torch.Tensor]]:
    """Capture the outputs of `layers` in the forward pass that runs inside the context.

    Args:
        model: The model that will be called; wrappers (DistributedDataParallel) are looked through.
        layers: Layers to tap, from `resolve_layers`.
        order: 2 makes what follows the first tap twice differentiable; with 1 the forward pass is untouched.
        leaves: Build no graph before the first tap, whose output becomes a leaf: gradients then stop there. For maps
            at inference; the features carry no gradient to the parameters before the tap.

    Yields:
        Dictionary from module path to feature, in the layer's own layout, filled by the forward pass.
    """
    model = unwrap_model(model)
    features: Dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        def tap(layer: FeatureLayer):
            def hook(module, args, output):
                if not features:
                    torch.set_grad_enabled(True)
                    if order == 2:
                        stack.enter_context(_TwiceDifferentiable(is_checkpointing(model)))
                feature = layer.get(output)
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
        stack.enter_context(torch.set_grad_enabled(not leaves))
        for layer in layers:
            handle = model.get_submodule(layer.path).register_forward_hook(tap(layer))
            stack.callback(handle.remove)
        yield features
