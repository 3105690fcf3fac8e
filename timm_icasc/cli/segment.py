"""Attention maps as weak cues for semantic segmentation (Table 2): cues from a classifier, DeepLabV3 on them, mean IoU.

    timm-icasc segment RUN --data-dir VOCdevkit --train-split trainaug --backbone-weights resnet50.pth \
        --attention ach --output table2/ach

RUN is a classifier of the 20 VOC classes, in their order (the folder of a training run, or a checkpoint with --model).
From the image labels of the training split and the classifier's attention come cues; torchvision's DeepLabV3 learns
from them with the losses of "Seed, Expand and Constrain" (Kolesnikov and Lampert, 2016); its mean IoU is measured on
the masks of the validation split. Run it for grad_cam, grad_cam_plus_plus and ach, and `timm-icasc paper` sets them
side by side.

--cues-only stops after the cues and measures them against the training masks, where there are some: minutes, no GPU.
Interrupted, it goes on from the checkpoint in --output. The CRF behind the boundary loss is exact, on the score grid;
none is run on the predictions.
"""
import argparse
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from tqdm import tqdm

from ..attention import METHODS
from ..errors import DataError, ICASCError
from ..evaluation.checkpoint import Checkpoint, load_checkpoint
from ..evaluation.options import add_model_arguments
from ..evaluation.side_by_side import check_architecture
from ..foreign_files import path_inside
from ..foreign_text import printable
from ..hub.model_folder import file_sha256, tensors_sha256
from ..labels import check_same_classes
from ..paper.segmentation.cues import BACKGROUND, FOREGROUND, make_cues
from ..paper.segmentation.deeplab import create_network, score_grid
from ..paper.segmentation.mean_iou import count_pixels, evaluate, intersection_over_union
from ..paper.segmentation.train import SegmentationConfig, read_checkpoint, train
from ..paper.segmentation.voc_masks import VOCSegmentation
from ..runs.files import replacing_folder, together
from ..runs.find import refuse_folder_of_run
from ..runs.folder import CHECKPOINT, SEGMENTATION
from ..runs.provenance import provenance
from ..runs.tables import text, write_csv, write_json
from ..training.option_names import check_least

DEFAULTS = SegmentationConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, nargs=1)
    group = parser.add_argument_group('Segmentation')
    group.add_argument('--data-dir', required=True, metavar='DIR', help='folder that holds VOCdevkit')
    group.add_argument(
        '--year', default='2012', choices=[str(year) for year in range(2007, 2013)],
        help='of VOC (default: %(default)s)')
    group.add_argument(
        '--train-split', default='train', metavar='NAME',
        help='list in ImageSets/Segmentation or /Main; SEC: trainaug of SBD (default: %(default)s)')
    group.add_argument('--test-split', default='val', metavar='NAME', help='list with masks (default: %(default)s)')
    group.add_argument('--attention', default='ach', choices=list(METHODS), help='default: %(default)s')
    group.add_argument(
        '--foreground', type=float, default=FOREGROUND, metavar='F',
        help='cues of a class: attention of at least F of its maximum (default: %(default)s)')
    group.add_argument(
        '--background', type=float, default=BACKGROUND, metavar='F',
        help='cues of the background: the F least salient pixels (default: %(default)s)')
    group.add_argument('--cues-only', action='store_true', help='make and measure the cues, train nothing')
    group.add_argument('--network', default=DEFAULTS.network, metavar='NAME', help='default: %(default)s')
    group.add_argument(
        '--backbone-weights', type=Path, metavar='FILE',
        help="torchvision's weights of the backbone, .pth or .safetensors (default: random)")
    group.add_argument('--image-size', type=int, default=DEFAULTS.image_size, metavar='N', help='default: %(default)s')
    group.add_argument('--iterations', type=int, default=DEFAULTS.iterations, metavar='N', help='default: %(default)s')
    group.add_argument(
        '--train-batch-size', type=int, default=DEFAULTS.batch_size, metavar='N',
        help='default: %(default)s')
    group.add_argument('--lr', type=float, default=DEFAULTS.lr, help='default: %(default)s')
    group.add_argument(
        '--lr-step', type=int, default=DEFAULTS.lr_step, metavar='N',
        help='updates after which the rate falls to a tenth (default: %(default)s)')
    group.add_argument(
        '--weights', type=float, nargs=3, default=(1., 1., 1.),
        metavar=('SEED', 'EXPAND', 'BOUNDARY'), help='weights of the losses (default: 1 1 1)')
    group.add_argument('--seed', type=int, default=0, metavar='S', help='default: %(default)s')
    group.add_argument('--output', type=Path, required=True, metavar='DIR', help='folder of cues, network and results')


