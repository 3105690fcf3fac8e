"""From `--data-dir` and `--dataset` to a data set, with errors that name what is missing."""
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm.data
import torch
from timm.data.readers.img_extensions import get_img_extensions

from ..errors import DataError, one_line
from ..labels import SINGLE, LabelKind
from .caltech import Caltech256
from .cifar import cifar100
from .cub import CUB200
from .digits import DigitsDataset
from .image_endings import check_endings, timm_reading
from .image_folder import check_folder, check_map, no_folder, settle_classes
from .image_list import MultiLabelList, SingleLabelList
from .imagenet import ILSVRC2012
from .read_image import read_with_names
from .streams import StreamHead, check_package, is_stream
from .voc import PackedVOC, VOCDevkit

__all__ = [
    'NAMES', 'class_names', 'create_dataset', 'evenly_spaced', 'image_file', 'image_name', 'is_public', 'kind_of_set',
    'labels_of', 'name_classes',
]

# Name -> how to make it from root, split and the transform and Pillow mode that every data set takes.
NAMES = {
    'cifar100': cifar100,
    'caltech256': Caltech256,
    'imagenet': ILSVRC2012,
    'cub200': CUB200,
    'voc2007': partial(VOCDevkit, year='2007'),
    'voc2012': partial(VOCDevkit, year='2012'),
    'voc2007-packed': PackedVOC,
    'multilabel': MultiLabelList,
    'singlelabel': SingleLabelList,
}

LISTS = ('multilabel', 'singlelabel')  # a user's own

MOST_CLASSES = 2 ** 20  # that a class map may number

WORDNET_ID = re.compile(r'n\d{8}')

# SHA-256 of their names, sorted, a line each.
CLASSES_OF_CIFAR100 = 'fbe8ad23bbaf24969898a386833b49c3aaf6ad1119d43f7b41cdea1b3416d578'

TYPES = ('torch/', 'hfds/', 'hfids/', 'tfds/', 'wds/')

