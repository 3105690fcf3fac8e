"""What this machine computes with: whether a device can be used, and how many cores."""
import os

import torch

from ..errors import one_line

__all__ = ['PeakMemory', 'device_fault', 'usable_cores']


def device_fault(device: str) -> str | None:
    """What torch says against a device, in one line; None where this machine can compute on it."""
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as e:
        return one_line(e, 120)
    return None


class PeakMemory:
    """The most memory that torch has taken of a GPU since now, on top of what it holds now.

    Args:
        device: Any; of a CPU, torch keeps no account.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self._held = torch.cuda.memory_allocated(device)

    def mib(self) -> float | None:
        """In MiB; None where torch keeps no account."""
        if self.device.type != 'cuda':
            return None
        return (torch.cuda.max_memory_allocated(self.device) - self._held) / 2 ** 20


def usable_cores() -> int:
    """Cores of this process. Torch warns of more data loading processes than that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
