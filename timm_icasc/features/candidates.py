"""What the outputs of a model's modules may be read as: features with a spatial grid."""
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
import torch.nn as nn

from .layout import FeatureLayer, Layout, read_layout
from .origin import ImageAxes, channel_axis, flattened_grid, tokens_around, tokens_behind
from .owner import ancestor_with
from .tail import Call

__all__ = ['Candidates']

# Of the outputs that have a number of tokens: what a linear layer puts out does not show where they came from.
FIRST_OUTPUTS = 8


class Candidates:
    """The features among the outputs of every module.

    Args:
        model: The model that was run.
        images: What it was run on, with a gradient.
        calls: The last call of each module, by its path.
        graph: The nodes of the autograd graph behind the class scores.
    """

    def __init__(
            self,
            model: nn.Module,
            images: torch.Tensor,
            calls: Mapping[str, Call],
            graph: set[Any],
    ):
        self.model = model
        self.image_size = tuple(images.shape[-2:])
        self.calls = calls
        self._graph = graph
        self._image_axes = ImageAxes(images)
        self._known: dict[tuple[str, int | None, Layout | None], list[FeatureLayer]] = {}
        self._rows: dict[int, Layout] = {}  # by the number of tokens
        self._layouts: dict[tuple[str, int], Layout] = {}  # by what made the tensors

    def _made_layout(self, path: str, index: int) -> Layout:
        """The layout of an output as the graph behind it tells."""
        if (path, index) not in self._layouts:
            x = self.calls[path].outputs[index]
            if x.ndim == 3:
                names, length = {1: 'NCL', 2: 'NLC'}, x.shape[1]  # NCL, an image that was flattened, is no feature
                prefix, suffix = tokens_around(x) or self._tokens_behind.get(length) or (None, 0)
                layout = self._in_a_row(length)._replace(
                    prefix_tokens=prefix, suffix_tokens=suffix)
            else:
                names = {1: 'NCHW', 3: 'NHWC'}
                layout = Layout(columns_first=self._image_axes.are_swapped(x.grad_fn))
            self._layouts[path, index] = layout._replace(name=names.get(channel_axis(x)))
        return self._layouts[path, index]

    def _in_a_row(self, length: int) -> Layout:
        """How so many tokens lay before, by the first outputs that have them, whose graph is short."""
        if length not in self._rows:
            calls = sorted(self.calls.values(), key=lambda call: call.ended)
            first = (
                x for call in calls for x in call.outputs
                if x is not None and x.ndim == 3 and x.shape[1] == length)
            found = (flattened_grid(x, self._image_axes) for x in islice(first, FIRST_OUTPUTS))
            grid, columns_first = next((pair for pair in found if pair is not None), (None, False))
            self._rows[length] = Layout(grid=grid, columns_first=columns_first)
        return self._rows[length]

    def of(
            self,
            path: str,
            channels: int | None = None,
            stated: Layout | None = None,
    ) -> list[FeatureLayer]:
        """The features with a spatial grid that the module puts out, on the path to the logits or not.

        Args:
            path: Module path.
            channels: Number of channels, if known.
            stated: The layout, if the user states it.
        """
        asked = path, channels, stated
        if asked not in self._known:
            self._known[asked] = self._read_outputs(path, channels, stated)
        return self._known[asked]

    def _read_outputs(
            self,
            path: str,
            channels: int | None,
            stated: Layout | None,
    ) -> list[FeatureLayer]:
        candidates = []
        owner = ancestor_with(self.model, path, 'num_prefix_tokens')
        prefix_tokens = owner[1].num_prefix_tokens if owner else 0
        for index, (x, version) in enumerate(
            zip(self.calls[path].outputs, self.calls[path].versions, strict=True)):
            layer = None
            if x is not None:
                known = made = self._made_layout(path, index)
                if stated:
                    known = stated._replace(grid=made.grid, columns_first=made.columns_first)
                layer = read_layout(
                    path, x.shape, self.image_size, channels, prefix_tokens, index, known)
            own_order = {}
            if layer is not None and not stated:
                own_order = self._own_order(layer, self.calls[path])
            if layer is not None and own_order is not None:
                modified = x._version != version
                candidates.append(replace(layer, modified_in_place=modified, **own_order))
        return candidates

    def _own_order(self, layer: FeatureLayer, call: Call) -> dict[str, Any] | None:
        """Grid and token order by the model's own `reroll(tokens, number)`, where it has one (Hiera).

        The number is that of a block in timm, of a stage in transformers. None where it has one that does not know the
        order of these tokens.
        """
        owner = ancestor_with(self.model, layer.path, 'reroll') if layer.layout == 'NLC' else None
        if owner is None:
            return {}
        prefix, model = owner
        numbers = [
            (re.fullmatch(r'(?:blocks|stages)\.(\d+)', path[len(prefix):].strip('.')), block)
            for path, block in self.calls.items() if path.startswith(prefix)]
        blocks = {int(number[1]): block for number, block in numbers if number}
        numbered = torch.arange(call.outputs[layer.output_index].shape[1], device='cpu')[None, :, None]
        # Inside a block, tokens are in the order of the block before until it pools them; after it, in its own.
        for number in (
                max((n for n, block in blocks.items() if block.ended <= call.ended), default=0),
                max((n for n, block in blocks.items() if block.began <= call.ended), default=0)):
            try:
                order = model.reroll(numbered, number)[0, ..., 0]
                break
            except RuntimeError:  # not the tokens that this block hands on
                continue
        else:
            return None
        return {
            'prefix_tokens': 0, 'grid': tuple(order.shape), 'token_order': tuple(order.flatten().tolist()),
            'columns_first': False}

    @cached_property
    def _tokens_behind(self) -> dict[int, tuple[int, int]]:
        """Number of all tokens -> of those before and behind the patches, where the model puts some behind them."""
        return tokens_behind(self._graph)
