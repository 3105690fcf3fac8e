"""What to ask of any model, and how to run it for a moment without leaving a trace."""
import itertools
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch.distributed.fsdp import FSDPModule
from torch.fx import GraphModule

from ..errors import ICASCError, VersionError
from .wrappers import DATA_PARALLEL, paths_around, unwrap_model

__all__ = [
    'activation_or_norm', 'check_reentrant', 'check_shards', 'evaluation_mode', 'hold_batch_norm_statistics',
    'is_checkpointing', 'is_inside_shard', 'is_sharded', 'looking_at', 'one_survey', 'one_thread', 'survey',
]

REENTRANT = (
    'ICASC does not work with torch.utils.checkpoint(use_reentrant=True), which gives no gradients of features: '
    "checkpoint with use_reentrant=False (transformers: `gradient_checkpointing_kwargs={'use_reentrant': False}`).")

EXPORTED = (
    '`model` was exported (torch.export), which leaves no mode to choose, and no modules that are called one by one: '
    'pass the model that it was made of.')

_owners: 'weakref.WeakKeyDictionary[nn.Module, int]' = weakref.WeakKeyDictionary()  # model -> thread

_owners_lock = threading.Lock()


@contextmanager
def one_thread(model: nn.Module) -> Iterator[None]:
    """Keep other threads from a model whose modules carry hooks for a moment.

    Raises:
        ICASCError: Another thread is at it, or the model is a copy by `nn.DataParallel`.
    """
    if getattr(model, '_is_replica', False):
        raise ICASCError(DATA_PARALLEL)
    own = threading.get_ident()
    with _owners_lock:
        before = _owners.get(model)
        if before not in (None, own):
            raise ICASCError(
                'another thread is taking attention maps of this model: give each thread a model of its own '
                '(copy.deepcopy), and for training on several devices use DistributedDataParallel.')
        _owners[model] = own
    try:
        yield
    finally:
        if before is None:
            with _owners_lock:
                _owners.pop(model, None)


