"""Inner against last layer, by several attention methods (Figs. 2, 4 and 5)."""
from collections.abc import Sequence
from pathlib import Path

from ..attention import METHODS
from ..data import image_name
from ..evaluation.checkpoint import Checkpoint
from .canvas import (
    CELL,
    DESCENT,
    LAYER_GAP,
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
        sigma: float = 0.55,
) -> Path:
    """One row per image: the image, then for each checkpoint and method the inner and the last layer's map.

    Args:
        checkpoints: Models side by side, on the same data set.
        indices: Positions of the images in the data set.
        path: File to write: .png, .pdf, .svg, .jpg or .webp.
        methods: Of `attention.METHODS`; all of them when None, the paper's own last.
        sigma: Threshold of the mask (Eq. 4).
    """
    check_format(path)
    methods = methods or sorted(METHODS, key=lambda name: name == 'ach')
    first = checkpoints[0]
    colors = colors_of(first, load_items(first, indices)[0])
    cell_height = max(1, round(CELL * colors.shape[1] / colors.shape[2]))
    pair_width = 2 * CELL + PAIR_GAP
    model_width = len(methods) * pair_width + (len(methods) - 1) * LAYER_GAP
    row_height = LINE + cell_height + SMALL_LINE + ROW_GAP
    header = [MARGIN + LINE - DESCENT, MARGIN + 2 * LINE, MARGIN + 3 * LINE]
    tops = [header[2] + 2 * ROW_GAP + LINE + row * row_height for row in range(len(indices))]
    bottom = tops[-1] + cell_height + SMALL_LINE + ROW_GAP
    width = 2 * MARGIN + CELL + len(checkpoints) * (MODEL_GAP + model_width)
    page = Page(width, bottom + len(CAPTION) * SMALL_LINE + MARGIN)
    for column, checkpoint in enumerate(checkpoints):
        model_left = MARGIN + CELL + MODEL_GAP + column * (model_width + MODEL_GAP)
        page.text(checkpoint.label, model_left + model_width / 2, header[0], model_width, weight='bold')
        page.axes.plot([model_left, model_left + model_width], [MARGIN + LINE] * 2, color='black', linewidth=0.8)
        greys = grey(colors_of(checkpoint, load_items(checkpoint, indices)[0]))
        for m, method in enumerate(methods):
            pair_left = model_left + m * (pair_width + LAYER_GAP)
            page.text(METHODS[method].title, pair_left + pair_width / 2, header[1], pair_width)
            for k, place in enumerate(('inner', 'last')):
                page.text(place, pair_left + k * (CELL + PAIR_GAP) + CELL / 2, header[2], CELL, style='italic')
            classes, views = view_layers(checkpoint, indices, method, sigma)
            for row, (index, view) in enumerate(zip(classes, views, strict=True)):
                top = tops[row]
                if not column and not m:
                    name = image_name(first.dataset, indices[row])
                    page.text(name, MARGIN + CELL / 2, top - DESCENT, CELL, style='italic')
                    page.image(colors[row], MARGIN, top, CELL, cell_height)
                if not m:
                    page.text(f'{checkpoint.class_name(index)}, {view.probability:.1%}', model_left, top - DESCENT,
                              model_width, align='left')
                for k, heat in enumerate((view.inner, view.last)):
                    page.image(overlay(greys[row], heat), pair_left + k * (CELL + PAIR_GAP), top, CELL, cell_height)
                missing = view.overlap != view.overlap
                note = 'a map is zero' if missing else f'in mask {view.inside:.2f}, overlap {view.overlap:.2f}'
                page.text(note, pair_left + pair_width / 2, top + cell_height + SMALL_LINE - 2, pair_width,
                          size=SMALL_TEXT)
    page.caption([line.format(score=first.labels.score) for line in CAPTION], bottom, width)
    return page.save(path)
