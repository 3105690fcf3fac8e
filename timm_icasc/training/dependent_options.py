"""Options that mean nothing without another one: refused, or left behind where the command line switches that one off.

timm takes them in silence, and the user believes what they say.
"""
import argparse
from typing import Any

from timm.optim import get_optimizer_info

from ..errors import ICASCError
from .option_names import flag_of

__all__ = ['changes_of_images', 'check_dependent', 'still_meant', 'unused_by_optimizer']

MIXING = ('mixup', 'cutmix', 'cutmix_minmax')

# Option -> its default, and the options of which it needs one.
NEEDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    'clip_mode': ('norm', ('clip_grad',)), 'amp_dtype': ('float16', ('amp',)),
    'model_ema_warmup': (False, ('model_ema',)), 'model_ema_decay': (0.9998, ('model_ema',)),
    'torchcompile_mode': (None, ('torchcompile',)),
    'remode': ('pixel', ('reprob',)), 'recount': (1, ('reprob',)),
    'layer_decay_min_scale': (0., ('layer_decay',)), 'layer_decay_no_opt_scale': (None, ('layer_decay',)),
    'mixup_switch_prob': (0.5, MIXING), 'mixup_mode': ('batch', MIXING), 'mixup_prob': (1., MIXING),
    'mixup_off_epoch': (0, MIXING)}

# Options that change training images and are off unless asked for.
CHANGES_OF_IMAGES = ('aa', 'reprob', 'train_crop_mode', 'vflip', 'grayscale_prob', 'gaussian_blur_prob')

# Option -> values with which it asks for nothing (its default; that it be off), and the options that take its place.
REPLACED: dict[str, tuple[tuple, tuple[str, ...]]] = {
    'scale': (([0.08, 1.], [1., 1.]), ('no_aug', 'crop_padding')),
    'ratio': (([3 / 4, 4 / 3], [1., 1.]), ('no_aug', 'crop_padding')),
    'train_crop_mode': ((None,), ('no_aug', 'crop_padding')),
    'train_interpolation': (('random',), ('no_aug', 'crop_padding')),
    **{name: (idle, ('no_aug',)) for name, idle in {
        'crop_padding': (None, 0), 'hflip': (0.5, 0.), 'vflip': (0.,), 'color_jitter': (0.4, 0.),
        'color_jitter_prob': (None, 0.), 'grayscale_prob': (None, 0.), 'gaussian_blur_prob': (None, 0.), 'aa': (None,),
        'reprob': (0.,)}.items()}}

CYCLES = ('cosine', 'tanh', 'poly')

# Option -> its default, and the schedules of timm's that have it.
OF_SCHEDULES: dict[str, tuple[Any, tuple[str, ...]]] = {
    'decay_epochs': (90., ('step', 'wsd', 'rsqrt')), 'decay_milestones': ([90, 180, 270], ('multistep',)),
    'decay_rate': (0.1, ('step', 'multistep', 'plateau', 'poly')), 'patience_epochs': (10, ('plateau',)),
    'lr_cycle_mul': (1., CYCLES), 'lr_cycle_decay': (0.5, CYCLES), 'lr_cycle_limit': (1, CYCLES),
    'cooldown_epochs': (0, (*CYCLES, 'wsd', 'rsqrt')), 'lr_k_decay': (1., ('cosine', 'poly')),
    'min_lr': (0., (*CYCLES, 'plateau', 'wsd', 'rsqrt'))}

OF_BCE = ('bce_target_thresh', 'bce_sum', 'bce_pos_weight')

# Of tables and shards, and of streams: the data sets of timm's that have them.
COLUMNS, OF_COLUMNS = ('input_key', 'target_key'), ('hfds/', 'hfids/', 'wds/')
NUMBERS, OF_NUMBERS = ('train_num_samples', 'val_num_samples'), ('hfids/', 'tfds/', 'wds/')


def changes_of_images(args: argparse.Namespace) -> dict[str, Any]:
    """Flag -> value of `CHANGES_OF_IMAGES`."""
    return {flag_of(name): getattr(args, name) for name in CHANGES_OF_IMAGES}


def unused_by_optimizer(opt: str) -> tuple[str, ...]:
    """Of the options that say how an optimiser works those that it has not; none of a name that timm does not know."""
    try:
        known = get_optimizer_info(opt.lower().split('_')[-1])  # of lookahead_NAME too
    except ValueError:
        return ()
    has = {'opt_betas': known.has_betas, 'opt_eps': known.has_eps, 'momentum': known.has_momentum}
    return tuple(name for name, used in has.items() if not used)


def still_meant(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The options of a file without those that lose their meaning by what is said over it.

    With --mixup 0, a recipe's --mixup-prob is not the user's to take back. What the file itself says in vain stays, and
    is refused.

    Args:
        base: Of a recipe, a run or what variants have in common.
        over: Of the command line, or of a variant.
    """
    gone = {name for name, (_, others) in REPLACED.items() if any(map(over.get, others))}
    if over.get('loss', 'bce') != 'bce':
        gone |= set(OF_BCE)
    if 'dataset' in over:
        for names, prefixes in ((COLUMNS, OF_COLUMNS), (NUMBERS, OF_NUMBERS)):
            gone |= set() if over['dataset'].startswith(prefixes) else set(names)
    if 'sched' in over:
        gone |= {name for name, (_, schedules) in OF_SCHEDULES.items() if over['sched'] not in schedules}
    if 'opt' in over:
        gone |= set(unused_by_optimizer(over['opt']))
    merged = {**{name: value for name, value in base.items() if name not in gone}, **over}
    for name, (_, needed) in NEEDS.items():
        if not any(merged.get(other) for other in needed) and (gone | set(over)) & set(needed):
            gone.add(name)
    return {name: value for name, value in base.items() if name not in gone}


def _check_pairs(args: argparse.Namespace) -> None:
    for name, (default, needed) in NEEDS.items():
        if getattr(args, name) != default and not any(getattr(args, other) for other in needed):
            raise ICASCError(
                f"{flag_of(name)} does nothing without {' or '.join(map(flag_of, needed))}: give that too, or leave it "
                f'out.')
    for name, (default, schedules) in OF_SCHEDULES.items():
        if getattr(args, name) != default and args.sched not in schedules:
            raise ICASCError(
                f"{flag_of(name)} is of --sched {' or '.join(schedules)}, this is --sched {args.sched}: leave it out.")
    for name, (idle, others) in REPLACED.items():
        for other in (other for other in others if getattr(args, other)):
            if getattr(args, name) not in idle:
                raise ICASCError(f'{flag_of(name)} does nothing beside {flag_of(other)}: leave one of them out.')


def check_dependent(args: argparse.Namespace) -> None:
    """Raise ICASCError where an option means nothing without, or beside, another one."""
    for name in OF_BCE:
        if getattr(args, name) not in (None, False) and args.loss != 'bce':
            raise ICASCError(f'{flag_of(name)} is of --loss bce, this is --loss {args.loss}: leave it out.')
    for name in COLUMNS:
        if getattr(args, name) and not args.dataset.startswith(OF_COLUMNS):
            raise ICASCError(f"{flag_of(name)} names a column of hfds/, hfids/ or wds/ data, not of '{args.dataset}'.")
    for name in NUMBERS:
        if getattr(args, name) and not args.dataset.startswith(OF_NUMBERS):
            raise ICASCError(
                f'{flag_of(name)} is the number of images of a stream (hfids/, tfds/, wds/): leave it out; '
                f'--limit-train N takes a part of other training images.')
    _check_pairs(args)
