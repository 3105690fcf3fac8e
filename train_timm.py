#!/usr/bin/env python3
"""Train a timm model with ICASC, or with the classification loss alone, or both side by side.

Everything but the task is timm's: data, optimiser, schedule, EMA, checkpoints. See --help.
"""
import argparse
import json
import signal
import sys
import time

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the imports load, which takes seconds: end without a traceback

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm.task
import torch
import torch.nn as nn
from timm import utils
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from tqdm import tqdm

from timm_icasc.data import begin_epoch
from timm_icasc.errors import (
    DataError,
    ICASCError,
    NonFiniteLossError,
    WriteError,
    check_version,
    one_line,
)
from timm_icasc.evaluation.separability import evaluate_attention
from timm_icasc.features.module_state import unwrap_model
from timm_icasc.figures.validation import validation_figure
from timm_icasc.foreign_text import printable, shell_command
from timm_icasc.hub.upload import check_license, repo_name
from timm_icasc.labels import MULTI, check_same_classes
from timm_icasc.publish.export import check_publishable
from timm_icasc.publish.push import push_finished
from timm_icasc.runs.epochs import SECONDS, add_epoch, epoch_record, read_epochs
from timm_icasc.runs.files import write_text
from timm_icasc.runs.folder import (
    ARGUMENTS,
    CLASS_NAMES,
    COMPARED,
    FIGURE,
    LAST,
    RESULTS,
    SUMMARY,
    command_of,
    finished_results,
    launcher,
    open_run_dir,
    save_args,
)
from timm_icasc.runs.intact import check_intact
from timm_icasc.runs.lock import alone_in
from timm_icasc.runs.provenance import provenance
from timm_icasc.training.arguments import build_parser, parse_args
from timm_icasc.training.console import LOSSES, format_epoch, format_header, log, print_results
from timm_icasc.training.interrupt import Interrupted, StopSignal, interruptible, stopping_loaders
from timm_icasc.training.job import TrainingJob, icasc_config, seed_epoch, set_up, set_up_device
from timm_icasc.training.messages import report_error, set_up_messages
from timm_icasc.training.model_record import model_record
from timm_icasc.training.saver import CheckpointSaver
from timm_icasc.version import TIMM_FOR_TRAINING

LOSS_NAMES = {'ce': 'cross-entropy', 'bce': 'binary cross-entropy', 'asl': 'asymmetric loss', 'poly': 'PolyLoss'}


def loss_name(job: TrainingJob) -> str:
    return 'soft margin' if job.labels is MULTI else LOSS_NAMES[job.args.loss]


def method_label(job: TrainingJob) -> str:
    """What is trained, as a heading."""
    name = loss_name(job)
    return 'ICASC' if job.args.icasc else name[0].upper() + name[1:]


def progress(job: TrainingJob, loader, description: str) -> tqdm:
    return tqdm(
        loader, desc=description, leave=False, disable=not utils.is_primary(job.args) or None)


def update_weights(job: TrainingJob) -> None:
    """Clip the gradients, and let the optimiser use them."""
    args = job.args
    parameters = list(job.model.parameters())[:-2 if args.clip_mode == 'agc' else None]  # AGC leaves the head out
    if job.scaler is not None:
        job.scaler.update(job.optimizer, args.clip_grad, args.clip_mode, parameters)
        return
    if args.clip_grad is not None:
        utils.dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
    job.optimizer.step()


def check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    if not np.isfinite(means['loss']):
        terms = ', '.join(f'{name} {value:.3g}' for name, value in means.items() if name != 'loss')
        raise NonFiniteLossError(
            f"the loss became {means['loss']} in epoch {epoch + 1}, step {step + 1} ({terms}): lower --lr, set "
            f'--clip-grad, or let the ICASC terms set in later (--icasc-start-epoch). The last checkpoint is intact.')


