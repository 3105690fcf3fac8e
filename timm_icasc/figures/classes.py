"""The classes that models see in an image, highest first, the ground truth framed in red (Figs. 1, 7 and 10)."""
from collections.abc import Sequence
from pathlib import Path

from ..data import image_name
from ..evaluation.checkpoint import Checkpoint
from ..explanation.canvas import CELL, DESCENT, LINE, MARGIN, PAIR_GAP, Grid, check_format
from ..explanation.overlay import blend, grey
from .views import ClassView, colors_of, load_items, view_classes

__all__ = ['classes_figure']

CAPTION = (
    'Attention, each map from 0 to its own maximum. Red frame: ground truth.',
    'Classes in the order of their scores, with {score} probabilities; \u2717: the highest one is not in the image.',
    'Overlap: histogram intersection with the nearest map of the ground truth, 0 to 1; #: rank of its score.',
)


def _note(view: ClassView, topk: int) -> str:
    return ', '.join(filter(None, [f'#{view.rank}' * (view.rank > topk), view.note]))


def classes_figure(
        checkpoints: Sequence[Checkpoint],
        indices: Sequence[int],
        path: Path,
        topk: int = 5,
        methods: Sequence[str] = ('grad_cam',),
        layer: str = 'last',
) -> Path:
    """One row per image: the image, then for each checkpoint and method the maps of the classes that it scores highest.

    Args:
        checkpoints: Models side by side, on the same data set.
        indices: Positions of the images in the data set.
        path: File to write: .png, .pdf, .svg, .jpg or .webp.
        topk: Number of classes of each image; a ground truth below them takes the last place.
        methods: Of `attention.METHODS`.
        layer: 'inner' or 'last'.
    """
    check_format(path)
    first = checkpoints[0]
    columns = [(checkpoint, name) for checkpoint in checkpoints for name in methods]
    images, targets = load_items(first, indices)
    colors = colors_of(first, images)
    topk = min(topk, *(c.num_classes for c in checkpoints))
    caption = [line.format(score=first.labels.score) for line in CAPTION]
    grid = Grid(
        colors.shape[1:3], len(indices), len(columns), topk * CELL + (topk - 1) * PAIR_GAP,
        heading_lines=1, title_lines=2, caption=caption)
    for row, (index, truth) in enumerate(zip(indices, first.labels.present(targets), strict=True)):
        grid.page.text(
            image_name(first.dataset, index), MARGIN + CELL / 2, grid.tops[row] - LINE - DESCENT, CELL, style='italic')
        grid.titles([', '.join(map(first.class_name, truth))], row, MARGIN)
        grid.picture(colors[row], row, MARGIN)
    for column, (checkpoint, name) in enumerate(columns):
        grid.label(checkpoint.label if len(methods) == 1 else f'{checkpoint.label}, {name}', column)
        greys = grey(colors_of(checkpoint, load_items(checkpoint, indices)[0]))
        for row, views in enumerate(view_classes(checkpoint, indices, topk, name, layer)):
            for k, view in enumerate(views):
                left = grid.block_left(column) + k * (CELL + PAIR_GAP)
                grid.titles(
                    [view.title, f'{view.probability:.1%}'], row, left,
                    weight='bold' if view.rank == 1 else 'normal')
                grid.picture(blend(greys[row], view.heat), row, left, framed=view.truth)
                grid.note(_note(view, topk), row, left)
    return grid.save(path)
