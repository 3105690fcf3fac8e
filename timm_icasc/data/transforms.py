"""Augmentation of the CIFAR protocols."""

import torch
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torchvision import transforms

from ..errors import DataError

__all__ = ['use_pad_crop']


def use_pad_crop(
        dataset: torch.utils.data.Dataset,
        image_size: tuple[int, int],
        padding: int,
        interpolation: str = 'bilinear',
) -> None:
    """Replace the random resized crop in a timm training transform by zero-padding and a random crop, in place.

    The augmentation of He et al. (2016, section 4.2) for CIFAR; flips and what else the transform holds stay. Images
    of another size are resized to `image_size` first.

    Args:
        dataset: Data set with timm's training transform, as `create_loader` leaves it.
        image_size: Height and width of the crop.
        padding: Pixels of zeros on each side.
        interpolation: With which images of another size are resized.

    Raises:
        DataError: The transform has no random resized crop (augmentation switched off?).
    """
    steps = list(dataset.transform.transforms)
    places = [
        i for i, step in enumerate(steps) if isinstance(step, RandomResizedCropAndInterpolation)]
    if not places:
        raise DataError(
            '`padding` replaces the random resized crop of training; remove `no_aug` and '
            '`train_crop_mode`.')
    steps[places[0]:places[0] + 1] = [
        transforms.Resize(image_size, str_to_interp_mode(interpolation)),
        transforms.RandomCrop(image_size, padding=padding)]
    dataset.transform = transforms.Compose(steps)
