"""The mask and the loss terms of ICASC (Wang et al., ICCV 2019, section 3), one value per sample.

Shapes: `B` batch, `C` classes, `H W` feature grid. Maps and masks `[B, H, W]` can also be `[B, K, H, W]`, as
`attention_maps` makes them. No function averages over the batch: take the mean outside. The modules are classification
losses, beside the terms.
"""
import copy

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from ._precision import at_least_float32
from .errors import ICASCError

__all__ = [
    'ClassWeightedLoss', 'MASK_SCALES', 'MultiLabelSoftMarginLoss', 'OMEGA', 'SIGMA', 'THETA', 'attention_consistency',
    'attention_overlap', 'attention_separation', 'multilabel_soft_margin', 'resize_mask', 'target_mask',
]

SIGMA, OMEGA, THETA = 0.55, 100., 0.8  # the paper's, Eqs. 4 and 5

MASK_SCALES = ('max', 'raw')


def _exists(total: torch.Tensor) -> torch.Tensor:
    """Whether a sum or maximum of attention is more than nothing; NaN is, so that it shows."""
    # No epsilon: maps of 1e-11 occur (LayerScale at initialisation), and each is as good as a map of 1. Only what
    # is below the smallest normal number counts as zero: it has lost digits, and its reciprocal may overflow.
    return ~(total < torch.finfo(total.dtype).tiny)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """`numerator / denominator` where the denominator exists, else 0 with zero gradient."""
    exists = _exists(denominator)
    return torch.where(exists, numerator / torch.where(exists, denominator, 1), 0)


def _check_float(name: str, maps: torch.Tensor) -> None:
    """Raise ICASCError for whole numbers, as of a picture."""
    if not maps.is_floating_point():
        raise ICASCError(f'`{name}` must be floating point, got {maps.dtype}: `{name}.float()`.')


def _as_float(name: str, maps: torch.Tensor) -> torch.Tensor:
    """Maps in at least float32; whole numbers are refused."""
    _check_float(name, maps)
    return at_least_float32(maps)


def _check_grids(**maps: torch.Tensor) -> None:
    """Raise ICASCError where maps lie on different grids or have other axes: torch would repeat one over the other.

    A single cell would be taken for all cells, a mask `[B, H, W]` beside maps `[B, K, H, W]` for that of other images.
    """
    (first, one), *others = maps.items()
    for name, other in others:
        if other.ndim != one.ndim:
            raise ICASCError(
                f'`{name}` must have the {one.ndim} axes of `{first}`, {tuple(one.shape)}, got {tuple(other.shape)}.')
        if other.shape[-2:] != one.shape[-2:]:
            raise ICASCError(
                f'`{name}` must lie on the grid of `{first}`, {tuple(one.shape)}, got {tuple(other.shape)}: '
                f'resize_mask({name}, {first}.shape[-2:]) brings it there.')


def target_mask(
        target_map: torch.Tensor,
        sigma: float = SIGMA,
        omega: float = OMEGA,
        scale: str = 'max',
) -> torch.Tensor:
    """Soft mask over the region that the last layer attends to for the target class, Eq. 4.

    `M = 1 / (1 + exp(-omega (A - sigma max_ij A)))` with `A` the target's attention map at the last layer.

    Args:
        target_map: Attention map `A^T_last`, `[B, H, W]`, values >= 0.
        sigma: Threshold as a fraction of the map's maximum.
        omega: Steepness of the threshold.
        scale: 'max' divides each sample's map by its maximum first, so the steepness does not depend on the scale of
            the weights; 'raw' is the formula as printed.

    Returns:
        Mask `[B, H, W]` in [0, 1]. A map without any attention gives 0.5 everywhere, as the formula does.

    Raises:
        ICASCError: A map of whole numbers.
    """
    if scale not in MASK_SCALES:
        raise ValueError(f"scale must be one of {MASK_SCALES}, got '{scale}'.")
    target_map = _as_float('target_map', target_map)
    maximum = target_map.amax((-2, -1), keepdim=True)
    if scale == 'max':
        return torch.sigmoid(
            omega * (_ratio(target_map, maximum) - sigma * _exists(maximum).to(target_map.dtype)))
    return torch.sigmoid(omega * (target_map - sigma * maximum))


