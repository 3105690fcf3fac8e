"""One run, from its first epoch or the one that it goes on with to results.json."""
import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image
from timm import utils

from ..data import begin_epoch
from ..errors import ICASCError, NonFiniteLossError, one_line
from ..foreign_text import printable
from ..labels import MULTI
from ..runs.begin import save_args
from ..runs.epochs import SECONDS, add_epoch, epoch_record, read_epochs, seconds_of_epochs
from ..runs.find import finished_results
from ..runs.folder import LAST, RESULTS, SUMMARY
from ..runs.provenance import provenance
from ..runs.tables import write_json
from .arguments import icasc_config
from .console import LOSSES, format_epoch, format_header, log
from .epoch import evaluate, evaluated_model, is_validated, share_statistics, train_one_epoch
from .fine_tune import base_lr
from .interrupt import StopSignal
from .job import TrainingJob, seed_epoch
from .loaders import mixes
from .model_record import model_record
from .processes import check_alike, check_same_options, said_by_first
from .resume import resume, resumed_checkpoint
from .run_warnings import empty_maps, unreached
from .saver import CheckpointSaver
from .trackers import tracking

__all__ = ['method_label', 'train']

# Share of an epoch's training from which on it is said that images are waited for.
SLOW_IMAGES = 0.3

LOSS_NAMES = {'ce': 'cross-entropy', 'bce': 'binary cross-entropy', 'asl': 'asymmetric loss', 'poly': 'PolyLoss'}


def loss_name(job: TrainingJob) -> str:
    return 'soft margin' if job.labels is MULTI else LOSS_NAMES[job.args.loss]


def method_label(job: TrainingJob) -> str:
    """What is trained, as a heading."""
    name = loss_name(job)
    return 'ICASC' if job.args.icasc else name[0].upper() + name[1:]


def method_used(job: TrainingJob) -> str:
    """The method in words, for results.json."""
    args, loss = job.args, loss_name(job)
    if not args.icasc or not any(icasc_config(args).weights.values()):
        return loss
    attention = ' '.join([args.icasc_attention, *(f'with defect {name}' for name in args.icasc_defects)])
    return f'ICASC {attention}, order {args.icasc_order}' + f', {loss}' * (args.loss != 'ce')


def prepare(job: TrainingJob) -> None:
    """Compile the task and spread it over the processes, as the options say."""
    args = job.args
    if args.torchcompile:
        try:
            job.task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        except Exception as e:
            raise ICASCError(f"--torchcompile {args.torchcompile}: {one_line(e)}") from e
    if args.distributed:
        buffers = {'broadcast_buffers': False} if args.no_ddp_bb else {}
        with warnings.catch_warnings():
            # The name that torch advises means another thing.
            warnings.filterwarnings('ignore', '.*broadcast_buffers.* is deprecated')
            job.task.prepare_distributed(
                device_ids=[job.device] if job.device.type == 'cuda' else None, **buffers)


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
        max_history=args.checkpoint_hist, class_names=job.names, fingerprints=job.fingerprints)
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
    for text in unreached(job):
        log(args, f'warning: {text}')
    if start_epoch:
        log(args, f'resumed after epoch {start_epoch}')
    log(args, format_header(job.labels))


def out_of_patience(job: TrainingJob, saver: CheckpointSaver | None, epoch: int) -> bool:
    """Whether the run ends behind this epoch: the best one was too long ago. The first process says it to all."""
    args = job.args
    if args.patience is None or epoch < 0 or not is_validated(job, epoch):
        return False
    best = None if saver is None else saver.best_epoch
    ends = said_by_first(args, best is not None and epoch - best >= args.patience)
    if ends and best is not None and epoch < job.epochs - 1:
        log(args, f'--patience {args.patience}: none was better since epoch {best + 1}; the run ends')
    return ends


