"""Does a map show what the class score depends on?

Where a class's map is highest, the image is blurred, and the scores are looked at again. Shapes: `B` batch, `K` classes
drawn per image, `C` classes, `h w` grid of a layer, `H W` input size. All values are per image and class; a map that is
zero everywhere ranks no pixel, so its values are NaN.
"""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ..features.outputs import class_scores

__all__ = [
    'average_drop', 'blurred', 'deletion_insertion', 'highest', 'map_faithfulness', 'own_and_other',
    'random_maps', 'region_drops',
]

SHARE = 0.25  # of the image's pixels that are blurred

STEPS = 8  # intervals of the deletion and the insertion curve

# Standard deviation of the blur as a share of the shorter side: at 112 pixels, 9.
BLUR = 1 / 12

# Random regions are as smooth as a map of this grid.
RANDOM_GRID = (4, 4)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """The images `[B, 3, H, W]` without their detail: a Gaussian of 1/12 of the shorter side."""
    sigma = BLUR * min(images.shape[-2:])
    # The kernel reaches 2 standard deviations; a reflected border must be smaller than the image.
    reach = min(round(2 * sigma), *(side - 1 for side in images.shape[-2:]))
    return gaussian_blur(images, [2 * reach + 1] * 2, [max(sigma, 1e-3)] * 2)


def _resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(maps[:, None], tuple(size), mode='bilinear', align_corners=False)[:, 0]


