"""Finished runs beside the paper's figures: Tables 2 to 9 as far as there are runs, "not run" for the rest.

    timm-icasc paper output                     every run below the folder, mean and deviation over seeds
    timm-icasc paper output --output paper.md   also written to a file (.md, .json or .csv)

A run is a folder with results.json and args.yaml, as train_timm.py leaves it, or with segmentation.json (Table 2).
Runs that differ in the seed alone are averaged; a run counts as the paper's where its model, epochs and batch size are.
The value is that of the last epoch, with what `timm-icasc eval` has added (ten crops). The paper's figures, each with
its source, are in paper.yaml.
"""
import argparse
import json
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from .errors import ICASCError
from .evaluation.output import format_table, write_csv, write_json

__all__ = ['Run', 'collect_runs', 'collect_segmentations', 'paper_rows', 'segmentation_rows']

PAPER = Path(__file__).parent / 'paper.yaml'
UNPUBLISHED = ''  # the source of a row that the paper does not have
# Options that do not change what is measured, or that tell one run of a group from another.
INCIDENTAL = ('seed', 'data_dir', 'output', 'experiment', 'workers', 'device', 'pin_mem', 'no_prefetcher',
              'checkpoint_hist', 'log_interval', 'icasc_eval_images', 'dataset_download', 'validation_batch_size',
              'eval_metric', 'icasc_compare', 'pretrained_path', 'initial_checkpoint', 'torchcompile')
# What settings of a segmentation may be averaged over seeds; the first is the model, the others are told in the note.
SETTINGS = ('network', 'classifier', 'year', 'train_split', 'train_images', 'image_size', 'iterations', 'batch_size',
            'lr')
NAMES = {'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops',
         'top5_ten_crop': 'top-5 %, ten crops', 'mAP': 'mAP %', 'AUC': 'AUC %'}


@dataclass(frozen=True)
class Run:
    """A finished run: its options and its measures."""
    folder: Path
    options: Dict[str, Any]
    measures: Dict[str, float]
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


