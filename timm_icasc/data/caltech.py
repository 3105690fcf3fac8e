"""Caltech-256 (Griffin, Holub and Perona, 2007): a seeded split with 30 or 60 training images per class."""
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, WriteError
from ..foreign_files import path_inside, read_json
from ..runs.files import write_text
from .image_endings import is_hidden
from .labelled_images import LabelledImages, check_listed

__all__ = ['Caltech256', 'TEST_IMAGES']

TEST_IMAGES = 25

NUM_CLASSES = 256


def _shuffled_files(root: Path, seed: int) -> dict[str, list[str]]:
    """Class folder -> its image files in a random order that depends on their names and the seed alone."""
    Image.init()
    order = {}
    for folder in sorted(p for p in root.iterdir() if re.fullmatch(r'\d{3}\..+', p.name) and p.is_dir()):
        if folder.name.endswith('.clutter'):
            continue
        files = sorted(
            p.name for p in folder.iterdir()
            if p.suffix.lower() in Image.EXTENSION and not is_hidden(p))
        if len(files) <= TEST_IMAGES:
            raise DataError(f"'{folder}' has {len(files)} images; {TEST_IMAGES} are for the test.")
        generator = np.random.default_rng((seed, int(folder.name[:3])))
        order[folder.name] = [files[i] for i in generator.permutation(len(files))]
    return order


class Caltech256(LabelledImages):
    """256 classes of photographs, without the class 'clutter'.

    The split is drawn once and written to `split-seed<seed>.json` in the root; where that file exists, it is the split.
    Of each class's files in its order, the first 25 are for the test, whatever N; the training images are the N that
    follow (all that follow in the few classes that have fewer: the smallest has 80 images).

    Args:
        root: Folder `256_ObjectCategories` (`001.ak47` and so on), or the one that holds it.
        split: 'train30', 'train60' (any N) or 'test' ('validation' means 'test').
        seed: Seed of the split.
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Raises:
        DataError: The folder, a class or a listed image is missing, or the split's name is unknown.
    """

    def __init__(
            self,
            root: str,
            split: str,
            seed: int = 0,
            transform: Callable | None = None,
            mode: str = 'RGB',
    ):
        match = re.fullmatch(r'train(\d+)|test|validation|val', split)
        if not match or match[1] == '0':
            raise DataError(
                f"Caltech-256 has no split '{split}'; it has train30, train60 (any number of images per "
                f'class) and test.')
        folder = next((p for p in (Path(root), Path(root) / '256_ObjectCategories') if any(p.glob('001.*'))), None)
        if folder is None:
            raise DataError(f"`root`: no folder '256_ObjectCategories/001.ak47' in '{root}'.")
        file = folder / f'split-seed{seed}.json'
        if file.is_file():
            try:
                order = read_json(file)
                names = list(order)
                for name in (f'{part}/{file}' for part, files in order.items() for file in files):
                    path_inside(folder, name, through_links=True)
            except (ValueError, TypeError, AttributeError) as e:
                raise DataError(f"'{file}' is not a split (class folder: image files): {e}.") from e
        else:
            order = _shuffled_files(folder, seed)
            names = list(order)
            try:
                write_text(file, json.dumps(order, indent=0))
            except WriteError as e:
                warnings.warn(f'{e} The same files give the same split again.', stacklevel=2)
        if len(names) != NUM_CLASSES:
            warnings.warn(f"'{folder}' has {len(names)} classes, Caltech-256 has {NUM_CLASSES}.", stacklevel=2)
        if match[1]:
            count = int(match[1])
            chosen = {name: order[name][TEST_IMAGES:TEST_IMAGES + count] for name in names}
            short = [name for name in names if len(chosen[name]) < count]
            if short:
                warnings.warn(
                    f'{len(short)} classes have fewer than {count} training images, {short[0]} for one: '
                    f'{len(chosen[short[0]])}.', stacklevel=2)
        else:
            chosen = {name: order[name][:TEST_IMAGES] for name in names}
        images = [folder / name / image for name in names for image in chosen[name]]
        check_listed(images, f"'{file}'")
        targets = [index for index, name in enumerate(names) for _ in chosen[name]]
        super().__init__(images, targets, [name.split('.', 1)[1] for name in names], transform, mode)
