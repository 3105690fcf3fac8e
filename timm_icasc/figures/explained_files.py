"""Explain thousands of image files: predictions, overlays, raw maps and a page, a few images in memory at a time."""
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..attention import METHODS, check_method
from ..data.geometry import Geometry
from ..data.image_files import ImageFile
from ..data.read_image import read_image
from ..errors import DataError, ICASCError
from ..explanation.class_names import parts_of
from ..explanation.explainer import Classes, Explainer
from ..explanation.pictures import Explanation, draw, shrink
from ..explanation.pixels import Item
from ..foreign_text import csv_cell, printable
from ..runs.files import replacing, replacing_folder
from ..training.interrupt import answer_for_batches
from .html import explained_section, open_page

__all__ = ['Outputs', 'Summary', 'explain_files']

CSV, JSON, PAGE = 'predictions.csv', 'predictions.json', 'index.html'

OVERLAYS, MAPS = 'overlays', 'maps'

RAW = ('grid', 'full')


@dataclass
class Outputs:
    """What is written of each image.

    Attributes:
        folder: Where to.
        sheets: The image beside the overlays of its classes, a row for each model: `overlays/NAME.png`.
        singles: Each overlay by itself, at the size of the image: `overlays/NAME.CLASS.png`.
        raw: The maps, `maps/NAME.npy`: 'grid', as the layer has them, over the crop that the model saw; 'full', at the
            size of the image, 0 outside the crop; None for none.
        page: Number of images on the page, `index.html`; 0 for no page.
    """
    folder: Path
    sheets: bool = True
    singles: bool = False
    raw: str | None = None
    page: int = 500


@dataclass
class Summary:
    """What became of the files.

    Attributes:
        explained: Number of images.
        broken: Message about each file that cannot be read.
        files: What was written once for all images.
    """
    explained: int = 0
    broken: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@dataclass
class _Loaded:
    """A file, as it comes from the loader: an item for each model; or why it cannot be read."""
    file: ImageFile
    items: list[Item] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    error: str = ''


def _shrunk(item: Item, side: int | None) -> Item:
    """The item with a smaller picture: the pixels of a large one are not kept."""
    width, height = item.picture.size
    picture = shrink(item.picture, side)
    at = item.geometry
    geometry = Geometry(
        at.scale_x * width / picture.width, at.scale_y * height / picture.height,
        at.left, at.top, at.width, at.height)
    return Item(item.tensor, picture, geometry, item.name)


class _Files(Dataset):
    """Files read and prepared for each model, in a loading process or not."""

    def __init__(
            self,
            files: Sequence[ImageFile],
            prepare: Sequence[Callable[[Any], Item]],
            side: int | None,
            max_image_pixels: int | None,
    ):
        self.files, self.prepare, self.side = files, prepare, side
        self.max_image_pixels = max_image_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Loaded:
        file = self.files[index]
        try:
            image = read_image(
                file.path, 'RGB', upright=True, max_image_pixels=self.max_image_pixels)
            items = [prepare(image) for prepare in self.prepare]
            for item in items:
                item.name = file.name
        except DataError as e:
            return _Loaded(file, error=e.line)
        return _Loaded(file, [_shrunk(item, self.side) for item in items], image.size)


class _Predictions:
    """CSV and JSON, a row and an entry at a time; an interruption leaves what there is so far."""

    def __init__(self, stack: ExitStack, folder: Path, labels: Sequence[str]):
        self.labels = labels
        table, entries = (
            stack.enter_context(open(
                stack.enter_context(replacing(folder / name)), 'w', encoding='utf-8', newline=''))
            for name in (CSV, JSON))
        model = ['model'] if len(labels) > 1 else []
        self.table, self.entries, self.between = csv.writer(table), entries, '['
        self.table.writerow(['file', *model, 'rank', 'class', 'index', 'score'])
        stack.callback(lambda: entries.write('[]\n' if self.between == '[' else '\n]\n'))

    def write(self, loaded: _Loaded, found: Sequence[Explanation]) -> None:
        for label, one in zip(self.labels, found, strict=True):
            order = one.ranking
            shown = zip(one.classes, one.class_names, one.scores, strict=True)
            rows = [
                {'rank': order.index(index) + 1, 'class': name, 'index': index, 'score': round(score, 6)}
                for index, name, score in shown]
            model = [label] if len(self.labels) > 1 else []
            self.table.writerows(
                map(csv_cell, (loaded.file.name, *model, *row.values())) for row in rows)
            across, down = loaded.size[0] / one.image.width, loaded.size[1] / one.image.height
            scales = across, down, across, down
            seen = [round(edge * by, 2) for edge, by in zip(one.seen, scales, strict=True)]
            entry = {
                'file': loaded.file.name, **({'model': label} if model else {}), 'width': loaded.size[0],
                'height': loaded.size[1], 'seen': seen, 'classes': rows}
            self.entries.write(f'{self.between}\n{json.dumps(entry)}')
            self.between = ','


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A folder that takes the place of the one that is there; none where nothing is written to it."""
    with replacing_folder(path) as partial:
        yield partial
    with suppress(OSError):
        path.rmdir()


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Remove a file at the end of the block, which an error leaves as it was."""
    yield
    path.unlink(missing_ok=True)


def _open_pictures(stack: ExitStack, outputs: Outputs) -> list[Path]:
    """Folders of overlays and maps that replace those of an earlier result, of which no page stays either.

    Raises:
        ICASCError: Files are there that no earlier result, which JSON tells of, has left.
    """
    told = (outputs.folder / JSON).is_file()
    places = outputs.folder / OVERLAYS, outputs.folder / MAPS
    for path, ending in zip(places, ('.png', '.npy'), strict=True):
        files = (file for file in path.rglob('*') if file.is_file())
        foreign = any(not told or file.suffix != ending for file in files)
        if path.is_symlink() or path.is_file() or foreign:
            raise ICASCError(
                f"`output`: '{path}' holds other files than an earlier result, and would be replaced: name another "
                f'folder.')
    if told and not outputs.page:
        stack.enter_context(_removing(outputs.folder / PAGE))
    return [stack.enter_context(_replacing(path)) for path in places]


