"""What the classes of a model are called, and which of them a user means."""
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch.nn as nn
from timm.data import ImageNetInfo, infer_imagenet_subset

from ..errors import TargetError, first_of
from ..features.owner import owners

__all__ = ['class_names_of', 'fill_up', 'find_classes', 'parts_of']

MOST = 8  # names that a message lists


@lru_cache
def _imagenet_names(subset: str) -> list[str]:
    return ImageNetInfo(subset).label_descriptions()


def fill_up(names: Sequence[str], num_classes: int) -> list[str]:
    """The names of the first classes, and the numbers of those that a head has besides."""
    return [*names, *map(str, range(len(names), num_classes))]


def _names_in(config: dict[str, Any], num_classes: int) -> list[str] | None:
    """The names that a configuration gives its classes, where it is of as many as the model has."""
    names = config.get('label_names')
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    own = config.get('num_classes') == num_classes and 0 < len(names) < num_classes
    if len(names) != num_classes and not own:
        return None
    described = config.get('label_descriptions')
    if isinstance(described, dict) and all(isinstance(described.get(name), str) for name in names):
        names = [described[name] for name in names]
    return fill_up(names, num_classes)


def _names_by_number(labels: Any, num_classes: int) -> list[str] | None:
    """The names in a model's `id2label`, where they are one for each class, and no placeholders of transformers."""
    if not isinstance(labels, Mapping) or len(labels) != num_classes:
        return None
    names = [labels.get(c) for c in range(num_classes)]
    placeholders = [f'LABEL_{c}' for c in range(num_classes)]
    return names if names != placeholders and all(isinstance(name, str) for name in names) else None


def class_names_of(model: nn.Module, num_classes: int, by_number: bool = True) -> list[str]:
    """Names in the order of the class scores.

    Those of the model's own configuration (`config.id2label` of transformers, `pretrained_cfg`); where it names none,
    and both it and the model have as many classes as one of timm's ImageNets, those of that; else numbers.

    Args:
        model: Classifier, a timm model or one that holds one.
        num_classes: Number of class scores.
        by_number: Whether as many classes as an ImageNet has are taken for those of that one.
    """
    for _, config in owners(model, 'config', lambda config: hasattr(config, 'id2label')):
        if (names := _names_by_number(config.id2label, num_classes)) is not None:
            return names
    for _, config in owners(model, 'pretrained_cfg'):
        names = _names_in(config, num_classes)
        if names is not None:
            return names
        subset = infer_imagenet_subset({'num_classes': config.get('num_classes')}) if by_number else None
        if subset is not None and config.get('num_classes') == num_classes:
            return _imagenet_names(subset)
    return [str(c) for c in range(num_classes)]


def parts_of(name: str) -> set[str]:
    """The names of a class that has several ('tabby, tabby cat'), as they are compared: case does not count."""
    return {part.strip().casefold() for part in name.split(',')}


def _matches(wanted: str, names: Sequence[str]) -> list[int]:
    """The classes of that name; else those of which it is one of several names, as in 'tabby, tabby cat'."""
    wanted = wanted.strip().casefold()
    whole = [c for c, name in enumerate(names) if name.strip().casefold() == wanted]
    return whole or [c for c, name in enumerate(names) if wanted in parts_of(name)]


def _find(wanted: int | str, names: Sequence[str]) -> int:
    found = _matches(wanted, names) if isinstance(wanted, str) else []
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise TargetError(
            f"`classes`: '{wanted}' is the name of the classes {first_of(found, MOST)}: give the number.")
    try:
        index = int(wanted) if isinstance(wanted, str) else operator.index(wanted)
    except TypeError as e:
        raise TargetError(f'`classes` must be numbers or names of classes, got {wanted!r}.') from e
    except ValueError:
        near = [name for name in names if wanted.casefold() in name.casefold()]
        said = 'these names have it in them:' if near else 'there are'
        raise TargetError(f"`classes`: no class '{wanted}': {said} {first_of(near or names, MOST, '; ')}.") from None
    if not 0 <= index < len(names):
        raise TargetError(f'`classes` must lie in 0 to {len(names) - 1}, got {index}.')
    return index


def find_classes(
        classes: int | str | Sequence[int | str] | None,
        names: Sequence[str],
) -> list[int] | None:
    """Class indices; None for None.

    Args:
        classes: Indices and names, one or several. Of a name with several parts ('tabby, tabby cat') one will do; case
            does not count.
        names: Of all classes.

    Raises:
        TargetError: No such class, several of that name, or one that is asked for twice.
    """
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable) or getattr(classes, 'ndim', 1) == 0:
        classes = [classes]
    found = [_find(wanted, names) for wanted in classes]
    if not found:
        raise TargetError('`classes` is empty: name one, or leave it out.')
    twice = [c for c, count in Counter(found).items() if count > 1]
    if twice:
        raise TargetError(f"`classes`: class {twice[0]} ('{names[twice[0]]}') is named twice.")
    return found
