"""The class scores of every image, without attention: of one pass, or averaged over ten crops.

Shapes: `N` images, `C` classes, `B` batch.
"""
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from .._precision import at_least_float32
from ..data import image_name
from ..errors import TargetError
from ..features.module_state import looking_at
from ..features.outputs import check_order, class_scores
from ..labels import SINGLE
from .batches import TenCropTransform, make_loader, transformed_by
from .checkpoint import Checkpoint
from .image_records import ImageRecords

__all__ = ['check_targets', 'checked_scores', 'make_records', 'score_images', 'ten_crop_probabilities']


def check_targets(targets: torch.Tensor, checkpoint: Checkpoint) -> None:
    """Raise TargetError where an image is of no class of the model, or of none at all."""
    if checkpoint.labels is not SINGLE:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0:  # would be taken for the last class
        raise TargetError(
            f'the data set has images without a label (class {low}), as test images often are: `val_split` names '
            f'others.')
    if high >= checkpoint.num_classes:
        raise TargetError(
            f'the data set has class {high}, the model of {checkpoint.source} classes 0 to '
            f'{checkpoint.num_classes - 1}.')


def checked_scores(checkpoint: Checkpoint, logits: torch.Tensor) -> torch.Tensor:
    """Class scores in at least float32, on the CPU, all finite: -infinity, of a class switched off, is the lowest.

    Raises:
        ICASCError: A score is NaN or infinite, or an image has none above -infinity: no class is the highest.
    """
    logits = at_least_float32(logits).cpu()
    check_order(logits, f"'{checkpoint.source}'")
    return logits.clamp(min=torch.finfo(logits.dtype).min)


def make_records(
        checkpoint: Checkpoint,
        indices: Sequence[int],
        scores: list[torch.Tensor],
        targets: list[torch.Tensor],
) -> ImageRecords:
    """What every pass over the images gives, from its batches."""
    return ImageRecords(
        label=checkpoint.label,
        names=[checkpoint.class_name(i) for i in range(checkpoint.num_classes)],
        indices=np.array(indices), files=[image_name(checkpoint.dataset, i) for i in indices],
        scores=torch.cat(scores).numpy(), targets=torch.cat(targets).numpy())


@torch.inference_mode()
def score_images(checkpoint: Checkpoint, indices: Sequence[int]) -> ImageRecords:
    """Only the class scores of the images, without attention: one plain forward pass."""
    scores, targets = [], []
    loader = make_loader(
        checkpoint, torch.utils.data.Subset(checkpoint.dataset, list(indices)),
        checkpoint.batch_size)
    with looking_at(checkpoint.model):
        for images, target in tqdm(loader, desc=checkpoint.label, leave=False, disable=None):
            check_targets(target, checkpoint)
            scores.append(checked_scores(
                checkpoint, class_scores(checkpoint.model(images.to(checkpoint.device)))))
            targets.append(target)
    return make_records(checkpoint, indices, scores, targets)


@torch.inference_mode()
def ten_crop_probabilities(checkpoint: Checkpoint, indices: Sequence[int]) -> np.ndarray:
    dataset, probabilities = checkpoint.dataset, []
    with looking_at(checkpoint.model), transformed_by(dataset, TenCropTransform(dataset.transform)):
        loader = make_loader(
            checkpoint, torch.utils.data.Subset(dataset, list(indices)),
            -(-checkpoint.batch_size // 10))
        for crops, _ in tqdm(loader, desc=f'{checkpoint.label}, ten crops', leave=False, disable=None):
            logits = class_scores(checkpoint.model(crops.flatten(0, 1).to(checkpoint.device)))
            each = checkpoint.labels.probabilities(checked_scores(checkpoint, logits).double())
            probabilities.append(each.unflatten(0, crops.shape[:2]).mean(1))
    return torch.cat(probabilities).numpy()
