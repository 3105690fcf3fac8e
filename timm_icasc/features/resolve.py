"""Which two features of a model ICASC looks at.

The *last* layer is the deepest feature with a grid that all of the class scores' gradient passes through, behind its
activation where there is one. The *inner* layer is the same at (about) twice its resolution; isotropic models, whose
features share one resolution, use the feature at 3/4 of their depth. docs/layers.md tells the rules.
"""
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn

from ..errors import LayerResolutionError
from .layout import FeatureLayer, ICASCLayers, Layout
from .meta import RememberShapes
from .module_state import (
    check_shards,
    is_inside_shard,
    one_thread,
    paths_around,
    survey,
    unwrap_model,
)
from .owner import described_features, own_value, owners
from .probe import Probe

__all__ = ['check_layers', 'find_layers', 'resolve_layer', 'resolve_layers']

# The depth rule of isotropic models, as a fraction of the feature list.
ISOTROPIC_INNER_DEPTH = 0.75

# Strides are powers of two, but odd input sizes round the grids: 1.75 to 2.12 is what models show.
MIN_INNER_RATIO = 1.5

DEFAULT_INPUT_SIZE = (3, 224, 224)

# How many paths a message proposes.
CHOICES_OF_A_GRID = 3
MAX_CHOICES = 9

# Fewer cells along a side say little about where something is; the paper's networks have 7.
MIN_CELLS, USUAL_CELLS = 4, 7

_logger = logging.getLogger(__name__)

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def _is_finer(layer: FeatureLayer, last: FeatureLayer) -> bool:
    return math.prod(layer.grid) >= MIN_INNER_RATIO ** 2 * math.prod(last.grid)


