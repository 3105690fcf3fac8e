"""What made a tensor, by the autograd graph: a convolution puts channels first, whatever the aspect of its grid.

The graph is followed backwards from the tensor through operations that move axes (permute, transpose, view) or leave
them where they are, to the first that says by definition which axis the channels are, or where tokens were put before.
"""
import re
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch

__all__ = ['ImageAxes', 'channel_axis', 'flattened_grid', 'tokens_around', 'tokens_behind']

# Operations that put out channels on axis 1; those whose output lies as their input does with other sizes; those that
# mix axes, behind which nothing is known.
CHANNELS_FIRST = re.compile(
    r'Convolution|Conv2D|BatchNorm|GroupNorm|Pool2D|(Upsample|ReflectionPad|ReplicationPad)\w*2D|Pixel(Uns|S)huffle')
SAME_AXES = re.compile(r'Cat|Slice|Split|ConstantPad')
MIXING = re.compile(r'mmBackward|MmBackward|Attention|Linear')
LINEAR = re.compile(r'(Mm|Addmm)Backward')
VIEW = re.compile(r'(Unsafe)?View|ReshapeAlias|Unsqueeze|Squeeze')

# A node of the graph with, for each axis of its output, the axis of the tensor asked about; None for those that are not
# among them.
_Step = tuple[Any, tuple[int | None, ...]]


def _shape(node: Any, output: int = 0) -> tuple[int, ...] | None:
    try:
        return tuple(node._input_metadata[output].shape)
    except (AttributeError, IndexError, RuntimeError):
        return None


def _signed(axis: int, ndim: int) -> int:
    """An axis as torch saves it: negative ones wrapped around to 64 bits."""
    return (axis - 2 ** 64 if axis >= 2 ** 63 else axis) % ndim


def _through_view(
        axes: tuple[int | None, ...],
        shape: tuple[int, ...],
        before: tuple[int, ...],
) -> tuple[int | None, ...]:
    """The axes of `before`, which was viewed as `shape`: those that both begin with, and those that both end with."""
    found: list[int | None] = [None] * len(before)
    for order in (1, -1):
        for i, (a, b) in enumerate(zip(before[::order], shape[::order], strict=False)):
            if a != b:
                break
            position = i if order == 1 else -1 - i
            found[position] = axes[position]
    return tuple(found)


def _linear_input(node: Any, shape: tuple[int, ...]) -> tuple[Any, int] | None:
    """What a linear layer took in, where `node` is the view behind its product of matrices; all axes stay."""
    product = node.next_functions[0][0]
    matrix = product.next_functions[-2][0] if LINEAR.match(product.name()) else None
    source = matrix.next_functions[0] if matrix is not None and VIEW.match(matrix.name()) else None
    before = _shape(*source) if source is not None and source[0] is not None else None
    return source if before is not None and before[:-1] == shape[:-1] else None


def _before(node: Any, axes: tuple[int | None, ...]) -> Iterator[_Step]:
    """The nodes that the operation took its input from, as far as it tells where the axes were."""
    name, shape = node.name(), _shape(node)
    for parent, output in () if MIXING.search(name) else node.next_functions:
        before = _shape(parent, output) if parent is not None else None
        if before is None or shape is None:
            continue
        if name.startswith('Permute'):
            dims = [_signed(d, len(shape)) for d in node._saved_dims]
            yield parent, tuple(axes[dims.index(i)] for i in range(len(dims)))
        elif name.startswith('Transpose'):
            a, b = (_signed(d, len(shape)) for d in (node._saved_dim0, node._saved_dim1))
            swapped = list(axes)
            swapped[a], swapped[b] = axes[b], axes[a]
            yield parent, tuple(swapped)
        elif before == shape or (SAME_AXES.match(name) and len(before) == len(shape)):
            yield parent, axes
        elif VIEW.match(name) and (source := _linear_input(node, shape)):
            yield source[0], axes
        elif VIEW.match(name) and prod(before) == prod(shape):
            yield parent, _through_view(axes, shape, before)


def _history(x: torch.Tensor, same_shape: bool = False) -> Iterator[_Step]:
    """The operations behind `x` in whose output its axes are known, nearest first along each branch."""
    seen, steps = set(), [(x.grad_fn, tuple(range(x.ndim)))]
    while steps:
        node, axes = steps.pop()
        if node is None or node in seen or (same_shape and _shape(node) != tuple(x.shape)):
            continue
        seen.add(node)
        yield node, axes
        steps += reversed(list(_before(node, axes)))


def channel_axis(x: torch.Tensor) -> int | None:
    """The axis of the channels; None where the graph does not tell.

    Args:
        x: A tensor with a graph, values or not. Of three axes, only images tell: a convolution over a sequence may have
            the tokens for channels, as that of an MLP-Mixer has.
    """
    for node, axes in _history(x):
        shape = _shape(node)
        if shape is None:
            continue
        if CHANNELS_FIRST.search(node.name()) and len(shape) > (3 if x.ndim == 3 else 2):
            return axes[1]
        if node.name().startswith('NativeLayerNorm') and len(node._saved_normalized_shape) == 1:
            return axes[-1]
    return None


