"""An image file as pixels: 16-bit ones are scaled, and one that cannot be read is named."""
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torchvision
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import ImageDataset, IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds

from ..errors import DataError, one_line
from .known_targets import known_targets
from .streams import NamingReaderWds

__all__ = ['FileImages', 'StreamImages', 'convert_image', 'read_image', 'read_with_names']

_logger = logging.getLogger(__name__)

RETRIES = 10  # as timm: of so many unreadable images in a row it is the folder that is at fault


# Readers of timm that open image files; that of tensorflow_datasets decodes elsewhere.
STREAM_READERS = ('ReaderHfids', 'ReaderWds')

# Formats whose 16-bit levels Pillow opens as integers of 32 bits; elsewhere these may be levels of 8 bits.
SIXTEEN_BITS = ('PNG', 'PPM')


def convert_image(image: Image.Image, mode: str | None, upright: bool = False) -> Image.Image:
    """The image in `mode`. Pillow cuts 16-bit levels off at 255 where it should scale them."""
    if mode is None:
        image.load()
        return image
    kind = image.format  # lost by the next line
    if upright:
        image = ImageOps.exif_transpose(image)
    if not image.mode.startswith(('I', 'F')):
        return image.convert(mode)
    levels = np.asarray(image)
    least, greatest = levels.min(initial=0), levels.max(initial=0)
    if image.mode == 'F':
        if least < 0 or greatest > 255 or 0 < greatest <= 1 or greatest != greatest:
            raise ValueError(
                f'its levels are fractions from {least:g} to {greatest:g}, of no known scale: save 8 or 16 bits')
        return image.convert(mode)
    if image.mode == 'I' and kind not in SIXTEEN_BITS and greatest <= 255:  # 32-bit integers with levels of 8 bits
        return image.convert(mode)
    return Image.fromarray(np.rint(np.clip(levels, 0, 65535) / 257).astype(np.uint8)).convert(mode)


def _open(source: Path | str | BinaryIO, max_image_pixels: int | None) -> Image.Image:
    """The image, not decoded yet; a large one is none that Pillow would warn of, or refuse, where it is allowed."""
    if max_image_pixels is not None:
        Image.MAX_IMAGE_PIXELS = max_image_pixels  # in the process that reads, which may be a loading process
    image = Image.open(source)
    if max_image_pixels is not None and image.width * image.height > max_image_pixels:
        image.close()
        raise Image.DecompressionBombError(
            f'Image size ({image.width * image.height} pixels) exceeds limit of {max_image_pixels} pixels')
    return image


def _reason(error: Exception) -> str:
    said = one_line(error)
    if not isinstance(error, Image.DecompressionBombError):
        return said
    return f"{said.rstrip('.')}; where it is a genuine one, allow its size with `max_image_pixels`"


def read_image(
        source: Path | str | BinaryIO,
        mode: str | None = 'RGB',
        upright: bool = False,
        name: str | None = None,
        max_image_pixels: int | None = None,
) -> Image.Image:
    """The pixels of an image file.

    Args:
        source: The file.
        mode: Pillow's image mode; None: as it is in the file, palette indices too.
        upright: Turn the image as its EXIF orientation says, as viewers show it.
        name: What messages call the file.
        max_image_pixels: Pixels that an image may have; None: as Pillow says, 179 million.

    Raises:
        DataError: The file cannot be read, or the image is larger.
    """
    try:
        with _open(source, max_image_pixels) as image:
            return convert_image(image, mode, upright)
    except Exception as e:  # Pillow's decoders raise anything: OSError, SyntaxError, ValueError, DecompressionBombError
        why = _reason(e)
        raise DataError(f"Cannot read the image '{name or source}': {why}") from e


