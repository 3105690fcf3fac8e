"""Class-specific attention maps from one feature map and the gradient of a class score (Wang et al., ICCV 2019).

Shapes: `...` any leading dimensions (usually the batch, `B`), `C` classes, `K` channels, `H W` feature grid.
`Z = H * W`.

Every map is the rectified, weighted sum of the features, `A = ReLU(sum_k w_k F_k)`; the methods differ in the weights
`w_k`, of a channel or of each of its pixels, that they read from the gradient `G = dY^c / dF` of the class score `Y^c`
(before softmax or sigmoid), and one in the score. All functions of features and gradients are differentiable in both
arguments, work per sample, accept leading dimensions that broadcast (gradients `[C, B, K, H, W]` of several classes
with features `[B, K, H, W]`), compute in at least float32, and hand a NaN on.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ._precision import at_least_float32, full_precision
from .errors import ICASCError

__all__ = [
    'METHODS', 'Method', 'channel_weighted', 'channel_weighted_signed', 'check_method',
    'class_score', 'contrasted_score', 'grad_cam', 'grad_cam_plus_plus', 'hires_cam', 'layer_cam', 'trainable_methods',
    'xgrad_cam',
]

# Of Finer-CAM: how many classes a class is held against, and how strongly; those of its authors' own aggregate.
COMPARED_CLASSES = 3
COMPARISON_STRENGTH = 0.6


def _rectified_sum(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`ReLU(sum_k w_k F_k)`: weights `[..., K]`, features `[..., K, H, W]` -> `[..., H, W]`."""
    # Autocast would run the contraction in half precision, where the small products of early training vanish.
    with full_precision(features.device):
        if weights.ndim > 2 and features.ndim > 4 and features.shape[-4] == 1:  # of many classes, one matrix product
            return torch.einsum('...nk,...khw->...nhw', weights, features.squeeze(-4)).relu()
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


