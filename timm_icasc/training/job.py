"""From the options of timm-icasc train to device, model, task and optimiser; every misfit becomes one clear line."""
import argparse
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torch.nn as nn
from timm import utils
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from torch.utils.data import DataLoader, Dataset

from ..data import class_weights, fingerprint, labels_of
from ..errors import ICASCError, LayerResolutionError, one_line
from ..features.layout import ICASCLayers
from ..features.module_state import evaluation_mode
from ..features.resolve import resolve_layers
from ..labels import MULTI, LabelKind
from ..losses import ClassWeightedLoss, MultiLabelSoftMarginLoss
from ..metrics import MultiLabelEvaluator
from ..task.icasc import ICASCTask, MultiLabelICASCTask
from ..task.public_approach import PublicApproachTask
from .arguments import icasc_config
from .cuda_graph import CudaRecorder, RecordedStep
from .dependent_options import unused_by_optimizer
from .device import PeakMemory, device_fault
from .fine_tune import freeze_until, parameter_groups, scale_constant_rates
from .loaders import mixes, set_up_data, set_up_data_config, set_up_loaders
from .model_factory import check_model_name, set_up_model
from .option_names import flag_of
from .step import Scaler, TrainingStep

# Arguments of timm's optimisers whose options are not called alike.
OF_OPTIMIZER = {'eps': '--opt-eps', 'betas': '--opt-betas'}


def seed_epoch(args: argparse.Namespace, epoch: int) -> None:
    """Every epoch's randomness follows from (seed, epoch, rank) alone, so a resumed run repeats it exactly.

    Of several processes the order of the images is timm's: of the epoch alone.
    """
    state = np.random.SeedSequence((args.seed, epoch + 1, args.rank)).generate_state(1)[0]
    utils.random_seed(int(state) % 2 ** 31)


def set_up_device(args: argparse.Namespace) -> torch.device:
    """The device of this process, and the process group under torchrun."""
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ICASCError(f'--device {args.device}: this machine has no CUDA device; use --device cpu.')
    if fault := device_fault(args.device):
        raise ICASCError(f"--device: cannot use '{args.device}': {fault}")
    if args.amp and args.amp_dtype == 'float16' and args.device.startswith('cpu'):
        raise ICASCError('--amp on a CPU needs --amp-dtype bfloat16.')
    if args.sync_bn and utils.is_distributed_env() and args.device.startswith('cpu'):
        raise ICASCError('--sync-bn: torch has no synchronised BatchNorm for a CPU; leave it out.')
    if args.icasc_fast and (utils.is_distributed_env() or not args.device.startswith('cuda')):
        where = 'several processes' if utils.is_distributed_env() else f'--device {args.device}'
        raise ICASCError(
            f'--icasc-fast records the steps of one process on a CUDA device, not of {where}: leave it '
            f'out (--no-icasc-fast).')
    if args.device.startswith('cuda'):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    try:
        return utils.init_distributed_device(args)
    except (RuntimeError, ValueError) as e:
        raise ICASCError(
            f'the processes of this training cannot find each other ({one_line(e)}): start it with torchrun, or under '
            f'SLURM with srun and MASTER_ADDR and MASTER_PORT exported; WORLD_SIZE=1 makes it one process.') from e


def create_criterion(args: argparse.Namespace, weights: torch.Tensor | None) -> nn.Module:
    """timm's loss for one class per image, with the weights of the classes."""
    criterion = timm.loss.create_classification_loss(
        args.loss, smoothing=args.smoothing, soft_targets=mixes(args),
        bce_target_thresh=args.bce_target_thresh, bce_sum=args.bce_sum,
        pos_weight=args.bce_pos_weight)
    return criterion if weights is None else ClassWeightedLoss(
        criterion, weights, args.smoothing if mixes(args) else 0.)


