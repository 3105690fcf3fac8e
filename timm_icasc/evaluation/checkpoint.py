"""From what a user names (the folder of a run, a checkpoint file, a hub name) to a model and its test images."""
import argparse
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.data import create_transform
from torch.utils.data import Dataset

from ..data import class_names, few_of_each_class, fingerprint, labels_of, name_classes
from ..errors import DataError, ICASCError, LayerResolutionError, first_of, one_line
from ..explanation.class_names import fill_up
from ..features.layout import ICASCLayers
from ..features.resolve import resolve_layers
from ..foreign_text import printable
from ..labels import MULTI, LabelKind
from ..runs.find import find_weights
from ..runs.folder import Run, fingerprints_in, is_untrained
from ..training.device import device_fault
from ..training.loaders import set_up_data_config
from .recorded_classes import imagenet_names, recorded_kind, recorded_names
from .restore import is_name, restore, run_arguments, run_beside, take_preparation

__all__ = ['Checkpoint', 'load_checkpoint', 'whole_path']


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
    def recorded_names(self) -> list[str] | None:
        """The classes in the order of the logits, as the run, or the published model, has noted them down."""
        return recorded_names(self.run, Path(self.source), self.model)

    @property
    def preparation(self) -> dict[str, Any]:
        """What of timm's data configuration says how images become pixels, as JSON gives it back."""
        names = ('input_size', 'crop_pct', 'crop_mode', 'interpolation', 'mean', 'std')
        return {
            name: list(value) if isinstance(value, tuple) else value for name in names
            if (value := self.data_config.get(name)) is not None}

    @property
    def map_settings(self) -> dict[str, str]:
        """The network and its two layers; nothing where it has none."""
        if self.layers is None:
            return {}
        return {
            'architecture': self.model.pretrained_cfg.get('architecture'),
            'layers': ' '.join(layer.path for layer in self.layers)}

    def class_name(self, index: int) -> str:
        # A head may have more outputs than the data set has classes.
        return self.names[index] if self.names and index < len(self.names) else str(index)


def _match_classes(
        dataset: Dataset,
        source: str,
        run: Run | None,
        weights: Path | None,
        model: nn.Module,
        given: argparse.Namespace,
) -> list[str] | None:
    """The class names in the order of the logits, the data set's labels brought into this order.

    It is the order that the run, or the published model, has noted down; where there is none, or `class_map` gives
    names that are not among these their indices, that of the data set.
    """
    names, num_classes, class_map = class_names(dataset), model.num_classes, getattr(given, 'class_map', None)
    model_names = recorded_names(run, weights, model) or imagenet_names(num_classes, names or ())
    unknown = [name for name in names or () if name not in (model_names or ())]
    if names and model_names not in (None, names) and not (class_map and unknown):
        if unknown:
            raise DataError(
                f"the data set has the classes {first_of(unknown)}, which '{source}' does not know; it "
                f"knows {first_of(model_names)}. "
                f'Name the classes as these, or give the index of each with `class_map`: a .txt has one folder a line, '
                f'in the order of these.')
        name_classes(dataset, model_names)
        if getattr(dataset, 'names_all', False) and (missing := [name for name in model_names if name not in names]):
            warnings.warn(
                f'no image is of {len(missing)} of the {len(model_names)} classes, so that these count as absent from '
                f'all (a `class_map` of the classes that were looked for leaves the others open): '
                f'{first_of(missing, 8)}', stacklevel=3)
        names = model_names
    elif names and len(names) > num_classes:
        raise DataError(f"the data set has {len(names)} classes, the model of '{source}' {num_classes}.")
    fewer = len(names or ()) < num_classes
    if names and not model_names and not class_map and (run is None or given.data_dir or fewer):
        part = f', as the first {len(names)} of its {num_classes}' if fewer else ''
        warnings.warn(
            f"'{source}' has not noted down its class names: those of the data set are taken in their own order{part} "
            f'(`class_map` says otherwise)', stacklevel=3)
    if names and fewer and labels_of(dataset) is MULTI:
        names = fill_up(names, num_classes)
        dataset.names_all = False  # what an output without a name stands for, no image can say
        name_classes(dataset, names)
    return names


