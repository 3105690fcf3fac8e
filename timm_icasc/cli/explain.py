"""Show what a model sees in your images, which need no labels.

    timm-icasc explain photos --model tf_efficientnet_lite0            any timm name; its 3 highest classes
    timm-icasc explain a.jpg b/ --model output/RUN --compare RUN_2 --classes cat dog --raw full

DIR/predictions.csv and .json tell file, class and score; DIR/overlays/ has a picture of each image with its maps,
DIR/maps/ the maps themselves (--raw), DIR/index.html is a page to browse. An earlier result in DIR is replaced.
One forward pass of a model gives an image's scores and maps. Images are turned as their EXIF orientation says. A file
that cannot be read is named and skipped. The exit code is 0, or 1 where files were skipped.
"""
import argparse
import sys
from pathlib import Path

from ..attention import METHODS
from ..data.image_endings import ENDINGS, check_endings
from ..data.image_files import find_images
from ..evaluation.explainers import load_explainers
from ..evaluation.options import add_explained_model_arguments
from ..figures.explained_files import RAW, Outputs, explain_files
from ..foreign_text import printable
from ..runs.find import refuse_folder_of_run
from ..training.device import usable_cores
from ..training.option_names import check_least

FEW = 64  # images that are not worth the start of processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE_OR_FOLDER', help='files, and folders with all below them')
    parser.add_argument(
        '--image-endings', nargs='+', default=ENDINGS, metavar='END',
        help='what images of folders end in; other files are counted and left out (default: what Pillow reads)')
    parser.add_argument('--compare', metavar='MODEL', help='a second model, shown beside the first')
    group = parser.add_argument_group('What to show')
    group.add_argument(
        '--classes', nargs='+', metavar='CLASS', help='names or numbers of classes (default: the highest-scoring ones)')
    group.add_argument('--topk', type=int, default=3, metavar='K', help='how many of these (default: %(default)s)')
    group.add_argument(
        '--method', default='grad_cam', choices=list(METHODS), metavar='NAME',
        help=f"kind of map: {', '.join(METHODS)} (default: %(default)s)")
    group.add_argument(
        '--layer', default='last', metavar='LAYER', help='inner, last, or the path of a module (default: %(default)s)')
    group = parser.add_argument_group('What to write')
    group.add_argument('--output', type=Path, default=Path('explained'), metavar='DIR', help='default: %(default)s')
    group.add_argument(
        '--overlays', default='sheet', choices=('sheet', 'each', 'both', 'none'),
        help='sheet: an image beside the overlays of its classes; each: every overlay by itself (default: %(default)s)')
    group.add_argument(
        '--side', type=int, default=1024, metavar='PIXELS',
        help='longer side of an overlay at most; 0: as the image (default: %(default)s)')
    group.add_argument(
        '--raw', nargs='?', const='grid', choices=RAW, metavar='SIZE',
        help="also the maps as .npy: grid, as the layer has them; full, at the image's size (default: none; grid)")
    group.add_argument(
        '--page', type=int, default=500, metavar='N', help='images on the page; 0: no page (default: %(default)s)')
    add_explained_model_arguments(parser, '--model', required=True)


def run(args: argparse.Namespace) -> int:
    check_least(args, topk=1, side=0, page=0, batch_size=1, workers=0, img_size=1)
    refuse_folder_of_run(args.output)
    files = find_images(args.images, args.output, check_endings(args.image_endings))
    sources = [source for source in (args.model, args.compare) if source is not None]
    explainers = load_explainers(sources, args)
    workers = args.workers or 0
    if args.workers is None and len(files) > FEW:
        workers = min(4, usable_cores())
    outputs = Outputs(
        args.output, sheets=args.overlays in ('sheet', 'both'), singles=args.overlays in ('each', 'both'), raw=args.raw,
        page=args.page)
    summary = explain_files(
        explainers, files, outputs, classes=args.classes, topk=args.topk, method=args.method,
        layer=args.layer, batch_size=args.batch_size or 16, workers=workers, side=args.side or None,
        max_image_pixels=args.max_image_pixels)
    for message in summary.broken:
        print(f'skipped: {message}', file=sys.stderr)
    skipped = f', {len(summary.broken)} skipped' if summary.broken else ''
    print(f"{summary.explained} images explained{skipped}: {', '.join(map(printable, summary.files))}")
    return 1 if summary.broken else 0