class FileImages(ImageDataset):
    """timm's data set of image files, except that it names what it cannot read and measures nothing in its place.

    Args:
        dataset: As timm made it.
        skips: Serve the next image of its class instead, with a warning: for training.
        max_image_pixels: As for `read_image`.
    """

    def __init__(self, dataset: ImageDataset, skips: bool, max_image_pixels: int | None = None):
        super().__init__(
            '', reader=dataset.reader, input_img_mode=dataset.input_img_mode, transform=dataset.transform,
            target_transform=dataset.target_transform)
        self.skips, self.max_image_pixels = skips, max_image_pixels
        self.drawn: Sequence[int] | None = None  # where a part is trained on, none from outside takes a place in it

    def _instead(self, index: int) -> int | None:
        """The next image of the same class; the next one of all where the reader tells no classes."""
        targets = known_targets(self)
        numbers = np.arange(len(self.reader)) if self.drawn is None else np.asarray(self.drawn)
        own = numbers if targets is None else numbers[targets[numbers] == targets[index]]
        others = own[own != index]
        return int(others[np.argmax(others > index)]) if len(others) else None  # behind the last one, the first

    def _name(self, index: int) -> str:
        try:
            name = self.filename(index, absolute=True)
        except Exception:  # readers of tables need not have file names
            name = None
        return f'number {index}' if name is None else str(name)

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        try:
            file, target, *_ = self.reader[index]
        except OSError as e:
            raise DataError(f"Cannot read the image '{self._name(index)}': {e.strerror or e}") from e
        name, most = self._name(index), self.max_image_pixels
        with file:  # Pillow leaves open what it has not opened
            return read_image(file, self.input_img_mode, name=name, max_image_pixels=most), target

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        asked = index
        for attempt in range(RETRIES):
            try:
                image, target = self._read(index)
                break
            except DataError as e:
                index = self._instead(index) if self.skips and attempt < RETRIES - 1 else None
                if index in (None, asked):
                    raise
                _logger.warning(f'{e}; the next one of its class is taken.')
        if self.transform is not None:
            image = self.transform(image)
        if target is None:
            return image, -1
        return image, target if self.target_transform is None else self.target_transform(target)


class StreamImages(IterableImageDataset):
    """timm's stream of images, except that it scales 16 bits and says what it cannot read.

    Args:
        dataset: As timm made it, of a reader that opens image files.
        mode: Pillow's image mode.
        max_image_pixels: As for `read_image`.
    """

    def __init__(
            self,
            dataset: IterableImageDataset,
            mode: str,
            max_image_pixels: int | None = None,
    ):
        super().__init__(
            '', reader=dataset.reader, transform=dataset.transform,
            target_transform=dataset.target_transform)
        self.reader.input_img_mode = ''  # the reader hands on what is in the file
        if type(self.reader) is ReaderWds:
            self.reader.__class__ = NamingReaderWds
        self.mode, self.max_image_pixels = mode, max_image_pixels

    def _images(self) -> Iterator[tuple[Image.Image, Any]]:
        name = ''
        if self.max_image_pixels is not None:
            Image.MAX_IMAGE_PIXELS = self.max_image_pixels
        try:
            for image, target in self.reader:
                name = getattr(image, 'filename', '')
                yield convert_image(image, self.mode), target
                name = ''
        except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            what = f"the image '{name}'" if name else 'an image of the data set'
            raise DataError(f'Cannot read {what}: {_reason(e)}') from e

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for image, target in self._images():
            if self.transform is not None:
                image = self.transform(image)
            if self.target_transform is not None:
                target = self.target_transform(target)
            yield image, target


def read_with_names(
        dataset: Any,
        mode: str,
        is_training: bool,
        max_image_pixels: int | None = None,
) -> Any:
    """A data set of timm's or torchvision's that reads its files with `read_image`, where it reads files."""
    if type(dataset) is ImageDataset:
        return FileImages(dataset, skips=is_training, max_image_pixels=max_image_pixels)
    if isinstance(dataset, IterableImageDataset):
        reads_files = type(dataset.reader).__name__ in STREAM_READERS
        return StreamImages(dataset, mode, max_image_pixels) if reads_files else dataset
    if isinstance(dataset, torchvision.datasets.VisionDataset) and hasattr(dataset, 'loader'):
        dataset.loader = partial(read_image, mode=mode, max_image_pixels=max_image_pixels)
    return dataset
