"""From the options of timm-icasc train to data sets and loaders; every misfit becomes one clear line."""
import argparse
import warnings
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from timm.data import FastCollateMixup, Mixup, create_loader, resolve_data_config
from torch.utils.data import DataLoader, Dataset

from ..data import (
    ResidentLoader,
    balanced,
    check_shards,
    class_names,
    count_shared,
    create_dataset,
    evenly_spaced,
    few_of_each_class,
    is_stream,
    labels_of,
    name_classes,
    use_pad_crop,
)
from ..errors import DataError, ICASCError, first_of, one_line
from ..labels import SINGLE, LabelKind
from .interrupt import begin_loading

__all__ = ['columns_of', 'mixes', 'set_up_data', 'set_up_data_config', 'set_up_loaders']


def mixes(args: argparse.Namespace) -> bool:
    """Whether the images of a batch are mixed, so that targets are probabilities."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _check_labels(args: argparse.Namespace, labels: LabelKind, names: list[str] | None) -> None:
    """Settle what depends on whether images have one class or any number of them."""
    args.eval_metric = args.eval_metric or labels.eval_metrics[0]
    if args.eval_metric not in (*labels.eval_metrics, 'loss'):
        raise ICASCError(
            f'--eval-metric {args.eval_metric} does not fit {labels.name}-label data: it is '
            f"{', '.join(labels.eval_metrics)} or loss.")
    if labels is SINGLE:
        return
    if names and args.num_classes != len(names):
        raise ICASCError(f'--num-classes {args.num_classes}: the multi-label data have {len(names)} classes.')
    if mixes(args):
        raise ICASCError('--mixup and --cutmix are for single-label data; these images have any number of classes.')
    if args.smoothing not in (0, 0.1):  # 0.1 where nothing is said
        raise ICASCError('--smoothing is for single-label data, and does nothing here: leave it out.')
    if args.loss != 'ce':
        raise ICASCError(f'--loss {args.loss} is for single-label data; multi-label data take the soft-margin loss.')


def _check_sizes(args: argparse.Namespace) -> None:
    """Refuse options that say the same thing twice, and differently."""
    if not args.input_size:
        return
    channels, *size = args.input_size
    given = f"--input-size {' '.join(map(str, args.input_size))}"
    if args.in_chans and args.in_chans != channels:
        raise ICASCError(f'--in-chans {args.in_chans} contradicts {given}: leave one of them out.')
    if args.img_size and size != [args.img_size] * 2:
        raise ICASCError(f'--img-size {args.img_size} contradicts {given}: leave one of them out.')


def _check_digits(args: argparse.Namespace) -> None:
    """Refuse a folder for the embedded digits, which are in none."""
    if args.dataset == 'digits' and args.data_dir:
        raise ICASCError('--data-dir has no effect on the embedded digits: leave it out.')


def _match_classes(
        args: argparse.Namespace,
        names: list[str],
        val_names: list[str],
        val: Dataset,
) -> None:
    """Number the classes of the validation as those of the training, which may be more."""
    train_only = [name for name in names if name not in val_names]
    val_only = [name for name in val_names if name not in names]
    if val_only:
        raise DataError(
            f'The classes of --train-split {args.train_split} ({len(names)}) and --val-split {args.val_split} '
            f'({len(val_names)}) differ: only the first has {first_of(train_only) or "none"}; only the second has '
            f'{first_of(val_only)}. Name them alike, or pass --class-map.')
    name_classes(val, names)
    if train_only:
        warnings.warn(
            f'--val-split {args.val_split} has no image of {len(train_only)} of the {len(names)} classes: '
            f'{first_of(train_only, 8)}.', stacklevel=2)


def columns_of(args: argparse.Namespace) -> dict[str, str]:
    """Where images and labels are in tables and shards, as far as it is said."""
    return {name: getattr(args, name) for name in ('input_key', 'target_key') if getattr(args, name)}


def _tell_shared(args: argparse.Namespace, train: Dataset, val: Dataset) -> None:
    """Warn where images are trained on and measured on."""
    same = args.train_split == args.val_split
    if is_stream(train) or is_stream(val):
        shared = 'the' if same else ''
    else:
        count = count_shared(train, val, same)
        shared = f'{count} of its {len(val)}' if count else ''
    if shared:
        warnings.warn(
            f'--val-split {args.val_split}: {shared} images are also trained on; the accuracy of such images is not '
            f'that of new ones.', stacklevel=2)


def set_up_data(args: argparse.Namespace) -> tuple[Dataset, Dataset, list[str] | None]:
    """The two data sets and the class names; the number of classes is settled here."""
    _check_digits(args)
    _check_sizes(args)
    channels = args.input_size[0] if args.input_size else args.in_chans or 3
    if channels not in (1, 3):
        raise ICASCError(f'--in-chans (or --input-size) must be 1, for grey images, or 3, got {channels}.')
    args.in_chans = channels
    shared = {
        'root': args.data_dir, 'class_map': args.class_map or None, 'download': args.dataset_download,
        'input_img_mode': 'L' if channels == 1 else 'RGB', 'batch_size': args.batch_size, 'seed': args.seed,
        'max_image_pixels': args.max_image_pixels, 'image_endings': args.image_endings}
    shared.update(columns_of(args))
    train = create_dataset(
        args.dataset, split=args.train_split, is_training=True,
        num_samples=args.train_num_samples, **shared)
    val = create_dataset(
        args.dataset, split=args.val_split, num_samples=args.val_num_samples, **shared)
    check_shards(train, f'--train-split {args.train_split}', args.workers, args.world_size)
    check_shards(val, f'--val-split {args.val_split}', args.workers, args.world_size)
    names, val_names = class_names(train), class_names(val)
    if names and val_names and names != val_names:
        _match_classes(args, names, val_names, val)
    if args.num_classes is None:
        if not names:
            raise DataError(f"--num-classes is missing: data set '{args.dataset}' does not tell its classes.")
        args.num_classes = len(names)
    if names and args.num_classes < len(names):
        raise DataError(f'--num-classes {args.num_classes} is fewer than the {len(names)} classes of the data set.')
    if args.num_classes < 2:
        told = 'the data set has' if names else 'by --num-classes there is'
        raise DataError(f'ICASC tells classes apart and needs two; {told} {args.num_classes}.')
    _check_labels(args, labels_of(train), names)
    if args.limit_train is not None:
        train = few_of_each_class(train, args.limit_train, args.seed, names)
    _tell_shared(args, train, val)
    if args.balanced_sampling:
        train = balanced(train, args.seed, names)
    return train, val, names


def set_up_data_config(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """Input size, normalisation and crop: the options, and the model's own where they are silent."""
    try:
        config = resolve_data_config(
            {k: v for k, v in vars(args).items() if v is not None}, model=model)
    except AssertionError as e:
        raise ICASCError('--mean and --std need one value, or one per input channel.') from e
    config['input_size'] = (args.in_chans, *config['input_size'][1:])
    for name in ('mean', 'std'):
        if len(config[name]) != args.in_chans:  # a model's own values for colour, on grey images
            config[name] = (sum(config[name]) / len(config[name]),) * args.in_chans
    return config


