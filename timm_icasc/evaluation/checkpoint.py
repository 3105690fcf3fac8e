"""From what a user names (the folder of a run, a checkpoint file, a hub name) to a model and its test images."""
import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from huggingface_hub import try_to_load_from_cache
from timm.data import create_transform
from timm.models import load_state_dict
from torch.utils.data import Dataset

from ..data import (
    FewImages,
    class_names,
    create_dataset,
    few_of_each_class,
    is_stream,
    labels_of,
    name_classes,
)
from ..errors import DataError, ICASCError, LayerResolutionError, one_line
from ..explanation import Explainer
from ..explanation.class_names import class_names_of, fill_up
from ..features.layout import ICASCLayers
from ..features.resolve import resolve_layers
from ..foreign_files import read_json
from ..foreign_text import printable
from ..hub.model_folder import CONFIG, METADATA_KEY
from ..labels import MULTI, LabelKind, check_same_classes
from ..runs.find import find_runs, find_weights
from ..runs.folder import ARGUMENTS, CHECKPOINT, Run, open_run
from ..runs.intact import check_intact
from ..training.arguments import parse_args
from ..training.device import device_fault
from ..training.job import set_up_model
from ..training.loaders import set_up_data_config
from ..training.option_groups import usable_cores

__all__ = [
    'Checkpoint', 'check_same_data', 'expand_sources', 'load_checkpoint', 'load_checkpoints', 'load_explainer',
    'load_explainers',
]

HUB = ('hf-hub:', 'hf_hub:', 'local-dir:')

# Data sets whose images can have several classes, by their names.
MULTI_LABEL_NAMES = ('voc2007', 'voc2012', 'voc2007-packed', 'multilabel')

# Options of the command that replace those of the run, where given.
OVERRIDES = (
    'data_dir', 'dataset', 'val_split', 'class_map', 'img_size', 'crop_pct', 'crop_mode', 'workers', 'device',
    'max_image_pixels', 'image_endings')


@dataclass
class Checkpoint:
    """A trained model and the images that it is evaluated on.

    Attributes:
        label: What tables and figures call it.
        source: Where it comes from: the checkpoint file, or the name on the hub.
        run: The run that it is of; None for a bare checkpoint.
        model: In evaluation mode, on its device.
        dataset: Images through the evaluation transform; None where only the model was wanted.
        names: Class names in the order of the logits; None where the data set does not tell.
        num_classes: Number of logits.
        data_config: timm's: input size, mean, std, interpolation, crop.
        layers: The inner and the last layer; None where the model has none that can be used.
        batch_size: Images per batch.
        args: Options of timm-icasc train that the run had, with the overrides.
    """
    label: str
    source: str
    run: Run | None
    model: nn.Module
    dataset: Dataset | None
    names: list[str] | None
    num_classes: int
    data_config: dict[str, Any]
    layers: ICASCLayers | None
    batch_size: int
    args: argparse.Namespace

    @property
    def labels(self) -> LabelKind:
        return labels_of(self.dataset)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def noted_names(self) -> list[str] | None:
        """The classes in the order of the logits, as the run, or the published model, has noted them down."""
        return _noted_names(self.run, Path(self.source), self.model)

    def class_name(self, index: int) -> str:
        # A head may have more outputs than the data set has classes.
        return self.names[index] if self.names and index < len(self.names) else str(index)


def _is_name(source: str) -> bool:
    """Whether it is a model's name, on the Hub or among timm's, and not a file or folder."""
    return source.startswith(HUB) or not Path(source).exists() and timm.is_model(source)


def _run_arguments(
        source: str,
        given: argparse.Namespace,
        run: Run | None,
        with_data: bool,
) -> argparse.Namespace:
    """The options of timm-icasc train that the checkpoint was, or would have been, trained with."""
    argv = []
    if run is not None:
        argv += ['--config', str(run.folder / ARGUMENTS)]
    elif _is_name(source):
        argv += ['--model', source]
    elif not given.model:
        raise ICASCError(f"'{source}' has no {ARGUMENTS} beside it: name its architecture with `model`.")
    if given.model and not _is_name(source):
        argv += ['--model', given.model]
    if with_data and run is None and not given.data_dir and not getattr(given, 'dataset', None):
        raise ICASCError(f"'{source}' tells no data set: name it with `data_dir` (and `dataset`).")
    if run is None and not with_data:
        argv += ['--data-dir', '.']  # never opened; without any, the recipe of the digits would prepare the images
    for name in OVERRIDES:
        if (value := getattr(given, name, None)) is not None:
            argv += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    args = parse_args(argv)
    if getattr(given, 'dataset', None):
        args.image_endings = getattr(given, 'image_endings', None)  # those of the run are of its own data
    if args.input_size and getattr(given, 'img_size', None):  # the run's size gives way to what is asked for
        args.input_size = [args.input_size[0], given.img_size, given.img_size]
    if getattr(given, 'workers', None) is None:  # the run may be of a larger machine
        args.workers = min(args.workers, usable_cores())
    if with_data and given.data_dir and not getattr(given, 'dataset', None) and args.dataset == 'digits':
        args.dataset = ''  # the embedded data of the run give way to the folder
    return args


