"""The class scores in what a model returns."""
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from .._precision import is_autocasting
from ..errors import ICASCError
from .images import Images

__all__ = [
    'SEVERAL_SCORES', 'check_order', 'class_scores', 'find_class_scores', 'scores_of', 'several_scores',
    'warn_of_probabilities', 'without_order',
]

SEVERAL_SCORES = (
    '`model` returned several tensors of one shape, as a distilled network does in training, which leaves open what '
    'the class scores are: return one of them (timm: `set_distilled_training(False)`), or a dictionary with '
    "'logits'.")


def find_class_scores(output: Any) -> torch.Tensor | None:
    """The tensor of `class_scores`; None where there is none."""
    if isinstance(output, torch.Tensor):
        return output
    scores = getattr(output, 'logits', None)
    if scores is None and isinstance(output, Mapping):
        scores = output.get('logits')
    if scores is None and isinstance(output, (tuple, list)) and output:
        shapes = [x.shape for x in output if isinstance(x, torch.Tensor) and x.ndim == 2]
        # Two sets of scores (a distilled network in training) leave open which is meant.
        scores = output[0] if len(set(shapes)) == len(shapes) else None
    return scores if isinstance(scores, torch.Tensor) else None


def several_scores(output: Any) -> bool:
    """Whether it is a tuple of which it is open which tensor has the class scores."""
    if not isinstance(output, (tuple, list)) or len(output) < 2:
        return False
    return isinstance(output[0], torch.Tensor) and find_class_scores(output) is None


def class_scores(output: Any) -> torch.Tensor:
    """The class scores `[B, C]` in what a model returned.

    Args:
        output: The scores themselves; an object with the attribute `logits`, as Hugging Face's models return, or a
            dictionary with that key; or a tuple or list whose first element they are, if no other has their shape.

    Raises:
        ICASCError: It is nothing of these.
    """
    scores = find_class_scores(output)
    if several_scores(output):
        raise ICASCError(SEVERAL_SCORES)
    if scores is None:
        raise ICASCError(
            f'`model` returned {type(output).__name__} without class scores: return a tensor [B, C], an object or a '
            "dictionary with 'logits', or a tuple with the scores first.")
    return scores


def _mismatch(model: nn.Module, images: Images) -> str | None:
    """Why the weights cannot take such images, and the remedy; None where they can."""
    x, weight = images['patches'] if isinstance(images, dict) else images, next(model.parameters(), None)
    if weight is None:
        return None
    if x.device != weight.device:
        return f"`images` are on {x.device}, the weights of `model` on {weight.device}: `images.to('{weight.device}')`."
    if not x.is_floating_point():
        return (
            f'`images` are {x.dtype}, and `model` takes normalised floats, as timm.data.create_transform makes them '
            f'(timm_icasc.explain takes files and arrays as they are).')
    if x.dtype == weight.dtype or is_autocasting(x.device.type):
        return None
    return f'`images` are {x.dtype}, the weights of `model` {weight.dtype}: `images.to({weight.dtype})`.'


def scores_of(model: nn.Module, images: Images) -> torch.Tensor:
    """Run a model: the class scores in what it returns.

    Raises:
        ICASCError: It has failed, on images of another device or kind of numbers than its weights; or it returned no
            class scores.
    """
    try:
        output = model(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as e:
        if reason := _mismatch(model, images):
            raise ICASCError(reason) from e
        raise
    return class_scores(output)


def without_order(scores: torch.Tensor) -> torch.Tensor:
    """Which rows of class scores `[B, C]` have no highest class, as those of broken weights: bool `[B]`.

    They hold NaN or +infinity, or nothing above -infinity, which a class that is switched off may have.
    """
    return (scores.isnan() | scores.isposinf()).any(1) | scores.isneginf().all(1)


def check_order(scores: torch.Tensor, whose: str = 'the model') -> None:
    """Raise ICASCError where class scores `[B, C]` are `without_order`: no class is the highest.

    Args:
        scores: Of a batch.
        whose: Name of the model in the message.
    """
    broken = without_order(scores)
    if broken.any():
        raise ICASCError(
            f'{whose} gives class scores that are NaN or infinite, for {int(broken.sum())} of the {len(scores)} images '
            f'of a batch: its weights are broken, as after training with too high a rate.')


def warn_of_probabilities(scores: torch.Tensor) -> None:
    """Warn where what should be class scores `[B, C]` are probabilities: a softmax inside of the model.

    Of two classes or fewer, scores that happen to add up to 1 are not that rare.
    """
    if scores.shape[1] < 3 or not len(scores):
        return
    tolerance = max(1e-4, torch.finfo(scores.dtype).eps)
    if (scores >= 0).all() and ((scores.float().sum(1) - 1).abs() < tolerance).all():
        warnings.warn(
            '`model` returns probabilities (a softmax inside of it?), and class scores before softmax are expected: '
            'maps, losses and the probabilities made of these are wrong. Let it return the scores.', stacklevel=4)
