#!/usr/bin/env python3
"""Train a timm model with ICASC, or with the classification loss alone, or both side by side.

Everything but the task is timm's: data, optimiser, schedule, EMA, checkpoints. See --help.
"""
import argparse
import csv
import difflib
import json
import logging
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn as nn
import torchvision
import yaml
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, evaluation_sample_limit, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils.summary import trim_summary
from tqdm import tqdm

import timm_icasc
from timm_icasc.arguments import parse_args
from timm_icasc.data import class_names, create_dataset, evenly_spaced, use_pad_crop
from timm_icasc.errors import DataError, ICASCError, NonFiniteLossError
from timm_icasc.figures import attention_figure
from timm_icasc.interrupt import Interrupted, interruptible
from timm_icasc.metrics import evaluate_attention

FIGURE_IMAGES = 6
# Column of the per-epoch table and of the results -> key of the epoch's record.
COLUMNS = {
    'loss': 'train_loss', 'CE': 'train_loss_cls', 'L_AS inner': 'train_loss_as_inner',
    'L_AS last': 'train_loss_as_last', 'L_AC': 'train_loss_ac', 'top-1': 'eval_top1',
    'overlap inner': 'eval_overlap_inner', 'overlap last': 'eval_overlap_last',
}


def say(args: argparse.Namespace, text: str = '') -> None:
    if utils.is_primary(args):
        tqdm.write(text)


def seed_epoch(args: argparse.Namespace, epoch: int) -> None:
    """Every epoch's randomness follows from (seed, epoch, rank) alone, so a resumed run repeats it exactly."""
    state = np.random.SeedSequence((args.seed, epoch + 1, args.rank)).generate_state(1)[0]
    utils.random_seed(int(state) % 2 ** 31)


def set_up_device(args: argparse.Namespace) -> torch.device:
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise ICASCError(f'--device {args.device}: this machine has no CUDA device; use --device cpu.')
    try:
        torch.device(args.device)
    except RuntimeError as e:
        raise ICASCError(f"--device: unknown device '{args.device}'.") from e
    if args.amp and args.amp_dtype == 'float16' and args.device.startswith('cpu'):
        raise ICASCError('--amp on a CPU needs --amp-dtype bfloat16.')
    if args.device.startswith('cuda'):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return utils.init_distributed_device(args)


def set_up_data(args: argparse.Namespace):
    """The two data sets and the class names; the number of classes is settled here."""
    shared = {'root': args.data_dir, 'class_map': args.class_map or None, 'download': args.dataset_download,
              'batch_size': args.batch_size, 'seed': args.seed}
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
    if names and args.num_classes < len(names):
        raise DataError(f'--num-classes {args.num_classes} is fewer than the {len(names)} classes of the data set.')
    return train, val, names


def set_up_model(args: argparse.Namespace) -> nn.Module:
    local = ('hf-hub:', 'hf_hub:', 'local-dir:')
    if not args.model.startswith(local) and not timm.is_model(args.model):
        close = difflib.get_close_matches(args.model, timm.list_models(), 3)
        raise ICASCError(f"--model: unknown architecture '{args.model}'"
                         f"{'; close: ' + ', '.join(close) if close else '; timm.list_models() lists them'}.")
    kwargs = dict(args.model_kwargs)
    if args.pretrained_path:
        kwargs['pretrained_cfg_overlay'] = {'file': args.pretrained_path, 'num_classes': -1}
    config = None if args.model.startswith(local) else timm.get_pretrained_cfg(args.model, allow_unregistered=True)
    if args.img_size and config is not None and config.fixed_input_size:
        kwargs.setdefault('img_size', args.img_size)  # position embeddings are made for one size
    try:
        model = timm.create_model(
            args.model, pretrained=args.pretrained or bool(args.pretrained_path), num_classes=args.num_classes,
            in_chans=args.in_chans, global_pool=args.gp, drop_rate=args.drop, drop_path_rate=args.drop_path,
            checkpoint_path=args.initial_checkpoint, **kwargs)
    except Exception as e:  # a factory of 1,400 architectures, weights from files and from the network
        raise ICASCError(f"--model {args.model}: {' '.join(str(e).split()) or type(e).__name__}") from e
    if args.grad_checkpointing:
        if not hasattr(model, 'set_grad_checkpointing'):
            raise ICASCError(f'--grad-checkpointing: {args.model} does not support it.')
        model.set_grad_checkpointing(True)
    return model


