"""One HTML file to browse many images: every picture is inside it, nothing is loaded from elsewhere."""
import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import image_name
from ..evaluation.checkpoint import Checkpoint
from ..explanation.canvas import FRAME
from ..explanation.overlay import blend, grey
from ..explanation.pictures import ZERO_MAP, Explanation, shrink
from ..foreign_text import printable
from ..runs.files import replacing
from .views import ClassView, colors_of, load_items, view_classes

__all__ = ['browsing_page', 'explained_section', 'open_page']

THUMBNAIL = 128  # pixels of the longer side

QUALITY = 70

BATCH_SIZE = 16

STYLE = '''
body { font: 14px/1.4 system-ui, sans-serif; margin: 1rem; color: #111; background: #fff; }
header { position: sticky; top: 0; background: #fff; padding: .4rem 0; border-bottom: 1px solid #ccc; }
header label { margin-right: 1rem; }
section { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; padding: .7rem 0; border-bottom: 1px solid #eee; }
h2 { font-size: 1em; margin: 0 0 .2rem; font-weight: 600; }
figure { display: inline-block; margin: 0 .35rem 0 0; width: 134px; vertical-align: top; font-size: 12px; }
figure img { width: 128px; display: block; border: 3px solid transparent; }
img.scale { vertical-align: middle; }
figure.truth img { border-color: FRAME; }
figure.first figcaption { font-weight: 600; }
figcaption { overflow-wrap: anywhere; }
'''.replace('FRAME', FRAME)

SCRIPT = '''
const rows = [...document.querySelectorAll('section')], pick = id => document.getElementById(id);
const names = new Set(rows.flatMap(row => JSON.parse(row.dataset.classes)));
for (const name of [...names].sort()) pick('class').add(new Option(name, name));
function show() {
  const wanted = pick('class').value, kind = pick('kind').value, text = pick('text').value.toLowerCase();
  let count = 0;
  for (const row of rows) {
    const correct = JSON.parse(row.dataset.correct);
    const fits = (!wanted || JSON.parse(row.dataset.classes).includes(wanted))
      && (kind === 'all' || kind === 'wrong' && correct.includes(false)
          || kind === 'differ' && correct.includes(false) && correct.includes(true))
      && row.dataset.name.toLowerCase().includes(text);
    row.hidden = !fits;
    row.style.display = fits ? '' : 'none';
    count += fits;
  }
  pick('count').textContent = `${count} of ${rows.length} images`;
}
for (const id of ['class', 'kind', 'text']) pick(id).addEventListener('input', show);
show();
'''


def _picture(pixels: np.ndarray) -> str:
    """An image `[h, w, 3]` in [0, 1] as a data address."""
    image = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, 'WEBP', quality=QUALITY)
    return f'data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _text(text: str) -> str:
    """Text as it stands between tags, and in an attribute."""
    return html.escape(printable(text), quote=True)


def _figure(picture: str, caption: Sequence[str], classes: Sequence[str] = ()) -> str:
    lines = '<br>'.join(_text(line) for line in caption)
    return (
        f'<figure class="{" ".join(classes)}"><img alt="{_text(", ".join(caption))}" '
        f'loading="lazy" src="{picture}"><figcaption>{lines}</figcaption></figure>')


def _class_figure(view: ClassView, gray: np.ndarray) -> str:
    caption = [view.title, f'{view.probability:.1%}, #{view.rank}', *filter(None, [view.note])]
    classes = ['truth'] * view.truth + ['first'] * (view.rank == 1)
    return _figure(_picture(blend(gray, view.heat)), caption, classes)


def _section(
        checkpoints: Sequence[Checkpoint],
        name: str,
        names: Sequence[str],
        image: np.ndarray,
        greys: Sequence[np.ndarray],
        views: Sequence[Sequence[ClassView]],
) -> str:
    """An image with the maps of its classes by each model; `names` are the classes that are in it."""
    parts = [f'<div><h2>{_text(", ".join(names))}</h2>{_figure(_picture(image), [name])}</div>']
    for checkpoint, gray, own in zip(checkpoints, greys, views, strict=True):
        figures = ''.join(_class_figure(view, gray) for view in own)
        parts.append(f'<div><h2>{_text(checkpoint.label)}</h2>{figures}</div>')
    # The class of highest score is shown wherever it is in the image.
    correct = [own[0].rank == 1 and own[0].truth for own in views]
    return _in_section(name, names, correct, parts)


def _in_section(
        name: str,
        names: Sequence[str],
        correct: Sequence[bool],
        parts: Sequence[str],
) -> str:
    return (
        f'<section data-name="{_text(name)}" '
        f'data-classes="{_text(json.dumps(list(map(printable, names))))}" '
        f'data-correct="{_text(json.dumps(list(correct)))}">{"".join(parts)}</section>')


