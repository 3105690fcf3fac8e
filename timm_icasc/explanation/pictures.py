"""The explanation of one image: its classes, their scores and maps; and the page that shows it.

Shapes: `C` classes of the model, `K` classes shown, `h w` grid of the layer, `H W` size of the image.
"""
import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..attention import METHODS
from ..data.geometry import Geometry
from ..foreign_text import printable
from ..labels import LabelKind
from ..losses import attention_overlap
from .canvas import (
    DESCENT,
    ENLARGED,
    LINE,
    MARGIN,
    PAIR_GAP,
    SMALL_LINE,
    Page,
    check_format,
    wrapped,
)
from .overlay import overlay, seen_box, spread

__all__ = ['ZERO_MAP', 'Explanation', 'Explanations', 'draw', 'shrink']

CELL = 240  # pixels of a picture's side on the page

TALLEST = 1.5  # times as high as wide

MOST_SHOWN = 10  # of several explanations, in a notebook

SCALE = 'Each map from 0 to its own maximum'

ZERO_MAP = 'map is zero'


def shrink(image: Image.Image, side: int | None) -> Image.Image:
    """The image with a longer side of at most so many pixels; None for as many as it has."""
    if side is None or max(image.size) <= side:
        return image
    image = image.copy()
    image.thumbnail((side, side))
    return image


@dataclass
class Explanation:
    """What a model sees in an image: some classes, highest score first or as asked for, and a map of each.

    Attributes:
        image: The image itself, upright, RGB.
        name: Of its file; empty where it came without.
        classes: Class indices, `K` of them.
        class_names: Their names.
        scores: Their probabilities: softmax, or sigmoid where an image can have several classes.
        probabilities: Of all classes, `[C]`.
        grid_maps: Attention on the layer's grid over what the model saw, `[K, h, w]`, values >= 0, not normalised.
        geometry: From the image to the model's input.
        method: Of `attention.METHODS`.
        layer: Where the maps were taken: 'inner', 'last' or a module path.
        labels: Whether an image can have several classes.
        ranking: All classes, that of highest score first.
    """
    image: Image.Image = field(repr=False)
    name: str
    classes: list[int]
    class_names: list[str]
    scores: list[float]
    probabilities: torch.Tensor = field(repr=False)
    grid_maps: torch.Tensor = field(repr=False)
    geometry: Geometry = field(repr=False)
    method: str
    layer: str
    labels: LabelKind = field(repr=False)
    ranking: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def maps(self) -> torch.Tensor:
        """Attention at the size of the image, `[K, H, W]`, values >= 0, not normalised; made anew at each call.

        Resize and crop are undone: 0 outside `seen`.
        """
        return self.maps_at(self.image.size)

    def maps_at(self, size: tuple[int, int]) -> torch.Tensor:
        """`maps`, as of the image at another size, (width, height)."""
        return spread(self.grid_maps, self.geometry, self.image.size, size)

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge, in pixels of the image, of the crop that the model saw."""
        return seen_box(self.geometry, self.image.size)

    def is_zero(self, index: int) -> bool:
        """Whether the map of a class, by its position among `classes`, is zero everywhere."""
        return not self.grid_maps[index].any()

    def overlap(self, first: int = 0, second: int = 1) -> float:
        """Share of two maps that lies on each other: their histogram intersection, 0 to 1; NaN where one is zero.

        Args:
            first: Position of the class among `classes`.
            second: Likewise.
        """
        return attention_overlap(self.grid_maps[[first]], self.grid_maps[[second]]).item()

    def overlay(self, index: int = 0, side: int | None = None) -> Image.Image:
        """The map of a class laid over the image; what the model has not seen is dark.

        Args:
            index: Position of the class among `classes`.
            side: Pixels that the longer side has at most; None for the size of the image.
        """
        picture = shrink(self.image, side)
        across, down = picture.width / self.image.width, picture.height / self.image.height
        left, top, right, bottom = self.seen
        return overlay(
            picture, spread(self.grid_maps[index], self.geometry, self.image.size, picture.size),
            (left * across, top * down, right * across, bottom * down))

    def picture(self) -> Image.Image:
        """The image and beside it the overlay of each class, with names and scores."""
        return draw([self]).picture()

    def show(self) -> None:
        """Show `picture` in the system's viewer; a notebook shows the explanation by itself."""
        self.picture().show()

    def save(self, path: str | Path) -> Path:
        """Write `picture`; the folder is made.

        Args:
            path: .png, .pdf, .svg, .jpg or .webp.

        Raises:
            ValueError: Another ending.
            WriteError: It cannot be written.
        """
        path = Path(path)
        check_format(path)
        page = draw([self], sharpness=2 if path.suffix.lower() in ENLARGED else 1)
        return page.save(path)

    @property
    def caption(self) -> str:
        """In words what the picture shows: the name of the file, classes and scores."""
        scores = ', '.join(
            f'{name} {score:.1%}' for name, score in zip(self.class_names, self.scores, strict=True))
        return printable(f"{Path(self.name).name or 'image'}: {scores}")

    # A notebook asks for this; the second part is what a reader hears who does not see the picture.
    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        self.picture().save(buffer, 'PNG')
        return buffer.getvalue(), {'alt': self.caption}


