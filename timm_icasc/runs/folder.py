"""The folder that a training run leaves: its files, whose names stand here alone, and what they say."""
import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from timm import utils
from timm.models import clean_state_dict

from ..errors import HubError, ICASCError, one_line
from ..foreign_files import read_json, read_yaml
from ..foreign_text import shell_command
from .files import write_text
from .intact import check_intact
from .lock import was_left

__all__ = [
    'ARGUMENTS', 'BEST', 'CHECKPOINT', 'CLASSES', 'CLASS_NAMES', 'COMPARED', 'COMPARISON', 'EVALUATED',
    'EVALUATION', 'FIGURE', 'IMAGES', 'INCIDENTAL', 'LAST', 'LOGGING_OPTIONS', 'PAIRS', 'PUBLISHING_OPTIONS', 'RECORDS',
    'RESULTS', 'RESULTS_TABLE', 'Run', 'SAVED', 'SEGMENTATION', 'SUMMARY', 'TENSORBOARD', 'WANDB_ID',
    'check_folders', 'collect_runs',
    'collect_segmentations', 'command_of', 'find_runs', 'find_weights', 'finished_results', 'group_runs',
    'has_begun', 'latest_run', 'open_run', 'open_run_dir', 'open_runs', 'program', 'read_checkpoint',
    'save_args', 'saved_at',
]

ARGUMENTS = 'args.yaml'
CHECKPOINT = '.pth.tar'  # how the names of timm's checkpoints end
LAST, BEST = f'last{CHECKPOINT}', f'model_best{CHECKPOINT}'
CLASS_NAMES, SAVED = 'class_names', 'saved'  # in a checkpoint's 'saver': in the order of the logits, and when
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

# Options that do not change what is measured, or that tell one run of a group from another.
INCIDENTAL = (
    'seed', 'data_dir', 'output', 'experiment', 'workers', 'device', 'pin_mem', 'no_prefetcher',
    'checkpoint_hist', 'log_interval', 'icasc_eval_images', 'dataset_download', 'validation_batch_size',
    'eval_metric', 'icasc_compare', 'pretrained_path', 'initial_checkpoint', 'torchcompile', 'push_to_hub',
    'license', 'max_image_pixels', 'torchcompile_mode', *LOGGING_OPTIONS)

# Options that say where the files of a run go, and under which license.
PUBLISHING_OPTIONS = ('output', 'experiment', 'push_to_hub', 'license')

COMMAND = '# '  # before the command, in the first line of args.yaml

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
            name.removeprefix('eval_'): value for name, value in self.results['last'].items()
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
        differ = [
            name for name, value in expected.items()
            if Path(content.get(name) or '').name != Path(value or '').name]
        if differ or not content.get('whole_split'):
            warnings.warn(
                f"'{file}' is left out: it is of other weights, or not of all images that the run was evaluated on. "
                f"`timm-icasc eval {self.folder}` writes it anew.", stacklevel=2)
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

    def signature(self, without_icasc: bool = False) -> str:
        """What runs that may be averaged have in common."""
        return json.dumps({
            k: v for k, v in sorted(self.options.items())
            if k not in INCIDENTAL and not (without_icasc and k.startswith('icasc'))}, default=str)

    def load_weights(self, file: Path | None = None) -> dict[str, torch.Tensor]:
        """The weights that the run's own evaluation measures: the averaged ones where it keeps an average.

        Args:
            file: A checkpoint of the run; by default the one that the results are of.

        Raises:
            ICASCError: The checkpoint cannot be read, or lacks the average that the results are of.
        """
        file = file or self.checkpoint
        checkpoint = read_checkpoint(file)
        averaged = checkpoint.get('state_dict_ema')
        if averaged is None and self.results.get('model', {}).get('ema'):
            raise ICASCError(f"'{file}' lacks the averaged weights, which the results beside it are of.")
        return clean_state_dict(checkpoint['state_dict'] if averaged is None else averaged)

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
        if names is None and not self.results and file.name.endswith(CHECKPOINT):
            names = (read_checkpoint(file).get('saver') or {}).get(CLASS_NAMES)
        return names

    def outdated(self) -> HubError:
        """The error of results that do not say all that is asked of them."""
        return HubError(
            f"'{self.folder / RESULTS}' does not describe its model (an older run?): timm-icasc train --resume auto "
            f'--output {self.folder.parent} --experiment {self.folder.name} evaluates it again and writes it anew.')


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
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options, beside the weights
            checkpoint = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
        checkpoint['state_dict'].items(), checkpoint['epoch'] + 0
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise ICASCError(f"the checkpoint '{file}' cannot be read: {one_line(e)}") from e
    return checkpoint


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


