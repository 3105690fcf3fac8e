"""What a training run prints: the table of epochs and the table of results."""
import argparse
from pathlib import Path
from typing import Any

from timm import utils
from tqdm import tqdm

from ..foreign_text import printable
from ..labels import LabelKind
from ..objective.config import TERMS
from ..runs.folder import RESULTS_TABLE
from ..runs.tables import cell_of, text, write_csv

# What the task's results say of an epoch's training: key -> column.
LOSSES = {'loss': 'loss', 'loss_cls': 'loss_cls', **{f'loss_{term.name}': term.title for term in TERMS}}

OVERLAP = {'overlap inner': 'eval_overlap_inner', 'overlap last': 'eval_overlap_last'}


def log(args: argparse.Namespace, line: str = '') -> None:
    if utils.is_primary(args):
        tqdm.write('\n'.join(map(printable, line.split('\n'))))


def _measures(labels: LabelKind) -> dict[str, str]:
    return {title: f'eval_{name}' for name, title in labels.measures.items()}


def epoch_columns(labels: LabelKind) -> dict[str, str]:
    """Columns of the table of epochs: the losses, the first measure of accuracy, the overlaps."""
    training = {title: f'train_{name}' for name, title in LOSSES.items()}
    return {**training, **dict(list(_measures(labels).items())[:1]), **OVERLAP}


def format_header(labels: LabelKind) -> str:
    names = epoch_columns(labels)
    return f"{'epoch':>5} " + ' '.join(f'{name:>{max(len(name), 7)}}' for name in names) + f"{'time':>8}"


def format_epoch(epoch: int, record: dict, labels: LabelKind) -> str:
    cells = []
    for name, key in epoch_columns(labels).items():
        digits = 2 if name in labels.measures.values() else 4
        cells.append(f'{cell_of(record.get(key), digits):>{max(len(name), 7)}}')
    return f'{epoch + 1:>5} ' + ' '.join(cells) + f"{record['time']:>7.1f}s"


def print_results(args: argparse.Namespace, run_dir: Path, runs: dict[str, dict[str, Any]]) -> None:
    """The results as a table to read, and as results.csv.

    Args:
        args: Options of the whole job.
        run_dir: Folder to write to.
        runs: Label of each run -> its 'result' (results.json), 'model' and 'job'.
    """
    job = next(iter(runs.values()))['job']
    # The overlap is over images in which both maps exist: it says little where many maps are zero.
    columns = {
        **_measures(job.labels), **{term.title: f'eval_{term.name}' for term in TERMS}, **OVERLAP,
        'zero maps': 'eval_zero_maps', 's/epoch': 'time'}
    if job.args.num_classes < 6:
        columns.pop('top-5', None)  # of five classes the target always is among them
    table = [
        {'method': run['result']['method'],
         **{name: run['result']['last'].get(key) for name, key in columns.items()}}
        for run in runs.values()]
    write_csv(run_dir / RESULTS_TABLE, table)
    loader, count = job.attention_loader, len(job.val_set)
    part = '' if loader is None or len(loader.dataset) == count else f'; attention on {len(loader.dataset)} of them'
    log(args, f'\nResults after the last epoch, on the {count} validation images{part}:')
    log(args, text(table))
