"""The ICASC terms of one batch: class scores, their gradients, attention maps, losses. Knows no trainer.

Shapes: `B` batch, `C` classes, `K` channels, `H W` feature grid of a layer, `h w` grid of the last layer.
"""
import math
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Dict, List, Optional, Sequence, Union

import torch
import torch.nn as nn

from .attention import ATTENTION_METHODS
from .capture import capture_features, hold_batch_norm_statistics
from .errors import ICASCError
from .features import FeatureLayer, ICASCLayers
from .images import ImagePlane, Images, PatchGrid, image_plane, input_size
from .layers import resolve_layers
from .losses import MASK_SCALES, attention_consistency, attention_separation, resize_mask, target_mask
from .modules import is_checkpointing, is_sharded
from .precision import at_least_float32
from .share import forward_most_confused
from .targets import ClassPair, class_indices, select_classes, select_multilabel_classes
from .twice_differentiable import features_only

__all__ = ['ICASCConfig', 'ICASCOutput', 'attention_maps', 'icasc_forward']

# Gradients of a class score with respect to features are small (1/Z of a weight); half precision would flush them.
FP16_SCORE_SCALE = 1024.


@dataclass(frozen=True)
class ICASCConfig:
    """Parameters of the ICASC objective, Eq. 6: `L = L_C + L_AS_inner + L_AS_last + L_AC`.

    A term of weight 0 is not computed, nor is anything that it alone needs.

    Attributes:
        attention: 'ach' (Eq. 2) or 'grad_cam' (Eq. 1).
        order: 1 takes the channel weights as constants, at about a third of the extra cost; 2 lets them carry gradient
            (double backward). The paper does not say which. There are three readings: order 1, which the paper's claim
            to avoid higher-order derivatives in training favours; order 2; order 2 with `mask_grad`, the derivative of
            Eq. 6 as printed. With 'ach' and weights of 1 from the first step order 2 cost accuracy (docs/evidence.md).
        weight_as_inner: Weight of the separation term at the inner layer.
        weight_as_last: Weight of the separation term at the last layer.
        weight_ac: Weight of the consistency term.
        theta: Offset of the consistency term (Eq. 5).
        sigma: Threshold of the target mask as a fraction of the map's maximum (Eq. 4).
        omega: Steepness of the target mask (Eq. 4).
        mask_scale: 'max' divides the map by its maximum inside the mask, 'raw' does not (`losses.target_mask`).
        mask_grad: Whether the mask carries gradient; if not, it is a pseudo-label made by the last layer.
        share: Share of the batch, in (0, 1], that the terms are made of: its most confused samples (`share.py`). They
            run through the network twice; with order 2 that pays below about a third, with order 1 hardly.
    """
    attention: str = 'ach'
    order: int = 1
    weight_as_inner: float = 1.
    weight_as_last: float = 1.
    weight_ac: float = 1.
    theta: float = 0.8
    sigma: float = 0.55
    omega: float = 100.
    mask_scale: str = 'max'
    mask_grad: bool = False
    share: float = 1.

    def __post_init__(self):
        for name, choices in (
                ('attention', ('ach', 'grad_cam')),
                ('order', (1, 2)),
                ('mask_scale', MASK_SCALES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f'{name} must be one of {choices}, got {getattr(self, name)!r}.')
        for name in ('weight_as_inner', 'weight_as_last', 'weight_ac', 'theta', 'sigma', 'omega', 'share'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f'{name} must be a finite number, got {value!r}.')
            if value < 0:
                raise ValueError(f'{name} must be >= 0, got {value}.')
        if self.sigma > 1:
            raise ValueError(f'sigma is a fraction of the maximum, at most 1, got {self.sigma}.')
        if not 0 < self.share <= 1:
            raise ValueError(f'share must be above 0 and at most 1, got {self.share}.')

    @property
    def weights(self) -> Dict[str, float]:
        return {'as_inner': self.weight_as_inner, 'as_last': self.weight_as_last, 'ac': self.weight_ac}

    @classmethod
    def names(cls) -> List[str]:
        return [f.name for f in fields(cls)]


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
    terms: Dict[str, torch.Tensor] = field(default_factory=dict)
    maps: Dict[str, torch.Tensor] = field(default_factory=dict)
    classes: Optional[ClassPair] = None

    def weighted_sum(self, config: ICASCConfig) -> torch.Tensor:
        """`w_as_inner L_AS_inner + w_as_last L_AS_last + w_ac L_AC`, batch means of the terms; a scalar."""
        total = self.logits.new_zeros((), dtype=torch.float32 if self.logits.dtype != torch.float64 else None)
        for name, values in self.terms.items():
            total = total + config.weights[name] * values.mean()
        return total


def _score_gradients(
        logits: torch.Tensor,
        cotangent: torch.Tensor,
        features: Sequence[torch.Tensor],
        create_graph: bool,
) -> List[torch.Tensor]:
    """Gradients of the scores that `cotangent` `[B, C]` picks with respect to each feature, in at least float32."""
    scale = FP16_SCORE_SCALE if any(t.dtype == torch.float16 for t in (logits, *features)) else 1.
    with features_only():
        gradients = torch.autograd.grad(
            logits, features, cotangent * scale, retain_graph=True, create_graph=create_graph)
    return [at_least_float32(g) / scale for g in gradients]


def _attention(
        method: str,
        layer: FeatureLayer,
        feature: torch.Tensor,
        gradient: torch.Tensor,
        plane: ImagePlane,
) -> torch.Tensor:
    """Map `[B, H, W]` of a feature and a gradient in the layer's own layout."""
    maps = ATTENTION_METHODS[method](layer.to_nchw(feature, plane), layer.to_nchw(gradient, plane))
    if isinstance(plane, PatchGrid) and method != 'grad_cam_plus_plus':  # whose weights are sums, not means
        own_area = plane.valid.sum(1)[:, None, None]
        maps = maps * (maps[0].numel() / own_area)  # Z counts the patches of the image, not of the largest in the batch
    return maps


def icasc_forward(
        model: nn.Module,
        images: Images,
        target: torch.Tensor,
        layers: ICASCLayers,
        config: ICASCConfig,
        leaves: bool = False,
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
        leaves: For evaluation: no graph before the first layer and constant channel weights (`capture_features`).
        multilabel: Whether the target is multi-label: `A^T` is the map of the sum of the present classes' scores.

    Returns:
        Logits, terms and maps, with their graph unless `leaves`.
    """
    on = {name for name, weight in config.weights.items() if weight}
    if not on:
        return ICASCOutput(logits=model(images))
    order = 1 if leaves else config.order
    if order == 2 and is_sharded(model):
        raise ICASCError(
            'order=2 does not work with fully_shard (FSDP2), which lets go of parameters that the second derivative '
            'needs: use order=1 (--icasc-order 1), or DistributedDataParallel.')
    inner_target, inner_confused, last_confused = bool(on & {'as_inner', 'ac'}), 'as_inner' in on, 'as_last' in on
    tapped = [layers.inner, layers.last] if inner_target else [layers.last]
    select = select_multilabel_classes if multilabel else select_classes
    if config.share < 1 and not leaves:
        all_logits, images, logits, classes, features = forward_most_confused(
            model, images, target, tapped, order, config.share, select)
    else:
        with capture_features(model, tapped, order=order, leaves=leaves) as features:
            all_logits = logits = model(images)
        classes = select(logits, target)
    plane = image_plane(images)

    maps: Dict[str, torch.Tensor] = {}

    def add_maps(which: str, cotangent: torch.Tensor, places: Dict[str, FeatureLayer]) -> None:
        gradients = _score_gradients(
            logits, cotangent, [features[layer.path] for layer in places.values()], create_graph=order == 2)
        for (place, layer), gradient in zip(places.items(), gradients, strict=True):
            maps[f'{which}_{place}'] = _attention(config.attention, layer, features[layer.path], gradient, plane)

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
        if leaves:
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
    return ICASCOutput(logits=all_logits.detach() if leaves else all_logits, terms=terms, maps=maps, classes=classes)


def attention_maps(
        model: nn.Module,
        images: Images,
        classes: Union[torch.Tensor, Sequence[int], int, None] = None,
        topk: int = 5,
        method: str = 'ach',
        layer: str = 'last',
        layers: Optional[Sequence[str]] = None,
        create_graph: bool = False,
) -> torch.Tensor:
    """Class-specific attention maps of a classifier.

    Runs the model in the mode it is in; call `model.eval()` first for maps that do not depend on the batch.

    Args:
        model: Classifier.
        images: `[B, 3, height, width]`, normalised as the model expects; or a dictionary of NaFlex patches.
        classes: Class indices: one for all, `[K]` for every image, or `[B, K]` (a label per image: `target[:, None]`);
            None for the `topk` predicted classes, highest first (`model(images).topk(topk).indices`).
        topk: Number of predicted classes where `classes` is None.
        method: 'ach' (Eq. 2), 'grad_cam' (Eq. 1) or 'grad_cam_plus_plus'.
        layer: 'inner' or 'last'.
        layers: Module paths (inner, last), if the automatic choice is not wanted.
        create_graph: Keep the graph to the parameters, channel weights included, for use in a loss.

    Returns:
        `[B, K, h, w]`, values >= 0, not normalised; detached unless `create_graph`.

    Raises:
        TargetError: `classes` of a wrong shape or out of range.
        LayerResolutionError: No such layer (`resolve_layers`).
    """
    if method not in ATTENTION_METHODS:
        raise ValueError(f'method must be one of {tuple(ATTENTION_METHODS)}, got {method!r}.')
    if not isinstance(images, dict) and images.ndim != 4:
        raise ValueError(f'images must be [B, channels, height, width], got {tuple(images.shape)}.')
    if topk < 1:
        raise ValueError(f'topk must be at least 1, got {topk}.')
    if layer not in ('inner', 'last'):
        raise ValueError(f"layer must be 'inner' or 'last', got {layer!r}; name module paths in layers.")
    chosen: FeatureLayer = getattr(resolve_layers(model, layers, input_size(images)), layer)
    with capture_features(model, [chosen], order=2 if create_graph else 1, leaves=not create_graph) as features:
        logits = model(images)
    feature, plane = features[chosen.path], image_plane(images)
    with torch.enable_grad(), torch.inference_mode(False):
        indices = class_indices(classes, topk, logits)
        maps = []
        for k in range(indices.shape[1]):
            cotangent = torch.zeros_like(logits).scatter(1, indices[:, k:k + 1], 1.)
            gradient, = _score_gradients(logits, cotangent, [feature], create_graph)
            maps.append(_attention(method, chosen, feature, gradient, plane))
        result = torch.stack(maps, 1)
    return result if create_graph else result.detach()
