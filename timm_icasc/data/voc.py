"""PASCAL VOC, 2007 to 2012: multi-label classification with boxes, from VOCdevkit folders or from a packed copy.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010. A class whose objects in an image are
all marked difficult is ignored there (target -1), as in the challenge's own label files.
"""
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from ..errors import DataError
from ..foreign_files import path_inside, read_json
from .labelled_images import Box, MultiLabelImages, check_box, check_listed

__all__ = ['PackedVOC', 'VOCDevkit', 'VOC_CLASSES', 'find_devkit', 'read_boxes', 'targets_of']

VOC_CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
    'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')


def read_boxes(path: Path, class_names: tuple[str, ...], either_order: bool = False) -> list[Box]:
    """The objects of an annotation in VOC's XML format, also ILSVRC's.

    Args:
        path: The XML file.
        class_names: Names in the order of the indices.
        either_order: Whether an edge may stand in the place of the opposite one; it is put right.

    Raises:
        DataError: The file is missing, is no such XML, names an unknown class, or has a box without an area.
    """
    try:
        boxes = []
        for item in ElementTree.parse(path).getroot().iter('object'):
            name, edges = item.findtext('name'), item.find('bndbox')
            if name not in class_names:
                raise ValueError(f"no class '{name}'")
            if edges is None:
                raise ValueError(f"an object '{name}' without bndbox")
            found = [float(edges.findtext(edge)) for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
            (xmin, xmax), (ymin, ymax) = (
                sorted(pair) if either_order else pair for pair in (found[::2], found[1::2]))
            box = Box(
                class_names.index(name), xmin - 1, ymin - 1, xmax, ymax,
                item.findtext('difficult', '0').strip() == '1')
            boxes.append(check_box(box, name, found))
        return boxes
    except OSError as e:
        raise DataError(f"No annotation '{path}': {e.strerror}.") from e
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as e:
        raise DataError(f"'{path}' is not a VOC annotation: {e}.") from e


def find_devkit(root: str | Path, year: str) -> Path:
    """The folder `VOC<year>`: `root` itself, in `root`, or in `root/VOCdevkit`.

    Raises:
        DataError: None of them holds JPEGImages.
    """
    places = [Path(root, *parts) for parts in ((), (f'VOC{year}',), ('VOCdevkit', f'VOC{year}'))]
    folder = next((place for place in places if (place / 'JPEGImages').is_dir()), None)
    if folder is None:
        raise DataError(f"`root`: no folder 'VOCdevkit/VOC{year}/JPEGImages' in '{root}'.")
    return folder


def targets_of(boxes: list[list[Box]]) -> torch.Tensor:
    """Multi-label targets `[N, 20]` of the objects of N images: 1 present, -1 difficult only, 0 absent."""
    targets = torch.zeros(len(boxes), len(VOC_CLASSES))
    for row, objects in zip(targets, boxes, strict=True):
        for box in sorted(objects, key=lambda box: not box.difficult):  # one plain object outweighs difficult ones
            row[box.class_index] = -1. if box.difficult else 1.
    return targets


class VOCDevkit(MultiLabelImages):
    """One split of VOC as distributed: `VOC2012/{JPEGImages,Annotations,ImageSets/Main}`.

    Args:
        root: The folder `VOC<year>`, `VOCdevkit`, or the one that holds it.
        year: '2007' to '2012'.
        split: Name of a list in ImageSets/Main: 'train', 'val' ('validation'), 'trainval', 'test' (2007 only: the test
            annotations of later years were never published).
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Attributes:
        folder: The folder `VOC<year>`.
        ids: Names of the images, without extension.

    Raises:
        DataError: A folder, list, image or annotation is missing or broken.
    """

    def __init__(
            self,
            root: str,
            year: str,
            split: str,
            transform: Callable | None = None,
            mode: str = 'RGB',
    ):
        self.folder = find_devkit(root, year)
        split = {'validation': 'val'}.get(split, split)
        lists = self.folder / 'ImageSets' / 'Main'
        try:
            self.ids = (lists / f'{split}.txt').read_text(errors='surrogateescape').split()
        except OSError as e:
            known = sorted(p.stem for p in lists.glob('*.txt') if '_' not in p.stem)
            raise DataError(
                f"No split '{split}': '{lists / split}.txt' is missing (there are: "
                f"{', '.join(known) or 'none'}).") from e
        images = [path_inside(self.folder / 'JPEGImages', f'{name}.jpg', through_links=True) for name in self.ids]
        check_listed(images, f"split '{split}'")
        boxes = [read_boxes(self.folder / 'Annotations' / f'{name}.xml', VOC_CLASSES) for name in self.ids]
        super().__init__(
            images, targets_of(boxes), VOC_CLASSES, transform, mode, boxes)


class PackedVOC(MultiLabelImages):
    """VOC 2007 as one folder of small images and one annotations.json.

    The JSON holds 'classes' and 'images', each with 'id', 'split', 'labels' (1 present, 0 difficult only, -1 absent),
    'boxes' (class, xmin, ymin, xmax, ymax in VOC's pixels of the original image; difficult objects are left out) and
    'scale' (x, y), the size of the packed image relative to the original.

    Args:
        root: Folder with `images/<id>.webp` and `annotations.json`.
        split: 'train', 'val' ('validation') or 'trainval'.
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Attributes:
        ids: Names of the images, without extension.

    Raises:
        DataError: A file is missing or broken, or there is no such split.
    """

    def __init__(self, root: str, split: str, transform: Callable | None = None, mode: str = 'RGB'):
        path = Path(root) / 'annotations.json'
        try:
            content = read_json(path)
            names, known = content['classes'], sorted({image['split'] for image in content['images']})
            if not all(isinstance(name, str) for name in names):
                raise TypeError("'classes' are no names")
            split = {'validation': 'val'}.get(split, split)
            wanted = {'trainval': ('train', 'val')}.get(split, (split,))
            chosen = [image for image in content['images'] if image['split'] in wanted]
            self.ids = [image['id'] for image in chosen]
            # From VOC's 1 present, 0 ignored, -1 absent.
            labels = torch.tensor([image['labels'] for image in chosen], dtype=torch.float32).reshape(-1, len(names))
            targets = torch.where(labels == 1, 1., torch.where(labels == 0, -1., 0.))
            unknown = {name for image in chosen for name, *_ in image['boxes']} - set(names)
            if unknown:
                raise ValueError(f"a box of no class, '{min(unknown)}'")
            boxes = [self._boxes_in(image, names) for image in chosen]
        except OSError as e:
            raise DataError(f"`root`: no file '{path}': {e.strerror}.") from e
        except (KeyError, TypeError, ValueError, RuntimeError) as e:  # also of torch's shapes
            raise DataError(f"'{path}' is not in the packed VOC format: {type(e).__name__} {e}.") from e
        if not chosen:
            raise DataError(f"No split '{split}' in '{path}'; it has {', '.join([*known, 'trainval'])}.")
        images = [path_inside(Path(root) / 'images', f'{name}.webp', through_links=True) for name in self.ids]
        check_listed(images, 'annotations.json')
        super().__init__(images, targets, names, transform, mode, boxes)

    @staticmethod
    def _boxes_in(image: dict[str, Any], names: list[str]) -> list[Box]:
        boxes, (x, y) = [], image['scale']
        for name, *edges in image['boxes']:
            xmin, ymin, xmax, ymax = edges
            box = Box(names.index(name), (xmin - 1) * x, (ymin - 1) * y, xmax * x, ymax * y)
            boxes.append(check_box(box, name, edges, f"image '{image['id']}': "))
        return boxes