# Of the torch/ data sets those that timm takes for the test images unless it knows the split's name as the training's.
TRAIN_OR_TEST = tuple(f'torch/{name}' for name in ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist'))

# Of the torch/ data sets, those that are no folder of images.
PUBLIC_OF_TORCHVISION = (
    *TRAIN_OR_TEST, 'torch/inat', 'torch/inaturalist', 'torch/places365', 'torch/imagenet')

TRAIN_OR_TEST_SPLITS = ('train', 'training', 'test', 'val', 'valid', 'validation', 'eval', 'evaluation')


def is_public(name: str | None, classes: Sequence[str] | None = None) -> bool:
    """Whether the images of a data set are everybody's; those of a user's own folder, list or stream are not.

    Args:
        name: Of the data set, as `create_dataset` takes it.
        classes: Names of its classes: 'imagenet' and 'cifar100' take a folder of any.
    """
    name = name or ''
    if name == 'imagenet':
        return bool(classes) and all(map(WORDNET_ID.fullmatch, classes))
    if name == 'cifar100':
        return hashlib.sha256('\n'.join(sorted(classes or ())).encode()).hexdigest() == CLASSES_OF_CIFAR100
    return name == 'digits' or name in NAMES and name not in LISTS or name.lower() in PUBLIC_OF_TORCHVISION


def create_dataset(
        name: str,
        root: str | None,
        split: str,
        is_training: bool = False,
        max_image_pixels: int | None = None,
        image_endings: Sequence[str] | None = None,
        **kwargs,
) -> torch.utils.data.Dataset:
    """`timm.data.create_dataset`, plus the embedded 'digits' and the data sets of the paper.

    Args:
        name: 'digits', '' (an image folder `root/split/CLASS/IMAGE`), 'cifar100', 'caltech256', 'imagenet', 'cub200',
            'voc2007', 'voc2012', 'voc2007-packed', 'multilabel' or 'singlelabel' (a user's lists), or any name that
            timm takes ('torch/cifar100', 'hfds/...', 'wds/...').
        root: Data folder; not used by 'digits'.
        split: Name of the split.
        is_training: Whether the training split is meant, for messages and for streaming readers.
        max_image_pixels: Pixels that an image may have; None: as Pillow says, 179 million.
        image_endings: What the names of images end in, of an image folder or a list; None: in a folder what timm
            reads (.png, .jpg, .jpeg), in a list whatever it names. Files with other endings are left out, with one
            warning that counts them.
        **kwargs: Passed on to timm; of these, this package's own data sets take `transform`, `input_img_mode` and, for
            the lists, `class_map`.

    Raises:
        DataError: The folder, its split, its classes or its images are missing, or timm cannot read the data.
    """
    if image_endings is not None:
        image_endings = check_endings(image_endings)
        if name and name not in LISTS:
            raise DataError(
                f"`image_endings` are of image folders and lists ({', '.join(LISTS)}); data set '{name}' knows its "
                f'files: leave them out.')
    _check_read(name, split, kwargs.get('class_map'))
    if name == 'digits':
        return DigitsDataset(split, kwargs.get('transform'), kwargs.get('input_img_mode', 'RGB'))
    if name in NAMES:
        dataset = _create_own(name, root, split, image_endings, kwargs)
        dataset.max_image_pixels = max_image_pixels
        return read_with_names(
            dataset, kwargs.get('input_img_mode', 'RGB'), is_training, max_image_pixels)
    if name and not name.startswith(TYPES):
        raise DataError(
            f"`name`: unknown type '{name}'; it is 'digits', {', '.join(NAMES)}, or begins with "
            f"{', '.join(TYPES)}.")
    check_package(name)
    endings = image_endings or get_img_extensions()
    images = None if name else check_folder(Path(root), split, endings, bool(kwargs.get('class_map')))
    try:
        with timm_reading(endings):
            dataset = timm.data.create_dataset(
                name, root=root, split=split, is_training=is_training, **kwargs)
    except Exception as e:  # whatever a foreign list, class map or pickle makes timm's readers say
        said = one_line(e, 400).replace('download=True', '`download`')  # torchvision's advice
        raise DataError(f"Cannot read split '{split}' of data set '{name or root}': {said}") from e
    settle_classes(dataset, bool(kwargs.get('class_map')))
    if kwargs.get('class_map'):
        _check_class_map(dataset, kwargs['class_map'], images)
    if not len(dataset):
        raise DataError(f"Split '{split}' of data set '{name or root}' is empty.")
    return read_with_names(dataset, kwargs.get('input_img_mode', 'RGB'), is_training, max_image_pixels)


def _check_read(name: str, split: str, class_map: Any) -> None:
    """Raise DataError where another split than is named would be read, or other classes, without a word."""
    own_order = name == 'digits' or name.startswith('torch/') or name in NAMES and name not in LISTS
    if class_map and own_order:
        raise DataError(f"`class_map`: data set '{name}' has classes of its own, in their order: leave it out.")
    if name.lower() in ('', 'torch/folder', 'torch/image_folder') and '[' in split:
        raise DataError(
            f"`split`: '{split}' asks for a part of a folder, which is read whole: give each split a folder of its "
            f'own, or list the images (`name=singlelabel`).')
    if name.lower() in TRAIN_OR_TEST and split not in TRAIN_OR_TEST_SPLITS:
        raise DataError(f"`split`: data set '{name}' has the splits train and test (validation), no '{split}'.")


def _create_own(
        name: str,
        root: str,
        split: str,
        image_endings: Sequence[str] | None,
        options: dict[str, Any],
) -> torch.utils.data.Dataset:
    """One of `NAMES`; `options` as of `create_dataset`."""
    if not Path(root).is_dir():
        raise no_folder(Path(root))
    own = {'transform': options.get('transform'), 'mode': options.get('input_img_mode', 'RGB')}
    if name in LISTS:
        own.update(class_map=options.get('class_map'), endings=image_endings)
    dataset = NAMES[name](root, split=split, **own)
    settle_classes(dataset)
    if not len(dataset):
        raise DataError(f"Split '{split}' of data set '{name}' in '{root}' is empty.")
    return dataset


def _check_class_map(
        dataset: torch.utils.data.Dataset,
        file: Any,
        images: Mapping[str, int] | None,
) -> None:
    """Raise DataError where a class map does not number the classes; of folders, warn of what it leaves out."""
    mapping = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None) or {}
    if str(file).lower().endswith('.txt') and ('' in mapping or len(mapping) <= max(mapping.values(), default=-1)):
        raise DataError(f"`class_map`: '{file}' has an empty line, or a class twice: each line is a class.")
    for name, index in mapping.items():
        if not isinstance(index, int) or not 0 <= index < MOST_CLASSES:
            raise DataError(
                f"`class_map`: '{file}' gives '{name}' no number of a class; they are counted from 0, to at most "
                f'{MOST_CLASSES - 1}.')
    if images is not None:
        check_map(mapping, images, str(file))


