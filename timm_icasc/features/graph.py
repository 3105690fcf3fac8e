"""Questions to the autograd graph: what a tensor was made by, and which ways lead from it to the class scores."""
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import LayerResolutionError

__all__ = ['check_last_call', 'graph_nodes', 'is_computed_from', 'made_by', 'nodes_on_every_path', 'read_through_views']

# Nodes by which a tensor is only read differently, or copied.
_VIEWS = re.compile(
    r'(View|UnsafeView|ReshapeAlias|Alias|Permute|Transpose|T|Unsqueeze|Squeeze|Expand|Clone|ToCopy)Backward')

_ACTIVATIONS = re.compile(
    r'(Relu|LeakyRelu|PreluKernel|Elu|Gelu|Silu|Mish|Hardswish|Hardtanh|Softplus|Tanh|Threshold|Clamp|ClampMin)Backward')

_NORMS = re.compile(
    r'(NativeBatchNorm|CudnnBatchNorm|MiopenBatchNorm|NativeLayerNorm|NativeGroupNorm|FusedRmsNorm)Backward')


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def graph_nodes(root: torch.Tensor, cut: Any = None) -> set[Any]:
    """Every node of the autograd graph behind a tensor; with `cut`, those that can be reached without that node."""
    seen, nodes = set(), [root.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node != cut and node not in seen:
            seen.add(node)
            nodes.extend(_parents(node))
    return seen


def check_last_call(path: str, earlier: set[Any], last: Any, logits: torch.Tensor) -> None:
    """Raise LayerResolutionError where the class scores also come from earlier calls of a module, around its last one.

    So do those that average the passes of an image and its mirror image: the last call alone would be seen.

    Args:
        path: Of the module.
        earlier: The nodes of what the calls before put out; None of an output without a graph.
        last: The node of what its last call put out.
        logits: The class scores.
    """
    earlier = earlier - {None}
    if earlier and earlier & graph_nodes(logits, cut=last):
        raise LayerResolutionError(
            f"`model` calls '{path}' several times and makes the class scores of all calls, as an average over "
            f'mirrored images does: a map would be of the last call alone. Give the network inside, or name a module '
            f'behind the place where they meet.')


def read_through_views(node: Any) -> Iterator[Any]:
    """The node, those whose output it only reads differently, and the one that computed the values, last."""
    while node is not None:
        yield node
        if not _VIEWS.match(node.name()):
            return
        node = node.next_functions[0][0]


def made_by(node: Any) -> str | None:
    """'activation' or 'norm', where one of these computed the values of the tensor whose node this is."""
    name = list(read_through_views(node))[-1].name()
    return 'activation' if _ACTIVATIONS.match(name) else 'norm' if _NORMS.match(name) else None


def is_computed_from(x: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether `source`, or what it is another view of, goes into the values of `x`."""
    made_source, made_x = (list(read_through_views(tensor.grad_fn)) for tensor in (source, x))
    if not made_source or not made_x or made_source[-1] == made_x[-1]:
        return False
    return made_source[-1] in graph_nodes(x)


def _deepest_first(root: Any) -> list[Any]:
    """The nodes behind `root`, each after all that it was computed from."""
    order, seen, stack = [], {root}, [(root, iter(_parents(root)))]
    while stack:
        node, parents = stack[-1]
        for parent in parents:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, iter(_parents(parent))))
                break
        else:
            stack.pop()
            order.append(node)
    return order


def nodes_on_every_path(root: Any, source: Any) -> set[Any]:
    """The nodes without which no path leads from `root` back to `source`; empty where none leads there anyway.

    Paths are counted, in whole numbers of any size: a node is on every path when as many lead through it as there are.
    """
    order = _deepest_first(root)
    to_source: dict[Any, int] = {}
    for node in order:
        counts = [to_source[parent] for parent in _parents(node)]
        to_source[node] = 1 if node == source else sum(counts)
    from_root: dict[Any, int] = defaultdict(int)
    from_root[root] = 1
    for node in reversed(order):
        for parent in _parents(node):
            from_root[parent] += from_root[node]
    total = to_source[root]
    return {node for node in order if total and from_root[node] * to_source[node] == total}