def channel_weighted_signed(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Eq. 2 of signed features, read as twice as many that are not: `[ReLU(F), ReLU(-F)]`, gradients `[G, -G]`.

    `A = 1/Z sum_k [(sum_ij ReLU(G_k,ij)) ReLU(F_k) + (sum_ij ReLU(-G_k,ij)) ReLU(-F_k)]`: a value below 0 argues for
    the class where the gradient says that a higher one would lower the score. Where `F >= 0` it is `channel_weighted`,
    with its derivatives. No summand is negative, so none silences another. A map is zero if and only if no channel has
    a gradient and a feature of the same sign, at the same pixel or not: `G_k,ij F_k,mn <= 0` for all `k, i, j, m, n`.
    One channel with gradients of both signs and any feature, or features of both signs and any gradient, makes a map.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, not normalised.
    """
    features, gradients = at_least_float32(features), at_least_float32(gradients)
    # Not ReLU: at 0, where that has no derivative, Eq. 2's is the identity's.
    positive = torch.where(features < 0, 0, features)
    return (
        _rectified_sum(gradients.relu().mean((-2, -1)), positive)
        + _rectified_sum((-gradients).relu().mean((-2, -1)), (-features).relu()))


def hires_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """HiResCAM (Draelos and Carin, 2020): `A = ReLU(sum_k G_k F_k)`, each pixel weighted by its own gradient.

    Not of a feature that is read through a LayerNorm of each pixel alone, as transformers' blocks do: the scale of such
    a feature changes no score, so that the sum over the channels is zero, and the map what rounding leaves of it.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, in the units of the score; not normalised.
    """
    return (at_least_float32(gradients) * at_least_float32(features)).sum(-3).relu()


def layer_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """LayerCAM (Jiang et al., 2021): `A = ReLU(sum_k ReLU(G_k) F_k)`, HiResCAM of the positive gradients.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, in the units of the score; not normalised.
    """
    return hires_cam(features, gradients.relu())


def xgrad_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """XGrad-CAM (Fu et al., 2020): `w_k = sum_ij G_k,ij F_k,ij / sum_ij F_k,ij`, the gradient where the feature is.

    A channel whose values add up to zero, or cancel to what rounding leaves of them, has no weight. Of features that
    are not negative only an empty channel does.

    Args:
        features: Feature map `F`, `[..., K, H, W]`.
        gradients: Gradient `G` of one class score with respect to `F`, `[..., K, H, W]`.

    Returns:
        Attention map `[..., H, W]`, values >= 0, not normalised.
    """
    features, gradients = at_least_float32(features), at_least_float32(gradients)
    total, magnitude = features.sum((-2, -1)), features.abs().sum((-2, -1))
    precision = torch.finfo(features.dtype)
    cancelled = total.abs() < (precision.eps * magnitude).clamp(min=precision.tiny)
    weights = (gradients * features).sum((-2, -1)) / torch.where(cancelled, 1, total)
    return _rectified_sum(torch.where(cancelled, 0, weights), features)


def class_score(logits: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """The cotangent of the chosen classes' own score, `Y^c`: as it is.

    Args:
        logits: Class scores, `[B, C]`.
        cotangent: Which classes, `[B, C]`: the score is `(logits * cotangent).sum(1)`.
    """
    return cotangent


def contrasted_score(logits: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """The cotangent of Finer-CAM's score (Zhang et al., 2025): `Y^c - 0.6 mean_d Y^d`, what tells `c` from its like.

    `d` are the three other classes whose scores are nearest to that of `c`; all others where there are fewer. Several
    chosen classes count as one of their mean score. Without a class to be held against (all are chosen, or all other
    scores infinite) the score is zero, and with it the map.

    Args:
        logits: Class scores, `[B, C]`.
        cotangent: Which classes, `[B, C]`, values >= 0.

    Returns:
        `[B, C]`: the score is its product with the logits, summed over the classes.

    Raises:
        ValueError: A single class, which has none to be compared with.
    """
    if logits.shape[1] < 2:
        raise ValueError(
            '`finer_cam` holds a class against others, and the model has one: take another `method`.')
    scores, chosen = at_least_float32(logits.detach()), cotangent != 0
    mass = cotangent.sum(1, keepdim=True)
    own = torch.where(chosen, scores * cotangent, 0).sum(1, keepdim=True)
    own = own / torch.where(mass > 0, mass, 1)
    distances, nearest = (scores - own).abs().masked_fill(chosen, torch.inf).topk(
        min(COMPARED_CLASSES, logits.shape[1] - 1), dim=1, largest=False)
    compared = torch.zeros_like(cotangent).scatter(
        1, nearest, distances.isfinite().to(cotangent.dtype))
    count = compared.sum(1, keepdim=True)
    contrast = cotangent - COMPARISON_STRENGTH * mass * compared / count.clamp(min=1)
    return torch.where(count > 0, contrast, 0)


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        function: Makes maps `[..., H, W]` of features and gradients `[..., K, H, W]`, those of `score`.
        title: What figures and help texts call it.
        trainable: Whether it may be trained with: its weights are read from the gradients alone, so that order 1 holds
            them constant, and its score is the class's own. The others are to look at and to measure.
        area_normalised: Whether its weights are means over the grid, so that a map scales with `1/Z`.
        score: Which score the gradients are of: makes its cotangent `[B, C]` of the class scores and of the cotangent
            that picks the class, `[B, C]` each. The class score unless stated.
        in_paper: Whether the paper's figures show it beside `ach`, or it is that (Figs. 2, 4, 5 and 7).
    """
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    title: str
    trainable: bool
    area_normalised: bool
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = class_score
    in_paper: bool = False


# Every attention mechanism: what options, checks and figures know of them, they read here. A gradient for `function` is
# taken of `score`: `objective.maps.score_gradients` does both.
METHODS: dict[str, Method] = {
    'ach': Method(
        channel_weighted, 'ach (Eq. 2)', trainable=True, area_normalised=True, in_paper=True),
    'grad_cam': Method(
        grad_cam, 'Grad-CAM (Eq. 1)', trainable=True, area_normalised=True, in_paper=True),
    'grad_cam_plus_plus': Method(
        grad_cam_plus_plus, 'Grad-CAM++', trainable=False, area_normalised=False, in_paper=True),
    'ach_signed': Method(channel_weighted_signed, 'ach, signed (Eq. 2)', trainable=True, area_normalised=True),
    'hires_cam': Method(hires_cam, 'HiResCAM', trainable=True, area_normalised=False),
    'layer_cam': Method(layer_cam, 'LayerCAM', trainable=True, area_normalised=False),
    'xgrad_cam': Method(xgrad_cam, 'XGrad-CAM', trainable=False, area_normalised=False),
    'finer_cam': Method(grad_cam, 'Finer-CAM', trainable=False, area_normalised=True, score=contrasted_score),
}


def check_method(method: str) -> None:
    """Raise ICASCError where there is no such row in `METHODS`."""
    if not isinstance(method, str) or method not in METHODS:
        raise ICASCError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")


def trainable_methods() -> dict[str, Method]:
    """The rows of `METHODS` that ICASC trains with."""
    return {name: method for name, method in METHODS.items() if method.trainable}
