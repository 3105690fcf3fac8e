"""What fine-tuning changes: how the head begins, what is frozen, and at which rate each part learns."""
import argparse
import difflib
import math
from typing import Any

import torch
import torch.nn as nn
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from ..errors import ICASCError

__all__ = ['base_lr', 'freeze_until', 'initialise_head', 'parameter_groups', 'scale_constant_rates']


def _heads(args: argparse.Namespace, model: nn.Module, option: str) -> list[nn.Module]:
    """The classifier of a timm model; distilled ones have two."""
    head = model.get_classifier() if hasattr(model, 'get_classifier') else None
    heads = list(head) if isinstance(head, (tuple, list, nn.ModuleList)) else [head]
    if not all(isinstance(getattr(head, 'weight', None), torch.Tensor) for head in heads):
        raise ICASCError(f'{option}: {args.model} has no classifier with weights; leave it out.')
    return heads


@torch.no_grad()
def initialise_head(args: argparse.Namespace, model: nn.Module) -> None:
    """What --head-init-scale and --head-init-bias say of the classifier's first weights, as timm's script does."""
    if args.head_init_scale is None and args.head_init_bias is None:
        return
    option = '--head-init-bias' if args.head_init_scale is None else '--head-init-scale'
    for head in _heads(args, model, option):
        if args.head_init_scale is not None:
            head.weight.mul_(args.head_init_scale)
            if head.bias is not None:
                head.bias.mul_(args.head_init_scale)
        if args.head_init_bias is not None:
            if head.bias is None:
                raise ICASCError(f'--head-init-bias: the classifier of {args.model} has no bias; leave it out.')
            nn.init.constant_(head.bias, args.head_init_bias)


def _places(model: nn.Module) -> dict[str, tuple[float, int]]:
    """Where each parameter stands: the layer that timm counts it to, then its place among the parameters."""
    matcher = model.group_matcher(coarse=False) if hasattr(model, 'group_matcher') else None
    layers = group_parameters(model, matcher, reverse=True) if matcher else {}
    behind = math.inf if layers else 0  # what timm counts to no layer
    return {
        name: (layers.get(name, behind), place)
        for place, (name, _) in enumerate(model.named_parameters())}


def freeze_until(args: argparse.Namespace, model: nn.Module) -> list[nn.Module]:
    """Freeze the parameters before the module that --freeze-until names.

    Args:
        args: Options of the training.
        model: A timm model.

    Returns:
        The modules whose parameters are all frozen, and those without parameters between them. They are to stay in
        evaluation mode, for BatchNorm to keep its statistics.

    Raises:
        ICASCError: There is no such module, or none with parameters, or nothing stands before it.
    """
    path = args.freeze_until
    if not path:
        return []
    names = [name for name, _ in model.named_modules() if name]
    if path not in names:
        close = difflib.get_close_matches(path, names, 5, 0.4)
        close = close or [name for name, _ in model.named_children()]
        raise ICASCError(f"--freeze-until: {args.model} has no module '{path}'; it has {', '.join(close)}.")
    places = _places(model)
    first = min(
        (place for name, place in places.items() if name.startswith(f'{path}.')), default=None)
    if first is None:
        raise ICASCError(f"--freeze-until: module '{path}' of {args.model} has no parameters; name the next one.")
    frozen = {name for name, place in places.items() if place < first}
    if not frozen:
        raise ICASCError(f"--freeze-until: nothing stands before '{path}' in {args.model}; leave it out.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return _frozen_modules(model)


def _frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Those whose parameters are all frozen; of those without any, what lies inside such a module or between two.

    Dropout between the frozen part and the head belongs to the head.
    """
    modules = list(model.modules())[1:]
    trained = [{parameter.requires_grad for parameter in module.parameters()} for module in modules]
    kept, before = [], False
    inside: set[nn.Module] = set()
    for i, (module, kinds) in enumerate(zip(modules, trained, strict=True)):
        if len(kinds) == 1:
            before = kinds == {False}
        after = next((kinds == {False} for kinds in trained[i:] if len(kinds) == 1), False)
        if kinds == {False} or module in inside or (not kinds and before and after):
            kept.append(module)
            inside.update(module.modules())
    return kept


def parameter_groups(args: argparse.Namespace, model: nn.Module) -> list[dict[str, Any]]:
    """timm's groups of parameters, those of the head with --head-lr-scale times their rate.

    Args:
        args: Options of the training.
        model: A timm model.
    """
    exempt = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else ()
    options = {
        'weight_decay': args.weight_decay, 'no_weight_decay_list': exempt,
        'weight_decay_exclude_1d': args.opt_kwargs.get('filter_bias_and_bn', True),
        **{name: value for name, value in args.opt_kwargs.items() if name.startswith('fallback_')}}
    if args.layer_decay is None:
        groups = param_groups_weight_decay(model, **options)
    else:
        groups = param_groups_layer_decay(
            model, layer_decay=args.layer_decay, min_scale=args.layer_decay_min_scale,
            no_opt_scale=args.layer_decay_no_opt_scale, **options)
    head = {
        id(parameter) for module in _heads(args, model, '--head-lr-scale') for parameter in module.parameters()}
    split = []
    for group in groups:
        for of_head, factor in ((False, 1.), (True, args.head_lr_scale)):
            parameters = [p for p in group['params'] if (id(p) in head) == of_head]
            if parameters:
                split.append({**group, 'params': parameters, 'lr_scale': group.get('lr_scale', 1.) * factor})
    return split


def scale_constant_rates(optimizer: torch.optim.Optimizer) -> None:
    """Apply the factors of the groups, which timm's schedules do, where there is no schedule."""
    for group in optimizer.param_groups:
        group['lr'] *= group.get('lr_scale', 1.)


def base_lr(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate at the moment, without the factors of the groups."""
    rates = [group['lr'] / scale for group in optimizer.param_groups if (scale := group.get('lr_scale', 1.))]
    return rates[0] if rates else 0.
