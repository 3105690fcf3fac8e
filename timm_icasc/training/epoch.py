"""One epoch: its training steps, and what is measured after them."""
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn as nn
from timm import utils
from timm.data import Mixup
from tqdm import tqdm

from ..data import is_stream
from ..errors import DataError, NonFiniteLossError
from ..features.module_state import evaluation_mode
from ..features.outputs import without_order
from ..features.wrappers import run_eagerly, unwrap_model
from ..objective.separability import evaluate_attention
from .arguments import icasc_config
from .interrupt import StopSignal
from .job import TrainingJob
from .processes import sum_of_all, true_in_all

__all__ = ['evaluate', 'evaluated_model', 'is_validated', 'share_statistics', 'train_one_epoch']

SMALLER_STEPS = 'lower --lr, set --clip-grad, or let the ICASC terms set in later (--icasc-start-epoch)'


def progress(job: TrainingJob, loader, description: str) -> tqdm:
    return tqdm(
        loader, desc=description, leave=False, disable=not utils.is_primary(job.args) or None)


def update_weights(job: TrainingJob) -> None:
    """Clip the gradients, and let the optimiser use them."""
    args, scaler, optimizer = job.args, job.scaler, job.optimizer
    if args.clip_grad is not None:
        if scaler is not None:
            scaler.unscale(optimizer)
        # AGC leaves the head out.
        parameters = list(job.model.parameters())[:-2 if args.clip_mode == 'agc' else None]
        utils.dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
    if scaler is None:
        optimizer.step()
    else:
        scaler.update(optimizer)


def is_validated(job: TrainingJob, epoch: int) -> bool:
    """Whether an epoch, counted from 0, is one of those that --val-interval asks for, or the last one."""
    return epoch % job.args.val_interval == 0 or epoch == job.epochs - 1


def check_finite(means: dict[str, float], epoch: int, step: int) -> None:
    """Raise NonFiniteLossError where the mean loss of the epoch so far is NaN or infinite.

    The loss of a step is that of the weights before its update: what the last update does, `check_scores` looks at.
    """
    if np.isfinite(means['loss']):
        return
    terms = ', '.join(f'{name} {value:.3g}' for name, value in means.items() if name != 'loss')
    said = f"the loss became {means['loss']} in epoch {epoch + 1}, step {step + 1} ({terms})"
    if not step:  # the weights as the epoch found them
        said += ', before an update of it: train anew, or --resume an earlier checkpoint, and'
    raise NonFiniteLossError(f"{said}{':' * bool(step)} {SMALLER_STEPS}.")


def check_scores(job: TrainingJob, ordered: torch.Tensor, averaged: bool) -> None:
    """Raise NonFiniteLossError, in every process, where class scores in one of them are `without_order`.

    Weights that an update has broken may be huge and finite, as their loss before the update was; their scores are
    not. What still goes by are weights that have forgotten all, but whose scores of the images looked at are finite.

    Args:
        job: What is trained.
        ordered: Whether those in this process all have one, a bool of no dimension.
        averaged: Whether they are of the averaged weights.
    """
    if not true_in_all(job.args, bool(ordered)):
        by = ' by the averaged weights (--model-ema)' if averaged else ''
        raise NonFiniteLossError(f'the class scores{by} became NaN or infinite: {SMALLER_STEPS}.')


@torch.no_grad()
def check_unseen(epoch: int, job: TrainingJob, images: torch.Tensor) -> None:
    """`check_scores` of the weights that `evaluate` will not look at, on the last images that they were trained on.

    Those are the weights behind an average, and all weights of an epoch without validation.
    """
    validated, ema = is_validated(job, epoch), job.task.has_ema()
    unseen = {False: job.model} if ema or not validated else {}
    if ema and not validated:
        unseen[True] = evaluated_model(job)
    for averaged, model in unseen.items():
        with evaluation_mode(model), run_eagerly(model), job.autocast():
            ordered = ~without_order(model(images)).any()
        check_scores(job, ordered, averaged)


def make_batch(
        job: TrainingJob,
        images: torch.Tensor,
        target: torch.Tensor,
        mixup: Mixup | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a loader yields, as the model takes it."""
    images, target = images.to(job.device), target.to(job.device)
    if mixup is not None:
        images, target = mixup(images, target)
    if job.args.channels_last:
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
        images, target = make_batch(job, images, target, job.mixup)
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
    check_unseen(epoch, job, images)
    return {**means, 'waiting': sum(waits) / (time.monotonic() - started)}


@torch.no_grad()
def validate(
        model: nn.Module,
        job: TrainingJob,
        flag: StopSignal,
        averaged: bool,
) -> dict[str, float]:
    """Loss, top-1 and top-5 on the validation images, or the measures of multi-label classification.

    Args:
        model: What is measured.
        job: Its data and options.
        flag: Whether to stop.
        averaged: Whether the weights of the model are averaged ones.

    Raises:
        NonFiniteLossError: A class score is NaN or infinite: as accuracy, NaN counts for the first class.
    """
    model.eval()
    evaluator, ordered, count = job.create_evaluator(), torch.tensor(True, device=job.device), 0
    for images, target in flag.batches(progress(job, job.loader_val, 'validation')):
        images, target = make_batch(job, images, target)
        with job.autocast():
            output = model(images)
        job.labels.check(output, target)
        ordered &= ~without_order(output).any()  # nothing waits for it here
        evaluator.update(output, target)
        count += len(target)
    check_scores(job, ordered, averaged)
    if is_stream(job.val_set):  # whose length is an estimate
        job.val_images = sum_of_all(job.args, count)
    return evaluator.compute(distributed=job.args.distributed)


def share_statistics(job: TrainingJob) -> None:
    """Let all processes have the same BatchNorm statistics: the first one's are saved, and all go on with them."""
    args = job.args
    if args.distributed and args.dist_bn:
        for model in dict.fromkeys([job.model, evaluated_model(job)]):  # averaged weights have statistics of their own
            utils.distribute_bn(model, args.world_size, args.dist_bn == 'reduce')


def evaluate(job: TrainingJob, flag: StopSignal) -> dict[str, float]:
    """Accuracy, and how well the attention maps tell classes apart; of the averaged weights where there are any."""
    args, ema = job.args, job.task.has_ema()
    metrics = validate(job.task.get_eval_model(ema=ema), job, flag, averaged=ema)
    if job.attention_loader is not None and utils.is_primary(args):
        batches = flag.batches(progress(job, job.attention_loader, 'attention'))
        metrics.update(evaluate_attention(
            evaluated_model(job), batches, icasc_config(args), job.layers, job.labels))
    return metrics


def evaluated_model(job: TrainingJob) -> nn.Module:
    return unwrap_model(
        job.task.get_trainable_module(ema=True).module if job.task.has_ema() else job.model)
