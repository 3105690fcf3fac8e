"""Command line of the training: timm's option names and groups, and one group of its own, 'ICASC'."""
import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from ..data import BALANCED
from ..errors import ICASCError, first_of
from ..foreign_files import read_yaml, refuse_links_out_of
from ..objective.config import ICASCConfig
from ..runs.find import latest_run
from ..runs.folder import ARGUMENTS, CHECKPOINT, COMPARED, LAST, is_timms, read_mapping
from ..runs.intact import saved_order
from ..task.icasc import ICASCTask
from .argument_files import RECIPES, find_config, list_recipes, load_config
from .dependent_options import changes_of_images, check_dependent, still_meant
from .loaders import mixes
from .option_groups import GROUPS
from .option_names import check_ranges, flag_of

__all__ = ['TrainingParser', 'add_arguments', 'build_parser', 'icasc_config', 'parse_args', 'to_arguments']

DEFAULT_RECIPE = RECIPES / 'digits_resnet20.yaml'

INFINITY = math.inf

RANGES = {
    'batch_size': (1, INFINITY), 'validation_batch_size': (1, INFINITY), 'epochs': (1, INFINITY),
    'limit_train': (1, INFINITY), 'train_num_samples': (1, INFINITY), 'val_num_samples': (1, INFINITY),
    'drop_block': (0, 0.99), 'bn_momentum': (0, 1), 'bn_eps': (0, INFINITY), 'recount': (1, INFINITY),
    'color_jitter_prob': (0, 1), 'grayscale_prob': (0, 1), 'gaussian_blur_prob': (0, 1),
    'aug_repeats': (0, INFINITY), 'cutmix_minmax': (0, 1), 'lr_noise': (0, 1), 'lr_noise_pct': (0, INFINITY),
    'lr_noise_std': (0, INFINITY), 'lr_k_decay': (1e-6, INFINITY), 'patience_epochs': (0, INFINITY),
    'val_interval': (1, INFINITY), 'patience': (1, INFINITY), 'bce_target_thresh': (0, 1),
    'bce_pos_weight': (0, INFINITY), 'head_init_scale': (0, INFINITY),
    'head_lr_scale': (0, INFINITY), 'layer_decay': (1e-6, 1), 'layer_decay_min_scale': (0, 1),
    'layer_decay_no_opt_scale': (0, 1),
    'grad_accum_steps': (1, INFINITY), 'checkpoint_hist': (1, INFINITY), 'log_interval': (1, INFINITY),
    'max_image_pixels': (1, INFINITY), 'mixup_off_epoch': (0, INFINITY),
    'lr': (1e-12, INFINITY), 'lr_base': (1e-12, INFINITY), 'lr_base_size': (1, INFINITY), 'min_lr': (0, INFINITY),
    'warmup_lr': (0, INFINITY), 'warmup_epochs': (0, INFINITY), 'cooldown_epochs': (0, INFINITY),
    'decay_epochs': (1e-6, INFINITY), 'decay_milestones': (0, INFINITY), 'decay_rate': (0, INFINITY),
    'lr_cycle_mul': (1e-6, INFINITY), 'lr_cycle_decay': (0, INFINITY), 'lr_cycle_limit': (1, INFINITY),
    'momentum': (0, 1), 'opt_eps': (0, INFINITY),
    'img_size': (1, INFINITY), 'input_size': (1, INFINITY), 'num_classes': (1, INFINITY), 'in_chans': (1, 3),
    'workers': (0, INFINITY), 'seed': (0, INFINITY), 'crop_padding': (0, INFINITY), 'crop_pct': (0.01, 1),
    'scale': (0.001, 1), 'ratio': (0.01, 100), 'hflip': (0, 1), 'vflip': (0, 1), 'reprob': (0, 1),
    'color_jitter': (0, INFINITY), 'mixup': (0, INFINITY), 'cutmix': (0, INFINITY), 'mixup_prob': (0, 1),
    'mixup_switch_prob': (0, 1), 'smoothing': (0, 0.99), 'drop': (0, 0.99), 'drop_path': (0, 0.99),
    'clip_grad': (1e-12, INFINITY), 'weight_decay': (0, INFINITY), 'model_ema_decay': (0, 1),
    'std': (1e-6, INFINITY), 'icasc_start_epoch': (0, INFINITY), 'icasc_ramp_epochs': (0, INFINITY),
    'icasc_eval_images': (0, INFINITY), 'icasc_weights': (0, INFINITY), 'icasc_theta': (0, INFINITY),
    'icasc_sigma': (0, 1), 'icasc_omega': (1e-6, INFINITY), 'icasc_share': (1e-6, 1),
}

