"""What to ask of any model, and how to run it for a moment without leaving a trace."""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn
from torch.distributed.fsdp import FSDPModule

__all__ = [
    'evaluation_mode', 'hold_batch_norm_statistics', 'is_checkpointing', 'is_sharded',
    'unwrap_model',
]


@contextmanager
def hold_batch_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are.

    With gradient checkpointing, taking the gradient of a score runs layers again, and each run would count the batch
    once more. (The recomputation in the user's own backward pass does, with ICASC or without.)
    """
    norms = [
        m for m in unwrap_model(model).modules()
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


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, '_orig_mod', None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def is_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on, by the flag that the models of timm or of Hugging Face carry."""
    # Not getattr: where the flag is missing, as in most modules, torch goes through parameters, buffers and children,
    # and steps ask several times.
    return any(
        vars(module).get('grad_checkpointing', False) or vars(module).get('gradient_checkpointing', False)
        for module in model.modules())


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 (`fully_shard`) gathers parameters for a forward or backward pass, and lets go of them after it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside parameters, buffers, children and hooks; containers as copies."""
    return {
        name: value.copy() if isinstance(value, (dict, list, set)) else value
        for name, value in vars(module).items() if not name.startswith('_')}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; on leaving, each module gets its own flag and attributes back.

    Some modules (LeViT's attention) cache values at evaluation that would outlive the parameters they were made of.
    """
    before = {module: _own_attributes(module) for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, attributes in before.items():
            for name in [name for name in vars(module) if not name.startswith('_') and name not in attributes]:
                delattr(module, name)
            vars(module).update(attributes)