def _file_part(text: str) -> str:
    """A model's label as a part of the name of a file."""
    return re.sub(r'[^\w.+-]+', '_', text)[:40]


def _write_pictures(
        outputs: Outputs,
        overlays: Path,
        maps: Path,
        loaded: _Loaded,
        found: Sequence[Explanation],
        labels: Sequence[str],
) -> None:
    stem = loaded.file.stem
    several = len(labels) > 1
    parts = [f'.{n + 1}-{_file_part(label)}' if several else '' for n, label in enumerate(labels)]
    if outputs.sheets:
        page = draw(found, labels if several else ())
        page.save(overlays / f'{stem}.png')
    for part, one in zip(parts, found, strict=True):
        if outputs.singles:
            for k, index in enumerate(one.classes):
                with replacing(overlays / f'{stem}{part}.{index}.png') as partial:
                    one.overlay(k).save(partial, 'PNG')
        if outputs.raw is not None:
            values = one.grid_maps if outputs.raw == 'grid' else one.maps_at(loaded.size)
            with replacing(maps / f'{stem}{part}.npy') as partial:
                np.save(partial, values.numpy())  # its name ends in .npy, too


def _batches(
        files: Sequence[ImageFile],
        explainers: Sequence[Explainer],
        batch_size: int,
        workers: int,
        side: int | None,
        max_image_pixels: int | None,
) -> Iterator[list[_Loaded]]:
    prepare = [explainer.prepare for explainer in explainers]
    dataset = _Files(files, prepare, side, max_image_pixels)
    yield from DataLoader(
        dataset, batch_size=batch_size, collate_fn=list, num_workers=workers,
        worker_init_fn=answer_for_batches)


def _about(method: str, layer: str, count: int, shown: int) -> str:
    """What the page says of itself."""
    first = f'The first {shown} of {count} images. ' * (count > shown)
    return (
        f'{first}Attention ({METHODS[method].title}, layer {layer}) of classes, each map '
        f'from 0 %s to its own maximum. Dark: cut off before the model saw the image. #: rank of the score.')


def _check_classes(explainers: Sequence[Explainer], classes: Classes | None) -> None:
    """Every model has the classes; warns of a number that stands for another class in each of them."""
    indices = [
        explainer.find_classes(classes, explainer.num_classes()) or [] for explainer in explainers]
    for same in zip(*indices, strict=True):
        called = {
            printable(explainer.label): printable(explainer.class_names[c])
            for explainer, c in zip(explainers, same, strict=True)}
        if not set.intersection(*map(parts_of, called.values())):
            said = ', '.join(f"'{name}' of {label}" for label, name in called.items())
            warnings.warn(f'`classes`: one of them is {said}.', stacklevel=3)


def explain_files(
        explainers: Sequence[Explainer],
        files: Sequence[ImageFile],
        outputs: Outputs,
        *,
        classes: Classes | None = None,
        topk: int = 3,
        method: str = 'grad_cam',
        layer: str = 'last',
        batch_size: int = 16,
        workers: int = 0,
        side: int | None = 1024,
        max_image_pixels: int | None = None,
) -> Summary:
    """Explain files, each by one forward pass of each model; those that cannot be read are skipped.

    Args:
        explainers: Models side by side, each with its `label`.
        files: Of `find_images`.
        outputs: What to write.
        classes, topk, method, layer: As of `timm_icasc.explain`.
        batch_size: Images at a time.
        workers: Processes that read images.
        side: Pixels that the longer side of overlays has at most; None for the size of the images.
        max_image_pixels: As for `read_image`.

    Returns:
        Counts, messages, and the files written.

    Raises:
        ICASCError: An argument is out of range.
        WriteError: A file cannot be written; an earlier result in the folder, which this one replaces, is as it was.
    """
    check_method(method)
    _check_classes(explainers, classes)  # before an image is read
    labels = [printable(explainer.label) for explainer in explainers]
    names = [explainer.class_names for explainer in explainers]
    how = {'classes': classes, 'topk': topk, 'method': method, 'layer': layer}
    summary = Summary(files=[outputs.folder / CSV, outputs.folder / JSON])
    with ExitStack() as stack, tqdm(total=len(files), unit='image', disable=None) as bar:
        predictions, add_to_page = _Predictions(stack, outputs.folder, labels), None
        if outputs.page:
            summary.files.append(outputs.folder / PAGE)
            about = _about(method, layer, len(files), outputs.page)
            add_to_page = stack.enter_context(open_page(summary.files[-1], labels, about, False))
        pictures = _open_pictures(stack, outputs)
        try:
            for batch in _batches(files, explainers, batch_size, workers, side, max_image_pixels):
                readable = [loaded for loaded in batch if not loaded.error]
                summary.broken += [loaded.error for loaded in batch if loaded.error]
                columns = [
                    explainer.explain_items([loaded.items[n] for loaded in readable], **how)
                    for n, explainer in enumerate(explainers if readable else ())]
                for loaded, *found in zip(readable, *columns, strict=True):
                    predictions.write(loaded, found)
                    _write_pictures(outputs, *pictures, loaded, found, labels)
                    if summary.explained < outputs.page:
                        add_to_page(explained_section(loaded.file.name, found, labels, names))
                    summary.explained += 1
                bar.update(len(batch))
        except KeyboardInterrupt:
            stack.close()  # what there is so far is put in place
            raise
    return summary