class _Resolver:
    """The rules, for one model as one probe saw it."""

    def __init__(self, model: nn.Module, probe: Probe):
        self.probe = probe
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.info = described_features(
            model, self._latest_first(), lambda path: bool(self._candidates(path)))

    def resolve(self) -> ICASCLayers | None:
        """The two layers at the ends of their stages, each moved on to the activation or norm behind it."""
        ends = self._ends_of_stages()
        if ends is None:
            return None
        last = self._behind_activation(ends.last)
        if ends.inner.grid == ends.last.grid:  # in the middle of a stage, nothing tells the one norm from the next
            return ICASCLayers(ends.inner, last)
        return ICASCLayers(self._behind_activation(ends.inner, last), last)

    def _behind_activation(
            self,
            end: FeatureLayer,
            last: FeatureLayer | None = None,
    ) -> FeatureLayer:
        """The deepest feature of the stage's resolution that an activation puts out and nothing goes by.

        If there is none, what a norm puts out does as well, unless the stage itself ends in an activation; then, and if
        neither exists, the end of the stage stays.

        Args:
            end: The feature at the end of the stage.
            last: The last layer, if an inner one is meant, which comes before it.
        """
        found: dict[str, FeatureLayer] = {}
        share = self.probe.nonzero_share
        for path in self._latest_first():
            if self.probe.calls[path].began < self.probe.calls[end.path].ended or is_inside_shard(
                    self.probe.model, path):
                continue
            for feature in self._candidates(path):
                in_time = last is None or self._ends_before(feature, last)
                if feature.grid != end.grid or not in_time:
                    continue
                kind, name = self.probe.maker(feature)
                if kind is None or kind in found or name != path:
                    continue
                # Cheap questions first: the graph is there, a gradient may take another forward pass.
                if not (end.prefix_tokens or self.probe.is_on_every_path(feature, end)):
                    continue
                if share(end) <= share(feature) and self.probe.carries_all(feature, end):
                    found[kind] = feature
        ends_in_activation = self.probe.maker(end)[0] == 'activation'
        return found.get('activation') or (end if ends_in_activation else found.get('norm', end))

    def _ends_of_stages(self) -> ICASCLayers | None:
        stages = self._stages()
        if not stages:
            return self._without_stages()
        last = stages[-1]
        if not self.probe.nonzero_share(last):
            # The patch tokens of the last block get no gradient where the head reads the class token alone.
            last = next(filter(self.probe.nonzero_share, self._before(last)), None)
        inner = self._inner(stages, last) if last is not None else None
        return ICASCLayers(inner, last) if inner is not None else None

    def _without_stages(self) -> ICASCLayers | None:
        """The last feature that a block puts out, taken so far from inside its containers that stages show."""
        blocks = list(self._ended_last())
        ends = [f for f in blocks if f.grid == blocks[0].grid]
        pairs = []
        for last in ends:
            finer = next(
                (f for f in blocks if _is_finer(f, last) and self._is_stage_before(f, last)), None)
            pairs += [ICASCLayers(finer, last)] if finer is not None else []
        for inner, last in sorted(pairs, key=lambda pair: math.prod(pair.inner.grid)):
            if self.probe.nonzero_share(last) and self.probe.is_reached(inner):
                return ICASCLayers(inner, last)
        last = next(filter(self.probe.nonzero_share, ends), None)
        inner = self._at_depth(self._series(last), last) if last is not None else None
        return ICASCLayers(inner, last) if inner is not None else None

    def _candidates(
            self,
            path: str,
            channels: int | None = None,
            stated: Layout | None = None,
    ) -> list[FeatureLayer]:
        return [
            r for r in self.probe.candidates(path, channels, stated)
            if self.probe.is_on_path(r)]

    def named(self, path: str, stated: Layout | None = None) -> list[FeatureLayer]:
        """What the module at `path` puts out: as `feature_info` describes it, the deepest stage first, then the rest.

        Several entries may describe one module, by resolutions (CoaT) or by channels (CrossViT).
        """
        if path not in self.probe.calls:
            return []
        described = []
        for entry in reversed(self.info):
            if f'{path}.'.startswith(f"{entry.get('module')}."):
                described += sorted(
                    self._candidates(path, entry.get('num_chs'), stated),
                    key=lambda r: self._scale_mismatch(r, entry))[:1]
        return described + self._candidates(path, stated=stated)

    def choices(self) -> str:
        """For a message: the last modules of each resolution that put out a feature, in their order."""
        found: dict[tuple[int, int], list[str]] = {}
        for path in self._latest_first():
            for grid in {c.grid for c in self._candidates(path) if math.prod(c.grid) > 1}:
                found.setdefault(grid, []).append(path)
        named = [
            f"'{path}' ({grid[0]} x {grid[1]})"
            for grid, paths in list(found.items())[::-1]
            for path in paths[:CHOICES_OF_A_GRID][::-1]]
        obstacle = self.probe.obstacle() if len(named) < 2 else ''
        if obstacle:
            return f' ({obstacle})'
        return f'. Spatial features on the way to the scores: {", ".join(named[-MAX_CHOICES:]) or "none"}'

    def _called_children(self, path: str) -> list[str]:
        """The modules called directly inside `path`; ModuleLists and the like are looked through."""
        children = []
        for name, _ in self.modules[path].named_children():
            child = f'{path}.{name}'
            children += [child] if child in self.probe.calls else self._called_children(child)
        return children

    def _tails(self, path: str) -> Iterator[str]:
        """`path`, if it was called, then what was called inside it: the child that ended last, all inside that, ..."""
        if path in self.probe.calls:
            yield path
        children = self._called_children(path)
        for child in sorted(children, key=lambda c: self.probe.calls[c].ended, reverse=True):
            yield from self._tails(child)

    def _latest_first(self) -> list[str]:
        return sorted(self.probe.calls, key=lambda path: self.probe.calls[path].ended, reverse=True)

    def _stages(self) -> list[FeatureLayer]:
        """The features that `feature_info` describes, in its order; empty if it fails to describe the last one."""
        features: list[FeatureLayer | None] = []
        for entry in self.info:
            path = entry.get('module')
            if isinstance(self.modules.get(path), POOLS):
                continue  # a bare pool (VGG) repeats the layer before it: the two maps would be one
            # A container whose children the model calls one by one is never called itself: its last block stands in.
            inside = [p for p in self._latest_first() if f'{p}.'.startswith(f'{path}.')]
            candidates = [r for p in inside for r in self.probe.candidates(p, entry.get('num_chs'))]
            # What is off the path (the patches of a head that reads the class token) still says where to step back.
            features.append(min(candidates, default=None, key=lambda r: (
                math.prod(r.grid) == 1, self._scale_mismatch(r, entry),
                not self.probe.is_on_path(r))))
        if not features or features[-1] is None:
            return []
        # A single point is no map: small images leave the last stages of common networks without a grid.
        return [f for f in features if f is not None and math.prod(f.grid) > 1]

    def _scale_mismatch(self, layer: FeatureLayer, entry: dict[str, Any]) -> float:
        """Octaves between the layer's grid and the resolution that `feature_info` tells; for several outputs."""
        expected = math.prod(self.probe.image_size) / entry.get('reduction', 1) ** 2
        return round(abs(math.log2(math.prod(layer.grid) / expected)))

    def _ended_last(self) -> Iterator[FeatureLayer]:
        """Every feature that a block (a module with children) puts out, the deepest first."""
        for path in self._latest_first():
            if any(self.modules[path].children()):
                yield from (c for c in self._candidates(path) if math.prod(c.grid) > 1)

    def _series(self, layer: FeatureLayer) -> list[FeatureLayer]:
        """The blocks of one kind, one after the other, that end in `layer` (itself last): a stage, seen from inside."""
        for path in self._tails(layer.path):
            parent, ended = path.rpartition('.')[0], self.probe.calls[path].ended
            kin = [
                p for p, call in self.probe.calls.items() if p.rpartition('.')[0] == parent and call.ended <= ended
                and type(self.modules[p]) is type(self.modules[path])]
            wanted = (layer.grid, layer.output_index, layer.channels)
            series = [
                r for p in sorted(kin, key=lambda p: self.probe.calls[p].ended)
                for r in self._candidates(p) if (r.grid, r.output_index, r.channels) == wanted]
            if len(series) > 1:
                return series
        return []

    def _before(self, last: FeatureLayer) -> Iterator[FeatureLayer]:
        """Features to step back to from `last`, at its resolution, the nearest first."""
        yield from self._series(last)[-2::-1]
        yield from (
            f for f in self._ended_last() if self._precedes(f, last) and f.grid == last.grid)

    def _ends_before(self, layer: FeatureLayer, other: FeatureLayer) -> bool:
        return self.probe.calls[layer.path].ended < self.probe.calls[other.path].ended

    def _precedes(self, layer: FeatureLayer, other: FeatureLayer) -> bool:
        return self.probe.calls[layer.path].ended < self.probe.calls[other.path].began

    def _is_stage_before(self, layer: FeatureLayer, last: FeatureLayer) -> bool:
        """Whether `layer` precedes `last`, and is no branch inside a block that does."""
        began = self.probe.calls[last.path].began
        return self._precedes(layer, last) and not any(
            parent in self.probe.calls and self.probe.calls[parent].ended < began
            for parent in paths_around(layer.path))

    def _inner(self, stages: list[FeatureLayer], last: FeatureLayer) -> FeatureLayer | None:
        for feature in (f for f in stages[::-1] if _is_finer(f, last)):
            for earlier in (feature, *self._series(feature)[::-1]):
                if self._precedes(earlier, last) and self.probe.is_reached(earlier):
                    return earlier
        return self._at_depth(stages if len(stages) > 1 else self._series(last), last)

    def _at_depth(self, series: list[FeatureLayer], last: FeatureLayer) -> FeatureLayer | None:
        """The inner layer of an isotropic model, whose features are `series`."""
        depth = math.ceil(ISOTROPIC_INNER_DEPTH * len(series)) - 1
        # By the end, not by the beginning: a container that ends in `last` has the whole series inside.
        earlier = [f for f in series[:depth + 1] if self._ends_before(f, last)]
        return next(filter(self.probe.is_reached, earlier[::-1]), None)


