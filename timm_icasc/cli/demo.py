"""A page in your browser: drop an image, see what one model or two see in it.

    timm-icasc demo output/RUN                     a finished run
    timm-icasc demo output/RUN output/RUN_2        two of them, side by side

Pick classes, the kind of map and the layer; it shows the overlays, the scores, and how far the maps of every two
classes overlap. The page is served on this machine alone, and what is uploaded stays here. It needs Gradio:
pip install 'timm_icasc[demo]'. Ctrl-C ends it.
"""
import argparse

from ..demo.page import launch_page, load_gradio
from ..errors import ICASCError
from ..evaluation.explainers import load_explainers
from ..evaluation.options import add_explained_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_explained_model_arguments(parser, 'models', nargs='+', metavar='MODEL')
    group = parser.add_argument_group('Page')
    group.add_argument('--port', type=int, metavar='N', help='of localhost (default: the first free one from 7860)')
    group.add_argument('--open', action='store_true', help='open the page in the browser')


def run(args: argparse.Namespace) -> int:
    load_gradio()  # before the models are loaded
    if len(args.models) > 2:
        raise ICASCError(f'name one model, or two, got {len(args.models)}.')
    launch_page(load_explainers(args.models, args), args.port, args.open)
    return 0
