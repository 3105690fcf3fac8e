"""Figures of attention maps: what a model looks at for the true class and for the one it confuses it with.

Drawn with matplotlib's object interface: no display, no pyplot and no global state.

Shapes: `N` images, `C` classes, `H W` grid of a layer, `h w` image size.
"""
from dataclasses import replace
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from .layers import resolve_layers
from .losses import attention_overlap
from .modules import evaluation_mode
from .objective import ICASCConfig, ICASCOutput, icasc_forward

__all__ = ['attention_figure']

FORMATS = ('.png', '.pdf', '.svg')
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
WHICH = ('target', 'confused')
PLACES = {'last': 'Last layer', 'inner': 'Inner layer'}
CAPTION = (
    "Attention, 0 to the pair's maximum: a layer's two maps share one scale.",
    'Red frame: ground truth; beside it the most confusing class, with their softmax probabilities.',
    'Bold: predicted class, \u2717 if wrong. Overlap: histogram intersection of the two maps, 0 to 1.',
)


class _Page:
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
        shown = text = ' '.join(text.split())[:100]
        # Class names are data: a dollar sign in them starts no formula.
        while self.renderer.get_text_width_height_descent(shown, font, ismath=False)[0] > width and text:
            text = text[:-1].rstrip()
            shown = f'{text}\u2026'
        self.axes.text(x, baseline, shown, ha=align, va='baseline', color='black', font=font, parse_math=False)


def _run(
        model: nn.Module,
        images: torch.Tensor,
        targets: torch.Tensor,
        config: ICASCConfig,
        layers: Optional[Sequence[str]],
) -> ICASCOutput:
    """The four maps of every image in evaluation mode; each module's training flag is restored."""
    # The images follow the model to its device and precision.
    images = images.to(next(model.parameters()))
    with evaluation_mode(model):
        resolved = resolve_layers(model, layers, tuple(images.shape[1:]))
        return icasc_forward(model, images, targets.to(images.device), resolved, config, leaves=True)


def _shared_scale(target_map: torch.Tensor, confused_map: torch.Tensor, size: Tuple[int, int]) -> np.ndarray:
    """Two maps `[N, H, W]` at image size, divided by the larger of their maxima: `[2, N, h, w]` in [0, 1]."""
    pair = F.interpolate(
        torch.stack([target_map, confused_map]).float().cpu(), size=size, mode='bilinear', align_corners=False)
    maximum = pair.amax((0, 2, 3))[:, None, None]
    return (pair / torch.where(maximum > 0, maximum, 1)).numpy()


