"""Inner against last layer, by several attention methods (Figs. 2, 4 and 5)."""
from collections.abc import Sequence
from pathlib import Path

from ..attention import METHODS
from ..data import image_name
from ..evaluation.checkpoint import Checkpoint
from ..explanation.canvas import (
    CELL,
    DESCENT,
    LAYER_GAP,
    MARGIN,
    PAIR_GAP,
    PAIR_WIDTH,
    Grid,
    check_format,
)
from ..explanation.overlay import blend, grey
from .views import colors_of, load_items, view_layers

__all__ = ['layers_figure']

CAPTION = (
    'Attention for the ground truth, named with its {score} probability; each map from 0 to its own maximum.',
    'In mask: share of the inner attention inside the last layer\u2019s mask (Eq. 5 without theta).',
    'Overlap: histogram intersection of the two maps, 0 to 1.',
)


def layers_figure(
        checkpoints: Sequence[Checkpoint],
        indices: Sequence[int],
        path: Path,
        methods: Sequence[str] | None = None,
) -> Path:
    """One row per image: the image, then for each checkpoint and method the inner and the last layer's map.

    Args:
        checkpoints: Models side by side, on the same data set.
        indices: Positions of the images in the data set.
        path: File to write: .png, .pdf, .svg, .jpg or .webp.
        methods: Of `attention.METHODS`; when None those that the paper draws, its own last.
    """
    check_format(path)
    if methods is None:
        methods = sorted(
            (name for name, method in METHODS.items() if method.in_paper),
            key=lambda name: name == 'ach')
    first = checkpoints[0]
    colors = colors_of(first, load_items(first, indices)[0])
    caption = [line.format(score=first.labels.score) for line in CAPTION]
    grid = Grid(
        colors.shape[1:3], len(indices), len(checkpoints),
        len(methods) * PAIR_WIDTH + (len(methods) - 1) * LAYER_GAP,
        heading_lines=3, title_lines=1, caption=caption)
    for row, index in enumerate(indices):
        grid.titles([image_name(first.dataset, index)], row, MARGIN, style='italic')
        grid.picture(colors[row], row, MARGIN)
    for column, checkpoint in enumerate(checkpoints):
        grid.label(checkpoint.label, column)
        greys = grey(colors_of(checkpoint, load_items(checkpoint, indices)[0]))
        for m, method in enumerate(methods):
            left = grid.block_left(column) + m * (PAIR_WIDTH + LAYER_GAP)
            grid.heading(METHODS[method].title, 1, left, PAIR_WIDTH)
            for k, place in enumerate(('inner', 'last')):
                grid.heading(place, 2, left + k * (CELL + PAIR_GAP), style='italic')
            classes, views = view_layers(checkpoint, indices, method)
            for row, (index, view) in enumerate(zip(classes, views, strict=True)):
                if not m:
                    grid.page.text(
                        f'{checkpoint.class_name(index)}, {view.probability:.1%}', left,
                        grid.tops[row] - DESCENT, grid.block_width, align='left')
                for k, heat in enumerate((view.inner, view.last)):
                    grid.picture(blend(greys[row], heat), row, left + k * (CELL + PAIR_GAP))
                missing = view.overlap != view.overlap
                note = 'a map is zero' if missing else f'in mask {view.inside:.2f}, overlap {view.overlap:.2f}'
                grid.note(note, row, left, PAIR_WIDTH)
    return grid.save(path)