def run_epoch(
        epoch: int,
        job: TrainingJob,
        saver: CheckpointSaver | None,
        run_dir: Path,
        flag: StopSignal,
) -> dict[str, Any]:
    """Train, evaluate and save one epoch; returns what results.json tells of it.

    Raises:
        NonFiniteLossError: The loss or class scores became NaN or infinite; this epoch is not saved.
    """
    args, started, rate = job.args, time.monotonic(), base_lr(job.optimizer)
    seed_epoch(args, epoch)
    begin_epoch(job.train_set, epoch)
    if args.distributed and hasattr(job.loader_train.sampler, 'set_epoch'):
        job.loader_train.sampler.set_epoch(epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and mixes(args):
        (job.mixup or job.loader_train).mixup_enabled = False
    validated = is_validated(job, epoch)
    try:
        train_metrics = train_one_epoch(epoch, job, flag)
        share_statistics(job)
        eval_metrics = evaluate(job, flag) if validated else {}
    except NonFiniteLossError as e:
        raise NonFiniteLossError(f'{e} The last checkpoint is from before epoch {epoch + 1}.') from e
    metric = eval_metrics[args.eval_metric] if validated else None
    if job.scheduler is not None:
        job.scheduler.step(epoch + 1, metric)
    measured = {
        **{f'train_{name}': train_metrics.get(name) for name in LOSSES},
        **{f'eval_{name}': value for name, value in eval_metrics.items()}}
    record = {'time': time.monotonic() - started, 'waiting': train_metrics['waiting'], **measured}
    if saver is not None:
        if not run_dir.is_dir():  # a new one would lack the files of the epochs before
            raise ICASCError(f"'{run_dir}': the folder of the run is not there any more.")
        add_epoch(run_dir, epoch, {
            **measured, SECONDS: round(record['time'], 2), 'lr': rate})
        saver.save_checkpoint(epoch, metric=metric)
    return record


def last_record(job: TrainingJob, run_dir: Path, epochs: int, flag: StopSignal) -> dict[str, Any]:
    """What results.json tells of the last epoch of a run that has done all; of its table, or evaluated anew."""
    row = {} if (run_dir / RESULTS).is_file() else epoch_record(run_dir, epochs - 1)
    row = said_by_first(job.args, row)
    record = {name: value for name, value in row.items() if name.startswith(('train_', 'eval_'))}
    if SECONDS in record and record.get(f'eval_{job.args.eval_metric}') is not None:  # --val-interval skips epochs
        log(job.args, f'all {epochs} epochs are done')
        return {'time': record.pop(SECONDS), **record}
    log(job.args, f'all {epochs} epochs are done; evaluating')
    return {f'eval_{name}': value for name, value in evaluate(job, flag).items()}


def finished_before(job: TrainingJob, run_dir: Path, epochs: int) -> dict[str, Any] | None:
    """results.json of a run that has nothing left to do after so many epochs; None where it has."""
    result = finished_results(run_dir, epochs)
    ended_by = None if result is None else result.get('ended_by_patience')
    return result if epochs >= job.epochs or ended_by and ended_by == job.args.patience else None


def drawn(
        job: TrainingJob,
        draw: Callable[[TrainingJob], Image.Image | None] | None,
) -> Image.Image | None:
    """The maps that are logged of an epoch; the training is worth more than they are."""
    try:
        return draw(job) if draw else None
    except Exception as e:
        log(job.args, f'warning: the maps of this epoch are not drawn: {one_line(e)}')
        return None


def run_epochs(
        job: TrainingJob,
        start_epoch: int,
        saver: CheckpointSaver | None,
        run_dir: Path,
        flag: StopSignal,
        draw: Callable[[TrainingJob], Image.Image | None] | None,
) -> tuple[int, dict[str, Any]]:
    """The epochs that are left; returns how many the run has done then, and the record of the last one."""
    args, record, epoch, warned = job.args, {}, start_epoch, False
    options = {name: value for name, value in vars(args).items() if name != 'run_dir'}
    tracked = tracking(args, run_dir, start_epoch, options) if saver is not None else nullcontext()
    with tracked as track:
        while epoch < job.epochs and not out_of_patience(job, saver, epoch - 1):
            rate = base_lr(job.optimizer)
            record = run_epoch(epoch, job, saver, run_dir, flag)
            log(args, format_epoch(epoch, record, job.labels))
            if epoch == start_epoch and record['waiting'] > SLOW_IMAGES:
                log(args, f"{record['waiting']:.0%} of the training time went by waiting for images; docs/training.md, "
                          f"'Speed of data loading', says what helps")
            has_begun = args.icasc and epoch >= args.icasc_start_epoch
            if has_begun and not warned and (found := empty_maps(record, args.icasc_theta)):
                log(args, f'warning: {found}; smaller --icasc-weights, a later --icasc-start-epoch or another '
                          f'--icasc-attention keeps them, or other --icasc-layers (docs/training.md)')
                warned = True
            if track is not None:
                numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
                track(epoch, {**numbers, 'lr': rate}, drawn(job, draw))
            epoch += 1
            flag.raise_if_set()
    return epoch, record


def train(
        job: TrainingJob,
        given: dict[str, Any],
        command: str,
        run_dir: Path,
        flag: StopSignal,
        draw: Callable[[TrainingJob], Image.Image | None] | None = None,
) -> dict[str, Any]:
    """One run, to its last checkpoint and results.json.

    Args:
        job: What is trained.
        given: Its options for args.yaml.
        command: That began it.
        run_dir: Its folder.
        flag: Whether to stop.
        draw: Draws the maps that are logged of an epoch.

    Returns:
        The 'result' (results.json), the 'model' and the 'job'.
    """
    args = job.args
    check_same_options(args, given)
    same_files = '--data-dir must hold the same files on all machines'
    check_alike(args, (job.fingerprints, job.names), 'images', same_files)
    checkpoint = resumed_checkpoint(args, run_dir)
    start_epoch = resume(job, checkpoint)
    result = said_by_first(args, finished_before(job, run_dir, start_epoch))
    if result is not None:
        log(args, f'\nall {start_epoch} epochs are done, and {run_dir / RESULTS} is complete: it stays as it is')
        return {'result': result, 'model': evaluated_model(job), 'job': job}
    prepare(job)
    saver = None
    if utils.is_primary(args):
        told = len(read_epochs(run_dir, start_epoch))  # one that cannot be read is better known before the work
        if told < start_epoch and args.run_dir:
            log(args, f"warning: '{run_dir / SUMMARY}' tells of {told} of the {start_epoch} epochs done: tables and "
                      f'figures will lack the others')
        if checkpoint is None:  # --resume auto goes on by it alone; what began elsewhere needs its checkpoint too
            save_args(given, run_dir, command)
        saver = create_saver(job, run_dir, checkpoint, start_epoch)
        if checkpoint is not None:
            save_args(given, run_dir, command)
    announce(job, run_dir, start_epoch)
    epochs, record = run_epochs(job, start_epoch, saver, run_dir, flag, draw)
    if not record:
        record = last_record(job, run_dir, epochs, flag)
    result = {
        'method': method_used(job), 'epochs': epochs, 'world_size': args.world_size,
        'ended_by_patience': args.patience if epochs < job.epochs else None, 'last': record,
        **provenance(args, command),
        'model': model_record(job)}
    if (peak := job.memory.mib()) is not None:
        result['peak_memory_mib'] = peak
    if saver is not None:
        result['best'] = {args.eval_metric: saver.best_metric, 'epoch': saver.best_epoch}
        result['wall_time'] = seconds_of_epochs(run_dir, epochs)
        write_json(run_dir / RESULTS, result)  # without NaN, which is no JSON
    return {'result': result, 'model': evaluated_model(job), 'job': job}
