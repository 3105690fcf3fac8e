"""Figures of attention maps: what a model looks at for the true class and for the one it confuses it with.

Shapes: `N` images, `C` classes, `H W` grid of a layer, `h w` image size.
"""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from ..explanation.canvas import (
    CELL,
    LAYER_GAP,
    MARGIN,
    PAIR_GAP,
    PAIR_WIDTH,
    Grid,
    check_format,
    displayed,
    heats,
)
from ..explanation.overlay import blend, grey
from ..features.layout import ICASCLayers
from ..features.module_state import evaluation_mode
from ..features.outputs import check_order
from ..features.resolve import resolve_layers
from ..labels import MULTI, SINGLE, LabelKind, kind_of
from ..losses import attention_overlap
from ..objective.config import ICASCConfig
from ..objective.forward import ICASCOutput, icasc_forward

__all__ = ['attention_figure']

WHICH = ('target', 'confused')

LAYER_TITLES = {'last': 'Last layer', 'inner': 'Inner layer'}

SCALE = "Attention, 0 to the pair's maximum: a layer's two maps share one scale."

CAPTION = {SINGLE: (
    SCALE,
    'Red frame: ground truth; beside it the most confusing class, with their softmax probabilities.',
    'Bold: predicted class, \u2717 if wrong. Overlap: histogram intersection of the two maps, 0 to 1.',
), MULTI: (
    SCALE,
    'Red frame: all present classes; beside it the absent class of highest score. Sigmoid probabilities.',
    'Bold: a probability of at least 50%, \u2717 if wrong. Overlap: histogram intersection, 0 to 1.',
)}


def _run(
        label: str,
        model: nn.Module,
        images: torch.Tensor,
        targets: torch.Tensor,
        config: ICASCConfig,
        layers: ICASCLayers | Sequence[str] | None,
        labels: LabelKind,
) -> ICASCOutput:
    """The four maps of every image in evaluation mode; each module's training flag is restored."""
    # The images follow the model to its device and precision.
    images = images.to(next(model.parameters()))
    with evaluation_mode(model):
        resolved = resolve_layers(model, layers, tuple(images.shape[1:]))
        output = icasc_forward(
            model, images, targets.to(images.device), resolved, config, inference=True,
            multilabel=labels is MULTI)
    check_order(output.logits, f"'{label}'")
    return output


def _check(
        models: dict[str, nn.Module],
        images: torch.Tensor,
        targets: torch.Tensor,
        class_names: Sequence[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
        path: Path,
) -> None:
    if not models:
        raise ValueError('models is empty: give at least one, {label: model}.')
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f'images must be [N, channels, height, width] with N >= 1 and 1 or 3 channels, got {tuple(images.shape)}.')
    labels = kind_of(targets)
    if targets.ndim not in (1, 2) or targets.is_floating_point() != (labels is MULTI) or len(
        targets) != len(images):
        raise ValueError(
            f'targets must be {len(images)} class indices, one per image, or floating point [{len(images)}, C] for '
            f'multi-label images, got {targets.dtype} {tuple(targets.shape)}.')
    if len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise ValueError(
            f'mean and std must have {images.shape[1]} values, one for each channel, got {len(mean)} and {len(std)}.')
    if class_names is not None and labels is SINGLE and not (
            0 <= targets.min() <= targets.max() < len(class_names)):
        raise ValueError(f'targets must lie in 0 to {len(class_names) - 1}, the classes named, got {targets.tolist()}.')
    check_format(path)


def _names(outputs: dict[str, ICASCOutput], class_names: Sequence[str] | None) -> list[str]:
    """The names of the classes, or their indices."""
    for label, output in outputs.items():
        if class_names is not None and len(class_names) != output.logits.shape[1]:
            raise ValueError(
                f"class_names has {len(class_names)} names, but model '{label}' has {output.logits.shape[1]} classes.")
    if class_names is None:
        class_names = range(max(output.logits.shape[1] for output in outputs.values()))
    return [str(name) for name in class_names]


