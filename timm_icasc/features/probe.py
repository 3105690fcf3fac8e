"""See what a model's modules put out, and what gradient reaches them, without leaving a trace in the model."""
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
import torch.nn as nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import LayerResolutionError
from .candidates import Candidates
from .graph import (
    check_last_call,
    graph_nodes,
    is_computed_from,
    made_by,
    nodes_on_every_path,
    read_through_views,
)
from .layout import FeatureLayer
from .meta import random_tensor
from .module_state import activation_or_norm, check_reentrant, evaluation_mode, is_sharded
from .obstacles import obstacle_to_gradients
from .outputs import SEVERAL_SCORES, find_class_scores, several_scores
from .tail import Call, Tail, run_model

__all__ = ['Probe']


def _has_no_head(model: nn.Module) -> bool:
    """Whether a model says that it puts out pooled features, and nobody has given it a classifier since."""
    if getattr(model, 'num_classes', 1) != 0:
        return False
    classifier = getattr(model, 'get_classifier', lambda: None)()
    heads = classifier if isinstance(classifier, tuple) else (classifier or nn.Identity(),)
    return next(nn.ModuleList(heads).parameters(), None) is None


def _is_feature(x: Any) -> bool:
    """Whether `x` can be a feature of the probe's two images; windows and heads folded into the batch are not."""
    return isinstance(x, torch.Tensor) and x.requires_grad and x.ndim in (3, 4) and len(x) == 2