def _ranks(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Rank of each pixel, `[B, H * W]`, 0 the highest; of equal ones the first, row by row."""
    order = _resized(maps, size).flatten(1).sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def highest(maps: torch.Tensor, size: Sequence[int], share: float = SHARE) -> torch.Tensor:
    """Where a map is highest: exactly `floor(share * H * W)` pixels.

    Args:
        maps: `[B, h, w]`, brought to the image's size bilinearly.
        size: `H, W`.
        share: Share of the pixels.

    Returns:
        1 on those pixels, else 0, `[B, 1, H, W]`; of equal values the first count, row by row.
    """
    count = int(share * size[0] * size[1])
    return (_ranks(maps, size) < count).to(maps.dtype).view(len(maps), 1, *size)


def random_maps(rows: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Smooth random maps `[B, 4, 4]`, the same for the same image: `rows` are the seeds."""
    maps = [torch.rand(RANDOM_GRID, generator=torch.Generator().manual_seed(row)) for row in rows]
    return torch.stack(maps).to(like)


def region_drops(
        model: torch.nn.Module,
        images: torch.Tensor,
        masks: torch.Tensor,
        logits: torch.Tensor,
) -> torch.Tensor:
    """How far each class score falls where the masked pixels are blurred: `[B, C]`.

    Args:
        model: Classifier, in evaluation mode.
        images: `[B, 3, H, W]`.
        masks: 1 where the image is blurred, `[B, 1, H, W]`.
        logits: Scores of the images, `[B, C]`.
    """
    return logits - class_scores(model(torch.lerp(images, blurred(images), masks)))


def deletion_insertion(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        probabilities: Callable[[torch.Tensor], torch.Tensor],
        steps: int = STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Areas under the deletion and the insertion curve (RISE, Petsiuk et al., 2018), `[B]` each.

    Deletion blurs the pixels from the highest value of the map on, insertion brings them back into the blurred image;
    the curve is the probability of the class over the share of the pixels. Low deletion and high insertion are good.

    Args:
        model: Classifier, in evaluation mode.
        images: `[B, 3, H, W]`.
        maps: `[B, h, w]`.
        classes: Whose probability, `[B]`.
        probabilities: From class scores `[B, C]` to probabilities.
        steps: Intervals of the curves.
    """
    baseline, size = blurred(images), images.shape[-2:]
    ranks = _ranks(maps, size).view(-1, 1, *size)
    total = ranks[0].numel()
    counts = [*range(0, total, -(-total // steps)), total]
    curves = []
    for kept, removed in ((images, baseline), (baseline, images)):
        points = [
            probabilities(class_scores(model(torch.where(ranks < count, removed, kept))))
            .gather(1, classes[:, None])[:, 0] for count in counts]
        curves.append(torch.stack(points, 1))
    shares = torch.tensor(counts, dtype=curves[0].dtype, device=images.device) / total
    return torch.trapezoid(curves[0], shares), torch.trapezoid(curves[1], shares)


def average_drop(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        before: torch.Tensor,
        probabilities: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop and increase of the probability where the image is multiplied by its map (Chattopadhay et al., 2018).

    Args:
        model: Classifier, in evaluation mode.
        images: `[B, 3, H, W]`, normalised.
        maps: `[B, h, w]`; each is brought to 0 to 1 and to the image's size.
        classes: Whose probability, `[B]`.
        before: Probabilities of the images, `[B, C]`.
        probabilities: From class scores `[B, C]` to probabilities.

    Returns:
        `max(0, before - after) / before`, and whether it has risen (0 or 1); `[B]` each.
    """
    low, high = (f(maps.flatten(1), dim=1).view(-1, 1, 1) for f in (torch.amin, torch.amax))
    scaled = (maps - low) / torch.where(high > low, high - low, 1)
    masked = images * _resized(scaled, images.shape[-2:])[:, None]
    after = probabilities(class_scores(model(masked))).gather(1, classes[:, None])[:, 0]
    own = before.gather(1, classes[:, None])[:, 0]
    drop = (own - after).relu() / own.clamp(min=torch.finfo(own.dtype).tiny)
    return drop, (after > own).to(own.dtype)


@torch.no_grad()
def map_faithfulness(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        others: torch.Tensor,
        rows: Sequence[int],
        probabilities: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """What blurring, bringing in and masking by a class's map does to the scores.

    Args:
        model: Classifier, in evaluation mode.
        images: `[B, 3, H, W]`.
        maps: Maps of `classes`, `[B, K, h, w]`.
        classes: `[B, K]`.
        others: Weights of the classes that each class is to be told from, `[B, K, C]`: they add up to 1, or are all 0
            where there is none.
        rows: Numbers of the images, `[B]`: the seeds of their random regions.
        probabilities: From class scores `[B, C]` to probabilities: softmax or sigmoid.

    Returns:
        `[B, K]` each:
        - 'own_drop': fall of the class's own score (logit) where the highest quarter of its map is blurred
        - 'class_specificity': `own_drop` less the fall of the other classes' scores; NaN without others
        - 'own_drop_random', 'class_specificity_random': the same for a random smooth quarter of the image
        - 'deletion', 'insertion': `deletion_insertion`
        - 'average_drop', 'average_increase': `average_drop`
        - 'silent_maps': 1 where the map is zero everywhere, else 0; such a map has no value of the others
    """
    logits = class_scores(model(images))
    before, size = probabilities(logits), images.shape[-2:]
    random_drops = region_drops(model, images, highest(random_maps(rows, images), size), logits)
    columns: dict[str, list[torch.Tensor]] = {}
    for k in range(classes.shape[1]):
        own, weights = classes[:, k], others[:, k]
        silent = maps[:, k].amax((-2, -1)) == 0
        drops = region_drops(model, images, highest(maps[:, k], size), logits)
        deletion, insertion = deletion_insertion(model, images, maps[:, k], own, probabilities)
        fall, rise = average_drop(model, images, maps[:, k], own, before, probabilities)
        values = {'deletion': deletion, 'insertion': insertion, 'average_drop': fall, 'average_increase': rise}
        for name, each in (('', drops), ('_random', random_drops)):
            values[f'own_drop{name}'], values[f'class_specificity{name}'] = own_and_other(each, own, weights)
        values = {name: torch.where(silent, torch.nan, value) for name, value in values.items()}
        for name, value in {**values, 'silent_maps': silent.to(images.dtype)}.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(column, 1) for name, column in columns.items()}


def own_and_other(
        drops: torch.Tensor,
        own: torch.Tensor,
        others: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fall of the own score, and that much more than the others': drops and weights `[B, C]`, classes `[B]`."""
    own_drop = drops.gather(1, own[:, None])[:, 0]
    other_drop = torch.where(others.sum(1) > 0, (drops * others).sum(1), torch.nan)
    return own_drop, own_drop - other_drop
