"""Which row of the paper a finished run stands in: by its options, those aside that the paper leaves open."""
import argparse
from collections.abc import Sequence
from functools import cache
from typing import Any

from ..labels import MULTI, SINGLE, LabelKind
from ..runs.folder import INCIDENTAL, PLACES, Run
from ..task.icasc import ICASCTask, MultiLabelICASCTask
from ..training.argument_files import RECIPES
from ..training.arguments import add_arguments, build_parser, parse_args, to_arguments

__all__ = ['architecture', 'recipe_options']

# Options that the paper leaves open, or that say how a run is computed; every other one decides its row.
OPEN = (
    'icasc_order', 'icasc_mask_grad', 'icasc_mask_scale', 'icasc_multilabel_maps', 'opt_kwargs',
    'sched_on_updates', 'warmup_lr',
    'lr_base', 'lr_base_size', 'crop_pct', 'crop_mode', 'crop_padding', 'interpolation', 'train_interpolation',
    'train_crop_mode', 'scale', 'ratio', 'hflip', 'color_jitter', 'mean', 'std', 'amp', 'amp_dtype', 'channels_last',
    'grad_checkpointing', 'grad_accum_steps', 'sync_bn', 'dist_bn', 'resident_data', 'dataset',
    'config', 'run_dir', 'resume', 'icasc')

NAMED = ('icasc', 'icasc_order', 'icasc_attention')  # options that the name of the method tells

# What settings of a segmentation may be averaged over seeds; the first is the model, the others are told in the note.
SETTINGS = (
    'network', 'classifier', 'classifier_model', 'classifier_icasc', 'year', 'train_split', 'train_images',
    'test_split', 'image_size', 'iterations', 'batch_size', 'lr', 'lr_step', 'momentum', 'weight_decay', 'foreground',
    'background', 'layers', 'backbone_weights', 'weight_seed', 'weight_expand', 'weight_boundary')


def architecture(model: str) -> str:
    """The name of a timm model without the tag of its weights."""
    return model.split('.')[0]


def _from_a_file(options: dict[str, Any]) -> bool:
    return bool(options.get('pretrained_path') or options.get('initial_checkpoint'))


def _settled(options: dict[str, Any], labels: LabelKind) -> dict[str, Any]:
    """Options in one form: what is written in different ways, or left to a default, can be compared."""
    options = dict(options)
    if 'pretrained' in options:
        options['pretrained'] = bool(options['pretrained']) or _from_a_file(options)
    options.update({key: options[key] or 0. for key in ('drop', 'drop_path') if key in options})
    if options.get('lr') is None and {'lr_base', 'batch_size', 'lr_base_size'} <= options.keys():
        options['lr'] = options['lr_base'] * options['batch_size'] / options['lr_base_size']
    if options.get('opt') == 'momentum':  # the paper does not say whether the momentum is Nesterov's, timm's 'sgd'
        options['opt'] = 'sgd'
    if options.get('num_classes') is None:  # as many as the data have
        options.pop('num_classes', None)
    if labels is MULTI:
        options.pop('smoothing', None)  # it does nothing there
    if 'icasc_weights' in options and options['icasc_weights'] is None:
        task = MultiLabelICASCTask if labels is MULTI else ICASCTask
        options['icasc_weights'] = list(task.default_config.weights.values())
    return options


def misfits_of(run: Run, options: dict[str, Any], experiment: dict[str, Any]) -> list[str]:
    """The options that keep a run out of the row of the paper that `options` make."""
    labels = MULTI if 'mAP' in experiment['metrics'] else SINGLE
    own, wanted = _settled({**_defaults(), **run.options}, labels), _settled(options, labels)
    if 'model' in own and (not own.get('pretrained') or _from_a_file(own)):  # no weights that a tag would name
        own['model'], wanted['model'] = architecture(own['model']), architecture(wanted['model'])
    decides = [
        key for key in own if key in wanted and key not in INCIDENTAL
        and (key not in OPEN or key in experiment.get('fixed', ()))
        and not (run.is_baseline and key.startswith('icasc'))]
    return [
        key for key in decides if own[key] != wanted[key]
        and own[key] not in experiment['readings'].get(key, ())]


def departures(run: Run, options: dict[str, Any]) -> str:
    """Options of a run that differ from `options`."""
    return ', '.join(
        f'{k}={v}' for k, v in sorted(run.common_options(run.is_baseline).items())
        if k not in (*NAMED, *PLACES) and k in options and v != options[k])


def distinguish(
        groups: Sequence[Sequence[Run]],
        misfits: Sequence[Sequence[str]] | None = None,
) -> list[str]:
    """For each group, the options in which it differs from others of the same model, and its misfits."""
    notes = []
    for i, group in enumerate(groups):
        own = group[0]
        options = own.common_options(own.is_baseline)
        rivals = [g[0].common_options(own.is_baseline) for g in groups if g is not group]
        keys = {
            k for rival in rivals if rival.get('model') == options.get('model')
            for k in {*rival, *options} if rival.get(k) != options.get(k)}
        keys |= set(misfits[i]) - {'model'} if misfits else set()
        notes.append(', '.join(f'{k}={options.get(k)}' for k in sorted(keys.difference(NAMED))))
    return notes


@cache
def _defaults() -> dict[str, Any]:
    """What an option means that an args.yaml lacks."""
    parser = argparse.ArgumentParser()  # the training's own would read the recipe of the digits
    add_arguments(parser)
    return vars(parser.parse_args([]))


@cache
def parsed_recipe(recipe: str, data_dir: str, extra: tuple[str, ...]) -> dict[str, Any]:
    return vars(parse_args(['--data-dir', data_dir, '--config', str(RECIPES / recipe), *extra]))


def recipe_options(
        experiment: dict[str, Any],
        method: str,
        row: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    """The options of timm-icasc train that make a row of the paper, and as text those beyond the recipe's."""
    extra = to_arguments(row.get('options', {}), build_parser()) + method.split()
    options = parsed_recipe(row.get('recipe', experiment['recipe']), experiment['data_dir'], tuple(extra))
    return options, ''.join(f' {word}' for word in extra)


def has_method_of(group: Sequence[Run], row: dict[str, Any]) -> bool:
    """Whether runs of one method are of that of a row of the paper."""
    return row['method'] in ('baseline' if group[0].is_baseline else group[0].method.split(',')[0])
