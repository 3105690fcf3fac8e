"""Draw what trained checkpoints attend to, two or more side by side.

    timm-icasc figure classes RUN_A RUN_B      the highest-scoring classes' maps, ground truth in red (Figs. 1, 7, 10)
    timm-icasc figure layers RUN_A RUN_B       inner against last layer, by several attention methods (Figs. 2, 4, 5)
    timm-icasc figure ks RUN_A RUN_B           KS chart: probability of the true and the most confusing class (Fig. 9)
    timm-icasc figure html RUN_A RUN_B         one self-contained page to browse many images

A checkpoint is the folder of a training run (of --icasc-compare: both), a checkpoint file, a name on the hub or
one of timm's with its weights.
--choose takes the images that a model gets wrong, or those that the last checkpoint gets right and the first wrong.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..attention import METHODS
from ..data import evenly_spaced
from ..errors import ICASCError
from ..evaluation.checkpoint import Checkpoint
from ..evaluation.measures import ks_of
from ..evaluation.options import add_checkpoint_arguments
from ..evaluation.scores import score_images
from ..evaluation.side_by_side import check_same_data, load_checkpoints, warn_of_other_layers
from ..explanation.canvas import check_format
from ..figures.classes import classes_figure
from ..figures.html import browsing_page
from ..figures.inner_last import layers_figure
from ..figures.ks import ks_figure
from ..foreign_text import printable
from ..runs.find import check_file_to_write
from ..training.option_names import check_least

# Kind -> default file and number of images.
KINDS = {
    'classes': ('classes.png', 6), 'layers': ('layers.png', 4), 'ks': ('ks.png', None), 'html': ('images.html', 60)}

# Kind -> options that have no part in it.
UNUSED = {'ks': ('topk', 'attention', 'layer'), 'layers': ('topk', 'layer')}

CHOICES = ('even', 'wrong', 'corrected')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('kind', choices=list(KINDS), help='what to draw')
    add_checkpoint_arguments(parser, nargs='+')
    group = parser.add_argument_group('Figure')
    group.add_argument(
        '--output', metavar='FILE',
        help='.png, .pdf, .svg, .jpg or .webp; .html for the page (default: KIND.png, images.html)')
    group.add_argument(
        '--images', type=int, metavar='N', help='number of images (default: classes 6, layers 4, ks all, html 60)')
    group.add_argument('--indices', type=int, nargs='+', metavar='I', help='positions of the images in the data set')
    group.add_argument(
        '--choose', default='even', choices=CHOICES,
        help="even: at even distances; wrong: those whose highest-scoring class is wrong for the first "
             'checkpoint; corrected: wrong for the first, right for the last (default: %(default)s)')
    group.add_argument(
        '--topk', type=int, metavar='K', help='classes per image, in the kinds classes (default: 5) and html (3)')
    group.add_argument(
        '--attention', nargs='+', choices=list(METHODS), metavar='NAME',
        help=f"attention maps: {', '.join(METHODS)}; the kinds classes and layers take several (default: grad_cam; "
             f"of layers {', '.join(name for name, method in METHODS.items() if method.in_paper)})")
    group.add_argument(
        '--layer', choices=('inner', 'last'), help='layer, in the kinds classes and html (default: last)')
    group.add_argument(
        '--labels', nargs='+', metavar='TEXT', help='names of the checkpoints in the figure, no two alike')


def _check_parts(args: argparse.Namespace) -> None:
    """Raise ICASCError where an option would be without effect."""
    for name in UNUSED.get(args.kind, ()):
        if getattr(args, name) is not None:
            raise ICASCError(f'--{name} has no part in {args.kind}: leave it out.')
    if args.indices and (args.images is not None or args.choose != 'even'):
        other = '--choose' if args.images is None else '--images'
        raise ICASCError(f'--indices names the images: leave {other} out.')
    if len(set(map(printable, args.labels or ()))) < len(args.labels or ()):
        raise ICASCError(f"--labels are to tell checkpoints apart: name each another, got {', '.join(args.labels)}.")


def _check(args: argparse.Namespace, path: Path) -> None:
    check_least(args, images=1, topk=1, batch_size=1)
    _check_parts(args)
    if args.kind == 'html' and len(args.attention or ()) > 1:
        raise ICASCError('--attention: the page has one method; classes and layers draw several.')
    if args.kind == 'html' and path.suffix.lower() != '.html':
        raise ICASCError(f"--output: the page is an .html file, got '{path}'.")
    if args.kind != 'html':
        check_format(path, 'output')
    check_file_to_write(path, 'output')  # before the work, not after it


def _correct(checkpoint: Checkpoint, indices: list[int]) -> np.ndarray:
    """Whether the highest-scoring class is in the image, for each of `indices`."""
    records = score_images(checkpoint, indices)
    return records.labels.contains(records.targets, records.scores.argmax(1))


def _choose(args: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> list[int]:
    length = len(checkpoints[0].dataset)
    if args.indices:
        if not 0 <= min(args.indices) <= max(args.indices) < length:
            raise ICASCError(f'--indices lie in 0 to {length - 1}, got {args.indices}.')
        return args.indices
    count = args.images or KINDS[args.kind][1] or length
    if args.choose == 'even':
        return evenly_spaced(checkpoints[0].dataset, count).indices
    everything = list(range(length))
    chosen = ~_correct(checkpoints[0], everything)
    if args.choose == 'corrected':
        if len(checkpoints) < 2:
            raise ICASCError('--choose corrected compares the first with the last checkpoint: name two.')
        chosen &= _correct(checkpoints[-1], everything)
    found = np.flatnonzero(chosen)
    if not len(found):
        raise ICASCError(f'--choose {args.choose}: there is no such image among the {length}.')
    return [int(i) for i in evenly_spaced(found, count)]


def _draw(args: argparse.Namespace, checkpoints: Sequence[Checkpoint], path: Path) -> None:
    for checkpoint in checkpoints:
        if checkpoint.layers is None and args.kind != 'ks':
            raise ICASCError(f"no attention maps of '{checkpoint.label}': name its layers, --layers INNER LAST.")
    check_same_data(checkpoints)
    if args.kind != 'ks':
        warn_of_other_layers(checkpoints)
    indices, methods = _choose(args, checkpoints), args.attention or ['grad_cam']
    if args.kind == 'ks':
        charts = {}
        for checkpoint in checkpoints:
            records = score_images(checkpoint, indices)
            chart = charts[checkpoint.label] = ks_of(records, np.arange(len(records.indices)))
            print(f'{checkpoint.label}: KS margin {chart.margin:.4f} at probability {chart.probability:.4f}')
        ks_figure(charts, path)
        if len(indices) == len(checkpoints[0].dataset):
            return  # not a line of thousands of numbers
    elif args.kind == 'layers':
        layers_figure(checkpoints, indices, path, args.attention)
    elif args.kind == 'classes':
        classes_figure(checkpoints, indices, path, args.topk or 5, methods, args.layer or 'last')
    else:
        browsing_page(checkpoints, indices, path, args.topk or 3, methods[0], args.layer or 'last')
    print(f"images: {' '.join(map(str, indices))}")


def run(args: argparse.Namespace) -> int:
    path = Path(args.output or KINDS[args.kind][0])
    _check(args, path)
    checkpoints = load_checkpoints(args.checkpoints, args)
    if args.labels:
        if len(args.labels) != len(checkpoints):
            raise ICASCError(f'--labels must be {len(checkpoints)}, one for each checkpoint, got {len(args.labels)}.')
        for checkpoint, label in zip(checkpoints, args.labels, strict=True):
            checkpoint.label = printable(label)
    _draw(args, checkpoints, path)
    print(f'{printable(path)}: {path.stat().st_size / 1024:.0f} KiB')
    return 0
