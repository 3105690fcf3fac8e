"""How a run goes on: the checkpoint that is meant, what must not have changed since, and its state."""
import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.task
from timm.utils.checkpoint_saver import load_checkpoint_metadata

from ..data import is_stream
from ..errors import DataError, ICASCError, one_line
from ..labels import check_same_classes
from ..runs.epochs import read_epochs
from ..runs.folder import CLASS_NAMES, FINGERPRINTS, LAST
from ..runs.intact import check_intact
from ..task.icasc import ICASCTask
from .console import log
from .job import TrainingJob
from .option_names import flag_of
from .processes import check_alike

__all__ = ['resume', 'resumed_checkpoint']

# What options say of a group of parameters; what else is there is the optimiser's own, as a count of its steps.
OF_OPTIONS = ('weight_decay', 'momentum', 'nesterov', 'betas', 'eps', 'lr_scale')

RANKED_BY = ('eval_metric', 'val_split')  # what makes an epoch the best, and of which images

# What makes the method that the results are of.
METHOD_BY = ('loss', 'icasc_attention', 'icasc_order', 'icasc_defects')

# What says which images there are, how they are given to the network and what is learned of them: epochs before and
# after do not compare.
COMPARED_BY = (
    'dataset', 'data_dir', 'train_split', 'limit_train', 'class_map', 'image_endings', 'input_key', 'target_key',
    'img_size', 'input_size', 'crop_pct', 'crop_mode', 'interpolation', 'mean', 'std', 'icasc_weights', 'icasc_theta',
    'icasc_sigma', 'icasc_omega', 'icasc_mask_scale', 'icasc_mask_grad', 'icasc_multilabel_maps', 'icasc_share',
    'icasc_rival', 'icasc_layers')

# What says how parameters fall into groups, of each of which the optimiser has a state.
GROUPED_BY = (
    'weight_decay', 'layer_decay', 'layer_decay_min_scale', 'layer_decay_no_opt_scale', 'head_lr_scale', 'freeze_until',
    'model')


def resumed_checkpoint(args: argparse.Namespace, run_dir: Path) -> Path | None:
    """The checkpoint that --resume means; None where there is nothing to go on with."""
    checkpoint = Path(args.resume) if args.resume not in ('', 'auto') else run_dir / LAST
    return checkpoint if args.resume and checkpoint.is_file() else None


def check_ranking(
        job: TrainingJob,
        was: argparse.Namespace | None,
        saver: dict[str, Any],
) -> None:
    """Refuse to rank the epochs to come by something else than those so far: the best epoch would be of neither.

    Args:
        job: The training.
        was: Those of the checkpoint.
        saver: What the checkpoint tells of the epochs so far.
    """
    args, ranked = job.args, saver.get('best_metric') is not None or saver.get('pending', (None, None))[1] is not None
    if not ranked or args.run_dir is None:  # a checkpoint from elsewhere begins a folder, and a ranking, of its own
        return
    own = job.fingerprints['val']
    same_images = own is not None and own == (saver.get(FINGERPRINTS) or {}).get('val')
    for name in RANKED_BY:
        if name == 'val_split' and same_images:  # under another of its names
            continue
        before, now = getattr(was, name, None), getattr(args, name)
        if before not in (None, now):
            option = flag_of(name)
            raise ICASCError(
                f"{option} was {before} in the epochs that the run has done, and by it the best one was chosen: leave "
                f'{option} {now} out, or begin a new run.')


def _as_written(value: Any) -> Any:
    """An option's value as a file of options has it, for comparisons and messages."""
    if value in (None, ''):
        return 'not given'
    return list(value) if isinstance(value, tuple) else value


def changed(
        args: argparse.Namespace,
        was: argparse.Namespace | None,
        names: Sequence[str],
) -> list[tuple[str, Any, Any]]:
    """Option, what it was in the run so far, and what it is, of those that have changed."""
    found = []
    for name in names:
        before, now = (_as_written(getattr(options, name, None)) for options in (was, args))
        if hasattr(was, name) and before != now:
            found.append((flag_of(name), before, now))
    return found


def _image_size(args: argparse.Namespace | None) -> list[int] | None:
    """Height and width as an option says them; None where none does."""
    side, size = getattr(args, 'img_size', None), getattr(args, 'input_size', None)
    return size[1:] if size else side and [side, side]


def warn_of_changes(
        job: TrainingJob,
        was: argparse.Namespace | None,
        fingerprints: dict[str, str | None],
) -> None:
    """Say what keeps the epochs to come from being compared with those so far; the same images may lie elsewhere."""
    args, elsewhere = job.args, []
    known = [split for split, own in job.fingerprints.items() if own and fingerprints.get(split)]
    if len(known) == len(job.fingerprints):
        elsewhere += ['data_dir', 'train_split', 'image_endings']
    if _image_size(was) == _image_size(args):
        elsewhere += ['img_size', 'input_size']
    names = [name for name in COMPARED_BY if name not in elsewhere]
    if args.limit_train is not None:
        names.append('seed')  # which draws them
    for option, before, now in changed(args, was, names):
        log(args, f'warning: {option} was {before} so far, and is {now} now: the epochs do not compare')
    for split in known:
        if fingerprints[split] != job.fingerprints[split]:
            name = getattr(args, f'{split}_split')
            log(args, f'warning: --{split}-split {name} has other images than so far: the epochs do not compare')


