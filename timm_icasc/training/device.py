"""What this machine computes with: whether a device can be used, and how many cores."""
import os

import torch

from ..errors import one_line

__all__ = ['device_fault', 'usable_cores']


def device_fault(device: str) -> str | None:
    """What torch says against a device, in one line; None where this machine can compute on it."""
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as e:
        return one_line(e, 120)
    return None


def usable_cores() -> int:
    """Cores of this process. Torch warns of more data loading processes than that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
