"""Image folders `split/CLASS/IMAGE`: what in them is no class, and which files are no image that is read."""
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torchvision
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder

from ..errors import DataError, first_of
from .image_endings import ENDINGS, ending_of, is_hidden, tell_left_out

__all__ = ['check_folder', 'check_map', 'is_class', 'no_folder', 'settle_classes']

# The folder names that timm tries in place of the split's own.
SPLIT_SYNONYMS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
}

# What systems leave in folders: archives of macOS, network drives, recycle bins, file systems.
NO_CLASSES = ('', '__MACOSX', '@eaDir', '#recycle', '$RECYCLE.BIN', 'System Volume Information', 'lost+found')


def no_folder(root: Path) -> DataError:
    """What is said where `root` is not there, or an archive."""
    return DataError(f"`root`: no folder '{root}'{', but a file: unpack it, and name the folder' * root.exists()}.")


def check_folder(
        root: Path,
        split: str,
        readable: Sequence[str],
        has_map: bool = False,
) -> dict[str, int]:
    """timm reads the whole root where the split's folder is missing, and takes the splits for classes.

    Args:
        root: Folder of the splits.
        split: Name of the split.
        readable: Endings of the images that are read.
        has_map: Whether a map says which folders are classes.

    Returns:
        Folder with images, by the name that timm calls its class, the last part -> number of images.

    Raises:
        DataError: There is no such folder, there are no classes in it, a class has no image that timm reads, or two
            folders would be one class.
    """
    if not root.is_dir():
        raise no_folder(root)
    names = next((s for s in SPLIT_SYNONYMS.values() if split in s), (split,))
    folder = next((root / name for name in (split, *names) if (root / name).is_dir()), None)
    if folder is None:
        found = sorted(p.name for p in root.iterdir() if p.is_dir())[:8]
        raise DataError(
            f"`root`: '{root}' has no folder '{split}' (it has: {', '.join(found) or 'no folders'}); "
            f'expected {split}/CLASS/IMAGE, or name the folder with `split`.')
    if not any(p.is_dir() and is_class(p.name) for p in folder.iterdir()):
        raise DataError(f"`root`: '{folder}' has no class folders; expected {split}/CLASS/IMAGE.")
    images = _check_endings(folder, readable, has_map)
    if not has_map:
        _check_nested(folder, images)
    counts: Counter[str] = Counter()
    for path, count in images.items():
        counts[path.name] += count
    return dict(counts)


def _check_nested(folder: Path, images: Mapping[Path, int]) -> None:
    """Images may lie deeper than in `folder/CLASS`: timm calls the innermost folder the class."""
    nested = sorted(path for path in images if path.parent != Path('.'))
    by_name: dict[str, list[Path]] = {}
    for path in sorted(images):
        if len(path.parts) == 1 or path.parts[0] != path.name:  # cat/cat is cat
            by_name.setdefault(path.name, []).append(path)
    same = next((paths for paths in by_name.values() if len(paths) > 1), None)
    if same:
        raise DataError(
            f"`root`: '{folder / same[0]}' and '{folder / same[1]}' would be one class, '{same[0].name}': the "
            f'innermost folder is the class. Put the images of a class into one folder, or list them '
            f'(`name=singlelabel`).')
    if nested:
        warnings.warn(
            f"'{folder}' has images deeper than in CLASS/IMAGE, as in '{nested[0]}' ({len(nested)} such folders): the "
            f"innermost folder is the class, here '{nested[0].name}'.", stacklevel=4)


def check_map(classes: Mapping[str, int], images: Mapping[str, int], file: str) -> None:
    """Warn of folders whose images a class map leaves out, and of classes in it that have none.

    Args:
        classes: Of the map.
        images: As from `check_folder`.
        file: Name of the map.
    """
    left_out = {name: count for name, count in images.items() if name not in classes}
    empty = [name for name in classes if name not in images and is_class(name)]
    for names, what in (
            ([f'{name} ({count})' for name, count in left_out.items()], 'leaves out the images of these folders'),
            (empty, 'has classes without an image here')):
        if names:
            warnings.warn(f"the class map '{file}' {what}: {first_of(sorted(names), 8)}.", stacklevel=4)


def is_class(name: str) -> bool:
    """Whether a folder is a class: neither hidden, as `.ipynb_checkpoints`, nor one of `NO_CLASSES`."""
    return not name.startswith('.') and name not in NO_CLASSES


def _check_endings(folder: Path, readable: Sequence[str], has_map: bool) -> dict[Path, int]:
    """Say which files are left out, and refuse a class of which there are no others; images of each folder in it."""
    read: dict[str, int] = {}
    left_out: Counter[tuple[str, str]] = Counter()
    found = {name.name: set() for name in folder.iterdir() if name.is_dir() and is_class(name.name)}
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = filter(is_class, folders)
        endings = [
            ending_of(file) for file in files if path != str(folder) and not is_hidden(file)]
        if endings:
            found[Path(path).relative_to(folder).parts[0]].update(endings)
        if count := sum(ending in readable for ending in endings):
            read[path] = count
        left_out.update((path, ending) for ending in endings if ending not in readable)
    for path, ending in sorted(left_out):
        if ending in ENDINGS and path not in read and not has_map:
            raise DataError(
                f"`root`: the images of '{path}' end in {ending}, which are not read here ({', '.join(readable)} "
                f'are): name all endings that are with `image_endings`.')
    for name, endings in sorted(found.items()):
        if endings.isdisjoint(readable) and not has_map:  # it would be no class, without a word
            have = f"its files end in {first_of(sorted(endings))}" if any(endings) else (
                'its files have no endings' if endings else 'it is empty')
            raise DataError(
                f"`root`: the class '{folder / name}' has no image that is read here ({', '.join(readable)}): "
                f'{have}. Put images there, or take the folder away.')
    of_all: Counter[str] = Counter()
    for (_, ending), count in left_out.items():
        of_all[ending] += count
    tell_left_out(of_all, folder, readable)
    return {Path(path).relative_to(folder): count for path, count in read.items()}


def _lies_in_class(file: str, root: str) -> bool:
    """Whether a file lies in folders that are classes, and not beside them."""
    folders = [part for part in file[len(root):].split(os.sep) if part][:-1]
    return bool(folders) and all(map(is_class, folders))


def settle_classes(dataset: Any, has_map: bool = False) -> None:
    """Take what is no image of a class out of a data set of timm's or torchvision's: it numbers the rest.

    Args:
        dataset: Of images in folders; another passes.
        has_map: Whether a class map says which folders are classes; hidden files alone go then.
    """
    holder = dataset.reader if isinstance(dataset, ImageDataset) else dataset
    if not isinstance(holder, (ReaderImageFolder, torchvision.datasets.DatasetFolder)):
        return
    names = {index: name for name, index in holder.class_to_idx.items()}
    root = str(holder.root)
    kept = [
        (file, names[i]) for file, i in holder.samples
        if not is_hidden(file) and (has_map or _lies_in_class(file, root))]
    if len(kept) == len(holder.samples):
        return
    index = holder.class_to_idx
    if not has_map:
        filled = {name for _, name in kept}
        remaining = [name for name in holder.class_to_idx if name in filled]
        index = {name: i for i, name in enumerate(remaining)}
    holder.samples, holder.class_to_idx = [(file, index[name]) for file, name in kept], index
    if holder is dataset:
        dataset.imgs, dataset.targets = dataset.samples, [target for _, target in dataset.samples]
        dataset.classes = list(index)
