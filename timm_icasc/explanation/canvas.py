"""A page of small pictures and lines of text, addressed in pixels.

Drawn with matplotlib's object interface: no display, no pyplot and no global state.

Shapes: `N` images, `H W` grid of a layer, `h w` image size.
"""
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from PIL import Image

from ..errors import ICASCError
from ..foreign_text import printable
from ..runs.files import replacing
from .overlay import blend

__all__ = ['ENLARGED', 'Grid', 'PAIR_WIDTH', 'Page', 'check_format', 'displayed', 'heats', 'save', 'wrapped']

FORMATS = ('.png', '.pdf', '.svg', '.jpg', '.jpeg', '.webp')

ENLARGED = ('.pdf', '.svg')  # who looks at them may want to see more than fits into the page's own pixels

LOSSY = {'.jpg': {'quality': 85}, '.jpeg': {'quality': 85}, '.webp': {'quality': 80}}

# The layout is in pixels at this resolution; a power of two, so that pixels / DPI * DPI is exact.
DPI = 128

CELL = 128  # width of an image, 4 pixels for each of CIFAR's

MARGIN, PAIR_GAP, LAYER_GAP, MODEL_GAP, ROW_GAP = 10, 8, 14, 26, 10

PAIR_WIDTH = 2 * CELL + PAIR_GAP

LINE, SMALL_LINE, DESCENT = 20, 18, 6

TEXT, SMALL_TEXT = 9, 8  # points

FRAME = '#e0102a'  # red, as in the paper; thick, so that its hue is not the only cue


class Page:
    """A figure addressed in pixels from its top left corner, so that the pixels of images fall on whole dots."""

    def __init__(self, width: int, height: int):
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor='white')
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.axes = self.figure.add_axes(
            (0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.set_axis_off()

    def image(self, rgb: np.ndarray, left: int, top: int, width: int, height: int) -> None:
        """Draw `[h, w, 3]` values in [0, 1]: square pixels where enlarged, smoothed where reduced."""
        self.axes.imshow(
            np.rint(255 * rgb).astype(np.uint8), extent=(left, left + width, top + height, top), aspect='auto',
            interpolation='nearest' if rgb.shape[1] <= width else 'antialiased')

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        self.axes.add_patch(Rectangle(
            (left, top), width, height, fill=False, edgecolor=FRAME, linewidth=2.5, joinstyle='miter'))

    def width_of(self, text: str, font: FontProperties) -> float:
        # Class names are data: a dollar sign in them starts no formula.
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0]

    def text(
            self,
            text: str,
            x: float,
            baseline: float,
            width: float,
            size: float = TEXT,
            weight: str = 'normal',
            style: str = 'normal',
            align: str = 'center',
    ) -> None:
        """Write one line; where it is wider than `width`, an ellipsis takes its middle: names differ at their ends."""
        font = FontProperties(size=size, weight=weight, style=style)
        text = printable(' '.join(text.split()))
        # Nothing of the middle is seen of a text of thousands of letters, and measuring it takes long.
        shown = text = text if len(text) <= 400 else text[:200] + text[-200:]

        def fits(line: str) -> bool:
            return self.width_of(line, font) <= width

        def shortened(kept: int) -> str:
            return f'{text[:(kept + 1) // 2].rstrip()}\u2026{text[len(text) - kept // 2:].lstrip()}'

        if not fits(text):
            kept = bisect_left(range(1, len(text)), True, key=lambda n: not fits(shortened(n)))
            shown = shortened(kept)
        self.axes.text(x, baseline, shown, ha=align, va='baseline', color='black', font=font, parse_math=False)

    def scale_bar(self, left: int, top: int, width: int) -> None:
        """The colours of attention from 0 to the maximum."""
        scale = blend(np.full((1, width), 0.5), np.linspace(0, 1, width)[None])
        self.image(scale, left, top, width, SMALL_LINE - 4)

    def caption(self, lines: Sequence[str], top: int, width: int) -> None:
        """The scale bar and the lines of text below it, at the foot of the page."""
        self.scale_bar(MARGIN, top + 2, CELL)
        for line, text in enumerate(lines):
            left = _caption_left(line)
            self.text(text, left, top + (line + 1) * SMALL_LINE - 4, width - left, size=SMALL_TEXT, align='left')

    def save(self, path: Path) -> Path:
        return save(self.figure, path)

    def picture(self) -> Image.Image:
        """The page as an image, RGB."""
        self.figure.canvas.draw()
        return Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy())


def _caption_left(line: int) -> int:
    """Where a line of the caption begins: the first one stands beside the scale bar."""
    return MARGIN if line else MARGIN + CELL + PAIR_GAP


@lru_cache(64)  # thousands of pages have the same one, and measuring it takes as long as the rest of the page
def wrapped(caption: tuple[str, ...], width: int) -> tuple[str, ...]:
    """The lines of a caption, broken between words where they are wider than the page: nothing of them is left out."""
    page, font, lines = Page(width, 1), FontProperties(size=SMALL_TEXT), []
    for text in caption:
        lines.append('')
        for word in text.split():
            longer = f'{lines[-1]} {word}'.strip()
            room = width - _caption_left(len(lines) - 1)
            if lines[-1] and page.width_of(longer, font) > room:
                lines.append(word)
            else:
                lines[-1] = longer
    return tuple(lines)


