"""Which class is the true one, which the most confusing, and which to draw a map of.

Shapes: `B` batch, `C` classes, `K` chosen classes per image.
"""
from typing import NamedTuple, Sequence, Union

import torch

from .errors import TargetError

__all__ = ['ClassPair', 'check_target', 'class_indices', 'select_classes']


class ClassPair(NamedTuple):
    """Which scores to differentiate: the gradient of `(logits * cotangent).sum()` is that of the chosen scores.

    Attributes:
        target: Cotangent of the ground-truth class, `[B, C]`.
        confused: Cotangent of the most confusing class, `[B, C]`.
        valid: Samples that have both, bool `[B]`.
    """
    target: torch.Tensor
    confused: torch.Tensor
    valid: torch.Tensor


def check_target(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Raise what a criterion would say from deep inside torch.

    Args:
        logits: Class scores, `[B, C]`.
        target: Class indices `[B]` (integer) or class probabilities `[B, C]` (floating point).

    Raises:
        TargetError: Wrong shape or type, an index outside `[0, C)`, fewer than two classes.
    """
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TargetError(f'ICASC needs one score per class, [B, C]; the model returned {got} (a distilled head in '
                          f'training mode?).')
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise TargetError(f'ICASC needs a second class to confuse the first with; the model has {num_classes}.')
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
                f"set num_classes (--num-classes) to the data set's number.")


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


def class_indices(
        classes: Union[torch.Tensor, Sequence[int], int, None],
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
