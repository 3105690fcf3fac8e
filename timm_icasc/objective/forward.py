"""The ICASC terms of one batch: class scores, their gradients, attention maps, losses. Knows no trainer.

Shapes: `B` batch, `C` classes, `K` channels, `H W` feature grid of a layer, `h w` grid of the last layer.
"""
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from ..errors import ICASCError
from ..features.layout import FeatureLayer, ICASCLayers, Images, image_size_of
from ..features.module_state import hold_batch_norm_statistics, is_checkpointing, is_sharded
from ..features.tap import capture_features
from ..labels import ClassPair, select_classes, select_multilabel_classes
from ..losses import attention_consistency, attention_separation, resize_mask, target_mask
from .config import ICASCConfig
from .hard_samples import forward_most_confused
from .maps import class_attention, score_gradients

__all__ = ['ICASCOutput', 'icasc_forward']


@dataclass
class ICASCOutput:
    """What one forward pass with ICASC yields; per-sample values, nothing is averaged over the batch.

    Attributes:
        logits: Class scores `[B, C]`.
        terms: 'as_inner', 'as_last', 'ac', those of non-zero weight: `[B]` each, unweighted.
        maps: 'target_inner', 'confused_inner', 'target_last', 'confused_last', those needed: `[B, H, W]` each.
        classes: The chosen class pair.

    With `share` below 1 terms, maps and classes are of the most confused samples alone, most confused first.
    """
    logits: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: ClassPair | None = None

    def weighted_sum(self, config: ICASCConfig) -> torch.Tensor:
        """`w_as_inner L_AS_inner + w_as_last L_AS_last + w_ac L_AC`, batch means of the terms; a scalar."""
        total = self.logits.new_zeros((), dtype=torch.float32 if self.logits.dtype != torch.float64 else None)
        for name, values in self.terms.items():
            total = total + config.weights[name] * values.mean()
        return total


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
        target: Class indices `[B]` or probabilities `[B, C]`, see `select_classes`; with `multilabel` `[B, C]` in {1
            present, 0 absent, -1 ignored}, see `select_multilabel_classes`.
        layers: The model's inner and last layer, from `resolve_layers`.
        config: Which terms, and how.
        inference: For evaluation: no graph before the first layer and constant channel weights (`capture_features`).
        multilabel: Whether the target is multi-label: `A^T` is the map of the sum of the present classes' scores.

    Returns:
        Logits, terms and maps, with their graph unless `inference`.
    """
    on = {name for name, weight in config.weights.items() if weight}
    if not on:
        return ICASCOutput(logits=model(images))
    order = 1 if inference else config.order
    if order == 2 and is_sharded(model):
        raise ICASCError(
            'order=2 does not work with fully_shard (FSDP2), which lets go of parameters that the second derivative '
            'needs: use `order=1`, or DistributedDataParallel.')
    inner_target, inner_confused, last_confused = bool(on & {'as_inner', 'ac'}), 'as_inner' in on, 'as_last' in on
    tapped = [layers.inner, layers.last] if inner_target else [layers.last]
    select = select_multilabel_classes if multilabel else select_classes
    if config.share < 1 and not inference:
        all_logits, images, logits, classes, features = forward_most_confused(
            model, images, target, tapped, order, config.share, select)
    else:
        with capture_features(model, tapped, order=order, inference=inference) as features:
            all_logits = logits = model(images)
        classes = select(logits, target)
    image_size = image_size_of(images)

    maps: dict[str, torch.Tensor] = {}

    def add_maps(which: str, cotangent: torch.Tensor, places: dict[str, FeatureLayer]) -> None:
        gradients = score_gradients(
            logits, cotangent, [features[layer.path] for layer in places.values()], create_graph=order == 2)
        for (place, layer), gradient in zip(places.items(), gradients, strict=True):
            maps[f'{which}_{place}'] = class_attention(
                config.attention, layer, features[layer.path], gradient, image_size)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if is_checkpointing(model):
            stack.enter_context(hold_batch_norm_statistics(model))
        add_maps('target', classes.target, {
            'last': layers.last, **({'inner': layers.inner} if inner_target else {})})
        if inner_confused or last_confused:
            add_maps('confused', classes.confused, {
                **({'last': layers.last} if last_confused else {}),
                **({'inner': layers.inner} if inner_confused else {})})
        if inference:
            maps = {name: values.detach() for name, values in maps.items()}

        mask_source = maps['target_last'] if config.mask_grad else maps['target_last'].detach()
        mask = target_mask(mask_source, config.sigma, config.omega, config.mask_scale)
        terms = {}
        if inner_target:
            inner_mask = resize_mask(mask, maps['target_inner'].shape[-2:])
        if inner_confused:
            terms['as_inner'] = attention_separation(maps['target_inner'], maps['confused_inner'], inner_mask)
        if last_confused:
            terms['as_last'] = attention_separation(maps['target_last'], maps['confused_last'], mask)
        if 'ac' in on:
            terms['ac'] = attention_consistency(maps['target_inner'], inner_mask, config.theta)
        terms = {name: torch.where(classes.valid, values, 0) for name, values in terms.items()}
    return ICASCOutput(logits=all_logits.detach() if inference else all_logits, terms=terms, maps=maps, classes=classes)