def _check(args: argparse.Namespace) -> SegmentationConfig:
    check_least(args, image_size=1, iterations=1, lr_step=1, batch_size=1, seed=0)
    if args.train_batch_size < 2:
        raise ICASCError('--train-batch-size must be at least 2: BatchNorm needs two images.')
    for name in ('foreground', 'background'):
        if not 0 < getattr(args, name) < 1:
            raise ICASCError(f'--{name} lies between 0 and 1, got {getattr(args, name)}.')
    if not all(0 <= weight < math.inf for weight in args.weights) or not 0 < args.lr < math.inf:
        raise ICASCError('--weights must not be negative, --lr must be above 0, and all finite.')
    refuse_folder_of_run(args.output)
    cues = path_inside(args.output, 'cues')
    if cues.is_dir() and any(file.suffix != '.png' for file in cues.iterdir()):
        raise ICASCError(f"--output: '{cues}' holds other files than cues, and would be replaced: name another folder.")
    seed, expand, boundary = args.weights
    return SegmentationConfig(
        network=args.network, image_size=args.image_size, iterations=args.iterations,
        batch_size=args.train_batch_size, lr=args.lr, lr_step=args.lr_step, weight_seed=seed,
        weight_expand=expand, weight_boundary=boundary, seed=args.seed)


def _make_all_cues(
        args: argparse.Namespace,
        classifier: Checkpoint,
        images: VOCSegmentation,
        grid: tuple,
) -> Path:
    """Write the cues of every training image to `cues/NAME.png`: class + 1, 0 background, 255 no cue."""
    transform = create_transform(**{**classifier.data_config, 'crop_pct': 1., 'crop_mode': 'squash'})
    with replacing_folder(path_inside(args.output, 'cues')) as folder:
        for start in tqdm(range(0, len(images), classifier.batch_size), desc='cues', leave=False, disable=None):
            end = min(start + classifier.batch_size, len(images))
            items = [images[i] for i in range(start, end)]
            labels = torch.stack([item.labels for item in items])
            batch = torch.stack([transform(item.image) for item in items]).to(classifier.device)
            cues = make_cues(
                classifier.model, batch, labels.to(classifier.device), grid, args.attention,
                classifier.layers, args.foreground, args.background).cpu()
            # The network classes of a head that has more than VOC's twenty are never present.
            index = torch.where(cues.any(1), cues.argmax(1), 255).to(torch.uint8).numpy()
            for item, cue in zip(items, index, strict=True):
                Image.fromarray(cue).save(path_inside(folder, f'{item.name}.png'))
    return args.output / 'cues'


def _origin(args: argparse.Namespace, classifier: Checkpoint) -> dict[str, Any]:
    """What decides the cues, and the network that learns from them."""
    names = ('attention', 'foreground', 'background', 'train_split', 'year')
    weights = args.backbone_weights
    return {
        **{name: getattr(args, name) for name in names},
        **{f'classifier_{name}': value for name, value in classifier.preparation.items()},
        'layers': [classifier.layers.inner.path, classifier.layers.last.path],
        'classifier': tensors_sha256(classifier.model.state_dict()),
        'backbone_weights': file_sha256(weights) if weights else None}


def _load_cue(folder: Path, name: str, classes: int) -> torch.Tensor:
    index = torch.from_numpy(np.array(Image.open(folder / f'{name}.png'))).long()
    return torch.stack([index == c for c in range(classes)]).float()


