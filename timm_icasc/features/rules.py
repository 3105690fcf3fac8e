"""Which two features of a model ICASC looks at.

The *last* layer is the deepest feature with a grid that all of the class scores' gradient passes through, behind its
activation where there is one. The *inner* layer is the same at (about) twice its resolution; isotropic models, whose
features share one resolution, use the feature at 3/4 of their depth. docs/layers.md tells the rules.
"""
import math
from collections.abc import Iterator
from typing import Any

import torch.nn as nn

from .layout import FeatureLayer, ICASCLayers, Layout
from .module_state import is_inside_shard
from .owner import described_features
from .probe import Probe
from .wrappers import paths_around

__all__ = ['ISOTROPIC_INNER_DEPTH', 'LayerRules', 'is_finer']

# The depth rule of isotropic models, as a fraction of the feature list.
ISOTROPIC_INNER_DEPTH = 0.75

# Strides are powers of two, but odd input sizes round the grids: 1.75 to 2.12 is what models show.
MIN_INNER_RATIO = 1.5

# How many paths a message proposes.
CHOICES_OF_A_GRID = 3
MAX_CHOICES = 9

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def is_finer(layer: FeatureLayer, last: FeatureLayer) -> bool:
    return math.prod(layer.grid) >= MIN_INNER_RATIO ** 2 * math.prod(last.grid)


class LayerRules:
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
                if not (end.has_other_tokens or self.probe.is_on_every_path(feature, end)):
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
        deepest = [f for f in blocks if f.grid == blocks[0].grid]
        # An adapter (LoRA) makes a block of a linear layer that is a branch inside another one.
        ends = [f for f in deepest if not self._is_branch(f)] or deepest
        pairs = []
        for last in ends:
            finer = next(
                (f for f in blocks if is_finer(f, last) and self._is_stage_before(f, last)), None)
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
            r for r in self.probe.candidates.of(path, channels, stated)
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
            candidates = [r for p in inside for r in self.probe.candidates.of(p, entry.get('num_chs'))]
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

    def _is_branch(self, layer: FeatureLayer) -> bool:
        """Whether `layer` lies inside a module that something goes through beside it."""
        is_inside = any(parent in self.probe.calls for parent in paths_around(layer.path))
        return is_inside and not self.probe.is_on_every_path(layer)

    def _is_stage_before(self, layer: FeatureLayer, last: FeatureLayer) -> bool:
        """Whether `layer` precedes `last`, and is no branch inside a block that does.

        It may lie inside a stage that ends in its own downsampling: there nothing goes by it.
        """
        began = self.probe.calls[last.path].began
        is_inside = any(
            parent in self.probe.calls and self.probe.calls[parent].ended < began
            for parent in paths_around(layer.path))
        if is_inside and is_inside_shard(self.probe.model, layer.path):
            return False
        return self._precedes(layer, last) and (
            not is_inside or self.probe.is_on_every_path(layer))

    def _inner(self, stages: list[FeatureLayer], last: FeatureLayer) -> FeatureLayer | None:
        for feature in (f for f in stages[::-1] if is_finer(f, last)):
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