def _overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay attention `[h, w]` in [0, 1] over a grey image `[h, w]`: `[h, w, 3]`; no attention leaves the image as is."""
    alpha = OPACITY * heat[..., None]
    return (1 - alpha) * grey[..., None] + alpha * COLORMAP(heat)[..., :3]


def _check(
        models: Dict[str, nn.Module],
        images: torch.Tensor,
        targets: torch.Tensor,
        class_names: Optional[Sequence[str]],
        mean: Sequence[float],
        std: Sequence[float],
        path: Path,
) -> None:
    if not models:
        raise ValueError('models is empty: give at least one, {label: model}.')
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f'images must be [N, channels, height, width] with N >= 1 and 1 or 3 channels, got {tuple(images.shape)}.')
    if targets.shape != images.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f'targets must be {len(images)} class indices, one per image, got {targets.dtype} {tuple(targets.shape)}.')
    if len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise ValueError(
            f'mean and std must have {images.shape[1]} values, one for each channel, got {len(mean)} and {len(std)}.')
    if class_names is not None and not 0 <= targets.min() <= targets.max() < len(class_names):
        raise ValueError(f'targets must lie in 0 to {len(class_names) - 1}, the classes named, got {targets.tolist()}.')
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got '{path}'.")


def attention_figure(
        models: Dict[str, nn.Module],
        images: torch.Tensor,
        targets: torch.Tensor,
        class_names: Optional[Sequence[str]],
        mean: Sequence[float],
        std: Sequence[float],
        path: Union[str, Path],
        config: Optional[ICASCConfig] = None,
        layers: Optional[Sequence[str]] = None,
) -> Path:
    """Draw the attention of one or more models for the true and for the most confusing class of each image.

    One row per image: the image, then for each model the two maps at the last layer and the two at the inner layer,
    over the grey image. The ground truth's map has a thick red frame. The two maps of a layer share one colour scale,
    from 0 to the larger of their maxima, so that a weak map looks weak beside a strong one; a map that is zero
    everywhere leaves the grey image. Above each map stand its class and softmax probability: bold is the predicted
    class, a cross marks it where it is wrong. Below each pair stands their overlap (`losses.attention_overlap`).

    Args:
        models: Classifiers by the label that heads their columns. Each is run in evaluation mode, on its own device;
            its training flags are restored.
        images: `[N, 3, height, width]` or `[N, 1, height, width]`, normalised as the models expect.
        targets: Class indices `[N]`.
        class_names: Names of all `C` classes; None prints the indices.
        mean: Mean of each channel in the normalisation, which is undone for display.
        std: Standard deviation of each channel in the normalisation.
        path: File to write, .png, .pdf or .svg; its folder is created.
        config: Attention method; the weights of the terms do not matter.
        layers: Module paths (inner, last) for all models instead of the automatic choice.

    Returns:
        The path of the file.

    Raises:
        ValueError: No model or image, wrong shapes or lengths, a file type that is not among the three.
        OSError: The file cannot be written.
    """
    path = Path(path)
    _check(models, images, targets, class_names, mean, std, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = replace(config or ICASCConfig(), weight_as_inner=1., weight_as_last=1., weight_ac=1.)
    outputs = {label: _run(model, images, targets, config, layers) for label, model in models.items()}
    for label, output in outputs.items():
        if class_names is not None and len(class_names) != output.logits.shape[1]:
            raise ValueError(
                f"class_names has {len(class_names)} names, but model '{label}' has {output.logits.shape[1]} classes.")
    names = class_names if class_names is not None else range(max(o.logits.shape[1] for o in outputs.values()))
    size = tuple(images.shape[-2:])
    mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    colors = (images.detach().float().cpu() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    greys = colors @ np.array([0.299, 0.587, 0.114], dtype=np.float32)

    cell_height = max(1, round(CELL * size[0] / size[1]))
    pair_width = 2 * CELL + PAIR_GAP
    model_width = 2 * pair_width + LAYER_GAP
    row_height = 2 * LINE + cell_height + SMALL_LINE + ROW_GAP
    header_lines = [MARGIN + LINE - DESCENT, MARGIN + 2 * LINE, MARGIN + 3 * LINE]
    first_top = header_lines[-1] + 2 * ROW_GAP + 2 * LINE
    tops = [first_top + row * row_height for row in range(len(images))]
    bottom = tops[-1] + cell_height + SMALL_LINE + ROW_GAP
    width = 2 * MARGIN + CELL + len(models) * (MODEL_GAP + model_width)
    page = _Page(width, bottom + len(CAPTION) * SMALL_LINE + MARGIN)

    page.text('image', MARGIN + CELL / 2, header_lines[2], CELL, style='italic')
    for row, top in enumerate(tops):
        page.text(str(names[targets[row]]), MARGIN + CELL / 2, top - DESCENT, CELL)
        page.image(colors[row], MARGIN, top, CELL, cell_height)

    for column, (label, output) in enumerate(outputs.items()):
        model_left = MARGIN + CELL + MODEL_GAP + column * (model_width + MODEL_GAP)
        page.text(label, model_left + model_width / 2, header_lines[0], model_width, weight='bold')
        page.axes.plot([model_left, model_left + model_width], [MARGIN + LINE] * 2, color='black', linewidth=0.8)
        probabilities = output.logits.float().softmax(1).cpu()
        predicted = output.logits.argmax(1).tolist()
        chosen = [pair.argmax(1).tolist() for pair in (output.classes.target, output.classes.confused)]
        for place, title in PLACES.items():
            pair_left = model_left + (pair_width + LAYER_GAP if place == 'inner' else 0)
            pair_center = pair_left + pair_width / 2
            page.text(title, pair_center, header_lines[1], pair_width)
            maps = [output.maps[f'{which}_{place}'] for which in WHICH]
            heats = _shared_scale(*maps, size)
            for top, overlap in zip(tops, attention_overlap(*maps).tolist(), strict=True):
                text = 'no overlap: a map is zero' if overlap != overlap else f'overlap {overlap:.2f}'
                page.text(text, pair_center, top + cell_height + SMALL_LINE - 2, pair_width, size=SMALL_TEXT)
            for k, which in enumerate(WHICH):
                left = pair_left + k * (CELL + PAIR_GAP)
                center = left + CELL / 2
                page.text(which, center, header_lines[2], CELL, style='italic')
                for row, (top, index) in enumerate(zip(tops, chosen[k], strict=True)):
                    weight = 'bold' if index == predicted[row] else 'normal'
                    mark = '\u2717 ' if index == predicted[row] and which == 'confused' else ''
                    page.text(f'{mark}{names[index]}', center, top - LINE - DESCENT, CELL, weight=weight)
                    page.text(f'{probabilities[row, index]:.1%}', center, top - DESCENT, CELL, weight=weight)
                    page.image(_overlay(greys[row], heats[k, row]), left, top, CELL, cell_height)
                    if which == 'target':
                        page.frame(left, top, CELL, cell_height)

    scale = _overlay(np.full((1, CELL), 0.5), np.linspace(0, 1, CELL)[None])
    page.image(scale, MARGIN, bottom + 2, CELL, SMALL_LINE - 4)
    for line, text in enumerate(CAPTION):
        left = MARGIN if line else MARGIN + CELL + PAIR_GAP
        page.text(text, left, bottom + (line + 1) * SMALL_LINE - 4, width - left, size=SMALL_TEXT, align='left')
    page.figure.savefig(path, dpi=DPI)
    return path
