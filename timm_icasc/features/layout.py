"""One feature map of a model: where it is tapped, and how to read it as `[B, K, H, W]`.

Shapes: `B` batch, `K` channels, `H W` feature grid, `L` tokens (prefix tokens such as the class token included).
"""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import LayerResolutionError
from .images import ImageSize, PatchGrid

__all__ = ['FeatureLayer', 'ICASCLayers', 'Layout', 'read_layout']

# Aspect ratios of token grid and image differ by the rounding of each side to whole patches.
MAX_ASPECT_MISMATCH = math.log(1.3)


def _aspect_mismatch(grid: tuple[int, int], image_size: tuple[float, float]) -> float:
    return abs(math.log(grid[0] / grid[1]) - math.log(image_size[0] / image_size[1]))


@lru_cache(maxsize=1024)
def _token_grid(num_tokens: int, image_size: tuple[float, float]) -> tuple[int, int] | None:
    """Factor `num_tokens` into the rows and columns whose aspect is the image's; None if no factors come close."""
    grids = [(h, num_tokens // h) for h in range(1, num_tokens + 1) if num_tokens % h == 0]
    grid = min(grids, key=lambda g: _aspect_mismatch(g, image_size), default=None)
    return grid if grid and _aspect_mismatch(grid, image_size) <= MAX_ASPECT_MISMATCH else None


def _is_patch_grid(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether square patches of some size cut the image into this grid, with or without a rest at both ends."""
    patch = max(1, image_size[0] // grid[0])
    return any(
        tuple(rounded(side / size) for side in image_size) == grid
        for size in range(max(1, patch // 2), patch + 2) for rounded in (math.floor, math.ceil))


# More tokens than this are not looked for in front of the patches: every number would do for some grid.
MAX_PREFIX_TOKENS = 16


def _find_prefix(
        length: int,
        image_size: tuple[int, int],
        own: int,
        in_front: int | None,
) -> int | None:
    """How many of `length` tokens come before those of a grid; None where no number leaves a grid.

    Args:
        length: Number of tokens.
        image_size: Height and width of the images.
        own: The number by the model's own word.
        in_front: The number that the model was seen to put there, if it was.
    """
    def grid_behind(prefix: int) -> tuple[int, int] | None:
        return _token_grid(length - prefix, image_size) if prefix < length else None

    if in_front is not None and grid_behind(in_front):
        return in_front
    # The model's word comes first among equals, but it may speak of another layer (CaiT's class token joins late).
    usual = [prefix for prefix in dict.fromkeys((own, 0, 1, 2)) if grid_behind(prefix)]
    best = min(
        usual, key=lambda prefix: _aspect_mismatch(grid_behind(prefix), image_size), default=None)
    # Patches cut a square image into a square: 212 tokens are 14 x 14 behind 16, not 14 x 15 behind 2.
    doubtful = best is None or (image_size[0] == image_size[1] and len(set(grid_behind(best))) > 1)
    more = range(3, MAX_PREFIX_TOKENS + 1) if doubtful else ()
    return next((
        prefix for prefix in more
        if grid_behind(prefix) and _is_patch_grid(grid_behind(prefix), image_size)), best)


def _in_patches(image_size: tuple[int, int], patch_aspect: float) -> tuple[float, float]:
    """A size of the aspect that a grid of such patches has on the image."""
    return image_size[0], image_size[1] * patch_aspect


def _odd_patches(known: 'Layout', length: int, image_size: tuple[int, int]) -> tuple[int, float] | None:
    """Prefix tokens and aspect of the patches, where the grid that was seen is not that of square patches.

    None where they are square, where no grid was seen, or another one than that of these tokens.
    """
    if known.grid is None or _token_grid(math.prod(known.grid), image_size) == known.grid:
        return None
    prefix = length - math.prod(known.grid)
    if not 0 <= prefix <= MAX_PREFIX_TOKENS or known.prefix_tokens not in (None, prefix):
        return None
    (rows, columns), (height, width) = known.grid, image_size
    return prefix, (height / rows) / (width / columns)


class Layout(NamedTuple):
    """What is known of a tensor's axes before its shape is looked at.

    Attributes:
        name: 'NCHW', 'NHWC', 'NLC'; None if unknown.
        prefix_tokens: Number of tokens before those of the grid; None if unknown.
        is_stated: By the user's word, which is not doubted.
        suffix_tokens: Number of tokens behind those of the grid.
        grid: Rows and columns that the tokens were seen to lie in before they were put in a row.
        columns_first: Whether columns were seen to come before rows.
    """
    name: str | None = None
    prefix_tokens: int | None = None
    is_stated: bool = False
    suffix_tokens: int = 0
    grid: tuple[int, int] | None = None
    columns_first: bool = False

    @classmethod
    def split(cls, text: str) -> tuple[str, 'Layout | None']:
        """Module path and layout of 'PATH:LAYOUT'; `LAYOUT` is NCHW, NHWC, NLC or NLC+N, with N prefix tokens."""
        match = re.fullmatch(r'(.+):(?:(NCHW|NHWC)|(NLC)(?:\+(\d+))?)', text)
        if match is None:
            return text, None
        path, name, tokens, prefix = match.groups()
        return path, cls(name or tokens, None if prefix is None else int(prefix), is_stated=True)

    def __str__(self) -> str:
        return f'{self.name}' + (f'+{self.prefix_tokens}' if self.prefix_tokens is not None else '')


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _index(order: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The order on the device, where every step would otherwise wait for it to arrive."""
    return torch.tensor(order, device=device)


@dataclass(frozen=True)
class FeatureLayer:
    """One feature map of a model.

    Attributes:
        path: Module path of the tap (`model.get_submodule(path)`); its output is the feature.
        layout: 'NCHW', 'NHWC' or 'NLC' (tokens).
        channels: Number of channels `K`.
        grid: Rows and columns `H, W` at the input size the layer was resolved with.
        prefix_tokens: Leading tokens that are not pixels (class, distillation and register tokens); 'NLC' only.
        output_index: Which of the tensors, where the module puts out several (a tuple, list or dict, counted in its
            order).
        token_order: Where the model keeps its tokens in an order of its own, the token at each grid position, row by
            row; None for row-major order.
        modified_in_place: The model overwrites this output in its next operation, so the tap must hand on a copy.
        suffix_tokens: Trailing tokens that are not pixels; 'NLC' only.
        patch_aspect: Height by width of the patch of the image that a token stands for; 'NLC' only.
        columns_first: Columns come before rows, as behind `x.transpose(1, 3)`; tokens go down column by column.
    """
    path: str
    layout: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0
    output_index: int = 0
    token_order: tuple[int, ...] | None = field(default=None, repr=False)
    modified_in_place: bool = False
    suffix_tokens: int = 0
    patch_aspect: float = 1.
    columns_first: bool = False

    @property
    def has_other_tokens(self) -> bool:
        """Whether there are tokens that are not pixels."""
        return self.prefix_tokens + self.suffix_tokens > 0

    def get(self, output: Any) -> torch.Tensor:
        """The feature in the output of the tapped module."""
        return output if isinstance(output, torch.Tensor) else tree_flatten(output)[0][
            self.output_index]

    def replace(self, output: Any, feature: torch.Tensor) -> Any:
        """The output of the tapped module with `feature` in place of its own."""
        if isinstance(output, torch.Tensor):
            return feature
        leaves, structure = tree_flatten(output)
        leaves[self.output_index] = feature
        return tree_unflatten(leaves, structure)

    def to_nchw(self, x: torch.Tensor, image_size: ImageSize) -> torch.Tensor:
        """View the feature, or a gradient of its shape, as `[B, K, H, W]`.

        Args:
            x: Tensor in this layer's layout, for any input size that the model takes.
            image_size: The images' height and width, which give the aspect of a token grid, or their `PatchGrid`.
        """
        if self.layout == 'NCHW':
            return x.transpose(2, 3) if self.columns_first else x
        if self.layout == 'NHWC':
            return x.permute(0, 3, 2, 1) if self.columns_first else x.permute(0, 3, 1, 2)
        tokens = x[:, self.prefix_tokens:x.shape[1] - self.suffix_tokens]
        if isinstance(image_size, PatchGrid):
            return image_size.scatter(tokens)
        if self.token_order is not None:
            grid = self.grid if tokens.shape[1] == len(self.token_order) else None
        else:
            grid = _token_grid(tokens.shape[1], _in_patches(image_size, self.patch_aspect))
        if grid is None:
            raise LayerResolutionError(
                f"Layer '{self.path}' gave {x.shape[1]} tokens, which do not form a grid of the input's aspect "
                f"{image_size}: resize the images to a multiple of the patch size, or leave out what drops tokens in "
                f"training (timm: `patch_drop_rate`).")
        if self.token_order is not None:
            tokens = tokens.index_select(1, _index(self.token_order, tokens.device))
        if self.columns_first:
            return tokens.transpose(1, 2).unflatten(2, grid[::-1]).transpose(2, 3)
        return tokens.transpose(1, 2).unflatten(2, grid)


class ICASCLayers(NamedTuple):
    """The two features that ICASC works on."""
    inner: FeatureLayer
    last: FeatureLayer


def read_layout(
        path: str,
        shape: Sequence[int],
        image_size: tuple[int, int],
        channels: int | None = None,
        prefix_tokens: int = 0,
        output_index: int = 0,
        known: Layout | None = None,
) -> FeatureLayer | None:
    """Tell the layout of a tensor; None where it has no spatial grid.

    What is known of its axes comes first, then its number of channels, then the aspect of its grid.

    Args:
        path: Module that puts the tensor out.
        shape: Shape of the tensor.
        image_size: Height and width of the images.
        channels: Number of channels, if known; a tensor without an axis of that size is not the feature.
        prefix_tokens: Number of prefix tokens by the model's own word.
        output_index: Position of the tensor in the module's output.
        known: By the user's word, or by what made the tensor.
    """
    known = known or Layout()
    if len(shape) == 4:
        order = -1 if known.columns_first else 1
        candidates = [
            FeatureLayer(
                path, name, shape[axis], tuple(grid)[::order], output_index=output_index,
                columns_first=known.columns_first)
            for name, axis, grid in (('NCHW', 1, shape[2:]), ('NHWC', 3, shape[1:3]))]
        candidates = [r for r in candidates if known.name in (None, r.layout)]
        if channels is not None:
            candidates = [r for r in candidates if r.channels == channels]
        # min() keeps the first of equals: a 64-channel 64 x 64 feature is read as NCHW.
        return min(candidates, key=lambda r: _aspect_mismatch(r.grid, image_size), default=None)
    if len(shape) == 3 and channels in (None, shape[2]) and known.name in (None, 'NLC'):
        prefix, length = known.prefix_tokens, shape[1] - known.suffix_tokens
        odd, aspect = _odd_patches(known, length, image_size), 1.
        if odd is not None:
            prefix, aspect = odd
        elif prefix is None or not known.is_stated:
            prefix = _find_prefix(length, image_size, prefix_tokens, prefix)
        in_front = prefix is not None and prefix < length
        grid = _token_grid(length - prefix, _in_patches(image_size, aspect)) if in_front else None
        if grid is not None:
            return FeatureLayer(
                path, 'NLC', shape[2], grid, prefix, output_index, suffix_tokens=known.suffix_tokens,
                patch_aspect=aspect, columns_first=known.columns_first)
    return None
