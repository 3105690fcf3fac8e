"""Where the pixels of an image lie after the evaluation transform, and where they came from.

Coordinates are continuous: pixel `i` covers `[i, i + 1]`, so an image of width `w` spans `[0, w]`.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from timm.data.transforms import CenterCropOrPad, MaybePILToTensor, MaybeToTensor, ResizeKeepRatio
from torchvision import transforms

from ..errors import DataError

__all__ = ['Geometry', 'transform_geometry']

COLOUR_ONLY = (
    MaybeToTensor, MaybePILToTensor, transforms.ToTensor, transforms.PILToTensor,
    transforms.Normalize)


@dataclass(frozen=True)
class Geometry:
    """`x' = scale_x x + left`, `y' = scale_y y + top`: from the loaded image to the model's input."""
    scale_x: float
    scale_y: float
    left: float
    top: float
    width: int
    height: int

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes and clip them to the model's input.

        Args:
            boxes: `[n, 4]`, xmin, ymin, xmax, ymax in the loaded image.

        Returns:
            `[m, 4]` in the model's input, m <= n: those of which nothing is left are dropped.
        """
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        scale = np.array([self.scale_x, self.scale_y] * 2)
        moved = boxes * scale + np.array([self.left, self.top] * 2)
        clipped = np.clip(moved, 0, np.array([self.width, self.height] * 2))
        return clipped[(clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])]


def _crop_offset(before: int, after: int) -> int:
    """What a centre crop (torchvision's and timm's) adds to a coordinate on one axis; positive where it pads."""
    if after > before:
        return (after - before) // 2
    return -int(round((before - after) / 2.0))


def transform_geometry(transform: Any, size: tuple[int, int]) -> Geometry:
    """Follow an image of `size` (width, height) through timm's evaluation transform.

    Args:
        transform: `torchvision.transforms.Compose` of resizes and centre crops, as `timm.data.create_transform` makes
            it for evaluation (crop modes center, squash and border).
        size: Width and height of the image as loaded.

    Raises:
        DataError: A step that moves pixels in another way.
    """
    scale_x = scale_y = 1.
    left = top = 0.
    image = Image.new('L', size)
    for step in transform.transforms:
        if isinstance(step, COLOUR_ONLY):
            continue
        width, height = image.size
        if isinstance(step, (transforms.Resize, ResizeKeepRatio)):
            image = step(image)  # the library's own rounding
            x, y = image.size[0] / width, image.size[1] / height
            scale_x, scale_y, left, top = scale_x * x, scale_y * y, left * x, top * y
        elif isinstance(step, (transforms.CenterCrop, CenterCropOrPad)):
            crop_height, crop_width = (step.size, step.size) if isinstance(
                step.size, int) else step.size
            left, top = left + _crop_offset(width, crop_width), top + _crop_offset(
                height, crop_height)
            image = Image.new('L', (crop_width, crop_height))
        else:
            raise DataError(f'pixels cannot be followed through {type(step).__name__} of the evaluation transform.')
    return Geometry(scale_x, scale_y, left, top, *image.size)
