"""One feature map of a model: where it is tapped, and how to read it as `[B, K, H, W]`.

Shapes: `B` batch, `K` channels, `H W` feature grid, `L` tokens (prefix tokens such as the class token included).
"""
import math
from dataclasses import dataclass
from typing import NamedTuple, Optional, Sequence, Tuple

import torch

from .errors import LayerResolutionError

__all__ = ['FeatureLayer', 'ICASCLayers', 'read_layout']

# Aspect ratios of token grid and image differ by the rounding of each side to whole patches.
MAX_ASPECT_MISMATCH = math.log(1.3)


def _token_grid(num_tokens: int, image_size: Tuple[int, int]) -> Optional[Tuple[int, int]]:
    """Factor `num_tokens` into the rows and columns whose aspect is the image's; None if no factors come close."""
    image_aspect = math.log(image_size[0] / image_size[1])
    grids = [(h, num_tokens // h) for h in range(1, num_tokens + 1) if num_tokens % h == 0]
    mismatch, grid = min((abs(math.log(h / w) - image_aspect), (h, w)) for h, w in grids) if grids else (math.inf, None)
    return grid if mismatch <= MAX_ASPECT_MISMATCH else None


@dataclass(frozen=True)
class FeatureLayer:
    """One feature map of a model.

    Attributes:
        path: Module path of the tap (`model.get_submodule(path)`); its output is the feature.
        layout: 'NCHW', 'NHWC' or 'NLC' (tokens).
        channels: Number of channels `K`.
        grid: Rows and columns `H, W` at the input size the layer was resolved with.
        prefix_tokens: Leading tokens that are not pixels (class, distillation and register tokens); 'NLC' only.
        modified_in_place: The model overwrites this output in its next operation, so the tap must hand on a copy.
    """
    path: str
    layout: str
    channels: int
    grid: Tuple[int, int]
    prefix_tokens: int = 0
    modified_in_place: bool = False

    def to_nchw(self, x: torch.Tensor, image_size: Tuple[int, int]) -> torch.Tensor:
        """View the tap's output, or a gradient of its shape, as `[B, K, H, W]`.

        Args:
            x: Tensor in this layer's layout, for any input size that the model takes.
            image_size: Height and width of the model's input, which give the aspect of a token grid.
        """
        if self.layout == 'NCHW':
            return x
        if self.layout == 'NHWC':
            return x.permute(0, 3, 1, 2)
        grid = _token_grid(x.shape[1] - self.prefix_tokens, image_size)
        if grid is None:
            raise LayerResolutionError(
                f"Layer '{self.path}' gave {x.shape[1]} tokens, which do not form a grid of the input's aspect "
                f"{tuple(image_size)}; resize the images to a multiple of the patch size.")
        return x[:, self.prefix_tokens:].transpose(1, 2).unflatten(2, grid)


class ICASCLayers(NamedTuple):
    """The two features that ICASC works on."""
    inner: FeatureLayer
    last: FeatureLayer


def read_layout(
        path: str,
        shape: Sequence[int],
        image_size: Tuple[int, int],
        channels: Optional[int],
        prefix_tokens: int,
) -> Optional[FeatureLayer]:
    """Tell the layout of a tap's output from its shape; None where it has no spatial grid."""
    def mismatch(h: int, w: int) -> float:
        return abs(math.log(h / w) - math.log(image_size[0] / image_size[1]))

    if len(shape) == 4:
        readings = [
            FeatureLayer(path, 'NCHW', shape[1], (shape[2], shape[3])),
            FeatureLayer(path, 'NHWC', shape[3], (shape[1], shape[2])),
        ]
        if channels is not None:
            readings = [r for r in readings if r.channels == channels]
        # min() keeps the first of equals: a 64-channel 64 x 64 feature is read as NCHW.
        return min(readings, key=lambda r: mismatch(*r.grid), default=None)
    if len(shape) == 3 and channels in (None, shape[2]):
        # The attribute is the model's word; elsewhere the token count decides which small number leaves a grid.
        for prefix in dict.fromkeys((prefix_tokens, 0, 1, 2)):
            grid = _token_grid(shape[1] - prefix, image_size) if shape[1] > prefix else None
            if grid is not None:
                return FeatureLayer(path, 'NLC', shape[2], grid, prefix_tokens=prefix)
    return None
