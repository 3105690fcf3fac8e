"""Every table and figure of the paper: the command that makes it, the paper's figures, finished runs beside them.

    timm-icasc paper                            each table and figure with its command, and what it needs
    timm-icasc paper output                     with every run below the folder, mean and deviation over seeds
    timm-icasc paper output --output paper.md   also written to a file (.md, .json or .csv)

A run is a folder with results.json and args.yaml, as train_timm.py leaves it, or with segmentation.json (Table 2).
Runs that differ in the seed alone are averaged. A run stands in a row of the paper where its model, epochs, batch size,
image size and splits are the recipe's; the note names what else differs. The value is that of the last epoch, with what
`timm-icasc eval` has added (ten crops). The paper's figures, each with its source, are in paper.yaml.
"""
import argparse
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from .arguments import parse_args
from .config import RECIPES
from .errors import ICASCError
from .evaluation.output import format_table, write_csv, write_json
from .finished import (
    INCIDENTAL,
    Run,
    check_folders,
    collect_runs,
    collect_segmentations,
    group_runs,
    mean_and_deviation,
)

__all__ = ['PAPER', 'figure_rows', 'paper_rows', 'recipe_options', 'segmentation_rows', 'setting_rows']

PAPER = Path(__file__).parent / 'paper.yaml'
FIGURES = 'Figures'
# Options in which a run must agree with a recipe to stand in a row of the paper.
DECIDING = ('model', 'epochs', 'batch_size', 'img_size', 'train_split', 'val_split')
# What settings of a segmentation may be averaged over seeds; the first is the model, the others are told in the note.
SETTINGS = ('network', 'classifier', 'year', 'train_split', 'train_images', 'image_size', 'iterations', 'batch_size',
            'lr')
NAMES = {'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops',
         'top5_ten_crop': 'top-5 %, ten crops', 'mAP': 'mAP %', 'AUC': 'AUC %'}
UNKNOWN = 'not known'  # a figure that the paper has
HEAD = '''# The paper's tables and figures

Written by `timm-icasc paper{folders} --output {name}`. The paper: Wang et al., "Sharpen Focus: Learning with Attention
Separability and Consistency", ICCV 2019.
'''


def _text(mean: float, deviation: Optional[float], sign: str = '') -> str:
    return f'{mean:{sign}.2f}' + (f' \u00b1 {deviation:.2f}' if deviation is not None else '')


def _row(table: str, model: Optional[str], method: str, measure: str, paper: Any, ours: Optional[str],
         source: Optional[str] = None, command: Optional[str] = None) -> Dict[str, Any]:
    return {'table': table, 'model': model, 'method': method, 'measure': measure, 'paper': paper, 'ours': ours,
            'seeds': None, 'to the baseline': None, 'note': '', 'source': source, 'command': command}


