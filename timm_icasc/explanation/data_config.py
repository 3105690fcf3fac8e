"""How images are prepared for a model: as its own configuration says, or as a user does."""
import math
import warnings
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

import torch
import torch.nn as nn
from timm.data import resolve_data_config
from timm.models import PretrainedCfg

from ..errors import ICASCError, is_count
from ..features.module_state import activation_or_norm
from ..features.owner import own_value, owners
from ..features.resolve import own_input_size

__all__ = ['data_config_of']

NAMES = ('input_size', 'img_size', 'in_chans', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')

CHOICES = {
    'interpolation': ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'),
    'crop_mode': ('center', 'squash', 'border'),
}


def _check_names(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise ICASCError(f'`data_config` must be a dictionary, got {type(given).__name__}.')
    # A whole `pretrained_cfg` will do, which says other things too. What nobody knows would change nothing.
    unknown = sorted(set(map(str, given)) - {*NAMES, *(f.name for f in fields(PretrainedCfg))})
    if unknown:
        raise ICASCError(f"`data_config` has {unknown}, which is not among {', '.join(NAMES)}.")


def _check_values(config: dict[str, Any]) -> None:
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ICASCError(f"`data_config`: '{name}' must be one of {', '.join(choices)}, got {config[name]!r}.")
    size = config['input_size']
    if not all(map(is_count, size)):
        raise ICASCError(f"`data_config`: 'input_size' must be (channels, height, width), got {size}.")
    if size[0] not in (1, 3):
        raise ICASCError(
            f'the model takes {size[0]} channels, and images are grey or of colours: `attention_maps` takes tensors of '
            f'any number. (`data_config` may tell another `input_size`.)')
    for name, least in (('mean', -math.inf), ('std', 0), ('crop_pct', 0)):
        values = config[name] if isinstance(config[name], (tuple, list)) else [config[name]]
        if not all(isinstance(v, Real) and least < v < math.inf for v in values):
            raise ICASCError(
                f"`data_config`: '{name}' must be finite{', and above 0' * (least == 0)}, got {config[name]!r}.")


def _numbers(module: nn.Module, name: str) -> list[float] | None:
    """A buffer, parameter or attribute of the module's own that holds numbers, one after the other; else None."""
    value = {**module._parameters, **module._buffers}.get(name)
    value = own_value(module, name) if value is None else value
    if value is None and isinstance(flags := own_value(module, 'flags'), Mapping):
        value = flags.get(name)  # where kornia's augmentations keep them
    if isinstance(value, torch.Tensor) and value.is_meta:
        return None
    try:
        return torch.as_tensor(value, dtype=torch.float64, device='cpu').flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        return None


def _normalising_module(model: nn.Module, channels: int) -> str | None:
    """Path of the first module that holds a mean and a deviation of images, '' for the model; None if there is none."""
    for path, module in model.named_modules():
        if activation_or_norm(module) == 'norm':
            continue
        mean, std = _numbers(module, 'mean'), _numbers(module, 'std')
        if mean is None or std is None or not {len(mean), len(std)} <= {1, channels}:
            continue
        # A single mean of 0 is that of noise; 0 and 1 change nothing.
        if any(mean) or len(mean) > 1 and set(std) != {1.}:
            return path
    return None


def _warn_of_two_normalisations(model: nn.Module, channels: int) -> None:
    path = _normalising_module(model, channels)
    if path is not None:
        who = f"'{path}' of {type(model).__name__}" if path else type(model).__name__
        off = f'dict(mean={(0,) * channels}, std={(1,) * channels})'
        warnings.warn(
            f'{who} holds a mean and a deviation: if it normalises images itself, they are normalised twice, and maps '
            f'and scores are wrong. `data_config={off}` leaves it to the model; if it does not, the mean and std that '
            f'`explain` is to take, given there, end this warning too.', stacklevel=5)


def data_config_of(model: nn.Module, given: dict[str, Any] | None) -> dict[str, Any]:
    """How images are prepared for the model: as said, else as its own configuration says.

    Args:
        model: Classifier, a timm model or one that holds one.
        given: As of `explain`.

    Raises:
        ICASCError: A name or a value that preparing images knows nothing of.
    """
    _check_names({} if given is None else given)
    config = next((config for _, config in owners(model, 'pretrained_cfg')), None)
    size = own_input_size(model)
    if config is None and not given:
        warnings.warn(
            f"{type(model).__name__} does not tell how its images are prepared: ImageNet's mean and deviation are "
            f'taken, at {size[1]} x {size[2]} pixels; `data_config` says otherwise, such as dict(input_size=(3, 224, '
            f'224), mean=..., std=...)', stacklevel=4)
    if not {'mean', 'std'} & set(given or {}):
        _warn_of_two_normalisations(model, size[0])
    try:
        found = resolve_data_config(
            dict(given or {}), pretrained_cfg={**(config or {}), 'input_size': size})
    except (AssertionError, TypeError) as e:
        raise ICASCError(
            "`data_config`: 'input_size' is (channels, height, width), 'img_size' a number, and 'mean' and 'std' are "
            "tuples of one value, or of one for each channel.") from e
    channels = found['input_size'][0]
    for name in ('mean', 'std'):
        if len(found[name]) != channels:  # those of colours, for grey images
            found[name] = (sum(found[name]) / len(found[name]),) * channels
    _check_values(found)
    return found
