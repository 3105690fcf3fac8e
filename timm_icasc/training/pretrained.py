"""Where pretrained weights come from: the Hub if it answers, files, also those in other libraries' names."""
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
import torch.nn as nn
from safetensors.torch import load_file

from ..errors import HubError, ICASCError
from ..hub.failures import check_reachable

__all__ = [
    'checked_loading', 'classifier_size', 'go_offline_unless_the_hub_answers', 'pretrained_source',
    'rename_to_timm',
]

# Where checkpoints keep their weights, the averaged ones first.
WRAPPERS = (
    'state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model', 'net', 'student', 'teacher',
    'module', 'weights')

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


def _unwrapped(content: dict[str, Any], names: Collection[str]) -> dict[str, torch.Tensor]:
    """The state dict inside a checkpoint, without the prefix that another program's module put before each name.

    Args:
        content: What the file holds.
        names: The model's own names.
    """
    while True:
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    prefixes = Counter(
        name[:len(name) - len(own)] for own in names for name in tensors if name.endswith(own))
    prefix, found = max(prefixes.items(), key=lambda item: item[1], default=('', 0))
    if prefix and (not prefix.endswith('.') or found <= len(tensors.keys() & names)):
        return tensors
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _head_names(model: nn.Module) -> tuple[str, ...]:
    classifier = getattr(model, 'pretrained_cfg', {}).get('classifier') or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def classifier_size(state_dict: dict[str, torch.Tensor], model_name: str) -> int | None:
    """Number of logits, read from the weights of the head that the architecture names."""
    config = timm.get_pretrained_cfg(model_name, allow_unregistered=True)
    classifier = getattr(config, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier
    weight = state_dict.get(f'{classifier}.weight')
    return None if weight is None else len(weight)


def pretrained_source(path: str | Path, model_name: str, num_classes: int | None) -> dict[str, Any]:
    """What to overlay on a `pretrained_cfg` so that timm takes the weights of a file, its head where that fits.

    Args:
        path: Weights in timm's names, or in names that `rename_to_timm` knows, also deeper down in a checkpoint or
            below a prefix.
        model_name: timm's name of the architecture.
        num_classes: Number of classes wanted; the architecture's own when None.
    """
    if Path(path).suffix.lower() in ('.npz', '.npy'):  # those are read by the model's own code
        return {'file': str(path), 'num_classes': -1}
    with torch.device('meta'):
        model = timm.create_model(model_name, **({} if num_classes is None else {'num_classes': num_classes}))
    state_dict = rename_to_timm(_unwrapped(_read(path), model.state_dict().keys()))
    own = getattr(model, 'num_classes', num_classes)
    head = state_dict.get(f"{next(iter(_head_names(model)), '')}.weight")
    fits = head is not None and len(head) == own
    return {'state_dict': state_dict, 'num_classes': own if fits else -1, 'label_offset': 0}


def _read(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds; the averaged weights where it has some."""
    if str(path).endswith('.safetensors'):
        return load_file(str(path))
    content = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(content, dict):
        raise ICASCError(f"'{path}' holds a {type(content).__name__}, not a dictionary of weights.")
    return content


@contextmanager
def checked_loading(path: str | Path) -> Iterator[list[str]]:
    """Within, every model that loads a state dict must get all tensors but those of its head.

    timm takes what fits and logs the rest, so that a file of other names leaves the model as random as it was.

    Yields:
        A list that gets one line: how many tensors were loaded, and what became of the head.

    Raises:
        ICASCError: Other tensors than the head's are not in the file, with the first names of both sides.
    """
    told: list[str] = []
    original = nn.Module.load_state_dict

    def load(model: nn.Module, state_dict: dict[str, Any], strict: bool = True, **kwargs: Any):
        result = original(model, state_dict, strict=False, **kwargs)
        heads = tuple(f'{name}.' for name in _head_names(model))
        missing = [name for name in result.missing_keys if not name.startswith(heads or '\0')]
        total = len(model.state_dict())
        if missing:
            others = ', '.join(result.unexpected_keys[:3]) or 'nothing else'
            raise ICASCError(
                f"'{path}' lacks {len(missing)} of the {total} tensors of {type(model).__name__}, first "
                f'{", ".join(missing[:3])}; it has {others} instead. Are these weights of another architecture?')
        new = len(result.missing_keys)
        told.append(
            f'{total - new} of {total} tensors loaded from {path}'
            + (f', the head ({getattr(model, "num_classes", "?")} classes) is new' if new else ', the head too')
            + (f'; {len(result.unexpected_keys)} of the file are not of this model' if result.unexpected_keys else ''))
        return result

    nn.Module.load_state_dict = load
    try:
        yield told
    finally:
        nn.Module.load_state_dict = original