def _mapping(file: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What a file holds, which must be names and values; empty where there is no file."""
    content = read(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ICASCError(f"'{file}' does not hold names and values, but {type(content).__name__}.")
    return content


def open_run(folder: Path) -> Run:
    """The run in a folder, finished or not; raises what reading its files raises."""
    arguments, results = folder / ARGUMENTS, folder / RESULTS
    return Run(
        folder,
        _mapping(arguments, read_yaml), _check_results(_mapping(results, read_json), results))


def _read_finished(folder: Path) -> Run | None:
    """The finished run in a folder; None, with a warning, where its files do not tell all of it."""
    try:
        run = open_run(folder)
        if not run.arguments:
            raise ValueError(f'no {ARGUMENTS}')
        run.options, run.measures, run.method, run.signature()
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = one_line(e)
        warnings.warn(f"'{folder}' is left out, its files cannot be read: {reason}", stacklevel=3)
        return None


def find_runs(path: Path) -> list[Path]:
    """The folders of finished or interrupted runs at `path`: itself, or the two of --icasc-compare."""
    if any(path.glob(f'*{CHECKPOINT}')):
        return [path]
    return sorted({file.parent for file in path.glob(f'*/*{CHECKPOINT}') if (file.parent / ARGUMENTS).is_file()})


def find_weights(source: str, best: bool) -> Path:
    """The checkpoint that a user means by the folder of a run, or by a file.

    Args:
        source: Folder or file.
        best: Of a folder, the weights of the best epoch and not those of the last.

    Raises:
        ICASCError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        names = (BEST,) if best else (LAST, BEST)
        weights = next((path / name for name in names if (path / name).is_file()), None)
        if weights is None and (runs := [run for run in find_runs(path) if run != path]):
            raise ICASCError(f"'{source}' holds {len(runs)} runs, name one: {', '.join(map(str, runs))}.")
        if weights is None:
            raise ICASCError(f"'{source}' has no {names[0]}: it is not the folder of a run.")
        return weights
    if not path.is_file():
        raise ICASCError(f"no checkpoint or folder of a run '{source}'.")
    return path


def has_begun(folder: Path) -> bool:
    """Whether a run can be gone on with; one that was stopped before its first checkpoint begins anew."""
    return (folder / ARGUMENTS).is_file() and (folder / LAST).is_file()


def saved_at(file: Path) -> float:
    """When a file of a run was written, in seconds: as a checkpoint says, since copies have other times."""
    try:
        return _load_checkpoint(file)['saver'][SAVED]
    except (ICASCError, KeyError, TypeError):
        return file.stat().st_mtime


def _newest_of(folder: Path) -> list[Path]:
    """The last checkpoints of a run; its args.yaml, where a kill came before the first one; else none."""
    checkpoints = [*folder.glob(LAST), *folder.glob(f'*/{LAST}')]
    left = [file for name in (f'*{CHECKPOINT}', SUMMARY, RESULTS) for file in folder.glob(name)]
    return checkpoints or [folder / ARGUMENTS] * (not left)


def latest_run(root: Path, name: str = '') -> Path | None:
    """The folder, of one run or of an --icasc-compare, whose last checkpoint is the newest; None without one.

    Args:
        root: Folder of runs.
        name: Of the only run to look at; all when empty.
    """
    folders = [root / name] if name else root.glob('*')
    found = {folder: _newest_of(folder) for folder in folders if (folder / ARGUMENTS).is_file()}
    found = {folder: files for folder, files in found.items() if files}
    if len(found) < 2:
        return next(iter(found), None)
    return max(found, key=lambda folder: max(map(saved_at, found[folder])))


def _open_finished(folder: Path) -> Run:
    if not (folder / RESULTS).is_file():
        hint = 'timm-icasc train --resume auto goes on with it' if (folder / ARGUMENTS).is_file() else \
            'a run directory is what timm-icasc train leaves in output/'
        raise HubError(f"'{folder}' holds no finished run (there is no {RESULTS}); {hint}.")
    try:
        run = open_run(folder)
    except (OSError, ValueError) as e:
        raise HubError(f"'{folder}' cannot be read: {one_line(e)}") from e
    try:
        run.metrics, [run.model[name] for name in RECORDED]
    except (KeyError, TypeError, AttributeError) as e:
        raise run.outdated() from e
    return run


def open_runs(folder: Path) -> list[Run]:
    """The finished runs in a folder, to be published: one, or the two of an --icasc-compare job, the ICASC one last.

    Raises:
        HubError: A run is not finished, or does not describe its model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HubError(f"no run directory '{folder}'.")
    compared = [folder / name for name in COMPARED]
    folders = compared if all(path.is_dir() for path in compared) else [folder]
    runs = [_open_finished(path) for path in folders]
    for run in runs:
        if not run.checkpoint.is_file():
            raise HubError(f"'{run.folder}' has no {LAST}; its weights are gone.")
    return runs


def check_folders(folders: Sequence[Path]) -> None:
    """Raise ICASCError where a folder is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise ICASCError(f"no folder '{folder}'.")


def collect_runs(folders: Sequence[Path]) -> list[Run]:
    """Every finished run at or below the folders; what cannot be read is left out with a warning."""
    files = sorted({file.resolve() for folder in folders for file in folder.rglob(RESULTS)})
    return [run for run in (_read_finished(file.parent) for file in files) if run is not None]


def collect_segmentations(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every finished segmentation.json at or below the folders; those of --cues-only have no mean IoU."""
    results = []
    for file in sorted({file.resolve() for folder in folders for file in folder.rglob(f'{SEGMENTATION}.json')}):
        try:
            result = read_json(file)
            if result.get('mIoU') is not None:
                results.append({
                    **result, 'mIoU': float(result['mIoU']), 'attention': result['attention'],
                    'seed': result['seed']})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            warnings.warn(f"'{file}' is left out, it cannot be read: {one_line(e)}", stacklevel=2)
    return results


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone; of two with one seed, the later folder in the alphabet counts."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, run.signature(run.is_baseline)), {})
        if run.seed in group:
            warnings.warn(
                f"'{group[run.seed].folder}' and '{run.folder}' are the same run with the same seed; the "
                f'second counts', stacklevel=2)
        group[run.seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock, or half a file, of a run that was killed before its first file."""
    return folder.is_dir() and all(name.startswith('.') for name in os.listdir(folder)) and was_left(folder)


def open_run_dir(args: argparse.Namespace) -> Path:
    """A new folder for the run, or one that is as good as new: runs are never written over."""
    name = args.experiment or f"{args.model.replace('/', '_').replace(':', '_')}-" \
                              f"{(args.dataset or Path(args.data_dir).name).replace('/', '_')}"
    try:
        base = Path(args.output) / name
        folder, count = base, 1
        while utils.is_primary(args):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                if not folder.is_dir():
                    raise
                if _is_empty(folder):
                    break
                folder, count = Path(f'{base}-{count}'), count + 1
        return folder
    except OSError as e:
        raise ICASCError(f"`output`: cannot write to '{args.output}': {e.strerror}.") from e


def finished_results(folder: Path, epochs: int) -> dict[str, Any] | None:
    """results.json of a run of so many epochs; None where there is none, or it does not tell all that it should."""
    try:
        run = Run(folder, {}, read_json(folder / RESULTS))
        run.method, run.metrics, run.results['best'], [run.model[name] for name in RECORDED]
        return run.results if run.results['epochs'] == epochs else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def program() -> list[str]:
    """The words that call this process's program as it was called: behind them, its options.

    With those of torchrun where this job has several processes, `train` where that is a command of the program.
    """
    world = int(os.environ.get('WORLD_SIZE', 1))
    local = int(os.environ.get('LOCAL_WORLD_SIZE', world))
    words = ['torchrun', f'--nnodes={world // local}', f'--nproc_per_node={local}'] if world > 1 else []
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    script = Path(sys.argv[0])
    if spec is not None and spec.origin == sys.argv[0]:
        words += [*([] if words else ['python']), '-m', spec.name.removesuffix('.__main__')]
    else:
        words += [*(['--no-python'] if words and script.suffix != '.py' else []), script.name]
    return words + sys.argv[1:2] * (sys.argv[1:2] == ['train'])


def command_of(given: dict[str, Any], run_dir: Path | None) -> str:
    """The command that began a run, which its args.yaml keeps; followed by this one if it goes on with other options.

    Args:
        given: Options of this process.
        run_dir: Folder of the run to go on with; None for a new one.
    """
    called = program()
    command = shell_command([*called, *sys.argv[1 + (sys.argv[1:2] == ['train']):]])
    text = (run_dir / ARGUMENTS).read_text(errors='replace') if run_dir and (run_dir / ARGUMENTS).is_file() else ''
    if not text.startswith(COMMAND):
        return command
    first = text.partition('\n')[0].removeprefix(COMMAND)
    same = all(
        given.get(name) == value for name,
        value in _mapping(run_dir / ARGUMENTS, read_yaml).items() if name not in PUBLISHING_OPTIONS)
    return first if same else f"{first} && {'python ' if called[0].endswith('.py') else ''}{command}"


def save_args(given: dict[str, Any], folder: Path, command: str) -> None:
    """Write args.yaml: the options as given, before the machine and the data set filled them in, below the command."""
    text = yaml.safe_dump({k: v for k, v in given.items() if k not in ('run_dir', 'config', 'resume')})
    write_text(folder / ARGUMENTS, f'{COMMAND}{command}\n{text}')
