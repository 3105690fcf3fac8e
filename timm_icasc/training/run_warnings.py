"""What a user should know of a run that goes on all the same."""
from collections.abc import Iterator
from typing import Any

from .arguments import icasc_config
from .job import TrainingJob

__all__ = ['empty_maps', 'unreached']


def unreached(job: TrainingJob) -> Iterator[str]:
    """What the options ask for and the run does not come to."""
    args, epochs = job.args, f'--epochs {job.epochs}'
    if args.icasc:
        start, ramp = args.icasc_start_epoch, args.icasc_ramp_epochs
        if not any(icasc_config(args).weights.values()):
            yield 'this trains like --no-icasc: all three of --icasc-weights are 0'
        elif start >= job.epochs:
            yield f'the terms of ICASC never start: --icasc-start-epoch {start:g}, but {epochs}'
        elif start + ramp > job.epochs:
            given = f'--icasc-start-epoch {start:g} and --icasc-ramp-epochs {ramp:g}'
            yield f'the terms of ICASC never come to their weights: {given}, but {epochs}'
    if job.scheduler is None or not args.warmup_epochs:
        return
    if args.warmup_epochs >= job.epochs:
        yield f'the learning rate never comes to --lr: --warmup-epochs {args.warmup_epochs}, but {epochs}'
    if args.warmup_lr > args.lr:
        yield f'the warm-up begins above --lr {args.lr:g}: --warmup-lr {args.warmup_lr:g}'


def empty_maps(record: dict[str, Any], theta: float) -> str | None:
    """What says that the terms have emptied the maps, which is a way to a small loss; None where nothing does.

    Where no maps are measured it is the terms themselves: without an inner map, Eq. 3 is 0 and Eq. 5 is theta.
    """
    share = record.get('eval_zero_maps')
    if share is not None:
        return f'{share:.0%} of the images have an attention map of zeros' if share > 0.5 else None
    inner, ac = record.get('train_loss_as_inner'), record.get('train_loss_ac')
    if None in (inner, ac) or inner > 0.01 or ac < 0.95 * theta:
        return None
    return f'most inner attention maps are zeros (L_AS inner {inner:.4f}, L_AC {ac:.3f} of at most {theta:g})'
