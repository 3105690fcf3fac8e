"""What a backward pass asks for."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ['features_only', 'is_features_only']

# Autograd tells a Python function which inputs require a gradient, not which are asked for: convolutions and norms
# would compute the weights' gradient in every pass that wants the features' alone. A pass is told by its number, which
# it has on all threads that autograd runs it on, and no other pass, of another model in another thread, ever has.
_passes: set[int] = set()


@contextmanager
def features_only(output: torch.Tensor) -> Iterator[None]:
    """Context of a backward pass from `output` that asks for gradients of features alone, not of parameters."""
    begun: set[int] = set()

    def note(gradient: torch.Tensor) -> None:
        number = torch._C._current_graph_task_id()
        begun.add(number)
        _passes.add(number)

    try:
        with output.register_hook(note):
            yield
    finally:
        _passes.difference_update(begun)


def is_features_only() -> bool:
    """Whether the backward pass that runs is one of `features_only`."""
    return torch._C._current_graph_task_id() in _passes
