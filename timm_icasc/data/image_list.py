"""A user's own images, of one class each or of any number, listed in one file per split."""
import csv
import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, ICASCError, first_of, one_line
from ..foreign_files import path_inside, read_json
from .image_endings import ending_of, tell_left_out
from .labelled_images import Box, LabelledImages, MultiLabelImages, check_box, check_listed

__all__ = ['BROKEN', 'MultiLabelList', 'SingleLabelList', 'read_csv']

FORMATS = (
    'a CSV with the columns image,labels (names separated by ;) or image,CLASS,CLASS,... (1, 0 or -1), or a JSON '
    '{"images": [{"image": ..., "labels": [...], "ignore": [...], "boxes": [[name, xmin, ymin, xmax, ymax], ...]}]}, '
    'where "ignore" and "boxes" may be left out')

# Keys that may be left out, of a JSON list and of its images.
OF_LIST, OF_IMAGE = ('classes',), ('ignore', 'boxes')

# What a list says of a class: present, absent, ignored; as numbers and truth values are written too.
MARKS = {'1': 1, '1.0': 1, 'True': 1, '0': 0, '0.0': 0, 'False': 0, '-1': -1, '-1.0': -1}

# What a broken list makes its reading say.
BROKEN = OSError, csv.Error, KeyError, TypeError, AttributeError, ValueError, IndexError


def _other_lists(folder: Path) -> str:
    """What else is there that may be meant, in words."""
    names = sorted(path.stem for path in folder.glob('*') if path.suffix in ('.csv', '.json'))
    return f", which has the lists {first_of(names, 8)} (`split` names one)" if names else ''


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a list."""
    with open(path, newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or []
    if any(None in row or None in row.values() for row in rows):
        number = next(i for i, row in enumerate(rows) if None in row or None in row.values())
        raise ValueError(f'line {number + 2} does not have {len(columns)} columns')
    return columns, rows


def _from_csv(path: Path) -> dict[str, Any]:
    columns, rows = read_csv(path)
    if len(columns) < 2 or columns[0] != 'image':
        raise ValueError(f"the first column must be 'image', followed by 'labels' or the classes; it has {columns}")
    if columns[1:] == ['labels']:
        return {'images': [
            {'image': row['image'], 'labels': [name.strip() for name in row['labels'].split(';') if name.strip()]}
            for row in rows]}
    for number, row in enumerate(rows):
        for name in columns[1:]:
            if row[name].strip() not in MARKS:
                raise ValueError(f"line {number + 2} has '{row[name]}' for class '{name}'; it must be 1, 0 or -1")

    def marked(row: dict[str, str], mark: int) -> list[str]:
        return [name for name in columns[1:] if MARKS[row[name].strip()] == mark]

    return {'classes': columns[1:], 'images': [
        {'image': row['image'], 'labels': marked(row, 1), 'ignore': marked(row, -1)} for row in rows]}


def _read_class_names(folder: Path, class_map: str | None) -> list[str] | None:
    """The classes of `class_map`, or of classes.txt in the folder, one per line; None where there is neither."""
    file = Path(class_map) if class_map else folder / 'classes.txt'
    if not class_map and not file.is_file():
        return None
    try:
        return [line.strip() for line in file.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    except OSError as e:
        raise DataError(f"`class_map`: cannot read '{file}': {e.strerror}.") from e


def _all_different(names: Sequence[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError('a class is named twice')
    return list(names)


def _occurring(records: Sequence[dict[str, Any]]) -> set[str]:
    """The classes that images of a JSON list have or leave open."""
    return {name for record in records for key in ('labels', 'ignore') for name in record.get(key, ())}


def _checked_names(names: Sequence[str] | set[str]) -> list[str]:
    """Class names in their order; sorted where they have none."""
    if numbers := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f'the class {numbers[0]!r} is no name: write it in quotes')
    return _all_different(sorted(names) if isinstance(names, set) else names)


def _with_endings(
        path: Path,
        rows: list[dict[str, Any]],
        endings: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """The rows of the list `path` whose images have one of the endings; the others are told of."""
    if endings is None:
        return rows
    found = [ending_of(row['image']) for row in rows]
    tell_left_out(Counter(ending for ending in found if ending not in endings), path, endings)
    kept = [row for row, ending in zip(rows, found, strict=True) if ending in endings]
    if rows and not kept:
        raise ValueError(f"no image ends in {', '.join(endings)}")
    return kept


def _find_images(folder: Path, path: Path, files: list[str]) -> list[Path]:
    """The images that the list `path` names; DataError where one is not there, or leaves the folder."""
    try:
        images = [path_inside(folder, file) for file in files]
    except ICASCError as e:
        raise DataError(f"'{path}': {e}") from e
    check_listed(images, f"'{path}'")
    return images


def _check_keys(record: dict[str, Any], optional: Sequence[str], where: str) -> None:
    """Raise ValueError where a key is nearly one that may be left out; other keys are the list's own."""
    for key in record:
        close = difflib.get_close_matches(str(key).lower(), optional, 1, 0.6)
        if close and key not in optional:
            raise ValueError(f"{where} has '{key}', which nothing reads; is it '{close[0]}'?")


