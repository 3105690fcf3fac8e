"""Which files are images: by the endings of their names, in lower case and with their dot."""
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions

from ..errors import DataError, first_of

__all__ = ['ENDINGS', 'check_endings', 'ending_of', 'is_hidden', 'tell_left_out', 'timm_reading']

# Of images that Pillow reads; timm reads some of them alone.
ENDINGS = (
    '.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')

MOST_TOLD = 8


def check_endings(endings: Sequence[str]) -> tuple[str, ...]:
    """The endings that a user names, with or without a dot, in any case.

    Raises:
        DataError: There are none, or one is no ending.
    """
    for ending in endings:
        if not re.fullmatch(r'\.?\w+', ending):
            raise DataError(f"`image_endings` are such as .jpg, got '{ending}'.")
    if not endings:
        raise DataError('`image_endings` are missing, such as .jpg.')
    return tuple(dict.fromkeys(f".{ending.lower().removeprefix('.')}" for ending in endings))


def ending_of(file: str | Path) -> str:
    return os.path.splitext(file)[1].lower()


def is_hidden(file: str | Path) -> bool:
    """Whether a file is none of the user's images, as the `._cat.jpg` that macOS puts beside `cat.jpg`."""
    return os.path.basename(file).startswith('.')


def tell_left_out(left_out: Counter[str], where: Path | str, endings: Sequence[str]) -> None:
    """Warn in one line of files that are no images by their endings.

    Args:
        left_out: Ending -> number of files.
        where: Their folder or list.
        endings: Those that are taken.
    """
    if not left_out:
        return
    told = [f"{ending or 'no ending'} ({count})" for ending, count in sorted(left_out.items())]
    warnings.warn(
        f"{sum(left_out.values())} files of '{where}' are left out, by their endings: "
        f"{first_of(told, MOST_TOLD)}; images here end in {', '.join(endings)} (`image_endings` says which)",
        stacklevel=4)


@contextmanager
def timm_reading(endings: Sequence[str]) -> Iterator[None]:
    """Let timm's readers take files with these endings, inside the block."""
    before = get_img_extensions()
    set_img_extensions(endings)
    try:
        yield
    finally:
        set_img_extensions(before)