# Arguments of timm's models -> the options that give them.
OF_MODEL = {
    'num_classes': 'num_classes', 'in_chans': 'in_chans', 'pretrained': 'pretrained', 'global_pool': 'gp',
    'checkpoint_path': 'initial_checkpoint', 'drop_rate': 'drop', 'drop_path_rate': 'drop_path',
    'drop_block_rate': 'drop_block', 'bn_momentum': 'bn_momentum', 'bn_eps': 'bn_eps'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of the training, and the list of the recipes below them."""
    parser.add_argument(
        '-c', '--config', metavar='FILE', default='',
        help='YAML file with defaults for the options below: a recipe of the list at the end, a file of yours or a '
             'run\'s args.yaml')
    for add in GROUPS:
        add(parser)
    parser.usage = '%(prog)s [OPTIONS]'  # a hundred of them would bury what follows
    parser.epilog = 'recipes (-c NAME):\n' + '\n'.join(f'  {name:<36}{text}' for name, text in list_recipes().items())


def _named(folder: Path) -> Path:
    """The folder by its own name, where '.' or '..' has none to call a run or its data by."""
    return folder.resolve() if folder.name in ('', '..') else folder


def _said_by_name(folder: Path) -> str:
    """How a run is gone on with that is named as a folder."""
    whole = folder.absolute()
    return f"--resume auto --output '{whole.parent}' --experiment '{whole.name}'"


def _run_beside(checkpoint: str) -> Path | None:
    """The folder of a checkpoint whose args.yaml lies beside it; None where there is none."""
    if Path(checkpoint).is_dir():
        raise ICASCError(
            f"--resume: '{checkpoint}' is a folder: name a checkpoint in it, or say {_said_by_name(Path(checkpoint))}.")
    if not Path(checkpoint).is_file():
        raise ICASCError(f"--resume: no checkpoint '{checkpoint}'.")
    folder = _named(Path(checkpoint).parent)
    return folder if (folder / ARGUMENTS).is_file() else None


def _newest_run(output: str, experiment: str) -> Path:
    """The folder that --resume auto means."""
    folder = Path(output)
    if (found := latest_run(folder, experiment)) is not None:
        return found
    if (folder / ARGUMENTS).is_file():
        raise ICASCError(f"--resume auto: '{output}' is a run itself: say {_said_by_name(folder)}.")
    left = sorted((folder / experiment).glob(f'*{CHECKPOINT}'), key=saved_order) if experiment else ()
    if left:
        raise ICASCError(f"--resume auto: '{folder / experiment}' has no {LAST}: say --resume '{left[-1]}'.")
    others = sorted(path.parent.name for path in folder.glob(f'*/{ARGUMENTS}'))
    raise ICASCError(
        f"--resume auto: '{output}' has no run{f' {experiment!r}' * bool(experiment)} to go on with"
        f"{'; it has ' + first_of(others, 8) if others else ''}: leave --resume out to begin a new run.")


def _check_ranges(args: argparse.Namespace) -> None:
    check_ranges(args, RANGES)
    if args.scale[0] > args.scale[1] or args.ratio[0] > args.ratio[1]:
        raise ICASCError('--scale and --ratio are (smallest, largest).')


def _check_fast(args: argparse.Namespace) -> None:
    others = {
        '--grad-accum-steps': args.grad_accum_steps > 1, '--grad-checkpointing': args.grad_checkpointing,
        '--icasc-multilabel-maps per_class (its passes depend on the batch)':
            args.icasc_multilabel_maps == 'per_class',
        '--torchcompile': args.torchcompile}
    for option in (option for option, given in others.items() if given):
        raise ICASCError(f'--icasc-fast records an eager step of one batch: leave it out, or {option}.')


def _check_resident(args: argparse.Namespace) -> None:
    cropped = args.crop_padding is not None or args.no_aug
    others = {
        '--crop-padding N or --no-aug is missing': not cropped, **changes_of_images(args),
        '--color-jitter (give 0)': args.color_jitter and not args.no_aug,
        '--mixup': args.mixup, '--cutmix': args.cutmix or args.cutmix_minmax, '--aug-repeats': args.aug_repeats}
    for option in (option for option, given in others.items() if given):
        raise ICASCError(f'--resident-data pads, crops and mirrors on the device, and nothing else: {option}.')


def _check_together(args: argparse.Namespace) -> None:
    """Options that go against another one."""
    if args.pretrained_path and args.initial_checkpoint:
        raise ICASCError(
            '--pretrained-path and --initial-checkpoint both name the first weights: leave one of them out.')
    if args.balanced_sampling and args.class_weights == BALANCED:
        raise ICASCError('--balanced-sampling and --class-weights balanced balance twice: leave one of them out.')
    if args.cutmix_minmax and args.cutmix_minmax[0] > args.cutmix_minmax[1]:
        raise ICASCError('--cutmix-minmax is (smallest, largest).')
    if args.decay_milestones != sorted(args.decay_milestones):
        raise ICASCError(
            f"--decay-milestones must rise, got {' '.join(map(str, args.decay_milestones))}.")
    if args.lr_noise and (len(args.lr_noise) > 2 or args.lr_noise != sorted(args.lr_noise)):
        raise ICASCError(
            f"--lr-noise is the share of the epochs at which noise begins, and at which it ends, got "
            f"{' '.join(map(str, args.lr_noise))}.")
    for name, option in OF_MODEL.items():
        if name in args.model_kwargs:
            raise ICASCError(f"--model-kwargs: '{name}' has an option of its own, {flag_of(option)}.")
    if args.val_interval > 1 and args.sched == 'plateau':
        raise ICASCError('--sched plateau asks for a measure after every epoch: leave --val-interval out.')


def icasc_config(args: argparse.Namespace) -> ICASCConfig:
    """The options of the group 'ICASC'; before `set_up` has seen the data, weights not given are 1."""
    try:
        return ICASCConfig(
            attention=args.icasc_attention, order=args.icasc_order, theta=args.icasc_theta,
            sigma=args.icasc_sigma, omega=args.icasc_omega, mask_scale=args.icasc_mask_scale,
            mask_grad=args.icasc_mask_grad, multilabel_maps=args.icasc_multilabel_maps,
            share=args.icasc_share, rival=args.icasc_rival,
        ).with_weights(*(args.icasc_weights or ICASCTask.default_config.weights.values()))
    except ValueError as e:
        raise ICASCError(f'--icasc-*: {e}') from e


def _check(args: argparse.Namespace) -> None:
    _check_ranges(args)
    icasc_config(args)
    if args.resume not in ('', 'auto') and args.icasc_compare:
        raise ICASCError('--icasc-compare has two runs: resume both with --resume auto --experiment NAME.')
    if Path(args.experiment).name != args.experiment or args.experiment == '..':
        raise ICASCError(f"--experiment is a plain folder name inside --output, got '{args.experiment}'.")
    if mixes(args) and args.batch_size % 2:
        raise ICASCError(
            f'--mixup and --cutmix pair the images of a batch: --batch-size must be even, '
            f'got {args.batch_size}.')
    if args.loss == 'asl' and mixes(args):
        raise ICASCError('--loss asl takes class indices only: leave --mixup and --cutmix out.')
    _check_together(args)
    if args.icasc_fast:
        _check_fast(args)
    if args.resident_data:
        _check_resident(args)
    check_dependent(args)
    if not args.data_dir and args.dataset != 'digits' and not args.dataset.startswith(('hfds/', 'hfids/')):
        raise ICASCError(
            '--data-dir is missing: the folder of the images, DIR/train/CLASS/IMAGE '
            '(or --dataset digits).')


def _refuse_links(run_dir: Path) -> None:
    """What a run goes on writing must lie in its folder, which somebody else may have made."""
    for folder in (run_dir, *(run_dir / name for name in COMPARED)):
        if folder.is_dir():
            refuse_links_out_of(folder, [path.name for path in folder.iterdir()])


class TrainingParser(argparse.ArgumentParser):
    """Takes the options from files too: a resumed run's args.yaml, --config, or else the recipe of the digits."""

    def error(self, message: str) -> None:
        # The usage of a hundred options would bury the message.
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')

    def _find_run(self, options: dict[str, Any]) -> Path | None:
        resume = options.get('resume')
        if resume == 'auto':
            return _newest_run(options.get('output', self.get_default('output')), options.get('experiment', ''))
        return _run_beside(resume) if resume else None

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line.

        Returns:
            The options, with `run_dir` set to the folder of a run to go on with (else None). Where the command line
            has its checkpoint go on in another folder, they are those of the run, and `run_dir` is None.

        Raises:
            ICASCError: A message in one line that names the option.
            SystemExit: argparse's own errors (exit code 2) and --help.
        """
        no_defaults = argparse.Namespace(**{action.dest: None for action in self._actions})
        parsed = super().parse_args(argv, no_defaults)
        typed = {name: value for name, value in vars(parsed).items() if value is not None}
        config = load_config(find_config(typed['config']), self) if typed.get('config') else {}
        config = still_meant(config, typed)
        over = {**config, **typed}
        run_dir = self._find_run(over)
        if run_dir is not None:
            _refuse_links(run_dir)
            if is_timms(read_mapping(run_dir / ARGUMENTS, read_yaml)):
                raise ICASCError(
                    f"--resume: '{run_dir}' is a run of timm's train.py, which alone goes on with it: begin a run from "
                    f'its weights with --initial-checkpoint.')
            self.set_defaults(**still_meant(load_config(run_dir / ARGUMENTS, self), over))
        elif not any(typed.get(name) for name in ('config', 'data_dir', 'dataset')):
            self.set_defaults(**still_meant(load_config(DEFAULT_RECIPE, self), over))
        self.set_defaults(**config)
        if run_dir is not None:
            place = Path(typed.get('output', run_dir.parent)) / (typed.get('experiment') or run_dir.name)
            if place.resolve() != run_dir.resolve():  # what the run has done so far stays as it is
                run_dir = None
                self.set_defaults(output=str(place.parent), experiment=place.name)
        args = super().parse_args(argv)
        if args.data_dir:
            args.data_dir = str(_named(Path(args.data_dir)))
        _check(args)
        if args.icasc_compare and run_dir is not None and (run_dir / LAST).is_file():
            raise ICASCError(
                f"--icasc-compare: '{run_dir}' is one run, and goes on as such: leave it out, or begin two new runs "
                f'without --resume.')
        args.run_dir = str(run_dir) if run_dir is not None else None
        return args


def build_parser() -> TrainingParser:
    """The parser of the options, for those who read options and train nothing."""
    parser = TrainingParser(prog='timm-icasc train')
    add_arguments(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, see `TrainingParser.parse_args`."""
    return build_parser().parse_args(argv)


def to_arguments(options: dict[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """Options as the words of a command line; None stands for not given."""
    actions = {action.dest: action for action in parser._actions}
    words = []
    for name, value in options.items():
        action = actions[name]
        flags = [flag for flag in action.option_strings if flag.startswith('--')]
        if isinstance(value, bool):
            # --no-NAME, where there is one; a plain switch is off where it is not given
            words += flags[:1] if value else flags[1:]
        elif isinstance(action, ParseKwargs):
            words += [flags[0], *(f'{key}={v}' for key, v in (value or {}).items())]
        elif value is not None and value != []:
            words += [flags[0], *map(str, value if isinstance(value, list) else [value])]
    return words