def _classifier_size(state_dict: dict[str, torch.Tensor], model_name: str) -> int | None:
    """Number of logits, read from the weights of the head that the architecture names."""
    config = timm.get_pretrained_cfg(model_name, allow_unregistered=True)
    classifier = getattr(config, 'classifier', None)
    classifier = classifier[0] if isinstance(classifier, (list, tuple)) else classifier
    weight = state_dict.get(f'{classifier}.weight')
    return None if weight is None else len(weight)


def _in_chans(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> int:
    """Channels of the images, read from the first convolution, which says what no configuration need say."""
    first = config.get('first_conv') or ()
    for name in (first,) if isinstance(first, str) else first:
        weight = weights.get(f'{name}.weight')
        if weight is not None and weight.ndim == 4 and weight.shape[1] in (1, 3):
            return weight.shape[1]
    return (config.get('input_size') or (3,))[0]


def _read_weights(file: Path, run: Run | None) -> dict[str, torch.Tensor]:
    """The averaged weights where the file has any; timm reads what no run has written."""
    if run is not None and file.name.endswith(CHECKPOINT):
        return run.load_weights(file)
    check_intact(file)
    try:
        return load_state_dict(str(file))
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise ICASCError(f"cannot read the checkpoint '{file}': {one_line(e)}") from e


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


def _load(
        args: argparse.Namespace,
        weights: Path | None,
        run: Run | None,
        with_data: bool,
        pretrained_path: str | None,
) -> tuple[nn.Module, Dataset | None]:
    """The model and its data; the channels of the images are those of the weights."""
    args.grad_checkpointing, args.initial_checkpoint = False, ''
    args.pretrained_path, args.rank = pretrained_path, 0
    args.pretrained = weights is None
    if weights is None:
        args.in_chans = args.input_size[0] if args.input_size else args.in_chans  # None: the published one
        if pretrained_path and args.num_classes is None:
            own = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
            file, there = Path(pretrained_path), None
            if file.is_file():
                there = _classifier_size(_read_weights(file, None), args.model)
            args.num_classes = there or (own.num_classes if own else None)
        model = set_up_model(args)
        args.in_chans = _in_chans(model.state_dict(), model.pretrained_cfg)
        return model, _open_dataset(args) if with_data else None
    state_dict = _read_weights(weights, run)
    if not isinstance(state_dict, dict) or not all(
            isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ICASCError(f"'{weights}' holds other things than the tensors of a model; it is no checkpoint.")
    config = timm.get_pretrained_cfg(args.model, allow_unregistered=True)
    args.in_chans = _in_chans(state_dict, config.to_dict() if config else {})
    dataset = _open_dataset(args) if with_data else None
    names = class_names(dataset) if dataset else None
    return _fill_model(args, weights, state_dict, names), dataset


def _run_beside(weights: Path | None) -> Run | None:
    """The run that a file of weights lies in, if it lies in one."""
    if weights is None or not (weights.parent / ARGUMENTS).is_file():
        return None
    try:
        return open_run(weights.parent)
    except (OSError, ValueError) as e:
        raise ICASCError(f"the run '{weights.parent}' cannot be read: {one_line(e)}") from e


def _open_dataset(args: argparse.Namespace) -> Dataset:
    dataset = create_dataset(
        args.dataset, root=args.data_dir, split=args.val_split, class_map=args.class_map or None,
        download=args.dataset_download, input_img_mode='L' if args.in_chans == 1 else 'RGB',
        batch_size=args.batch_size, seed=args.seed, max_image_pixels=args.max_image_pixels,
        image_endings=args.image_endings)
    if is_stream(dataset):
        raise DataError(f"data set '{args.dataset}' is a stream; evaluation needs one that can be indexed.")
    return dataset


def _noted_names(run: Run | None, weights: Path | None, model: nn.Module) -> list[str] | None:
    """The classes in the order of the logits, as the run, or the published model, has noted them down."""
    names = run.class_names(weights) if run else model.pretrained_cfg.get('label_names')
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None  # of a config.json that somebody else wrote
    return list(names)


def _match_classes(
        dataset: Dataset,
        source: str,
        run: Run | None,
        weights: Path | None,
        model: nn.Module,
        given: argparse.Namespace,
) -> list[str] | None:
    """The class names in the order of the logits, the data set's labels brought into this order.

    It is the order that the run, or the published model, has noted down; where there is none, or `class_map` says
    which class has which index, that of the data set.
    """
    names, num_classes, class_map = class_names(dataset), model.num_classes, getattr(given, 'class_map', None)
    model_names = _noted_names(run, weights, model)
    if names and model_names not in (None, names) and not class_map:
        unknown = [name for name in names if name not in model_names]
        if unknown:
            raise DataError(
                f"the data set has the classes {', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}, which "
                f"'{source}' does not know; it knows {', '.join(model_names[:5])}{', ...' * (len(model_names) > 5)}. "
                f'Name the classes as these, or give the index of each with `class_map`.')
        name_classes(dataset, model_names)
        names = model_names
    elif names and len(names) > num_classes:
        raise DataError(f"the data set has {len(names)} classes, the model of '{source}' {num_classes}.")
    if run and given.data_dir and not model_names and not class_map:
        warnings.warn(
            f"the run '{source}' has not noted down its class names (of an older version): those of "
            f'the data set are taken in their own order', stacklevel=3)
    if names and len(names) < num_classes and not model_names and not class_map:
        warnings.warn(
            f"'{source}' has {num_classes} classes, the data set {len(names)}: taken as the first ones "
            f'(`class_map` says otherwise)', stacklevel=3)
    if names and len(names) < num_classes and labels_of(dataset) is MULTI:
        names = fill_up(names, num_classes)
        name_classes(dataset, names)  # of the other outputs nothing is known
    return names


def load_checkpoint(
        source: str,
        given: argparse.Namespace,
        label: str | None = None,
        with_data: bool = True,
) -> Checkpoint:
    """Load one checkpoint and open its test images.

    Args:
        source: Folder of a run, checkpoint file, 'hf-hub:NAME', 'local-dir:PATH' or a name of timm's.
        given: Options of `add_checkpoint_arguments`, or of `add_model_arguments` without data.
        label: Its name in tables and figures; the folder's name when None.
        with_data: Whether to open the data set; without it, `dataset` and `names` are None.

    Raises:
        ICASCError: No such file, weights that do not fit, a model without --model.
        DataError: The data set is missing, cannot be indexed, or has more classes than the model.
    """
    weights = None if _is_name(source) else find_weights(source, given.best)
    run = _run_beside(weights)
    args = _run_arguments(source, given, run, with_data)
    # A run may be of a machine with another device.
    args.device = given.device or next(d for d in (args.device, 'cuda', 'cpu') if d and not device_fault(d))
    model, dataset = _load(args, weights, run, with_data, getattr(given, 'pretrained_path', None))
    names = _match_classes(dataset, source, run, weights, model, given) if with_data else None
    try:
        model = model.to(args.device).eval()
    except (RuntimeError, AssertionError) as e:
        raise ICASCError(f"`device`: cannot use '{args.device}': {one_line(e, 120)}") from e
    config = set_up_data_config(args, model)
    if with_data:
        if args.limit_train is not None and args.val_split == args.train_split:
            dataset = few_of_each_class(dataset, args.limit_train, args.seed, names)  # the images trained on
        dataset.transform = create_transform(
            config['input_size'], is_training=False, mean=config['mean'], std=config['std'],
            interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'])
    layers = None
    try:
        layers = resolve_layers(model, given.layers or args.icasc_layers, config['input_size'])
    except LayerResolutionError as e:
        if given.layers:
            raise
        warnings.warn(f'attention is not measured: {e}', stacklevel=2)
    return Checkpoint(
        label=printable(label or (run.folder.name if run else Path(source).name)),
        source=str(weights or source), run=run,
        model=model, dataset=dataset, names=names, num_classes=model.num_classes,
        data_config=config,
        layers=layers,
        batch_size=given.batch_size or args.validation_batch_size or args.batch_size, args=args)


def _published_run(source: str) -> dict[str, Any]:
    """What the configuration of a published model notes down of its run; nothing where it is not of this package."""
    kind, _, place = source.partition(':')
    file: Any = Path(place) / CONFIG
    if source.startswith(HUB) and kind != 'local-dir':
        repo, _, revision = place.partition('@')
        file = try_to_load_from_cache(repo, CONFIG, revision=revision or None)  # timm has fetched it
    try:
        known = isinstance(file, (str, Path)) and place
        noted = read_json(Path(file))[METADATA_KEY] if known else {}
        return noted if isinstance(noted, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's configuration, which says nothing of it
        return {}


def _says_multilabel(checkpoint: Checkpoint, source: str) -> bool:
    """Whether the model's images can have several classes, as its run, or the configuration beside it, notes down."""
    run = checkpoint.run
    if run is not None and not run.results:
        return checkpoint.args.dataset in MULTI_LABEL_NAMES
    metrics = _published_run(source).get('metrics') if run is None else run.metrics
    return isinstance(metrics, dict) and any(name in MULTI.measures for name in metrics)


def _names_of_classes(checkpoint: Checkpoint, source: str) -> list[str]:
    """Names where no run has noted them down. The number of classes tells none of a model trained on one's own data."""
    if checkpoint.run is not None:  # the configuration is that of the weights that it started from
        return [str(c) for c in range(checkpoint.num_classes)]
    dataset = _published_run(source).get('dataset', 'imagenet')
    return class_names_of(
        checkpoint.model, checkpoint.num_classes, by_number=isinstance(dataset, str) and 'imagenet' in dataset)


def load_explainer(
        source: str,
        given: argparse.Namespace,
        multilabel: bool | None = None,
) -> Explainer:
    """A model to explain images with, which need no labels: no data set is opened.

    Args:
        source: As for `load_checkpoint`.
        given: Options of `add_model_arguments`.
        multilabel: Whether images can have several classes; None: as the run or the published model notes down.

    Raises:
        ICASCError: As of `load_checkpoint`.
    """
    if Path(source).is_file() and _run_beside(Path(source)) is None and not given.model:
        raise ICASCError(f"'{source}' lies in no run's folder: name its `architecture`.")
    checkpoint = load_checkpoint(source, given, with_data=False)
    names = None
    if checkpoint.run is not None:
        names = checkpoint.run.class_names(Path(checkpoint.source))
    if names is not None and len(names) > checkpoint.num_classes:
        raise ICASCError(
            f"the run '{source}' has {len(names)} class names, its weights {checkpoint.num_classes} classes.")
    if names is None:
        names = _names_of_classes(checkpoint, source)
    names = fill_up(names, checkpoint.num_classes)
    if multilabel is None:
        multilabel = _says_multilabel(checkpoint, source)
    return Explainer(
        checkpoint.model, names, multilabel, checkpoint.data_config, checkpoint.layers,
        checkpoint.label)


def load_explainers(sources: Sequence[str], args: argparse.Namespace) -> list[Explainer]:
    """`load_explainer` for each, with the options of `add_explained_model_arguments`; labels are made unique."""
    given = argparse.Namespace(**{**vars(args), 'model': args.architecture, 'data_dir': None})
    explainers = [load_explainer(source, given, args.multilabel) for source in sources]
    labels = [explainer.label for explainer in explainers]
    for explainer, source in zip(explainers, sources, strict=True):
        if labels.count(explainer.label) > 1:
            explainer.label = printable('-'.join(Path(source).parts[-2:]))
    return explainers


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Each source once, however its path is written; the folder of --icasc-compare stands for its two runs."""
    expanded: dict[str, str] = {}
    for source in sources:
        is_path = not source.startswith(HUB) and Path(source).exists()
        runs = find_runs(Path(source)) if is_path else []
        for one in [str(run) for run in runs] or [source]:
            expanded.setdefault(os.path.realpath(one) if is_path else one, one)
    return list(expanded.values())


def load_checkpoints(sources: Sequence[str], given: argparse.Namespace) -> list[Checkpoint]:
    """`load_checkpoint` for each of `expand_sources`; labels are made unique."""
    expanded = expand_sources(sources)
    checkpoints = [load_checkpoint(source, given) for source in expanded]
    labels = [checkpoint.label for checkpoint in checkpoints]
    for checkpoint, source in zip(checkpoints, expanded, strict=True):
        if labels.count(checkpoint.label) > 1:
            checkpoint.label = printable('-'.join(Path(source).parts[-2:]))
    for i, checkpoint in enumerate(checkpoints):
        if checkpoint.label in [other.label for other in checkpoints[:i]]:
            checkpoint.label = f'{checkpoint.label}-{i + 1}'
    return checkpoints


def _drawn(checkpoint: Checkpoint) -> list[int] | None:
    """The images that `limit_train` drew, where the checkpoint is evaluated on those."""
    dataset = checkpoint.dataset
    return dataset.indices if isinstance(dataset, FewImages) else None


def check_same_data(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise DataError where the checkpoints would be shown or measured on different images."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if len(other.dataset) != len(first.dataset):
            raise DataError(
                f"'{first.label}' and '{other.label}' have different data sets: give one for all with "
                f'`data_dir` and `dataset`.')
        if _drawn(other) != _drawn(first):
            raise DataError(
                f"'{first.label}' and '{other.label}' were trained on different images, which `limit_train` drew by "
                f'their seeds: give another `val_split`, or evaluate each by itself.')
        check_same_classes(first.names, other.names, f"'{first.label}'", f"'{other.label}'")
