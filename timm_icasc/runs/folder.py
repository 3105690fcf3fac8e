"""Finished runs: what train_timm.py and `timm-icasc segment` have left in folders, grouped over their seeds."""
import argparse
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from timm import utils

from ..errors import ICASCError

__all__ = [
    'INCIDENTAL', 'Run', 'check_folders', 'collect_runs', 'collect_segmentations', 'group_runs',
]

# Options that do not change what is measured, or that tell one run of a group from another.
INCIDENTAL = ('seed', 'data_dir', 'output', 'experiment', 'workers', 'device', 'pin_mem', 'no_prefetcher',
              'checkpoint_hist', 'log_interval', 'icasc_eval_images', 'dataset_download', 'validation_batch_size',
              'eval_metric', 'icasc_compare', 'pretrained_path', 'initial_checkpoint', 'torchcompile', 'push_to_hub')


@dataclass(frozen=True)
class Run:
    """A finished run: its options and its measures."""
    folder: Path
    options: dict[str, Any]
    measures: dict[str, float]
    method: str

    @property
    def data(self) -> str:
        """Name of the data set, or of the folder of images."""
        return self.options.get('dataset') or Path(self.options.get('data_dir') or '').name

    @property
    def seed(self) -> int:
        return self.options.get('seed', 42)

    @property
    def is_baseline(self) -> bool:
        """Whether the classification loss alone was trained."""
        return not self.method.startswith('ICASC')

    def signature(self, without_icasc: bool = False) -> str:
        """What runs that may be averaged have in common."""
        return json.dumps({k: v for k, v in sorted(self.options.items())
                           if k not in INCIDENTAL and not (without_icasc and k.startswith('icasc'))}, default=str)


def _read_run(file: Path) -> Run | None:
    try:
        result = json.loads(file.read_text())
        options = dict(yaml.safe_load((file.parent / 'args.yaml').read_text()))
        if 'batch_size' in options:  # of an update, over all processes
            options['batch_size'] *= options.get('grad_accum_steps', 1) * result.get('world_size', 1)
        measures = {name.removeprefix('eval_'): value for name, value in result['last'].items()
                    if name.startswith('eval_') and isinstance(value, (int, float))}
        evaluated = file.parent / 'eval' / 'eval.json'
        if evaluated.is_file():
            extra = json.loads(evaluated.read_text())['measures']
            measures.update({name: value for name, value in extra.items() if name not in measures})
        return Run(file.parent, options, measures, result['method'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        reason = ' '.join(f'{type(e).__name__} {e}'.split())
        warnings.warn(f"'{file.parent}' is left out, its files cannot be read: {reason}", stacklevel=2)
        return None


def check_folders(folders: Sequence[Path]) -> None:
    """Raise ICASCError where a folder is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise ICASCError(f"no folder '{folder}'.")


def collect_runs(folders: Sequence[Path]) -> list[Run]:
    """Every finished run at or below the folders; what cannot be read is left out with a warning."""
    files = sorted({file.resolve() for folder in folders for file in folder.rglob('results.json')})
    return [run for run in map(_read_run, files) if run is not None]


def collect_segmentations(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every finished segmentation.json at or below the folders; those of --cues-only have no mean IoU."""
    results = []
    for file in sorted({file.resolve() for folder in folders for file in folder.rglob('segmentation.json')}):
        try:
            result = json.loads(file.read_text())
            if result.get('mIoU') is not None:
                results.append({**result, 'mIoU': float(result['mIoU']), 'attention': result['attention'],
                                'seed': result['seed']})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            warnings.warn(f"'{file}' is left out, it cannot be read: {type(e).__name__} {e}", stacklevel=2)
    return results


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone; of two with one seed, the later folder in the alphabet counts."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, run.signature(run.is_baseline)), {})
        if run.seed in group:
            warnings.warn(f"'{group[run.seed].folder}' and '{run.folder}' are the same run with the same seed; the "
                          f'second counts', stacklevel=2)
        group[run.seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def open_run_dir(args: argparse.Namespace) -> Path:
    """A new folder for the run: finished runs are never written over."""
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
                folder, count = Path(f'{base}-{count}'), count + 1
        return folder
    except OSError as e:
        raise ICASCError(f"--output: cannot write to '{args.output}': {e.strerror}.") from e


PLACES = ('output', 'experiment', 'push_to_hub')  # options that say where the files of a run go

COMMAND = '# '  # before the command, in the first line of args.yaml


def command_of(given: dict[str, Any], run_dir: Path | None) -> str:
    """The command that began a run, which its args.yaml keeps; followed by this one if it goes on with other options.

    Args:
        given: Options of this process.
        run_dir: Folder of the run to go on with; None for a new one.
    """
    words, world = [Path(sys.argv[0]).name, *sys.argv[1:]], int(os.environ.get('WORLD_SIZE', 1))
    if world > 1:
        local = int(os.environ.get('LOCAL_WORLD_SIZE', world))
        words = ['torchrun', f'--nnodes={world // local}', f'--nproc_per_node={local}', *words]
    command = shlex.join(words).replace('\n', ' ')
    text = (run_dir / 'args.yaml').read_text() if run_dir and (run_dir / 'args.yaml').is_file() else ''
    if not text.startswith(COMMAND):
        return command
    first = text.partition('\n')[0].removeprefix(COMMAND)
    same = all(given.get(name) == value for name, value in yaml.safe_load(text).items() if name not in PLACES)
    return first if same else f"{first} && {'python ' if world == 1 else ''}{command}"


def save_args(given: dict[str, Any], folder: Path, command: str) -> None:
    """Write args.yaml: the options as given, before the machine and the data set filled them in, below the command."""
    text = yaml.safe_dump({k: v for k, v in given.items() if k not in ('run_dir', 'config', 'resume')})
    (folder / 'args.yaml').write_text(f'{COMMAND}{command}\n{text}')
