"""The ICASC terms of one batch: class scores, their gradients, attention maps, losses. Knows no trainer.

Shapes: `B` batch, `C` classes, `K` channels, `H W` feature grid of a layer, `h w` grid of the last layer.
"""
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from ..errors import ICASCError, LayerResolutionError
from ..features.images import Images, ImageSize, check_images, image_size_of, recordable
from ..features.layout import ICASCLayers
from ..features.module_state import check_shards, hold_batch_norm_statistics, is_sharded, survey
from ..features.outputs import scores_of
from ..features.tap import capture_features, check_batch
from ..features.wrappers import check_model, check_wrappers
from ..labels import ClassPair, kind_by_flag
from ..losses import resize_mask, target_mask
from .config import TERMS, ICASCConfig, Term
from .hard_samples import forward_most_confused
from .maps import class_attention, score_gradients

__all__ = ['ICASCOutput', 'icasc_forward']


@dataclass
class ICASCOutput:
    """What one forward pass with ICASC yields; per-sample values, nothing is averaged over the batch.

    Attributes:
        logits: Class scores `[B, C]`.
        terms: By their names in `config.TERMS`, those of non-zero weight: `[B]` each, unweighted.
        maps: 'target_inner', 'confused_inner', 'target_last', 'confused_last', those needed: `[B, H, W]` each; the
            target's with `multilabel_maps='per_class'` `[B, P, H, W]`, one for each class of the image that has most
            (`ClassPair.one_by_one`).
        classes: The chosen class pair.

    With `share` below 1 terms, maps and classes are of the most confused samples alone, most confused first.
    """
    logits: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: ClassPair | None = None

    def weighted_sum(self, config: ICASCConfig) -> torch.Tensor:
        """Sum of the terms' batch means, each times its weight; a scalar."""
        total = self.logits.new_zeros(
            (), dtype=torch.float32 if self.logits.dtype != torch.float64 else None)
        for name, values in self.terms.items():
            total = total + config.weights[name] * values.mean()
        return total


def _class_maps(
        scores: torch.Tensor,
        features: Mapping[str, torch.Tensor],
        cotangents: Mapping[str, torch.Tensor],
        layers: ICASCLayers,
        needed: Collection[str],
        config: ICASCConfig,
        image_size: ImageSize,
        create_graph: bool,
) -> dict[str, torch.Tensor]:
    """Of 'target' and 'confused', those in `cotangents`: the maps that are needed, by one backward pass for each."""
    maps: dict[str, torch.Tensor] = {}
    for which, cotangent in cotangents.items():
        places = [place for place in ('last', 'inner') if f'{which}_{place}' in needed]
        chosen = [getattr(layers, place) for place in places]
        if not chosen:
            continue
        gradients = score_gradients(
            config.attention, scores, cotangent, [features[layer.path] for layer in chosen],
            create_graph)
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


def _term_values(
        terms: Sequence[Term],
        maps: Mapping[str, torch.Tensor],
        config: ICASCConfig,
) -> dict[str, torch.Tensor]:
    masks = _target_masks(maps, config)
    return {term.name: term.values(maps, masks, config) for term in terms}


def _mean_over_classes(
        values: Sequence[dict[str, torch.Tensor]],
        targets: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Each term's mean over the classes of an image, `[B]`, from `values` and cotangents of the first class, ...."""
    if len(values) == 1:
        return values[0]
    has = torch.stack([target.any(1) for target in targets])
    return {
        name: torch.where(has, torch.stack([each[name] for each in values]), 0).sum(0)
        / has.sum(0).clamp(min=1) for name in values[0]}


def _check_arguments(
        model: nn.Module,
        images: Images,
        layers: ICASCLayers,
        config: ICASCConfig,
) -> None:
    """Raise where an argument is of another kind, as paths of layers or a dictionary of parameters."""
    check_model(model)
    check_images(images)
    if not isinstance(layers, ICASCLayers):
        raise LayerResolutionError(f'layers must be the answer of resolve_layers(model, layers), got {layers!r}.')
    if not isinstance(config, ICASCConfig):
        raise ICASCError(f'config must be an ICASCConfig, got {type(config).__name__}.')


def _check_processes(model: nn.Module, order: int, per_class: bool) -> None:
    """Raise where a backward pass would lack parameters, or wait for passes that other processes do not make."""
    check_shards(model)
    check_wrappers(model)
    if order == 2 and is_sharded(model):
        raise ICASCError(
            'order=2 does not work with fully_shard (FSDP2), which lets go of parameters that the second derivative '
            'needs: use `order=1`, or DistributedDataParallel.')
    if per_class and (survey(model).synchronised or is_sharded(model)):
        raise ICASCError(
            "`multilabel_maps='per_class'` takes as many backward passes as an image of the batch has classes, another "
            'number in each process: it does not work with SyncBatchNorm or fully_shard (FSDP2). Use '
            "`multilabel_maps='joint'`, or DistributedDataParallel without SyncBatchNorm.")


@contextmanager
def _recording(model: nn.Module) -> Iterator[None]:
    """Gradients are recorded whatever the caller has switched off; recomputed BatchNorm updates nothing."""
    with torch.inference_mode(False), torch.enable_grad(), hold_batch_norm_statistics(model):
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
        multilabel: Whether the target is multi-label: `A^T` is the map of the sum of the present classes' scores, or
            (`config.multilabel_maps`, but with `inference`) there is one for each of them.

    Returns:
        Logits, terms and maps, with their graph unless `inference`.
    """
    _check_arguments(model, images, layers, config)
    terms = [term for term in TERMS if config.weights[term.name]]
    if not terms:
        return ICASCOutput(logits=scores_of(model, images))
    if not inference:
        config.check_trainable()
    labels, order = kind_by_flag(multilabel), 1 if inference else config.order
    per_class = multilabel and config.multilabel_maps == 'per_class' and not inference
    _check_processes(model, order, per_class)
    images, target = images if inference else recordable(images), recordable(target)
    needed = {'target_last', *(name for term in terms for name in term.needs)}  # the mask is the last layer's
    tapped = [layers.inner, layers.last] if 'target_inner' in needed else [layers.last]
    if config.share < 1 and not inference:
        all_logits, images, logits, classes, features = forward_most_confused(
            model, images, target, tapped, order, config.share, labels)
    else:
        with capture_features(model, tapped, order, inference, run_plain=inference) as features:
            all_logits = logits = scores_of(model, images)
            classes = labels.select(logits, target, 'confused' if inference else config.rival)
        check_batch(features, logits)

    with _recording(model):
        targets = classes.one_by_one() if per_class else [classes.target]
        first = {'target': targets[0], 'confused': classes.confused}
        sets = [
            _class_maps(
                logits, features, cotangents, layers, needed, config, image_size_of(images),
                order == 2)
            for cotangents in (first, *({'target': target} for target in targets[1:]))]
        maps = {name: values.detach() if inference else values for name, values in sets[0].items()}
        values = _mean_over_classes(
            [_term_values(terms, {**maps, **own}, config) for own in ({}, *sets[1:])], targets)
        values = {name: torch.where(classes.valid, value, 0) for name, value in values.items()}
        if per_class:
            maps.update({name: torch.stack([own[name] for own in sets], 1) for name in maps if 'target' in name})
    return ICASCOutput(all_logits.detach() if inference else all_logits, values, maps, classes)
