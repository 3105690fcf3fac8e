"""The class scores in what a model returns."""
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ICASCError

__all__ = ['class_scores', 'find_class_scores']


def find_class_scores(output: Any) -> torch.Tensor | None:
    """The tensor of `class_scores`; None where there is none."""
    if isinstance(output, torch.Tensor):
        return output
    scores = getattr(output, 'logits', None)
    if scores is None and isinstance(output, Mapping):
        scores = output.get('logits')
    if scores is None and isinstance(output, (tuple, list)) and output:
        scores = output[0]
    return scores if isinstance(scores, torch.Tensor) else None


def class_scores(output: Any) -> torch.Tensor:
    """The class scores `[B, C]` in what a model returned.

    Args:
        output: The scores themselves; an object with the attribute `logits`, as Hugging Face's models return, or a
            dictionary with that key; or a tuple or list whose first element they are.

    Raises:
        ICASCError: It is nothing of these.
    """
    scores = find_class_scores(output)
    if scores is None:
        raise ICASCError(
            f'`model` returned {type(output).__name__} without class scores: return a tensor [B, C], an object or a '
            "dictionary with 'logits', or a tuple with the scores first.")
    return scores