def set_up_loaders(args, data_config, train, val, device):
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
    if args.crop_padding is not None:
        use_pad_crop(train, data_config['input_size'][-2:], args.crop_padding)
    if not len(loader_train):
        raise DataError(f'--batch-size {args.batch_size} is more than the {len(train)} training images of a process.')
    attention_loader = None
    if args.icasc_eval_images and hasattr(val, '__len__'):
        attention_loader = create_loader(evenly_spaced(val, args.icasc_eval_images), **evaluation, **shared)
    return loader_train, loader_val, attention_loader, Mixup(**mixup_args) if mixes and collate is None else None


def set_up_task(args, model, device, input_size, updates_per_epoch) -> ClassificationTask:
    soft = args.mixup > 0 or args.cutmix > 0
    criterion = {'loss_type': args.loss, 'smoothing': 0. if args.loss in ('asl', 'poly') else args.smoothing,
                 'soft_targets': soft}
    if not args.icasc:
        return ClassificationTask(model, criterion_kwargs=criterion, device=device, verbose=False)
    steps_per_epoch = updates_per_epoch * args.grad_accum_steps
    return timm_icasc.ICASCTask(
        model, criterion_kwargs=criterion, config=icasc_config(args), layers=args.icasc_layers, input_size=input_size,
        start_steps=round(args.icasc_start_epoch * steps_per_epoch),
        ramp_steps=round(args.icasc_ramp_epochs * steps_per_epoch), device=device, verbose=False)


def icasc_config(args: argparse.Namespace) -> timm_icasc.ICASCConfig:
    try:
        as_inner, as_last, ac = args.icasc_weights
        return timm_icasc.ICASCConfig(
            attention=args.icasc_attention, order=args.icasc_order, weight_as_inner=as_inner, weight_as_last=as_last,
            weight_ac=ac, theta=args.icasc_theta, sigma=args.icasc_sigma, omega=args.icasc_omega,
            mask_scale=args.icasc_mask_scale, mask_grad=args.icasc_mask_grad)
    except ValueError as e:
        raise ICASCError(f'--icasc-*: {e}') from e


def set_up_optimizer(args, model, updates_per_epoch):
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


def train_one_epoch(epoch, task, loader, optimizer, scheduler, scaler, autocast, mixup, args, device, updates, flag):
    """One epoch; returns the sample means of every scalar in the task's results."""
    task.train()
    sums, counts = {}, {}
    optimizer.zero_grad()
    batches = len(loader)
    bar = tqdm(loader, desc=f'epoch {epoch + 1}', leave=False, disable=not utils.is_primary(args) or None)
    for index, (images, target) in enumerate(bar):
        flag.check()
        if args.no_prefetcher:
            images, target = images.to(device), target.to(device)
            if mixup is not None:
                images, target = mixup(images, target)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if args.loss == 'bce' and target.ndim == 1:
            target = nn.functional.one_hot(target, args.num_classes).float()
        group_start = index // args.grad_accum_steps * args.grad_accum_steps
        group = min(args.grad_accum_steps, batches - group_start)  # the last group may be smaller
        update = index - group_start == group - 1
        with nullcontext() if update else task.no_sync():
            with autocast():
                result = task(images, target)
            loss = result['loss'] / group
            if scaler is not None:
                scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, need_update=update,
                       parameters=task.get_clip_parameters(exclude_head='agc' in args.clip_mode))
            else:
                loss.backward()
                if update:
                    if args.clip_grad is not None:
                        utils.dispatch_clip_grad(
                            task.get_clip_parameters(exclude_head='agc' in args.clip_mode), value=args.clip_grad,
                            mode=args.clip_mode)
                    optimizer.step()
        for name, value in result.items():
            if value.ndim == 0:
                sums[name] = sums.get(name, 0.) + value.detach().double() * len(images)
                counts[name] = counts.get(name, 0) + len(images)
        # Reading a value waits for the device, so a GPU is asked now and then only.
        if device.type == 'cpu' or index % args.log_interval == 0 or index == batches - 1:
            values = {name: (sums[name] / counts[name]).item() for name in sums}
            if not np.isfinite(values['loss']):
                raise NonFiniteLossError(
                    f"The loss became {values['loss']} in epoch {epoch + 1}, step {index + 1} "
                    f"({', '.join(f'{k} {v:.3g}' for k, v in values.items() if k != 'loss')}): lower --lr, set "
                    f'--clip-grad, or let the ICASC terms set in later (--icasc-start-epoch). The checkpoint of the '
                    f'epoch before is intact.')
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if update:
            optimizer.zero_grad()
            updates += 1
            task.update_ema(step=updates)
            if scheduler is not None:
                scheduler.step_update(num_updates=updates, metric=None)
    means = {name: sums[name] / counts[name] for name in sums}
    if args.distributed:
        means = {name: utils.reduce_tensor(value, args.world_size) for name, value in means.items()}
    return {name: value.item() for name, value in means.items()}