def _boxes_in(record: dict[str, Any], names: Sequence[str]) -> list[Box]:
    """The boxes of one image of a JSON list."""
    boxes, file = [], Path(record['image']).name
    for name, *edges in record.get('boxes', ()):
        box = Box(names.index(name), *map(float, edges))
        boxes.append(check_box(box, name, box[1:5], f"'{file}': "))
        if name not in record['labels'] and name not in record.get('ignore', ()):
            raise ValueError(f"'{file}' has a box of '{name}' and not the label: it would count as absent")
    return boxes


def _check_listed_once(
        files: Sequence[str],
        labels: Sequence[set[str]],
        ignored: Sequence[set[str]],
) -> None:
    """Raise ValueError where rows of one image differ: what one names would be absent by the other."""
    first: dict[Path, Any] = {}
    for file, *own in zip(map(Path, files), labels, ignored, strict=True):
        if first.setdefault(file, own) != own:
            raise ValueError(f"'{file.name}' is listed twice, with other classes: name all of them at one place")


class SingleLabelList(LabelledImages):
    """Images of one class each, listed in `<split>.csv` of a folder under the header `image,label`.

    Paths are relative to the folder. Images are turned as their EXIF orientation says. The classes are those of
    `class_map`, of `classes.txt` in the folder (one per line), or the sorted names that occur in the list.

    Args:
        root: The folder.
        split: Name of the list, without extension.
        class_map: File with one class name per line.
        transform: Applied to the PIL image.
        mode: Pillow's image mode.
        endings: What the names of images that are taken end in; None: whatever is listed.

    Raises:
        DataError: The list or an image is missing, the list is broken, or a label is no class.
    """
    upright = True

    def __init__(
            self,
            root: str,
            split: str,
            class_map: str | None = None,
            transform: Callable | None = None,
            mode: str = 'RGB',
            endings: Sequence[str] | None = None,
    ):
        folder = Path(root)
        path = folder / f'{split}.csv'
        expected = "a CSV with the header 'image,label': a path and the name of its class"
        if not path.is_file():
            raise DataError(f"`root`: no '{split}.csv' in '{root}'{_other_lists(folder)}; expected {expected}.")
        try:
            columns, rows = read_csv(path)
            if columns != ['image', 'label']:
                raise ValueError(f'it has the columns {columns}')
            rows = _with_endings(path, rows, endings)
            classes: dict[Path, str] = {}
            labels = [row['label'].strip() for row in rows]
            known = _read_class_names(folder, class_map)
            names = _all_different(sorted(set(labels)) if known is None else known)
            for number, (row, label) in enumerate(zip(rows, labels, strict=True), 2):
                if not label:
                    raise ValueError(f'line {number} names no class')
                if label not in names:
                    raise ValueError(f"line {number} has the label '{label}', which is not one of the classes")
                if classes.setdefault(Path(row['image']), label) != label:
                    raise ValueError(f"line {number} gives '{Path(row['image']).name}' a second class")
        except BROKEN as e:
            raise DataError(f"'{path}': {one_line(e, 400)}; expected {expected}.") from e
        index = {name: i for i, name in enumerate(names)}
        super().__init__(
            _find_images(folder, path, [row['image'] for row in rows]), [index[label] for label in labels], names,
            transform, mode)


