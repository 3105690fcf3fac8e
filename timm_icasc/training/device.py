"""Whether a device can be used."""
import torch

from ..errors import one_line

__all__ = ['device_fault']


def device_fault(device: str) -> str | None:
    """What torch says against a device, in one line; None where this machine can compute on it."""
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as e:
        return one_line(e, 120)
    return None
