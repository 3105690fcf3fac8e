"""See what a model's modules put out, and what gradient reaches them, without leaving a trace in the model."""
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import LayerResolutionError
from .layout import FeatureLayer, read_layout
from .meta import Materialize, random_tensor
from .module_state import evaluation_mode
from .outputs import find_class_scores
from .owner import ancestor_with

__all__ = ['Call', 'Probe', 'graph_nodes']


def graph_nodes(root: torch.Tensor) -> set[Any]:
    """Every node of the autograd graph behind a tensor."""
    seen, nodes = set(), [root.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(parent for parent, _ in node.next_functions)
    return seen


class Call(NamedTuple):
    """One call of a module during the probe's forward pass."""
    path: str
    began: int
    ended: int
    number: int  # how many calls of the same module went before
    outputs: list[torch.Tensor | None]  # None for what cannot be a feature of two images
    versions: list[int]


def _is_feature(x: Any) -> bool:
    """Whether `x` can be a feature of the probe's two images; windows and heads folded into the batch are not."""
    return isinstance(x, torch.Tensor) and x.requires_grad and x.ndim in (3, 4) and len(x) == 2


class Probe:
    """Outputs of every module, and gradients of the logits with respect to them, in evaluation mode.

    One forward pass on two random images; a gradient is taken when it is asked for. Works on meta tensors too, whose
    gradients have shapes but no values: there, what stands behind a feature is run again with random values.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]):
        self.model = model
        self.input_size = input_size
        self.image_size = input_size[-2:]
        self.calls: dict[str, Call] = {}  # the last call of each module
        self._gradients: dict[int, torch.Tensor | None] = {}
        self._shares: dict[FeatureLayer, float] = {}
        parameter = next(model.parameters(), torch.empty(0))
        self.on_meta = parameter.device.type == 'meta'
        generator = torch.Generator().manual_seed(0)  # leaves the global random state alone
        self._images = random_tensor((2, *input_size), generator).to(
            parameter.device, parameter.dtype)
        # Heads and norms that start at zero (timm's zero_init_last) would hide every gradient; the probe sees random
        # values in their place.
        self._random_weights = {} if self.on_meta else {
            name: random_tensor(p.shape, generator).to(p.device, p.dtype) * 0.02
            for name, p in model.named_parameters()
            if (p.ndim > 1 or name.split('.')[-1] == 'weight') and not p.detach().any()
        }
        self._clock = 0
        began: dict[str, list[int]] = {}

        def before(path: str) -> Callable:
            def hook(module, args):
                self._clock += 1
                began.setdefault(path, []).append(self._clock)
            return hook

        def after(path: str) -> Callable:
            def hook(module, args, output):
                self._clock += 1
                leaves, structure = tree_flatten(output)
                features = [_is_feature(x) for x in leaves]
                # An alias tells what is used once the module has returned from what is used inside it alone.
                leaves = [
                    x.view_as(x) if feature else x for x,
                    feature in zip(leaves, features, strict=True)]
                number = self.calls[path].number + 1 if path in self.calls else 0
                self.calls[path] = Call(
                    path, began[path].pop(), self._clock, number,
                    [x if feature else None for x, feature in zip(leaves, features, strict=True)],
                    [
                        x._version if feature else 0
                        for x, feature in zip(leaves, features, strict=True)])
                return tree_unflatten(leaves, structure)
            return hook

        handles = [
            module.register_forward_pre_hook(before(path)) for path,
            module in model.named_modules() if path]
        handles += [
            module.register_forward_hook(after(path)) for path,
            module in model.named_modules() if path]
        try:
            output = self._forward(self._images.requires_grad_(), self._random_weights)
        finally:
            for handle in handles:
                handle.remove()
        self.logits = self._check_logits(output)
        self._cotangent = random_tensor(self.logits.shape, generator).to(self.logits)

    def _forward(self, images: torch.Tensor, weights: dict[str, torch.Tensor]) -> Any:
        with evaluation_mode(self.model), torch.enable_grad():
            try:
                return torch.func.functional_call(self.model, weights, (images,))
            except Exception as e:  # whatever 1,400 architectures say of an input that they cannot take
                raise LayerResolutionError(
                    f'{type(self.model).__name__} cannot run on {" x ".join(map(str, self.input_size))} images: '
                    f'{" ".join(str(e).split())[:200] or type(e).__name__}') from e

    def _check_logits(self, output: Any) -> torch.Tensor:
        logits, model = find_class_scores(output), self.model
        if logits is None or logits.ndim != 2 or getattr(model, 'num_classes', 1) == 0:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise LayerResolutionError(
                f'{type(model).__name__} does not return class logits [B, C] but {got}; a timm model does with '
                "num_classes >= 2 and without features_only, a model of one's own may return an object or a dictionary "
                "with 'logits' or a tuple with the scores first.")
        return logits

    def candidates(
            self,
            path: str,
            channels: int | None = None,
    ) -> list[FeatureLayer]:
        """The features with a spatial grid that the module puts out, on the path to the logits or not."""
        candidates = []
        owner = ancestor_with(self.model, path, 'num_prefix_tokens')
        prefix_tokens = owner[1].num_prefix_tokens if owner else 0
        for index, (x, version) in enumerate(
            zip(self.calls[path].outputs, self.calls[path].versions, strict=True)):
            layer = None
            if x is not None:
                layer = read_layout(path, x.shape, self.image_size, channels, prefix_tokens, index)
            if layer is not None:
                candidates.append(replace(
                    layer, modified_in_place=x._version != version,
                    **self._own_order(layer, self.calls[path])))
        return candidates

    def _own_order(self, layer: FeatureLayer, call: Call) -> dict[str, Any]:
        """Grid and token order by the model's own `reroll(tokens, block)`, where it has one (Hiera)."""
        owner = ancestor_with(self.model, layer.path, 'reroll') if layer.layout == 'NLC' else None
        if owner is None:
            return {}
        prefix, model = owner
        numbers = [
            (re.fullmatch(r'blocks\.(\d+)', path[len(prefix):].strip('.')), block)
            for path, block in self.calls.items() if path.startswith(prefix)]
        blocks = [int(number[1]) for number, block in numbers if number and block.began <= call.ended]
        num_tokens = call.outputs[layer.output_index].shape[1]
        try:
            order = model.reroll(
                torch.arange(num_tokens)[None, :, None], max(blocks, default=0))[0, ..., 0]
        except RuntimeError:  # not the tokens that this block hands on
            return {}
        return {'prefix_tokens': 0, 'grid': tuple(order.shape), 'token_order': tuple(order.flatten().tolist())}

    def is_on_path(self, layer: FeatureLayer) -> bool:
        """Whether the class scores are computed from what the module hands on."""
        if self.on_meta:  # no values to compute, so the graph alone is asked
            return self._feature(layer).grad_fn in self._graph
        return self._gradient(layer) is not None

    def _feature(self, layer: FeatureLayer) -> torch.Tensor:
        return self.calls[layer.path].outputs[layer.output_index]

    @cached_property
    def _graph(self) -> set[Any]:
        return graph_nodes(self.logits)

    def _gradient(self, layer: FeatureLayer) -> torch.Tensor | None:
        """Gradient of the logits, weighted at random, with respect to the feature; None where it is off the path."""
        if not self._gradients:
            features = {
                id(x): x for call in self.calls.values() for x in call.outputs if x is not None}
            with evaluation_mode(self.model):  # gradient checkpointing runs modules again
                self._gradients = dict(zip(features, torch.autograd.grad(
                    self.logits, list(features.values()), self._cotangent, allow_unused=True),
                    strict=True))
        return self._gradients[id(self._feature(layer))]

    def nonzero_share(self, layer: FeatureLayer) -> float:
        """Share of the grid positions that the logits depend on, prefix tokens left aside; 0 off the path."""
        if layer not in self._shares:
            gradient = None
            if self.is_on_path(layer):
                gradient = self._materialized_gradient(layer) if self.on_meta else self._gradient(
                    layer)
            self._shares[layer] = 0. if gradient is None else (
                layer.to_nchw(gradient, self.image_size) != 0).any(1).float().mean().item()
        return self._shares[layer]

    def is_reached(self, layer: FeatureLayer) -> bool:
        """Whether a gradient of the logits reaches the feature's grid; on meta tensors, whether a path leads to it."""
        return self.is_on_path(layer) and (self.on_meta or self.nonzero_share(layer) > 0)

    def _materialized_gradient(self, layer: FeatureLayer) -> torch.Tensor | None:
        """The gradient with random values from the feature on, for a model on meta tensors."""
        generator = torch.Generator().manual_seed(0)
        feature, number, calls = None, self.calls[layer.path].number, 0

        def start_here(module, args, output):
            nonlocal feature, calls
            calls += 1
            if calls - 1 != number:
                return output
            x = layer.get(output)
            stack.enter_context(Materialize(generator))
            feature = random_tensor(x.shape, generator).to(x.dtype).requires_grad_()
            return layer.replace(output, feature.clone())  # a leaf must not be overwritten in place

        constants = {name: p.detach() for name, p in self.model.named_parameters()}  # no graph that leads to meta
        with ExitStack() as stack:
            handle = self.model.get_submodule(layer.path).register_forward_hook(start_here)
            stack.callback(handle.remove)
            logits = find_class_scores(self._forward(self._images[:1].detach(), constants))  # one image tells
            if not logits.requires_grad:
                return None
            cotangent = random_tensor(logits.shape, generator).to(logits)
            return torch.autograd.grad(logits, [feature], cotangent, allow_unused=True)[0]
