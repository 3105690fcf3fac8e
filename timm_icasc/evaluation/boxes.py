"""Where the pixels of an image lie after the evaluation transform: boxes follow the resize and the crop exactly.

Coordinates are continuous: pixel `i` covers `[i, i + 1]`, so an image of width `w` spans `[0, w]`.
"""
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from timm.data.transforms import CenterCropOrPad, MaybePILToTensor, MaybeToTensor, ResizeKeepRatio
from torchvision import transforms
from torchvision.ops import box_iou

from ..errors import DataError

__all__ = [
    'Geometry', 'box_mask', 'energy_in_boxes', 'largest_component_box', 'localise',
    'pointing_game', 'transform_geometry',
]

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
            raise DataError(f'boxes cannot be followed through {type(step).__name__} of the evaluation transform.')
    return Geometry(scale_x, scale_y, left, top, *image.size)

EQUAL = 1e-5  # relative difference that rounding makes between equal values

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def box_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centre lies in one of the boxes: bool `[H, W]`."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    mask = np.zeros((height, width), dtype=bool)
    for xmin, ymin, xmax, ymax in boxes:
        mask |= ((y >= ymin) & (y < ymax))[:, None] & ((x >= xmin) & (x < xmax))[None]
    return mask


def pointing_game(heat: np.ndarray, boxes: np.ndarray, tolerance: float = 0.) -> float:
    """Whether the map's maximum lies in a box of the class (Zhang et al., "Excitation Backprop", 2016).

    Where several pixels share the maximum, the share of them that do: an enlarged map is flat along the image's edge,
    and which of those pixels is highest is a matter of rounding.

    Args:
        heat: Attention map at the size of the input, `[H, W]`, values >= 0.
        boxes: `[n, 4]`.
        tolerance: Margin around the boxes in pixels of the input. Zhang et al. allow 15 at the images' full size.

    Returns:
        1 or 0, or between them where pixels share the maximum.
    """
    if not heat.any():
        return 0.
    rows, columns = np.nonzero(heat >= (1 - EQUAL) * heat.max())
    widened = boxes + tolerance * np.array([-1., -1., 1., 1.])
    return float(box_mask(widened, *heat.shape)[rows, columns].mean())


def energy_in_boxes(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of the map's sum that lies in the boxes (energy-based pointing game; Wang et al., "Score-CAM", 2020).

    Args:
        heat: Attention map `[H, W]`, values >= 0.
        mask: `box_mask` of the class, `[H, W]`.
    """
    total = heat.sum(dtype=np.float64)
    return float(heat[mask].sum(dtype=np.float64) / total) if total > 0 else 0.


def largest_component_box(region: np.ndarray) -> np.ndarray:
    """Tight box around the largest 8-connected component of a region, bool `[H, W]`: `[4]`."""
    labels, _ = ndimage.label(region, EIGHT_NEIGHBOURS)
    largest = np.bincount(labels.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(labels)[largest]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], dtype=np.float64)


def localise(
        heat: np.ndarray,
        boxes: np.ndarray,
        sigma: float = 0.55,
        tolerance: float = 0.,
) -> dict[str, float]:
    """Every measure of one map.

    Args:
        heat: Attention map at the size of the input, `[H, W]`, values >= 0.
        boxes: Boxes of the map's class, `[n, 4]`, n >= 1.
        sigma: Threshold of the region as a fraction of the map's maximum, as in the target mask (Eq. 4).
        tolerance: See `pointing_game`.

    Returns:
        - 'pointing': 1 if the maximum lies in a box, else 0; a share where pixels share the maximum
        - 'energy': share of the attention in the boxes
        - 'iou': of the box around the largest region above the threshold with the nearest box of the class, as
          Zhou et al. (CAM, 2016) localise
        - 'iou50': 1 if that is at least 0.5, else 0
        - 'no_map': 1 for a map of zeros
        - 'box_area': share of the input that the boxes cover: what 'pointing' and 'energy' are by chance
    """
    mask = box_mask(boxes, *heat.shape)
    iou = 0.
    if heat.any():
        region = largest_component_box(heat >= sigma * heat.max())
        truth = torch.as_tensor(boxes, dtype=torch.float64)
        iou = box_iou(torch.from_numpy(region)[None], truth).max().item()
    return {
        'pointing': pointing_game(heat, boxes, tolerance), 'energy': energy_in_boxes(heat, mask),
        'iou': iou, 'iou50': float(iou >= 0.5), 'no_map': float(not heat.any()), 'box_area': float(mask.mean())}
