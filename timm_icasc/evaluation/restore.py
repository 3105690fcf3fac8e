"""A network as it was trained: the options of its run, its weights, the data set that tells its classes."""
import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from torch.utils.data import Dataset

from ..data import class_names, create_dataset, is_stream
from ..errors import DataError, ICASCError, one_line
from ..runs.folder import ARGUMENTS, CHECKPOINT, Run, is_timms, open_run, read_checkpoint
from ..runs.intact import check_intact
from ..training.argument_files import check_options
from ..training.arguments import build_parser, parse_args, to_arguments
from ..training.device import usable_cores
from ..training.loaders import columns_of
from ..training.model_factory import UNREGISTERED, check_model_name, set_up_model
from ..training.pretrained import OF_JAX, read_weights

__all__ = ['is_name', 'open_dataset', 'restore', 'run_arguments', 'run_beside', 'take_preparation']

# Options of the command that replace those of the run, where given.
OVERRIDES = (
    'data_dir', 'dataset', 'val_split', 'class_map', 'img_size', 'crop_pct', 'crop_mode', 'workers', 'device',
    'max_image_pixels', 'image_endings')


# Options that say how a network is built and given its images; a run's checkpoint holds them too.
PREPARED_BY = (
    'model_kwargs', 'gp', 'bn_eps', 'img_size', 'input_size', 'crop_pct', 'crop_mode', 'interpolation', 'mean', 'std',
    'icasc_layers')


def is_name(source: str) -> bool:
    """Whether it is a model's name, on the Hub or among timm's, and not a file or folder."""
    return source.startswith(UNREGISTERED) or not Path(source).exists() and timm.is_model(source)


def run_arguments(
        source: str,
        given: argparse.Namespace,
        run: Run | None,
        with_data: bool,
) -> argparse.Namespace:
    """The options of timm-icasc train that the checkpoint was, or would have been, trained with."""
    argv = []
    if run is not None:
        argv += ['--config', str(run.folder / ARGUMENTS)]
    elif is_name(source):
        argv += ['--model', source]
    elif given.model:
        argv += ['--model', given.model]
    else:
        raise ICASCError(
            f"'{source}' has no {ARGUMENTS} of timm-icasc train beside it: name its architecture with `model`.")
    if with_data and run is None and not given.data_dir and not getattr(given, 'dataset', None):
        raise ICASCError(f"'{source}' tells no data set: name it with `data_dir` (and `dataset`).")
    if run is None and not with_data:
        argv += ['--data-dir', 'unused']  # never opened; without any, the recipe of the digits would prepare the images
    argv += to_arguments({name: getattr(given, name, None) for name in OVERRIDES}, build_parser())
    args = parse_args(argv)
    if getattr(given, 'dataset', None):
        args.image_endings = getattr(given, 'image_endings', None)  # those of the run are of its own data
        args.input_key = args.target_key = None
    if args.input_size and getattr(given, 'img_size', None):  # the run's size gives way to what is asked for
        args.input_size = [args.input_size[0], given.img_size, given.img_size]
    if getattr(given, 'workers', None) is None:  # the run may be of a larger machine
        args.workers = min(args.workers, usable_cores())
    if with_data and given.data_dir and not getattr(given, 'dataset', None) and args.dataset == 'digits':
        args.dataset = ''  # the embedded data of the run give way to the folder
    return args


def take_preparation(args: argparse.Namespace, file: Path, given: argparse.Namespace) -> None:
    """Take from a checkpoint that has left its run's folder the options of `PREPARED_BY` that are not given."""
    if not file.name.endswith(CHECKPOINT):
        return
    try:
        own = read_checkpoint(file).get('args')
    except ICASCError:  # what is wrong with it is said where its weights are read
        return
    if getattr(own, 'model', None) != args.model:
        return
    asked = [name for name in PREPARED_BY if getattr(given, name, None) is not None]
    if 'img_size' in asked:
        asked.append('input_size')
    taken = {
        name: value for name in PREPARED_BY
        if name not in asked and (value := getattr(own, name, None)) is not None}
    vars(args).update(check_options(taken, build_parser(), f"the checkpoint '{file}'"))


def _is_common(prefix: str, names: Iterable[str]) -> bool:
    """Whether most names begin so, as those of a model that another one holds."""
    return statistics.fmean(name.startswith(prefix) for name in names) > 0.5