def _makes_image(node: Any) -> bool:
    return bool(CHANNELS_FIRST.search(node.name())) and len(_shape(node) or ()) == 4


def _carried(node: Any) -> list[_Step]:
    """The nodes whose rows and columns an operation takes over."""
    if _makes_image(node):
        parent, output = node.next_functions[0]
        is_image = parent is not None and len(_shape(parent, output) or ()) == 4
        return [(parent, (0, 1, 2, 3))] if is_image else []
    return list(_before(node, tuple(range(len(_shape(node) or ())))))


class ImageAxes:
    """Which axes of a tensor are rows and columns of the images, followed from them on. No node is asked twice.

    Args:
        images: `[B, C, H, W]`, with a gradient.
    """

    def __init__(self, images: torch.Tensor):
        self._images = images
        self._known: dict[Any, tuple[int, int] | None] = {}

    def _of(self, node: Any) -> tuple[int, int] | None:
        waiting: list[tuple[Any, list[_Step] | None]] = [(node, None)]
        while waiting:
            node, steps = waiting.pop()
            if node in self._known:
                continue
            if steps is None:  # its parents first
                steps = _carried(node)
                waiting += [(node, steps), *((parent, None) for parent, _ in steps)]
                continue
            known = ((axes, self._known[parent]) for parent, axes in steps if self._known[parent])
            found = ((axes[rows], axes[columns]) for axes, (rows, columns) in known)
            # Images that were changed without a graph are seen from the first convolution on.
            is_start = getattr(node, 'variable', None) is self._images or _makes_image(node)
            own = (2, 3) if is_start else None
            self._known[node] = next((pair for pair in found if None not in pair), own)
        return self._known[node]

    def are_swapped(self, node: Any) -> bool:
        """Whether columns come before rows in what a node puts out; False where no graph shows it."""
        rows, columns = self._of(node) or (0, 1)
        return rows > columns


def flattened_grid(x: torch.Tensor, image_axes: ImageAxes) -> tuple[tuple[int, int], bool] | None:
    """The grid that tokens of `[B, L, K]` lay in before they were put in a row; None where no graph shows it.

    There may be fewer of them than `L`, where others were put beside them since.

    Args:
        x: Tokens with a graph, values or not.
        image_axes: Of the images that they come from.

    Returns:
        Rows and columns; whether the tokens go down column by column.
    """
    for node, axes in _history(x):
        parent, output = node.next_functions[0] if node.next_functions else (None, 0)
        shape, before = _shape(node), _shape(parent, output) if parent is not None else None
        is_view = VIEW.match(node.name()) and shape is not None and before is not None
        if not is_view or 1 not in axes or (len(before), len(shape)) != (4, 3):
            continue
        i = axes.index(1)
        grid = before[i:i + 2]
        if len(grid) == 2 and min(grid) > 1 and prod(grid) == shape[i] and before == (
                *shape[:i], *grid, *shape[i + 1:]):
            columns_first = image_axes.are_swapped(parent)
            return grid[::-1] if columns_first else grid, columns_first
    return None


def _around(total: int, lengths: list[int | None]) -> tuple[int, int] | None:
    """How many of `total` tokens lie in front of the longest part, more than half, and how many behind it.

    A frozen class token has no graph, and leaves no length behind; the whole has.
    """
    longest = next((i for i, n in enumerate(lengths) if n is not None and 2 * n > total), None)
    if longest is None:
        return None
    front, behind, rest = lengths[:longest], lengths[longest + 1:], total - lengths[longest]
    if None not in front:
        return sum(front), rest - sum(front)
    return (rest - sum(behind), sum(behind)) if None not in behind else None


def _joins_tokens(node: Any) -> bool:
    shape = _shape(node) if node.name().startswith('Cat') else None
    return shape is not None and len(shape) == 3 and _signed(node._saved_dim, 3) == 1


def _joined(node: Any) -> tuple[int, int] | None:
    shapes = [
        _shape(parent, output) if parent is not None else None
        for parent, output in node.next_functions]
    return _around(_shape(node)[1], [shape[1] if shape else None for shape in shapes])


def tokens_around(x: torch.Tensor) -> tuple[int, int] | None:
    """How many tokens of `[B, L, K]` were put in front of the rest, more than half, and how many behind it.

    None where the graph shows none.

    Args:
        x: Tokens with a graph, values or not.
    """
    joined = (node for node, _ in _history(x, same_shape=True) if _joins_tokens(node))
    return next(map(_joined, joined), None)


def tokens_behind(nodes: Iterable[Any]) -> dict[int, tuple[int, int]]:
    """As `tokens_around` by the number of all tokens, where a graph of these nodes puts some behind the rest."""
    found = {_shape(node)[1]: _joined(node) for node in nodes if _joins_tokens(node)}
    return {length: around for length, around in found.items() if around is not None and around[1]}
