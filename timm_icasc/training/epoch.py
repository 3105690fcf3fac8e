"""One epoch: its training steps, and what is measured after them."""
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn as nn
from timm import utils
from tqdm import tqdm

from ..errors import DataError, NonFiniteLossError
from ..features.module_state import unwrap_model
from ..objective.separability import evaluate_attention
from .interrupt import StopSignal
from .job import TrainingJob, icasc_config

__all__ = ['evaluate', 'evaluated_model', 'train_one_epoch']


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
    return images, target


def timed(batches: Iterable, waits: list[float]) -> Iterator:
    """What `batches` yields; the seconds that each took to come are added to `waits`."""
    iterator, end = iter(batches), object()
    while True:
        started = time.monotonic()
        batch = next(iterator, end)
        waits.append(time.monotonic() - started)
        if batch is end:
            return
        yield batch


def train_one_epoch(epoch: int, job: TrainingJob, flag: StopSignal) -> dict[str, float]:
    """One epoch; returns the sample means of every scalar in the task's results, and the share of time that it waited.

    That share, from 0 to 1 and named 'waiting', is of the time of this process that went by until the next images came.
    """
    args, task, batches = job.args, job.task, len(job.loader_train)
    updates = epoch * job.updates_per_epoch
    sums, counts, waits, started = {}, {}, [], time.monotonic()
    sum_dtype = torch.float32 if job.device.type == 'mps' else torch.float64
    task.train()
    for module in job.frozen:
        module.eval()
    job.optimizer.zero_grad()
    bar = progress(job, job.loader_train, f'epoch {epoch + 1}')
    for index, (images, target) in enumerate(timed(flag.batches(bar), waits)):
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
    return {**means, 'waiting': sum(waits) / (time.monotonic() - started)}


@torch.no_grad()
def validate(model: nn.Module, job: TrainingJob, flag: StopSignal) -> dict[str, float]:
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


def evaluate(job: TrainingJob, flag: StopSignal) -> dict[str, float]:
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