class Explanations(list[Explanation]):
    """The explanations of several images: a list, of which a notebook shows the first pictures."""

    def _repr_html_(self) -> str:
        shown = []
        for one in self[:MOST_SHOWN]:
            png, words = one._repr_png_()
            shown.append(
                f'<p><img src="data:image/png;base64,{b64encode(png).decode()}" alt="{escape(words["alt"])}"></p>')
        rest = len(self) - len(shown)
        return ''.join(shown) + f'<p>... and {rest} more: look at [{MOST_SHOWN}:].</p>' * (rest > 0)


def _is_cropped(one: Explanation) -> bool:
    """Whether the overlay is dark anywhere: the centre of a pixel lies outside; rounding moves the edges by less."""
    left, top, right, bottom = one.seen
    return max(left, top, one.image.width - right, one.image.height - bottom) > 0.5


def _caption(explanations: Sequence[Explanation]) -> str:
    methods = {METHODS[one.method].title: None for one in explanations}
    layers = {f'{one.layer} layer' if one.layer in ('inner', 'last') else one.layer: None for one in explanations}
    scores = {one.labels.score: None for one in explanations}
    cropped = any(_is_cropped(one) for one in explanations)
    text = f"{SCALE} ({', '.join(methods)}; {', '.join(layers)}). Scores: {', '.join(scores)}."
    return text + ' Dark: cut off before the model saw the image.' * cropped


def draw(
        explanations: Sequence[Explanation],
        labels: Sequence[str] = (),
        sharpness: int = 1,
) -> Page:
    """A page with the image, and a row of overlays for each model.

    Args:
        explanations: Of one image, one for each model.
        labels: Names of the models; none of a single one.
        sharpness: Pixels of a picture for each of the page's, along a side.
    """
    image = explanations[0].image
    ratio = min(1., TALLEST * image.width / image.height)
    width = max(1, round(CELL * ratio))
    height = max(1, round(width * image.height / image.width))
    side = sharpness * max(width, height)
    label_height = LINE * bool(labels)
    row_height = label_height + 2 * LINE + height + PAIR_GAP
    most = max(map(len, explanations))
    page_width = 2 * MARGIN + (1 + most) * CELL + most * PAIR_GAP
    caption = wrapped((_caption(explanations),), page_width)
    bottom = MARGIN + len(explanations) * row_height
    page = Page(page_width, bottom + len(caption) * SMALL_LINE + MARGIN)

    def cell(picture: Image.Image, titles: Sequence[str], column: int, top: int) -> None:
        left = MARGIN + column * (CELL + PAIR_GAP)
        for line, title in enumerate(titles):
            page.text(
                title, left + CELL / 2, top + (line + 1) * LINE - DESCENT, CELL,
                weight='normal' if line or not column else 'bold')
        page.image(
            np.asarray(picture, dtype=np.float32) / 255, left + (CELL - width) // 2,
            top + 2 * LINE, width, height)

    for row, one in enumerate(explanations):
        top = MARGIN + row * row_height
        if labels:
            page.text(labels[row], MARGIN, top + LINE - DESCENT, page_width - 2 * MARGIN, weight='bold', align='left')
        if not row:
            cell(shrink(one.image, side), ['', Path(one.name).name or 'image'], 0, top + label_height)
        for k, (name, score) in enumerate(zip(one.class_names, one.scores, strict=True)):
            zero = f', {ZERO_MAP}' * one.is_zero(k)
            cell(one.overlay(k, side), [name, f'{score:.1%}{zero}'], k + 1, top + label_height)
    page.caption(caption, bottom, page_width)
    return page
