"""CUB-200-2011 (Wah et al., 2011): 200 species of birds, the official split, a box around each bird."""
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError, first_of
from ..foreign_files import path_inside
from .labelled_images import Box, LabelledImages, check_box, check_listed

__all__ = ['CUB200']

SPLITS = {'train': '1', 'test': '0', 'validation': '0', 'val': '0'}


class CUB200(LabelledImages):
    """One split of CUB-200-2011: 5,994 training or 5,794 test images.

    Args:
        root: Folder `CUB_200_2011`, or the one that holds it.
        split: 'train' or 'test' ('validation' means 'test': there is no other).
        transform: Applied to the PIL image.
        mode: Pillow's image mode.

    Raises:
        DataError: A list or an image is missing or broken, or there is no such split.
    """

    def __init__(self, root: str, split: str, transform: Callable | None = None, mode: str = 'RGB'):
        if split not in SPLITS:
            raise DataError(f"CUB-200-2011 has no split '{split}'; it has train and test.")
        folder = next((p for p in (Path(root), Path(root) / 'CUB_200_2011') if (p / 'images.txt').is_file()), None)
        if folder is None:
            raise DataError(f"`root`: no file 'CUB_200_2011/images.txt' in '{root}'.")

        def table(name: str) -> dict[str, str]:
            try:
                lines = (folder / name).read_text(errors='surrogateescape').splitlines()
                return dict(line.strip().split(' ', 1) for line in lines if line.strip())
            except OSError as e:
                raise DataError(f"`root`: no file '{folder / name}': {e.strerror}.") from e
            except ValueError as e:
                raise DataError(f"'{folder / name}' has a line that is not 'id value'.") from e

        classes, paths = table('classes.txt'), table('images.txt')
        labels, split_of, edges = (
            table(name) for name in ('image_class_labels.txt', 'train_test_split.txt', 'bounding_boxes.txt'))
        if unlike := [i for i in {**paths, **labels, **split_of, **edges}
                      if not all(i in lines for lines in (paths, labels, split_of, edges))]:
            raise DataError(
                f"The lists in '{folder}' do not fit each other: {len(unlike)} images are not in all of them, by their "
                f'numbers {first_of(unlike)}.')
        try:
            chosen = [i for i in paths if split_of[i] == SPLITS[split]]
            index = {class_id: i for i, class_id in enumerate(classes)}
            targets = [index[labels[i]] for i in chosen]
            boxes = []
            for i, target in zip(chosen, targets, strict=True):
                x, y, width, height = map(float, edges[i].split())
                box = Box(target, x, y, x + width, y + height)
                boxes.append([check_box(box, paths[i], box[1:5])])
        except (KeyError, ValueError) as e:
            raise DataError(f"The lists in '{folder}' do not fit each other: {type(e).__name__} {e}.") from e
        images = [path_inside(folder / 'images', paths[i], through_links=True) for i in chosen]
        check_listed(images, 'images.txt')
        names = [name.split('.', 1)[-1] for name in classes.values()]
        super().__init__(images, targets, names, transform, mode, boxes)
