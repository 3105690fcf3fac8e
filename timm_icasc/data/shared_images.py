"""Images of the validation that are also trained on, whose accuracy is not that of new images."""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from .labelled_images import LabelledImages

__all__ = ['count_shared']


def _files(dataset: Any) -> Sequence[Any]:
    """The file of each image, or its number where none is known; no image is read for it, as some tables do."""
    if isinstance(dataset, Subset):
        whole = _files(dataset.dataset)
        return [whole[index] for index in dataset.indices]
    if isinstance(dataset, LabelledImages):
        return [
            str(image) if isinstance(image, (str, Path)) else number
            for number, image in enumerate(dataset.images)]
    samples = getattr(dataset, 'samples', getattr(getattr(dataset, 'reader', None), 'samples', ()))
    if samples and isinstance(samples[0][0], str):
        return [sample[0] for sample in samples]
    return range(len(dataset))


def _name(file: str | int) -> str | int:
    return file[file.rfind(os.sep) + 1:] if isinstance(file, str) else file


def _place(file: str | int) -> str | int:
    return os.path.realpath(file) if isinstance(file, str) else file


def count_shared(train: Dataset, val: Dataset, same_split: bool) -> int:
    """How many images of `val` are in `train` too.

    Files are compared by their paths, links followed, where their names are the same; a copy is another image. Images
    of unknown files (CIFAR's arrays, tables, archives) are compared by their numbers, where the split is the same.

    Args:
        train: The images to train on, or a part of them; no stream.
        val: The images to measure on; no stream.
        same_split: Whether both are of one split.
    """
    measured = [file for file in _files(val) if same_split or isinstance(file, str)]
    names = set(map(_name, measured))
    trained = {_place(file) for file in _files(train) if _name(file) in names}  # few of a million are looked up
    return sum(_place(file) in trained for file in measured)
