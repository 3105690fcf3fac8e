"""Seed, Expand and Constrain (Kolesnikov and Lampert, ECCV 2016): a segmentation network from cues and image labels.

Shapes: `B` batch, `C` classes with the background as class 0, `h w` grid, `n = h w` pixels.
"""
import torch

__all__ = ['boundary_loss', 'expansion_loss', 'rank_pooling', 'seeding_loss']

SMALLEST = 1e-5  # of a probability, inside logarithms

DECAY_PRESENT, DECAY_ABSENT, DECAY_BACKGROUND = 0.996, 0., 0.999


def seeding_loss(probabilities: torch.Tensor, cues: torch.Tensor) -> torch.Tensor:
    """Eq. 2 of SEC: `-1/|S| sum_c sum_(u in S_c) log f_u,c`, the mean over the cues of an image.

    Args:
        probabilities: `f`, `[B, C, h, w]`.
        cues: `[B, C, h, w]`, 1 where pixel `u` is a cue of class `c`, else 0.

    Returns:
        `[B]`; 0 without cues.
    """
    total = (cues * probabilities.clamp_min(SMALLEST).log()).sum((1, 2, 3))
    return -total / cues.sum((1, 2, 3)).clamp_min(1)


def rank_pooling(values: torch.Tensor, decay: float) -> torch.Tensor:
    """Global weighted rank pooling, Eq. 3 of SEC: `sum_j d^(j-1) v_(j) / sum_j d^(j-1)` with `v_(1)` the largest.

    Args:
        values: `[..., n]`.
        decay: `d` in [0, 1]: 0 is maximum pooling, 1 average pooling.

    Returns:
        `[...]`.
    """
    weights = decay ** torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    return (values.sort(-1, descending=True).values * weights).sum(-1) / weights.sum()


def expansion_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Eq. 4 of SEC: present classes and the background must fill some of the image, absent classes none of it.

    Args:
        probabilities: `f`, `[B, C, h, w]`, background first.
        labels: `[B, C - 1]`, 1 for classes in the image, 0 for absent ones, -1 for ignored ones.

    Returns:
        `[B]`.
    """
    flat = probabilities.flatten(2)
    present, absent = (labels > 0).to(flat), (labels == 0).to(flat)
    inside = rank_pooling(flat[:, 1:], DECAY_PRESENT).clamp_min(SMALLEST).log()
    outside = (1 - rank_pooling(flat[:, 1:], DECAY_ABSENT)).clamp_min(SMALLEST).log()
    background = rank_pooling(flat[:, 0], DECAY_BACKGROUND).clamp_min(SMALLEST).log()
    return (
        -(present * inside).sum(1) / present.sum(1).clamp_min(1)
        - (absent * outside).sum(1) / absent.sum(1).clamp_min(1) - background)


def boundary_loss(probabilities: torch.Tensor, refined: torch.Tensor) -> torch.Tensor:
    """Eq. 5 of SEC: `1/n sum_u sum_c Q_u,c log(Q_u,c / f_u,c)`, to the image's own boundaries.

    Args:
        probabilities: `f`, `[B, C, h, w]`.
        refined: `Q` of a fully connected CRF over `f` and the image (`crf.mean_field`), taken as constant.

    Returns:
        `[B]`, >= 0 up to the floor inside the logarithms.
    """
    ratio = refined.clamp_min(SMALLEST).log() - probabilities.clamp_min(SMALLEST).log()
    return (refined * ratio).sum(1).mean((1, 2))
