"""Attention laid over images, and brought from the crop that a model sees to the image as it is.

Shapes: `H W` size of an image, `h w` grid of a layer or any other size of a map.
"""
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from ..data.geometry import Geometry
from ..errors import ICASCError
from .pixels import open_image

__all__ = ['COLORMAP', 'OPACITY', 'blend', 'grey', 'overlay', 'seen_box', 'spread']

# Viridis keeps its order for colour-blind readers, and its yellow end differs from a white background.
COLORMAP = colormaps['viridis']

OPACITY = 0.9

_COLORS = COLORMAP(np.arange(COLORMAP.N))[:, :3].astype(np.float32)  # a look-up in it is ten times as fast

UNSEEN = 0.45  # lightness that is left of what the model has not seen


def grey(colors: np.ndarray) -> np.ndarray:
    """The lightness of `[..., 3]`: `[...]`."""
    return colors @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def blend(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay attention `[h, w]` in [0, 1] over a grey image `[h, w]`: `[h, w, 3]`; no attention leaves the image as is."""
    alpha = OPACITY * heat[..., None]
    steps = (heat * len(_COLORS)).astype(int).clip(0, len(_COLORS) - 1)
    return (1 - alpha) * grey[..., None] + alpha * _COLORS[steps]


def _axis(
        length: int,
        whole: int,
        cells: int,
        scale: float,
        offset: float,
        seen: int,
) -> torch.Tensor:
    """Weights of the cells at each of `length` pixels across one side of the image, `[length, cells]`.

    Args:
        length: Pixels to fill.
        whole: Pixels of the image's side, which they stand for.
        cells: Of the map, across the model's input.
        scale, offset: From the image to the model's input.
        seen: Pixels of the model's input.
    """
    place = (torch.arange(length, dtype=torch.float64, device='cpu') + 0.5) * whole / length * scale + offset
    cell = (place / seen * cells - 0.5).clamp(0, cells - 1)
    low = cell.floor().long()
    high = (low + 1).clamp(max=cells - 1)
    rows, weights = torch.arange(length, device='cpu'), place.new_zeros(length, cells)
    weights[rows, low] += 1 - (cell - low)
    weights[rows, high] += cell - low
    weights[(place < 0) | (place > seen)] = 0
    return weights.float()


def spread(
        maps: torch.Tensor,
        geometry: Geometry,
        size: tuple[int, int],
        shown: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Maps of what a model saw, at the size of the image that it was cut from: resize and crop are undone.

    Between the cells bilinear, as `torch.nn.functional.interpolate` without aligned corners.

    Args:
        maps: `[..., h, w]` on the model's input.
        geometry: From the image to that input.
        size: Width and height of the image.
        shown: Width and height to fill, where the image is shown at another size.

    Returns:
        `[..., H, W]`; 0 where the model saw nothing of the image.
    """
    width, height = shown or size
    rows = _axis(height, size[1], maps.shape[-2], geometry.scale_y, geometry.top, geometry.height)
    columns = _axis(width, size[0], maps.shape[-1], geometry.scale_x, geometry.left, geometry.width)
    return rows @ maps.float().cpu() @ columns.T


def seen_box(geometry: Geometry, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge, in pixels of the image, of what the model saw of it."""
    edges = []
    for length, scale, offset, seen in (
            (size[0], geometry.scale_x, geometry.left, geometry.width),
            (size[1], geometry.scale_y, geometry.top, geometry.height)):
        edges.append((max(0., -offset / scale), min(float(length), (seen - offset) / scale)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def overlay(
        image: Image.Image | np.ndarray,
        attention: torch.Tensor | np.ndarray,
        seen: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Lay an attention map over an image: grey where there is none, over blue and green to yellow at its maximum.

    Args:
        image: PIL image, or array `[H, W, 3]` or `[H, W]`, uint8 or floating point in [0, 1].
        attention: `[h, w]`, values >= 0, any scale; a map of the whole image, at its size or a coarser one. That of a
            crop, as `attention_maps` gives it, is brought to the image by `explain`.
        seen: Left, top, right, bottom edge of what the model saw; the rest is darkened.

    Returns:
        An image of the same size, RGB.

    Raises:
        ICASCError: A map of another shape, negative or not finite.
    """
    picture = open_image(image)
    heat = torch.as_tensor(attention).detach().float().cpu()
    if heat.ndim != 2 or not heat.numel():
        raise ICASCError(f'`attention` must be one map, [h, w], got {tuple(heat.shape)}.')
    if not bool((heat >= 0).all()) or not bool(heat.isfinite().all()):
        raise ICASCError('`attention` must be finite and >= 0.')
    if tuple(heat.shape) != (picture.height, picture.width):
        heat = spread(heat, Geometry(1., 1., 0., 0., *picture.size), picture.size)
    heat = heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)
    pixels = blend(grey(np.asarray(picture, dtype=np.float32) / 255), heat.numpy())
    if seen is not None:
        left, top, right, bottom = seen
        x, y = np.arange(picture.width) + 0.5, np.arange(picture.height) + 0.5
        inside = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
        pixels = np.where(inside[..., None], pixels, UNSEEN * pixels)
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
