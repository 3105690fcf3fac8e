"""Which class is the true one, which the most confusing, and which to draw a map of.

Shapes: `B` batch, `C` classes, `K` chosen classes per image.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .errors import TargetError

__all__ = [
    'ClassPair', 'check_multilabel_target', 'check_target', 'class_indices', 'select_classes',
    'select_multilabel_classes',
]


class ClassPair(NamedTuple):
    """Which scores to differentiate: the gradient of `(logits * cotangent).sum()` is that of the chosen scores.

    Attributes:
        target: Cotangent of the ground-truth class, `[B, C]`; of all of them at once for multi-label targets.
        confused: Cotangent of the most confusing class, `[B, C]`.
        valid: Samples that have both, bool `[B]`.
    """
    target: torch.Tensor
    confused: torch.Tensor
    valid: torch.Tensor


def _check_logits(logits: torch.Tensor) -> None:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TargetError(f'ICASC needs one score per class, [B, C]; the model returned {got} (a distilled head in '
                          f'training mode?).')
    if logits.shape[1] < 2:
        raise TargetError(f'ICASC needs a second class to confuse the first with; the model has {logits.shape[1]}.')


def check_target(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Raise what a criterion would say from deep inside torch.

    Args:
        logits: Class scores, `[B, C]`.
        target: Class indices `[B]` (integer) or class probabilities `[B, C]` (floating point).

    Raises:
        TargetError: Wrong shape or type, an index outside `[0, C)`, fewer than two classes.
    """
    _check_logits(logits)
    num_classes = logits.shape[1]
    indices = not target.is_floating_point() and target.dtype != torch.bool
    fits = target.shape == logits.shape[:1] if indices else target.shape == logits.shape
    if not fits or target.dtype == torch.bool:
        raise TargetError(
            f'target must be class indices [B] or class probabilities [B, C] for logits {tuple(logits.shape)}, '
            f'got {target.dtype} {tuple(target.shape)}.')
    # On other devices the comparison would wait for the device at every step; the criterion checks there.
    if indices and target.device.type == 'cpu' and target.numel():
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= num_classes:
            raise TargetError(
                f'target holds class {low if low < 0 else high}, but the model has classes 0 to {num_classes - 1}: '
                f"set `num_classes` to the data set's number.")


def select_classes(logits: torch.Tensor, target: torch.Tensor) -> ClassPair:
    """Ground-truth class and most confusing class of each sample, the non-target class of highest probability.

    Soft targets (mixup, cutmix, label smoothing): the class of largest target mass is the ground truth, and every
    class with more than the smallest mass of its row, which is the smoothing floor, is kept from being the confused
    one. Rows without such a class (uniform targets) are not valid. With two classes in all, mixing both cannot be told
    from smoothing: the lesser one is the confused class.

    Args:
        logits: Class scores, `[B, C]`.
        target: Class indices `[B]` (integer) or class probabilities `[B, C]` (floating point).

    Raises:
        TargetError: Wrong shape or type, an index outside `[0, C)`, fewer than two classes.
    """
    check_target(logits, target)
    if target.is_floating_point():
        present = target > target.amin(1, keepdim=True)
        target_index = target.argmax(1)
    else:
        target_index = target.long()
        present = torch.zeros_like(logits, dtype=torch.bool).scatter(1, target_index[:, None], True)
    confused_index = logits.detach().masked_fill(present, -torch.inf).argmax(1)
    zeros = torch.zeros_like(logits)
    return ClassPair(
        target=zeros.scatter(1, target_index[:, None], 1.),
        confused=zeros.scatter(1, confused_index[:, None], 1.),
        valid=present.any(1),
    )


def check_multilabel_target(logits: torch.Tensor, target: torch.Tensor, ignored: bool = True) -> None:
    """Raise what is wrong with multi-label targets.

    Args:
        logits: Class scores, `[B, C]`.
        target: `[B, C]` in {1 present, 0 absent, -1 ignored}, floating point.
        ignored: Whether -1 is allowed.

    Raises:
        TargetError: Wrong shape, type or value, fewer than two classes.
    """
    _check_logits(logits)
    if target.shape != logits.shape or not target.is_floating_point():
        raise TargetError(f'a multi-label target must be floating point, [B, C] = {tuple(logits.shape)}, with 1 for '
                          f'present and 0 for absent classes, got {target.dtype} {tuple(target.shape)}.')
    # On other devices the comparison would wait for the device at every step.
    if target.device.type == 'cpu':
        fits = (target == 0) | (target == 1) | ((target == -1) & ignored)
        if not fits.all():
            values = '1 (present), 0 (absent)' + ' or -1 (ignored)' * ignored
            raise TargetError(f'a multi-label target must be {values}, got {target[~fits][0].item()}.')


def select_multilabel_classes(logits: torch.Tensor, target: torch.Tensor) -> ClassPair:
    """All present classes together, and the absent class of highest score.

    An ignored class is on neither side. Samples without a present or without an absent class are not valid.

    Args:
        logits: Class scores, `[B, C]`.
        target: `[B, C]` in {1 present, 0 absent, -1 ignored}, floating point.

    Raises:
        TargetError: Wrong shape, type or value, fewer than two classes.
    """
    check_multilabel_target(logits, target)
    present, absent = target > 0, target == 0
    confused_index = logits.detach().masked_fill(~absent, -torch.inf).argmax(1)
    return ClassPair(
        target=present.to(logits.dtype),
        confused=torch.zeros_like(logits).scatter(1, confused_index[:, None], 1.),
        valid=present.any(1) & absent.any(1),
    )


def class_indices(
        classes: torch.Tensor | Sequence[int] | int | None,
        topk: int,
        logits: torch.Tensor,
) -> torch.Tensor:
    """The classes that `attention_maps` draws, as `[B, K]`; see there."""
    batch, num_classes = logits.shape
    if classes is None:
        return logits.detach().topk(min(topk, num_classes), dim=1).indices
    classes = torch.as_tensor(classes, device=logits.device)
    if classes.is_floating_point() or classes.ndim > 2 or (classes.ndim == 2 and classes.shape[0] != batch):
        raise TargetError(
            f'classes must be a class index, indices [K] for every image or [B, K] per image (B = {batch}), '
            f'got {classes.dtype} {tuple(classes.shape)}.')
    if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
        raise TargetError(f'classes must lie in 0 to {num_classes - 1}, got {classes.tolist()}.')
    return classes.long() if classes.ndim == 2 else classes.long().reshape(1, -1).expand(batch, -1)
