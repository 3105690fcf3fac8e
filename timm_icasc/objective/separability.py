"""How well attention maps tell classes apart, measured on held-out images."""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn

from ..errors import ICASCError, TargetError
from ..features.images import Images, input_size
from ..features.layout import ICASCLayers
from ..features.module_state import evaluation_mode
from ..features.outputs import check_order
from ..features.resolve import resolve_layers
from ..labels import MULTI, SINGLE, LabelKind
from ..losses import attention_overlap
from .config import ICASCConfig
from .forward import icasc_forward

__all__ = ['evaluate_attention', 'separability']


def separability(
        model: nn.Module,
        images: Images,
        target: torch.Tensor,
        layers: ICASCLayers,
        config: ICASCConfig,
        labels: LabelKind = SINGLE,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Separability and consistency of one batch, image by image, in the mode that the model is in.

    Args:
        model: Classifier.
        images: `[B, 3, height, width]`, or a dictionary of NaFlex patches.
        target: Class indices `[B]`, or `[B, C]` of `labels.MULTI`.
        layers: From `resolve_layers`.
        config: Attention method and mask; the weights of the terms do not matter.
        labels: The kind of the targets.

    Returns:
        Logits `[B, C]`, and the measures of `evaluate_attention`, `[B]` each, NaN where an image has no present or no
        absent class.
    """
    config = config.with_weights(1.)
    output = icasc_forward(
        model, images, target, layers, config, inference=True, multilabel=labels is MULTI)
    values = dict(output.terms)
    for place in ('inner', 'last'):
        values[f'overlap_{place}'] = attention_overlap(
            output.maps[f'target_{place}'], output.maps[f'confused_{place}'])
    values['zero_maps'] = torch.stack([m.sum((1, 2)) == 0 for m in output.maps.values()]).any(0).float()
    valid = output.classes.valid
    return output.logits, {
        name: torch.where(valid, value, torch.nan) for name, value in values.items()}


def _moved(x: Any, device: torch.device) -> Any:
    """What lies on a device, or elsewhere, on this one; anything else as it is."""
    return x.to(device) if hasattr(x, 'to') else x


def _on_device(batch: Any, device: torch.device) -> tuple[Images, torch.Tensor]:
    """The images of a batch and their targets.

    Raises:
        ICASCError: It is no pair.
        TargetError: No tensor can be made of the targets.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = type(batch).__name__
        if isinstance(batch, Mapping):
            got = f'a dictionary of {list(batch)}'
        elif isinstance(batch, (tuple, list)):
            got = f'{len(batch)} items'
        raise ICASCError(
            f"`batches` must hold pairs of images and targets, got {got}: [(images, target)] makes them of one batch, "
            f"((b['image'], b['label']) for b in loader) of dictionaries.")
    images, target = batch
    if isinstance(images, dict):
        images = {name: _moved(x, device) for name, x in images.items()}
    try:
        target = torch.as_tensor(target) if isinstance(target, (list, tuple)) else target
    except (RuntimeError, TypeError, ValueError) as e:  # names, or rows of different lengths
        raise TargetError(
            f'`batches`: targets must be class indices [B], or [B, C] of several classes, got {target!r}.') from e
    return _moved(images, device), _moved(target, device)


def evaluate_attention(
        model: nn.Module,
        batches: Iterable[tuple[Images, torch.Tensor | Sequence[int]]],
        config: ICASCConfig | None = None,
        layers: ICASCLayers | Sequence[str] | None = None,
        labels: LabelKind = SINGLE,
) -> dict[str, float]:
    """Separability and consistency of a model's attention, without training: means over the images.

    The most confusing class is the non-target class of highest probability for the model at hand. Multi-label images
    without a present or without an absent class are left out.

    Args:
        model: Classifier; put in evaluation mode for the time of the call, each module's flag is restored.
        batches: Pairs of images `[B, 3, height, width]`, or dictionaries of NaFlex patches, and class indices `[B]`,
            or `[B, C]` of `labels.MULTI`: tensors on any device, or targets as lists.
        config: Attention method and mask; the weights of the terms do not matter.
        layers: From `resolve_layers`, or module paths (inner, last), instead of the automatic choice.
        labels: The kind of the targets.

    Returns:
        - 'overlap_inner', 'overlap_last': histogram intersection of the target's and the confused class's map in
          [0, 1], over images where both maps exist (`losses.attention_overlap`)
        - the loss terms, by their names in `objective.config.TERMS` (Eqs. 3 and 5)
        - 'zero_maps': share of images in which one of the four maps is zero everywhere

    Raises:
        ICASCError: Class scores are NaN or infinite, there is no image, or a batch is no pair.
        TargetError: Targets that are none.
    """
    columns: dict[str, list] = {}
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for batch in batches:
            images, target = _on_device(batch, device)
            resolved = resolve_layers(model, layers, input_size(images))
            logits, values = separability(
                model, images, target, resolved, config or ICASCConfig(), labels)
            check_order(logits)
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    if not columns:
        raise ICASCError('`batches` holds no image.')
    return {name: torch.cat(values).nanmean().item() for name, values in columns.items()}