def set_up_task(
        args: argparse.Namespace,
        model: nn.Module,
        device: torch.device,
        input_size: tuple[int, int, int],
        steps_per_epoch: int,
        labels: LabelKind,
        weights: torch.Tensor | None = None,
) -> ClassificationTask:
    """`ICASCTask` or `MultiLabelICASCTask`, or timm's plain task where ICASC is off.

    Args:
        args: The options; weights of the terms that are not given are settled here.
        model: What is trained.
        device: Where.
        input_size: Channels, height, width of the images.
        steps_per_epoch: Batches an epoch.
        labels: Whether images have one class or any number.
        weights: Of the classes, as from `class_weights`; None for none.
    """
    if labels is MULTI:
        plain_class, icasc_class = timm.task.MultiLabelClassificationTask, MultiLabelICASCTask
        criterion: dict[str, Any] = {'criterion': MultiLabelSoftMarginLoss(weights)}
    else:
        if args.icasc_multilabel_maps != 'joint':
            raise ICASCError(
                f'--icasc-multilabel-maps {args.icasc_multilabel_maps} is for images of several classes, and these '
                f'have one each: leave it out.')
        plain_class, icasc_class = ClassificationTask, ICASCTask
        criterion = {'criterion': create_criterion(args, weights)}
    if args.icasc_weights is None:
        args.icasc_weights = list(icasc_class.default_config.weights.values())
    if not args.icasc:
        return plain_class(model, **criterion, device=device, verbose=False)
    if args.icasc_defects:
        if labels is MULTI:
            raise ICASCError('--icasc-defects is for single-label data; leave it out.')
        icasc_class = partial(PublicApproachTask, defects=args.icasc_defects)
    return icasc_class(
        model, **criterion, config=icasc_config(args), layers=args.icasc_layers,
        input_size=input_size, start_steps=round(args.icasc_start_epoch * steps_per_epoch),
        ramp_steps=round(args.icasc_ramp_epochs * steps_per_epoch), device=device, verbose=False)


def _check_used(args: argparse.Namespace) -> None:
    """Raise ICASCError where the optimiser has no such value; timm leaves it out in silence."""
    flags = {
        'opt_betas': args.opt_betas and '--opt-betas', 'opt_eps': args.opt_eps is not None and '--opt-eps',
        'momentum': args.momentum != 0.9 and f'--momentum {args.momentum:g}'}
    for flag in filter(None, map(flags.get, unused_by_optimizer(args.opt))):
        raise ICASCError(f'{flag} does nothing with --opt {args.opt}: leave it out.')


def set_up_optimizer(
        args: argparse.Namespace,
        model: nn.Module,
        updates_per_epoch: int,
) -> tuple[Any, Any, int]:
    """Optimiser, schedule (None for a constant rate) and number of epochs, cooldown included."""
    if not args.lr:
        update = args.batch_size * args.world_size * args.grad_accum_steps
        growth = update / args.lr_base_size
        args.lr = args.lr_base * (growth ** 0.5 if args.lr_base_scale == 'sqrt' else growth)
    if args.min_lr > args.lr:
        raise ICASCError(f'--min-lr {args.min_lr:g} is above --lr {args.lr:g}, so that the rate would rise: lower it.')
    options = optimizer_kwargs(cfg=args)
    for name in sorted(options.keys() & args.opt_kwargs):
        raise ICASCError(f"--opt-kwargs: '{name}' has an option of its own, {OF_OPTIMIZER.get(name, flag_of(name))}.")
    try:
        optimizer = create_optimizer_v2(
            model, **options, **args.opt_kwargs,
            param_group_fn=None if args.head_lr_scale is None else partial(parameter_groups, args))
    except ICASCError:
        raise
    except IndexError as e:
        given = ' '.join(map(str, args.opt_betas or ()))
        raise ICASCError(f'--opt-betas {given}: --opt {args.opt} needs more of them, as most do two.') from e
    except (ValueError, TypeError, RuntimeError, AssertionError, ImportError) as e:
        raise ICASCError(f"--opt {args.opt}: {one_line(e)}") from e
    _check_used(args)
    if getattr(optimizer, 'is_second_order', False):
        raise ICASCError(
            f'--opt {args.opt} takes second derivatives of the whole loss, which the training does not make: take '
            f'another one.')
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
    except (ValueError, TypeError, AssertionError) as e:
        raise ICASCError(f"--sched {args.sched}: {one_line(e)}") from e
    if scheduler is None:
        scale_constant_rates(optimizer)
    return optimizer, scheduler, epochs


