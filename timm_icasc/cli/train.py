"""Train a timm model with ICASC: attention separability and consistency (Wang et al., ICCV 2019).

Everything but the task is timm's: data, optimiser, schedule, EMA, checkpoints.
Without any option it trains a small ResNet on the embedded digits in about a minute. Otherwise:

    %(prog)s --icasc-compare                                 ICASC beside cross-entropy, same seed
    %(prog)s --data-dir DIR --model resnet50 --pretrained    your images: DIR/{train,val}/CLASS/*.jpg
    %(prog)s --data-dir DIR -c cifar100_resnet110            a recipe, see the end of this page
    %(prog)s --resume auto                                   go on with the newest interrupted run

Several GPUs, one process each: torchrun --nproc_per_node=8 -m timm_icasc.cli train ...
"""
import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from timm import utils

from ..errors import WriteError, failed_exchange, with_type
from ..figures.validation import validation_figure
from ..foreign_text import printable, shell_command
from ..hub.upload import check_license, repo_name
from ..publish.export import check_publishable
from ..publish.push import push_finished
from ..runs.begin import command_of, open_run_dir, program, save_args
from ..runs.folder import ARGUMENTS, COMPARED, FIGURE, LAST, SUMMARY
from ..runs.lock import alone_in
from ..training.arguments import TrainingParser as Parser
from ..training.arguments import add_arguments
from ..training.console import log, print_results
from ..training.epoch import evaluated_model
from ..training.interrupt import Interrupted, StopSignal, interruptible, stopping_loaders
from ..training.job import TrainingJob, set_up, set_up_device
from ..training.model_record import model_record
from ..training.run import method_label, train
from ..training.trackers import check_trackers

__all__ = ['Parser', 'add_arguments', 'run']


def chosen_methods(args: argparse.Namespace) -> list[tuple[str, bool]]:
    """Name, and whether it trains with ICASC, of each run that the options ask for.

    ICASC comes first: what it refuses is refused before the plain loss has taken its time.
    """
    methods = list(zip(COMPARED, (False, True), strict=True))[::-1]
    return methods if args.icasc_compare else [
        method for method in methods if method[1] == args.icasc]


def check_push(job: TrainingJob) -> None:
    """Find out before the first step what would keep the weights from being published after the last."""
    args = job.args
    if args.push_to_hub and utils.is_primary(args):
        check_license(check_publishable(model_record(job), args.license), args.push_to_hub)


def begin(args: argparse.Namespace, stack: ExitStack) -> None:
    """Say what is gone on with, and keep other processes out of it."""
    if args.resume == 'auto':
        log(args, f"--resume auto: '{args.run_dir}' goes on")
    if args.run_dir:
        be_alone(args, Path(args.run_dir), stack)


def be_alone(args: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    """Lock the folder of a run until `stack` is closed."""
    if utils.is_primary(args):
        stack.enter_context(alone_in(folder, 'another training'))


def train_chosen(
        args: argparse.Namespace,
        given: dict[str, Any],
        command: str,
        device: torch.device,
        flag: StopSignal,
        stack: ExitStack,
) -> dict[str, dict[str, Any]]:
    """Train what the options ask for, in `args.run_dir`, which is made where there is none."""
    runs = {}
    for name, icasc in chosen_methods(args):
        choice = {'icasc': icasc, 'icasc_compare': False}
        with flag.at_once():  # images may be read, and weights fetched
            job = set_up(argparse.Namespace(**{**vars(args), **choice}), device)
            check_push(job)
        if not args.run_dir:  # only now: a refused option leaves no folder behind
            args.run_dir = str(open_run_dir(args))
            be_alone(args, Path(args.run_dir), stack)
        folder = Path(args.run_dir)
        if args.icasc_compare:
            folder = folder / name
            if utils.is_primary(args):
                be_alone(args, folder, stack)
                save_args(given, folder.parent, command)
        flag.raise_if_set()
        runs[method_label(job)] = train(job, {**given, **choice}, command, folder, flag, epoch_maps)
    return dict(reversed(runs.items()))  # in reports the plain loss comes first


def epoch_maps(job: TrainingJob) -> Image.Image | None:
    """Attention maps of a few validation images, the same in every epoch, by the model as it is."""
    if job.layers is None:
        return None
    with TemporaryDirectory() as folder:
        runs = {method_label(job): {'model': evaluated_model(job), 'job': job}}
        with Image.open(validation_figure(runs, Path(folder) / FIGURE)) as image:
            return image.convert('RGB')


def draw(args: argparse.Namespace, run_dir: Path, runs: dict[str, dict[str, Any]]) -> None:
    """The figure of attention maps."""
    job = next(iter(runs.values()))['job']
    if job.layers is not None:
        try:
            log(args, f'\nattention maps: {printable(validation_figure(runs, run_dir / FIGURE))}')
        except WriteError:
            raise
        except Exception as e:  # the run is done and saved; a missing font must not make it look failed
            log(args, f'\nattention maps: not drawn, {with_type(e)}')


def finish(args: argparse.Namespace, run_dir: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Report, figure and upload."""
    if utils.is_primary(args):
        print_results(args, run_dir, runs)
        draw(args, run_dir, runs)
        log(args, f'checkpoints, {SUMMARY}, {ARGUMENTS}, results: {printable(run_dir)}')
        if args.push_to_hub:
            push_finished(run_dir, args.push_to_hub, args.license)
    if args.distributed:
        torch.distributed.destroy_process_group()


def report_interrupt(args: argparse.Namespace, reason: str) -> None:
    """Say what the run has left, and how it goes on: with as many processes as now."""
    if not args.run_dir:
        print(f'\ninterrupted ({reason}) before the first step', file=sys.stderr)
    elif utils.is_primary(args):
        run_dir = Path(args.run_dir)
        def has(name: str) -> bool:
            return any(file for place in (name, f'*/{name}') for file in run_dir.glob(place))

        state = 'holds the last whole epoch' if has(SUMMARY) else 'holds no epoch'
        if has(LAST) and not has(SUMMARY):
            state = 'holds the model as it began, and no whole epoch'
        words = [*program(), '--resume', 'auto', '--output', str(run_dir.parent), '--experiment', run_dir.name]
        for option, value in (('--push-to-hub', args.push_to_hub), ('--license', args.license)):
            words += [option, value] if value else []
        print(
            f'\ninterrupted ({reason}); {printable(run_dir)} {state}. Go on with: {shell_command(words)}',
            file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    given = dict(vars(args))
    command = command_of(given, Path(args.run_dir) if args.run_dir else None)
    device = set_up_device(args)
    check_trackers(args)
    if args.push_to_hub and utils.is_primary(args):
        repo_name(args.push_to_hub)  # what the upload lacks should not be found out after the training
    try:
        with ExitStack() as stack:
            begin(args, stack)
            with stopping_loaders(), interruptible() as flag:
                runs = train_chosen(args, given, command, device, flag, stack)
            finish(args, Path(args.run_dir), runs)
    except Interrupted as e:
        report_interrupt(args, str(e))
        return e.exit_code
    except RuntimeError as e:
        if failed_exchange(e):
            report_interrupt(args, 'another process has ended')
        raise
    return 0
