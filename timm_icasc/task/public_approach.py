"""How public re-implementations of ICASC went about it, rebuilt from its description: each defect can be had alone.

For the study of docs/evidence/cifar20.md, which asks what destroys the gain, and as the slow peer of `timm-icasc
bench`; not to train with. It shares the formulas with `objective` but none of its machinery: with no defect on, both
must come to the same loss and gradient, and the tests hold them to that.

Shapes: `B` batch, `C` classes, `H W` feature grid of a layer.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn

from ..attention import METHODS
from ..errors import ICASCError
from ..features.images import image_size_of, input_size
from ..features.layout import ICASCLayers
from ..features.module_state import hold_batch_norm_statistics
from ..features.outputs import scores_of
from ..features.tap import capture_features, check_batch
from ..labels import SINGLE
from ..losses import resize_mask, target_mask
from ..objective.config import TERMS, ICASCConfig
from ..objective.forward import ICASCOutput
from .icasc import ICASCTask

__all__ = ['DEFECTS', 'PublicApproachTask']

DEFECTS = {
    'constant-weights': 'gradients come from backward hooks without create_graph: the channel weights carry no '
                        'gradient, whatever the order (order 1 by another name, a reading of the paper and the default '
                        'here)',
    'summed-score': "the backward pass starts from the one-hot target times the scores of the class summed over the "
                    "batch, so that every image's map is scaled by the other images' scores, and turned over where "
                    'the sum is negative',
    'batch-sums': 'maps are divided by their maximum over the batch, the mask is held against that, and the sums of '
                  'the losses run over the batch: images with strong maps decide',
    'whole-backward': 'each class gradient is a backward pass through the whole model, whose parameter gradients are '
                      'thrown away: the same values, at a price',
}


def _score_gradients(
        model: nn.Module,
        logits: torch.Tensor,
        one_hot: torch.Tensor,
        features: list[torch.Tensor],
        create_graph: bool,
        defects: Sequence[str],
) -> list[torch.Tensor]:
    """Gradients of the scores that `one_hot` `[B, C]` picks with respect to each feature."""
    if 'summed-score' in defects:
        one_hot = one_hot * (one_hot * logits.detach()).sum()
    # To ask for them and drop them is what a backward pass and zero_grad() cost; .grad is left to the trainer.
    dropped = [p for p in model.parameters() if p.requires_grad] if 'whole-backward' in defects else []
    gradients = torch.autograd.grad(
        logits, [*features, *dropped], one_hot, retain_graph=True, create_graph=create_graph,
        allow_unused=True)
    return list(gradients[:len(features)])


def _as_one_sample(maps: torch.Tensor) -> torch.Tensor:
    """The maps `[B, H, W]` of a batch as one map `[1, B * H, W]`: what is per sample then runs over the batch."""
    return maps.flatten(0, 1)[None]


def _over_the_batch(maps: torch.Tensor) -> torch.Tensor:
    maximum = maps.amax()
    return _as_one_sample(maps / torch.where(maximum > 0, maximum, 1))


def _terms(
        maps: dict[str, torch.Tensor],
        config: ICASCConfig,
        defects: Sequence[str],
) -> dict[str, torch.Tensor]:
    """The terms in use from the four maps: `[B]` each, or `[1]` where the sums run over the batch."""
    inner_grid, last_shape = maps['target_inner'].shape[1:], maps['target_last'].shape
    if 'batch-sums' in defects:
        maps = {name: _over_the_batch(values) for name, values in maps.items()}
    source = maps['target_last'] if config.mask_grad else maps['target_last'].detach()
    mask = target_mask(source, config.sigma, config.omega, config.mask_scale)
    inner_mask = resize_mask(mask.reshape(last_shape), inner_grid)
    if 'batch-sums' in defects:
        inner_mask = _as_one_sample(inner_mask)
    masks = {'inner': inner_mask, 'last': mask}
    return {
        term.name: term.values(maps, masks, config) for term in TERMS if config.weights[term.name]}


def _forward(
        model: nn.Module,
        images: torch.Tensor,
        target: torch.Tensor,
        layers: ICASCLayers,
        config: ICASCConfig,
        defects: Sequence[str],
) -> ICASCOutput:
    """`objective.icasc_forward` with defects; all four maps, also those that no term needs."""
    order = 1 if 'constant-weights' in defects else config.order
    places = {'inner': layers.inner, 'last': layers.last}
    with capture_features(model, list(places.values()), order=order) as taps:
        logits = scores_of(model, images)
    check_batch(taps, logits)
    features = [taps[layer.path] for layer in places.values()]
    classes, image_size = SINGLE.select(logits, target), image_size_of(images)
    maps, method = {}, METHODS[config.attention]
    with hold_batch_norm_statistics(model):
        for which, one_hot in (('target', classes.target), ('confused', classes.confused)):
            gradients = _score_gradients(
                model, logits, method.score(logits, one_hot), features, order == 2, defects)
            for (place, layer), feature, gradient in zip(
                places.items(), features, gradients, strict=True):
                maps[f'{which}_{place}'] = method.function(
                    layer.to_nchw(feature, image_size), layer.to_nchw(gradient, image_size))
    terms = _terms(maps, config, defects)
    if 'batch-sums' not in defects:
        terms = {name: torch.where(classes.valid, values, 0) for name, values in terms.items()}
    return ICASCOutput(logits=logits, terms=terms, maps=maps, classes=classes)


class PublicApproachTask(ICASCTask):
    """`ICASCTask` with the defects of public re-implementations; single-label images.

    Args:
        model: The model to train.
        *args: As `ICASCTask`.
        defects: Which of `DEFECTS`; all of them by default, which is the public approach.
        **kwargs: As `ICASCTask`.
    """

    def __init__(
            self,
            model: nn.Module,
            *args: Any,
            defects: Sequence[str] = tuple(DEFECTS),
            **kwargs: Any,
    ):
        unknown = set(defects) - set(DEFECTS)
        if unknown:
            raise ValueError(f'defects are among {tuple(DEFECTS)}, got {sorted(unknown)}.')
        super().__init__(model, *args, **kwargs)
        if self.config.share < 1 or self.config.rival != 'confused':
            option = 'share' if self.config.share < 1 else 'rival'
            raise ICASCError(
                f'the public approach takes the whole batch, and the most confusing class: leave `{option}` out, or '
                f'`defects`.')
        self.defects = tuple(defects)

    def icasc_forward(self, input: torch.Tensor, target: torch.Tensor) -> ICASCOutput:
        return _forward(
            self.trainable_module, input, target, self.resolve_layers(input_size(input)),
            self.config, self.defects)
