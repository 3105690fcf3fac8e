"""The classes that models see in an image, highest first, the ground truth framed in red (Figs. 1, 7 and 10)."""
from collections.abc import Sequence
from pathlib import Path

from ..data import image_name
from ..evaluation.checkpoint import Checkpoint
from .canvas import (
    CELL,
    DESCENT,
    LINE,
    MARGIN,
    MODEL_GAP,
    PAIR_GAP,
    ROW_GAP,
    SMALL_LINE,
    SMALL_TEXT,
    Page,
    check_format,
    grey,
    overlay,
)
from .views import colors_of, load_items, view_classes

__all__ = ['classes_figure']

CAPTION = (
    'Attention, each map from 0 to its own maximum. Red frame: ground truth.',
    'Classes in the order of their scores, with {score} probabilities; \u2717: the highest one is not in the image.',
    'Overlap: histogram intersection with the nearest map of the ground truth, 0 to 1; #: rank of its score.',
)


def classes_figure(
        checkpoints: Sequence[Checkpoint],
        indices: Sequence[int],
        path: Path,
        topk: int = 5,
        method: str | Sequence[str] = 'ach',
        layer: str = 'last',
) -> Path:
    """One row per image: the image, then for each checkpoint and method the maps of the classes that it scores highest.

    Args:
        checkpoints: Models side by side, on the same data set.
        indices: Positions of the images in the data set.
        path: File to write: .png, .pdf, .svg, .jpg or .webp.
        topk: Number of classes of each image; a ground truth below them takes the last place.
        method: Of `attention.METHODS`, one or several.
        layer: 'inner' or 'last'.
    """
    check_format(path)
    first = checkpoints[0]
    methods = [method] if isinstance(method, str) else list(method)
    columns = [(checkpoint, name) for checkpoint in checkpoints for name in methods]
    images, targets = load_items(first, indices)
    colors = colors_of(first, images)
    topk = min(topk, *(c.num_classes for c in checkpoints)) if len(checkpoints) > 1 else min(topk, first.num_classes)
    cell_height = max(1, round(CELL * colors.shape[1] / colors.shape[2]))
    model_width = topk * CELL + (topk - 1) * PAIR_GAP
    row_height = 2 * LINE + cell_height + SMALL_LINE + ROW_GAP
    header = MARGIN + LINE - DESCENT
    tops = [header + 2 * ROW_GAP + 2 * LINE + row * row_height for row in range(len(indices))]
    bottom = tops[-1] + cell_height + SMALL_LINE + ROW_GAP
    width = 2 * MARGIN + CELL + len(columns) * (MODEL_GAP + model_width)
    page = Page(width, bottom + len(CAPTION) * SMALL_LINE + MARGIN)
    for row, (top, truth) in enumerate(zip(tops, first.labels.present(targets), strict=True)):
        center = MARGIN + CELL / 2
        page.text(image_name(first.dataset, indices[row]), center, top - LINE - DESCENT, CELL, style='italic')
        page.text(', '.join(map(first.class_name, truth)), center, top - DESCENT, CELL)
        page.image(colors[row], MARGIN, top, CELL, cell_height)
    for column, (checkpoint, name) in enumerate(columns):
        model_left = MARGIN + CELL + MODEL_GAP + column * (model_width + MODEL_GAP)
        title = checkpoint.label if len(methods) == 1 else f'{checkpoint.label}, {name}'
        page.text(title, model_left + model_width / 2, header, model_width, weight='bold')
        page.axes.plot([model_left, model_left + model_width], [MARGIN + LINE] * 2, color='black', linewidth=0.8)
        greys = grey(colors_of(checkpoint, load_items(checkpoint, indices)[0]))
        for row, views in enumerate(view_classes(checkpoint, indices, topk, name, layer)):
            for k, view in enumerate(views):
                left, top = model_left + k * (CELL + PAIR_GAP), tops[row]
                center, weight = left + CELL / 2, 'bold' if view.rank == 1 else 'normal'
                mark = '\u2717 ' if view.rank == 1 and not view.truth else ''
                page.text(f'{mark}{view.name}', center, top - LINE - DESCENT, CELL, weight=weight)
                page.text(f'{view.probability:.1%}', center, top - DESCENT, CELL, weight=weight)
                page.image(overlay(greys[row], view.heat), left, top, CELL, cell_height)
                if view.truth:
                    page.frame(left, top, CELL, cell_height)
                notes = [f'#{view.rank}'] if view.rank > topk else []
                if not view.heat.any():
                    notes.append('map is zero')
                elif view.overlap is not None and view.overlap == view.overlap:
                    notes.append(f'overlap {view.overlap:.2f}')
                page.text(', '.join(notes), center, top + cell_height + SMALL_LINE - 2, CELL, size=SMALL_TEXT)
    page.caption([line.format(score=first.labels.score) for line in CAPTION], bottom, width)
    return page.save(path)
