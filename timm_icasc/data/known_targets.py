"""The labels of a data set that can be told before an image is read."""
from typing import Any

import numpy as np
import torch
from timm.data import ImageDataset

__all__ = ['known_targets']


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
