"""What stands behind a feature of a model on meta tensors, run with random values from there on."""
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import LayerResolutionError, one_line
from .graph import graph_nodes, read_through_views
from .layout import FeatureLayer
from .meta import Materialize, random_tensor
from .module_state import evaluation_mode
from .outputs import find_class_scores
from .wrappers import run_eagerly

__all__ = ['Call', 'Tail', 'run_model']


LARGE_STAGE = 2 ** 25  # weights


class Call(NamedTuple):
    """One call of a module during the probe's forward pass."""
    path: str
    began: int
    ended: int
    number: int  # how many calls of the same module went before
    outputs: list[torch.Tensor | None]  # None for what cannot be a feature of two images
    versions: list[int]
    nodes: list[Any]  # of the autograd graph, as the module put the outputs out


class _Enough(Exception):
    """Ends a forward pass that has shown what it was run for."""


def run_model(model: nn.Module, images: torch.Tensor, weights: dict[str, torch.Tensor]) -> Any:
    """What the model returns in evaluation mode, with some of its weights replaced.

    It writes to copies of its buffers: some observe, or initialise themselves, in evaluation mode too. Random numbers
    that it draws are not missing later.

    Raises:
        LayerResolutionError: It cannot run on these images.
    """
    devices = [images.device] if images.is_cuda else []
    with evaluation_mode(model), run_eagerly(model), torch.enable_grad(), (
            torch.random.fork_rng(devices)):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            return torch.func.functional_call(model, {**buffers, **weights}, (images,))
        except _Enough:
            raise
        except Exception as e:  # whatever 1,400 architectures say of an input that they cannot take
            if 'inference tensor' in str(e).lower():
                raise LayerResolutionError(
                    f'{type(model).__name__} holds weights, or other tensors, that were made in '
                    f'`torch.inference_mode()` and let no gradient through: create or load the model outside of it.'
                ) from e
            raise LayerResolutionError(
                f'{type(model).__name__} cannot run on {" x ".join(map(str, images.shape[1:]))} images '
                f'(`input_size` says channels, height and width): {one_line(e)}') from e


