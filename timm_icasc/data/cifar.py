"""CIFAR-100 (Krizhevsky, 2009) from its own files or from a folder of images."""
import pickle
from collections.abc import Callable
from pathlib import Path

import timm.data
import torch
from torchvision.datasets import CIFAR100

from ..errors import DataError
from .labelled_images import LabelledImages

__all__ = ['cifar100']

SPLITS = {'train': 'train', 'test': 'test', 'validation': 'test', 'val': 'test'}


def cifar100(
        root: str,
        split: str,
        transform: Callable | None = None,
        mode: str = 'RGB',
) -> torch.utils.data.Dataset:
    """50,000 training and 10,000 test images of 32 x 32 pixels; a fine label of 100 classes each.

    Args:
        root: Folder `cifar-100-python` (or the one that holds it), whose checksums are verified before anything is
            unpickled, or a folder of images `{train,test}/CLASS/IMAGE`.
        split: 'train' or 'test' ('validation' means 'test': there is no other).
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Raises:
        DataError: Neither is there, a file is missing or not the original, or there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"CIFAR-100 has no split '{split}'; it has train and test.")
    split, root = SPLITS[split], Path(root)
    if (root / split).is_dir():
        return timm.data.create_dataset('', root=str(root), split=split, transform=transform, input_img_mode=mode)
    parent = root.parent if (root / 'meta').is_file() else root
    if root.name != CIFAR100.base_folder and parent != root:
        raise DataError(f"`root`: '{root}' holds CIFAR-100's files; its name must be '{CIFAR100.base_folder}'.")
    if not (parent / CIFAR100.base_folder).is_dir():
        raise DataError(
            f"`root`: neither a folder '{CIFAR100.base_folder}' (the extracted cifar-100-python.tar.gz)"
            f" nor '{split}/CLASS/IMAGE' in '{root}'.")
    for name in (split, 'meta'):
        if not (parent / CIFAR100.base_folder / name).is_file():
            raise DataError(f"`root`: no file '{parent / CIFAR100.base_folder / name}'.")
    try:
        original = CIFAR100(str(parent), train=split == 'train')
    except (RuntimeError, pickle.UnpicklingError, EOFError) as e:
        raise DataError(
            f"`root`: a file in '{parent / CIFAR100.base_folder}' is not the original, or incomplete: "
            f'{e}') from e
    return LabelledImages(list(original.data), original.targets, original.classes, transform, mode)
