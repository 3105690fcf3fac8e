"""From the options of train_timm.py to data, model, task and optimiser; every misfit becomes one clear line."""
import argparse
import difflib
import os
import socket
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple
from urllib.parse import urlparse

import huggingface_hub
import numpy as np
import timm
import torch
import torch.nn as nn
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask
from torch.utils.data import DataLoader, Dataset

from .data import class_names, create_dataset, evenly_spaced, use_pad_crop
from .errors import DataError, ICASCError, LayerResolutionError
from .features import ICASCLayers
from .interrupt import ignore_signals
from .layers import resolve_layers
from .objective import ICASCConfig
from .task import ICASCTask


def seed_epoch(args: argparse.Namespace, epoch: int) -> None:
    """Every epoch's randomness follows from (seed, epoch, rank) alone, so a resumed run repeats it exactly."""
    state = np.random.SeedSequence((args.seed, epoch + 1, args.rank)).generate_state(1)[0]
    utils.random_seed(int(state) % 2 ** 31)


def set_up_device(args: argparse.Namespace) -> torch.device:
    """The device of this process, and the process group under torchrun."""
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ICASCError(f'--device {args.device}: this machine has no CUDA device; use --device cpu.')
    try:
        torch.ones(1, device=args.device).item()
    except (RuntimeError, NotImplementedError, AssertionError) as e:
        raise ICASCError(f"--device: cannot use '{args.device}': {' '.join(str(e).split())[:120]}") from e
    if args.amp and args.amp_dtype == 'float16' and args.device.startswith('cpu'):
        raise ICASCError('--amp on a CPU needs --amp-dtype bfloat16.')
    if args.device.startswith('cuda'):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return utils.init_distributed_device(args)


def set_up_data(args: argparse.Namespace) -> Tuple[Dataset, Dataset, Optional[List[str]]]:
    """The two data sets and the class names; the number of classes is settled here."""
    channels = args.input_size[0] if args.input_size else args.in_chans or 3
    if channels not in (1, 3):
        raise ICASCError(f'--in-chans (or --input-size) must be 1, for grey images, or 3, got {channels}.')
    args.in_chans = channels
    shared = {'root': args.data_dir, 'class_map': args.class_map or None, 'download': args.dataset_download,
              'input_img_mode': 'L' if channels == 1 else 'RGB', 'batch_size': args.batch_size, 'seed': args.seed}
    train = create_dataset(args.dataset, split=args.train_split, is_training=True, **shared)
    val = create_dataset(args.dataset, split=args.val_split, **shared)
    names, val_names = class_names(train), class_names(val)
    if names and val_names and names != val_names:
        different = sorted(set(names) ^ set(val_names))[:5]
        raise DataError(f'The classes of --train-split {args.train_split} ({len(names)}) and --val-split '
                        f'{args.val_split} ({len(val_names)}) differ: {", ".join(different)}; pass --class-map.')
    if args.num_classes is None:
        if not names:
            raise DataError(f"--num-classes is missing: data set '{args.dataset}' does not tell its classes.")
        args.num_classes = len(names)
    if args.num_classes < 2:
        raise DataError(f'ICASC tells classes apart and needs two; the data set has {args.num_classes}.')
    if names and args.num_classes < len(names):
        raise DataError(f'--num-classes {args.num_classes} is fewer than the {len(names)} classes of the data set.')
    return train, val, names


