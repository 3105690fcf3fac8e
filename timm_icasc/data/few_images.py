"""A few training images of each class, drawn by the seed."""
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .known_targets import class_of_each

__all__ = ['FewImages', 'few_of_each_class']


class FewImages(torch.utils.data.Subset):
    """Some images of a data set, which keeps its classes and its transform.

    Args:
        dataset: The whole.
        indices: Which of its images, in this order.
        class_names: Names in the order of the labels, if known.
    """

    def __init__(self, dataset: Any, indices: list[int], class_names: list[str] | None):
        super().__init__(dataset, indices)
        self.class_names = class_names

    @property
    def transform(self) -> Callable | None:
        """Of the whole data set; settable, as timm's `create_loader` does."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Callable | None) -> None:
        self.dataset.transform = transform

    @property
    def boxes(self) -> Callable[[int], list]:
        """As of the whole data set, which has such an attribute where it has boxes."""
        whole = self.dataset.boxes
        return lambda index: whole(self.indices[index])

    def filename(self, index: int, *args, **kwargs) -> str:
        return self.dataset.filename(self.indices[index], *args, **kwargs)


def few_of_each_class(
        dataset: Any,
        count: int,
        seed: int,
        class_names: list[str] | None = None,
) -> FewImages:
    """At most `count` images of each class; the same seed draws the same, and a larger count adds to a smaller one's.

    Args:
        dataset: Images and one class index each.
        count: Images a class.
        seed: Of the draw.
        class_names: Names in the order of the labels, if known.

    Raises:
        DataError: The data set has several classes per image, is a stream, or does not tell its labels unread.
    """
    targets = class_of_each(
        dataset, 'limit_train', of_stream='write a smaller shard', of_sets='make a data set of fewer images')
    kept = []
    for target in np.unique(targets):
        own = np.flatnonzero(targets == target)
        # A generator for each class: another class more, or an image, changes no other class's draw.
        order = np.random.default_rng((seed, int(target))).permutation(len(own))
        kept += own[order[:count]].tolist()
    dataset.drawn = sorted(kept)
    return FewImages(dataset, dataset.drawn, class_names)
