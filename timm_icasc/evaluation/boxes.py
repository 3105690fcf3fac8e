"""How well a map finds the boxes of its class.

Coordinates are continuous: pixel `i` covers `[i, i + 1]`, so an image of width `w` spans `[0, w]`.
"""
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch.utils.data import Dataset
from torchvision.ops import box_iou

from ..data.geometry import Geometry
from ..losses import SIGMA

__all__ = [
    'box_mask', 'boxes_by_class', 'energy_in_boxes', 'largest_component_box', 'localise', 'localise_batch',
    'pointing_game',
]

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
        sigma: float = SIGMA,
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
        - 'iou': of the box around the largest region that reaches the threshold with the nearest box of the class, as
          Zhou et al. (CAM, 2016) localise
        - 'iou50': 1 if that is at least 0.5, else 0
        - 'no_map': 1 for a map of zeros, or one that is not finite: it is measured as a map of zeros
        - 'box_area': share of the input that the boxes cover: what 'pointing' and 'energy' are by chance
    """
    mask = box_mask(boxes, *heat.shape)
    if not np.isfinite(heat).all():
        heat = np.zeros_like(heat)
    iou = 0.
    if heat.any():
        region = largest_component_box(heat >= sigma * heat.max())
        truth = torch.as_tensor(boxes, dtype=torch.float64)
        iou = box_iou(torch.from_numpy(region)[None], truth).max().item()
    return {
        'pointing': pointing_game(heat, boxes, tolerance), 'energy': energy_in_boxes(heat, mask),
        'iou': iou, 'iou50': float(iou >= 0.5), 'no_map': float(not heat.any()), 'box_area': float(mask.mean())}


def localise_batch(
        maps: torch.Tensor,
        present: list[list[int]],
        boxes: list[dict[int, np.ndarray]],
        geometries: list[Geometry],
        rows: list[int],
        sigma: float,
        tolerance: float,
) -> list[dict[str, float]]:
    """`localise` of each class of a batch that has boxes, with the number of its image and its own.

    Args:
        maps: Attention maps of the present classes, `[B, K, h, w]`.
        present: These classes, of each image.
        boxes: Of `boxes_by_class`, of each image.
        geometries: From the pixels of each image to those of the input.
        rows: Numbers of the images.
        sigma, tolerance: As of `localise`.
    """
    results = []
    for i, classes in enumerate(present):
        wanted = [(k, c) for k, c in enumerate(classes) if c in boxes[i]]
        heats = None
        for k, index in wanted:
            mapped = geometries[i].boxes(boxes[i][index])
            if not len(mapped):  # cropped away
                continue
            if heats is None:
                size = (geometries[i].height, geometries[i].width)
                heats = F.interpolate(maps[i][None], size=size, mode='bilinear', align_corners=False)[0].cpu().numpy()
            results.append({'image': rows[i], 'class': index, **localise(heats[k], mapped, sigma, tolerance)})
    return results


def boxes_by_class(dataset: Dataset, index: int) -> dict[int, np.ndarray]:
    """Boxes of each class, objects marked difficult left out, as VOC's protocols do."""
    grouped: dict[int, list] = {}
    for box in dataset.boxes(index):
        if not box.difficult:
            grouped.setdefault(box.class_index, []).append((box.xmin, box.ymin, box.xmax, box.ymax))
    return {c: np.array(rows, dtype=np.float64) for c, rows in grouped.items()}