def resize_mask(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring the last layer's mask to the grid of the inner layer (bilinear).

    Args:
        mask: Mask `[B, H, W]`.
        grid: Rows and columns of the inner layer's grid.

    Returns:
        Mask `[B, *grid]`, values in the range of the input's.

    Raises:
        ICASCError: A mask of whole numbers, for another grid than its own.
    """
    if tuple(mask.shape[-2:]) == tuple(grid):
        return mask
    _check_float('mask', mask)
    masks = mask.reshape(-1, 1, *mask.shape[-2:])
    masks = F.interpolate(masks, size=tuple(grid), mode='bilinear', align_corners=False)
    return masks.reshape(*mask.shape[:-2], *grid)


def attention_separation(
        target_map: torch.Tensor,
        confused_map: torch.Tensor,
        mask: torch.Tensor,
) -> torch.Tensor:
    """Attention separation loss, Eq. 3: `L_AS = 2 sum_ij(min(A^T, A^Conf) M) / sum_ij(A^T + A^Conf)`.

    Args:
        target_map: Attention map `A^T` of the ground-truth class, `[B, H, W]`, values >= 0.
        confused_map: Attention map `A^Conf` of the most confusing class at the same layer, `[B, H, W]`, values >= 0.
        mask: Target mask of the last layer on this layer's grid, `[B, H, W]`, in [0, 1].

    Returns:
        `[B]` in [0, 1]; 0 where the maps do not overlap inside the mask, and where both are zero.

    Raises:
        ICASCError: Different grids, or a map of whole numbers.
    """
    _check_grids(target_map=target_map, confused_map=confused_map, mask=mask)
    target_map = _as_float('target_map', target_map)
    confused_map = _as_float('confused_map', confused_map)
    mask = at_least_float32(mask)
    overlap = 2 * (torch.minimum(target_map, confused_map) * mask).sum((-2, -1))
    return _ratio(overlap, (target_map + confused_map).sum((-2, -1)))


def attention_consistency(
        inner_map: torch.Tensor,
        mask: torch.Tensor,
        theta: float = THETA,
) -> torch.Tensor:
    """Attention consistency loss, Eq. 5: `L_AC = theta - sum_ij(A^T_inner M) / sum_ij A^T_inner`.

    Args:
        inner_map: Attention map of the ground-truth class at the inner layer, `[B, H, W]`, values >= 0.
        mask: Target mask of the last layer on the inner grid, `[B, H, W]`, in [0, 1].
        theta: Offset; it shifts the value, not the gradient.

    Returns:
        `[B]` in [theta - 1, theta]; `theta` where the inner map is zero.

    Raises:
        ICASCError: Different grids, or a map of whole numbers.
    """
    _check_grids(inner_map=inner_map, mask=mask)
    inner_map, mask = _as_float('inner_map', inner_map), at_least_float32(mask)
    return theta - _ratio((inner_map * mask).sum((-2, -1)), inner_map.sum((-2, -1)))


def attention_overlap(target_map: torch.Tensor, confused_map: torch.Tensor) -> torch.Tensor:
    """Histogram intersection of two maps, a measure for evaluation: `sum_ij min(A^T / sum A^T, A^Conf / sum A^Conf)`.

    Unlike Eq. 3 it cannot be lowered by making one of the maps small: each counts as a distribution over the grid.

    Args:
        target_map: Attention map of the ground-truth class, `[B, H, W]`, values >= 0.
        confused_map: Attention map of the most confusing class, `[B, H, W]`, values >= 0.

    Returns:
        `[B]` in [0, 1]: 1 for proportional maps, 0 for disjoint ones; NaN where either map is zero everywhere, since
        a missing map is neither, and where its sum is too large a number for its type.

    Raises:
        ICASCError: Different grids, or a map of whole numbers.
    """
    _check_grids(target_map=target_map, confused_map=confused_map)
    target_map = _as_float('target_map', target_map)
    confused_map = _as_float('confused_map', confused_map)
    target_mass, confused_mass = target_map.sum((-2, -1)), confused_map.sum((-2, -1))
    overlap = torch.minimum(
        _ratio(target_map, target_mass[..., None, None]),
        _ratio(confused_map, confused_mass[..., None, None]),
    ).sum((-2, -1))
    exist = [_exists(mass) & ~mass.isinf() for mass in (target_mass, confused_mass)]
    return torch.where(exist[0] & exist[1], overlap, torch.nan)


def multilabel_soft_margin(
        logits: torch.Tensor,
        target: torch.Tensor,
        weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-label soft-margin loss: `-mean_c [y_c log s(x_c) + (1 - y_c) log(1 - s(x_c))]`, `s` the sigmoid.

    The mean is over the classes that count for the sample: those ignored have no loss, and do not lower the others'.
    Without ignored classes it is `torch.nn.MultiLabelSoftMarginLoss`.

    Args:
        logits: Class scores `[B, C]`.
        target: 1 (present), 0 (absent) or -1 (ignored), `[B, C]`.
        weights: Factors of the classes' losses where they are absent and where they are present, `[2, C]`.

    Returns:
        `[B]`, >= 0; 0 where every class is ignored.

    Raises:
        ICASCError: `weights` of another shape.
    """
    logits = at_least_float32(logits)
    if weights is not None and weights.shape != (2, logits.shape[1]):
        raise ICASCError(
            f'`weights` must be [2, C], of absent and of present classes, C = {logits.shape[1]}, got '
            f'{tuple(weights.shape)}: torch.stack([weights, weights]) makes them of one weight for each class.')
    counted = (target >= 0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype).clamp(min=0), reduction='none')
    if weights is not None:
        losses = losses * torch.where(target > 0, weights[1], weights[0])
    return (losses * counted).sum(1) / counted.sum(1).clamp(min=1)


