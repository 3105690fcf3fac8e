"""Training images of which each class is drawn equally often, by the seed and the epoch."""
from typing import Any

import numpy as np

from .few_images import FewImages
from .known_targets import class_of_each

__all__ = ['BalancedImages', 'balanced']


class BalancedImages(FewImages):
    """As many images as a data set has, drawn anew in each epoch, with each class equally often.

    The numbers of the classes differ by one at most, and those of the images of a class too: none is drawn again
    before the others. A sampler that shuffles it, or gives each process a share, does so with what is drawn.

    Args:
        dataset: The whole, with one class index per image.
        targets: Those indices.
        seed: Of the draws.
        class_names: Names in the order of the labels, if known.
    """

    def __init__(self, dataset: Any, targets: np.ndarray, seed: int, class_names: list[str] | None):
        super().__init__(dataset, [], class_names)
        self.seed = seed
        self.by_class = [np.flatnonzero(targets == target) for target in np.unique(targets)]
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the images of an epoch, which follow from it and the seed alone."""
        generator = np.random.default_rng((self.seed, epoch, len(self.by_class)))
        share, rest = divmod(len(self.dataset), len(self.by_class))
        counts = np.full(len(self.by_class), share)
        counts[generator.permutation(len(counts))[:rest]] += 1
        self.indices = []
        for own, count in zip(self.by_class, counts, strict=True):
            rounds = [generator.permutation(own) for _ in range(-(-count // len(own)))]
            self.indices += np.concatenate([own[:0], *rounds])[:count].tolist()


def balanced(dataset: Any, seed: int, class_names: list[str] | None = None) -> BalancedImages:
    """A data set of one class per image, drawn so that each class comes equally often.

    Args:
        dataset: Images and one class index each.
        seed: Of the draws.
        class_names: Names in the order of the labels, if known.

    Raises:
        DataError: The data set has several classes per image, is a stream, or does not tell its labels unread.
    """
    weights = 'give the classes weights (`class_weights`)'
    targets = class_of_each(
        dataset, 'balanced_sampling', of_stream=f'balance its shards when you write them, or {weights}',
        of_sets=f'{weights} instead')
    return BalancedImages(dataset, targets, seed, class_names)
