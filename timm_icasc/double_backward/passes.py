"""What a backward pass asks for."""
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['features_only', 'is_features_only']

# Autograd tells a Python function which inputs require a gradient, not which are asked for: convolutions and norms
# would compute the weights' gradient in every pass that wants the features' alone. A global, since autograd has
# threads of its own.
_features_only = False


@contextmanager
def features_only() -> Iterator[None]:
    """Context of a backward pass that asks for gradients of features alone, not of parameters."""
    global _features_only
    before, _features_only = _features_only, True
    try:
        yield
    finally:
        _features_only = before


def is_features_only() -> bool:
    """Whether the backward pass that runs is inside `features_only`."""
    return _features_only
