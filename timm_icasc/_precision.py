"""Attention maps and losses are computed in at least float32, whatever precision the model runs in."""
from contextlib import AbstractContextManager, nullcontext

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors become float32; float32 and float64 pass through."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(device: torch.device) -> AbstractContextManager:
    """Context in which autocast is off; devices without autocast (meta) need none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def is_autocasting(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
