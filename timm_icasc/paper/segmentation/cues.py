"""Localisation cues from a classifier's attention: a few pixels of each class in the image, and of the background.

Shapes: `B` batch, `C` classes of the classifier, `H W` its input size, `h w` grid of the cues.
"""
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from ...features.layout import ICASCLayers
from ...features.module_state import evaluation_mode
from ...features.outputs import class_scores
from ...objective.maps import attention_maps

__all__ = ['background_saliency', 'make_cues', 'seed_cues']

FOREGROUND = 0.2  # of the map's maximum (Zhou et al., CAM, 2016)

BACKGROUND = 0.1  # least salient share of the pixels

MEDIAN = 3


def background_saliency(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
) -> torch.Tensor:
    """`max_channel |d sum_(c present) Y^c / d image|` (Simonyan et al., 2014): what no class in the image depends on.

    Args:
        model: Classifier, in the mode it is in.
        images: `[B, 3, H, W]`.
        labels: `[B, C]`, > 0 for classes in the image.

    Returns:
        `[B, H, W]`, >= 0, after a median filter.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        score = (class_scores(model(images)) * (labels > 0)).sum()
        gradient, = torch.autograd.grad(score, images)
    saliency = gradient.abs().amax(1, keepdim=True)
    windows = F.unfold(F.pad(saliency, [MEDIAN // 2] * 4, mode='reflect'), MEDIAN)
    return windows.median(1).values.unflatten(1, images.shape[-2:])


def seed_cues(
        maps: torch.Tensor,
        saliency: torch.Tensor,
        labels: torch.Tensor,
        grid: tuple[int, int],
        foreground: float = FOREGROUND,
        background: float = BACKGROUND,
) -> torch.Tensor:
    """Cues on a grid: a pixel belongs to at most one class.

    A class has the pixels whose attention is at least `foreground` of its map's maximum; where two classes claim a
    pixel, the one with fewer pixels has it, as in SEC. The background has, of the pixels left over, those among the
    `background` share of least saliency.

    Args:
        maps: Attention of every class, `[B, C, a, b]`, on any grid; those of absent classes do not matter.
        saliency: `background_saliency`, `[B, H, W]`.
        labels: `[B, C]`, > 0 for classes in the image.
        grid: Rows and columns of the cues.
        foreground: Threshold as a fraction of the maximum.
        background: Share of the pixels.

    Returns:
        `[B, C + 1, *grid]`, 1 for a cue, else 0; background first.
    """
    batch, classes = labels.shape
    heats = F.interpolate(maps.float(), size=grid, mode='bilinear', align_corners=False)
    maximum = heats.amax((2, 3), keepdim=True)
    claims = (heats >= foreground * maximum) & (maximum > 0) & (labels > 0)[:, :, None, None]
    size = claims.sum((2, 3)).masked_fill(labels <= 0, grid[0] * grid[1] + 1)
    winner = torch.where(claims, size[:, :, None, None], grid[0] * grid[1] + 1).argmin(1)
    owned = claims & (
        torch.arange(classes, device=maps.device).view(1, -1, 1, 1) == winner[:, None])
    low = F.interpolate(saliency[:, None].float(), size=grid, mode='area').flatten(1)
    count = max(1, round(background * low.shape[1]))
    least = torch.zeros_like(low, dtype=torch.bool).scatter(
        1, low.topk(count, largest=False).indices, True)
    least = least.view(batch, 1, *grid) & ~claims.any(1, keepdim=True)
    return torch.cat([least, owned], 1).to(maps.dtype)


def make_cues(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        grid: tuple[int, int],
        method: str = 'ach',
        layers: ICASCLayers | Sequence[str] | None = None,
        foreground: float = FOREGROUND,
        background: float = BACKGROUND,
) -> torch.Tensor:
    """Cues of a batch of images from their image labels and a classifier.

    Args:
        model: Classifier with `C` logits.
        images: `[B, 3, H, W]`, normalised for it.
        labels: `[B, C]`, 1 for classes in the image.
        grid: Rows and columns of the cues.
        method: Of `attention.METHODS`.
        layers: From `resolve_layers`, or module paths (inner, last), instead of the automatic choice.
        foreground, background: See `seed_cues`.

    Returns:
        `[B, C + 1, *grid]`, 1 for a cue, else 0; background first.
    """
    with evaluation_mode(model):
        most = max(1, int((labels > 0).sum(1).max()))
        # The present classes first; what follows them in a row is not used.
        chosen = (labels > 0).int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        maps = attention_maps(model, images, chosen, method=method, layers=layers)
        saliency = background_saliency(model, images, labels)
    everything = maps.new_zeros(*labels.shape, *maps.shape[-2:]).scatter(
        1, chosen[:, :, None, None].expand_as(maps), maps)
    return seed_cues(everything, saliency, labels, grid, foreground, background)
