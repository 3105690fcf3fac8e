"""Where people look at a run while it trains: Weights & Biases, TensorBoard. Both are optional packages."""
import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ICASCError, one_line
from ..runs.files import write_text
from ..runs.folder import TENSORBOARD, WANDB_ID
from ..runs.local_paths import without_local_paths
from .console import log
from .option_names import flag_of

__all__ = ['Track', 'check_trackers', 'tracking']

Numbers = dict[str, float]

Track = Callable[[int, Numbers, Image.Image | None], None]  # epoch from 0, what is logged of it, its maps


def _load(module: str, option: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ICASCError(f"{option} needs another package: pip install 'timm_icasc[log]'.") from e


def check_trackers(args: argparse.Namespace) -> None:
    """Raise ICASCError, before the training, where a package is missing that the options ask for."""
    if args.log_wandb:
        _load('wandb', '--log-wandb')
    if args.log_tensorboard:
        _load('torch.utils.tensorboard', '--log-tensorboard')
    if args.wandb_resume_id and args.icasc_compare:
        raise ICASCError('--wandb-resume-id names one run, and --icasc-compare makes two: leave one of them out.')
    for option in ('wandb_project', 'wandb_tags', 'wandb_resume_id'):
        if getattr(args, option) and not args.log_wandb:
            raise ICASCError(f"{flag_of(option)} is of --log-wandb, which is missing.")


@contextmanager
def _wandb(args: argparse.Namespace, run_dir: Path, options: dict[str, Any]) -> Iterator[Track]:
    """A run of Weights & Biases; one that was interrupted goes on under its own name."""
    wandb = _load('wandb', '--log-wandb')
    kept = run_dir / WANDB_ID
    known = args.wandb_resume_id or (kept.read_text().strip() if kept.is_file() else None)
    try:
        run = wandb.init(
            project=args.wandb_project, name=run_dir.name, config=without_local_paths(options),
            tags=args.wandb_tags or None, id=known,
            resume='must' if args.wandb_resume_id else 'allow', dir=str(run_dir))
    except Exception as e:  # no key, no network, no such run: errors of its own kinds
        raise ICASCError(f'--log-wandb: {one_line(e)}') from e
    write_text(kept, f'{run.id}\n')

    def track(epoch: int, numbers: Numbers, maps: Image.Image | None) -> None:
        pictures = {'attention': wandb.Image(maps)} if maps is not None else {}
        run.log({'epoch': epoch, **numbers, **pictures}, step=epoch + 1)

    try:
        yield track
    finally:
        try:
            run.finish()
        except Exception as e:
            log(args, f'warning: --log-wandb: {one_line(e)}')


@contextmanager
def _tensorboard(run_dir: Path, start_epoch: int) -> Iterator[Track]:
    """Event files in the run's folder; what an interrupted run has written beyond its last whole epoch is hidden."""
    module = _load('torch.utils.tensorboard', '--log-tensorboard')

    def track(epoch: int, numbers: Numbers, maps: Image.Image | None) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name.replace('_', '/', 1), value, epoch + 1)
        if maps is not None:
            writer.add_image('attention', np.asarray(maps.convert('RGB')), epoch + 1, dataformats='HWC')
        writer.flush()

    with module.SummaryWriter(str(run_dir / TENSORBOARD), purge_step=start_epoch + 1) as writer:
        yield track


@contextmanager
def tracking(
        args: argparse.Namespace,
        run_dir: Path,
        start_epoch: int,
        options: dict[str, Any],
) -> Iterator[Track | None]:
    """What takes the numbers and maps of every epoch to where the options say; None where they say nothing.

    Args:
        args: Options of the training.
        run_dir: Folder of the run.
        start_epoch: The epoch that it goes on with.
        options: What the run is told to be made of.
    """
    with ExitStack() as stack:
        tracks: dict[str, Track] = {}
        if args.log_wandb:
            tracks['--log-wandb'] = stack.enter_context(_wandb(args, run_dir, options))
        if args.log_tensorboard:
            tracks['--log-tensorboard'] = stack.enter_context(_tensorboard(run_dir, start_epoch))

        def track(epoch: int, numbers: Numbers, maps: Image.Image | None) -> None:
            for option, each in tracks.items():
                try:
                    each(epoch, numbers, maps)
                except Exception as e:  # a service that is down, a full disk: the training is worth more
                    log(args, f'warning: {option} lacks epoch {epoch + 1}: {one_line(e)}')

        yield track if tracks else None
