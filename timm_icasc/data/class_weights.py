"""Weights of the classes in the classification loss, by how often each is there or from a file.

Shapes: `N` training images, `C` classes. The weights are scaled so that their mean over the training images is 1: the
loss keeps its scale beside the other terms, and to the learning rate.
"""
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, first_of, one_line
from .image_list import BROKEN, read_csv
from .known_targets import known_targets

__all__ = ['BALANCED', 'class_weights', 'read_class_weights']

BALANCED = 'balanced'


def read_class_weights(file: str | Path, names: Sequence[str]) -> np.ndarray:
    """The weights of a CSV with the columns `class,weight`, `[C]`, in the order of `names`.

    Raises:
        DataError: The file cannot be read, a class is missing, unknown or there twice, a weight is no number above 0.
    """
    weights: dict[str, float] = {}
    try:
        columns, rows = read_csv(Path(file))
        if columns != ['class', 'weight']:
            raise ValueError(f"the columns must be 'class,weight'; it has {columns}")
        for number, row in enumerate(rows, 2):
            name, weight = row['class'].strip(), float(row['weight'])
            if name in weights or name not in names:
                raise ValueError(f"line {number}: '{name}' is {'there twice' if name in weights else 'no class'}")
            if not 0 < weight < math.inf:
                raise ValueError(f'line {number}: a weight must be above 0, got {weight}')
            weights[name] = weight
        if missing := [name for name in names if name not in weights]:
            raise ValueError(f"{len(missing)} of {len(names)} classes have no weight: {first_of(missing)}")
    except BROKEN as e:
        raise DataError(f"`class_weights`: '{file}': {one_line(e, 400)}.") from e
    return np.array([weights[name] for name in names])


def _of_single(counts: np.ndarray, raw: np.ndarray | None) -> np.ndarray:
    """`[C]`; `counts` is the number of images of each class."""
    if raw is None:
        raw = np.divide(1, counts, where=counts > 0, out=np.zeros(len(counts)))
    return raw / (counts / counts.sum() * raw).sum()


def _of_several(present: np.ndarray, absent: np.ndarray, raw: np.ndarray | None) -> np.ndarray:
    """`[2, C]`; `present` and `absent` are the numbers of images that have and lack each class."""
    if raw is None:
        both = (present > 0) & (absent > 0)
        raw = np.divide(absent, present, where=both, out=np.ones(len(present)))
    weighted = present * raw + absent
    known = np.ones(len(present))
    of_absent = np.divide(present + absent, weighted, where=weighted > 0, out=known)
    return np.stack([of_absent, raw * of_absent])


def class_weights(
        choice: str,
        dataset: Any,
        num_classes: int,
        names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Weights for `losses.ClassWeightedLoss`, or of several classes per image for `MultiLabelSoftMarginLoss`.

    One class per image: a class of `n_c` images has the weight `w_c`, with `sum_c n_c w_c = N`. 'balanced' is
    `N / (C n_c)`, scikit-learn's formula, with `C` the number of classes that have images.

    Several classes: a class that is present in `p_c` images and absent in `a_c` has two weights, of ratio `r_c`
    (torch's `pos_weight`), with `p_c w_present + a_c w_absent = p_c + a_c`. 'balanced' is `r_c = a_c / p_c`; ignored
    labels do not count.

    Args:
        choice: 'balanced', or a file with the relative weights (`w_c` or `r_c`), see `read_class_weights`.
        dataset: The training images. Of a stream, a file's weights have mean 1 over the classes.
        num_classes: `C`.
        names: Names of the first classes; without, a file calls them 0, 1, ...

    Returns:
        `[C]`, or `[2, C]`: of absent and of present classes. Float32.

    Raises:
        DataError: The file is at fault, or the labels are not known unread.
    """
    targets = known_targets(dataset)
    raw = None
    if choice != BALANCED:
        names = list(names or map(str, range(num_classes)))
        unnamed = np.ones(num_classes - len(names))
        raw = np.concatenate([read_class_weights(choice, names), unnamed])
    elif targets is None:
        raise DataError(
            f'`class_weights={BALANCED}` needs the label of each image, which {type(dataset).__name__} does not tell '
            f'before it has read them: write the weights to a file, class,weight.')
    if targets is not None and targets.ndim == 2:
        weights = _of_several((targets > 0).sum(0), (targets == 0).sum(0), raw)
    else:
        counts = np.ones(num_classes)
        if targets is not None:
            counts = np.bincount(targets, minlength=num_classes)
        weights = _of_single(counts, raw)
    return torch.as_tensor(weights, dtype=torch.float32)
