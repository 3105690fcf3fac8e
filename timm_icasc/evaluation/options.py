"""Options of `timm-icasc eval`, and those by which every command names checkpoints and images."""
import argparse
from typing import Any

from ..attention import METHODS
from ..losses import SIGMA

__all__ = [
    'add_checkpoint_arguments', 'add_evaluation_arguments', 'add_explained_model_arguments', 'add_model_arguments',
    'add_running_arguments', 'default_options', 'evaluation_parser',
]


EXPLAINED_MODELS = "a run's folder, hf-hub:NAME, local-dir:DIR, any timm name (with its weights), or a checkpoint file"


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser)
    group = parser.add_argument_group('Evaluation')
    group.add_argument(
        '--compare', nargs=2, metavar=('A', 'B'),
        help='evaluate two checkpoints; differences B - A with 95 %% paired bootstrap intervals')
    group.add_argument(
        '--resamples', type=int, default=1000, metavar='N',
        help='bootstrap resamples (default: %(default)s)')
    group.add_argument('--images', type=int, metavar='N', help='only N images, evenly spaced (default: all)')
    group.add_argument(
        '--ten-crop', action='store_true',
        help='also average the probabilities of ten crops (needs --crop-pct below 1 to differ much)')
    group.add_argument(
        '--robustness', action='store_true',
        help="also hold the true classes' maps against those of the flipped and of the cropped image, and against the "
             'maps of all other images')
    group.add_argument(
        '--faithfulness', action='store_true',
        help="also blur the images where the true classes' maps are highest, and see how far the scores fall, "
             "a class's own and another's; deletion, insertion, average drop (about 20 forward passes an image, "
             '16 for each further class)')
    group.add_argument(
        '--attention', default='ach', choices=list(METHODS),
        help=f"attention maps: {', '.join(method.title for method in METHODS.values())} (default: %(default)s)")
    group.add_argument(
        '--layer', default='last', choices=('last', 'inner'),
        help='whose maps are compared with boxes, co-occurring classes, flipped, cropped and blurred images '
             '(default: %(default)s)')
    group.add_argument(
        '--sigma', type=float, default=SIGMA,
        help='mask threshold, fraction of the maximum, Eq. 4; also of the box (default: %(default)s)')
    group.add_argument(
        '--tolerance', type=float, default=0., metavar='PIXELS',
        help='margin of the pointing game around the boxes (default: %(default)s)')
    group.add_argument('--per-class', action='store_true', help='print the table of classes, however long')
    group.add_argument(
        '--output', metavar='DIR',
        help="folder to write to, not that of a run (default: eval/ in each run's folder, eval/NAME/ for others)")


def evaluation_parser() -> argparse.ArgumentParser:
    """The parser of these options, for those who read them."""
    parser = argparse.ArgumentParser()
    add_evaluation_arguments(parser)
    return parser


def default_options() -> argparse.Namespace:
    """What `timm-icasc eval` measures where no option is given."""
    return evaluation_parser().parse_args([])


def add_checkpoint_arguments(parser: argparse.ArgumentParser, nargs: str | int = '*') -> None:
    """Which checkpoints, and on which images; read by `load_checkpoints`."""
    group = add_model_arguments(parser, nargs)
    group.add_argument('--data-dir', metavar='DIR', help='folder of the data set')
    group.add_argument('--dataset', metavar='NAME', help='type of the data set, as in timm-icasc train')
    group.add_argument(
        '--val-split', metavar='NAME',
        help='split to evaluate on; of the training split, only the images that --limit-train drew')
    group.add_argument('--image-endings', nargs='+', metavar='END', help='as in timm-icasc train')
    group.add_argument('--class-map', metavar='FILE', help='file that maps class to index')
    group.add_argument('--crop-pct', type=float, metavar='N', help='share of the resized image that the crop takes')
    group.add_argument('--crop-mode', choices=('center', 'squash', 'border'), help='as in timm-icasc train')


def add_model_arguments(
        parser: argparse.ArgumentParser,
        nargs: str | int,
) -> argparse._ArgumentGroup:
    """Which checkpoints, and how to run them; returns the group for further options."""
    parser.add_argument(
        'checkpoints', nargs=nargs, metavar='CHECKPOINT',
        help='folder of a training run (of --icasc-compare: both its runs), a checkpoint file (one outside a '
             "run's folder needs --model), hf-hub:NAME, local-dir:PATH, or any timm name (with its weights)")
    group = parser.add_argument_group('Model and data', "Default: those of the checkpoint's run.")
    group.add_argument('--model', metavar='MODEL', help='architecture of a checkpoint file without args.yaml beside it')
    add_running_arguments(group)
    return group


def add_explained_model_arguments(
        parser: argparse.ArgumentParser,
        *names: str,
        **kwargs: Any,
) -> None:
    """Which models to explain images with, and how to run them; read by `load_explainers`.

    Args:
        parser: Of the command.
        *names: Of the argument that names the models.
        **kwargs: Of that argument.
    """
    parser.add_argument(*names, help=EXPLAINED_MODELS, **kwargs)
    group = parser.add_argument_group('Model')
    group.add_argument('--architecture', metavar='NAME', help="of a checkpoint file outside a run's folder")
    group.add_argument(
        '--pretrained-path', metavar='FILE', help='weights of a timm name, from here instead of the network')
    group.add_argument(
        '--multilabel', action=argparse.BooleanOptionalAction, default=None,
        help='an image can have several classes: sigmoid scores (default: as the run was trained)')
    add_running_arguments(group)


def add_running_arguments(group: argparse._ActionsContainer) -> None:
    """Which weights of a run, and how to run a model."""
    group.add_argument(
        '--best', action='store_true',
        help='the weights of the best epoch, which the validation images have chosen, not of the last')
    group.add_argument(
        '--layers', nargs=2, metavar=('INNER', 'LAST'),
        help='module paths of the two layers; PATH:NHWC, PATH:NLC+5 (5 tokens in front) state the layout too')
    group.add_argument('--img-size', type=int, metavar='N', help='image size')
    group.add_argument('-b', '--batch-size', type=int, metavar='N', help='images per batch')
    group.add_argument('-j', '--workers', type=int, metavar='N', help='data loading processes')
    group.add_argument('--device', metavar='NAME', help='default: cuda where there is one')
    group.add_argument(
        '--max-image-pixels', type=int, metavar='N',
        help="pixels that an image may have (default: Pillow's 179 million; a larger one may be a trap)")
