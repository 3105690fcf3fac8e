"""What a model does before its inner layer, and how to compile it: no gradient of a class score goes through there.

What follows the inner layer stays eager. A compiled graph makes the gradients of all of its parameters whenever one
passes through it, and so twice more than needed where maps are made; and it has no second derivative.
"""
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from types import FunctionType
from typing import Any

import torch
import torch.nn as nn

from ..errors import one_line
from .layout import FeatureLayer
from .module_state import is_checkpointing, is_sharded
from .wrappers import paths_around

__all__ = ['compile_modules', 'why_eager', 'watch_trunk']


_CALLS = count()


def why_eager(model: nn.Module) -> str | None:
    """What keeps a model's training from being compiled in parts; None where nothing does."""
    if is_checkpointing(model):
        return 'gradient checkpointing runs the blocks once more'
    return 'fully_shard (FSDP2) gathers the parameters of each part by hooks' if is_sharded(model) else None


@contextmanager
def watch_trunk(model: nn.Module, layer: FeatureLayer) -> Iterator[list[nn.Module]]:
    """Find the modules that a forward pass inside the context is done with when it comes to a layer's output.

    Args:
        model: The model itself, without wrappers.
        layer: Of this model.

    Yields:
        A list that is filled at the end of the context: of the modules with children that have ended by then, and are
        not called again, the outermost.
    """
    ended: dict[str, bool] = {}  # path of a module -> whether each of its calls ended before the layer's output
    reached = False

    def end(path: str) -> Callable:
        def hook(module, args, output):
            nonlocal reached
            reached = reached or path == layer.path
            ended[path] = ended.get(path, True) and not reached
            reached = reached and path != ''  # the most confused images of a batch run a second time
        return hook

    found: list[nn.Module] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.enter_context(module.register_forward_hook(end(path)))
        yield found
    whole = {
        path for path, before in ended.items()
        if before and any(model.get_submodule(path).children())}
    found.extend(
        model.get_submodule(path) for path in ended
        if path in whole and not whole.intersection(paths_around(path)))


def _own_call(module: nn.Module) -> Callable:
    """A call of the module by code of its own, with a name of its own.

    Torch limits compilations by code, and modules share that of a call. What it remembers of the shapes goes by the
    name: stages of one type would count as one whose images change their size, and be compiled for any size.
    """
    def call(*args, **kwargs):
        return module._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f'call_{type(module).__name__}_{next(_CALLS)}')
    return FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)


def _or_eager(module: nn.Module, compiled: Callable) -> Callable:
    """What is called in place of a module: as compiled, or, where the compiler fails, as it is from then on."""
    from torch._dynamo.exc import TorchDynamoException  # loads the compiler

    def call(*args, **kwargs):
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as e:
            warnings.warn(
                f'{type(module).__name__} is not compiled, and stays as it is: {one_line(e)}', stacklevel=2)
            module._compiled_call_impl = None
            return module._call_impl(*args, **kwargs)
    return call


def compile_modules(modules: list[nn.Module], **kwargs: Any) -> None:
    """Compile each module by itself, in place: names, state and copies of it stay those of the plain module.

    Args:
        modules: Of one model.
        **kwargs: Of `torch.compile`.
    """
    for module in modules:
        # As `module.compile` sets it: neither saved nor copied.
        module._compiled_call_impl = _or_eager(module, torch.compile(_own_call(module), **kwargs))
