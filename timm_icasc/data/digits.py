"""Scikit-learn's digits as 32-pixel images: real, small, and on every machine without a download."""
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from ..errors import DataError

__all__ = ['DigitsDataset']

TEST_FRACTION = 0.25

SPLIT_SEED = 0  # the split is part of the data set, not of a run


class DigitsDataset(torch.utils.data.Dataset):
    """1,797 handwritten digits of 8 x 8 pixels (UCI, 1998), enlarged to 32 x 32 RGB; a stratified split, 1347 + 450.

    Args:
        split: 'train' or 'validation' ('val').
        transform: Applied to the PIL image.
        mode: Pillow's image mode, 'RGB' or 'L'.
    """
    SPLITS = {'train': 'train', 'validation': 'validation', 'val': 'validation'}
    class_names = [str(digit) for digit in range(10)]

    def __init__(self, split: str = 'train', transform: Callable | None = None, mode: str = 'RGB'):
        if split not in self.SPLITS:
            raise DataError(f"data set 'digits' has the splits train and validation (val), no '{split}'.")
        # They take a second to load, which every command would wait for.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        digits = load_digits()
        indices = train_test_split(
            np.arange(len(digits.target)), test_size=TEST_FRACTION, random_state=SPLIT_SEED,
            stratify=digits.target)
        self.indices = np.sort(indices[self.SPLITS[split] == 'validation'])
        # Ink levels 0 to 16 become 0 to 255; four times the size leaves a grid of 8 x 8 at stride 4.
        self.images = np.rint(digits.images[self.indices] * (255 / 16)).astype(np.uint8)
        self.targets = digits.target[self.indices].astype(np.int64)
        self.transform = transform
        self.mode = mode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(self.images[index]).resize(
            (32, 32), Image.Resampling.BILINEAR).convert(self.mode)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])
