"""The two layers of any model: by the rules, or by the names that a user gives."""
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn

from ..errors import LayerResolutionError, first_of, is_count
from .layout import FeatureLayer, ICASCLayers, Layout
from .meta import RememberShapes
from .module_state import check_shards, one_thread, survey
from .owner import own_value, owners
from .probe import Probe
from .rules import LayerRules, is_finer
from .wrappers import check_model, paths_around, unwrap_model

__all__ = ['check_layers', 'find_layers', 'own_input_size', 'resolve_layer', 'resolve_layers']

DEFAULT_INPUT_SIZE = (3, 224, 224)

# Fewer cells along a side say little about where something is; the paper's networks have 7 on ImageNet.
MIN_CELLS, USUAL_CELLS = 4, 7

MOST_ANSWERS = 256  # kept per model: a module that sets itself anew in every step would fill the memory

_logger = logging.getLogger(__name__)


@torch.inference_mode(False)  # the probe takes gradients, wherever it is called from
def find_layers(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[ICASCLayers, Probe]:
    """What the rules give, and the probe that it was read from.

    Raises:
        LayerResolutionError: There is no pair of layers.
    """
    probe = Probe(model, input_size)
    rules = LayerRules(model, probe)
    layers = rules.resolve()
    if layers is None:
        raise LayerResolutionError(
            f'{type(model).__name__} shows no two features with a spatial gradient from the logits; name both '
            f'yourself with `layers`, the module paths of the inner and the last{rules.choices()}.')
    for layer in layers:
        probe.check_last_call(layer)
    last = layers.last
    if not (last.has_other_tokens or last.modified_in_place or probe.is_on_every_path(last)):
        _warn_of_ways_around(type(model).__name__, last.path)
    return layers, probe


def _check_paths(model: nn.Module, paths: Sequence[str]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules or not path:
            siblings = [name for name in modules if name.count('.') == path.count('.') and name]
            raise LayerResolutionError(
                f"{type(model).__name__} has no layer '{path}'; modules at that depth: {first_of(siblings, 12)}."
                f"{' A layout behind a colon is NCHW, NHWC, NLC or NLC+N.' if ':' in path else ''}")


def _are_layers(layers: Any) -> bool:
    is_pair = isinstance(layers, (tuple, list)) and len(layers) == 2
    return is_pair and all(isinstance(layer, FeatureLayer) for layer in layers)


def check_layers(
        model: nn.Module,
        layers: ICASCLayers | Sequence[str] | Sequence[FeatureLayer],
) -> None:
    """Raise LayerResolutionError where `layers` are not two modules of the model; nothing is run."""
    if _are_layers(layers):
        _check_paths(model, [layer.path for layer in layers])
        if layers[0].path == layers[1].path:
            raise LayerResolutionError(
                f"layers are two modules, not two outputs of '{layers[0].path}': name modules inside of it.")
        return
    is_pair = isinstance(layers, (list, tuple)) and len(layers) == 2
    if not is_pair or not all(isinstance(path, str) for path in layers):
        raise LayerResolutionError(
            f'layers must be two module paths, (inner, last), or the answer of resolve_layers, got {layers!r}.')
    _check_paths(model, [Layout.split(path)[0] for path in layers])


def _why_none(rules: LayerRules, path: str, stated: Layout | None) -> str:
    """Why the module at `path` has no feature, and what to name instead."""
    probe = rules.probe
    if path not in probe.calls or not any(f.modified_in_place for f in probe.candidates.of(path)):
        return (
            f'has no spatial feature {f"of the layout {stated} " if stated else ""}on the path to the logits: its '
            f'module must be called in forward() and return a tensor [B, K, H, W], [B, H, W, K] or [B, L, K]'
            f'{rules.choices()}')
    called = (p for p in paths_around(path)[::-1] if p in probe.calls)
    seen = next((p for p in called if any(map(probe.is_on_path, probe.candidates.of(p)))), None)
    return 'is hidden: what follows overwrites its output in place, as F.relu(x, inplace=True) does. Name ' + (
        f"'{seen}', which hands the same tensor on" if seen else 'another module') + ', or leave inplace out there'


def _first_path(model: nn.Module, path: str) -> str:
    """The path by which `named_modules` finds a module, which may have several."""
    module = dict(model.named_modules(remove_duplicate=False))[path]
    return next(name for name, other in model.named_modules() if other is module)


def _named(model: nn.Module, probe: Probe, path: str, stated: Layout | None) -> list[FeatureLayer]:
    """What the output of a module that the user names may be read as, the likeliest first."""
    rules = LayerRules(model, probe)
    found = rules.named(path, stated)
    if not found:
        raise LayerResolutionError(f"Layer '{path}' of {type(model).__name__} {_why_none(rules, path, stated)}.")
    return found


def _check_reached(model: nn.Module, probe: Probe, layer: FeatureLayer) -> None:
    if not probe.nonzero_share(layer):
        raise LayerResolutionError(
            f"The logits of {type(model).__name__} have no gradient on the grid of layer '{layer.path}', so every "
            f'map would be zero (a class-token head?); name an earlier module.')
    probe.check_last_call(layer)


def _resolve_explicit(
        model: nn.Module,
        paths: Sequence[str],
        input_size: tuple[int, int, int],
) -> ICASCLayers:
    check_layers(model, paths)
    paths, stated = zip(*map(Layout.split, paths), strict=True)
    paths = [_first_path(model, path) for path in paths]
    probe = Probe(model, input_size)
    calls = [probe.calls.get(path) for path in paths]
    if paths[0] == paths[1] or (None not in calls and calls[0].ended > calls[1].ended):
        raise LayerResolutionError(f"layers are (inner, last): '{paths[0]}' must come before '{paths[1]}'.")
    inner, last = (_named(model, probe, *named) for named in zip(paths, stated, strict=True))
    # As in the automatic choice: the deepest stage with a finer grid than the last layer's, where there is one.
    layers = ICASCLayers(next((f for f in inner if is_finer(f, last[0])), inner[0]), last[0])
    for layer in layers:
        _check_reached(model, probe, layer)
    return layers


def _resolve_one(model: nn.Module, path: str, input_size: tuple[int, int, int]) -> FeatureLayer:
    path, stated = Layout.split(path)
    _check_paths(model, [path])
    probe = Probe(model, input_size)
    layer = _named(model, probe, _first_path(model, path), stated)[0]
    _check_reached(model, probe, layer)
    return layer


def _embedded_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a timm ViT takes alone, which may have been made for others than its weights were."""
    for _, embedding in owners(model, 'patch_embed'):
        size = getattr(embedding, 'img_size', None)
        if isinstance(size, tuple) and len(size) == 2 and getattr(embedding, 'strict_img_size', True):
            return size
    return None


def _configured_size(model: nn.Module) -> tuple[int, int, int]:
    """The input size in the configuration of the model, or of the first part of it that has one."""
    for path, config in owners(model, 'pretrained_cfg'):
        channels, height, width = config.get('input_size', DEFAULT_INPUT_SIZE)
        own_channels = own_value(model.get_submodule(path), 'in_chans')
        return (channels if own_channels is None else own_channels, height, width)
    # A model of transformers.
    for _, config in owners(model, 'config', lambda config: hasattr(config, 'image_size')):
        sides = config.image_size
        sides = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        size = (getattr(config, 'num_channels', DEFAULT_INPUT_SIZE[0]), *sides)
        if len(size) == 3 and all(map(is_count, size)):
            return size
    channels = own_value(model, 'in_chans')
    return DEFAULT_INPUT_SIZE if channels is None else (channels, *DEFAULT_INPUT_SIZE[1:])


def own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """The input size that the model, or the first part of it that tells one, was made for."""
    channels, *size = _configured_size(model)
    return (channels, *(_embedded_size(model) or size))


@lru_cache  # once in a process
def _warn_of_ways_around(model: str, path: str) -> None:
    _logger.warning(
        f"The class scores of {model} also come by ways around '{path}', as those of several networks do: maps and "
        f'losses are of what passes there. Name a module behind the place where they meet with `layers`, or the two '
        f'as they are, or give one network alone.')


@lru_cache  # once in a process
def _warn_of_few_cells(path: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    cells = [round(side * USUAL_CELLS / min(grid)) for side in grid]
    enough = [round(side * USUAL_CELLS / min(grid)) for side in size]
    _logger.warning(
        f"The last layer '{path}' has {grid[0]} x {grid[1]} cells on {size[0]} x {size[1]} images, too few to say "
        f'where something is: images of {enough[0]} x {enough[1]} would give {cells[0]} x {cells[1]}.')


def _shapes_once(model: nn.Module) -> AbstractContextManager:
    """Where a model is on the meta device, torch works each shape out once: the rules run it several times."""
    parameter = next(model.parameters(), None)
    return RememberShapes() if parameter is not None and parameter.is_meta else nullcontext()


_cache: 'weakref.WeakKeyDictionary[nn.Module, dict[Any, ICASCLayers | FeatureLayer]]' = weakref.WeakKeyDictionary()


def resolve_layers(
        model: nn.Module,
        layers: ICASCLayers | Sequence[str] | Sequence[FeatureLayer] | None = None,
        input_size: tuple[int, int, int] | None = None,
) -> ICASCLayers:
    """Find the inner and the last feature layer of a classifier (section 3 of the paper).

    Runs the model once (with class tokens, twice) on two random images, forward and backward, in evaluation mode;
    parameters, buffers, training flags and the global random state stay as they are. The answer is cached per model
    (its modules, methods and settings as they are), choice of layers, input size and state of gradient checkpointing.

    Args:
        model: Classifier `[B, C, H, W] -> [B, num_classes]`, or one that returns an object or a dictionary with
            `logits` or a tuple with the scores first; timm models, wrapped or not, carry the `feature_info` this reads.
        layers: Module paths (inner, last) to use instead, for any `nn.Module`; of several tensors that a module puts
            out, the one that `feature_info` describes is meant. A path may state the layout behind a colon:
            'stages.2:NHWC', or 'blocks.5:NLC+5' for tokens of which the first 5 are no pixels. `ICASCLayers`, or two
            `FeatureLayer`, are handed back as they are, whatever the input size: they say which tensor is meant, and
            how it is read.
        input_size: Channels, height, width of the images; when None those that the model was made for, as its patch
            embedding or its pretrained_cfg says, else 3 x 224 x 224.

    Returns:
        The layers `.inner` and `.last`: module path, layout, channels, grid.

    Raises:
        LayerResolutionError: A path does not exist, or no spatial feature is on the path to the logits.
        VersionError: The model's parameters are in shards on a CPU, which this torch cannot run.
    """
    check_model(model, LayerResolutionError)
    model = unwrap_model(model)
    check_shards(model)
    if _are_layers(layers):
        check_layers(model, layers)
        return layers if isinstance(layers, ICASCLayers) else ICASCLayers(*layers)

    def find(size: tuple[int, int, int]) -> ICASCLayers:
        if layers is not None:
            return _resolve_explicit(model, layers, size)
        return find_layers(model, size)[0]

    return _resolved(model, str(layers), input_size, find)


def resolve_layer(
        model: nn.Module,
        layer: str | FeatureLayer,
        layers: ICASCLayers | Sequence[str] | Sequence[FeatureLayer] | None = None,
        input_size: tuple[int, int, int] | None = None,
) -> FeatureLayer:
    """One feature layer of a classifier, to draw maps of.

    Args:
        model: As for `resolve_layers`.
        layer: 'inner' or 'last', of `layers`; the path of any module that puts out a feature, with its layout behind a
            colon where needed; or a `FeatureLayer`, which is handed back.
        layers: As for `resolve_layers`.
        input_size: Likewise.

    Raises:
        LayerResolutionError: As of `resolve_layers`.
    """
    if isinstance(layer, FeatureLayer):
        return layer
    if not isinstance(layer, str):
        raise LayerResolutionError(f"layer must be 'inner', 'last' or the path of a module, got {layer!r}.")
    if layer in ICASCLayers._fields:
        return getattr(resolve_layers(model, layers, input_size), layer)
    model = unwrap_model(model)
    check_shards(model)
    return _resolved(model, f'layer {layer}', input_size, lambda size: _resolve_one(model, layer, size))


@torch.inference_mode(False)
def _resolved(
        model: nn.Module,
        choice: str,
        input_size: tuple[int, int, int] | None,
        find: Callable[[tuple[int, int, int]], Any],
) -> Any:
    """What `find` finds for an input size, from the cache where the model is as it was."""
    if input_size is None:
        input_size = own_input_size(model)
    is_size = isinstance(input_size, (list, tuple)) and len(input_size) == 3
    if not is_size or not all(map(is_count, input_size)):
        raise LayerResolutionError(f'input_size must be (channels, height, width), got {input_size!r}.')
    # Checkpointed containers are not called as modules, so the taps differ with gradient checkpointing on; a new head,
    # another pooling or another method changes which tokens the logits see, a stride the grid.
    now = survey(model)
    key = (choice, tuple(input_size), now.checkpointing, now.made_of)
    resolved = _cache.setdefault(model, {})
    if key not in resolved:
        with one_thread(model), _shapes_once(model):
            resolved[key] = find(tuple(input_size))
        if len(resolved) > MOST_ANSWERS:
            del resolved[next(iter(resolved))]
        last = resolved[key].last if isinstance(resolved[key], ICASCLayers) else resolved[key]
        if min(last.grid) < MIN_CELLS:
            _warn_of_few_cells(last.path, last.grid, tuple(input_size[1:]))
    return resolved[key]