def check_unchanged(job: TrainingJob, checkpoint: Path) -> None:
    """Refuse to go on with other classes, or another ranking; warn of another number of processes."""
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
    if (before := getattr(was, 'opt', args.opt)) != args.opt:
        raise ICASCError(
            f'--opt was {before} so far, and the state of the run is of that: leave --opt {args.opt} '
            f'out, or begin a new run with --initial-checkpoint.')
    check_ranking(job, was, saver)
    if (before := getattr(was, 'icasc', args.icasc)) != args.icasc:
        options = ('--no-icasc', '--icasc')
        raise ICASCError(
            f'the epochs so far are {options[before]}, these would be {options[args.icasc]}, and the results of '
            f'neither: leave it as it was, let the terms start later (--icasc-start-epoch), or begin a new run with '
            f'--initial-checkpoint.')
    for option, before, now in changed(args, was, METHOD_BY if args.icasc else METHOD_BY[:1]):
        raise ICASCError(
            f'{option} was {before} in the epochs so far, and the results would be of neither: leave {option} {now} '
            f'out, or begin a new run with --initial-checkpoint.')
    warn_of_changes(job, was, saver.get(FINGERPRINTS) or {})
    names = ('world_size', 'batch_size', 'grad_accum_steps')
    before, now = ([getattr(of, name, getattr(args, name)) for name in names] for of in (was, args))
    if math.prod(before) != math.prod(now):
        told = '{} process(es) with --batch-size {} and --grad-accum-steps {}'
        log(args, f'warning: the run had {told.format(*before)}, this is {told.format(*now)}: its updates are of other '
                  f'batches. Other values, or torchrun --nproc_per_node={before[0]}, keep them')


def repeat_plateaus(job: TrainingJob, start_epoch: int, checkpoint: Path) -> None:
    """Bring --sched plateau to where it was: its state is in no checkpoint, but follows from the epochs so far."""
    column, scheduler = f'eval_{job.args.eval_metric}', job.scheduler
    metrics = [row.get(column) for row in read_epochs(checkpoint.parent, start_epoch)]
    if len(metrics) < start_epoch or not all(metrics):
        log(job.args, f"warning: beside '{checkpoint}' is no table of its {start_epoch} epochs: --sched plateau counts "
                      f'anew')
        return
    scheduler.update_groups(scheduler.base_values)
    for epoch, metric in enumerate(metrics, 1):
        scheduler.step(epoch, float(metric))


def resume_schedule(job: TrainingJob, start_epoch: int, checkpoint: Path) -> None:
    """Bring the learning rate to where it was after so many epochs."""
    if job.args.sched == 'plateau':
        repeat_plateaus(job, start_epoch, checkpoint)
    elif job.args.sched_on_updates:
        job.scheduler.step_update(start_epoch * job.updates_per_epoch)
    else:
        job.scheduler.step(start_epoch)


def count_steps(job: TrainingJob, start_epoch: int) -> None:
    """Count the steps done in batches of now: those of the checkpoint may have been of another size.

    So the terms of ICASC set in at the epoch that --icasc-start-epoch says. How many a stream has made is not foreseen.
    """
    if isinstance(job.task, ICASCTask) and not is_stream(job.train_set):
        job.task.step = start_epoch * len(job.loader_train)


def explain_groups(args: argparse.Namespace, checkpoint: Path, message: str) -> str:
    """What torch says of a checkpoint; where options have put parameters into other groups, that and the remedy."""
    if 'parameter group' not in message and "optimizer's group" not in message:
        return message
    options = changed(args, load_checkpoint_metadata(str(checkpoint)).get('args'), GROUPED_BY)
    told = ', '.join(f'{option} was {before} so far and is {now} now' for option, before, now in options) or message
    return (
        f'{told}, so that the parameters are grouped in another way than the state of the optimiser: leave the change '
        f'out, or begin a new run from the weights with --initial-checkpoint.')


def resume(job: TrainingJob, checkpoint: Path | None) -> int:
    """Load the checkpoint, if there is one; returns the epoch to go on with."""
    args = job.args
    check_alike(args, 'none' if checkpoint is None else 'there', 'checkpoint to go on from')
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
    rates = [group['lr'] for group in job.optimizer.param_groups]
    given = [
        {name: group[name] for name in (*OF_OPTIONS, *args.opt_kwargs) if name in group}
        for group in job.optimizer.param_groups]
    try:
        start_epoch = timm.task.resume_task_checkpoint(
            job.task, str(checkpoint), job.optimizer, job.scaler, log_info=False)
        if args.model_ema:
            timm.task.load_task_ema_checkpoint(job.task, str(checkpoint))
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        reason = explain_groups(args, checkpoint, one_line(e, 300))
        raise ICASCError(f"--resume: '{checkpoint}' does not fit this run: {reason}") from e
    if start_epoch is None:
        raise ICASCError(
            f"--resume: '{checkpoint}' holds weights and no epoch, so there is no run to go on with: begin one from "
            f'them with --initial-checkpoint.')
    check_alike(args, start_epoch, 'epoch to go on from')
    count_steps(job, start_epoch)
    for group, options in zip(job.optimizer.param_groups, given, strict=True):
        group.update(options)
    if job.scheduler is None or start_epoch == 0:  # the rates of now, not the checkpoint's
        for group, rate in zip(job.optimizer.param_groups, rates, strict=True):
            group['lr'] = rate
    else:
        resume_schedule(job, start_epoch, checkpoint)
    return start_epoch
