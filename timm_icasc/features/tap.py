"""Tap features during one forward pass, on the path to the logits.

Nothing outlives the context: no hook, no changed module, no global setting.
"""
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from ..double_backward.mode import TwiceDifferentiable
from ..errors import ICASCError, LayerResolutionError
from .graph import check_last_call
from .layout import FeatureLayer
from .module_state import is_checkpointing, one_thread, survey
from .wrappers import compiled_around, run_eagerly, unwrap_model

__all__ = ['Features', 'capture_features', 'check_batch']


class Features(dict[str, torch.Tensor]):
    """Module path -> feature of the layer's last call, in the order of these calls.

    Attributes:
        made_by: The node of each in the autograd graph, as the model goes on with it.
        earlier: The nodes of the calls before.
        versions: Of each tensor as it was put out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made_by: dict[str, Any] = {}
        self.earlier: dict[str, set[Any]] = {}
        self.versions: dict[str, int] = {}

    def note(self, path: str, feature: torch.Tensor, handed_on: torch.Tensor) -> None:
        """Add the feature of a call; what the model goes on with may be a copy."""
        if path in self:
            self.earlier.setdefault(path, set()).add(self.made_by[path])
            del self[path]
        self[path], self.versions[path] = feature, feature._version
        self.made_by[path] = handed_on.grad_fn


def _check_called(model: nn.Module, layers: Sequence[FeatureLayer], features: Features) -> None:
    for layer in layers:
        if layer.path not in features:
            raise LayerResolutionError(
                f"{type(model).__name__} did not call '{layer.path}': gradient checkpointing calls other modules, so "
                f'find the layers (resolve_layers) after it is switched on or off; where layers are left out at random '
                f'(layer drop), name one that is always called with `layers`.')
    paths = [layer.path for layer in layers]
    if list(features) != paths:
        raise LayerResolutionError(f"layers are (inner, last): '{paths[0]}' must come before '{paths[-1]}'.")


def _check_intact(model: nn.Module, features: Features) -> None:
    for path, feature in features.items():
        if feature._version != features.versions[path]:
            raise LayerResolutionError(
                f"{type(model).__name__} overwrites the output of '{path}' in place, and not so in evaluation mode "
                f'(Dropout(inplace=True)?), so a map would be of something else: leave inplace out there.')


def check_batch(features: Features, logits: torch.Tensor) -> None:
    """Raise LayerResolutionError where features are not those that the class scores `[B, C]` are made of.

    And ICASCError where they are no such scores.
    """
    if logits.ndim != 2:
        raise ICASCError(
            f'`model` returned {tuple(logits.shape)}, not one score per class, [B, C]: where it has a squeeze(), name '
            f'the axis, for it takes the batch away from a single image.')
    for path, feature in features.items():
        if len(feature) != len(logits):
            raise LayerResolutionError(
                f"'{path}' gave features of {len(feature)} images, and `model` class scores of {len(logits)}: where it "
                f'runs its network on parts of the batch, one after the other, maps would be of the last part alone. '
                f'Give it no more images than a part has, or take the network inside.')
    for path, nodes in features.earlier.items():  # which they may not know in evaluation mode
        check_last_call(path, nodes, features.made_by[path], logits)


def _modules_of(
        model: nn.Module,
        layers: Sequence[FeatureLayer],
        run_plain: bool,
) -> list[nn.Module]:
    """The modules to tap; of this model, and not in something compiled, unless that is run as the plain model.

    Raises:
        LayerResolutionError: The model has no such layer, or leaves out patches.
        ICASCError: A layer is in a compiled model, unless `run_plain`.
    """
    inner, modules = unwrap_model(model), []
    for layer in layers:
        try:
            modules.append(inner.get_submodule(layer.path))
        except AttributeError as e:
            raise LayerResolutionError(
                f"{type(inner).__name__} has no layer '{layer.path}', which was found in another model, or in a module "
                f'around this one: find the layers of the model that is run (resolve_layers).') from e
    if not run_plain and any(compiled_around(model, layer.path) for layer in layers):
        raise ICASCError(
            '`model` is compiled, and so gives no gradients of inner features: train the plain model (of another '
            "library's trainer, leave `torch_compile` out), and compile what may be (`ICASCTask.compile`).")
    if survey(model).drops_patches and any(layer.layout == 'NLC' for layer in layers):
        raise LayerResolutionError(
            f'{type(inner).__name__} drops patches in training, and those that are left form no map: leave that out '
            f'(timm: `patch_drop_rate`).')
    return modules


def _captured(feature: torch.Tensor, modified_in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature with a graph, and what to hand on: a copy, where the model would overwrite it."""
    if feature.requires_grad:
        return feature, feature.clone() if modified_in_place else feature
    feature = feature.detach().requires_grad_()  # a frozen or unrecorded trunk: the graph starts here
    with torch.enable_grad():  # which may be switched off up to here
        return feature, feature.clone()  # a leaf must not be overwritten in place


@contextmanager
def capture_features(
        model: nn.Module,
        layers: Sequence[FeatureLayer],
        order: int = 2,
        inference: bool = False,
        tail_mode: TorchFunctionMode | None = None,
        first_feature: torch.Tensor | None = None,
        run_plain: bool = False,
) -> Iterator[Features]:
    """Capture the outputs of `layers` in the forward pass that runs inside the context.

    Args:
        model: The model that will be called; wrappers (DistributedDataParallel) are looked through.
        layers: Layers to tap, from `resolve_layers`.
        order: 2 makes what follows the first tap twice differentiable; with 1 the forward pass is untouched.
        inference: Build no graph before the first tap, whose output becomes a leaf: gradients then stop there. For maps
            at inference; the features carry no gradient to the parameters before the tap.
        tail_mode: Entered behind the first tap.
        first_feature: Taken in place of the output of the first of `layers`, with its graph; none is built before it.
        run_plain: Run a compiled model as the plain one that it was made of.

    Yields:
        Dictionary from module path to feature, in the layer's own layout, filled by the forward pass.

    Raises:
        LayerResolutionError: The model has no such layer, did not call it, or not in its turn, or has overwritten it.
        ICASCError: A layer is in a compiled model, unless `run_plain`.
    """
    modules = _modules_of(model, layers, run_plain)
    called, model, thread = model, unwrap_model(model), threading.get_ident()
    features = Features()
    begin_graph = inference or first_feature is not None
    with ExitStack() as stack:
        def tap(layer: FeatureLayer):
            def hook(module, args, output):
                if threading.get_ident() != thread:  # another's forward pass, in between
                    return output
                if not features:
                    if begin_graph:  # else what the model switches off stays off
                        torch.set_grad_enabled(True)
                    if order == 2:
                        stack.enter_context(TwiceDifferentiable(is_checkpointing(model)))
                    if tail_mode is not None:
                        stack.enter_context(tail_mode)
                feature = layer.get(output)
                # Of several calls the last one counts, whose shape it has; what the others put out is overwritten too.
                if layer is layers[0] and first_feature is not None and (
                        feature.shape[1:] == first_feature.shape[1:]):
                    feature = first_feature
                feature, handed_on = _captured(feature, layer.modified_in_place)
                features.note(layer.path, feature, handed_on)
                return layer.replace(output, handed_on)
            return hook

        stack.enter_context(one_thread(model))
        stack.enter_context(run_eagerly(called) if run_plain else nullcontext())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(not begin_graph))
        for layer, module in zip(layers, modules, strict=True):
            stack.enter_context(module.register_forward_hook(tap(layer)))
        yield features
    _check_called(model, layers, features)
    _check_intact(model, features)
