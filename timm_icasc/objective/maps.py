"""Class scores' gradients and the attention maps made of them, in training and at inference.

Shapes: `B` batch, `C` classes, `K` classes or channels, `H W` feature grid of a layer.
"""
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.utils.checkpoint import CheckpointError

from .._precision import at_least_float32
from ..attention import METHODS, check_method
from ..double_backward import features_only
from ..errors import ICASCError, check_count
from ..features.images import (
    Images,
    ImageSize,
    PatchGrid,
    check_images,
    image_size_of,
    input_size,
    recordable,
)
from ..features.layout import FeatureLayer, ICASCLayers
from ..features.module_state import check_reentrant, hold_batch_norm_statistics, looking_at
from ..features.outputs import scores_of, warn_of_probabilities
from ..features.resolve import resolve_layer
from ..features.tap import capture_features, check_batch
from ..features.wrappers import unwrap_model
from ..labels import class_indices
from .all_classes import pooled_gradients

__all__ = ['ScoredMaps', 'attention_maps', 'scored_maps']

Classes = torch.Tensor | Sequence[int] | int | None

# Gradients of a class score with respect to features are small (1/Z of a weight); half precision would flush them. It
# ends at 65,504, and the gradient of cosine scores times 100 (CLIP's) passes 64 in each feature. Neither the scores nor
# the features tell what precision the layers between them run in. A power of 2 changes no digit of the other types.
SCORE_SCALE = 32.


def score_gradients(
        method: str,
        logits: torch.Tensor,
        cotangent: torch.Tensor,
        features: Sequence[torch.Tensor],
        create_graph: bool,
) -> list[torch.Tensor]:
    """Gradients with respect to each feature, in at least float32, of the score that a method takes.

    Args:
        method: Of `attention.METHODS`; for its `class_attention`.
        logits: Class scores, `[B, C]`.
        cotangent: Picks the class, or the classes whose scores are added up, `[B, C]`.
        features: Features that the logits depend on.
        create_graph: Keep the gradients' own graph.

    Raises:
        ICASCError: The model checkpoints activations by itself, and runs other operations at order 2; or by reentrant
            checkpoints.
    """
    cotangent = METHODS[method].score(logits, cotangent)
    try:
        with check_reentrant(), features_only(logits):
            gradients = torch.autograd.grad(
                logits, features, cotangent * SCORE_SCALE, retain_graph=True,
                create_graph=create_graph)
    except CheckpointError as e:
        raise ICASCError(
            'order=2 does not work with a model that calls torch.utils.checkpoint by itself behind the inner layer: '
            'the recomputation would run other operations. Use `order=1`, or leave the checkpointing out.') from e
    return [at_least_float32(g) / SCORE_SCALE for g in gradients]


def class_attention(
        method: str,
        layer: FeatureLayer,
        feature: torch.Tensor,
        gradient: torch.Tensor,
        image_size: ImageSize,
) -> torch.Tensor:
    """Map `[B, H, W]` of a feature and the method's `score_gradients`, in the layer's own layout."""
    row = METHODS[method]
    maps = row.function(layer.to_nchw(feature, image_size), layer.to_nchw(gradient, image_size))
    if isinstance(image_size, PatchGrid) and row.area_normalised:
        own_area = image_size.valid.sum(1)[:, None, None]
        maps = maps * (maps[0].numel() / own_area)  # Z counts the patches of the image, not of the largest in the batch
    return maps


class ScoredMaps(NamedTuple):
    """What one forward pass tells of every image.

    Attributes:
        maps: `[B, K, h, w]`, values >= 0, not normalised.
        classes: Which class each is of, `[B, K]`.
        logits: Class scores, `[B, C]`.
    """
    maps: torch.Tensor
    classes: torch.Tensor
    logits: torch.Tensor