@contextmanager
def hold_batch_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are.

    Where a model checkpoints activations, by timm's flag or by a call of its own that no flag tells, the gradient of a
    score runs layers again, and each run would count the batch once more. (The recomputation in the user's own backward
    pass does, with ICASC or without.)
    """
    norms = [m for m in survey(model).norms if m.training and m.track_running_stats]
    before = [(m, m.momentum, m._buffers['num_batches_tracked']) for m in norms]
    other = {count.device: torch.zeros_like(count) for _, _, count in before}  # counts in their place, for nothing
    try:
        for m, _, count in before:
            m.momentum, m._buffers['num_batches_tracked'] = 0., other[count.device]
        yield
    finally:
        for m, momentum, count in before:
            m.momentum, m._buffers['num_batches_tracked'] = momentum, count


@contextmanager
def check_reentrant() -> Iterator[None]:
    """Raise ICASCError where a gradient of features is asked for by way of, or inside, a reentrant checkpoint."""
    try:
        yield
    except RuntimeError as e:
        if 'use_reentrant=True' in str(e):
            raise ICASCError(REENTRANT) from e
        if 'not have been used in the graph' in str(e):
            raise ICASCError(
                f'the class scores do not depend on the layers as they did when these were found, in evaluation mode. '
                f'{REENTRANT} Without checkpoints, name layers that are used in training, and not under '
                f'`torch.no_grad()`, with `layers`.') from e
        raise


class Survey(NamedTuple):
    """What a walk through the modules of a model tells.

    Attributes:
        checkpointing: Gradient checkpointing is on, by the flag that the models of timm or of Hugging Face carry.
        sharded: FSDP2 (`fully_shard`) gathers parameters for a forward or backward pass, and lets go of them after it.
        synchronised: BatchNorm counts the batches of all processes.
        drops_patches: In training, tokens are left out at random.
        norms: BatchNorm and InstanceNorm.
        made_of: Another one for other modules, and for other settings of theirs, such as a pooling's or a stride.
    """
    checkpointing: bool
    sharded: bool
    synchronised: bool
    drops_patches: bool
    norms: tuple[nn.Module, ...]
    made_of: tuple


def _walk(model: nn.Module) -> Iterator[nn.Module]:
    """Every module once; three times as fast as `model.modules()`, which makes their names."""
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            waiting.extend(child for child in module._modules.values() if child is not None)


_numbers: 'weakref.WeakKeyDictionary[Any, int]' = weakref.WeakKeyDictionary()
_counter = itertools.count()


def _number(thing: Any) -> int:
    """Of its own for each module or function; its `id` may have been that of another one, which is gone."""
    number = _numbers.get(thing)
    return _numbers.setdefault(thing, next(_counter)) if number is None else number


_SCALARS = frozenset({bool, int, float, str, type(None)})
_FUNCTIONS = frozenset({FunctionType, MethodType, partial})
_SETTINGS = frozenset({str, bool, int, tuple}) | _FUNCTIONS


def _settings(module: nn.Module) -> Iterator[Any]:
    """What among a module's attributes may say which way the features take through it.

    Texts, functions that are put on the module (as a method of its own in place of its class's), flags, and tuples of
    plain values. Numbers count where torch defines the module; elsewhere they may count steps, and floats may be a
    rate on a schedule, which would make every step a new question.
    """
    from_torch = type(module).__module__.startswith('torch.nn.modules.')
    for name, value in vars(module).items():
        kind = type(value)
        if kind not in _SETTINGS:
            continue
        if kind is str:
            yield value
        elif kind in _FUNCTIONS:
            function = getattr(value, '__func__', value)  # a bound method is another object whenever it is asked for
            if type(function) in _FUNCTIONS:
                yield _number(function)
        elif name[0] == '_' or name == 'training':
            continue
        elif kind is bool or kind is int and from_torch:
            yield value
        elif kind is tuple and _SCALARS.issuperset(map(type, value)):
            yield value


def _survey(model: nn.Module) -> Survey:
    checkpointing = sharded = synchronised = drops_patches = False
    norms, made_of = [], []
    for module in _walk(model):
        # Not getattr: where a name is missing, as in most modules, torch goes through parameters, buffers and children.
        own = vars(module)
        checkpointing |= bool(own.get('grad_checkpointing') or own.get('gradient_checkpointing'))
        sharded |= isinstance(module, FSDPModule)
        synchronised |= isinstance(module, nn.SyncBatchNorm)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            norms.append(module)
        if type(module).__name__.startswith('PatchDropout'):  # timm's two, open_clip's
            drops_patches |= module.training and own.get('prob', 0) > 0
        made_of += _number(module), str(own.get('global_pool')), *_settings(module)
    return Survey(
        checkpointing, sharded, synchronised, drops_patches, tuple(norms), tuple(made_of))


_surveyed = threading.local()  # .model and .survey, inside of `one_survey`


@contextmanager
def one_survey(model: nn.Module) -> Iterator[None]:
    """Walk through the modules once, however often a step inside asks what they are; they must not change there."""
    model, before = unwrap_model(model), getattr(_surveyed, 'model', None)
    if before is model:
        yield
        return
    known = getattr(_surveyed, 'survey', None)
    _surveyed.model, _surveyed.survey = model, None
    try:
        yield
    finally:
        _surveyed.model, _surveyed.survey = before, known


def survey(model: nn.Module) -> Survey:
    """What the model, wrapped or not, is made of now."""
    model = unwrap_model(model)
    if getattr(_surveyed, 'model', None) is not model:
        return _survey(model)
    if _surveyed.survey is None:
        _surveyed.survey = _survey(model)
    return _surveyed.survey


def is_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on."""
    return survey(model).checkpointing


# Where torch and timm define their activations and norms.
_ACTIVATION_FILES = re.compile(r'(torch\.nn\.modules|timm\.layers)\.activations?(_me)?$')
_NORM_FILES = re.compile(r'(torch\.nn\.modules\.(batchnorm|instancenorm|normalization)|timm\.layers\.\w*norm)$')


def activation_or_norm(module: nn.Module) -> str | None:
    """'activation' or 'norm', where the module is, or extends, one of torch's or timm's."""
    files = [kind.__module__ for kind in type(module).__mro__]
    if any(map(_ACTIVATION_FILES.match, files)) and not isinstance(module, nn.MultiheadAttention):
        return 'activation'
    return 'norm' if any(map(_NORM_FILES.match, files)) else None


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread the parameters over the processes."""
    return survey(model).sharded


def check_shards(model: nn.Module) -> None:
    """Raise VersionError where torch itself cannot run a model of `fully_shard`: before 2.7, on a CPU.

    torch 2.6 asks the stand-in for a stream on a CPU to record an event, which that cannot do.
    """
    if is_sharded(model) and not hasattr(torch.cpu.Stream, 'record_event') and any(
            parameter.device.type == 'cpu' for parameter in model.parameters()):
        raise VersionError(
            f'torch {torch.__version__} cannot run fully_shard (FSDP2) on a CPU, with or without ICASC: take a later '
            f'torch (pip install -U torch), or DistributedDataParallel.')


def is_inside_shard(model: nn.Module, path: str) -> bool:
    """Whether the module lies in a part of the model that FSDP2 gathers and lets go as a whole, the model itself aside.

    A backward pass that ends inside of such a part leaves it half way.
    """
    return any(isinstance(model.get_submodule(outer), FSDPModule) for outer in paths_around(path))


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside parameters, buffers, children and hooks."""
    return {name: value for name, value in vars(module).items() if not name.startswith('_')}


def _content(container: dict | list | set) -> list:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _put_back(container: dict | list | set, content: list) -> None:
    """Give a container what it held; it stays the object that others may hold too."""
    now = _content(container)
    if len(now) == len(content) and all(map(_is_same, now, content)):
        return
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two entries are the same objects; == would compare tensors number by number."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        return all(a is b for a, b in zip(one, other, strict=True))
    return one is other


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; on leaving, each module gets its own flag and attributes back.

    Some modules (LeViT's attention) cache values at evaluation that would outlive the parameters they were made of.
    Some (LoRA layers) change their weights in a `train()` of their own: it is called on leaving too. A BatchNorm that
    a `train()` leaves in training does not count what the model is run on.
    """
    with one_thread(unwrap_model(model)):
        before = {module: _own_attributes(module) for module in model.modules()}
        if any(isinstance(module, GraphModule) and 'eval' in vars(module) for module in before):
            raise ICASCError(EXPORTED)
        told = [(m, m.training) for m in before if getattr(m.train, '__func__', None) is not nn.Module.train]
        containers = [
            (value, _content(value))
            for attributes in before.values() for value in attributes.values()
            if isinstance(value, (dict, list, set))]
        try:
            model.eval()
            with hold_batch_norm_statistics(model):
                yield
        finally:
            for module, was_training in told:
                module.train(was_training)
            for module, attributes in before.items():
                for name in [name for name in vars(module) if not name.startswith('_') and name not in attributes]:
                    delattr(module, name)
                vars(module).update(attributes)
            for container, content in containers:
                _put_back(container, content)


def looking_at(model: nn.Module) -> AbstractContextManager:
    """Evaluation mode for a look at the model; of one that is in it already, nothing."""
    if any(module.training for module in model.modules()):
        return evaluation_mode(model)
    return nullcontext()
