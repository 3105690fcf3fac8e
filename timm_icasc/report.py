"""What a training run tells: its folder, the table of epochs, the table of results, the figure."""
import argparse
import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import timm
import torch
import torchvision
import yaml
from timm import utils
from timm.data import create_loader
from tqdm import tqdm

from .data import evenly_spaced
from .errors import ICASCError
from .figures import attention_figure
from .setup import icasc_config
from .version import __version__

FIGURE_IMAGES = 6
# Column -> key of the epoch's record.
TRAINING = {'loss': 'train_loss', 'loss_cls': 'train_loss_cls', 'L_AS inner': 'train_loss_as_inner',
            'L_AS last': 'train_loss_as_last', 'L_AC': 'train_loss_ac'}
MEASURES = {False: {'top-1': 'eval_top1', 'top-5': 'eval_top5'},
            True: {'mAP': 'eval_mAP', 'mAP 11-point': 'eval_mAP_11point', 'mAP sklearn': 'eval_mAP_sklearn',
                   'AUC': 'eval_AUC'}}
TERMS = {'L_AS inner': 'eval_as_inner', 'L_AS last': 'eval_as_last', 'L_AC': 'eval_ac'}
OVERLAP = {'overlap inner': 'eval_overlap_inner', 'overlap last': 'eval_overlap_last'}


def say(args: argparse.Namespace, text: str = '') -> None:
    if utils.is_primary(args):
        tqdm.write(text)


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


def command_of(given: Dict[str, Any], run_dir: Optional[Path]) -> str:
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


def save_args(given: Dict[str, Any], folder: Path, command: str) -> None:
    """Write args.yaml: the options as given, before the machine and the data set filled them in, below the command."""
    text = yaml.safe_dump({k: v for k, v in given.items() if k not in ('run_dir', 'config', 'resume')})
    (folder / 'args.yaml').write_text(f'{COMMAND}{command}\n{text}')


def epoch_columns(multilabel: bool) -> Dict[str, str]:
    """Columns of the table of epochs: the losses, the first measure of accuracy, the overlaps."""
    return {**TRAINING, **dict(list(MEASURES[multilabel].items())[:1]), **OVERLAP}


def header(multilabel: bool) -> str:
    names = epoch_columns(multilabel)
    return f"{'epoch':>5} " + ' '.join(f'{name:>{max(len(name), 7)}}' for name in names) + f"{'time':>8}"


def row(epoch: int, record: dict, multilabel: bool) -> str:
    cells = []
    for name, key in epoch_columns(multilabel).items():
        value = record.get(key)
        digits = 2 if name in MEASURES[multilabel] else 4
        cells.append(f"{'-' if value is None else f'{value:.{digits}f}':>{max(len(name), 7)}}")
    return f'{epoch + 1:>5} ' + ' '.join(cells) + f"{record['time']:>7.1f}s"


def _commit() -> Optional[str]:
    """The commit of this code, '-dirty' if it was changed; None for an installation, whatever repository it lies in."""
    root = Path(__file__).parent.parent
    if not (root / '.git').exists():
        return None
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=40'], cwd=root, capture_output=True, text=True,
            check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(args: argparse.Namespace, command: Optional[str] = None) -> dict:
    """What it takes to repeat what `command` began; by default this process's."""
    return {'command': command or command_of({}, None), 'commit': _commit(), 'seed': args.seed,
            'versions': {'python': sys.version.split()[0], 'torch': torch.__version__,
                         'torchvision': torchvision.__version__, 'timm': timm.__version__,
                         'timm_icasc': __version__},
            'device': torch.cuda.get_device_name() if args.device.startswith('cuda') else args.device}


def _print_table(args: argparse.Namespace, rows: List[Dict[str, Any]]) -> None:
    cells = [list(rows[0])] + [
        [f'{v:.4g}' if isinstance(v, float) else '-' if v is None else str(v) for v in r.values()] for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, *rest = (f'{c:>{w}}' for c, w in zip(line, widths, strict=True))
        say(args, '  '.join([f'{first.strip():<{widths[0]}}', *rest]))


def _draw(args: argparse.Namespace, run_dir: Path, runs: Dict[str, Dict[str, Any]]) -> Path:
    job = next(iter(runs.values()))['job']
    config = job.data_config
    loader = create_loader(
        evenly_spaced(job.val_set, FIGURE_IMAGES), config['input_size'], FIGURE_IMAGES, mean=config['mean'],
        std=config['std'], num_workers=0, device=job.device)
    images, targets = next(iter(loader))
    # A head may have more outputs than the data set has classes.
    names = job.names and job.names + [str(i) for i in range(len(job.names), job.args.num_classes)]
    return attention_figure(
        {label: run['model'] for label, run in runs.items()}, images, targets, names, config['mean'],
        config['std'], run_dir / 'attention.png', config=icasc_config(job.args), layers=args.icasc_layers)


def report(args: argparse.Namespace, run_dir: Path, runs: Dict[str, Dict[str, Any]]) -> None:
    """The results as a table to read, as results.csv, and the figure of attention maps.

    Args:
        args: Options of the whole job.
        run_dir: Folder to write to.
        runs: Label of each run -> its 'result' (results.json), 'model' and 'job'.
    """
    job = next(iter(runs.values()))['job']
    # The overlap is over images in which both maps exist: it says little where many maps are zero.
    columns = {**MEASURES[job.multilabel], **TERMS, **OVERLAP, 'zero maps': 'eval_zero_maps', 's/epoch': 'time'}
    table = [{'method': run['result']['method'],
              **{name: run['result']['last'].get(key) for name, key in columns.items()}}
             for run in runs.values()]
    with open(run_dir / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    say(args, '\nResults after the last epoch, on the validation images:')
    _print_table(args, table)
    if hasattr(job.val_set, '__len__') and job.layers is not None:
        try:
            say(args, f'\nattention maps: {_draw(args, run_dir, runs)}')
        except Exception as e:  # the run is done and saved; a missing font must not make it look failed
            say(args, f'\nattention maps: not drawn, {type(e).__name__}: {e}')
    say(args, f'checkpoints, summary.csv, args.yaml, results: {run_dir}')
