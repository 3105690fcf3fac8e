"""A page of small pictures and lines of text, addressed in pixels; attention laid over images.

Drawn with matplotlib's object interface: no display, no pyplot and no global state.

Shapes: `N` images, `H W` grid of a layer, `h w` image size.
"""
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

__all__ = ['Page', 'check_format', 'displayed', 'grey', 'overlay', 'save', 'to_size']

FORMATS = ('.png', '.pdf', '.svg', '.jpg', '.webp')

LOSSY = {'.jpg': {'quality': 85}, '.webp': {'quality': 80}}

# The layout is in pixels at this resolution; a power of two, so that pixels / DPI * DPI is exact.
DPI = 128

CELL = 128  # width of an image, 4 pixels for each of CIFAR's

MARGIN, PAIR_GAP, LAYER_GAP, MODEL_GAP, ROW_GAP = 10, 8, 14, 26, 10

LINE, SMALL_LINE, DESCENT = 20, 18, 6

TEXT, SMALL_TEXT = 9, 8  # points

# Viridis keeps its order for colour-blind readers, and its yellow end differs from a white background.
COLORMAP = colormaps['viridis']

OPACITY = 0.9

FRAME = '#e0102a'  # red, as in the paper; thick, so that its hue is not the only cue


class Page:
    """A figure addressed in pixels from its top left corner, so that the pixels of images fall on whole dots."""

    def __init__(self, width: int, height: int):
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor='white')
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.set_axis_off()

    def image(self, rgb: np.ndarray, left: int, top: int, width: int, height: int) -> None:
        """Draw `[h, w, 3]` values in [0, 1]: square pixels where enlarged, smoothed where reduced."""
        self.axes.imshow(
            np.rint(255 * rgb).astype(np.uint8), extent=(left, left + width, top + height, top), aspect='auto',
            interpolation='nearest' if rgb.shape[1] <= width else 'antialiased')

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        self.axes.add_patch(Rectangle(
            (left, top), width, height, fill=False, edgecolor=FRAME, linewidth=2.5, joinstyle='miter'))

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
        """Write one line, shortened with an ellipsis where it is wider than `width`."""
        font = FontProperties(size=size, weight=weight, style=style)
        shown = text = ' '.join(text.split())[:200]

        def fits(line: str) -> bool:
            # Class names are data: a dollar sign in them starts no formula.
            return self.renderer.get_text_width_height_descent(line, font, ismath=False)[0] <= width
        if not fits(text):
            lengths = range(1, len(text))
            kept = bisect_left(lengths, True, key=lambda n: not fits(f'{text[:n].rstrip()}\u2026'))
            shown = f'{text[:kept].rstrip()}\u2026'
        self.axes.text(x, baseline, shown, ha=align, va='baseline', color='black', font=font, parse_math=False)

    def scale_bar(self, left: int, top: int, width: int) -> None:
        """The colours of attention from 0 to the maximum."""
        scale = overlay(np.full((1, width), 0.5), np.linspace(0, 1, width)[None])
        self.image(scale, left, top, width, SMALL_LINE - 4)

    def caption(self, lines: Sequence[str], top: int, width: int) -> None:
        """The scale bar and the lines of text below it, at the foot of the page."""
        self.scale_bar(MARGIN, top + 2, CELL)
        for line, text in enumerate(lines):
            left = MARGIN if line else MARGIN + CELL + PAIR_GAP
            self.text(text, left, top + (line + 1) * SMALL_LINE - 4, width - left, size=SMALL_TEXT, align='left')

    def save(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return save(self.figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lossy = LOSSY.get(path.suffix.lower())
    figure.savefig(path, dpi=DPI, **({'pil_kwargs': lossy} if lossy else {}))
    return path


def check_format(path: Path) -> None:
    """Raise ValueError for a file type that cannot be written."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got '{path}'.")


def displayed(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of images `[N, 1 or 3, h, w]`: `[N, h, w, 3]` in [0, 1]."""
    mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return (images.detach().float().cpu() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def grey(colors: np.ndarray) -> np.ndarray:
    """The lightness of `[..., 3]`: `[...]`."""
    return colors @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def to_size(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps `[A, B, H, W]` at image size, bilinear: `[A, B, h, w]`."""
    return F.interpolate(maps.float().cpu(), size=size, mode='bilinear', align_corners=False)


def overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay attention `[h, w]` in [0, 1] over a grey image `[h, w]`: `[h, w, 3]`; no attention leaves the image as is."""
    alpha = OPACITY * heat[..., None]
    return (1 - alpha) * grey[..., None] + alpha * COLORMAP(heat)[..., :3]
