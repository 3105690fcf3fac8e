"""Class-specific attention maps from one feature map and the gradient of a class score (Wang et al., ICCV 2019).

Shapes: `...` any leading dimensions (usually the batch, `B`), `K` channels, `H W` feature grid. `Z = H * W`.

Every map is the rectified, channel-weighted sum of the features, `A = ReLU(sum_k w_k F_k)`; the methods differ in the
weights `w_k` that they read from the gradient `G = dY^c / dF` of the class score `Y^c` (before softmax or sigmoid).
All functions are differentiable in both arguments, work per sample, accept leading dimensions that broadcast
(gradients `[C, B, K, H, W]` of several classes with features `[B, K, H, W]`), and compute in at least float32.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ._precision import at_least_float32, full_precision

__all__ = [
    'ATTENTION_METHODS', 'METHODS', 'Method', 'channel_weighted', 'grad_cam', 'grad_cam_plus_plus', 'trainable_methods',
]


def _rectified_sum(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`ReLU(sum_k w_k F_k)`: weights `[..., K]`, features `[..., K, H, W]` -> `[..., H, W]`."""
    # Autocast would run the contraction in half precision, where the small products of early training vanish.
    with full_precision(features.device):
        return torch.einsum('...k,...khw->...hw', weights, features).relu()


def grad_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al., 2017), Eq. 1 of the paper: `w_k = 1/Z sum_ij G_k,ij`.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, in the units of score per `Z`; not normalised.
    """
    features, gradients = at_least_float32(features), at_least_float32(gradients)
    return _rectified_sum(gradients.mean((-2, -1)), features)


def grad_cam_plus_plus(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM++ (Chattopadhay et al., 2018), for evaluation (Table 2 of the paper).

    For a score `Y = exp(S)` with `G = dS/dF`, the pixel weights `G^2 / (2 G^2 + sum_ij F_k,ij G^3)` reduce to
    `1 / (2 + G sum_ij F_k,ij)` where `G != 0`, and `w_k` is their sum over the positive gradients. The reduced form
    has no powers of `G` to underflow. The common factor `exp(S)` of a sample's map is left out.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, not normalised.
    """
    features, gradients = at_least_float32(features), at_least_float32(gradients)
    denominator = 2 + gradients * features.sum((-2, -1), keepdim=True)
    # A pole of the pixel weight carries no information; only there is the division replaced.
    usable = denominator != 0
    pixel_weights = torch.where(usable, 1 / torch.where(usable, denominator, 1), 0)
    return _rectified_sum((pixel_weights * gradients.relu()).sum((-2, -1)), features)


def channel_weighted(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Channel-weighted attention `A_ch`, Eq. 2 of the paper: `A = 1/Z ReLU(sum_k (sum_ij ReLU(G_k,ij)) F_k)`.

    Only the positive gradients count, so a channel is weighted by the pixels at which it argues for the class.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, not normalised.
    """
    features, gradients = at_least_float32(features), at_least_float32(gradients)
    # mean = sum / Z; the positive factor 1/Z may be taken inside the rectifier.
    return _rectified_sum(gradients.relu().mean((-2, -1)), features)


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        function: Makes maps `[..., H, W]` of features and gradients `[..., K, H, W]`.
        title: What figures and help texts call it.
        trainable: Whether it may be trained with, and measured as a term; the others are for looking alone.
        area_normalised: Whether its weights are means over the grid, so that a map scales with `1/Z`.
    """
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    title: str
    trainable: bool
    area_normalised: bool


# Every attention mechanism: what options, checks and figures know of them, they read here.
METHODS: dict[str, Method] = {
    'ach': Method(channel_weighted, 'ach (Eq. 2)', trainable=True, area_normalised=True),
    'grad_cam': Method(grad_cam, 'Grad-CAM (Eq. 1)', trainable=True, area_normalised=True),
    'grad_cam_plus_plus': Method(grad_cam_plus_plus, 'Grad-CAM++', trainable=False, area_normalised=False),
}

# The functions alone; the public name from before there was a table.
ATTENTION_METHODS = {name: method.function for name, method in METHODS.items()}


def trainable_methods() -> dict[str, Method]:
    """The rows of `METHODS` that ICASC trains with."""
    return {name: method for name, method in METHODS.items() if method.trainable}
