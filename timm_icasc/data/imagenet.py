"""ILSVRC2012 (Russakovsky et al., 2015) in the layouts in which it is found on disks."""
from collections.abc import Callable
from pathlib import Path

from timm.data.readers.reader_image_folder import find_images_and_targets

from ..errors import DataError, first_of, one_line
from ..foreign_files import path_inside
from .image_endings import is_hidden
from .image_folder import is_class
from .image_list import BROKEN, read_csv
from .labelled_images import Box, LabelledImages
from .voc import read_boxes

__all__ = ['ILSVRC2012']

SPLITS = {'train': ('train', 'training'), 'val': ('val', 'validation', 'valid')}


class ILSVRC2012(LabelledImages):
    """1,000 classes; 1,281,167 training and 50,000 validation images. Classes are WordNet ids in their order.

    Args:
        root: A folder with `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, or the folder of the Kaggle copy
            (`ILSVRC/Data/CLS-LOC`, whose `val` is flat, and `LOC_val_solution.csv`).
        split: 'train' or 'val' ('validation').
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Boxes are read from `ILSVRC/Annotations/CLS-LOC` where that is there.

    Raises:
        DataError: A folder or list is missing, or there is no such split.
    """

    def __init__(self, root: str, split: str, transform: Callable | None = None, mode: str = 'RGB'):
        split = next((name for name, synonyms in SPLITS.items() if split in synonyms), None)
        if split is None:
            raise DataError('ILSVRC2012 has the splits train and val; its test labels were never published.')
        root = Path(root)
        base = next((
            p for p in (root, root / 'ILSVRC' / 'Data' / 'CLS-LOC', root / 'Data' / 'CLS-LOC')
            if (p / 'train').is_dir()), None)
        if base is None:
            raise DataError(f"`root`: no folder 'train/n01440764' or 'ILSVRC/Data/CLS-LOC/train' in '{root}'.")
        names = sorted(p.name for p in (base / 'train').iterdir() if p.is_dir() and is_class(p.name))
        folder = next((base / name for name in SPLITS[split] if (base / name).is_dir()), None)
        if folder is None:
            raise DataError(f"`root`: no folder '{base / split}'.")
        class_to_idx = {name: i for i, name in enumerate(names)}
        if any(p.is_dir() for p in folder.iterdir()):
            found = {p.name for p in folder.iterdir() if p.is_dir() and is_class(p.name)}
            unknown = sorted(found ^ set(names))
            if unknown:
                raise DataError(f"'{folder}' and '{base / 'train'}' differ in the classes: {first_of(unknown)}.")
            files, _ = find_images_and_targets(str(folder), class_to_idx=class_to_idx)
            samples = [(file, target) for file, target in files if not is_hidden(file)]
        else:
            samples = self._flat(folder, [root, base / '..' / '..' / '..'], class_to_idx)
        self.annotations = base / '..' / '..' / 'Annotations' / 'CLS-LOC' / split
        super().__init__(
            [path for path, _ in samples], [target for _, target in samples], names, transform,
            mode, boxes=() if self.annotations.is_dir() else None)

    @staticmethod
    def _flat(folder: Path, places: list[Path], class_to_idx: dict) -> list:
        file = next((p / 'LOC_val_solution.csv' for p in places if (p / 'LOC_val_solution.csv').is_file()), None)
        if file is None:
            raise DataError(
                f"'{folder}' has no class folders, and there is no '{places[0] / 'LOC_val_solution.csv'}' "
                f'that names the classes of its images.')
        try:
            _, rows = read_csv(file)
            labels = {f"{row['ImageId']}.JPEG": row['PredictionString'].split()[0] for row in rows}
            samples = [
                (str(path_inside(folder, name, through_links=True)), class_to_idx[label])
                for name, label in labels.items()]
        except KeyError as e:
            raise DataError(f"'{file}': unknown class or column {e}.") from e
        except BROKEN as e:
            raise DataError(f"'{file}' cannot be read: {one_line(e)}") from e
        unnamed = sorted(
            path.name for path in folder.glob('*.JPEG')
            if path.name not in labels and not is_hidden(path))
        if unnamed:  # a list that was cut off would be measured in part
            raise DataError(
                f"'{file}' does not tell the class of {len(unnamed)} images of '{folder}': {first_of(unnamed)}.")
        return samples

    def _boxes_of(self, index: int) -> list[Box]:
        path = Path(self.images[index])
        flat = self.annotations / f'{path.stem}.xml'
        file = flat if flat.is_file() else self.annotations / path.parent.name / f'{path.stem}.xml'
        # Some of the published boxes have the smaller edge in the place of the larger one.
        return read_boxes(file, tuple(self.class_names), True) if file.is_file() else []