class Tail:
    """Runs of a model on meta tensors that get values at one feature.

    Args:
        model: On the meta device.
        input_size: Channels, height and width of the images.
        calls: The last call of each module, by its path.
    """

    def __init__(
            self,
            model: nn.Module,
            input_size: tuple[int, int, int],
            calls: Mapping[str, Call],
    ):
        self.model = model
        self.input_size = input_size
        self.calls = calls
        self._values: dict[tuple[str, int], torch.Tensor | None] = {}

    def gradients(
            self,
            layer: FeatureLayer,
            fixed: FeatureLayer | None = None,
    ) -> dict[tuple[str, int], torch.Tensor | None]:
        """Gradients of the class scores, weighted at random, with respect to a feature of random values and all behind.

        Args:
            layer: The feature, of one image.
            fixed: A later feature that is taken as a constant, so that no gradient passes it.

        Returns:
            By module path and number of the output: the gradient, None where there is none. What the model overwrites
            in place is left out, unless it is the feature itself.
        """
        seen: dict[tuple[str, int], tuple[torch.Tensor, int]] = {}
        constant = nullcontext() if fixed is None else self._replaced(fixed, torch.Tensor.detach)
        with constant, self._watched(seen), self.run(layer) as (feature, logits):
            whole = {key: x for key, (x, version) in seen.items() if x._version == version}
            if fixed is None:
                self._values = {key: x.detach() for key, x in whole.items()} | self._values
            whole[layer.path, layer.output_index] = feature
            if not logits.requires_grad:
                return dict.fromkeys(whole)
            cotangent = random_tensor(logits.shape, torch.Generator().manual_seed(1)).to(logits)
            gradients = torch.autograd.grad(
                logits, list(whole.values()), cotangent, allow_unused=True)
            return dict(zip(whole, gradients, strict=True))

    @contextmanager
    def _watched(self, seen: dict[tuple[str, int], tuple[torch.Tensor, int]]) -> Iterator[None]:
        """Note every output with values and a gradient, and its version, of the last call of each module."""
        def hook_of(path: str) -> Callable:
            def hook(module, args, output):
                leaves, structure = tree_flatten(output)
                for index, x in enumerate(leaves):
                    if isinstance(x, torch.Tensor) and not x.is_meta and x.requires_grad:
                        # As in the probe: an alias tells what is used outside of the module from what is used inside.
                        leaves[index] = x = x.view_as(x)
                        seen[path, index] = x, x._version
                return tree_unflatten(leaves, structure)
            return hook

        with ExitStack() as stack:
            for path in self.calls:
                module = self.model.get_submodule(path)
                stack.enter_context(module.register_forward_hook(hook_of(path)))
            yield

    def value(self, layer: FeatureLayer) -> torch.Tensor | None:
        """A feature of one image, computed from random values of the latest feature before, or of the end of a stage.

        None if there is none, or if an operation in between takes no random values (an LSTM's weights, a copy between
        devices).
        """
        key = layer.path, layer.output_index
        if key not in self._values:
            self._values[key] = self._value(layer)
        return self._values[key]

    def _value(self, layer: FeatureLayer) -> torch.Tensor | None:
        start, seen = self._before(layer), []
        if start is None:
            return None

        def look(x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            raise _Enough  # the rest of a large model would take long

        with suppress(_Enough, LayerResolutionError), self._replaced(layer, look), self.run(start):
            pass
        return seen[0].detach() if seen and not seen[0].is_meta else None

    @contextmanager
    def run(
            self,
            layer: FeatureLayer,
            values: torch.Tensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The class scores that follow from a feature; gradients of them are taken while the context is open.

        The same values stand in for weights, and for what goes by the feature, of every image and in every run.

        Args:
            layer: The feature.
            values: Its values, for any number of images; random ones of one image when None.

        Yields:
            The values, a leaf of the graph, and the class scores `[B, C]`.
        """
        images = 1 if values is None else len(values)
        features: list[torch.Tensor] = []
        constants = {name: p.detach() for name, p in self.model.named_parameters()}  # no graph that leads to meta
        with ExitStack() as stack:
            def start_here(x: torch.Tensor) -> torch.Tensor:
                stack.enter_context(Materialize(images))
                generator = torch.Generator().manual_seed(0)
                random = values is None
                value = random_tensor(x.shape, generator).to(x.dtype) if random else values.clone()
                features.append(value.detach().requires_grad_())
                return features[0].clone()  # a leaf must not be overwritten in place

            stack.enter_context(self._replaced(layer, start_here))
            blank = torch.empty(images, *self.input_size, device='meta')
            logits = find_class_scores(run_model(self.model, blank, constants))
            yield features[0], logits

    def _before(self, layer: FeatureLayer) -> FeatureLayer | None:
        """The latest feature that was there before the layer's module began, and that the layer is computed from.

        In place of a large stage, its last block is meant: forty blocks of random weights would fill the memory.
        """
        call = self.calls[layer.path]
        same = set(read_through_views(call.nodes[layer.output_index]))
        behind = graph_nodes(call.outputs[layer.output_index]) - same
        began = call.began
        if sum(p.numel() for p in self.model.get_submodule(layer.path).parameters()) > LARGE_STAGE:
            began = min((
                c.began for c in self.calls.values()
                if c.path.startswith(f'{layer.path}.') and same.intersection(c.nodes) and self._ends_series(c)),
                default=began)
        earlier = [c for c in self.calls.values() if c.ended < began]
        for source in sorted(earlier, key=lambda c: c.ended, reverse=True):
            for index, node in enumerate(source.nodes):
                if node in behind:
                    return FeatureLayer(source.path, 'unknown', 0, (0, 0), output_index=index)
        return None

    def _ends_series(self, call: Call) -> bool:
        """Whether a module with children comes after another of its kind."""
        module, parent = self.model.get_submodule(call.path), call.path.rpartition('.')[0]
        return any(module.children()) and any(
            c.path.rpartition('.')[0] == parent and c.ended < call.began
            and type(self.model.get_submodule(c.path)) is type(module)
            for c in self.calls.values())

    @contextmanager
    def _replaced(
            self,
            layer: FeatureLayer,
            function: Callable[[torch.Tensor], torch.Tensor],
    ) -> Iterator[None]:
        """Hand on `function` of the feature in place of it."""
        number, calls = self.calls[layer.path].number, 0

        def hook(module, args, output):
            nonlocal calls
            calls += 1
            if calls - 1 == number:
                return layer.replace(output, function(layer.get(output)))
            return output

        with self.model.get_submodule(layer.path).register_forward_hook(hook):
            yield
