"""The folder that a training run leaves: its files, whose names stand here alone, and what they say."""
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict

from ..errors import HubError, ICASCError, one_line
from ..foreign_files import read_json, read_yaml
from .intact import check_intact, harmless_types

__all__ = [
    'ARGUMENTS', 'BEST', 'CHECKPOINT', 'CLASSES', 'CLASS_NAMES', 'COMPARED', 'COMPARISON', 'COMPUTING', 'EVALUATED',
    'EVALUATION', 'FIGURE', 'FINGERPRINT', 'FINGERPRINTS', 'IMAGES', 'INCIDENTAL', 'LAST', 'LOGGING_OPTIONS', 'PAIRS',
    'PLACES', 'PUBLISHING_OPTIONS', 'RECORDS', 'RESULTS', 'RESULTS_TABLE', 'Run', 'SAVED', 'SEGMENTATION', 'SUMMARY',
    'TENSORBOARD', 'WANDB_ID', 'fingerprints_in', 'is_timms', 'is_untrained', 'names_in', 'noted_time', 'open_run',
    'read_checkpoint', 'read_mapping', 'saved_at',
]

ARGUMENTS = 'args.yaml'
CHECKPOINT = '.pth.tar'  # how the names of timm's checkpoints end
LAST, BEST = f'last{CHECKPOINT}', f'model_best{CHECKPOINT}'
# In a checkpoint's 'saver': the classes in the order of the logits, the images of each split, and when it was written.
CLASS_NAMES, FINGERPRINTS, SAVED = 'class_names', 'fingerprints', 'saved'
FINGERPRINT = 'fingerprint'  # in results.json and eval.json: of the images that were measured on
SUMMARY = 'summary.csv'  # a line per epoch; of `timm-icasc eval --output`, per checkpoint
RESULTS, RESULTS_TABLE = 'results.json', 'results.csv'  # of a finished run
FIGURE = 'attention.png'
WANDB_ID, TENSORBOARD = 'wandb_id.txt', 'tensorboard'  # under which, and where, an epoch is logged

COMPARED = ('baseline', 'icasc')  # folders of the two runs of --icasc-compare, in the order of training

# What `timm-icasc eval` leaves, and where in the folder of a run.
EVALUATION = 'eval'
EVALUATED, CLASSES, IMAGES, PAIRS, RECORDS = 'eval.json', 'classes.csv', 'images.csv', 'pairs.csv', 'records.npz'
COMPARISON = 'comparison'  # .json, .csv

SEGMENTATION = 'segmentation'  # .json, .pth.tar; of `timm-icasc segment`