def _go_offline_unless_the_hub_answers() -> None:
    """Without a network, the Hub's client repeats its attempts for a minute; cached weights load at once either way."""
    if any(name.lower() in ('http_proxy', 'https_proxy', 'all_proxy') for name in os.environ):
        return  # reachable through the proxy alone, if at all
    endpoint = urlparse(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def set_up_model(args: argparse.Namespace) -> nn.Module:
    """The timm model; what timm says of unknown names, weights and arguments is passed on in one line."""
    local = ('hf-hub:', 'hf_hub:', 'local-dir:')
    if not args.model.startswith(local) and not timm.is_model(args.model):
        close = difflib.get_close_matches(args.model, timm.list_models(), 3)
        raise ICASCError(f"--model: unknown architecture '{args.model}'"
                         f"{'; close: ' + ', '.join(close) if close else '; timm.list_models() lists them'}.")
    kwargs = dict(args.model_kwargs)
    for option in ('pretrained_path', 'initial_checkpoint'):
        if getattr(args, option) and not Path(getattr(args, option)).is_file():
            raise ICASCError(f"--{option.replace('_', '-')}: no file '{getattr(args, option)}'.")
    if args.pretrained_path:
        kwargs['pretrained_cfg_overlay'] = {'file': args.pretrained_path, 'num_classes': -1}
    config = None if args.model.startswith(local) else timm.get_pretrained_cfg(args.model, allow_unregistered=True)
    if (args.img_size or args.input_size) and config is not None and config.fixed_input_size:
        # Position embeddings are made for one size.
        kwargs.setdefault('img_size', tuple(args.input_size[1:]) if args.input_size else args.img_size)
    if args.pretrained or args.model.startswith(('hf-hub:', 'hf_hub:')):
        _go_offline_unless_the_hub_answers()
    try:
        model = timm.create_model(
            args.model, pretrained=args.pretrained or bool(args.pretrained_path), num_classes=args.num_classes,
            in_chans=args.in_chans, global_pool=args.gp, drop_rate=args.drop, drop_path_rate=args.drop_path,
            checkpoint_path=args.initial_checkpoint, **kwargs)
    except Exception as e:  # a factory of 1,400 architectures, weights from files and from the network
        weights = ' (weights cannot be fetched? --pretrained-path FILE)' if args.pretrained or ':' in args.model else ''
        message = ' '.join(str(e).split())[:300] or type(e).__name__
        raise ICASCError(f'--model {args.model}: {message}{weights}') from e
    if args.grad_checkpointing:
        if not hasattr(model, 'set_grad_checkpointing'):
            raise ICASCError(f'--grad-checkpointing: {args.model} does not support it.')
        model.set_grad_checkpointing(True)
    return model


def set_up_loaders(
        args: argparse.Namespace,
        data_config: Dict[str, Any],
        train: Dataset,
        val: Dataset,
        device: torch.device,
) -> Tuple[DataLoader, DataLoader, Optional[DataLoader], Optional[Mixup]]:
    """Training and validation loader, the loader of the attention images, and mixup for plain loaders."""
    mixup_args = {'mixup_alpha': args.mixup, 'cutmix_alpha': args.cutmix, 'prob': args.mixup_prob,
                  'switch_prob': args.mixup_switch_prob, 'mode': args.mixup_mode, 'label_smoothing': args.smoothing,
                  'num_classes': args.num_classes}
    mixes = args.mixup > 0 or args.cutmix > 0
    collate = FastCollateMixup(**mixup_args) if mixes and not args.no_prefetcher else None
    shared = dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        use_prefetcher=not args.no_prefetcher, num_workers=args.workers, pin_memory=args.pin_mem, device=device,
        # Workers that outlive an epoch would carry random state into the next, which a resumed run cannot repeat.
        persistent_workers=False)
    evaluation = dict(
        batch_size=args.validation_batch_size or args.batch_size, interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'], crop_mode=data_config['crop_mode'])
    try:
        loader_train = create_loader(
            train, batch_size=args.batch_size, is_training=True, no_aug=args.no_aug, re_prob=args.reprob,
            re_mode=args.remode, train_crop_mode=args.train_crop_mode, scale=args.scale, ratio=args.ratio,
            hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter, auto_augment=args.aa,
            interpolation=args.train_interpolation, distributed=args.distributed, collate_fn=collate, **shared)
        loader_val = create_loader(val, distributed=args.distributed, **evaluation, **shared)
    except (AssertionError, ValueError, KeyError) as e:
        raise ICASCError(f'The augmentation options do not fit: {e or type(e).__name__}') from e
    for loader in (loader_train, loader_val):
        loader = getattr(loader, 'loader', loader)  # inside the prefetcher
        loader.worker_init_fn = partial(ignore_signals, loader.worker_init_fn)
    if args.crop_padding is not None:
        use_pad_crop(train, data_config['input_size'][-2:], args.crop_padding)
    if not len(loader_train):
        raise DataError(f'--batch-size {args.batch_size} is more than the {len(train)} training images of a process.')
    attention_loader = None
    if args.icasc_eval_images and hasattr(val, '__len__'):
        attention_loader = create_loader(evenly_spaced(val, args.icasc_eval_images), **evaluation, **shared)
    return loader_train, loader_val, attention_loader, Mixup(**mixup_args) if mixes and collate is None else None


def icasc_config(args: argparse.Namespace) -> ICASCConfig:
    """The options of the group 'ICASC parameters'."""
    try:
        as_inner, as_last, ac = args.icasc_weights
        return ICASCConfig(
            attention=args.icasc_attention, order=args.icasc_order, weight_as_inner=as_inner, weight_as_last=as_last,
            weight_ac=ac, theta=args.icasc_theta, sigma=args.icasc_sigma, omega=args.icasc_omega,
            mask_scale=args.icasc_mask_scale, mask_grad=args.icasc_mask_grad)
    except ValueError as e:
        raise ICASCError(f'--icasc-*: {e}') from e


def set_up_task(
        args: argparse.Namespace,
        model: nn.Module,
        device: torch.device,
        input_size: Tuple[int, int, int],
        steps_per_epoch: int,
) -> ClassificationTask:
    """`ICASCTask`, or timm's plain task where ICASC is off."""
    soft = args.mixup > 0 or args.cutmix > 0
    criterion = {'loss_type': args.loss, 'smoothing': 0. if args.loss in ('asl', 'poly') else args.smoothing,
                 'soft_targets': soft}
    if not args.icasc:
        return ClassificationTask(model, criterion_kwargs=criterion, device=device, verbose=False)
    return ICASCTask(
        model, criterion_kwargs=criterion, config=icasc_config(args), layers=args.icasc_layers, input_size=input_size,
        start_steps=round(args.icasc_start_epoch * steps_per_epoch),
        ramp_steps=round(args.icasc_ramp_epochs * steps_per_epoch), device=device, verbose=False)


def set_up_optimizer(args: argparse.Namespace, model: nn.Module, updates_per_epoch: int) -> Tuple[Any, Any, int]:
    """Optimiser, schedule (None for a constant rate) and number of epochs, cooldown included."""
    if not args.lr:
        args.lr = args.lr_base * args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except (ValueError, TypeError, RuntimeError, AssertionError, ImportError) as e:
        raise ICASCError(f"--opt {args.opt}: {e or type(e).__name__}") from e
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
    except (ValueError, TypeError, AssertionError) as e:
        raise ICASCError(f"--sched {args.sched}: {e or type(e).__name__}") from e
    return optimizer, scheduler, epochs


@dataclass
class Job:
    """Everything that one training run works with."""
    args: argparse.Namespace
    device: torch.device
    model: nn.Module  # the bare model; the task may wrap it
    task: ClassificationTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Optional[utils.NativeScaler]
    autocast: Callable
    epochs: int
    updates_per_epoch: int
    loader_train: DataLoader
    loader_val: DataLoader
    attention_loader: Optional[DataLoader]
    mixup: Optional[Mixup]
    data_config: Dict[str, Any]
    train_set: Dataset
    val_set: Dataset
    names: Optional[List[str]]
    layers: Optional[ICASCLayers]  # None: the plain loss on a model without usable layers


def set_up(args: argparse.Namespace, device: torch.device) -> Job:
    """Make everything a run needs, from its options; weights and optimiser state are at their start.

    Raises:
        ICASCError: An option does not fit the data, the model, or another option.
    """
    train_set, val_set, names = set_up_data(args)
    seed_epoch(args, -1)
    model = set_up_model(args)
    try:
        data_config = resolve_data_config({k: v for k, v in vars(args).items() if v is not None}, model=model)
    except AssertionError as e:
        raise ICASCError('--mean and --std need one value, or one per input channel.') from e
    data_config['input_size'] = (args.in_chans, *data_config['input_size'][1:])
    for name in ('mean', 'std'):
        if len(data_config[name]) != args.in_chans:  # a model's own values for colour, on grey images
            data_config[name] = (sum(data_config[name]) / len(data_config[name]),) * args.in_chans
    loader_train, loader_val, attention_loader, mixup = set_up_loaders(args, data_config, train_set, val_set, device)
    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.distributed and args.sync_bn:
        model = timm.layers.convert_sync_batchnorm(model)
    task = set_up_task(args, model, device, data_config['input_size'], len(loader_train))
    try:
        layers = resolve_layers(model, args.icasc_layers, data_config['input_size'])
    except LayerResolutionError as e:
        if args.icasc:
            raise
        layers = attention_loader = None
        warnings.warn(f'Attention is not measured: {e}', stacklevel=2)
    optimizer, scheduler, epochs = set_up_optimizer(args, model, updates_per_epoch)
    autocast, scaler = nullcontext, None
    if args.amp:
        autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
        scaler = utils.NativeScaler(device=device.type) if args.amp_dtype == 'float16' else None
    return Job(
        args=args, device=device, model=model, task=task, optimizer=optimizer, scheduler=scheduler, scaler=scaler,
        autocast=autocast, epochs=epochs, updates_per_epoch=updates_per_epoch, loader_train=loader_train,
        loader_val=loader_val, attention_loader=attention_loader, mixup=mixup, data_config=data_config,
        train_set=train_set, val_set=val_set, names=names, layers=layers)