@torch.no_grad()
def validate(model, task, loader, autocast, args, device, flag):
    model.eval()
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    for images, target in tqdm(loader, desc='validation', leave=False, disable=not utils.is_primary(args) or None):
        flag.check()
        images, target = images.to(device), target.to(device)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            output = model(images)
        evaluator.update(output, target)
    return evaluator.compute(distributed=args.distributed)


def header() -> str:
    return f"{'epoch':>5} " + ' '.join(f'{name:>{max(len(name), 7)}}' for name in COLUMNS) + f"{'time':>8}"


def row(epoch: int, record: dict) -> str:
    cells = []
    for name, key in COLUMNS.items():
        value = record.get(key)
        digits = 2 if name == 'top-1' else 4
        cells.append(f"{'-' if value is None else f'{value:.{digits}f}':>{max(len(name), 7)}}")
    return f'{epoch + 1:>5} ' + ' '.join(cells) + f"{record['time']:>7.1f}s"


def provenance(args: argparse.Namespace) -> dict:
    """What it takes to repeat the run."""
    try:
        commit = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=40'], cwd=Path(__file__).parent, capture_output=True,
            text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), 'commit': commit, 'seed': args.seed,
            'versions': {'python': sys.version.split()[0], 'torch': torch.__version__,
                         'torchvision': torchvision.__version__, 'timm': timm.__version__,
                         'timm_icasc': timm_icasc.__version__},
            'device': torch.cuda.get_device_name() if args.device.startswith('cuda') else args.device}


