"""Images with their labels and boxes: what every data set of this package serves."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..errors import DataError
from ..labels import MULTI, SINGLE, LabelKind
from .read_image import read_image

__all__ = ['Box', 'LabelledImages', 'MultiLabelImages', 'check_box', 'check_listed']


class Box(NamedTuple):
    """An object in an image, in pixels of the image as loaded, before any transform.

    The box spans `[xmin, xmax) x [ymin, ymax)` with the origin at the top left corner of the top left pixel, so that
    its width is `xmax - xmin`. (PASCAL VOC counts pixels from 1 and includes both ends.)

    Attributes:
        class_index: Index of its class.
        xmin, ymin, xmax, ymax: Edges.
        difficult: Marked as hard to recognise; evaluations leave it out.
    """
    class_index: int
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool = False


def check_box(box: Box, class_name: str, edges: Sequence[float], place: str = '') -> Box:
    """The box, which must have an area in pixels: x, y, width and height often have none, shares of the image never.

    Args:
        box: Read from a file.
        class_name: Of its class.
        edges: As they stand in the file.
        place: What the message begins with: the image, where the file has several.

    Raises:
        ValueError: It has none, or lies in the first pixel.
    """
    told = f"{place}the box ({', '.join(f'{edge:g}' for edge in edges)}) of '{class_name}'"
    if not (box.xmin < box.xmax and box.ymin < box.ymax):
        raise ValueError(f'{told} has no area; boxes are xmin, ymin, xmax, ymax, the first two below the last two')
    if box.xmax <= 1 and box.ymax <= 1:
        raise ValueError(f'{told} lies in one pixel; edges are in pixels, no shares of the image')
    return box


def check_listed(images: Sequence[Path], where: str) -> None:
    """Raise DataError where an image that `where` lists is not there."""
    missing = next((image for image in images if not image.is_file()), None)
    if missing is not None:
        raise DataError(f"No image '{missing}', which {where} lists.")


class LabelledImages(torch.utils.data.Dataset):
    """Images and one class index each.

    Args:
        images: Image files, or arrays of pixels `[height, width, 3]`.
        targets: Class index of each image.
        class_names: Names in the order of the indices.
        transform: Applied to the PIL image; settable, as timm's `create_loader` does.
        mode: Pillow's image mode, 'RGB' or 'L'.
        boxes: The objects of each image, where known.
    """
    label_kind: LabelKind = SINGLE
    max_image_pixels: int | None = None  # as for `read_image`
    upright = False  # published benchmarks, and their boxes, are read as they are stored

    def __init__(
            self,
            images: Sequence[Path | str | np.ndarray],
            targets: Any,
            class_names: Sequence[str],
            transform: Callable | None = None,
            mode: str = 'RGB',
            boxes: Sequence[Sequence[Box]] | None = None,
    ):
        self.images = images
        self.targets = targets
        self.class_names = list(class_names)
        self.transform = transform
        self.mode = mode
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self.images)

    @property
    def boxes(self) -> Callable[[int], list[Box]]:
        """`boxes(index)`: the objects of an image. A data set without boxes has no such attribute."""
        if self._boxes is None:
            raise AttributeError(f'{type(self).__name__} has no boxes')
        return self._boxes_of

    def _boxes_of(self, index: int) -> list[Box]:
        return list(self._boxes[index])

    def name_classes(self, names: Sequence[str]) -> None:
        """Number the classes in the order of `names`, which has all of the data set's own."""
        order = [names.index(name) for name in self.class_names]
        self.targets = self._reordered(order, len(names))
        if self._boxes is not None:
            self._boxes = [
                [box._replace(class_index=order[box.class_index]) for box in boxes]
                for boxes in self._boxes]
        self.class_names = list(names)

    def _reordered(self, order: list[int], num_classes: int) -> Any:
        return [order[int(target)] for target in self.targets]

    def load(self, index: int) -> Image.Image:
        """The image itself, untransformed.

        Raises:
            DataError: The file cannot be read.
        """
        source = self.images[index]
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert(self.mode)
        return read_image(source, self.mode, self.upright, max_image_pixels=self.max_image_pixels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = self.load(index)
        return (image if self.transform is None else self.transform(image)), self.targets[index]


class MultiLabelImages(LabelledImages):
    """Images with any number of classes each.

    `targets` is a float tensor `[N, C]`: 1 present, 0 absent, -1 ignored (neither counted as present nor as absent).

    Attributes:
        names_all: Whether each image names all of its classes, so that those that occur nowhere are absent. Otherwise
            nothing is known of a class besides `class_names`.
    """
    label_kind = MULTI
    names_all = False

    def _reordered(self, order: list[int], num_classes: int) -> torch.Tensor:
        others = 0. if self.names_all else -1.
        targets = self.targets.new_full((len(self.targets), num_classes), others)
        targets[:, order] = self.targets
        return targets