def segmentation_rows(results: Sequence[Dict[str, Any]], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Table 2: one row per attention method and setting, mean and deviation over the segmentation's seeds."""
    groups: Dict[Tuple, Dict[int, Dict[str, Any]]] = {}
    for result in results:
        setting = tuple(str(result.get(key)) for key in SETTINGS)
        groups.setdefault((result['attention'], setting), {})[result['seed']] = result
    rows = []
    for paper in content['rows']:
        value = UNKNOWN if paper['value'] is None else paper['value']
        row = _row(f"Table {content['table']}, {content['title']}", None, paper['method'], 'mIoU %', value,
                   f"not run: needs {content['needs']}", command=content['command'].format(method=paper['method']))
        own = [group for (method, _), group in groups.items() if method == paper['method']]
        rows += [{
            **row, 'model': group[min(group)].get('network'), 'seeds': ' '.join(map(str, sorted(group))),
            'ours': _text(*mean_and_deviation([result['mIoU'] for result in group.values()])),
            'note': ', '.join(f'{key}={group[min(group)].get(key)}' for key in SETTINGS[1:])} for group in own] or [row]
    return rows


def _difference(group: Sequence[Run], baselines: Sequence[Sequence[Run]], metric: str) -> Optional[str]:
    """Mean difference to the classification loss alone with the same options, seed by seed."""
    for baseline in baselines:
        if baseline[0].signature(True) == group[0].signature(True):
            by_seed = {run.seed: run.measures.get(metric) for run in baseline}
            pairs = [run.measures[metric] - by_seed[run.seed] for run in group
                     if run.measures.get(metric) is not None and by_seed.get(run.seed) is not None]
            return f'{_text(*mean_and_deviation(pairs), sign="+")} (n={len(pairs)})' if pairs else None
    return None


def _counts(run: Run, key: str) -> bool:
    """Whether an option tells runs apart; those of ICASC do not matter to a baseline, and a method's name tells two."""
    return key not in (*INCIDENTAL, 'icasc', 'icasc_order', 'icasc_attention') and not (
        run.is_baseline and key.startswith('icasc'))


def _departures(run: Run, options: Dict[str, Any]) -> str:
    """Options of a run that differ from `options`."""
    return ', '.join(f'{k}={v}' for k, v in sorted(run.options.items())
                     if _counts(run, k) and k in options and v != options[k])


def _distinguish(groups: Sequence[Sequence[Run]], recipe: Optional[Dict[str, Any]] = None) -> List[str]:
    """For each group, the options in which it differs from others of the same model, and decidingly from a recipe."""
    notes = []
    for group in groups:
        own = group[0]
        rivals = [g[0] for g in groups if g is not group and g[0].options.get('model') == own.options.get('model')]
        keys = {k for rival in rivals for k in {*rival.options, *own.options}
                if rival.options.get(k) != own.options.get(k)}
        keys |= {k for k in DECIDING[1:] if recipe and k in own.options and own.options[k] != recipe[k]}
        notes.append(', '.join(f'{k}={own.options.get(k)}' for k in sorted(keys) if _counts(own, k)))
    return notes


def _own_rows(
        table: str,
        groups: Sequence[Sequence[Run]],
        metrics: Sequence[str],
        baselines: Sequence[Sequence[Run]],
        notes: Sequence[str],
) -> List[Dict[str, Any]]:
    rows = []
    for group, note in zip(groups, notes, strict=True):
        for metric in metrics:
            measured = [run for run in group if run.measures.get(metric) is not None]
            if measured:
                rows.append({
                    **_row(table, group[0].options.get('model'), group[0].method, NAMES[metric], None,
                           _text(*mean_and_deviation([run.measures[metric] for run in measured]))),
                    'seeds': ' '.join(str(run.seed) for run in measured),
                    'to the baseline': None if group[0].is_baseline else _difference(group, baselines, metric),
                    'note': note})
    return rows


@cache
def _parsed(recipe: str, data_dir: str, extra: Tuple[str, ...]) -> Dict[str, Any]:
    return vars(parse_args(['--data-dir', data_dir, '--config', str(RECIPES / recipe), *extra]))


def recipe_options(experiment: Dict[str, Any], method: str, row: Dict[str, Any]) -> Tuple[Dict[str, Any], str]:
    """The options of train_timm.py that make a row of the paper, and as text those beyond the recipe's."""
    extra = [word for name, value in row.get('options', {}).items()
             for word in (f"--{name.replace('_', '-')}", str(value))] + method.split()
    options = _parsed(experiment['recipe'], experiment['data_dir'], tuple(extra))
    return options, ''.join(f' {word}' for word in extra)


def _agrees(run: Run, options: Dict[str, Any]) -> bool:
    return all(run.options.get(key, options[key]) == options[key] for key in DECIDING)


def _experiment_rows(experiment: Dict[str, Any], runs: Sequence[Run], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    table = f"{'Table ' + str(experiment['table']) if experiment['table'] else 'Tables 3-9'}, {experiment['title']}"
    missing, metrics = f"not run: needs {experiment['needs']}", experiment['metrics']
    groups, result, placed = group_runs(runs), [], []
    baselines = [group for group in groups if group[0].is_baseline]
    recipe = {}
    for row in experiment['rows']:
        options, text = recipe_options(experiment, content['methods'][row['method']], row)
        recipe = recipe or options
        command = content['train'].format(recipe=f"timm_icasc/recipes/{experiment['recipe']}", options=text,
                                          data_dir=experiment['data_dir'])
        command = ' && '.join(filter(None, [command, experiment.get('then')]))
        paper = _row(table, options['model'], ', '.join(filter(None, [row['method'], row.get('label')])),
                     ' / '.join(NAMES[metric] for metric in metrics), UNKNOWN if row['value'] is None else row['value'],
                     missing, content['sources'].get(row.get('source')), command)
        own = [group for group in groups if _agrees(group[0], options)
               and row['method'] in ('baseline' if group[0].is_baseline else group[0].method.split(',')[0])]
        placed += own
        found = _own_rows(table, own, metrics, baselines, [
            ', '.join(filter(None, [row.get('label'), _departures(group[0], options)])) for group in own])
        for match in found:
            first = match['measure'] == NAMES[metrics[0]]  # the one that the paper's figure is of
            result.append({**match, 'paper': paper['paper'] if first else UNKNOWN,
                           'source': paper['source'] if first else None, 'command': command})
        result += [] if found else [paper]
    others = [group for group in groups if group not in placed]
    notes = [', '.join(filter(None, ['not the recipe\u2019s settings', note])) for note in _distinguish(others, recipe)]
    result += _own_rows(table, others, metrics, baselines, notes)
    result.append(_row(table, 'best of the paper', 'gain over its baseline', '', f"{experiment['gain']:+.2f}",
                       None if runs else missing, content['sources'][experiment['gain_source']]))
    return result


def paper_rows(runs: Sequence[Run], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Tables 3 to 9 as one list of rows.

    Args:
        runs: Finished runs, of whatever data and model.
        content: Of paper.yaml.

    Returns:
        Rows with 'table', 'model', 'method', 'measure', 'paper' (figure, 'not known', or None where it has none),
        'ours' (mean and standard deviation over seeds), 'seeds', 'to the baseline' (mean difference seed by seed),
        'note', 'source' and 'command'.
    """
    result, placed = [], []
    for experiment in content['experiments']:
        own = [run for run in runs if run.data in experiment['names']]
        placed += own
        result += _experiment_rows(experiment, own, content)
    rest = group_runs([run for run in runs if run not in placed])
    for name in sorted({group[0].data for group in rest}):
        groups = [group for group in rest if group[0].data == name]
        baselines = [group for group in groups if group[0].is_baseline]
        result += _own_rows(f'not in the paper, {name}', groups, ('top1', 'mAP', 'AUC'), baselines,
                            _distinguish(groups))
    return result


def setting_rows(content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Table 1 and Table 1 of the appendix: the recipes' settings."""
    rows = []
    for experiment in content['experiments']:
        options, _ = recipe_options(experiment, '', {})
        rows.append({
            'table': content['settings']['title'], 'data set': experiment['title'],
            'model': options['model'], 'pixels': options['img_size'], 'epochs': options['epochs'],
            'batch size': options['batch_size'], 'learning rate': options['lr'], 'schedule': options['sched'],
            'weight decay': options['weight_decay'], 'recipe': f"timm_icasc/recipes/{experiment['recipe']}"})
    return rows


def figure_rows(content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The figures: what each shows, whether there is one of other models or data here, what the paper's takes."""
    rows = []
    for figure in content['figures']:
        rows.append({'table': FIGURES, 'figure': figure['figure'], 'shows': figure['shows'],
                     'ours': f"not run: needs {figure['needs']}", 'of VOC 2007': figure['here'],
                     'command': figure['command']})
    return rows


def _cells(rows: Sequence[Dict[str, Any]]) -> List[Dict[str, str]]:
    """Rows as text, without the columns that are empty throughout."""
    keys = [k for k in rows[0] if k not in ('table', 'source', 'command')
            and any(row[k] not in (None, '') for row in rows)]
    return [{k: '' if row[k] is None else str(row[k]) for k in keys} for row in rows]


def _show(rows: Sequence[Dict[str, Any]], content: Dict[str, Any], markdown: bool) -> str:
    told = {e['title']: f"Here in its place: {e['here']}"
            for e in (content['segmentation'], *content['experiments']) if e.get('here')}
    told[content['settings']['title']] = content['settings']['note']
    parts = ['\n'.join(f'- {note}' for note in content['notes'])]
    for title in dict.fromkeys(row['table'] for row in rows):
        own = [row for row in rows if row['table'] == title]
        cells = _cells(own)
        if markdown:
            lines = [f"| {' | '.join(cells[0])} |", '|' + '---|' * len(cells[0])]
            lines += [f"| {' | '.join(row.values())} |" for row in cells]
            parts.append(f'## {title}\n\n' + '\n'.join(lines))
        else:
            parts.append(f'{title}\n{format_table(cells)}')
        note = told.get(title) or told.get(title.split(', ', 1)[-1])
        if note:
            parts.append(note)
        commands = dict.fromkeys(row['command'] for row in own if row.get('command'))
        if commands:
            parts.append('\n'.join(['```bash', *commands, '```'] if markdown else [f'  {c}' for c in commands]))
    sources = dict.fromkeys(row['source'] for row in rows if row.get('source'))
    parts.append(('## Sources\n\n' if markdown else 'Sources of the column "paper":\n')
                 + '\n'.join(f'- {source}' for source in sources))
    if markdown:
        parts.append('Code: `timm_icasc/paper/`.')
    return '\n\n'.join(parts) + '\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folders', nargs='*', type=Path, metavar='DIR', help='folders of runs, searched to any depth')
    parser.add_argument('--output', type=Path, metavar='FILE', help='also write the tables: .md, .json or .csv')


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.suffix not in ('.md', '.json', '.csv'):
        raise ICASCError(f"--output ends in .md, .json or .csv, got '{args.output}'.")
    check_folders(args.folders)
    runs, segmentations = collect_runs(args.folders), collect_segmentations(args.folders)
    if args.folders and not runs and not segmentations:
        raise ICASCError(f"no finished run (results.json) below {', '.join(map(str, args.folders))}.")
    content = yaml.safe_load(PAPER.read_text())
    rows = [*setting_rows(content), *segmentation_rows(segmentations, content['segmentation']),
            *paper_rows(runs, content), *figure_rows(content)]
    print(_show(rows, content, markdown=False), end='')
    if args.output:
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            if args.output.suffix == '.md':
                folders = ''.join(f' {folder}' for folder in args.folders)
                head = HEAD.format(folders=folders, name=args.output)
                args.output.write_text(f'{head}\n{_show(rows, content, markdown=True)}', encoding='utf-8')
            else:
                (write_json if args.output.suffix == '.json' else write_csv)(args.output, rows)
        except OSError as e:
            raise ICASCError(f"--output: cannot write '{args.output}': {e.strerror}.") from e
    return 0
