"""Where pretrained weights come from: the Hub if it answers, files, also those in other libraries' names."""
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from timm.models import load_state_dict

from ..errors import HubError
from ..hub.failures import check_reachable

__all__ = ['go_offline_unless_the_hub_answers', 'pretrained_source', 'rename_to_timm']

# EfficientNet-PyTorch's names inside a block -> timm's; the first block of each network has no expansion.
_INVERTED_RESIDUAL = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2', '_project_conv': 'conv_pwl',
    '_bn2': 'bn3', '_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}

_DEPTHWISE_SEPARABLE = {
    '_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2',
    '_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}

_OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}


def go_offline_unless_the_hub_answers() -> None:
    """Without a network, the Hub's client repeats its attempts for a minute; cached weights load at once either way."""
    try:
        check_reachable('')
    except HubError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def rename_to_timm(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict in timm's names; one in names that are not known here is returned as it is.

    Known: EfficientNet and EfficientNet-Lite of EfficientNet-PyTorch and its descendants (`_blocks.7._bn0`), for timm's
    `tf_efficientnet_*` and `tf_efficientnet_lite*`. A stage of theirs ends where the width changes.
    """
    if '_blocks.0._project_conv.weight' not in state_dict:
        return state_dict
    blocks = sorted({int(name.split('.')[1]) for name in state_dict if name.startswith('_blocks.')})
    places, stage, index, previous = {}, -1, 0, None
    for block in blocks:
        width = state_dict[f'_blocks.{block}._project_conv.weight'].shape[0]
        stage, index = (stage, index + 1) if width == previous else (stage + 1, 0)
        places[block], previous = f'blocks.{stage}.{index}', width
    renamed = {}
    for name, value in state_dict.items():
        if name.startswith('_blocks.'):
            _, block, layer, *rest = name.split('.')
            inverted = f'_blocks.{block}._expand_conv.weight' in state_dict
            layer = (_INVERTED_RESIDUAL if inverted else _DEPTHWISE_SEPARABLE)[layer]
            renamed['.'.join([places[int(block)], layer, *rest])] = value
        else:
            layer, *rest = name.split('.')
            renamed['.'.join([_OUTSIDE[layer], *rest])] = value
    return renamed


def pretrained_source(path: str | Path) -> dict[str, Any]:
    """What to overlay on a `pretrained_cfg` so that timm takes the weights of a file, whatever head they have.

    Args:
        path: Weights in timm's names, or in names that `rename_to_timm` knows.
    """
    if Path(path).suffix.lower() not in ('.npz', '.npy'):  # those are read by the model's own code
        state_dict = load_state_dict(str(path))
        renamed = rename_to_timm(state_dict)
        if renamed is not state_dict:
            return {'state_dict': renamed, 'num_classes': -1}
    return {'file': str(path), 'num_classes': -1}
