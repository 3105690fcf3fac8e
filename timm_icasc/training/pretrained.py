"""Where pretrained weights come from: the Hub if it answers, files, also those in other libraries' names."""
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
import torch.nn as nn
from timm.models import clean_state_dict

from ..errors import HubError, ICASCError, first_of, one_line
from ..hub.failures import check_reachable
from ..runs.intact import harmless_types

__all__ = ['OF_JAX', 'create_from_file', 'go_offline_unless_the_hub_answers', 'read_weights', 'rename_to_timm']

OF_JAX = ('.npz', '.npy')  # which the code of a model reads itself

# Where training scripts put the weights inside a file, the ones to prefer first: averages, timm's, others'.
WRAPPERS = (
    'state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'net', 'teacher', 'student', '')

# EfficientNet-PyTorch's names inside a block -> timm's; the first block of each network has no expansion.
_INVERTED_RESIDUAL = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2', '_project_conv': 'conv_pwl',
    '_bn2': 'bn3', '_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}

_DEPTHWISE_SEPARABLE = {
    '_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2',
    '_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}

_OUTSIDE = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}


def go_offline_unless_the_hub_answers() -> str:
    """Without a network, the Hub's client repeats its attempts for a minute; cached weights load at once either way.

    Returns:
        Why the Hub is not asked; empty where it answers.
    """
    try:
        check_reachable('')
    except HubError as e:
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        return str(e).removeprefix(': ')
    return ''


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


def _find_tensors(content: Any, file: str) -> dict[str, Any]:
    """The state dict in what `file` holds: the content itself, or what lies under one of its names."""
    places = {'': content}
    if isinstance(content, dict):
        places.update((name, value) for name, value in content.items() if isinstance(value, dict))
    found = {
        name: value for name, value in places.items()
        if isinstance(value, dict)
        and any(isinstance(tensor, torch.Tensor) for tensor in value.values())}
    for name in WRAPPERS:
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    have = first_of(found or (content if isinstance(content, dict) else ()))
    raise ICASCError(
        f"{file} holds {'several sets of' if found else 'no'} tensors"
        f"{f' (it has: {have})' if have else ''}; save the model's state dict alone.")


def read_weights(path: str | Path, what: str = '--pretrained-path:') -> dict[str, torch.Tensor]:
    """The tensors of a file, in timm's names where `rename_to_timm` knows the file's.

    Args:
        path: Of torch or safetensors.
        what: What a message has before the path.

    Raises:
        ICASCError: The file cannot be read, or does not hold one state dict.
    """
    try:
        if Path(path).suffix.lower() == '.safetensors':
            content = safetensors.torch.load_file(path)
        else:
            with harmless_types():
                content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise ICASCError(f"{what} '{path}' cannot be read: {one_line(e)}") from e
    tensors = _find_tensors(content, f"{what} '{path}'")
    return rename_to_timm(clean_state_dict({
        name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}))


@dataclass
class _Loading:
    """What loading a state dict into a model came to."""
    model: nn.Module | None = None
    missing: list[str] = field(default_factory=list)
    unused: int = 0
    head_size: int | None = None  # classes of the file's head, where they are not the model's
    error: str = ''  # torch's, of tensors of other shapes

    @property
    def misfits(self) -> list[str]:
        """The model's tensors that were not loaded, but for those of its head and of the norm of its pooling."""
        return [name for name in self.missing if not name.startswith((*_heads(self.model), 'fc_norm.'))]

    @property
    def has_head(self) -> bool:
        """Whether the file had the whole head of the model."""
        return not any(name.startswith(_heads(self.model)) for name in self.missing)

    def describe(self) -> str:
        """In numbers, for the log."""
        total, classes = len(self.model.state_dict()), self.model.num_classes
        head = 'head loaded'
        if not self.has_head:
            head = f"head new ({f'{self.head_size} -> ' if self.head_size else ''}{classes} classes)"
        unused = f', {self.unused} of the file not used' if self.unused else ''
        return f'{total - len(self.missing)} of {total} tensors loaded, {head}{unused}'


def _heads(model: nn.Module) -> tuple[str, ...]:
    """The beginnings of the names of a timm model's classifiers."""
    names = model.pretrained_cfg.get('classifier') or ()
    return tuple(f'{name}.' for name in ((names,) if isinstance(names, str) else names))


def _load(create: Callable[[], nn.Module]) -> _Loading:
    """Call timm's factory and note what loading the weights came to, of which it passes on nothing.

    A head of another number of classes is left out; one of the same number is loaded.
    """
    seen, original = _Loading(), nn.Module.load_state_dict

    def load_state_dict(
            module: nn.Module,
            weights: dict[str, torch.Tensor],
            *_: Any,
            **__: Any,
    ) -> Any:
        own = module.state_dict()
        heads = [
            name for name in weights
            if name.startswith(_heads(module)) and name in own
            and own[name].shape != weights[name].shape]
        seen.model, seen.head_size = module, len(weights[heads[0]]) if heads else None
        try:
            result = original(
                module, {k: v for k, v in weights.items() if k not in heads}, strict=False)
        except RuntimeError as e:
            seen.error = ' '.join(str(e).split(':', 1)[-1].split())[:200]
            raise
        seen.missing, seen.unused = result.missing_keys, len(result.unexpected_keys)
        return result

    nn.Module.load_state_dict = load_state_dict
    logger = logging.getLogger('timm.models._builder')
    level = logger.level
    logger.setLevel(logging.ERROR)  # its list of thousands of names is summed up by `describe`
    try:
        seen.model = create()
    except RuntimeError:
        if not seen.error:
            raise
    finally:
        nn.Module.load_state_dict = original
        logger.setLevel(level)
    return seen


def _without_prefix(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors below the prefix under which most of the model's names stand; empty without such a prefix."""
    own = model.state_dict().keys()
    counts = Counter(
        '.'.join(parts[:depth]) + '.' for parts in (name.split('.') for name in weights)
        for depth in range(1, len(parts)) if '.'.join(parts[depth:]) in own)
    prefix = max(counts, key=counts.get, default=None)
    return {
        name.removeprefix(prefix): value for name, value in weights.items()
        if prefix is not None and name.startswith(prefix)}


def create_from_file(
        path: str | Path,
        create: Callable[[dict[str, Any]], nn.Module],
        num_classes: int,
) -> tuple[nn.Module, str, bool]:
    """A model with the weights of a file: all but those of its head, and the head's where the classes are as many.

    Args:
        path: Weights in timm's names, in names that `rename_to_timm` knows, or in timm's behind a common prefix.
        create: Makes the model, from what to overlay on its `pretrained_cfg`.
        num_classes: Number of classes of the model.

    Returns:
        The model, in numbers what was loaded, and whether the head was (False where the model's own code reads).

    Raises:
        ICASCError: The file cannot be read, or the model has tensors, other than its head's, that are not in it.
    """
    if Path(path).suffix.lower() in OF_JAX:
        return create({'file': str(path), 'num_classes': -1}), "read by the model's own code", False
    weights, random_state = read_weights(path), torch.get_rng_state()

    def load(state_dict: dict[str, torch.Tensor]) -> _Loading:
        torch.set_rng_state(random_state)  # a second attempt leaves the same head as a first
        return _load(lambda: create({'state_dict': dict(state_dict), 'num_classes': num_classes, 'label_offset': 0}))

    loading = load(weights)
    if loading.error or loading.misfits:
        inner = _without_prefix(weights, loading.model)
        loading = load(inner) if inner else loading
    if loading.error or loading.misfits:
        own = loading.model.state_dict()
        why = loading.error or (
            f"{len(own) - len(loading.missing)} of the model's {len(own)} tensors are in it; it lacks "
            f"{first_of(loading.misfits, 3)}")
        raise ICASCError(
            f"--pretrained-path: '{path}' does not fit --model: {why}; it has {first_of(weights, 3)}. Name "
            f'the architecture that the file is of, or rename its tensors.')
    return loading.model, loading.describe(), loading.has_head
