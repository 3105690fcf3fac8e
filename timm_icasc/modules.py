"""What to ask of any model, and how to run it for a moment without leaving a trace."""
from contextlib import contextmanager
from typing import Iterator

import torch.nn as nn

__all__ = ['evaluation_mode', 'is_checkpointing', 'unwrap_model']


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, '_orig_mod', None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def is_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on, by the flag that timm's models carry."""
    return any(getattr(module, 'grad_checkpointing', False) for module in model.modules())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; on leaving, each module gets its own training flag back."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
