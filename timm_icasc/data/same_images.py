"""Whether images are the same: those that are trained on and measured on, those of a run then and now."""
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from .dataset_factory import evenly_spaced
from .labelled_images import LabelledImages
from .streams import is_stream

__all__ = ['count_shared', 'fingerprint']

LOOKED_AT = 16  # images whose contents a fingerprint is of


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


def _content(dataset: Any, file: str | int) -> bytes | None:
    """What a file holds, or the pixels of an image in none; None where a data set does not have them at hand."""
    if isinstance(file, str):
        return Path(file).read_bytes()
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    pixels = getattr(dataset, 'images', getattr(dataset, 'data', None))
    return np.asarray(pixels[file]).tobytes() if hasattr(pixels, '__getitem__') else None


def fingerprint(dataset: Dataset) -> str | None:
    """A digest of the number of images and of the contents of a few at even distances, wherever they lie.

    Returns:
        Hexadecimal digits; None of a stream, a table, an archive, or where a file cannot be read.
    """
    if is_stream(dataset):
        return None
    files = _files(dataset)
    chosen = evenly_spaced(files, LOOKED_AT)
    try:
        contents = [_content(dataset, file) for file in chosen]
    except OSError:
        return None
    if None in contents:
        return None
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    return hashlib.sha256(f'{len(files)} {digests}'.encode()).hexdigest()