def make_batch(
        job: TrainingJob,
        images: torch.Tensor,
        target: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loader yields, as the step takes it."""
    args = job.args
    if args.no_prefetcher:
        images, target = images.to(job.device), target.to(job.device)
        if job.mixup is not None:
            images, target = job.mixup(images, target)
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if args.loss == 'bce' and target.ndim == 1:
        target = nn.functional.one_hot(target, args.num_classes).float()
    return images, target


def train_one_epoch(epoch: int, job: TrainingJob, flag) -> dict[str, float]:
    """One epoch; returns the sample means of every scalar in the task's results."""
    args, task, batches = job.args, job.task, len(job.loader_train)
    updates = epoch * job.updates_per_epoch
    sums, counts = {}, {}
    sum_dtype = torch.float32 if job.device.type == 'mps' else torch.float64
    task.train()
    job.optimizer.zero_grad()
    bar = progress(job, job.loader_train, f'epoch {epoch + 1}')
    for index, (images, target) in enumerate(flag.batches(bar)):
        images, target = make_batch(job, images, target)
        group_start = index // args.grad_accum_steps * args.grad_accum_steps
        group = min(args.grad_accum_steps, batches - group_start)  # the last group may be smaller
        update = index - group_start == group - 1
        with nullcontext() if update else task.no_sync():
            result = job.step(images, target, group)
        if update:
            update_weights(job)

        for name, value in result.items():
            if value.ndim == 0:
                # The plain task's loss is the classification loss.
                for key in (name, 'loss_cls') if name == 'loss' and not args.icasc else (name,):
                    sums[key] = sums.get(key, 0.) + value.to(sum_dtype) * len(images)
                    counts[key] = counts.get(key, 0) + len(images)
        # Reading a value waits for the device, so a GPU is asked now and then only.
        if job.device.type == 'cpu' or index % args.log_interval == 0 or index == batches - 1:
            means = {name: (sums[name] / counts[name]).item() for name in sums}
            check_finite(means, epoch, index)
            bar.set_postfix_str(f"loss {means['loss']:.3f}")
        if update:
            job.optimizer.zero_grad()
            updates += 1
            task.update_ema(step=updates)
            if job.scheduler is not None:
                job.scheduler.step_update(num_updates=updates, metric=None)
    if not sums:  # of a stream, whose reader passes over what it cannot read
        raise DataError(
            f"--train-split {args.train_split} of '{args.data_dir}' has no image that can be read; the "
            f'warnings above say why.')
    if args.distributed:
        means = {
            name: utils.reduce_tensor(sums[name] / counts[name], args.world_size).item()
            for name in sums}
        check_finite(means, epoch, batches - 1)
    return means


@torch.no_grad()
def validate(model: nn.Module, job: TrainingJob, flag) -> dict[str, float]:
    """Loss, top-1 and top-5 on the validation images, or the measures of multi-label classification."""
    model.eval()
    evaluator = job.create_evaluator()
    for images, target in flag.batches(progress(job, job.loader_val, 'validation')):
        images, target = images.to(job.device), target.to(job.device)
        if job.args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with job.autocast():
            output = model(images)
        evaluator.update(output, target)
    return evaluator.compute(distributed=job.args.distributed)


def evaluate(job: TrainingJob, flag) -> dict[str, float]:
    """Accuracy, and how well the attention maps tell classes apart; of the averaged weights where there are any."""
    args, ema = job.args, job.task.has_ema()
    if args.distributed and args.dist_bn:
        utils.distribute_bn(job.model, args.world_size, args.dist_bn == 'reduce')
    metrics = validate(job.task.get_eval_model(ema=ema), job, flag)
    if job.attention_loader is not None and utils.is_primary(args):
        batches = flag.batches(progress(job, job.attention_loader, 'attention'))
        metrics.update(evaluate_attention(
            evaluated_model(job), batches, icasc_config(args), job.layers, job.labels))
    return metrics


def evaluated_model(job: TrainingJob) -> nn.Module:
    return unwrap_model(
        job.task.get_trainable_module(ema=True).module if job.task.has_ema() else job.model)


def resumed_checkpoint(args: argparse.Namespace, run_dir: Path) -> Path | None:
    """The checkpoint that --resume means; None where there is nothing to go on with."""
    checkpoint = Path(args.resume) if args.resume not in ('', 'auto') else run_dir / LAST
    return checkpoint if args.resume and checkpoint.is_file() else None


def check_unchanged(job: TrainingJob, checkpoint: Path) -> None:
    """Refuse to go on with other classes than the run began with; warn of another number of processes."""
    args = job.args
    check_intact(checkpoint)
    try:
        state = load_checkpoint_metadata(str(checkpoint))
        saver = state.get('saver') or {}
    except Exception:  # whatever a foreign file makes the unpickler say; `resume` says it
        return
    names = saver.get(CLASS_NAMES)
    check_same_classes(job.names, names, 'the data set', f"the run of '{checkpoint}'")
    was = state.get('args')
    processes, batch = getattr(was, 'world_size', args.world_size), getattr(was, 'batch_size', args.batch_size)
    if processes != args.world_size and processes * batch != args.world_size * args.batch_size:
        log(args, f'warning: the run had {processes} process(es) with --batch-size {batch}, this is {args.world_size} '
                  f'with {args.batch_size}: its updates are of other batches. torchrun --nproc_per_node={processes}, '
                  f'or another --batch-size, keeps them')


def resume(job: TrainingJob, checkpoint: Path | None) -> int:
    """Load the checkpoint, if there is one; returns the epoch to go on with."""
    args = job.args
    if args.model_ema:
        job.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
    if checkpoint is None:
        return 0
    try:
        check_unchanged(job, checkpoint)
    except DataError:
        raise
    except ICASCError as e:
        raise ICASCError(f'--resume: {e}') from e
    try:
        start_epoch = timm.task.resume_task_checkpoint(
            job.task, str(checkpoint), job.optimizer, job.scaler, log_info=False) or 0
        if args.model_ema:
            timm.task.load_task_ema_checkpoint(job.task, str(checkpoint))
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise ICASCError(f"--resume: '{checkpoint}' does not fit this run: {one_line(e, 300)}") from e
    if job.scheduler is not None and start_epoch > 0:
        if args.sched_on_updates:
            job.scheduler.step_update(start_epoch * job.updates_per_epoch)
        else:
            job.scheduler.step(start_epoch)
    return start_epoch


def prepare(job: TrainingJob) -> None:
    """Compile the task and spread it over the processes, as the options say."""
    args = job.args
    if args.torchcompile:
        try:
            job.task.compile(backend=args.torchcompile)
        except Exception as e:
            raise ICASCError(f"--torchcompile {args.torchcompile}: {one_line(e)}") from e
    if args.distributed:
        job.task.prepare_distributed(device_ids=[job.device] if job.device.type == 'cuda' else None)


def create_saver(
        job: TrainingJob,
        run_dir: Path,
        checkpoint: Path | None,
        start_epoch: int,
) -> CheckpointSaver:
    """timm's saver; an interrupt in the first epoch leaves a checkpoint to go on from.

    Args:
        job: What is trained.
        run_dir: Folder of the run.
        checkpoint: What it goes on from, if anything.
        start_epoch: The epoch that it goes on with.
    """
    args = job.args
    # How the run was called is in args.yaml, and not the same of one that was interrupted.
    kept = argparse.Namespace(**{**vars(args), **dict.fromkeys(('config', 'resume'), ''), 'run_dir': None})
    saver = CheckpointSaver(
        job.model, job.optimizer, args=kept, task=job.task, amp_scaler=job.scaler,
        checkpoint_dir=str(run_dir), recovery_dir=str(run_dir), decreasing=args.eval_metric == 'loss',
        max_history=args.checkpoint_hist, class_names=job.names)
    if checkpoint is not None and checkpoint.resolve().parent == run_dir.resolve():
        saver.go_on_from(checkpoint)
    else:
        saver._save(str(run_dir / LAST), epoch=start_epoch - 1)
    return saver


def announce(job: TrainingJob, run_dir: Path, start_epoch: int) -> None:
    """What is trained on what, and the head of the table of epochs."""
    args, device = job.args, job.device
    size, layers = job.data_config['input_size'], job.layers
    log(args, f"\n{method_label(job)}: {printable(args.model)}, {args.num_classes} classes, {len(job.train_set)} + "
              f'{len(job.val_set)} images of {size[1]} x {size[2]}, seed {args.seed}, {device}, in '
              f'{printable(run_dir)}')
    if layers is not None:
        log(args, f"inner layer '{layers.inner.path}' {layers.inner.grid}, last layer '{layers.last.path}' "
                  f'{layers.last.grid}; {icasc_config(args) if args.icasc else "attention is measured, not trained"}')
    if args.icasc and args.icasc_start_epoch >= job.epochs:
        log(args, f'warning: the terms of ICASC never start: --icasc-start-epoch {args.icasc_start_epoch:g}, but '
                  f'--epochs {job.epochs}')
    if start_epoch:
        log(args, f'resumed after epoch {start_epoch}')
    log(args, format_header(job.labels))


def run_epoch(
        epoch: int,
        job: TrainingJob,
        saver: CheckpointSaver | None,
        run_dir: Path,
        flag,
) -> dict[str, Any]:
    """Train, evaluate and save one epoch; returns what results.json tells of it."""
    args, started = job.args, time.monotonic()
    seed_epoch(args, epoch)
    begin_epoch(job.train_set, epoch)
    if args.distributed and hasattr(job.loader_train.sampler, 'set_epoch'):
        job.loader_train.sampler.set_epoch(epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and (args.mixup or args.cutmix):
        (job.mixup or job.loader_train).mixup_enabled = False
    train_metrics = train_one_epoch(epoch, job, flag)
    eval_metrics = evaluate(job, flag)
    if job.scheduler is not None:
        job.scheduler.step(epoch + 1, eval_metrics[args.eval_metric])
    record = {
        'time': time.monotonic() - started,
        **{f'train_{name}': train_metrics.get(name) for name in LOSSES},
        **{f'eval_{name}': value for name, value in eval_metrics.items()}}
    if saver is not None:
        if not run_dir.is_dir():  # a new one would lack the files of the epochs before
            raise ICASCError(f"'{run_dir}': the folder of the run is not there any more.")
        measured = {name: value for name, value in record.items() if name != 'time'}
        add_epoch(run_dir, epoch, {
            **measured, SECONDS: round(record['time'], 2), 'lr': job.optimizer.param_groups[0]['lr']})
        saver.save_checkpoint(epoch, metric=eval_metrics[args.eval_metric])
    return record


def method_used(job: TrainingJob) -> str:
    """The method in words, for results.json."""
    args, loss = job.args, loss_name(job)
    if not args.icasc:
        return loss
    attention = ' '.join([args.icasc_attention, *(f'with defect {name}' for name in args.icasc_defects)])
    return f'ICASC {attention}, order {args.icasc_order}' + f', {loss}' * (args.loss != 'ce')


def last_record(job: TrainingJob, run_dir: Path, flag) -> dict[str, Any]:
    """What results.json tells of the last epoch of a run that has done all; of its table, or evaluated anew."""
    row = {} if (run_dir / RESULTS).is_file() else epoch_record(run_dir, job.epochs - 1)
    record = {name: value for name, value in row.items() if name.startswith(('train_', 'eval_'))}
    if SECONDS in record:
        log(job.args, f'all {job.epochs} epochs are done')
        return {'time': record.pop(SECONDS), **record}
    log(job.args, f'all {job.epochs} epochs are done; evaluating')
    return {f'eval_{name}': value for name, value in evaluate(job, flag).items()}


def train(
        job: TrainingJob,
        given: dict[str, Any],
        command: str,
        run_dir: Path,
        flag,
) -> dict[str, Any]:
    """One run, to its last checkpoint and results.json in `run_dir`; `given` are its options for args.yaml."""
    args, device, started = job.args, job.device, time.monotonic()
    checkpoint = resumed_checkpoint(args, run_dir)
    start_epoch = resume(job, checkpoint)
    result = finished_results(run_dir, job.epochs) if start_epoch >= job.epochs else None
    if result is not None:
        log(args, f'\nall {job.epochs} epochs are done, and {run_dir / RESULTS} is complete: it stays as it is')
        return {'result': result, 'model': evaluated_model(job), 'job': job}
    prepare(job)
    saver = None
    if utils.is_primary(args):
        read_epochs(run_dir, start_epoch)  # one that cannot be read is better known before the work
        saver = create_saver(job, run_dir, checkpoint, start_epoch)
        save_args(given, run_dir, command)
    announce(job, run_dir, start_epoch)
    record = {}
    for epoch in range(start_epoch, job.epochs):
        record = run_epoch(epoch, job, saver, run_dir, flag)
        log(args, format_epoch(epoch, record, job.labels))
        if record.get('eval_zero_maps', 0) > 0.5 and epoch == start_epoch:
            log(args, f"warning: {record['eval_zero_maps']:.0%} of the images have an attention map of zeros; see "
                      f'--icasc-layers')
        flag.raise_if_set()
    if not record:
        record = last_record(job, run_dir, flag)
    result = {
        'method': method_used(job), 'epochs': job.epochs, 'world_size': args.world_size, 'last': record,
        'wall_time': time.monotonic() - started, **provenance(args, command), 'model': model_record(job)}
    if device.type == 'cuda':
        result['peak_memory_mib'] = torch.cuda.max_memory_allocated() / 2 ** 20
    if saver is not None:
        result['best'] = {args.eval_metric: saver.best_metric, 'epoch': saver.best_epoch}
        write_text(run_dir / RESULTS, json.dumps(result, indent=2) + '\n')
    return {'result': result, 'model': evaluated_model(job), 'job': job}


def draw(args: argparse.Namespace, run_dir: Path, runs: dict[str, dict[str, Any]]) -> None:
    """The figure of attention maps, of data that can be looked up."""
    job = next(iter(runs.values()))['job']
    if hasattr(job.val_set, '__len__') and job.layers is not None:
        try:
            log(args, f'\nattention maps: {printable(validation_figure(runs, run_dir / FIGURE))}')
        except WriteError:
            raise
        except Exception as e:  # the run is done and saved; a missing font must not make it look failed
            log(args, f'\nattention maps: not drawn, {type(e).__name__}: {one_line(e)}')


def chosen_methods(args: argparse.Namespace) -> list[tuple[str, bool]]:
    """Name, and whether it trains with ICASC, of each run that the options ask for."""
    methods = list(zip(COMPARED, (False, True), strict=True))
    return methods if args.icasc_compare else [
        method for method in methods if method[1] == args.icasc]


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


def check_push(job: TrainingJob) -> None:
    """Find out before the first step what would keep the weights from being published after the last."""
    args = job.args
    if args.push_to_hub and utils.is_primary(args):
        check_license(check_publishable(model_record(job), args.license), args.push_to_hub)


def begin(args: argparse.Namespace, stack: ExitStack) -> None:
    """Say what is gone on with, and keep other processes out of it."""
    if args.resume == 'auto' and not args.run_dir:
        log(args, f"--resume auto: '{args.output}' has no run {args.experiment or 'yet'}: a new one begins")
    elif args.resume == 'auto':
        log(args, f"--resume auto: '{args.run_dir}' goes on")
    if args.run_dir:
        be_alone(args, Path(args.run_dir), stack)


def be_alone(args: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    """Lock the folder of a run until `stack` is closed."""
    if utils.is_primary(args):
        stack.enter_context(alone_in(folder, 'another train_timm.py'))


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
        runs[method_label(job)] = train(job, {**given, **choice}, command, folder, flag)
    return runs


def report_interrupt(args: argparse.Namespace, interrupt: Interrupted) -> None:
    """Say what the run has left, and how it goes on: with as many processes as now."""
    if not args.run_dir:
        print(f'\ninterrupted ({interrupt}) before the first step', file=sys.stderr)
    elif utils.is_primary(args):
        run_dir = Path(args.run_dir)
        state = 'holds the last whole epoch' if [*run_dir.glob(SUMMARY), *run_dir.glob(f'*/{SUMMARY}')] else \
            'holds the model as it began, and no whole epoch'
        words = [
            *launcher(), 'train_timm.py', '--resume', 'auto', '--output', str(run_dir.parent), '--experiment',
            run_dir.name]
        for option, value in (('--push-to-hub', args.push_to_hub), ('--license', args.license)):
            words += [option, value] if value else []
        print(
            f'\ninterrupted ({interrupt}); {printable(run_dir)} {state}. Go on with: {shell_command(words)}',
            file=sys.stderr)


def main() -> int:
    parser = build_parser()
    set_up_messages(parser)
    try:
        args = parse_args()
        check_version('timm', timm.__version__, TIMM_FOR_TRAINING, 'training')
        given = dict(vars(args))
        command = command_of(given, Path(args.run_dir) if args.run_dir else None)
        device = set_up_device(args)
        icasc_config(args)
        if args.push_to_hub and utils.is_primary(args):
            repo_name(args.push_to_hub)  # what the upload lacks should not be found out after the training
        with ExitStack() as stack:
            begin(args, stack)
            with stopping_loaders(), interruptible() as flag:
                runs = train_chosen(args, given, command, device, flag, stack)
            finish(args, Path(args.run_dir), runs)
    except (ICASCError, OSError, RuntimeError) as e:
        return report_error(e, parser)
    except Interrupted as e:
        report_interrupt(args, e)
        return e.exit_code
    return 0


if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # a second Ctrl-C, or one while starting
        sys.exit(130)