def explained_section(
        name: str,
        explanations: Sequence[Explanation],
        labels: Sequence[str],
        class_names: Sequence[Sequence[str]],
) -> str:
    """An image without a label, with the maps of its classes by each model.

    It is filed under the class of highest score, whether that one is shown or not.

    Args:
        name: Of its file.
        explanations: One for each model.
        labels: Names of the models.
        class_names: All names of each model's classes.
    """
    picture = np.asarray(shrink(explanations[0].image, THUMBNAIL)) / 255
    parts, highest = [f'<div>{_figure(_picture(picture), [name])}</div>'], []
    for label, one in zip(labels, explanations, strict=True):
        order = one.ranking
        highest.append(order[0])
        figures = []
        for k, (index, title, score) in enumerate(zip(
                one.classes, one.class_names, one.scores, strict=True)):
            caption = [title, f'{score:.1%}, #{order.index(index) + 1}']
            caption += [ZERO_MAP] * one.is_zero(k)
            shown = np.asarray(one.overlay(k, THUMBNAIL)) / 255
            figures.append(_figure(_picture(shown), caption, ['first'] * (index == order[0])))
        parts.append(f'<div><h2>{_text(label)}</h2>{"".join(figures)}</div>')
    names = [own[index] for own, index in zip(class_names, highest, strict=True)]
    # A number means the same class in models with the same classes alone; of those, two may share a name.
    alike = all(list(own) == list(class_names[0]) for own in class_names)
    seen = highest if alike else names
    return _in_section(name, list(dict.fromkeys(names)), [one == seen[0] for one in seen], parts)


@contextmanager
def open_page(
        path: Path,
        labels: Sequence[str],
        about: str,
        labelled: bool,
) -> Iterator[Callable[[str], None]]:
    """A page that is written section by section; yields what adds one.

    Args:
        path: File to write.
        labels: Names of the models.
        about: What stands above the images, with one %s for the scale.
        labelled: Whether the images have labels, by which models are right or wrong.
    """
    colors = blend(np.full((1, THUMBNAIL), 0.5), np.linspace(0, 1, THUMBNAIL)[None])
    scale = f'<img class="scale" alt="grey, blue, green, yellow" src="{_picture(np.repeat(colors, 12, axis=0))}">'
    kinds = {'all': 'all'}
    if labelled:
        kinds |= {'wrong': 'wrong for a model', 'differ': 'right for one model, wrong for another'}
    elif len(labels) > 1:
        kinds['differ'] = 'models see different classes'
    options = ''.join(f'<option value="{kind}">{text}</option>' for kind, text in kinds.items())
    title = _text(' and '.join(labels))
    with replacing(path) as partial, open(partial, 'w', encoding='utf-8') as file:
        file.write(f'''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Attention of {title}</title><style>{STYLE}</style></head><body>
<header><label>Class <select id="class"><option value="">all</option></select></label>
<label>Images <select id="kind">{options}</select></label>
<label>Name <input id="text"></label><span id="count"></span></header>
<p>{title}: {_text(about).replace('%s', scale)}</p>
''')
        yield file.write
        file.write(f'<script>{SCRIPT}</script></body></html>\n')


def browsing_page(
        checkpoints: Sequence[Checkpoint],
        indices: Sequence[int],
        path: Path,
        topk: int = 3,
        method: str = 'grad_cam',
        layer: str = 'last',
) -> Path:
    """Write the page: each image with the maps of its highest-scoring classes, to filter by class, error and name.

    Args:
        checkpoints: Models side by side, on the same data set.
        indices: Positions of the images in the data set.
        path: File to write, .html.
        topk: Classes of each image; a ground truth below them takes the last place.
        method: Of `attention.METHODS`.
        layer: 'inner' or 'last'.
    """
    if path.suffix.lower() not in ('.html', '.htm'):
        raise ValueError(f"path must end in .html, got '{path}'.")
    first = checkpoints[0]
    about = (
        f'attention ({method}, {layer} layer) of the {topk} highest-scoring classes, each map from 0 %s to its own '
        f'maximum. Red frame: ground truth. \u2717: the highest-scoring class is not in the image. #: rank of its '
        f'score. Overlap: histogram intersection with the nearest map of the ground truth, 0 to 1.')
    with open_page(path, [c.label for c in checkpoints], about, labelled=True) as add:
        for start in range(0, len(indices), BATCH_SIZE):
            batch = list(indices[start:start + BATCH_SIZE])
            images, targets = load_items(first, batch)
            colors = colors_of(first, images)
            greys = [grey(colors_of(c, load_items(c, batch)[0])) for c in checkpoints]
            views = [view_classes(c, batch, topk, method, layer) for c in checkpoints]
            for row, (index, truth) in enumerate(
                zip(batch, first.labels.present(targets), strict=True)):
                name, classes = image_name(first.dataset, index), list(map(first.class_name, truth))
                add(_section(
                    checkpoints, name, classes, colors[row], [gray[row] for gray in greys],
                    [v[row] for v in views]))
    return path