def _augmentation(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """What timm's loader does with training images; without augmentation resized as the model says."""
    return {
        'no_aug': args.no_aug, 'train_crop_mode': args.train_crop_mode, 'scale': args.scale, 'ratio': args.ratio,
        'hflip': args.hflip, 'vflip': args.vflip, 'color_jitter': args.color_jitter,
        'color_jitter_prob': args.color_jitter_prob, 'grayscale_prob': args.grayscale_prob or 0.,
        'gaussian_blur_prob': args.gaussian_blur_prob or 0., 'auto_augment': args.aa,
        'interpolation': data_config['interpolation'] if args.no_aug else args.train_interpolation,
        're_prob': args.reprob, 're_mode': args.remode, 're_count': args.recount,
        'num_aug_repeats': args.aug_repeats}


def set_up_loaders(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        train: Dataset,
        val: Dataset,
        device: torch.device,
) -> tuple[DataLoader, DataLoader, DataLoader | None, Mixup | None]:
    """Training and validation loader, the loader of the attention images, and mixup for plain loaders."""
    mixup_args = {
        'mixup_alpha': args.mixup, 'cutmix_alpha': args.cutmix, 'cutmix_minmax': args.cutmix_minmax,
        'prob': args.mixup_prob, 'switch_prob': args.mixup_switch_prob, 'mode': args.mixup_mode,
        'label_smoothing': args.smoothing, 'num_classes': args.num_classes}
    collate = FastCollateMixup(**mixup_args) if mixes(args) and not args.no_prefetcher else None
    shared = dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        use_prefetcher=not args.no_prefetcher, num_workers=args.workers, pin_memory=args.pin_mem,
        device=device, worker_seeding=args.worker_seeding,
        # Workers that outlive an epoch would carry random state into the next, which a resumed run cannot repeat.
        persistent_workers=False)
    if args.aug_repeats and not args.distributed:
        raise ICASCError(
            '--aug-repeats spreads the repeats over processes: start several with torchrun, or leave it out.')
    evaluation = dict(
        batch_size=args.validation_batch_size or args.batch_size, interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'], crop_mode=data_config['crop_mode'])
    try:
        loader_train = create_loader(
            train, batch_size=args.batch_size, is_training=True, distributed=args.distributed,
            collate_fn=collate, **_augmentation(args, data_config), **shared)
        loader_val = create_loader(val, distributed=args.distributed, **evaluation, **shared)
    except (AssertionError, ValueError, KeyError) as e:
        raise ICASCError(f'The augmentation options do not fit: {one_line(e)}') from e
    image_size = data_config['input_size'][-2:]
    if args.resident_data:
        loader_train = ResidentLoader(
            train, image_size, args.batch_size, data_config['mean'], data_config['std'],
            padding=args.crop_padding or 0, hflip=0. if args.no_aug else args.hflip,
            interpolation=data_config['interpolation'], device=device, distributed=args.distributed,
            num_workers=args.workers, worker_init_fn=begin_loading)
    elif args.crop_padding is not None:
        use_pad_crop(train, image_size, args.crop_padding, data_config['interpolation'])
    if not len(loader_train):
        raise DataError(
            f'--batch-size {args.batch_size} is more than the {len(train) // args.world_size} training images of a '
            f'process.')
    attention_loader, loaders = None, [loader_train, loader_val]
    if args.icasc_eval_images:
        # Of a stream each loading process has shards of its own; the first images are those that one of them reads.
        workers = min(1, args.workers) if is_stream(val) else args.workers
        attention_loader = create_loader(
            evenly_spaced(val, args.icasc_eval_images), **evaluation, **{**shared, 'num_workers': workers})
        loaders.append(attention_loader)
    for loader in (getattr(loader, 'loader', loader) for loader in loaders):  # inside the prefetcher
        if isinstance(loader, DataLoader):
            loader.worker_init_fn = partial(begin_loading, then=loader.worker_init_fn)
    return loader_train, loader_val, attention_loader, Mixup(
        **mixup_args) if mixes(args) and collate is None else None