def _titles(
        output: ICASCOutput,
        present: list[list[int]],
        names: list[str],
        labels: LabelKind,
) -> dict[str, list[tuple[str, str, bool]]]:
    """By map and image: the classes of the map, their probabilities, and whether one of them is predicted."""
    probabilities = labels.probabilities(output.logits.cpu())
    predicted = labels.predicted(probabilities)
    titles = {which: [] for which in WHICH}
    for which, chosen in zip(WHICH, (present, MULTI.present(output.classes.confused)), strict=True):
        for row, classes in enumerate(chosen):
            hit = bool(predicted[row, classes].any())
            mark = '\u2717 ' if hit and which == 'confused' else ''
            values = ', '.join(f'{probabilities[row, c]:.{0 if labels is MULTI else 1}%}' for c in classes)
            titles[which].append((mark + ', '.join(names[c] for c in classes), values, hit))
    return titles


def _draw_images(grid: Grid, colors: np.ndarray, titles: Sequence[str]) -> None:
    grid.heading('image', 2, MARGIN, style='italic')
    for row, title in enumerate(titles):
        grid.titles([title], row, MARGIN)
        grid.picture(colors[row], row, MARGIN)


def _draw_pair(
        grid: Grid,
        left: int,
        output: ICASCOutput,
        place: str,
        titles: dict[str, list[tuple[str, str, bool]]],
        greys: np.ndarray,
) -> None:
    """The two maps of every image at one layer, and their overlap."""
    grid.heading(LAYER_TITLES[place], 1, left, PAIR_WIDTH)
    maps = [output.maps[f'{which}_{place}'] for which in WHICH]
    for row, overlap in enumerate(attention_overlap(*maps).tolist()):
        note = 'no overlap: a map is zero' if overlap != overlap else f'overlap {overlap:.2f}'
        grid.note(note, row, left, PAIR_WIDTH)
    pair = heats(torch.stack(maps), greys.shape[-2:], axes=(0, -2, -1))  # over the larger of their maxima
    for which, own in zip(WHICH, pair, strict=True):
        grid.heading(which, 2, left, style='italic')
        for row, (*lines, hit) in enumerate(titles[which]):
            grid.titles(lines, row, left, weight='bold' if hit else 'normal')
            grid.picture(blend(greys[row], own[row]), row, left, framed=which == 'target')
        left += CELL + PAIR_GAP


def attention_figure(
        models: dict[str, nn.Module],
        images: torch.Tensor,
        targets: torch.Tensor,
        class_names: Sequence[str] | None,
        mean: Sequence[float],
        std: Sequence[float],
        path: str | Path,
        config: ICASCConfig | None = None,
        layers: ICASCLayers | Sequence[str] | None = None,
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
        targets: Class indices `[N]`, or multi-label targets `[N, C]` in {1, 0, -1} (`MultiLabelICASCTask`): there the
            target's map is that of all present classes together.
        class_names: Names of all `C` classes; None prints the indices.
        mean: Mean of each channel in the normalisation, which is undone for display.
        std: Standard deviation of each channel in the normalisation.
        path: File to write: .png, .pdf, .svg, .jpg or .webp; its folder is created.
        config: Attention method; the weights of the terms do not matter.
        layers: From `resolve_layers`, or module paths (inner, last), for all models instead of the automatic choice.

    Returns:
        The path of the file.

    Raises:
        ValueError: No model or image, wrong shapes or lengths, another file type.
        OSError: The file cannot be written.
    """
    path = Path(path)
    _check(models, images, targets, class_names, mean, std, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = (config or ICASCConfig()).with_weights(1.)
    labels = kind_of(targets)
    outputs = {
        label: _run(label, model, images, targets, config, layers, labels)
        for label, model in models.items()}
    names = _names(outputs, class_names)
    colors = displayed(images, mean, std)
    greys = grey(colors)
    # The classes that a map stands for: one, or all that are present.
    present = labels.present(targets)

    grid = Grid(
        colors.shape[1:3], len(images), len(models), 2 * PAIR_WIDTH + LAYER_GAP, heading_lines=3,
        title_lines=2, caption=CAPTION[labels])
    _draw_images(grid, colors, [', '.join(names[c] for c in classes) for classes in present])
    for column, (label, output) in enumerate(outputs.items()):
        grid.label(label, column)
        titles, left = _titles(output, present, names, labels), grid.block_left(column)
        for k, place in enumerate(LAYER_TITLES):
            _draw_pair(grid, left + k * (PAIR_WIDTH + LAYER_GAP), output, place, titles, greys)
    return grid.save(path)