@torch.inference_mode(False)  # the probe takes gradients, wherever it is called from
def find_layers(
        model: nn.Module,
        input_size: tuple[int, int, int],
) -> tuple[ICASCLayers, Probe]:
    """What the rules give, and the probe that it was read from.

    Raises:
        LayerResolutionError: There is no pair of layers.
    """
    probe = Probe(model, input_size)
    resolver = _Resolver(model, probe)
    layers = resolver.resolve()
    if layers is None:
        raise LayerResolutionError(
            f'{type(model).__name__} shows no two features with a spatial gradient from the logits; name both '
            f'yourself with `layers`, the module paths of the inner and the last{resolver.choices()}.')
    for layer in layers:
        _check_whole(model, probe, layer)
    return layers, probe


def _check_paths(model: nn.Module, paths: Sequence[str]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in modules or not path:
            siblings = [name for name in modules if name.count('.') == path.count('.') and name]
            raise LayerResolutionError(
                f"{type(model).__name__} has no layer '{path}'; modules at that depth: {', '.join(siblings[:12])}"
                f"{', ...' if len(siblings) > 12 else ''}."
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


def _why_none(resolver: _Resolver, path: str, stated: Layout | None) -> str:
    """Why the module at `path` has no feature, and what to name instead."""
    probe = resolver.probe
    if path not in probe.calls or not any(f.modified_in_place for f in probe.candidates(path)):
        return (
            f'has no spatial feature {f"of the layout {stated} " if stated else ""}on the path to the logits: its '
            f'module must be called in forward() and return a tensor [B, K, H, W], [B, H, W, K] or [B, L, K]'
            f'{resolver.choices()}')
    called = (p for p in paths_around(path)[::-1] if p in probe.calls)
    seen = next((p for p in called if any(map(probe.is_on_path, probe.candidates(p)))), None)
    return 'is hidden: what follows overwrites its output in place, as F.relu(x, inplace=True) does. Name ' + (
        f"'{seen}', which hands the same tensor on" if seen else 'another module') + ', or leave inplace out there'


def _first_path(model: nn.Module, path: str) -> str:
    """The path by which `named_modules` finds a module, which may have several."""
    module = dict(model.named_modules(remove_duplicate=False))[path]
    return next(name for name, other in model.named_modules() if other is module)


def _named(
        model: nn.Module,
        probe: Probe,
        path: str,
        stated: Layout | None,
) -> list[FeatureLayer]:
    """What the output of a module that the user names may be read as, the likeliest first."""
    resolver = _Resolver(model, probe)
    found = resolver.named(path, stated)
    if not found:
        raise LayerResolutionError(f"Layer '{path}' of {type(model).__name__} {_why_none(resolver, path, stated)}.")
    return found


def _check_reached(model: nn.Module, probe: Probe, layer: FeatureLayer) -> None:
    if not probe.nonzero_share(layer):
        raise LayerResolutionError(
            f"The logits of {type(model).__name__} have no gradient on the grid of layer '{layer.path}', so every "
            f'map would be zero (a class-token head?); name an earlier module.')
    _check_whole(model, probe, layer)


def _check_whole(model: nn.Module, probe: Probe, layer: FeatureLayer) -> None:
    if probe.is_one_of_several(layer):
        raise LayerResolutionError(
            f"{type(model).__name__} calls '{layer.path}' {probe.calls[layer.path].number + 1} times and makes the "
            'class scores of all calls, as an average over mirrored images does: a map would be of the last call '
            'alone. Give the network inside, or name a module behind the place where they meet.')


@torch.inference_mode(False)
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
    layers = ICASCLayers(next((f for f in inner if _is_finer(f, last[0])), inner[0]), last[0])
    for layer in layers:
        _check_reached(model, probe, layer)
    return layers


@torch.inference_mode(False)
def _resolve_one(
        model: nn.Module,
        path: str,
        input_size: tuple[int, int, int],
) -> FeatureLayer:
    path, stated = Layout.split(path)
    _check_paths(model, [path])
    probe = Probe(model, input_size)
    layer = _named(model, probe, _first_path(model, path), stated)[0]
    _check_reached(model, probe, layer)
    return layer


def _own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """The input size that the model, or the first part of it that tells one, was made for."""
    for path, config in owners(model, 'pretrained_cfg'):
        channels, height, width = config.get('input_size', DEFAULT_INPUT_SIZE)
        own_channels = own_value(model.get_submodule(path), 'in_chans')
        return (channels if own_channels is None else own_channels, height, width)
    channels = own_value(model, 'in_chans')
    return DEFAULT_INPUT_SIZE if channels is None else (channels, *DEFAULT_INPUT_SIZE[1:])


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


@torch.inference_mode(False)
def resolve_layers(
        model: nn.Module,
        layers: ICASCLayers | Sequence[str] | Sequence[FeatureLayer] | None = None,
        input_size: tuple[int, int, int] | None = None,
) -> ICASCLayers:
    """Find the inner and the last feature layer of a classifier (section 3 of the paper).

    Runs the model once on two random images, forward and backward, in evaluation mode; parameters, buffers, training
    flags and the global random state stay as they are. The answer is cached per model (its modules and pooling
    as they are), choice of layers, input size and state of gradient checkpointing.

    Args:
        model: Classifier `[B, C, H, W] -> [B, num_classes]`, or one that returns an object or a dictionary with
            `logits` or a tuple with the scores first; timm models, wrapped or not, carry the `feature_info` this reads.
        layers: Module paths (inner, last) to use instead, for any `nn.Module`; of several tensors that a module puts
            out, the one that `feature_info` describes is meant. A path may state the layout behind a colon:
            'stages.2:NHWC', or 'blocks.5:NLC+5' for tokens of which the first 5 are no pixels. `ICASCLayers`, or two
            `FeatureLayer`, are handed back as they are, whatever the input size: they say which tensor is meant, and
            how it is read.
        input_size: Channels, height, width of the images; the model's pretrained_cfg when None, else 3 x 224 x 224.

    Returns:
        The layers `.inner` and `.last`: module path, layout, channels, grid.

    Raises:
        LayerResolutionError: A path does not exist, or no spatial feature is on the path to the logits.
        VersionError: The model's parameters are in shards on a CPU, which this torch cannot run.
    """
    if not isinstance(model, nn.Module):
        raise LayerResolutionError(f'model must be a torch.nn.Module, got {model!r}; timm.create_model makes one.')
    model = unwrap_model(model)
    check_shards(model)
    if _are_layers(layers):
        check_layers(model, layers)
        layers = layers if isinstance(layers, ICASCLayers) else ICASCLayers(*layers)
        return layers

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
        input_size = _own_input_size(model)
    if not (isinstance(input_size, (list, tuple)) and len(input_size) == 3):
        raise LayerResolutionError(f'input_size must be (channels, height, width), got {input_size!r}.')
    # Checkpointed containers are not called as modules, so the taps differ with gradient checkpointing on; a new head
    # or another pooling changes which tokens the logits see.
    now = survey(model)
    key = (choice, tuple(input_size), now.checkpointing, now.made_of)
    resolved = _cache.setdefault(model, {})
    if key not in resolved:
        with one_thread(model), _shapes_once(model):
            resolved[key] = find(tuple(input_size))
        last = resolved[key].last if isinstance(resolved[key], ICASCLayers) else resolved[key]
        if min(last.grid) < MIN_CELLS:
            _warn_of_few_cells(last.path, last.grid, tuple(input_size[1:]))
    return resolved[key]
