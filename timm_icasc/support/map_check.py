"""Whether maps find what the class scores depend on, in an architecture with random weights.

A layer that is read in the wrong layout, or that most of a score goes by, gives a map like any other. Here the feature
is flattened where a class's map is highest, and the scores are looked at again: what `timm-icasc eval --faithfulness`
does to a trained network's images.
"""
from typing import NamedTuple

import torch

from ..attention import METHODS
from ..features.layout import FeatureLayer
from ..features.tail import Tail

__all__ = ['CHECKED', 'map_check']

CHECKED = ('ach', 'grad_cam')


class Sample(NamedTuple):
    """How many maps are checked, and against how many random regions."""
    classes: int
    regions: int


# With 2 methods these are 17 and 11 images at once: no weight of a network has so many rows.
SAMPLE, SMALL_SAMPLE = Sample(4, 9), Sample(2, 7)

# A feature of more values, as of a large transformer, has a tail behind it that takes long: the small sample is drawn.
LARGE_FEATURE = 2 ** 18

SHARE = 4  # a quarter of the positions is flattened

# The attention between all positions of 17 images at once would take 20 GB at 4,096: larger grids run one by one.
POSITIONS_AT_ONCE = 2048


def _regions(maps: torch.Tensor) -> torch.Tensor:
    """The highest quarter of each map `[N, h, w]`, at least one position, the first of equal ones: indices `[N, n]`."""
    order = maps.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return order[:, :max(1, maps[0].numel() // SHARE)]


def _flattened(value: torch.Tensor, positions: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """The feature once for each region, with every channel's mean over the grid in that region.

    Args:
        value: Feature of one image, in the layer's own layout.
        positions: Where in the flat feature each channel and position lies, `[K, h w]`.
        regions: Positions, `[N, n]`.
    """
    flat = value.flatten()
    mean = flat[positions].mean(1, keepdim=True)
    rows = []
    for region in regions:
        where = positions[:, region]
        rows.append(flat.index_put((where,), mean.expand(where.shape)))
    return torch.stack(rows).view(len(regions), *value.shape[1:])


@torch.no_grad()
def _scores(tail: Tail, layer: FeatureLayer, values: torch.Tensor) -> torch.Tensor:
    with tail.run(layer, values) as (_, logits):
        return logits.detach()


def _share_below(values: torch.Tensor, value: torch.Tensor) -> float:
    """Share of `values` that are below `value`; equal ones count half."""
    return ((values < value).double() + (values == value).double() / 2).mean().item()


def map_check(
        tail: Tail,
        layer: FeatureLayer,
        image_size: tuple[int, int],
) -> dict[str, list[float] | None]:
    """What flattening the feature at a map's highest quarter does, against random quarters and to other classes.

    Args:
        tail: Of a model on meta tensors, with at least 5 classes.
        layer: Whose maps.
        image_size: Height and width of the images.

    Returns:
        By method of `CHECKED`: the share of random quarters that take less of the class's score (1 is best, 0.5 is
        chance), the share of other classes that lose less of theirs (likewise), and the share of maps that are zero
        everywhere. The first two are the mean over the maps that are not; None in place of all three where all are.
    """
    with tail.run(layer, tail.value(layer)) as (feature, logits):
        sample = SAMPLE if feature.numel() <= LARGE_FEATURE else SMALL_SAMPLE
        gradients = [
            torch.autograd.grad(logits[0, c], feature, retain_graph=True)[0]
            for c in range(sample.classes)]
    value, before = feature.detach(), logits.detach()[0]
    grid = layer.to_nchw(value, image_size)
    maps = {name: torch.cat([
        METHODS[name].function(grid, layer.to_nchw(gradient, image_size)) for gradient in gradients
    ]) for name in CHECKED}
    numbered = torch.arange(value.numel()).view(value.shape)
    positions = layer.to_nchw(numbered, image_size)[0].flatten(1)
    generator = torch.Generator().manual_seed(2)
    random = torch.rand((sample.regions, *grid.shape[-2:]), generator=generator)
    regions = _regions(torch.cat([*maps.values(), random]))
    changed = _flattened(value, positions, regions)
    at_once = len(changed) if positions.shape[1] <= POSITIONS_AT_ONCE else 1
    scores = torch.cat([_scores(tail, layer, part) for part in changed.split(at_once)])
    drops = (before - scores).double()
    by_chance, found = drops[-sample.regions:], {}
    for number, name in enumerate(CHECKED):
        rows = drops[number * sample.classes:][:sample.classes]
        heard = maps[name].flatten(1).any(1)
        own = [_share_below(by_chance[:, c], rows[c, c]) for c in range(sample.classes) if heard[c]]
        others = [
            _share_below(torch.cat([rows[c, :c], rows[c, c + 1:]]), rows[c, c])
            for c in range(sample.classes) if heard[c]]
        silent = 1 - heard.double().mean().item()
        found[name] = [sum(own) / len(own), sum(others) / len(others), silent] if own else None
    return found