def _run(
        model: nn.Module,
        images: Images,
        layer: FeatureLayer,
        create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's feature, in its own layout, and the class scores."""
    with capture_features(
        model, [layer], order=2 if create_graph else 1, inference=not create_graph,
        run_plain=True) as features:
        if create_graph:
            logits = scores_of(model, recordable(images))
        else:  # without other processes, for which DistributedDataParallel would wait
            logits = scores_of(unwrap_model(model), images)
    check_batch(features, logits)
    return features[layer.path], logits


def scored_maps(
        model: nn.Module,
        images: Images,
        classes: Classes | Callable[[int], Classes] = None,
        topk: int = 5,
        method: str = 'grad_cam',
        layer: str | FeatureLayer = 'last',
        layers: ICASCLayers | Sequence[str] | None = None,
        create_graph: bool = False,
) -> ScoredMaps:
    """Maps and class scores from one forward pass; arguments and errors as of `attention_maps`.

    `classes` can also be a function that tells them by the number of class scores, which only the pass shows.
    """
    check_method(method)
    check_images(images)
    check_count('topk', topk)
    image_size = image_size_of(images)
    chosen = resolve_layer(model, layer, layers, input_size(images))
    # A look at a network is one in evaluation mode; part of a loss is what its training runs.
    with nullcontext() if create_graph else looking_at(model):
        feature, logits = _run(model, images, chosen, create_graph)
        with torch.enable_grad(), torch.inference_mode(False), hold_batch_norm_statistics(model):
            chosen_classes = classes(logits.shape[1]) if callable(classes) else classes
            indices = class_indices(chosen_classes, topk, logits)
            gradients = None
            if indices.shape[1] > 1 and not create_graph:
                gradients = pooled_gradients(
                    model, method, logits, indices, feature, chosen, image_size)
            if gradients is not None:
                grid = chosen.to_nchw(feature, image_size)
                result = METHODS[method].function(grid[:, None], gradients)
            else:
                maps = []
                for k in range(indices.shape[1]):
                    cotangent = torch.zeros_like(logits).scatter(1, indices[:, k:k + 1], 1.)
                    gradient, = score_gradients(method, logits, cotangent, [feature], create_graph)
                    maps.append(class_attention(method, chosen, feature, gradient, image_size))
                result = torch.stack(maps, 1)
    if not create_graph:
        result, logits = result.detach(), logits.detach()
        warn_of_probabilities(logits)
    return ScoredMaps(result, indices, logits)


def attention_maps(
        model: nn.Module,
        images: Images,
        classes: Classes = None,
        topk: int = 5,
        method: str = 'grad_cam',
        layer: str | FeatureLayer = 'last',
        layers: ICASCLayers | Sequence[str] | None = None,
        create_graph: bool = False,
        return_classes: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Class-specific attention maps of a classifier.

    A model in training mode is run in evaluation mode, and left as it was; with `create_graph` it runs in the mode it
    is in. Where the network ends in global average pool and linear layer, the maps of any number of classes take one
    matrix product; elsewhere a backward pass from the scores to the layer for each. `timm_icasc.explain` takes images
    as they are and gives maps of their size.

    Args:
        model: Classifier; a compiled one runs as the plain one that it was made of.
        images: `[B, 3, height, width]`, normalised as the model expects; or a dictionary of NaFlex patches.
        classes: Class indices: one for all, `[K]` for every image, or `[B, K]` (a label per image: `target[:, None]`);
            None for the `topk` predicted classes, highest first (`model(images).topk(topk).indices`).
        topk: Number of predicted classes where `classes` is None.
        method: 'ach' (Eq. 2), 'grad_cam' (Eq. 1), 'grad_cam_plus_plus', or another of `attention.METHODS`.
        layer: 'inner' or 'last', or the path of another module.
        layers: From `resolve_layers`, or module paths (inner, last), if the automatic choice is not wanted.
        create_graph: Keep the graph to the parameters, channel weights included, for use in a loss.
        return_classes: Also return which class each map is of.

    Returns:
        `[B, K, h, w]`, values >= 0, not normalised; detached unless `create_graph`. With `return_classes`, these and
        the class indices `[B, K]`.

    Raises:
        TargetError: `classes` of a wrong shape or out of range.
        LayerResolutionError: No such layer (`resolve_layers`).
    """
    found = scored_maps(model, images, classes, topk, method, layer, layers, create_graph)
    return (found.maps, found.classes) if return_classes else found.maps