def train(args: argparse.Namespace, run_dir: Path, device: torch.device, flag) -> dict:
    """One run, from data to the last checkpoint, in `run_dir`."""
    started = time.monotonic()
    train_set, val_set, names = set_up_data(args)
    seed_epoch(args, -1)
    model = set_up_model(args)
    data_config = resolve_data_config({k: v for k, v in vars(args).items() if v is not None}, model=model)
    loader_train, loader_val, attention_loader, mixup = set_up_loaders(args, data_config, train_set, val_set, device)
    updates_per_epoch = -(-len(loader_train) // args.grad_accum_steps)
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    if args.distributed and args.sync_bn:
        model = timm.layers.convert_sync_batchnorm(model)
    task = set_up_task(args, model, device, data_config['input_size'], updates_per_epoch)
    optimizer, scheduler, epochs = set_up_optimizer(args, model, updates_per_epoch)
    autocast, scaler = nullcontext, None
    if args.amp:
        autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
        scaler = utils.NativeScaler(device=device.type) if args.amp_dtype == 'float16' else None

    start_epoch, last = 0, run_dir / 'last.pth.tar'
    checkpoint = Path(args.resume) if args.resume not in ('', 'auto') else last
    resumed = bool(args.resume) and checkpoint.is_file()
    if resumed:
        try:
            start_epoch = resume_task_checkpoint(task, str(checkpoint), optimizer, scaler, log_info=False) or 0
        except (RuntimeError, ValueError, KeyError, EOFError, OSError) as e:
            raise ICASCError(f"--resume: '{checkpoint}' does not fit this run: {' '.join(str(e).split())[:300]}") from e
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if resumed:
            load_task_ema_checkpoint(task, str(checkpoint))
    if args.torchcompile:
        task.compile(backend=args.torchcompile) if args.icasc else None
    if args.distributed:
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)
    if scheduler is not None and start_epoch > 0:
        scheduler.step_update(start_epoch * updates_per_epoch) if args.sched_on_updates else scheduler.step(start_epoch)

    saver = None
    if utils.is_primary(args):
        saver = utils.CheckpointSaver(
            model, optimizer, args=args, task=task, amp_scaler=scaler, checkpoint_dir=str(run_dir),
            recovery_dir=str(run_dir), decreasing=args.eval_metric == 'loss', max_history=args.checkpoint_hist)
        if resumed:
            saver.load_state_dict_from_checkpoint(str(checkpoint))
        else:
            saver._save(str(last), epoch=-1)  # an interrupt in the first epoch leaves something to go on from
        trim_summary(str(run_dir / 'summary.csv'), start_epoch)

    layers = timm_icasc.resolve_layers(model, args.icasc_layers, data_config['input_size'])
    say(args, f"\n{'ICASC' if args.icasc else 'Cross-entropy'}: {args.model}, {args.num_classes} classes, "
              f"{len(train_set)} + {len(val_set)} images of {data_config['input_size'][1]} x "
              f"{data_config['input_size'][2]}, seed {args.seed} -> {run_dir}")
    say(args, f"{icasc_config(args) if args.icasc else 'attention is measured, not trained'}; inner layer "
              f"'{layers.inner.path}' {layers.inner.grid}, last layer '{layers.last.path}' {layers.last.grid}")
    say(args, f'resumed from {checkpoint} at epoch {start_epoch + 1}' if resumed else '')
    say(args, header())

    def evaluate() -> dict:
        if args.distributed and args.dist_bn:
            utils.distribute_bn(model, args.world_size, args.dist_bn == 'reduce')
        ema = task.has_ema()
        metrics = validate(task.get_eval_model(ema=ema), task, loader_val, autocast, args, device, flag)
        if attention_loader is not None and utils.is_primary(args):
            flag.check()
            plain = timm_icasc.layers.unwrap_model(task.get_trainable_module())
            attention = evaluate_attention(
                task.get_trainable_module(ema=True).module if ema else plain, attention_loader, icasc_config(args),
                args.icasc_layers)
            metrics.update(attention)
        return metrics

    record = {}
    for epoch in range(start_epoch, epochs):
        epoch_started = time.monotonic()
        seed_epoch(args, epoch)
        if args.distributed and hasattr(loader_train.sampler, 'set_epoch'):
            loader_train.sampler.set_epoch(epoch)
        mixer = mixup or (loader_train.collate_fn if isinstance(
            getattr(loader_train, 'collate_fn', None), FastCollateMixup) else None)
        if mixer is not None and args.mixup_off_epoch:
            mixer.mixup_enabled = epoch < args.mixup_off_epoch
        train_metrics = train_one_epoch(
            epoch, task, loader_train, optimizer, scheduler, scaler, autocast, mixup, args, device,
            epoch * updates_per_epoch, flag)
        eval_metrics = evaluate()
        if scheduler is not None:
            scheduler.step(epoch + 1, eval_metrics[args.eval_metric])
        train_metrics = {name: train_metrics.get(name) for name in (
            'loss', 'loss_cls', 'loss_as_inner', 'loss_as_last', 'loss_ac')}  # the same columns in every epoch
        record = {**{f'train_{k}': v for k, v in train_metrics.items()},
                  **{f'eval_{k}': v for k, v in eval_metrics.items()}, 'time': time.monotonic() - epoch_started}
        if saver is not None:
            utils.update_summary(
                epoch, train_metrics, {**eval_metrics, 'seconds': round(record['time'], 2)},
                str(run_dir / 'summary.csv'), lr=optimizer.param_groups[0]['lr'])
            saver.save_checkpoint(epoch, metric=eval_metrics[args.eval_metric])
        say(args, row(epoch, record))
        flag.check()
    if not record:
        say(args, f'all {epochs} epochs are done; evaluating')
        record = {f'eval_{k}': v for k, v in evaluate().items()}
    result = {
        'method': f'ICASC {args.icasc_attention}, order {args.icasc_order}' if args.icasc else 'cross-entropy',
        'epochs': epochs, 'last': record, 'wall_time': time.monotonic() - started, **provenance(args)}
    if device.type == 'cuda':
        result['peak_memory_mib'] = torch.cuda.max_memory_allocated() / 2 ** 20
    if saver is not None:
        result.update(best={args.eval_metric: saver.best_metric, 'epoch': saver.best_epoch})
        (run_dir / 'results.json').write_text(json.dumps(result, indent=2) + '\n')
    eval_model = task.get_trainable_module(ema=True).module if task.has_ema() else model
    return {'result': result, 'model': eval_model, 'names': names, 'data_config': data_config, 'val': val_set}


