"""The labels of a data set that can be told before an image is read."""
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset

from ..errors import DataError
from .streams import is_stream

__all__ = ['class_of_each', 'known_targets']


def known_targets(dataset: Any) -> np.ndarray | None:
    """Class index of each image, `[N]`, or `[N, C]` of several classes each; None where the data set does not tell."""
    if isinstance(dataset, torch.utils.data.Subset):
        whole = known_targets(dataset.dataset)
        return None if whole is None else whole[dataset.indices]
    if isinstance(dataset, ImageDataset):
        samples = getattr(dataset.reader, 'samples', None)
        targets = None if samples is None else [target for _, target in samples]
    else:
        targets = getattr(dataset, 'targets', None)
    if targets is None:
        return None
    transform = getattr(dataset, 'target_transform', None)  # classes may have been numbered anew
    return np.asarray(targets if transform is None else [transform(target) for target in targets])


def class_of_each(dataset: Any, argument: str, of_stream: str, of_sets: str) -> np.ndarray:
    """Class index of each image, `[N]`, to draw images by.

    Args:
        dataset: Images and their labels.
        argument: What asks for the draw.
        of_stream: What to do with a stream in its place.
        of_sets: What to do with images of several classes in its place.

    Raises:
        DataError: The data set has several classes per image, is a stream, or does not tell its labels unread.
    """
    if is_stream(dataset):
        raise DataError(
            f'`{argument}` cannot draw from a stream, which is read from one end to the other: {of_stream}.')
    targets = known_targets(dataset)
    if targets is None:
        raise DataError(
            f'`{argument}` needs the label of each image, which {type(dataset).__name__} does not tell before it has '
            f'read them: take an image folder.')
    if targets.ndim != 1:
        raise DataError(
            f'`{argument}` is for single-label data: an image of several classes cannot be drawn for one of them '
            f'alone; {of_sets}.')
    return targets
