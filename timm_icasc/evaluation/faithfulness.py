"""Does a map show what the class score depends on?

Where a class's map is highest, the image is blurred, and the scores are looked at again. Shapes: `B` batch, `K` classes
drawn per image, `C` classes, `h w` grid of a layer, `H W` input size. A map that ranks no pixel (zero everywhere, flat,
not finite) has no values: they are NaN, and it is counted as silent.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ..errors import ICASCError
from ..features.module_state import looking_at
from ..features.outputs import class_scores

__all__ = [
    'Subject', 'average_drop', 'blurred', 'deletion_insertion', 'highest', 'map_faithfulness', 'map_values',
    'own_and_other', 'random_maps', 'random_values', 'region_drops', 'silent',
]

SHARE = 0.25  # of the image's pixels that are blurred

STEPS = 8  # intervals of the deletion and the insertion curve

# Standard deviation of the blur as a share of the shorter side: at 112 pixels, 9.
BLUR = 1 / 12

# Random regions are as smooth as a map of this grid.
RANDOM_GRID = (4, 4)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """The images `[B, 3, H, W]` without their detail: a Gaussian of 1/12 of the shorter side."""
    sigma = max(BLUR * min(images.shape[-2:]), 1e-3)
    # The kernel reaches 2 standard deviations; a reflected border must be smaller than the image.
    reach = min(round(2 * sigma), *(side - 1 for side in images.shape[-2:]))
    for kernel in ([2 * reach + 1, 1], [1, 2 * reach + 1]):  # both at once take as many products as the kernel's area
        images = gaussian_blur(images, kernel, [sigma] * 2)
    return images


@torch.no_grad()
def _scores(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with looking_at(model):
        return class_scores(model(images))


@dataclass(frozen=True)
class Subject:
    """Images whose maps are measured, and their scores: computed once for all maps.

    Attributes:
        model: Classifier, run in evaluation mode; its training flags are restored.
        probabilities: From class scores `[B, C]` to probabilities: softmax or sigmoid.
        images: `[B, 3, H, W]`, normalised.
        baseline: The images blurred.
        logits: Scores of the images, `[B, C]`.
        baseline_logits: Scores of the blurred images, `[B, C]`.
    """
    model: torch.nn.Module
    probabilities: Callable[[torch.Tensor], torch.Tensor]
    images: torch.Tensor
    baseline: torch.Tensor
    logits: torch.Tensor
    baseline_logits: torch.Tensor

    @classmethod
    def of(
            cls,
            model: torch.nn.Module,
            images: torch.Tensor,
            probabilities: Callable[[torch.Tensor], torch.Tensor],
    ) -> 'Subject':
        baseline = blurred(images)
        return cls(
            model, probabilities, images, baseline, _scores(model, images),
            _scores(model, baseline))

    def __getitem__(self, rows: torch.Tensor) -> 'Subject':
        """The images `rows`, one after another."""
        return Subject(
            self.model, self.probabilities, self.images[rows], self.baseline[rows],
            self.logits[rows], self.baseline_logits[rows])

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.images.shape[-2:])

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores `[B, C]` of the images after a change."""
        return _scores(self.model, images)

    def probability(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Probability of one class of each image, `[B]`."""
        return self.probabilities(logits).gather(1, classes[:, None])[:, 0]


def silent(maps: torch.Tensor) -> torch.Tensor:
    """Which maps `[..., h, w]` rank no pixel, bool `[...]`: zero everywhere, flat, or not finite."""
    spread = maps.amax((-2, -1)) - maps.amin((-2, -1))
    return ~((spread > 0) & spread.isfinite())


def _resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(maps[:, None], tuple(size), mode='bilinear', align_corners=False)[:, 0]


def _ranks(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Rank of each pixel, `[B, 1, H, W]`, 0 the highest; of equal ones the first, row by row."""
    order = _resized(maps, size).flatten(1).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return ranks.view(-1, 1, *size)


def highest(maps: torch.Tensor, size: Sequence[int], share: float = SHARE) -> torch.Tensor:
    """Where a map is highest: exactly `floor(share * H * W)` pixels.

    Args:
        maps: `[B, h, w]`, brought to the image's size bilinearly.
        size: `H, W`.
        share: Share of the pixels.

    Returns:
        bool `[B, 1, H, W]`; of equal values the first count, row by row.
    """
    return _ranks(maps, size) < int(share * size[0] * size[1])


def random_maps(rows: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Smooth random maps `[B, 4, 4]`, the same for the same image: `rows` are the seeds."""
    maps = [torch.rand(RANDOM_GRID, generator=torch.Generator().manual_seed(row)) for row in rows]
    return torch.stack(maps).to(like)


def region_drops(subject: Subject, regions: torch.Tensor) -> torch.Tensor:
    """How far each class score falls where a region, bool `[B, 1, H, W]`, is blurred: `[B, C]`."""
    return subject.logits - subject.scores(torch.where(regions, subject.baseline, subject.images))


def own_and_other(
        drops: torch.Tensor,
        classes: torch.Tensor,
        others: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """How far a class's own score falls, and how far those of the classes that it is to be told from.

    Args:
        drops: `region_drops`, `[B, C]`.
        classes: `[B]`.
        others: Weights `[B, C]` of the other classes: they add up to 1, or are all 0 where there is none.

    Returns:
        'own_drop', 'other_drop' (NaN without others) and their difference 'class_specificity', `[B]` each.
    """
    own = drops.gather(1, classes[:, None])[:, 0]
    # A class that is no other may have a score of -inf, and no drop.
    other = torch.where(others != 0, drops * others, 0).sum(1)
    other = torch.where(others.any(1), other, torch.nan)
    return {'own_drop': own, 'other_drop': other, 'class_specificity': own - other}


def deletion_insertion(
        subject: Subject,
        maps: torch.Tensor,
        classes: torch.Tensor,
        steps: int = STEPS,
) -> dict[str, torch.Tensor]:
    """Areas under the deletion and the insertion curve (RISE, Petsiuk et al., 2018).

    Deletion blurs the pixels from the highest value of the map on, insertion brings them back into the blurred image;
    the curve is the probability of the class over the share of the pixels. Low deletion and high insertion are good.

    Args:
        subject: The images.
        maps: `[B, h, w]`.
        classes: Whose probability, `[B]`.
        steps: Intervals of the curves.

    Returns:
        'deletion', 'insertion', `[B]` each, in [0, 1].
    """
    ranks = _ranks(maps, subject.size)
    total = ranks[0].numel()
    counts = [*range(0, total, -(-total // steps)), total]
    shares = torch.tensor(counts, dtype=torch.float64) / total
    first = subject.probability(subject.logits, classes)
    last = subject.probability(subject.baseline_logits, classes)
    areas = {}
    for name, kept, removed, ends in (
            ('deletion', subject.images, subject.baseline, (first, last)),
            ('insertion', subject.baseline, subject.images, (last, first))):
        between = [
            subject.probability(subject.scores(torch.where(ranks < count, removed, kept)), classes)
            for count in counts[1:-1]]
        curve = torch.stack([ends[0], *between, ends[1]], 1)
        areas[name] = torch.trapezoid(curve, shares.to(curve))
    return areas


def average_drop(
        subject: Subject,
        maps: torch.Tensor,
        classes: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Drop and increase of the probability where the image is multiplied by its map (Chattopadhay et al., 2018).

    Args:
        subject: The images.
        maps: `[B, h, w]`; each is brought to 0 to 1 and to the image's size.
        classes: Whose probability, `[B]`.

    Returns:
        'average_drop', `max(0, before - after) / before`, and 'average_increase', whether it has risen (0 or 1); `[B]`.
    """
    low, high = (f(maps.flatten(1), dim=1).view(-1, 1, 1) for f in (torch.amin, torch.amax))
    scaled = (maps - low) / torch.where(high > low, high - low, 1)
    masked = subject.images * _resized(scaled, subject.size)[:, None].to(subject.images)
    after = subject.probability(subject.scores(masked), classes)
    own = subject.probability(subject.logits, classes)
    drop = (own - after).relu() / own.clamp(min=torch.finfo(own.dtype).tiny)
    return {'average_drop': drop, 'average_increase': (after > own).to(own.dtype)}


def map_values(
        subject: Subject,
        maps: torch.Tensor,
        classes: torch.Tensor,
        others: torch.Tensor,
        valid: torch.Tensor | None = None,
        curves: bool = True,
) -> dict[str, torch.Tensor]:
    """What blurring, bringing in and masking by a class's map does to the scores.

    The images are run as many at a time as there are; silent maps take no time.

    Args:
        subject: The images.
        maps: Maps of `classes`, `[B, K, h, w]`.
        classes: `[B, K]`.
        others: Weights of the classes that each class is to be told from, `[B, K, C]`: they add up to 1, or are all 0
            where there is none.
        valid: Which of the classes are asked for, bool `[B, K]`; all when None.
        curves: Whether to take the measures that need many forward passes, those after 'class_specificity'.

    Returns:
        `[B, K]` each, NaN for classes that are not asked for:
        - 'own_drop', 'other_drop', 'class_specificity': `own_and_other` where the highest quarter of the map is blurred
        - 'deletion', 'insertion', 'average_drop', 'average_increase': the functions of these names
        - 'silent_maps': 1 where the map is `silent`, else 0; such a map has no value of the others
    """
    valid = torch.ones_like(classes, dtype=torch.bool) if valid is None else valid
    missing = silent(maps)
    nothing = subject.logits.new_full(classes.shape, torch.nan)
    names = ['own_drop', 'other_drop', 'class_specificity'] + curves * [
        'deletion', 'insertion', 'average_drop', 'average_increase']
    columns = {name: nothing.clone() for name in names}
    measured = (valid & ~missing).nonzero()
    for pairs in measured.split(len(classes)) if len(measured) else ():
        rows, k = pairs.unbind(1)
        part, own = subject[rows], classes[rows, k]
        drops = region_drops(part, highest(maps[rows, k], part.size))
        values = own_and_other(drops, own, others[rows, k])
        if curves:
            values.update(deletion_insertion(part, maps[rows, k], own))
            values.update(average_drop(part, maps[rows, k], own))
        for name, value in values.items():
            columns[name][rows, k] = value.to(nothing)
    return {**columns, 'silent_maps': torch.where(valid, missing.to(nothing), torch.nan)}


def random_values(
        subject: Subject,
        rows: Sequence[int],
        classes: torch.Tensor,
        others: torch.Tensor,
        valid: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The drops where a random smooth quarter of each image is blurred, the same for all its classes.

    Args:
        subject: The images.
        rows: Numbers of the images, `[B]`: the seeds of their regions.
        classes: As of `map_values`, and `others` and `valid`.

    Returns:
        'own_drop', 'other_drop', 'class_specificity', `[B, K]` each.
    """
    drops = region_drops(subject, highest(random_maps(rows, subject.images), subject.size))
    columns = [own_and_other(drops, classes[:, k], others[:, k]) for k in range(classes.shape[1])]
    values = {name: torch.stack([column[name] for column in columns], 1) for name in columns[0]}
    return values if valid is None else {
        name: torch.where(valid, value, torch.nan) for name, value in values.items()}


def map_faithfulness(
        model: torch.nn.Module,
        images: torch.Tensor,
        maps: torch.Tensor,
        classes: torch.Tensor,
        others: torch.Tensor,
        rows: Sequence[int],
        probabilities: Callable[[torch.Tensor], torch.Tensor],
        valid: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Every measure of the maps of a batch, and random regions beside them.

    Args:
        model: Classifier, run in evaluation mode; its training flags are restored.
        images: `[B, 3, H, W]`, normalised as the model expects.
        maps: Maps of `classes`, `[B, K, h, w]`.
        classes: `[B, K]`.
        others: Weights `[B, K, C]` of the classes that each is told from: they add up to 1, or are all 0.
        rows: Numbers of the images, `[B]`: the seeds of their random regions.
        probabilities: From class scores `[B, C]` to probabilities: softmax or sigmoid.
        valid: Which of the classes are asked for, bool `[B, K]`; all when None.

    Returns:
        `map_values`, and 'own_drop_random', 'other_drop_random', 'class_specificity_random' of `random_values`, where
        there is a map: `[B, K]` each.
    """
    subject = Subject.of(model, images, probabilities)
    expected = (*classes.shape, subject.logits.shape[1])
    if tuple(others.shape) != expected:
        raise ICASCError(
            f'`others` must be weights of each class score, {expected}, got {tuple(others.shape)}; of class indices '
            f'they are one_hot(indices, {expected[-1]}).')
    values = map_values(subject, maps, classes, others, valid)
    for name, value in random_values(subject, rows, classes, others, valid).items():
        values[f'{name}_random'] = torch.where(values['silent_maps'] == 0, value, torch.nan)
    return values
