"""Why a model gives no gradients of its class scores at its features, each reason in a sentence of its own."""
from collections.abc import Sequence

import torch
import torch.nn as nn

__all__ = ['obstacle_to_gradients']


def obstacle_to_gradients(
        model: nn.Module,
        called: Sequence[str],
        unrecorded: Sequence[str],
        stops: Sequence[str],
        is_cut: bool,
) -> str:
    """The reason and the remedy, for a message; empty where nothing was seen that stands in the way.

    Args:
        model: The model that was run with gradients switched on.
        called: Paths of the modules that were called.
        unrecorded: Of those that ran with gradients switched off.
        stops: Of those that put out no graph though their input had one, innermost first.
        is_cut: Whether no path of the graph leads from the class scores back to the images.
    """
    modules = model.named_modules()
    scripted = [path for path, module in modules if isinstance(module, torch.jit.ScriptModule)]
    if scripted and scripted[0]:
        return (
            f"'{scripted[0]}' is scripted or traced: its modules are not called one by one, so put the module that it "
            'was made of in its place')
    if scripted or (not called and any(True for _ in model.children())):
        return (
            'its modules are not called one by one (scripted, traced or exported?), so pass the model that it was made '
            'of')
    if unrecorded:
        return (
            f"'{unrecorded[0]}' runs with gradients switched off (torch.no_grad() or inference_mode() in forward()?), "
            'so take that out; requires_grad_(False) freezes parameters and lets gradients through')
    for path in called:  # some put out a graph all the same, which leads nowhere
        kind = type(model.get_submodule(path))
        if 'quantized' in kind.__module__.lower():
            return f"'{path}' is quantised and has no derivative, so pass the model as it was before"
    if stops:
        return f"'{stops[0]}' hands no gradient on (detach() or an operation without a derivative?), so let it"
    if is_cut:
        return (
            'no gradient of the scores reaches the images, though no module stops it (detach() in a forward()?), so '
            'let it')
    return ''
