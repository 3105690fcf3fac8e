"""How well attention maps tell classes apart, measured on held-out images."""
from dataclasses import replace
from typing import Dict, Iterable, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .layers import resolve_layers
from .losses import attention_overlap
from .modules import evaluation_mode
from .objective import ICASCConfig, icasc_forward

__all__ = ['evaluate_attention']


def evaluate_attention(
        model: nn.Module,
        batches: Iterable[Tuple[torch.Tensor, torch.Tensor]],
        config: Optional[ICASCConfig] = None,
        layers: Optional[Sequence[str]] = None,
) -> Dict[str, float]:
    """Separability and consistency of a model's attention, without training: means over the images.

    The most confusing class is the non-target class of highest probability for the model at hand.

    Args:
        model: Classifier; put in evaluation mode for the time of the call, each module's flag is restored.
        batches: Pairs of images `[B, 3, height, width]` and class indices `[B]`.
        config: Attention method and mask; the weights of the terms do not matter.
        layers: Module paths (inner, last) instead of the automatic choice.

    Returns:
        - 'overlap_inner', 'overlap_last': histogram intersection of the target's and the confused class's map in
          [0, 1], over images where both maps exist (`losses.attention_overlap`)
        - 'as_inner', 'as_last', 'ac': the loss terms (Eqs. 3 and 5)
        - 'zero_maps': share of images in which one of the four maps is zero everywhere
    """
    config = replace(config or ICASCConfig(), weight_as_inner=1., weight_as_last=1., weight_ac=1.)
    columns: Dict[str, list] = {}
    with evaluation_mode(model):
        for images, target in batches:
            output = icasc_forward(
                model, images, target, resolve_layers(model, layers, tuple(images.shape[1:])), config, leaves=True)
            values = dict(output.terms)
            for place in ('inner', 'last'):
                values[f'overlap_{place}'] = attention_overlap(
                    output.maps[f'target_{place}'], output.maps[f'confused_{place}'])
            values['zero_maps'] = torch.stack([m.sum((1, 2)) == 0 for m in output.maps.values()]).any(0).float()
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    return {name: torch.cat(values).nanmean().item() for name, values in columns.items()}
