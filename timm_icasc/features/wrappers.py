"""What lies around a module: the modules that it is in, DistributedDataParallel, DataParallel, torch.compile."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn

from ..errors import ICASCError

__all__ = [
    'DATA_PARALLEL', 'STATIC_GRAPH', 'check_model', 'check_wrappers', 'compiled_around', 'is_compiled',
    'paths_around', 'run_eagerly', 'unwrap_model',
]

DATA_PARALLEL = (
    'ICASC does not work with nn.DataParallel on several devices, which runs copies of the model in threads: use '
    'DistributedDataParallel, a process for each device.')

STATIC_GRAPH = 'ICASC does not work with DistributedDataParallel(static_graph=True): leave it off.'


def check_model(model: nn.Module, error: type[ICASCError] = ICASCError) -> None:
    """Raise an error of that type where `model` is a name, a function or anything else that is no module."""
    if not isinstance(model, nn.Module):
        raise error(f'`model` must be a torch.nn.Module, got {model!r}; timm.create_model makes one.')


def _wrapped(model: nn.Module) -> nn.Module | None:
    """What a DistributedDataParallel or torch.compile wrapper holds; None of other modules."""
    if '_orig_mod' in model._modules:  # not hasattr: wrappers hand on attributes of a compiled part
        return model._orig_mod
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, wrappers) else None


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ICASCError(DATA_PARALLEL)
        inner = _wrapped(model)
        if inner is None:
            return model
        model = inner


def check_wrappers(model: nn.Module) -> None:
    """Raise ICASCError for DistributedDataParallel(static_graph=True), which would synchronise no gradient."""
    while model is not None:
        if isinstance(model, nn.parallel.DistributedDataParallel) and model.static_graph:
            raise ICASCError(STATIC_GRAPH)
        model = _wrapped(model)


def paths_around(path: str) -> list[str]:
    """Paths of the modules that the one at `path` lies in, the model itself aside, outermost first."""
    return [path[:i] for i, letter in enumerate(path) if letter == '.']


def is_compiled(module: nn.Module) -> bool:
    """Whether the module itself is compiled, by `torch.compile(module)` or by `module.compile()`."""
    return '_orig_mod' in module._modules or vars(module).get('_compiled_call_impl') is not None


@contextmanager
def run_eagerly(model: nn.Module) -> Iterator[None]:
    """Run compiled models, and compiled parts of models, as the plain ones that they were made of."""
    if not any(map(is_compiled, model.modules())):
        yield
        return
    with torch.compiler.set_stance('force_eager'):
        yield


def compiled_around(model: nn.Module, path: str) -> bool:
    """Whether the module at `path` of the unwrapped model is compiled, or lies in something that is."""
    inner = unwrap_model(model)
    around = [inner.get_submodule(outer) for outer in ('', *paths_around(path), path)]
    while model is not inner:
        around.append(model)
        model = _wrapped(model)
    return any(map(is_compiled, around))