def _read_run(file: Path) -> Optional[Run]:
    try:
        result = json.loads(file.read_text())
        options = yaml.safe_load((file.parent / 'args.yaml').read_text())
        measures = {name.removeprefix('eval_'): value for name, value in result['last'].items()
                    if name.startswith('eval_') and isinstance(value, (int, float))}
        evaluated = file.parent / 'eval' / 'eval.json'
        if evaluated.is_file():
            extra = json.loads(evaluated.read_text())['measures']
            measures.update({name: value for name, value in extra.items() if name not in measures})
        return Run(file.parent, options, measures, result['method'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        warnings.warn(f"'{file.parent}' is left out, its files cannot be read: {type(e).__name__} {e}", stacklevel=2)
        return None


def collect_runs(folders: Sequence[Path]) -> List[Run]:
    """Every finished run at or below the folders.

    Raises:
        ICASCError: A folder is missing.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ICASCError(f"no folder '{folder}'.")
    files = sorted({file.resolve() for folder in folders for file in folder.rglob('results.json')})
    return [run for run in map(_read_run, files) if run is not None]


def collect_segmentations(folders: Sequence[Path]) -> List[Dict[str, Any]]:
    """Every finished segmentation.json at or below the folders."""
    results = []
    for file in sorted({file.resolve() for folder in folders for file in folder.rglob('segmentation.json')}):
        try:
            result = json.loads(file.read_text())
            if result.get('mIoU') is not None:
                results.append(result)
        except (OSError, ValueError, AttributeError) as e:
            warnings.warn(f"'{file}' is left out, it cannot be read: {e}", stacklevel=2)
    return results


def segmentation_rows(results: Sequence[Dict[str, Any]], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Table 2: one row per attention method and setting, mean and deviation over the segmentation's seeds."""
    groups: Dict[Tuple, Dict[int, Dict[str, Any]]] = {}
    for result in results:
        setting = tuple(str(result.get(key)) for key in SETTINGS)
        groups.setdefault((result['attention'], setting), {})[result['seed']] = result
    rows = []
    for paper in content['rows']:
        row = {'table': f"Table {content['table']}, {content['title']}", 'model': None, 'method': paper['method'],
               'measure': 'mIoU %', 'paper': paper['value'], 'ours': f"not run: needs {content['needs']}",
               'seeds': None, 'to the baseline': None, 'note': '', 'source': None}
        own = [group for (method, _), group in groups.items() if method == paper['method']]
        rows += [{
            **row, 'model': group[min(group)]['network'], 'seeds': ' '.join(map(str, sorted(group))),
            'ours': _text(*_mean_and_deviation([result['mIoU'] for result in group.values()])),
            'note': ', '.join(f'{key}={group[min(group)].get(key)}' for key in SETTINGS[1:])} for group in own] or [row]
    return rows


def _groups(runs: Sequence[Run]) -> List[List[Run]]:
    """Runs that differ in the seed alone; of two with one seed, the later folder in the alphabet counts."""
    groups: Dict[Tuple[str, str], Dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, run.signature(run.is_baseline)), {})
        if run.seed in group:
            warnings.warn(f"'{group[run.seed].folder}' and '{run.folder}' are the same run with the same seed; the "
                          f'second counts', stacklevel=2)
        group[run.seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _mean_and_deviation(values: Sequence[float]) -> Tuple[float, Optional[float]]:
    """Mean, and sample standard deviation (n - 1) from two values on."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _text(mean: float, deviation: Optional[float], sign: str = '') -> str:
    return f'{mean:{sign}.2f}' + (f' \u00b1 {deviation:.2f}' if deviation is not None else '')


def _difference(group: Sequence[Run], baselines: Sequence[Sequence[Run]], metric: str) -> Optional[str]:
    """Mean difference to the classification loss alone with the same options, seed by seed."""
    for baseline in baselines:
        if baseline[0].signature(True) == group[0].signature(True):
            by_seed = {run.seed: run.measures.get(metric) for run in baseline}
            pairs = [run.measures[metric] - by_seed[run.seed] for run in group if by_seed.get(run.seed) is not None]
            return f'{_text(*_mean_and_deviation(pairs), sign="+")} (n={len(pairs)})' if pairs else None
    return None


def _distinguish(groups: Sequence[Sequence[Run]]) -> List[str]:
    """For each group, the options in which it differs from others of the same model and method."""
    notes = []
    for group in groups:
        own = group[0]
        rivals = [g[0] for g in groups if g is not group and g[0].options.get('model') == own.options.get('model')]
        keys = sorted({k for rival in rivals for k in {*rival.options, *own.options}
                       if rival.options.get(k) != own.options.get(k) and k not in INCIDENTAL
                       and not k.startswith('icasc_') * own.is_baseline and k != 'icasc'})
        notes.append(', '.join(f'{k}={own.options.get(k)}' for k in keys))
    return notes


def _own_rows(groups: Sequence[Sequence[Run]], metrics: Sequence[str]) -> List[Dict[str, Any]]:
    baselines = [group for group in groups if group[0].is_baseline]
    rows = []
    for group, note in zip(groups, _distinguish(groups), strict=True):
        for metric in metrics:
            values = [run.measures[metric] for run in group if run.measures.get(metric) is not None]
            if values:
                rows.append({
                    'model': group[0].options.get('model'), 'method': group[0].method, 'measure': NAMES[metric],
                    'paper': None, 'ours': _text(*_mean_and_deviation(values)),
                    'seeds': ' '.join(str(run.seed) for run in group),
                    'to the baseline': None if group[0].is_baseline else _difference(group, baselines, metric),
                    'note': note})
    return rows


def paper_rows(runs: Sequence[Run], content: Optional[Dict[str, Any]] = None) -> List[Dict[str, Any]]:
    """The tables as one list of rows.

    Args:
        runs: Finished runs, of whatever data and model.
        content: Of paper.yaml.

    Returns:
        Rows with 'table', 'model', 'method', 'measure', 'paper' (figure or None: not known), 'ours' (mean and standard
        deviation over seeds), 'seeds', 'to the baseline' (mean difference seed by seed), 'note' and 'source'.
    """
    content = content or yaml.safe_load(PAPER.read_text())
    result, placed = [], []
    for experiment in content['experiments']:
        number = f"Table {experiment['table']}" if experiment['table'] else 'Tables 3-9'
        title = f"{number}, {experiment['title']}"
        own = [run for run in runs if run.data in experiment['names']]
        placed += own
        protocol = experiment.get('protocol')
        exact = [run for run in own if protocol and all(run.options.get(k) in v for k, v in protocol.items())]
        missing = f"not run: needs {experiment['needs']}; recipe {experiment['recipe']}"
        exact_rows = _own_rows(_groups(exact), experiment['metrics'])
        for row in experiment['rows']:
            matches = [r for r in exact_rows
                       if (r['model'], r['method'].split(',')[0]) == (row['model'], row['method'])]
            paper = {'table': title, 'model': row['model'], 'method': row['method'],
                     'measure': NAMES[experiment['metrics'][0]], 'paper': row['value'],
                     'ours': missing, 'seeds': None, 'to the baseline': None, 'note': '',
                     'source': content['sources'].get(row.get('source'))}
            for match in matches or [None]:
                result.append({**paper, **({k: v for k, v in match.items() if k != 'paper'} if match else {})})
        known = {(row['model'], row['method']) for row in experiment['rows']}
        result += [{'table': title, **row, 'source': UNPUBLISHED} for row in exact_rows
                   if (row['model'], row['method'].split(',')[0]) not in known]
        others = _own_rows(_groups([run for run in own if run not in exact]), experiment['metrics'])
        for row in others:
            row['note'] = ', '.join(filter(None, ['not the paper\u2019s protocol' if protocol else '', row['note']]))
            result.append({'table': title, **row, 'source': UNPUBLISHED})
        result.append({
            'table': title, 'model': 'best of the paper', 'method': 'gain over its baseline', 'measure': '',
            'paper': f"{experiment['gain']:+.2f}", 'ours': None if own else missing,
            'seeds': None, 'to the baseline': None, 'note': '',
            'source': content['sources'][experiment['gain_source']]})
    rest = _groups([run for run in runs if run not in placed])
    names = sorted({group[0].data for group in rest})
    for name in names:
        groups = [group for group in rest if group[0].data == name]
        result += [{'table': f'not in the paper, {name}', **row, 'source': UNPUBLISHED}
                   for row in _own_rows(groups, ('top1', 'mAP', 'AUC'))]
    return result


def _cells(rows: Sequence[Dict[str, Any]]) -> List[Dict[str, str]]:
    """Rows as text, without the columns that are empty throughout."""
    shown = [dict(row) for row in rows]
    for row in shown:
        if row['paper'] is None and row['source'] != UNPUBLISHED:
            row['paper'] = 'not known'
    keys = [k for k in shown[0] if k not in ('table', 'source') and any(row[k] not in (None, '') for row in shown)]
    return [{k: '' if row[k] is None else str(row[k]) for k in keys} for row in shown]


def _show(rows: Sequence[Dict[str, Any]], markdown: bool) -> str:
    parts = []
    for title in dict.fromkeys(row['table'] for row in rows):
        cells = _cells([row for row in rows if row['table'] == title])
        if markdown:
            lines = [f"| {' | '.join(cells[0])} |", '|' + '---|' * len(cells[0])]
            lines += [f"| {' | '.join(row.values())} |" for row in cells]
            parts.append(f'### {title}\n\n' + '\n'.join(lines))
        else:
            parts.append(f'{title}\n{format_table(cells)}')
    sources = dict.fromkeys(row['source'] for row in rows if row['source'])
    parts.append('\n'.join(['Sources of the column "paper":', *(f'- {source}' for source in sources)]))
    return '\n\n'.join(parts) + '\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folders', nargs='+', type=Path, metavar='DIR', help='folders of runs, searched to any depth')
    parser.add_argument('--output', type=Path, metavar='FILE', help='also write the tables: .md, .json or .csv')


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.suffix not in ('.md', '.json', '.csv'):
        raise ICASCError(f"--output ends in .md, .json or .csv, got '{args.output}'.")
    runs, segmentations = collect_runs(args.folders), collect_segmentations(args.folders)
    if not runs and not segmentations:
        raise ICASCError(f"no finished run (results.json) below {', '.join(map(str, args.folders))}.")
    content = yaml.safe_load(PAPER.read_text())
    rows = segmentation_rows(segmentations, content['segmentation']) + paper_rows(runs, content)
    print(_show(rows, markdown=False), end='')
    if args.output:
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            if args.output.suffix == '.md':
                args.output.write_text(_show(rows, markdown=True), encoding='utf-8')
            else:
                (write_json if args.output.suffix == '.json' else write_csv)(args.output, rows)
        except OSError as e:
            raise ICASCError(f"--output: cannot write '{args.output}': {e.strerror}.") from e
    return 0
