"""The ICASC terms of one batch: class scores, their gradients, attention maps, losses. Knows no trainer.

Shapes: `B` batch, `C` classes, `K` channels, `H W` feature grid of a layer, `h w` grid of the last layer.
"""
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from ..errors import ICASCError
from ..features.layout import ICASCLayers, Images, ImageSize, image_size_of
from ..features.module_state import hold_batch_norm_statistics, is_checkpointing, is_sharded
from ..features.tap import capture_features
from ..labels import KINDS, ClassPair
from ..losses import resize_mask, target_mask
from .config import TERMS, ICASCConfig
from .hard_samples import forward_most_confused
from .maps import class_attention, score_gradients

__all__ = ['ICASCOutput', 'icasc_forward']


@dataclass
class ICASCOutput:
    """What one forward pass with ICASC yields; per-sample values, nothing is averaged over the batch.

    Attributes:
        logits: Class scores `[B, C]`.
        terms: By their names in `config.TERMS`, those of non-zero weight: `[B]` each, unweighted.
        maps: 'target_inner', 'confused_inner', 'target_last', 'confused_last', those needed: `[B, H, W]` each.
        classes: The chosen class pair.

    With `share` below 1 terms, maps and classes are of the most confused samples alone, most confused first.
    """
    logits: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: ClassPair | None = None

    def weighted_sum(self, config: ICASCConfig) -> torch.Tensor:
        """Sum of the terms' batch means, each times its weight; a scalar."""
        total = self.logits.new_zeros((), dtype=torch.float32 if self.logits.dtype != torch.float64 else None)
        for name, values in self.terms.items():
            total = total + config.weights[name] * values.mean()
        return total


def _class_maps(
        scores: torch.Tensor,
        features: Mapping[str, torch.Tensor],
        classes: ClassPair,
        layers: ICASCLayers,
        needed: Collection[str],
        config: ICASCConfig,
        image_size: ImageSize,
        create_graph: bool,
) -> dict[str, torch.Tensor]:
    """The maps of `ICASCOutput` that are needed, one backward pass for each class of the pair."""
    maps: dict[str, torch.Tensor] = {}
    for which, cotangent in (('target', classes.target), ('confused', classes.confused)):
        places = [place for place in ('last', 'inner') if f'{which}_{place}' in needed]
        chosen = [getattr(layers, place) for place in places]
        if not chosen:
            continue
        gradients = score_gradients(scores, cotangent, [features[layer.path] for layer in chosen], create_graph)
        for place, layer, gradient in zip(places, chosen, gradients, strict=True):
            maps[f'{which}_{place}'] = class_attention(
                config.attention, layer, features[layer.path], gradient, image_size)
    return maps


def _target_masks(maps: Mapping[str, torch.Tensor], config: ICASCConfig) -> dict[str, torch.Tensor]:
    """Eq. 4 on the grid of each layer that has a map of the target."""
    source = maps['target_last'] if config.mask_grad else maps['target_last'].detach()
    masks = {'last': target_mask(source, config.sigma, config.omega, config.mask_scale)}
    if 'target_inner' in maps:
        masks['inner'] = resize_mask(masks['last'], maps['target_inner'].shape[-2:])
    return masks


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    """Gradients are recorded whatever the caller has switched off; recomputed BatchNorm updates nothing."""
    with torch.inference_mode(False), torch.enable_grad(), (
            hold_batch_norm_statistics(model) if is_checkpointing(model) else nullcontext()):
        yield


def icasc_forward(
        model: nn.Module,
        images: Images,
        target: torch.Tensor,
        layers: ICASCLayers,
        config: ICASCConfig,
        inference: bool = False,
        multilabel: bool = False,
) -> ICASCOutput:
    """One forward pass, the gradients of two class scores in it, and the per-sample terms of Eq. 3 and 5.

    The score gradients stop at the inner layer: nothing before it is traversed. In training mode, BatchNorm behind
    the inner layer couples the samples of a batch, in the gradients as in the logits.

    Args:
        model: Classifier, possibly wrapped in DistributedDataParallel.
        images: `[B, 3, height, width]`, or a dictionary of NaFlex patches.
        target: Class indices `[B]` or probabilities `[B, C]`, see `labels.SINGLE`; with `multilabel` `[B, C]` in {1
            present, 0 absent, -1 ignored}, see `labels.MULTI`.
        layers: The model's inner and last layer, from `resolve_layers`.
        config: Which terms, and how.
        inference: For evaluation: no graph before the first layer and constant channel weights (`capture_features`).
        multilabel: Whether the target is multi-label: `A^T` is the map of the sum of the present classes' scores.

    Returns:
        Logits, terms and maps, with their graph unless `inference`.
    """
    labels = KINDS[multilabel]
    terms = [term for term in TERMS if config.weights[term.name]]
    if not terms:
        return ICASCOutput(logits=model(images))
    order = 1 if inference else config.order
    if order == 2 and is_sharded(model):
        raise ICASCError(
            'order=2 does not work with fully_shard (FSDP2), which lets go of parameters that the second derivative '
            'needs: use `order=1`, or DistributedDataParallel.')
    needed = {'target_last', *(name for term in terms for name in term.needs)}  # the mask is the last layer's
    tapped = [layers.inner, layers.last] if 'target_inner' in needed else [layers.last]
    if config.share < 1 and not inference:
        all_logits, images, logits, classes, features = forward_most_confused(
            model, images, target, tapped, order, config.share, labels)
    else:
        with capture_features(model, tapped, order=order, inference=inference) as features:
            all_logits = logits = model(images)
        classes = labels.select(logits, target)

    with _recording(model):
        maps = _class_maps(logits, features, classes, layers, needed, config, image_size_of(images), order == 2)
        if inference:
            maps = {name: values.detach() for name, values in maps.items()}
        masks = _target_masks(maps, config)
        values = {term.name: torch.where(classes.valid, term.values(maps, masks, config), 0) for term in terms}
    return ICASCOutput(
        logits=all_logits.detach() if inference else all_logits, terms=values, maps=maps, classes=classes)
