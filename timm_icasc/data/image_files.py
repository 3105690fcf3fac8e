"""Images without labels: the files that a user names, and those in folders, each with a name of its own."""
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ..errors import DataError
from .image_endings import ENDINGS, ending_of, is_hidden, tell_left_out
from .image_folder import is_class

__all__ = ['ImageFile', 'find_images']

# Letters of a name that files are called by; what is written beside it (an ending, a class) makes it longer.
LONGEST = 150


@dataclass(frozen=True)
class ImageFile:
    """A file to explain.

    Attributes:
        path: Where it is.
        name: What results call it, with slashes; no two files have the same.
    """
    path: Path
    name: str

    @property
    def stem(self) -> str:
        """`name` as the beginning of the names of files, none of which is too long; still no two are the same."""
        parts = self.name.split('/')
        if len(os.fsencode(parts[-1])) > LONGEST:
            parts[-1] = f'{parts[-1][:LONGEST // 4]}-{sha256(os.fsencode(self.name)).hexdigest()[:12]}'
        return '/'.join(parts)


def _walk(folder: Path, outside: Path | None, endings: Sequence[str]) -> Iterator[Path]:
    """Image files below a folder in the order of their names; a link to a folder that was seen is not followed."""
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen or outside is not None and Path(real) == outside:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_class, folders))
        for file in sorted(file for file in files if not is_hidden(file)):
            if (ending := ending_of(file)) in endings:
                yield Path(path) / file
            else:
                left_out[ending] += 1
    tell_left_out(left_out, folder, endings)


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; case does not count, as in some file systems."""
    head, count = name, 1
    while name.casefold() in taken:
        count += 1
        name = f'{head}-{count}'
    taken.add(name.casefold())
    return name


def find_images(
        sources: Sequence[str | Path],
        outside: Path | None = None,
        endings: Sequence[str] = ENDINGS,
) -> list[ImageFile]:
    """The images that a user names.

    Args:
        sources: Files, taken whatever their ending; and folders, of which every image below is meant.
        outside: A folder to leave out, where results are written.
        endings: What makes a file of a folder an image; others are left out with one warning a folder.

    Returns:
        The files, each once. Of a single folder they are called by their path in it, of several by that and the
        folder's name.

    Raises:
        DataError: A file or folder is missing, or a folder has no image.
    """
    outside = None if outside is None else Path(os.path.realpath(outside))
    roots: dict[str, str] = {}
    labels: set[str] = set()
    found: dict[str, tuple[Path, str, str]] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"`images`: no file or folder '{source}'.")
        root = source if source.is_dir() else source.parent
        files = list(_walk(source, outside, endings)) if source.is_dir() else [source]
        if not files:
            inside = outside is not None and outside.is_relative_to(os.path.realpath(source))
            beside = ', those where results are written (`output`) left aside' if inside else ''
            raise DataError(f"`images`: '{source}' has no images ({', '.join(endings)}){beside}.")
        real = os.path.realpath(root)
        if real not in roots:
            roots[real] = _unique(os.path.basename(real) or 'images', labels)
        for file in files:
            name = file.relative_to(root).as_posix()
            found.setdefault(os.path.realpath(file), (file, real, name))
    taken: set[str] = set()
    several = len(roots) > 1
    return [
        ImageFile(path, _unique(f'{roots[root]}/{relative}' if several else relative, taken))
        for path, root, relative in found.values()]
