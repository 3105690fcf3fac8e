"""Does a map stay with the object when the image is turned over or cropped, and is it elsewhere in other images?

Shapes: `B` batch, `K` classes drawn per image, `h w` grid of a layer, `H W` input size.
"""

import torch
import torch.nn.functional as F

from ..features.layout import ICASCLayers
from ..losses import SIGMA, attention_overlap
from ..objective.maps import attention_maps

__all__ = ['across_images', 'central_crop', 'map_robustness', 'region', 'region_iou', 'transformed_maps']

CROP = 0.75  # side of the crop as a share of the image's


def central_crop(x: torch.Tensor, share: float = CROP) -> torch.Tensor:
    """The middle of images or maps `[B, K, H, W]`, brought back to their size (bilinear)."""
    theta = torch.tensor([[share, 0., 0.], [0., share, 0.]], dtype=x.dtype, device=x.device).expand(
        len(x), -1, -1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode='bilinear', padding_mode='border', align_corners=False)


def region(maps: torch.Tensor, sigma: float = SIGMA) -> torch.Tensor:
    """Where a map has at least `sigma` of its maximum: `[..., H, W]`, nowhere for a map that is zero everywhere."""
    maximum = maps.amax((-2, -1), keepdim=True)
    return (maps >= sigma * maximum) & (maximum > 0)


def region_iou(a: torch.Tensor, b: torch.Tensor, sigma: float = SIGMA) -> torch.Tensor:
    """Intersection over union of the regions of two maps: `[..., H, W]` -> `[...]`.

    NaN where either map is zero everywhere, or not finite.
    """
    exists = [(m.amax((-2, -1)) > 0) & m.isfinite().all(-1).all(-1) for m in (a, b)]
    first, second = region(a, sigma), region(b, sigma)
    iou = (first & second).sum((-2, -1)) / (first | second).sum((-2, -1))
    return torch.where(exists[0] & exists[1], iou, torch.nan)


def across_images(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean correlation (Pearson) of each map with the maps of all other images, cell by cell.

    1 where the maps lie at the same place whatever the image shows, near 0 where their places have nothing in common.
    A map that follows objects lies between: photographs have them in the middle. Maps that do not look at the image
    pass the tests of flips and crops the better, the larger and the more central they are.

    Args:
        maps: `[M, h, w]`, of one grid.
        images: Number of the image that each map is of, `[M]`; two maps of one image are not held against each other.

    Returns:
        `[M]`, float64; NaN for a map that is equal everywhere or not finite, and where no other image has one.
    """
    cells = maps.double().flatten(1)
    centred = cells - cells.mean(1, keepdim=True)
    norm = centred.norm(dim=1)
    # What subtraction leaves of equal values is no map.
    valid = norm.isfinite() & (norm > 1e-6 * cells.norm(dim=1))
    unit = torch.where(valid[:, None], centred / norm[:, None], 0.)
    _, images = images.unique(return_inverse=True)
    own = unit.new_zeros(len(maps), unit.shape[1]).index_add_(0, images, unit)[images]
    own_count = unit.new_zeros(len(maps)).index_add_(0, images, valid.double())[images]
    count = valid.sum() - own_count
    others = unit.sum(0) - own
    return torch.where(valid & (count > 0), (unit * others).sum(1) / count, torch.nan)


def transformed_maps(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        layers: ICASCLayers,
        method: str = 'ach',
        layer: str = 'last',
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Maps of transformed images, each beside the image's map of the same part; arguments as of `map_robustness`.

    Returns:
        'flip': the map of the mirrored image, mirrored back, and the image's map; 'crop': the map of the image's
        middle, enlarged, and the middle of the image's map; `[B, K, h, w]` each.
    """
    def maps_of(x: torch.Tensor) -> torch.Tensor:
        return attention_maps(model, x, classes, method=method, layer=layer, layers=layers)

    return {
        'flip': (maps_of(images.flip(-1)).flip(-1), maps),
        'crop': (maps_of(central_crop(images)), central_crop(maps))}


def map_robustness(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        layers: ICASCLayers,
        method: str = 'ach',
        layer: str = 'last',
        sigma: float = SIGMA,
) -> dict[str, torch.Tensor]:
    """Likeness of the maps of an image and of its transformed copies, where both show the same part of it.

    Args:
        model: Classifier, run in evaluation mode; its training flags are restored.
        images: `[B, 3, H, W]`.
        maps: Of the images, `[B, K, h, w]`: what `attention_maps` makes with the arguments that follow.
        classes: Whose maps, `[B, K]`.
        layers: From `resolve_layers`.
        method: Of `attention.METHODS`.
        layer: 'last' or 'inner'.
        sigma: Threshold of the regions, as a fraction of a map's maximum.

    Returns:
        'flip_overlap', 'flip_iou', 'crop_overlap', 'crop_iou': `[B, K]` each, likeness of the pairs of
        `transformed_maps`: histogram intersection (`losses.attention_overlap`) and `region_iou`, 1 for equal maps.
    """
    return {
        f'{name}_{measure}': value
        for name, (a, b) in transformed_maps(
            model, images, maps, classes, layers, method, layer).items()
        for measure, value in (('overlap', attention_overlap(a, b)), ('iou', region_iou(a, b, sigma)))}
