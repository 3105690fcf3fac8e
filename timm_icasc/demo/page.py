"""The page: upload an image, pick classes, method and layer; overlays, scores and overlaps by one or two models."""
import argparse
import importlib
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from types import ModuleType
from typing import Any

from PIL import Image

from ..attention import METHODS
from ..errors import ICASCError, VersionError
from ..evaluation.explainers import load_explainers
from ..evaluation.options import add_explained_model_arguments
from ..explanation import Explainer, Explanation
from ..explanation.pictures import ZERO_MAP
from ..foreign_text import markdown_text, printable
from ..runs.tables import markdown

__all__ = ['build_page', 'explain_upload', 'launch_page', 'load_gradio', 'serve']

SIDE = 640  # pixels of an overlay's longer side

HIGHEST = 5  # classes in the list of scores

TITLE = 'What the model sees'

HINT = (
    'Each map goes from 0 (grey) over blue and green to yellow, its own maximum. Dark: cut off before the model saw '
    'the image. Overlap: the share of two maps that lies on each other, 0 to 1.')


def load_gradio() -> ModuleType:
    """Gradio.

    Raises:
        VersionError: It is not installed.
    """
    try:
        return importlib.import_module('gradio')
    except ImportError as e:
        raise VersionError("the page needs Gradio: pip install 'timm_icasc[demo]'.") from e


def _told_apart(names: Sequence[str]) -> list[str]:
    """What the page calls the classes: by name where no other has it, whatever its case, else with the number."""
    shown = [printable(name) for name in names]
    count = Counter(name.strip().casefold() for name in shown)
    return [
        name if count[name.strip().casefold()] == 1 else f'{name} ({c})'
        for c, name in enumerate(shown)]


def _overlaps(found: Explanation, names: Sequence[str]) -> str:
    """A table of the overlap of every two classes, by the names of all."""
    pairs = combinations(range(len(found)), 2)
    return markdown([
        {'class': names[found.classes[a]], 'and': names[found.classes[b]], 'overlap': round(found.overlap(a, b), 2)}
        for a, b in pairs])


def explain_upload(
        explainers: Sequence[Explainer],
        image: Image.Image,
        classes: Sequence[str | int],
        topk: int,
        method: str,
        layer: str,
) -> list[tuple[list[tuple[Image.Image, str]], dict[str, float], str]]:
    """What the page shows of an image: for each model overlays with captions, the highest scores, overlaps in Markdown.

    Args:
        explainers: One or two models.
        image: As uploaded.
        classes: Names or numbers; empty for the `topk` highest ones of each model.
        topk: Number of these.
        method, layer: As of `timm_icasc.explain`.

    Raises:
        ICASCError: No image; no such class of a model, or no such layer.
    """
    if image is None:
        raise ICASCError('Upload an image first.')
    shown = []
    for explainer in explainers:
        found, = explainer.explain_items(
            [explainer.prepare(image)], list(classes) or None, int(topk), method, layer)
        names = _told_apart(explainer.class_names)
        pictures = [
            (found.overlay(k, SIDE), f'{names[c]} {score:.1%}' + f', {ZERO_MAP}' * found.is_zero(k))
            for k, (c, score) in enumerate(zip(found.classes, found.scores, strict=True))]
        scores = {names[c]: found.probabilities[c].item() for c in found.ranking[:HIGHEST]}
        shown.append((pictures, scores, _overlaps(found, names)))
    return shown


def _choices(explainers: Sequence[Explainer]) -> list[tuple[str, str | int]]:
    """Classes to choose from, by name where no other has it, else by number, where that is the same class of each.

    A number is no text: that may be the name of another class, which would be taken.
    """
    names = explainers[0].class_names
    alike = all(explainer.class_names == names for explainer in explainers)
    return [
        (shown, name if shown == printable(name) else c)
        for c, (shown, name) in enumerate(zip(_told_apart(names), names, strict=True))
        if alike or shown == printable(name)]


def build_page(explainers: Sequence[Explainer]) -> Any:
    """The page as `gradio.Blocks`.

    Args:
        explainers: One or two models, each with its `label`.

    Raises:
        VersionError: Gradio is not installed.
    """
    gradio = load_gradio()
    for explainer in explainers:
        explainer.find_classes(None, explainer.num_classes())
    most = min(HIGHEST, *(len(explainer.class_names) for explainer in explainers))
    names = [printable(explainer.label) for explainer in explainers]

    def show(image, classes, topk, method, layer):
        try:
            found = explain_upload(explainers, image, classes or (), topk, method, layer)
        except ICASCError as e:
            raise gradio.Error(e.line, print_exception=False) from e
        return [value for one in found for value in one]

    with gradio.Blocks(title=f"{TITLE}: {' and '.join(names)}", analytics_enabled=False) as page:
        gradio.Markdown(f"## {TITLE}: {' and '.join(map(markdown_text, names))}\n{HINT}")
        with gradio.Row():
            image = gradio.Image(type='pil', label='Image', height=320, sources=['upload', 'clipboard'])
            with gradio.Column():
                classes = gradio.Dropdown(
                    _choices(explainers), multiselect=True, label='Classes (none: the highest-scoring ones)')
                topk = gradio.Slider(1, most, value=min(3, most), step=1, label='How many of these')
                method = gradio.Dropdown(
                    [(row.title, name) for name, row in METHODS.items()], value='grad_cam', label='Kind of map')
                layer = gradio.Dropdown(
                    ['last', 'inner'], value='last', allow_custom_value=True, label='Layer (or the path of a module)')
                button = gradio.Button('Explain', variant='primary')
        outputs = []
        with gradio.Row():
            for name in names:
                with gradio.Column():
                    outputs += [
                        gradio.Gallery(label=f'Maps: {name}', columns=3, height='auto', object_fit='contain'),
                        gradio.Label(label=f'Scores: {name}', num_top_classes=HIGHEST), gradio.Markdown()]
        inputs = [image, classes, topk, method, layer]
        button.click(show, inputs, outputs, api_name='explain')
        image.upload(show, inputs, outputs, api_name=False)
    return page


def launch_page(
        explainers: Sequence[Explainer],
        port: int | None = None,
        open_browser: bool = False,
        **kwargs: Any,
) -> Any:
    """Serve the page on this machine alone, with nothing fetched from elsewhere; returns what Gradio's `launch` does.

    Args:
        explainers: As for `build_page`.
        port: Of localhost; None for the first free one from 7860.
        open_browser: Whether to open it.
        **kwargs: Passed on to `gradio.Blocks.launch`.
    """
    gradio = load_gradio()
    theme = gradio.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    return build_page(explainers).launch(**{
        'server_name': '127.0.0.1', 'server_port': port, 'inbrowser': open_browser, 'share': False, 'theme': theme,
        **kwargs})


def serve(*models: str, **kwargs: Any) -> Any:
    """`launch_page` of models by name, with the options of `timm-icasc demo` as they are by default.

    Args:
        *models: One or two, each as for `load_explainer`.
        **kwargs: As of `launch_page`.
    """
    parser = argparse.ArgumentParser()
    add_explained_model_arguments(parser, 'models', nargs='+')
    return launch_page(load_explainers(models, parser.parse_args(list(models))), **kwargs)