def runs_on(model: torch.nn.Module, input_size: tuple[int, int, int]) -> bool:
    """Whether the model takes images of this size at all, whatever layers it has."""
    parameter = next(model.parameters())
    with evaluation_mode(model), torch.no_grad():
        try:
            model(torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype))
        except Exception:  # whatever 1,400 architectures say of an image that they cannot take
            return False
    return True


@dataclass
class TrainingJob:
    """Everything that one training run works with."""
    args: argparse.Namespace
    device: torch.device
    model: nn.Module  # the bare model; the task may wrap it
    task: ClassificationTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Scaler | None
    autocast: Callable
    step: Callable[..., dict[str, torch.Tensor]]  # forward and backward pass of one batch
    epochs: int
    updates_per_epoch: int
    loader_train: DataLoader
    loader_val: DataLoader
    attention_loader: DataLoader | None
    mixup: Mixup | None
    data_config: dict[str, Any]
    train_set: Dataset
    val_set: Dataset
    names: list[str] | None
    labels: LabelKind
    fingerprints: dict[str, str | None]  # of the images of each split
    layers: ICASCLayers | None  # None: the plain loss on a model without usable layers
    frozen: list[nn.Module]  # stay in evaluation mode
    memory: PeakMemory  # since before the model was made
    val_images: int | None = None  # of a stream, those that were measured on

    def create_evaluator(self) -> Any:
        """What collects the predictions on the validation images: timm's, or that of several classes per image."""
        limit = timm.task.evaluation_sample_limit(self.loader_val)
        if self.labels is MULTI:
            return MultiLabelEvaluator(limit, self.names)
        return self.task.create_evaluator(max_samples=limit)


def set_up(args: argparse.Namespace, device: torch.device) -> TrainingJob:
    """Make everything a run needs, from its options; weights and optimiser state are at their start.

    Raises:
        ICASCError: An option does not fit the data, the model, or another option.
    """
    check_model_name(args.model)
    memory = PeakMemory(device)
    train_set, val_set, names = set_up_data(args)
    seed_epoch(args, -1)
    model = set_up_model(args)
    data_config = set_up_data_config(args, model)
    loader_train, loader_val, attention_loader, mixup = set_up_loaders(
        args, data_config, train_set, val_set, device)
    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    model.to(
        device=device,
        memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.distributed and args.sync_bn:
        model = timm.layers.convert_sync_batchnorm(model)
    frozen = freeze_until(args, model)
    weights = None
    if args.class_weights is not None:
        weights = class_weights(args.class_weights, train_set, args.num_classes, names)
    task = set_up_task(
        args, model, device, data_config['input_size'], len(loader_train), labels_of(train_set), weights)
    try:
        layers = resolve_layers(model, args.icasc_layers, data_config['input_size'])
    except LayerResolutionError as e:
        if args.icasc or not runs_on(model, data_config['input_size']):
            raise
        layers = attention_loader = None
        warnings.warn(f'Attention is not measured: {e}', stacklevel=2)
    optimizer, scheduler, epochs = set_up_optimizer(args, model, updates_per_epoch)
    autocast, scaler = nullcontext, None
    if args.amp:
        autocast = partial(
            torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
        scaler = Scaler(device=device.type) if args.amp_dtype == 'float16' else None
    if args.icasc_fast:
        uncached = partial(autocast, cache_enabled=False) if args.amp else autocast
        step = RecordedStep(TrainingStep(task, uncached, scaler), CudaRecorder(device))
    else:
        step = TrainingStep(task, autocast, scaler)
    return TrainingJob(
        args=args, device=device, model=model, task=task, optimizer=optimizer, scheduler=scheduler,
        scaler=scaler, autocast=autocast, step=step, epochs=epochs,
        updates_per_epoch=updates_per_epoch, loader_train=loader_train, loader_val=loader_val,
        attention_loader=attention_loader, mixup=mixup, data_config=data_config,
        train_set=train_set, val_set=val_set, names=names, labels=labels_of(train_set),
        fingerprints={'train': fingerprint(train_set), 'val': fingerprint(val_set)},
        layers=layers, frozen=frozen, memory=memory)
