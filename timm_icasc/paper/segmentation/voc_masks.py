"""PASCAL VOC for segmentation: images with image labels to train on, images with masks to measure.

Shapes: `C` classes without the background.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ...data import VOC_CLASSES
from ...data.read_image import read_image
from ...data.voc import find_devkit, read_boxes, targets_of
from ...errors import DataError
from ...foreign_files import path_inside

__all__ = ['IGNORED', 'SegmentationImage', 'VOCSegmentation']

IGNORED = 255  # VOC's label of object borders


class SegmentationImage(NamedTuple):
    """An image, its mask (class + 1, 0 background, 255 border; None without one) and its labels `[C]` in {1, 0, -1}."""
    name: str
    image: Image.Image
    mask: np.ndarray | None
    labels: torch.Tensor


def _check_mask(mask: np.ndarray, image: Image.Image, path: Path) -> None:
    """See that a mask numbers the class of each pixel of its image.

    Raises:
        DataError: It is of another size, or holds colours or grey levels: pixels of no class would not be counted.
    """
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"'{path}' is no mask of its image of {image.width} x {image.height}: it holds {mask.shape}, height, width "
            f'and colours; a mask has one number for each pixel.')
    if len(unknown := np.setdiff1d(mask, [*range(len(VOC_CLASSES) + 1), IGNORED])):
        raise DataError(
            f"'{path}' is no mask: it holds {unknown[0]}, and classes are 0 to {len(VOC_CLASSES)}, borders {IGNORED}. "
            f'Take the PNG with its palette, not a copy in grey levels.')


class VOCSegmentation:
    """One list of VOC's segmentation task: `VOC2012/{JPEGImages,Annotations,SegmentationClass,ImageSets/Segmentation}`.

    Args:
        root: The folder `VOC<year>`, `VOCdevkit`, or the one that holds it.
        split: A list in ImageSets/Segmentation, or in ImageSets/Main: 'train', 'val', 'trainval', or one of your own
            (the 10,582 images of SBD, 'trainaug').
        year: '2007' to '2012'.
        masks: Whether every image must have a mask. Without, masks are read where they exist: weak supervision needs
            none.
        max_image_pixels: As for `read_image`.

    Raises:
        DataError: A folder, list, image, annotation or mask is missing; of an item: its mask is none.
    """
    class_names = VOC_CLASSES

    def __init__(self, root: str, split: str, year: str = '2012', masks: bool = True,
            max_image_pixels: int | None = None):
        self.max_image_pixels = max_image_pixels
        self.folder = find_devkit(root, year)
        lists = [self.folder / 'ImageSets' / task / f'{split}.txt' for task in ('Segmentation', 'Main')]
        file = next((path for path in lists if path.is_file()), None)
        if file is None:
            raise DataError(f"No split '{split}': neither '{lists[0]}' nor '{lists[1]}' exists.")
        self.ids: list[str] = [
            line.split()[0] for line in file.read_text(errors='surrogateescape').splitlines() if line.strip()]
        for name in self.ids:
            needed = [self._path('JPEGImages', name, 'jpg'), self._path('Annotations', name, 'xml')]
            for path in needed + ([self._path('SegmentationClass', name, 'png')] if masks else []):
                if not path.is_file():
                    raise DataError(f"No file '{path}', which split '{split}' needs.")

    def _path(self, kind: str, name: str, suffix: str) -> Path:
        return path_inside(self.folder / kind, f'{name}.{suffix}', through_links=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> SegmentationImage:
        name = self.ids[index]
        boxes = read_boxes(self._path('Annotations', name, 'xml'), VOC_CLASSES)
        labels, = targets_of([boxes])
        image = read_image(self._path('JPEGImages', name, 'jpg'), max_image_pixels=self.max_image_pixels)
        path = self._path('SegmentationClass', name, 'png')
        mask = None
        if path.is_file():  # palette indices
            mask = np.array(read_image(path, mode=None, max_image_pixels=self.max_image_pixels))
            _check_mask(mask, image, path)
        return SegmentationImage(name, image, mask, labels)