def _warn_of_other_labels(dataset: Dataset, source: str, run: Run | None) -> None:
    noted, own = recorded_kind(run, source), labels_of(dataset)
    if noted not in (None, own):
        warnings.warn(
            f"'{source}' was trained on {noted.name}-label images, these are {own.name}-label: its scores are taken "
            f'for what they were not trained to be ({own.score} of them for probabilities)', stacklevel=3)


def _warn_of_other_images(
        dataset: Dataset,
        source: str,
        weights: Path,
        args: argparse.Namespace,
) -> None:
    """Say where a run's own images are not those of then: a relative path leads elsewhere, or they were changed."""
    then, now = fingerprints_in(weights).get('val'), fingerprint(dataset)
    if then and now and then != now:
        warnings.warn(
            f"'{args.data_dir or args.dataset}' has other images than the run '{source}' was validated on: name the "
            f'folder of these with `data_dir`', stacklevel=3)


def whole_path(source: str) -> Path:
    """The path of what a user names, in which '.' has the name of the folder; links are not followed."""
    return Path(source if is_name(source) else os.path.abspath(source))


def load_checkpoint(
        source: str,
        given: argparse.Namespace,
        with_data: bool = True,
) -> Checkpoint:
    """Load one checkpoint and open its test images.

    Args:
        source: Folder of a run, checkpoint file, 'hf-hub:NAME', 'local-dir:PATH' or a name of timm's.
        given: Options of `add_checkpoint_arguments`, or of `add_model_arguments` without data.
        with_data: Whether to open the data set; without it, `dataset` and `names` are None.

    Raises:
        ICASCError: No such file, weights that do not fit, a model without --model.
        DataError: The data set is missing, cannot be indexed, or has more classes than the model.
    """
    weights = None if is_name(source) else find_weights(source, given.best)
    run = run_beside(weights)
    args = run_arguments(source, given, run, with_data)
    if weights is not None and run is None:
        take_preparation(args, weights, given)
    # A run may be of a machine with another device.
    args.device = given.device or next(d for d in (args.device, 'cuda', 'cpu') if d and not device_fault(d))
    own_file = None if weights else getattr(given, 'pretrained_path', None)
    model, dataset = restore(args, weights, run, with_data, own_file)
    if run is not None and is_untrained(weights):
        warnings.warn(f"'{source}' has finished no epoch yet: these are the weights that it began with", stacklevel=2)
    names = None
    if with_data:
        names = _match_classes(dataset, source, run, weights, model, given)
        _warn_of_other_labels(dataset, source, run)
        if run and not any(getattr(given, name, None) for name in ('data_dir', 'dataset', 'val_split')):
            _warn_of_other_images(dataset, source, weights, args)
    try:
        model = model.to(args.device).eval()
    except (RuntimeError, AssertionError) as e:
        raise ICASCError(f"`device`: cannot use '{args.device}': {one_line(e, 120)}") from e
    config = set_up_data_config(args, model)
    if with_data:
        if args.limit_train is not None and args.val_split == args.train_split:
            dataset = few_of_each_class(dataset, args.limit_train, args.seed, names)  # the images trained on
        dataset.transform = create_transform(**config)
    layers = None
    try:
        layers = resolve_layers(model, given.layers or args.icasc_layers, config['input_size'])
    except LayerResolutionError as e:
        if given.layers:
            raise
        warnings.warn(f'attention is not measured: {e}', stacklevel=2)
    return Checkpoint(
        label=printable(whole_path(str(run.folder) if run else source).name),
        source=str(weights or source), run=run, model=model, dataset=dataset, names=names,
        num_classes=model.num_classes, data_config=config, layers=layers,
        batch_size=given.batch_size or args.validation_batch_size or args.batch_size, args=args)
