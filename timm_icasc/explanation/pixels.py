"""Images as people have them, as pictures and as a model's input: files, PIL images, arrays, tensors."""
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.geometry import Geometry, transform_geometry
from ..data.read_image import convert_image, read_image
from ..errors import DataError, ICASCError, one_line

__all__ = ['Item', 'open_image', 'prepare', 'take_apart']

# How far beyond black and white a normalised value may lie: rounding, and the overshoot of some resampling filters.
SLACK = 0.3


@dataclass
class Item:
    """An image, and what the model is given of it.

    Attributes:
        tensor: Input of the model, `[channels, h, w]`, normalised.
        picture: The image itself, upright, RGB.
        geometry: From the image to the input.
        name: Of its file; empty where it came without.
    """
    tensor: torch.Tensor
    picture: Image.Image
    geometry: Geometry
    name: str = ''


def _of_array(array: np.ndarray) -> Image.Image:
    """A PIL image of an array `[H, W]` or `[H, W, 1, 3 or 4]`."""
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and shape[2] not in (3, 4) or not array.size:
        hint = '; move the channels to the end, `image.transpose(1, 2, 0)`' if len(shape) == 3 and shape[0] in (
            1, 3, 4) else ''
        raise ICASCError(f'`image`: an array must be [height, width] or [height, width, 3], got {shape}{hint}.')
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise ICASCError(
            f'`image`: an array must be uint8, or floating point from 0 to 1, got {array.dtype}: scale it yourself.')
    least, greatest = float(array.min()), float(array.max())
    if not 0 <= least <= greatest <= 1:
        raise ICASCError(
            f'`image`: an array of {array.dtype} must lie in 0 to 1, got {least:g} to {greatest:g}: divide it, or make '
            f'it uint8.')
    return Image.fromarray(np.rint(255 * array.astype(np.float64)).astype(np.uint8))


def open_image(image: Any, mode: str = 'RGB') -> Image.Image:
    """A file, PIL image or array as an upright PIL image; one that is so already, as it is.

    Args:
        image: Path, PIL image (turned as its EXIF orientation says), or array `[H, W]` or `[H, W, 3]`, uint8 or
            floating point in [0, 1].
        mode: Pillow's image mode.

    Raises:
        DataError: The file cannot be read.
        ICASCError: It is nothing of these.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), mode, upright=True)
    if isinstance(image, np.ndarray):
        image = _of_array(image)
    if not isinstance(image, Image.Image):
        raise ICASCError(
            f'`image` must be a path, a PIL image, an array or a tensor, or a list of these, got '
            f'{type(image).__name__}.')
    if 0 in image.size:
        raise ICASCError(f"`image` has no pixels: it is of {' x '.join(map(str, image.size))}.")
    try:
        image.load()
        if image.mode == mode and not image.getexif():
            return image
        return convert_image(image, mode, upright=True)
    except Exception as e:  # of a file that was opened, and is decoded only now
        raise DataError(f"Cannot read the image '{getattr(image, 'filename', '')}': {one_line(e)}") from e


def take_apart(image: Any) -> tuple[list[Any], bool]:
    """The single images, and whether there was but one, not in a list, batch or anything else to go through."""
    if isinstance(image, (torch.Tensor, np.ndarray)):
        return (list(image), False) if image.ndim == 4 else ([image], True)
    # Texts are paths, whose letters are none; an opened file is lines, and a dictionary's names are no images.
    if isinstance(image, (str, bytes, IOBase, Mapping)) or not isinstance(image, Iterable):
        return [image], True
    return [one for several in image for one in take_apart(several)[0]], False


def _is_normalised(
        tensor: torch.Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        said: bool | None,
) -> bool:
    """Whether a floating point tensor holds what the model takes, not pixels from 0 to 1.

    Raises:
        ICASCError: Its values allow both, or neither, and nobody said.
    """
    least, greatest = float(tensor.min()), float(tensor.max())
    if not least <= greatest or greatest == float('inf') or least == -float('inf'):
        raise ICASCError('`image`: the tensor has values that are not finite.')
    is_pixels = 0 <= least and greatest <= 1
    black = min(-m / s for m, s in zip(mean, std, strict=True))
    white = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    if said is False and not is_pixels:
        raise ICASCError(f'`normalised=False`: pixels lie in 0 to 1, the tensor in {least:g} to {greatest:g}.')
    if said is not None:
        return said
    if black == 0 and white == 1:
        return True
    if is_pixels:
        raise ICASCError(
            '`image`: a tensor with values in 0 to 1 may be pixels, or normalised already: say `normalised=False` or '
            '`normalised=True`.')
    if least < black - SLACK or greatest > white + SLACK:
        raise ICASCError(
            f'`image`: the tensor lies in {least:g} to {greatest:g}, neither 0 to 1 nor what the model takes, '
            f'{black:.3g} to {white:.3g}: normalise it, or make it uint8; `normalised=True` takes it as it is.')
    return True


def _prepare_tensor(
        image: torch.Tensor,
        config: dict[str, Any],
        normalised: bool | None,
) -> Item | Image.Image:
    """What the model takes already; or, of pixels, a PIL image."""
    channels = config['input_size'][0]
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise ICASCError(
            f'`image`: a tensor must be [channels, height, width], or a batch of these, got {tuple(image.shape)}.')
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return _of_array(image.permute(1, 2, 0).numpy())
    if not image.is_floating_point():
        raise ICASCError(f'`image`: a tensor must be uint8 or floating point, got {image.dtype}.')
    image = image.float()
    mean, std = config['mean'], config['std']
    if not _is_normalised(image, mean, std, normalised):
        return _of_array(image.permute(1, 2, 0).numpy())
    if image.shape[0] != channels:
        raise ICASCError(f'`image`: the model takes {channels} channels, the tensor has {image.shape[0]}.')
    mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = (image * std + mean).clamp(0, 1).expand(3, -1, -1)
    height, width = image.shape[1:]
    return Item(
        image, Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).numpy()),
        Geometry(1., 1., 0., 0., width, height))


def prepare(
        image: Any,
        transform: Callable[[Image.Image], torch.Tensor],
        config: dict[str, Any],
        normalised: bool | None,
) -> Item:
    """An image as a picture and as a model's input.

    Args:
        image: As of `explain`, a single one.
        transform: Makes the input.
        config: timm's: input size, mean, std.
        normalised: As of `explain`.

    Raises:
        DataError: A file cannot be read.
        ICASCError: It is no image, or its scale is not clear.
    """
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else getattr(image, 'filename', '') or ''
    if isinstance(image, torch.Tensor):
        image = _prepare_tensor(image, config, normalised)
        if isinstance(image, Item):
            return image
    mode = 'L' if config['input_size'][0] == 1 else 'RGB'
    opened = open_image(image, mode)
    picture = opened if mode == 'RGB' else open_image(image)
    return Item(transform(opened), picture, transform_geometry(transform, opened.size), str(name))