def _has_graph(tensors: Any) -> bool:
    return any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree_flatten(tensors)[0])


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
        self._earlier: dict[str, set[Any]] = {}  # nodes of what the calls before put out
        self._gradients: dict[int, torch.Tensor | None] = {}
        self._tail_gradients: dict[tuple[str, int], torch.Tensor | None] = {}
        self._shares: dict[FeatureLayer, float] = {}
        self._passages: dict[Any, set[Any]] = {}
        self._graph: set[Any] = set()  # behind the class scores
        self.tail = Tail(model, input_size, self.calls)
        self.unrecorded: list[str] = []  # modules that ran with gradients switched off
        self.stops: list[str] = []  # modules that took a gradient's path in and put out none, innermost first
        # A scripted model cannot be run with other weights, and its parts take no hooks; those of a traced one do.
        if isinstance(model, torch.jit.ScriptModule) or any(
                isinstance(module, torch.jit.RecursiveScriptModule) for module in model.modules()):
            raise LayerResolutionError(f'{type(model).__name__} shows no layers: {self.obstacle()}.')
        parameter = next(model.parameters(), torch.empty(0, device='cpu'))
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
        output = self._watched_forward()
        self.logits = self._check_logits(output)
        self._graph = graph_nodes(self.logits)
        self.candidates = Candidates(model, self._images, self.calls, self._graph)
        if not self.logits.requires_grad:
            raise LayerResolutionError(
                f'The class scores of {type(model).__name__} have no gradient: {self.obstacle()}.')
        self._cotangent = random_tensor(self.logits.shape, generator).to(self.logits)

    def _watched_forward(self) -> Any:
        """Run the model on the images, and note each module's call; what it puts out."""
        clock = 0
        began: dict[str, list[int]] = {}

        def before(path: str) -> Callable:
            def hook(module, args):
                nonlocal clock
                clock += 1
                began.setdefault(path, []).append(clock)
                if not torch.is_grad_enabled():
                    self.unrecorded.append(path)
            return hook

        def after(path: str) -> Callable:
            def hook(module, args, output):
                nonlocal clock
                clock += 1
                leaves, structure = tree_flatten(output)
                features = [_is_feature(x) for x in leaves]
                if _has_graph(args) and not _has_graph(leaves):
                    self.stops.append(path)
                # An alias tells what is used once the module has returned from what is used inside it alone.
                outputs = [
                    x.view_as(x) if feature else None
                    for x, feature in zip(leaves, features, strict=True)]
                number = 0
                if path in self.calls:
                    number = self.calls[path].number + 1
                    self._earlier.setdefault(path, set()).update(self.calls[path].nodes)
                self.calls[path] = Call(
                    path, began[path].pop(), clock, number, outputs,
                    [0 if x is None else x._version for x in outputs],
                    [None if x is None else x.grad_fn for x in outputs])
                return tree_unflatten(
                    [x if out is None else out for x, out in zip(leaves, outputs, strict=True)],
                    structure)
            return hook

        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                if path:
                    stack.enter_context(module.register_forward_pre_hook(before(path)))
                    stack.enter_context(module.register_forward_hook(after(path)))
            return run_model(self.model, self._images.requires_grad_(), self._random_weights)

    def _check_logits(self, output: Any) -> torch.Tensor:
        logits, model = find_class_scores(output), self.model
        if several_scores(output):
            raise LayerResolutionError(SEVERAL_SCORES)
        if logits is None or logits.ndim != 2 or _has_no_head(model):
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise LayerResolutionError(
                f'{type(model).__name__} does not return class logits [B, C] but {got}; a timm model does with '
                "num_classes >= 2 and without features_only, a model of one's own may return an object or a dictionary "
                "with 'logits' or a tuple with the scores first.")
        by_place = isinstance(output, (tuple, list)) and not hasattr(output, 'logits')
        for x in output[1:] if by_place else ():
            if isinstance(x, torch.Tensor) and x.ndim == 2 and is_computed_from(x, logits):
                raise LayerResolutionError(
                    f'{type(model).__name__} returns {tuple(logits.shape)} first, which would be the class scores, and '
                    f"computes {tuple(x.shape)} from it: let it return a dictionary with the scores as 'logits'.")
        return logits

    def obstacle(self) -> str:
        """Why gradients of the class scores do not reach features, and the remedy: for a message."""
        return obstacle_to_gradients(
            self.model, list(self.calls), self.unrecorded, self.stops, self._images_node is None)

    @cached_property
    def _images_node(self) -> Any:
        """The node of the images in the graph of the class scores; None where no path leads to it."""
        nodes = (node for node in self._graph if getattr(node, 'variable', None) is self._images)
        return next(nodes, None)

    def is_on_path(self, layer: FeatureLayer) -> bool:
        """Whether the class scores are computed from what the module hands on."""
        if self.on_meta:  # no values to compute, so the graph alone is asked
            return self._feature(layer).grad_fn in self._graph
        return self._gradient(layer) is not None

    def _feature(self, layer: FeatureLayer) -> torch.Tensor:
        return self.calls[layer.path].outputs[layer.output_index]

    def _node(self, layer: FeatureLayer) -> Any:
        return self.calls[layer.path].nodes[layer.output_index]

    def maker(self, layer: FeatureLayer) -> tuple[str | None, str]:
        """What computed the feature's values, 'activation', 'norm' or None, and the path to name it by.

        The path is that of the activation or norm, or of the outermost module that ends with it: `bn2` and not
        `bn2.act`, nor a module behind it that hands on what it is given. Functions count as modules do.
        """
        same = [
            path for node in read_through_views(self._node(layer))
            for path in self._paths_of_node.get(node, ())]
        kinds = {path: activation_or_norm(self.model.get_submodule(path)) for path in same}
        for kind in ('activation', 'norm'):
            makers = [path for path in same if kinds[path] == kind]
            if makers:
                ends = [path for path in same if any(f'{maker}.'.startswith(f'{path}.') for maker in makers)]
                return kind, max(ends, key=lambda path: self.calls[path].ended)
        return made_by(self._node(layer)), layer.path

    @cached_property
    def _paths_of_node(self) -> dict[Any, list[str]]:
        paths: dict[Any, list[str]] = {}
        for path, call in self.calls.items():
            for node in call.nodes:
                paths.setdefault(node, []).append(path)
        return paths

    def carries_all(self, layer: FeatureLayer, source: FeatureLayer) -> bool:
        """Whether all that the class scores know of the grid of `source` passes through `layer`, which comes later.

        Told by the graph: cut at the layer, no path leads to the source. Class tokens go by every cut of the patches,
        so there the gradient is asked: with the layer's feature held fixed, nothing reaches the source's grid.
        """
        if layer.modified_in_place:  # what its module put out is not what is handed on
            return False
        return self.is_on_every_path(layer, source) or (
            source.has_other_tokens and self._is_fixed_by(layer, source))

    def is_on_every_path(self, layer: FeatureLayer, source: FeatureLayer | None = None) -> bool:
        """Whether no path of the graph leads from the class scores back to `source` but through `layer`.

        Args:
            layer: The feature that comes later.
            source: The feature that comes before; the images, if None.
        """
        root = self._images_node if source is None else self._feature(source).grad_fn
        if root not in self._passages:
            self._passages[root] = nodes_on_every_path(self.logits.grad_fn, root)
        return self._node(layer) in self._passages[root]

    def check_last_call(self, layer: FeatureLayer) -> None:
        """`graph.check_last_call` of the module that the layer is of."""
        earlier = self._earlier.get(layer.path, set())
        check_last_call(layer.path, earlier, self._node(layer), self.logits)

    def _is_fixed_by(self, layer: FeatureLayer, source: FeatureLayer) -> bool:
        """Whether no gradient reaches the grid of `source` but by `layer`."""
        if self.on_meta:
            gradients = self.tail.gradients(source, fixed=layer)
            return not self._share(source, gradients[source.path, source.output_index])
        if is_sharded(self.model):  # the parameters are there for one backward pass, through all of the model
            again = Probe(self.model, self.input_size)
            again._feature(layer).register_hook(torch.zeros_like)
            return not again.nonzero_share(source)
        constant = self._again._feature(layer).register_hook(torch.zeros_like)
        with constant, evaluation_mode(self.model):  # gradient checkpointing runs modules again
            gradient, = torch.autograd.grad(
                self._again.logits, [self._again._feature(source)], self._cotangent,
                retain_graph=True, allow_unused=True)
        return not self._share(source, gradient)

    @cached_property
    def _again(self) -> 'Probe':
        """The same with a graph that outlives a backward pass, for one with each of several features held fixed."""
        return Probe(self.model, self.input_size)

    def _gradient(self, layer: FeatureLayer) -> torch.Tensor | None:
        """Gradient of the logits, weighted at random, with respect to the feature; None where it is off the path."""
        if not self._gradients:
            features = {
                id(x): x for call in self.calls.values() for x in call.outputs if x is not None}
            with evaluation_mode(self.model), check_reentrant():  # gradient checkpointing runs modules again
                self._gradients = dict(zip(features, torch.autograd.grad(
                    self.logits, list(features.values()), self._cotangent, allow_unused=True),
                    strict=True))
        return self._gradients[id(self._feature(layer))]

    def nonzero_share(self, layer: FeatureLayer) -> float:
        """Share of the grid positions that the logits depend on, prefix tokens left aside; 0 off the path."""
        if layer not in self._shares:
            reached = self.is_on_path(layer)
            self._shares[layer] = self._share(layer, self._known_gradient(layer)) if reached else 0.
        return self._shares[layer]

    def _known_gradient(self, layer: FeatureLayer) -> torch.Tensor | None:
        """The gradient; on meta tensors, of random values, and whatever is behind becomes known with it."""
        if not self.on_meta:
            return self._gradient(layer)
        key = layer.path, layer.output_index
        if key not in self._tail_gradients:
            self._tail_gradients.update(self.tail.gradients(layer))
        return self._tail_gradients[key]

    def _share(self, layer: FeatureLayer, gradient: torch.Tensor | None) -> float:
        if gradient is None:
            return 0.
        return (layer.to_nchw(gradient, self.image_size) != 0).any(1).float().mean().item()

    def negative_share(self, layers: Sequence[FeatureLayer]) -> list[float] | None:
        """Share of each feature's values below 0.

        On meta tensors, with random values from the feature before each layer on; None if there is none.
        """
        value_of = self.tail.value if self.on_meta else self._feature
        values = [value_of(layer) for layer in layers]
        if any(value is None for value in values):
            return None
        return [(value < 0).float().mean().item() for value in values]

    def is_reached(self, layer: FeatureLayer) -> bool:
        """Whether a gradient of the logits reaches the feature's grid; on meta tensors, whether a path leads to it."""
        return self.is_on_path(layer) and (self.on_meta or self.nonzero_share(layer) > 0)
