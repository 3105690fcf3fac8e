"""Meta tensors: shapes without values, followed quickly, and put into values where values are wanted."""
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ['Materialize', 'RememberShapes', 'random_tensor']


def random_tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal numbers of the CPU, whatever the default device, that leave the global random state alone."""
    return torch.randn(shape, generator=generator, device='cpu')


@lru_cache(1)
def _table() -> torch.Tensor:
    """Random numbers to be copied: ten times faster than to draw those of every weight anew.

    A prime number of them, so that the rows of a large matrix are not the same.
    """
    return random_tensor((1_000_003,), torch.Generator().manual_seed(0)).mul_(0.1)


class _Uncached(Exception):
    """An argument whose values an operation may depend on."""


class _Shape(NamedTuple):
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> torch.Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device='meta')


def _key(x: Any) -> Any:
    """What an operation on meta tensors can depend on."""
    if isinstance(x, torch.Tensor):
        if not x.is_meta:
            raise _Uncached
        return x.shape, x.stride(), x.dtype
    if isinstance(x, (list, tuple)):
        return tuple([_key(element) for element in x])
    return type(x), x


def _makes_new_tensors(func: Callable) -> bool:
    returns = func._schema.returns
    return len(returns) > 0 and all(r.alias_info is None and str(r.type) == 'Tensor' for r in returns)


def _overwrites_first(func: Callable) -> bool:
    alias = func._schema.arguments[0].alias_info if func._schema.arguments else None
    return (
        len(func._schema.returns) == 1 and alias is not None and alias.is_write
        and torch.Tag.inplace_view not in func.tags)


class RememberShapes(TorchDispatchMode):
    """Ask torch once what shape an operation on meta tensors gives, and remember the answer.

    Torch works it out in Python, several times slower than a look into a dictionary, and networks repeat themselves.
    """

    def __init__(self):
        super().__init__()
        self._answers: dict[Any, Any] = {}
        self._kinds: dict[Callable, str | None] = {}  # 'new', 'in place', None for views and the like

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self._kinds:
            self._kinds[func] = 'new' if _makes_new_tensors(func) else 'in place' if _overwrites_first(func) else None
        kind = self._kinds[func]
        if kind is None:
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), tuple([(name, _key(value)) for name, value in kwargs.items()]))
            answer = self._answers.get(key)
        except (_Uncached, TypeError):  # values, or an argument that cannot be a key
            return func(*args, **kwargs)
        if answer is None:
            result = func(*args, **kwargs)
            leaves = [result] if isinstance(result, torch.Tensor) else list(result)
            if all(x is None or x.is_meta for x in leaves):
                shapes = [
                    None if x is None else _Shape(tuple(x.shape), x.stride(), x.dtype)
                    for x in leaves]
                self._answers[key] = shapes if leaves[0] is not result else shapes[0]
            return result
        if kind == 'in place':
            return args[0]
        if isinstance(answer, _Shape):
            return answer.empty()
        return tuple([shape and shape.empty() for shape in answer])


class Materialize(TorchDispatchMode):
    """Where real and meta tensors meet in an operation, put random values in place of the meta ones.

    Random matrices let every dependence through that the architecture has, which is all that is asked of them. A meta
    tensor has the same values wherever it is met, in a view or in the backward pass, and in the next run of the same
    operations.

    Args:
        images: Number of images. What has a row for each of them (and is no weight of so many rows) has the same values
            in each.
    """

    def __init__(self, images: int = 1):
        super().__init__()
        self.images = images
        self._drawn = 0  # how many values are in use
        self._values: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}  # of a storage
        self.attention = _MaterializeAttention(self)

    def __enter__(self):
        self.attention.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.attention.__exit__(*error)

    def _real(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or x.device.type != 'meta':
            return x
        if not x.is_floating_point():
            return torch.zeros(x.shape, dtype=x.dtype, device='cpu')
        key = x.untyped_storage()._cdata, x.dtype
        if key not in self._values:
            # The tensor is kept as well: a storage that is gone may leave its number to another one.
            self._values[key] = x, self._draw(x)
        return self._values[key][1].as_strided(x.shape, x.stride(), x.storage_offset())

    def _draw(self, x: torch.Tensor) -> torch.Tensor:
        """Values for the whole storage of `x`."""
        number = x.untyped_storage().nbytes() // x.element_size()
        rows = 1
        if self.images > 1 and x.ndim > 1 and len(x) == self.images:
            rows = len(x) if x.stride(0) * len(x) == number else 1
        values = self._next_values(number // rows).to(x.dtype)
        return values.repeat(rows) if rows > 1 else values

    def _next_values(self, number: int) -> torch.Tensor:
        table = _table()
        begin = self._drawn % len(table)
        self._drawn += number
        first = table[begin:begin + number]
        whole, rest = divmod(number - len(first), len(table))
        return torch.cat([first, *[table] * whole, table[:rest]])

    def materialize(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if _real_meets_meta(args, kwargs):
            args, kwargs = tree_map(self._real, (args, kwargs))
        return args, kwargs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _real_meets_meta(args, kwargs):
            names = [argument.name for argument in func._schema.arguments]
            args = [_as_initialised(x, name) for x, name in zip(args, names, strict=False)]
            kwargs = {name: _as_initialised(x, name) for name, x in kwargs.items()}
            drawn = isinstance(args[0], torch.Tensor) and args[0].is_meta
            args, kwargs = self.materialize(args, kwargs)
            if drawn and _overwrites_first(func):  # the values that were drawn are others' as well
                args = (args[0].clone(), *args[1:])
        return func(*args, **kwargs)


def _real_meets_meta(args: Any, kwargs: Any) -> bool:
    tensors = list(_tensors((*args, *kwargs.values())))
    return any(x.is_meta for x in tensors) and any(x.ndim and not x.is_meta for x in tensors)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


# What norms start from, and what of them must not be drawn at random: a variance below 0 has no root.
_INITIAL = {'weight': torch.ones, 'running_var': torch.ones, 'running_mean': torch.zeros, 'bias': torch.zeros}


def _as_initialised(x: Any, argument: str) -> Any:
    """A meta vector that an operation takes as weight, bias or statistics of a norm, with the values it starts from."""
    is_vector = isinstance(x, torch.Tensor) and x.device.type == 'meta' and x.ndim == 1 and x.is_floating_point()
    return _INITIAL[argument](x.shape, dtype=x.dtype) if is_vector and argument in _INITIAL else x


class _MaterializeAttention(TorchFunctionMode):
    """Scaled dot-product attention compares devices before it dispatches (a pooling head's learned query)."""

    def __init__(self, outer: Materialize):
        super().__init__()
        self.outer = outer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            args, kwargs = self.outer.materialize(args, kwargs)
        return func(*args, **kwargs)
