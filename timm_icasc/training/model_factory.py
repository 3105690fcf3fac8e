"""The model that a training begins with: timm's factory, with every misfit as one clear line."""
import argparse
import difflib
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from ..errors import HubError, ICASCError, one_line
from ..foreign_text import printable
from ..hub.download import HUB_NAMES, split_source
from ..hub.failures import one_line_errors, repo_at
from ..hub.tags import WEIGHT_TAGS
from ..runs.folder import LAST
from ..runs.intact import check_intact, harmless_types
from .console import log
from .fine_tune import initialise_head
from .option_names import flag_of
from .pretrained import create_from_file, go_offline_unless_the_hub_answers

__all__ = ['UNREGISTERED', 'check_model_name', 'set_up_model']

UNREGISTERED = (*HUB_NAMES, 'local-dir:')  # names that timm looks up elsewhere than in its registry


def check_model_name(name: str) -> None:
    """Raise ICASCError where timm has no such architecture, or no weights of the tag that is named with it."""
    if name.startswith(UNREGISTERED):
        return
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ICASCError(
            f"`model`: unknown architecture '{name}'"
            f"{'; close: ' + ', '.join(close) if close else '; timm.list_models() lists them'}.")
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as e:
        architecture, _, tag = name.partition('.')
        tags = timm.list_pretrained(f'{architecture}.*')
        close = difflib.get_close_matches(name, tags, 3) or tags[:5]
        raise ICASCError(
            f"`model`: {architecture} has no weights '{tag}'; "
            f"{'it has ' + ', '.join(close) if close else 'leave the tag out'}.") from e


def _explain_hub(name: str, unreachable: str, error: Exception) -> None:
    """Raise what the Hub's client said of the model `hf-hub:REPO` in one line that names the repo."""
    repo, revision = split_source(name)
    where = repo_at(repo, revision)
    if unreachable and isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        raise HubError(f'{where}: not in the cache, and {unreachable}') from error
    try:
        with one_line_errors(where):
            raise error
    except HubError:
        raise
    except Exception as e:  # not of the Hub: what the model's own factory says
        raise ICASCError(f'--model {name}: {one_line(e)}') from e


def _warn_of_scaled_head(args: argparse.Namespace, weights: str) -> None:
    """Where a trained head is scaled too: the recipe may have been written for a new one."""
    if args.head_init_scale not in (None, 1):
        warnings.warn(
            f"--head-init-scale {args.head_init_scale:g} also scales the head of '{printable(weights)}'; "
            f'--head-init-scale 1 keeps it as it is.', stacklevel=2)


def _create_model(args: argparse.Namespace, kwargs: dict[str, Any], unreachable: str) -> nn.Module:
    """The model; `unreachable` says why the Hub does not answer, where it does not."""
    create = partial(
        timm.create_model, args.model, num_classes=args.num_classes, in_chans=args.in_chans,
        global_pool=args.gp, drop_rate=args.drop, drop_path_rate=args.drop_path,
        drop_block_rate=args.drop_block, bn_momentum=args.bn_momentum, bn_eps=args.bn_eps)
    try:
        if args.pretrained_path:
            model, loaded, has_head = create_from_file(
                args.pretrained_path,
                lambda overlay: create(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs),
                args.num_classes)
            log(args, f"weights of '{args.pretrained_path}': {loaded}")
            if has_head:
                _warn_of_scaled_head(args, args.pretrained_path)
            return model
        if args.initial_checkpoint:
            _warn_of_scaled_head(args, args.initial_checkpoint)
        with harmless_types():
            model = create(
                pretrained=args.pretrained, checkpoint_path=args.initial_checkpoint, **kwargs)
        own_classes = getattr(model, 'pretrained_cfg', {}).get('num_classes')
        if args.pretrained and model.num_classes == own_classes:  # else the head is new
            _warn_of_scaled_head(args, args.model)
        return model
    except ICASCError:  # says cause and remedy already
        raise
    except Exception as e:  # a factory of 1,400 architectures, weights from files and from the network
        message = one_line(e, 300)
        if args.initial_checkpoint and 'loading state_dict' in message:
            raise ICASCError(
                f"--initial-checkpoint: '{args.initial_checkpoint}' is not a whole checkpoint of --model "
                f'{args.model} with {args.num_classes} classes; weights for another head go to '
                f'--pretrained-path: {message}') from e
        if args.initial_checkpoint:
            raise ICASCError(
                f"--model {args.model} with --initial-checkpoint '{args.initial_checkpoint}': {message}") from e
        if args.model.startswith(HUB_NAMES):
            _explain_hub(args.model, unreachable, e)
        remedy = ''
        if args.pretrained and ':' not in args.model:
            remedy = ' (weights cannot be fetched? Train with --pretrained-path FILE; elsewhere, name a checkpoint)'
        elif kwargs:
            remedy = f" (with --model-kwargs {' '.join(f'{name}={value}' for name, value in kwargs.items())})"
        file = f"--pretrained-path: '{args.pretrained_path}' does not fit " if args.pretrained_path else ''
        raise ICASCError(f'{file}--model {args.model}: {message}{remedy}') from e


def set_up_model(args: argparse.Namespace) -> nn.Module:
    """The timm model, its name checked; what timm says of weights and arguments is passed on in one line."""
    kwargs = dict(args.model_kwargs)
    for option in ('pretrained_path', 'initial_checkpoint'):
        file = getattr(args, option)
        if file and not Path(file).is_file():
            inside = Path(file, LAST)
            hint = f': name the weights in it, as {inside}' if inside.is_file() else ''
            raise ICASCError(f"{flag_of(option)}: no file '{file}'{hint}.")
        if file:
            try:
                check_intact(Path(file))
            except ICASCError as e:
                raise ICASCError(f"{flag_of(option)}: {e}") from e
    registered = not args.model.startswith(UNREGISTERED)
    config = timm.get_pretrained_cfg(args.model, allow_unregistered=True) if registered else None
    size = tuple(args.input_size[1:]) if args.input_size else args.img_size
    sized = {'img_size': size, **kwargs} if size else kwargs  # position embeddings are made for one size
    if config is not None and config.fixed_input_size:
        kwargs = sized
    unreachable = ''
    if args.pretrained and args.model not in WEIGHT_TAGS or args.model.startswith(HUB_NAMES):
        unreachable = go_offline_unless_the_hub_answers()
    model = _create_model(args, kwargs, unreachable)
    if not registered and sized != kwargs and model.pretrained_cfg.get('fixed_input_size'):
        model = _create_model(args, sized, unreachable)  # only its files tell that it has one size
    getattr(model, 'pretrained_cfg', {}).pop('state_dict', None)  # else copies of the model would carry it along
    initialise_head(args, model)
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as e:  # timm has a method for those that cannot, too
            raise ICASCError(f'--grad-checkpointing: {args.model} does not support it.') from e
    return model