# Options that say where the numbers of a run are logged while it trains.
LOGGING_OPTIONS = ('log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'log_tensorboard')

# Options that say where and how a run is computed, and what is told of it meanwhile, not what comes of it.
COMPUTING = (
    'workers', 'device', 'pin_mem', 'no_prefetcher', 'icasc_fast', 'torchcompile', 'torchcompile_mode',
    'dataset_download', 'max_image_pixels', 'validation_batch_size', 'log_interval', 'checkpoint_hist', 'data_dir',
    'license', *LOGGING_OPTIONS)

# Those, and what tells one run of a group from another.
INCIDENTAL = (
    *COMPUTING, 'seed', 'output', 'experiment', 'icasc_eval_images', 'eval_metric', 'icasc_compare',
    'pretrained_path', 'initial_checkpoint', 'push_to_hub')

# Options that name files: where these lie differs from machine to machine, their own name tells runs apart.
PLACES = ('data_dir', 'pretrained_path', 'initial_checkpoint')

# Options that say where the files of a run go, and under which license.
PUBLISHING_OPTIONS = ('output', 'experiment', 'push_to_hub', 'license')

# What results.json says of the model (`training.model_record`), and nobody could guess.
RECORDED = (
    'architecture', 'model_args', 'num_classes', 'preprocessing', 'dataset', 'val_split', 'attention_images', 'source',
    'icasc', 'layers', 'ema',
)


@dataclass(frozen=True)
class Run:
    """A training run, as its folder tells it.

    Attributes:
        folder: Where its files lie.
        arguments: args.yaml, all options as they were given; empty where there is none.
        results: results.json; empty where the run is not finished.
        weights: Name of the checkpoint that the results are of.
    """
    folder: Path
    arguments: dict[str, Any]
    results: dict[str, Any]
    weights: str = LAST

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options, the batch size being that of an update over all processes."""
        options = dict(self.arguments)
        if 'batch_size' in options:
            options['batch_size'] *= options.get('grad_accum_steps', 1) * self.results.get('world_size', 1)
        return options

    @cached_property
    def metrics(self) -> dict[str, float]:
        """What the run's last evaluation said; what was not measured, or is NaN, is left out."""
        return {
            name.removeprefix('eval_'): value for name, value in self.results.get('last', {}).items()
            if name.startswith('eval_') and isinstance(value, (int, float)) and math.isfinite(value)}

    @cached_property
    def measures(self) -> dict[str, float]:
        """`metrics`, and what `timm-icasc eval` has added, of the same weights and all of the same images."""
        file = self.folder / EVALUATION / EVALUATED
        if not file.is_file():
            return self.metrics
        content = read_json(file)
        expected = {'checkpoint': self.weights, 'dataset': self.data, 'split': self.options.get('val_split')}
        # By their names, since folders differ from machine to machine.
        same = all(Path(content.get(name) or '').name == Path(value or '').name for name, value in expected.items())
        same &= content.get('epochs') == self.results.get('epochs')  # it may have gone on since
        noted = self.results.get('model', {})
        told = (  # trained anew from an earlier epoch; images that have come or gone
            (content.get('saved'), _noted_time_of(self.checkpoint)),
            (content.get('images'), noted.get('val_images')), (content.get(FINGERPRINT), noted.get(FINGERPRINT)))
        same &= all(None in pair or pair[0] == pair[1] for pair in told)
        if not same or not content.get('whole_split') or content.get('other_pixels'):
            warnings.warn(
                f"'{file}' is left out: it is of other weights, of other pixels, or not of all images that the run was "
                f'evaluated on. `timm-icasc eval {self.folder}` writes it anew.', stacklevel=2)
            return self.metrics
        added = content['measures']
        return {
            **self.metrics,
            **{name: value for name, value in added.items() if name not in self.metrics}}

    @property
    def method(self) -> str:
        """What was trained, as the results call it."""
        return self.results['method']

    @property
    def model(self) -> dict[str, Any]:
        """What the run noted down of its model."""
        return self.results['model']

    @property
    def checkpoint(self) -> Path:
        """The weights that the results are of."""
        return self.folder / self.weights

    @property
    def data(self) -> str:
        """Name of the data set, or of the folder of images."""
        return self.options.get('dataset') or Path(self.options.get('data_dir') or '').name

    @property
    def seed(self) -> int:
        """Of the random numbers."""
        return self.options.get('seed', 42)

    @property
    def is_baseline(self) -> bool:
        """Whether the classification loss alone was trained."""
        return not self.method.startswith('ICASC')

    @property
    def places(self) -> dict[str, str]:
        """The names of the data's folder and of the files of initial weights, wherever they lie."""
        return {name: Path(self.options[name]).name for name in PLACES if self.options.get(name)}

    def common_options(self, without_icasc: bool = False) -> dict[str, Any]:
        """What runs that may be averaged have in common."""
        options = {
            k: v for k, v in self.options.items()
            if k not in INCIDENTAL and not (without_icasc and k.startswith('icasc'))}
        return {**options, **self.places}

    def signature(self, without_icasc: bool = False) -> str:
        """`common_options` as text, to sort runs by it."""
        return json.dumps(self.common_options(without_icasc), default=str, sort_keys=True)

    def load_weights(self, file: Path | None = None) -> dict[str, torch.Tensor]:
        """The weights that the run's own evaluation measures: the averaged ones where it keeps an average.

        Args:
            file: A checkpoint of the run; by default the one that the results are of.

        Raises:
            ICASCError: The checkpoint cannot be read, holds other things than tensors, or lacks the average that the
                results are of.
        """
        file = file or self.checkpoint
        checkpoint = read_checkpoint(file)
        averaged = checkpoint.get('state_dict_ema')
        if averaged is None and self.results.get('model', {}).get('ema'):
            raise ICASCError(f"'{file}' lacks the averaged weights, which the results beside it are of.")
        weights = checkpoint['state_dict'] if averaged is None else averaged
        if not isinstance(weights, dict) or not all(
                isinstance(value, torch.Tensor) for value in weights.values()):
            raise ICASCError(
                f"'{file}' holds other things than the tensors of a model; it is no checkpoint.")
        return clean_state_dict(weights)

    def check_last_epoch(self) -> None:
        """Raise HubError where the results are not of the checkpoint beside them."""
        epoch = read_checkpoint(self.checkpoint)['epoch']
        if epoch + 1 != self.results['epochs']:
            raise HubError(
                f"'{self.checkpoint}' is of epoch {epoch + 1} of {self.results['epochs']}, not of the "
                f'results beside it; timm-icasc train --resume auto goes on.')

    def class_names(self, file: Path) -> list[str] | None:
        """The classes in the order of the logits; None where neither the results nor the checkpoint tells."""
        names = self.results.get('model', {}).get('label_names')
        return names_in(file) if names is None and not self.results else names

    def outdated(self) -> HubError:
        """The error of results that do not say all that is asked of them."""
        place = self.folder if self.folder.name else self.folder.absolute()  # '.' has no name
        return HubError(
            f"'{self.folder / RESULTS}' does not describe its model (an older run?): timm-icasc train --resume auto "
            f'--output {place.parent} --experiment {place.name} evaluates it again and writes it anew.')


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of a run, its tensors on the disk until they are used.

    Raises:
        ICASCError: It is damaged, or cannot be read.
    """
    check_intact(file)
    return _load_checkpoint(file)


def _load_checkpoint(file: Path) -> dict[str, Any]:
    try:
        # Mapped, not read: the file may be three times the size of the weights, with the optimiser's state.
        with harmless_types():
            checkpoint = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
        checkpoint['state_dict'].items(), checkpoint['epoch'] + 0
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise ICASCError(f"the checkpoint '{file}' cannot be read: {one_line(e)}") from e
    return checkpoint


def _noted_in(file: Path, name: str, kind: type) -> Any:
    """What a run's checkpoint notes down beside the weights; None where it is no such file, or somebody else's."""
    if not file.name.endswith(CHECKPOINT) or not file.is_file():
        return None
    try:
        noted = read_checkpoint(file)['saver'][name]
    except (ICASCError, KeyError, TypeError):  # what is wrong with it is said where its weights are read
        return None
    return noted if isinstance(noted, kind) else None


def names_in(file: Path) -> list[str] | None:
    """The classes in the order of the logits, as a run's checkpoint tells them; None where it does not."""
    names = _noted_in(file, CLASS_NAMES, list)
    return names if names and all(isinstance(name, str) for name in names) else None


def fingerprints_in(file: Path) -> dict[str, str | None]:
    """Of the images of each split, as a run's checkpoint tells them; nothing where it does not."""
    return _noted_in(file, FINGERPRINTS, dict) or {}


def is_untrained(file: Path) -> bool:
    """Whether a checkpoint is of the beginning of a run, before its first epoch; False where it is none of a run."""
    try:
        return _load_checkpoint(file)['epoch'] < 0
    except ICASCError:  # another kind of file, or damaged: said where its weights are read
        return False


def noted_time(checkpoint: dict[str, Any]) -> float | None:
    """When a checkpoint was written, in seconds, as it says itself; None where it does not."""
    try:
        return checkpoint['saver'][SAVED]
    except (KeyError, TypeError):
        return None


def _noted_time_of(file: Path) -> float | None:
    """`noted_time` of a file; None also where it is not there."""
    try:
        return noted_time(_load_checkpoint(file))
    except ICASCError:
        return None


def saved_at(file: Path) -> float:
    """When a file of a run was written, in seconds: as a checkpoint says, since copies have other times."""
    noted = _noted_time_of(file)
    return file.stat().st_mtime if noted is None else noted


# What results.json holds, where it holds it.
KINDS = {
    'method': str, 'command': str, 'device': str, 'epochs': int, 'seed': int, 'world_size': int, 'versions': dict,
    'last': dict, 'model': dict}


def _check_results(results: dict[str, Any], file: Path) -> dict[str, Any]:
    """Raise ICASCError where a value is of another kind than runs write."""
    wrong = [
        name for name, kind in KINDS.items()
        if name in results and not isinstance(results[name], kind)]
    names = results.get('model', {}) if not wrong else {}
    names = names.get('label_names') or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wrong.append('label_names')
    if wrong:
        raise ICASCError(f"'{file}' is damaged: its '{wrong[0]}' is not what a run writes.")
    return results


def read_mapping(file: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What a file holds, which must be names and values; empty where there is no file."""
    content = read(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ICASCError(f"'{file}' does not hold names and values, but {type(content).__name__}.")
    return content


def is_timms(arguments: dict[str, Any]) -> bool:
    """Whether the options of a run are those of timm's own train.py, which writes a file of that name too."""
    return 'jsd_loss' in arguments


def open_run(folder: Path) -> Run:
    """The run in a folder, finished or not; raises what reading its files raises."""
    arguments, results = folder / ARGUMENTS, folder / RESULTS
    return Run(
        folder, read_mapping(arguments, read_yaml),
        _check_results(read_mapping(results, read_json), results))
