"""What a model says of itself, wherever in it the module is that says it.

A timm model tells its stages (`feature_info`), its prefix tokens and more as attributes. Inside another module (a
Sequential, a LightningModule, a LoRA wrapper) they are attributes of a part, and speak of paths inside that part. Many
wrappers hand on the attributes of what they wrap; what is handed on so does not count, for its paths would be wrong.
"""
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.nn as nn

from .wrappers import paths_around

__all__ = ['ancestor_with', 'described_features', 'owners', 'own_value']


def own_value(module: nn.Module, name: str) -> Any:
    """The attribute of the module itself or of its class; None where it has none, or hands on another module's."""
    if inspect.getattr_static(module, name, None) is None and name not in module._modules:
        return None
    return getattr(module, name, None)


def owners(
        model: nn.Module,
        name: str,
        is_meant: Callable[[Any], bool] = lambda value: True,
) -> Iterator[tuple[str, Any]]:
    """Path and value of every module that owns the attribute and lies in no other that does, outermost first.

    Args:
        model: Any module.
        name: Of the attribute.
        is_meant: Whether a value is what is looked for, where others have something else by that name.
    """
    level = [('', model)]
    while level:
        below = []
        for path, module in level:
            value = own_value(module, name)
            if value is not None and is_meant(value):
                yield path, value
            else:
                below += [(f'{path}.{child}' if path else child, m) for child, m in module.named_children()]
        level = below


def ancestor_with(model: nn.Module, path: str, name: str) -> tuple[str, nn.Module] | None:
    """The outermost module around `path`, or at it, that owns the attribute, with its path."""
    for outer in ('', *paths_around(path), path):
        module = model.get_submodule(outer)
        if own_value(module, name) is not None:
            return outer, module
    return None


def _entries(feature_info: Any) -> list[dict[str, Any]]:
    """The entries of a model's list, or of the `FeatureInfo` of timm's feature extractors; none of anything else."""
    info = getattr(feature_info, 'info', feature_info)
    is_timms = isinstance(info, (list, tuple)) and all(isinstance(entry, Mapping) for entry in info)
    return [dict(entry) for entry in info] if is_timms else []


def _descriptions(model: nn.Module, path: str = '') -> dict[str, list[dict[str, Any]]]:
    """Path of each module that describes its features -> its entries, their paths as the whole model has them."""
    found = {}
    for inner, info in owners(model, 'feature_info', lambda value: not callable(value)):
        entries, module = _entries(info), model.get_submodule(inner)
        own = f'{path}.{inner}'.strip('.')
        # Wrappers copy the list of what they wrap; the paths in it are those of the original.
        copied = [
            (child, m) for child, m in module.named_modules()
            if child and _entries(own_value(m, 'feature_info')) == entries]
        if entries and copied:
            found |= _descriptions(copied[0][1], f'{own}.{copied[0][0]}'.strip('.'))
        elif entries:
            found[own] = [{**entry, 'module': _full_path(module, own, entry.get('module'))} for entry in entries]
    return found


def _full_path(module: nn.Module, path: str, name: str | None) -> str | None:
    if name is None:
        return None
    children = dict(module.named_children())
    flattened = name.replace('.', '_')  # timm's feature extractors put the children of a Sequential beside it
    return f'{path}.{flattened if name not in children and flattened in children else name}'.strip('.')


def described_features(
        model: nn.Module,
        latest_first: Iterable[str],
        is_on_path: Callable[[str], bool],
) -> list[dict[str, Any]]:
    """The entries of `feature_info` of the part of the model that the class scores come from.

    Args:
        model: Any module.
        latest_first: Paths of the modules that were called, the last to end first.
        is_on_path: Whether the class scores are computed from what the module at a path puts out.

    Returns:
        The entries with paths from `model` on; where several parts describe themselves, of the one that ends last on
        the way to the class scores. Empty where none does.
    """
    described = _descriptions(model)
    if list(described) == ['']:
        return described['']
    for path in latest_first:
        owner = next((o for o in described if f'{path}.'.startswith(f'{o}.' if o else '')), None)
        if owner is not None and is_on_path(path):
            return described[owner]
    return []