class MultiLabelSoftMarginLoss(nn.Module):
    """`torch.nn.MultiLabelSoftMarginLoss` that leaves ignored classes (-1) out; the mean over the batch.

    Args:
        weights: Factors of the classes where they are absent and where they are present, `[2, C]`.
    """

    def __init__(self, weights: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer('weights', weights, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits `[B, C]` against targets `[B, C]`."""
        return multilabel_soft_margin(logits, target, self.weights).mean()


def _of_each_image(criterion: nn.Module) -> nn.Module:
    """A criterion that does not take the mean over the batch: `[B]`, or `[B, C]` of binary losses."""
    if isinstance(criterion, LabelSmoothingCrossEntropy):
        return nn.CrossEntropyLoss(label_smoothing=criterion.smoothing, reduction='none')
    if isinstance(criterion, SoftTargetCrossEntropy):
        return nn.CrossEntropyLoss(reduction='none')
    if not hasattr(criterion, 'reduction'):
        raise TypeError(f'`criterion`: {type(criterion).__name__} has no `reduction`, so its images cannot be weighed.')
    criterion = copy.copy(criterion)
    criterion.reduction = 'none'
    return criterion


class ClassWeightedLoss(nn.Module):
    """A classification loss in which each image counts as much as its class: `1/B sum_i w(i) l_i`.

    `w(i)` is the weight of the image's class; of a mixed image `sum_c m_ic w_c`, with `m_i` the shares of the classes
    in it, label smoothing taken off. The denominator is the number of images, not the sum of their weights: so the
    mean over processes, or over parts of a batch, is the loss of them all.

    Args:
        criterion: One of timm's losses for one class per image, or one with a `reduction` that 'none' switches off.
        weights: Of the classes, `[C]`, with mean 1 over the training images.
        smoothing: Label smoothing that class probabilities, as targets, contain.
    """

    def __init__(self, criterion: nn.Module, weights: torch.Tensor, smoothing: float = 0.):
        super().__init__()
        self.sum_classes = getattr(criterion, 'sum_classes', False)
        self.criterion = _of_each_image(criterion)
        if self.sum_classes:
            self.criterion.sum_classes = False
        self.smoothing = smoothing
        self.register_buffer('weights', weights, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits `[B, C]` against class indices `[B]` or probabilities `[B, C]`."""
        if self.weights.shape != logits.shape[1:]:
            raise ICASCError(
                f'`weights` must be [C], C = {logits.shape[1]}, got {tuple(self.weights.shape)}: one for each class.')
        losses = self.criterion(logits, target)
        if losses.ndim == 2:
            losses = losses.sum(1) if self.sum_classes else losses.mean(1)
        if target.ndim == 1:
            weights = self.weights[target]
        else:  # no matrix product, which autocast would round
            mixed = (target * self.weights).sum(1)
            weights = (mixed - self.smoothing * self.weights.mean()) / (1 - self.smoothing)
        return (weights * losses).mean()
