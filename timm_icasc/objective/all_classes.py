"""Gradients of many classes at once, where the class scores are linear in the pooled feature.

Shapes: `B` batch, `N` classes asked for, `C` classes, `K` channels, `H W` feature grid of a layer.
"""
from collections.abc import Iterator

import torch
import torch.nn as nn

from ..attention import METHODS, class_score
from ..features.images import ImageSize, PatchGrid
from ..features.layout import FeatureLayer
from ..features.meta import random_tensor
from ..features.owner import owners

__all__ = ['pooled_gradients']

# Of the largest gradient: rounding of a matrix product in single precision, and nothing else.
TOLERANCE = 1e-5


def _head_weights(model: nn.Module, classes: int, channels: int) -> Iterator[torch.Tensor]:
    """Weights `[C, K]` of what may be the classifier, a linear layer or a 1 x 1 convolution."""
    told = [get() for _, get in owners(model, 'get_classifier') if callable(get)]
    for module in told or list(model.modules())[::-1]:
        weight = getattr(module, 'weight', None)
        is_matrix = isinstance(weight, torch.Tensor) and weight.ndim > 1  # those of norms are vectors
        if is_matrix and weight.flatten(1).shape == (classes, channels):
            yield weight.detach().flatten(1)


def _is_linear_in_pool(
        weight: torch.Tensor,
        logits: torch.Tensor,
        feature: torch.Tensor,
        layer: FeatureLayer,
        image_size: ImageSize,
) -> bool:
    """Whether the gradient of a random mix of scores is that of `weight @ mean_ij F + b`, at every pixel.

    One backward pass, of scores mixed differently in each image.
    """
    generator = torch.Generator().manual_seed(0)
    mix = random_tensor(logits.shape, generator).to(logits)
    gradient, = torch.autograd.grad(logits, feature, mix, retain_graph=True)
    found = layer.to_nchw(gradient, image_size)
    expected = (mix.to(weight) @ weight)[:, :, None, None] / found[0, 0].numel()
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def pooled_gradients(
        model: nn.Module,
        method: str,
        logits: torch.Tensor,
        indices: torch.Tensor,
        feature: torch.Tensor,
        layer: FeatureLayer,
        image_size: ImageSize,
) -> torch.Tensor | None:
    """Gradients of every class asked for, of a network that ends in global average pool and linear layer.

    There, `dY^c / dF_k,ij = W_ck / Z` at every pixel, whatever the image. Whether it is so is looked at, not assumed.

    Args:
        model: The classifier.
        method: Of `attention.METHODS`; one whose weights are means of the gradient over the grid.
        logits: Class scores, `[B, C]`, with a graph to the feature.
        indices: Classes, `[B, N]`.
        feature: In the layer's own layout.
        layer: Where it was taken.
        image_size: The images' height and width.

    Returns:
        `[B, N, K, 1, 1]`, the same at all pixels; None where the scores are not linear in the pooled feature, or the
        method needs every pixel.
    """
    row = METHODS[method]
    is_precise = logits.dtype == feature.dtype and logits.dtype in (torch.float32, torch.float64)
    reads_means = row.area_normalised and not isinstance(image_size, PatchGrid)
    if not reads_means or not is_precise or not logits.requires_grad:
        return None
    weight = next(_head_weights(model, logits.shape[1], layer.channels), None)
    if weight is None or not _is_linear_in_pool(weight, logits, feature, layer, image_size):
        return None
    if row.score is class_score:
        gradients = weight[indices]
    else:
        chosen = torch.zeros_like(logits)
        gradients = torch.stack([
            row.score(logits, chosen.scatter(1, column[:, None], 1.)) @ weight
            for column in indices.unbind(1)], 1)
    return gradients[..., None, None] / layer.to_nchw(feature, image_size)[0, 0].numel()