def report(args: argparse.Namespace, run_dir: Path, runs: dict, device: torch.device) -> None:
    """The results table, as text and as CSV, and the figure of attention maps."""
    columns = {'method': lambda r: r['method'], **{
        name: lambda r, key=key: r['last'].get(key) for name, key in (
            ('top-1', 'eval_top1'), ('top-5', 'eval_top5'), ('L_AS inner', 'eval_as_inner'),
            ('L_AS last', 'eval_as_last'), ('L_AC', 'eval_ac'), ('overlap inner', 'eval_overlap_inner'),
            ('overlap last', 'eval_overlap_last'), ('s/epoch', 'time'))}}
    table = [{name: get(run['result']) for name, get in columns.items()} for run in runs.values()]
    with open(run_dir / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)
    cells = [[f'{v:.4g}' if isinstance(v, float) else str(v if v is not None else '-') for v in r.values()]
             for r in table]
    widths = [max(len(c) for c in column) for column in zip(columns, *cells, strict=True)]
    say(args, '\nResults after the last epoch, on the validation images:')
    for line in (list(columns), *cells):
        say(args, '  '.join(f'{c:<{w}}' if i == 0 else f'{c:>{w}}' for i, (c, w) in
                            enumerate(zip(line, widths, strict=True))))
    run = next(iter(runs.values()))
    if hasattr(run['val'], '__len__'):
        config = run['data_config']
        loader = create_loader(
            evenly_spaced(run['val'], FIGURE_IMAGES), config['input_size'], FIGURE_IMAGES, mean=config['mean'],
            std=config['std'], num_workers=0, device=device)
        images, targets = next(iter(loader))
        figure = attention_figure(
            {label: run['model'] for label, run in runs.items()}, images, targets, run['names'], config['mean'],
            config['std'], run_dir / 'attention.png', config=icasc_config(args), layers=args.icasc_layers)
        say(args, f'\nattention maps: {figure}')
    say(args, f'checkpoints, summary.csv, args.yaml, results: {run_dir}')


def save_args(args: argparse.Namespace, folder: Path) -> None:
    skip = {'run_dir', 'config', 'resume', 'rank', 'local_rank', 'world_size', 'distributed'}
    text = yaml.safe_dump({k: v for k, v in vars(args).items() if k not in skip})
    (folder / 'args.yaml').write_text(text)


def open_run_dir(args: argparse.Namespace) -> Path:
    """The folder of a resumed run, or a new one: finished runs are never written over."""
    if args.run_dir is not None:
        return Path(args.run_dir)
    name = args.experiment or f"{args.model.replace('/', '_').replace(':', '_')}-" \
                              f"{(args.dataset or Path(args.data_dir).name).replace('/', '_')}"
    try:
        base = Path(args.output) / name
        folder, count = base, 1
        while utils.is_primary(args):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                if not folder.is_dir():
                    raise
                folder, count = Path(f'{base}-{count}'), count + 1
        return folder
    except OSError as e:
        raise ICASCError(f"--output: cannot write to '{args.output}': {e.strerror}.") from e


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    try:
        args = parse_args()
        device = set_up_device(args)
        icasc_config(args)
        run_dir = open_run_dir(args)
        variants = {'ICASC' if args.icasc else 'Cross-entropy': args}
        if args.icasc_compare:
            variants = {label: argparse.Namespace(**{**vars(args), 'icasc': icasc, 'icasc_compare': False})
                        for label, icasc in (('Cross-entropy', False), ('ICASC', True))}
        if utils.is_primary(args) and args.run_dir is None:
            save_args(args, run_dir)
        runs = {}
        with interruptible() as flag:
            for label, variant in variants.items():
                folder = run_dir / label.lower() if args.icasc_compare else run_dir
                if utils.is_primary(args) and args.icasc_compare:
                    folder.mkdir(exist_ok=True)
                    save_args(variant, folder)
                runs[label] = train(variant, folder, device, flag)
        if utils.is_primary(args):
            report(args, run_dir, runs, device)
        if args.distributed:
            torch.distributed.destroy_process_group()
    except ICASCError as e:
        print(f'train_timm.py: error: {e}', file=sys.stderr)
        return 2
    except Interrupted as e:
        print(f'\ninterrupted ({e}); the last whole epoch is in {run_dir}; go on with: train_timm.py --resume auto '
              f'--output {args.output}', file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == '__main__':
    sys.exit(main())