def _measure_cues(folder: Path, images: VOCSegmentation) -> dict[str, Any]:
    """Precision and recall of the cues against the training masks, means over the classes that occur."""
    none = len(images.class_names) + 1  # a pixel without a cue is an answer of its own, never right
    counts, without = np.zeros((none + 1, none + 1)), 0
    for i in range(len(images)):
        item = images[i]
        if item.mask is None:
            without += 1
            continue
        cue = Image.open(folder / f'{item.name}.png').resize(item.image.size, Image.Resampling.NEAREST)
        predicted = np.array(cue)
        counts += count_pixels(np.where(predicted == 255, none, predicted), item.mask, none + 1)
    if without == len(images):
        return {}
    right = np.diag(counts)[:none]
    with np.errstate(invalid='ignore'):  # NaN for a class that does not occur
        precision, recall = right / counts.sum(0)[:none], right / counts.sum(1)[:none]
    return {
        'cue_precision': float(np.nanmean(precision)), 'cue_recall': float(np.nanmean(recall)),
        'cue_coverage': float(1 - counts[:none, none].sum() / counts[:none].sum()),
        'cue_images': len(images) - without}


def run(args: argparse.Namespace) -> int:
    config = _check(args)
    most = args.max_image_pixels
    images = VOCSegmentation(args.data_dir, args.train_split, args.year, False, most)
    test = None if args.cues_only else VOCSegmentation(
        args.data_dir, args.test_split, args.year, max_image_pixels=most)
    check_architecture(args.checkpoints, args)
    classifier = load_checkpoint(args.checkpoints[0], args, with_data=False)
    if classifier.num_classes != len(images.class_names):
        raise DataError(f'the classifier has {classifier.num_classes} classes, VOC {len(images.class_names)}.')
    names = classifier.recorded_names
    check_same_classes(names, images.class_names, f"the classifier '{classifier.label}'", 'VOC')
    if names is None:
        warnings.warn(
            f"'{classifier.source}' does not tell the names of its classes: they are taken for VOC's, in their order",
            stacklevel=2)
    if classifier.layers is None:
        raise ICASCError('the classifier has no attention maps: name its layers with --layers INNER LAST.')
    torch.manual_seed(config.seed)
    network = create_network(config.network, len(images.class_names) + 1, args.backbone_weights).to(
        classifier.device)
    grid = score_grid(network, config.image_size)
    checkpoint, origin = args.output / f'{SEGMENTATION}{CHECKPOINT}', _origin(args, classifier)
    read_checkpoint(checkpoint, config, origin)  # before the cues of another network are written over
    if args.cues_only and checkpoint.is_file():
        raise ICASCError(
            f"--cues-only: '{args.output}' holds a network, and its results: name another --output.")
    folder = _make_all_cues(args, classifier, images, grid)
    result: dict[str, Any] = {
        **origin, 'classifier': classifier.source, 'classifier_model': classifier.args.model,
        'classifier_icasc': classifier.args.icasc if classifier.run else None, 'grid': grid,
        'train_images': len(images), **_measure_cues(folder, images)}
    if 'cue_precision' in result:
        print(
            f"cues of {args.attention}: precision {result['cue_precision']:.3f}, recall {result['cue_recall']:.3f}, "
            f"coverage {result['cue_coverage']:.3f}, {result['cue_images']} images with masks")
    if not args.cues_only:
        losses = train(
            network, images,
            lambda i: _load_cue(folder, images.ids[i], len(images.class_names) + 1),
            config, checkpoint, origin=origin)
        iou = intersection_over_union(evaluate(network, test, config.image_size))
        mean_iou = 100 * float(np.nanmean(iou))
        names = ['background', *images.class_names]
        table = [
            {'class': name, 'IoU %': 100 * value} for name, value in zip(names, iou.tolist(), strict=True)
            if value == value]
        print(text(table))
        print(f'mIoU {mean_iou:.2f} % on {len(test)} images; written to {printable(args.output)}')
        result.update({
            'mIoU': mean_iou, 'test_split': args.test_split, 'test_images': len(test),
            'iou': {row['class']: row['IoU %'] for row in table}, 'losses': losses, **asdict(config)})
    classifier.args.seed = config.seed
    classes, results = args.output / 'iou.csv', args.output / f'{SEGMENTATION}.json'
    with together(classes, results):
        if not args.cues_only:
            write_csv(classes, table)
        write_json(results, {**result, **provenance(classifier.args)})
    return 0