def _names_by_index(indices: Mapping[Any, int]) -> list[str]:
    """The name at each index: all of those that share one, and a number where there is none."""
    found: dict[int, list[str]] = {}
    for name, index in indices.items():
        found.setdefault(index, []).append(str(name))
    taken = {name for names in found.values() for name in names}
    unnamed = (str(i) if str(i) not in taken else f'no class {i}' for i in range(max(found) + 1))
    return [', '.join(found.get(i, [number])) for i, number in enumerate(unnamed)]


def class_names(dataset: torch.utils.data.Dataset) -> list[str] | None:
    """Class names in the order of the labels; None where the data set does not tell.

    A class map may give several folders one label, whose name is then that of all, and leave labels out, which are
    called by their numbers.
    """
    for holder in (dataset, getattr(dataset, 'reader', None)):
        if getattr(holder, 'class_names', None):
            return list(holder.class_names)
        if getattr(holder, 'class_to_idx', None):
            return _names_by_index(holder.class_to_idx)
        if getattr(holder, 'classes', None):
            return [str(name) for name in holder.classes]
    return None


class _Renumbered:
    """A target transform; no closure, since loading processes get a pickled copy."""

    def __init__(self, order: list[int], before: Callable | None):
        self.order, self.before = order, before

    def __call__(self, target: Any) -> int:
        return self.order[int(self.before(target) if self.before else target)]


def name_classes(dataset: torch.utils.data.Dataset, names: Sequence[str]) -> None:
    """Number the classes of a data set, from now on, in the order of `names`.

    Args:
        dataset: One that tells its classes, all of them among `names`.
        names: Class names in the order of a model's outputs.

    Raises:
        DataError: The data set has no way to do it.
    """
    if hasattr(dataset, 'name_classes'):
        dataset.name_classes(names)
        return
    if not hasattr(dataset, 'target_transform'):  # timm's data sets and torchvision's have it
        raise DataError(
            f'the classes of {type(dataset).__name__} are in another order than those of the model, and it cannot '
            f'number them anew.')
    dataset.target_transform = _Renumbered(
        [list(names).index(name) for name in class_names(dataset)], dataset.target_transform)


def _in_the_whole(
        dataset: torch.utils.data.Dataset,
        index: int,
) -> tuple[torch.utils.data.Dataset, int]:
    while isinstance(dataset, torch.utils.data.Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    return dataset, index


def _file_of(dataset: torch.utils.data.Dataset, index: int, **options: bool) -> Path | None:
    files = getattr(dataset, 'images', None)
    if files is not None and isinstance(files[index], (str, Path)):
        return Path(files[index])
    try:
        return Path(dataset.filename(index, **options))  # timm's own data sets
    except (AttributeError, NotImplementedError, TypeError):  # TypeError: an image of a table may have no name
        return None


def image_file(dataset: torch.utils.data.Dataset, index: int) -> Path | None:
    """Where an image lies, which may be in an archive; None where it is no file."""
    return _file_of(*_in_the_whole(dataset, index), absolute=True)


def image_name(dataset: torch.utils.data.Dataset, index: int) -> str:
    """File name of an image, or its number in the data set, the whole one where this is a part."""
    dataset, index = _in_the_whole(dataset, index)
    file = _file_of(dataset, index)
    return f'image {index}' if file is None else file.name


def kind_of_set(name: str | None) -> LabelKind:
    """The kind of the targets of a data set, by its name; only those of `NAMES` may have several classes each."""
    make = NAMES.get(name)
    return getattr(getattr(make, 'func', make), 'label_kind', SINGLE)


def labels_of(dataset: torch.utils.data.Dataset) -> LabelKind:
    """The kind of its targets; data sets that are not this package's own have a class index each."""
    return getattr(getattr(dataset, 'dataset', dataset), 'label_kind', SINGLE)  # also inside a Subset


def evenly_spaced(dataset: torch.utils.data.Dataset, count: int) -> torch.utils.data.Dataset:
    """The subset of `count` samples at even distances, so that a data set sorted by class gives every class a share.

    Of a stream it is the first samples: a shard is shuffled when it is written.
    """
    if is_stream(dataset):
        return StreamHead(dataset, count)
    count = min(count, len(dataset))
    return torch.utils.data.Subset(dataset, [i * len(dataset) // count for i in range(count)])
