"""Fully connected CRF on a small grid, by exact mean-field inference (Krähenbühl and Koltun, NeurIPS 2011).

Their lattice approximates the sums over all pairs of pixels; on the grid of a segmentation network's scores (41 x 41
for 321 pixels) there are few enough pixels to take the sums as they stand.

Shapes: `B` batch, `C` classes, `h w` grid, `n = h w` pixels.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ['CRFParameters', 'mean_field', 'pairwise_kernel']


@dataclass(frozen=True)
class CRFParameters:
    """Weights and widths of the two Gaussian kernels, Eq. 3 of Krähenbühl and Koltun.

    The defaults are those that Seed, Expand and Constrain (Kolesnikov and Lampert, 2016) trains with on a grid of 41 x
    41: 80 and 3 pixels at full size, divided by 12.

    Attributes:
        appearance_weight: Weight of the kernel over position and colour.
        appearance_width: Its standard deviation over positions, in cells of the grid.
        color_width: Its standard deviation over colours, in levels of 0 to 255.
        smoothness_weight: Weight of the kernel over position alone.
        smoothness_width: Its standard deviation, in cells of the grid.
        iterations: Mean-field updates.
    """
    appearance_weight: float = 10.
    appearance_width: float = 80 / 12
    color_width: float = 13.
    smoothness_weight: float = 3.
    smoothness_width: float = 3 / 12
    iterations: int = 10


def _normalised(squared_distance: torch.Tensor) -> torch.Tensor:
    """Gaussian of squared distances in widths, `[B, n, n]`, normalised; no pixel acts on itself."""
    kernel = torch.exp(-0.5 * squared_distance)
    kernel.diagonal(dim1=1, dim2=2).zero_()
    # An isolated pixel has no neighbours to be normalised by.
    scale = kernel.sum(2).clamp_min(torch.finfo(kernel.dtype).tiny).rsqrt()
    return scale[:, :, None] * kernel * scale[:, None, :]


def pairwise_kernel(images: torch.Tensor, parameters: CRFParameters) -> torch.Tensor:
    """`sum_m w_m k_m(f_i, f_j)` for every two pixels.

    Each kernel is normalised by the square roots of its two pixels' sums, as in Krähenbühl and Koltun (ICML 2013), so
    that pixels at the border count as much as those inside.

    Args:
        images: Colours on the grid, `[B, 3, h, w]`, 0 to 255.
        parameters: Weights and widths.

    Returns:
        `[B, n, n]`, symmetric, zeros on the diagonal, in the precision of `images`.
    """
    batch, _, height, width = images.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    position = torch.stack([y, x], -1).reshape(1, -1, 2).to(images)
    distance = torch.cdist(position, position).square()
    color = images.flatten(2).transpose(1, 2) / parameters.color_width
    appearance = _normalised(
        distance / parameters.appearance_width ** 2 + torch.cdist(color, color).square())
    smoothness = _normalised(distance / parameters.smoothness_width ** 2)
    return parameters.appearance_weight * appearance + parameters.smoothness_weight * smoothness


@torch.no_grad()
def mean_field(
        log_probabilities: torch.Tensor,
        images: torch.Tensor,
        parameters: CRFParameters = CRFParameters(),
) -> torch.Tensor:
    """The CRF's marginals with Potts compatibility: `Q_i(l) ~ exp(-U_i(l) + sum_j k(f_i, f_j) Q_j(l))`.

    Equal to Algorithm 1 of Krähenbühl and Koltun with `mu(l, l') = [l != l']`, up to a factor that does not depend on
    the label.

    Args:
        log_probabilities: Scores of a network after log-softmax, `-U`, `[B, C, h, w]`.
        images: The image at that size, `[B, 3, h, w]`, 0 to 255.
        parameters: Weights, widths and number of updates.

    Returns:
        `Q`, `[B, C, h, w]`, summing to 1 over the classes; without gradient.
    """
    kernel = pairwise_kernel(images.to(log_probabilities), parameters)
    unary = log_probabilities.flatten(2)
    q = F.softmax(unary, 1)
    for _ in range(parameters.iterations):
        q = F.softmax(unary + q @ kernel, 1)
    return q.unflatten(2, log_probabilities.shape[-2:])