def _classifier_size(state_dict: dict[str, torch.Tensor], model_name: str) -> int | None:
    """Number of logits, read from the weights of the head that the architecture names."""
    config = timm.get_pretrained_cfg(model_name, allow_unregistered=True)
    classifier = getattr(config, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier
    head = f'{classifier}.weight'
    for name, weight in state_dict.items():
        prefix = name.removesuffix(head)
        if name == head or name == prefix + head and prefix.endswith('.') and _is_common(prefix, state_dict):
            return len(weight)
    return None


def _in_chans(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> int:
    """Channels of the images, read from the first convolution, which says what no configuration need say."""
    first = config.get('first_conv') or ()
    for name in (first,) if isinstance(first, str) else first:
        weight = weights.get(f'{name}.weight')
        if weight is not None and weight.ndim == 4 and weight.shape[1] in (1, 3):
            return weight.shape[1]
    return (config.get('input_size') or (3,))[0]


def _weights_of(file: Path, run: Run | None) -> dict[str, torch.Tensor]:
    """The averaged weights where the file has any."""
    if run is not None and file.name.endswith(CHECKPOINT):
        return run.load_weights(file)
    check_intact(file)
    return read_weights(file, 'the checkpoint')


def _fill_model(
        args: argparse.Namespace,
        file: Path,
        state_dict: dict[str, torch.Tensor],
        names: Sequence[str] | None,
) -> nn.Module:
    args.num_classes = _classifier_size(state_dict, args.model) or args.num_classes or (
        len(names) if names else None)
    model = set_up_model(args)
    # Another image size than in training: position embeddings are resampled as timm does for its own weights.
    resample = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    try:
        if resample is not None and (args.img_size or args.input_size):
            state_dict = resample(state_dict, model)
        model.load_state_dict(state_dict)
    except (RuntimeError, TypeError) as e:
        raise ICASCError(
            f"the weights of '{file}' do not fit `model={args.model}`: "
            f"{one_line(e)}") from e
    return model


def restore(
        args: argparse.Namespace,
        weights: Path | None,
        run: Run | None,
        with_data: bool,
        pretrained_path: str | None,
) -> tuple[nn.Module, Dataset | None]:
    """The model and its data set; the channels of the images are those of the weights.

    Args:
        args: Of `run_arguments`; what the weights tell (classes, channels) is filled in.
        weights: The checkpoint; None for a published model, whose weights timm loads.
        run: That the checkpoint is of.
        with_data: Whether to open the data set.
        pretrained_path: File with the weights of a published model, on a machine that cannot download them.

    Raises:
        ICASCError: The file is no checkpoint, or its weights do not fit the model.
        DataError: The data set is missing, or cannot be indexed.
    """
    check_model_name(args.model)
    args.grad_checkpointing, args.initial_checkpoint = False, ''
    args.pretrained_path, args.rank = pretrained_path, 0
    args.pretrained = weights is None
    if weights is None:
        args.in_chans = args.input_size[0] if args.input_size else args.in_chans  # None: the published one
        if pretrained_path and args.num_classes is None:
            own = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
            file, there = Path(pretrained_path), None
            if file.is_file() and file.suffix.lower() not in OF_JAX:
                there = _classifier_size(read_weights(file), args.model)
            args.num_classes = there or (own.num_classes if own else None)
        model = set_up_model(args)
        args.in_chans = _in_chans(model.state_dict(), model.pretrained_cfg)
        return model, open_dataset(args) if with_data else None
    state_dict = _weights_of(weights, run)
    config = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
    args.in_chans = _in_chans(state_dict, config.to_dict() if config else {})
    dataset = open_dataset(args) if with_data else None
    names = class_names(dataset) if dataset else None
    return _fill_model(args, weights, state_dict, names), dataset


def run_beside(weights: Path | None) -> Run | None:
    """The run that a file of weights lies in, if it lies in one of this package."""
    if weights is None or not (weights.parent / ARGUMENTS).is_file():
        return None
    try:
        run = open_run(weights.parent)
    except (OSError, ValueError) as e:
        raise ICASCError(f"the run '{weights.parent}' cannot be read: {one_line(e)}") from e
    return None if is_timms(run.arguments) else run


def open_dataset(args: argparse.Namespace) -> Dataset:
    """The images that options of timm-icasc train validate on.

    Raises:
        DataError: They are missing, or cannot be indexed.
    """
    dataset = create_dataset(
        args.dataset, root=args.data_dir, split=args.val_split, class_map=args.class_map or None,
        download=args.dataset_download, input_img_mode='L' if args.in_chans == 1 else 'RGB',
        batch_size=args.batch_size, seed=args.seed, max_image_pixels=args.max_image_pixels,
        image_endings=args.image_endings, **columns_of(args))
    if is_stream(dataset):
        raise DataError(
            f"data set '{args.dataset}' is a stream; evaluation needs one that can be indexed: name a folder of images "
            f'with `data_dir` and `dataset`.')
    return dataset