class Grid:
    """A page with a row for each image: the image, then a block of maps for each model; captions at the foot.

    Args:
        size: Height and width of the images.
        rows: Number of images.
        models: Number of models.
        block_width: Width of what is drawn for a model.
        heading_lines: Lines of text at the head of the page, the models' labels being the first.
        title_lines: Lines of text above each picture.
        caption: Lines at the foot.

    Attributes:
        page: What is drawn on.
        header: Baselines of the heading lines.
        tops: Upper edge of each row's pictures.
    """

    def __init__(
            self,
            size: tuple[int, int],
            rows: int,
            models: int,
            block_width: int,
            heading_lines: int,
            title_lines: int,
            caption: Sequence[str],
    ):
        self.block_width = block_width
        self.cell_height = max(1, round(CELL * size[0] / size[1]))
        self.header = [MARGIN + LINE - DESCENT, MARGIN + 2 * LINE, MARGIN + 3 * LINE][
            :heading_lines]
        first = self.header[-1] + 2 * ROW_GAP + title_lines * LINE
        row_height = title_lines * LINE + self.cell_height + SMALL_LINE + ROW_GAP
        self.tops = [first + row * row_height for row in range(rows)]
        self.bottom = self.tops[-1] + self.cell_height + SMALL_LINE + ROW_GAP
        self.width = 2 * MARGIN + CELL + models * (MODEL_GAP + block_width)
        self.caption = wrapped(tuple(caption), self.width)
        self.page = Page(self.width, self.bottom + len(self.caption) * SMALL_LINE + MARGIN)

    def block_left(self, model: int) -> int:
        return MARGIN + CELL + MODEL_GAP + model * (self.block_width + MODEL_GAP)

    def label(self, text: str, model: int) -> None:
        """The head of a model's block: its label, underlined."""
        left, right = self.block_left(model), self.block_left(model) + self.block_width
        self.page.text(text, (left + right) / 2, self.header[0], self.block_width, weight='bold')
        self.page.axes.plot([left, right], [MARGIN + LINE] * 2, color='black', linewidth=0.8)

    def heading(self, text: str, line: int, left: int, width: int = CELL, **style: str) -> None:
        """Text in one of the heading lines, centred above what is `width` wide."""
        self.page.text(text, left + width / 2, self.header[line], width, **style)

    def titles(self, lines: Sequence[str], row: int, left: int, **style: str) -> None:
        """The lines of text above a picture."""
        for above, text in enumerate(reversed(lines)):
            self.page.text(
                text, left + CELL / 2, self.tops[row] - above * LINE - DESCENT, CELL, **style)

    def picture(self, rgb: np.ndarray, row: int, left: int, framed: bool = False) -> None:
        """An image in its cell; one of another shape than the grid's, as of a second model, is centred in it."""
        across = max(1, round(CELL * rgb.shape[0] / rgb.shape[1]))
        height = min(self.cell_height, across)
        width = CELL if height == across else max(1, round(height * rgb.shape[1] / rgb.shape[0]))
        left += (CELL - width) // 2
        top = self.tops[row] + (self.cell_height - height) // 2
        self.page.image(rgb, left, top, width, height)
        if framed:
            self.page.frame(left, top, width, height)

    def note(self, text: str, row: int, left: int, width: int = CELL) -> None:
        """Small text below what is `width` wide."""
        baseline = self.tops[row] + self.cell_height + SMALL_LINE - 2
        self.page.text(text, left + width / 2, baseline, width, size=SMALL_TEXT)

    def save(self, path: Path) -> Path:
        self.page.caption(self.caption, self.bottom, self.width)
        return self.page.save(path)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, making its folder."""
    lossy = LOSSY.get(path.suffix.lower())
    with replacing(path) as partial:
        figure.savefig(partial, dpi=DPI, **({'pil_kwargs': lossy} if lossy else {}))
    return path


def check_format(path: Path, argument: str = 'path') -> None:
    """Raise ICASCError, which is a ValueError, for a file type that cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise ICASCError(f"`{argument}` must end in one of {', '.join(FORMATS)}, got '{path}'.")


def displayed(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of images `[N, 1 or 3, h, w]`: `[N, h, w, 3]` in [0, 1]."""
    images = images.detach().float().cpu()
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images * std + mean).clamp(0, 1).expand(-1, 3, -1, -1).permute(
        0, 2, 3, 1).numpy()


def heats(
        maps: torch.Tensor,
        size: tuple[int, int],
        axes: tuple[int, ...] = (-2, -1),
) -> np.ndarray:
    """Maps `[A, B, H, W]` at image size, bilinear, over their maximum along `axes`: `[A, B, h, w]` in [0, 1]."""
    maps = F.interpolate(maps.float().cpu(), size=size, mode='bilinear', align_corners=False)
    maximum = maps.amax(axes, keepdim=True)
    return (maps / torch.where(maximum > 0, maximum, 1)).numpy()