class MultiLabelList(MultiLabelImages):
    """Images listed in `<split>.csv` or `<split>.json` of a folder.

    CSV: the columns `image,labels`, class names separated by `;`; or `image` and one column per class with 1
    (present), 0 (absent) or -1 (ignored). JSON: `{"classes": [...], "images": [{"image": path, "labels": [names],
    "ignore": [names], "boxes": [[name, xmin, ymin, xmax, ymax], ...]}, ...]}`, where 'classes', 'ignore' and 'boxes'
    may be left out; boxes as in `Box`. Images are turned as their EXIF orientation says, and boxes are in pixels of
    the image so turned, as viewers show it. Paths are relative to the folder.

    The classes are those of `class_map`, of `classes.txt` in the folder (one per line), of the list itself, or the
    sorted names that occur in it.

    Args:
        root: The folder.
        split: Name of the list, without extension.
        class_map: File with one class name per line.
        transform: Applied to the PIL image.
        mode: Pillow's image mode.
        endings: What the names of images that are taken end in; None: whatever is listed.

    Raises:
        DataError: The list or an image is missing, the list is broken, a label is no class, rows of one image differ,
            or a box has no area or a class that its image lacks.
    """
    upright = True

    def __init__(
            self,
            root: str,
            split: str,
            class_map: str | None = None,
            transform: Callable | None = None,
            mode: str = 'RGB',
            endings: Sequence[str] | None = None,
    ):
        folder = Path(root)
        path = next((p for p in (folder / f'{split}.csv', folder / f'{split}.json') if p.is_file()), None)
        if path is None:
            raise DataError(
                f"`root`: neither '{split}.csv' nor '{split}.json' in '{root}'{_other_lists(folder)}; expected "
                f'{FORMATS}.')
        try:
            content = _from_csv(path) if path.suffix == '.csv' else read_json(path)
            if not isinstance(content, dict):
                raise ValueError('it is no {"images": [...]}')
            _check_keys(content, OF_LIST, 'it')
            records = content['images'] = _with_endings(path, content['images'], endings)
            for record in records:
                if not isinstance(record['labels'], list) or not isinstance(record.get('ignore', []), list):
                    raise ValueError(f"the labels of '{record['image']}' are no list of names")
                _check_keys(record, OF_IMAGE, f"'{record['image']}'")
            names = _read_class_names(folder, class_map)
            if names is None:
                names = content.get('classes') or None
            self.names_all = names is None
            names = _checked_names(_occurring(records) if self.names_all else names)
            if records and not names:
                raise ValueError('no class occurs in it')
            labels = [set(record['labels']) for record in records]
            ignored = [set(record.get('ignore', ())) for record in records]
            files = [str(record['image']) for record in records]
            has_boxes = any('boxes' in record for record in records)
            known = set(names)
            for file, present, skipped in zip(files, labels, ignored, strict=True):
                wrong = sorted((present | skipped) - known) or sorted(present & skipped)
                if wrong:
                    raise ValueError(
                        f"'{Path(file).name}' has the label '{wrong[0]}', which is not one of the classes, or "
                        f'both present and ignored')
            _check_listed_once(files, labels, ignored)
            boxes = [_boxes_in(record, names) for record in records]
        except BROKEN as e:
            raise DataError(f"'{path}': {one_line(e, 400)}; expected {FORMATS}.") from e
        images = _find_images(folder, path, files)
        targets = torch.zeros(len(images), len(names))
        index = {name: i for i, name in enumerate(names)}
        for row, present, skipped in zip(targets, labels, ignored, strict=True):
            row[[index[name] for name in present]] = 1.
            row[[index[name] for name in skipped]] = -1.
        super().__init__(images, targets, names, transform, mode, boxes if has_boxes else None)
