"""Every table and figure of the paper: its values, the command that makes each, finished runs beside them.

    timm-icasc paper                            each table and figure with its command, and what it needs
    timm-icasc paper output                     with every run below the folder, mean and deviation over seeds
    timm-icasc paper output --output paper.md   also written to a file (.md, .json or .csv)

A run is a folder with results.json and args.yaml, as train_timm.py leaves it, or with segmentation.json (Table 2).
Runs that differ in the seed alone are averaged. A run stands in a row of the paper where its options are those of the
row, or another reading of them; the note names what differs among those that the paper leaves open. The value is that
of the last epoch, with what `timm-icasc eval` has added (ten crops, the KS chart). The paper's values are in
paper.yaml.
"""
import argparse
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from .arguments import build_parser, parse_args
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
from .task import ICASCTask, MultiLabelICASCTask

__all__ = ['PAPER', 'abstract_gain', 'architecture', 'class_rows', 'figure_rows', 'paper_rows', 'recipe_options',
           'segmentation_rows', 'setting_rows']

PAPER = Path(__file__).parent / 'paper.yaml'
FIGURES = 'Figures'
# Options that the paper leaves open, or that say how a run is computed; every other one decides its row.
OPEN = (
    'icasc_order', 'icasc_mask_grad', 'icasc_mask_scale', 'icasc_fast', 'opt_kwargs', 'sched_on_updates', 'warmup_lr',
    'lr_base', 'lr_base_size', 'crop_pct', 'crop_mode', 'crop_padding', 'interpolation', 'train_interpolation',
    'train_crop_mode', 'scale', 'ratio', 'hflip', 'color_jitter', 'mean', 'std', 'amp', 'amp_dtype', 'channels_last',
    'grad_checkpointing', 'grad_accum_steps', 'sync_bn', 'dist_bn', 'resident_data', 'dataset', 'num_classes',
    'class_map', 'config', 'run_dir', 'resume', 'icasc')
# What settings of a segmentation may be averaged over seeds; the first is the model, the others are told in the note.
SETTINGS = (
    'network', 'classifier', 'classifier_model', 'classifier_icasc', 'year', 'train_split', 'train_images',
    'test_split', 'image_size', 'iterations', 'batch_size', 'lr', 'lr_step', 'momentum', 'weight_decay', 'foreground',
    'background', 'weight_seed', 'weight_expand', 'weight_boundary')
NAMES = {'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops',
         'top5_ten_crop': 'top-5 %, ten crops', 'mAP': 'mAP %', 'AUC': 'AUC', 'ks': 'KS margin',
         'ks_probability': 'KS margin at probability', 'mIoU': 'mIoU %'}
SCALE = {'AUC': 0.01}  # the paper's unit, where the runs have per cent
DIGITS = {'AUC': 3}
HEAD = '''# The paper's tables and figures

Written by `timm-icasc paper{folders} --output {name}`. The paper: Wang et al., "Sharpen Focus: Learning with Attention
Separability and Consistency", ICCV 2019.
'''


def _text(mean: float, deviation: Optional[float], sign: str = '', digits: int = 2) -> str:
    return f'{mean:{sign}.{digits}f}' + (f' \u00b1 {deviation:.{digits}f}' if deviation is not None else '')


def _mean(group: Sequence[Run], metric: str) -> Optional[str]:
    """Mean and deviation of a group's runs in the paper's unit; None where no run has the metric."""
    values = [run.measures[metric] * SCALE.get(metric, 1) for run in group if run.measures.get(metric) is not None]
    return _text(*mean_and_deviation(values), digits=DIGITS.get(metric, 2)) if values else None


def _row(table: str, metric: str, **values: Any) -> Dict[str, Any]:
    row = {'table': table, 'network': None, 'model': None, 'method': None, 'in': None, 'measure': NAMES[metric],
           'paper': None, 'gain': None, 'ours': None, 'seeds': None, 'to the baseline': None, 'note': '',
           'needs': None, 'command': None}
    assert values.keys() <= row.keys() | {key for key in values if key.startswith('gain over')}
    return {**row, **values}


def architecture(model: str) -> str:
    """The name of a timm model without the tag of its weights."""
    return model.split('.')[0]


def _title(experiment: Dict[str, Any]) -> str:
    return f"{experiment['tables']}, {experiment['title']}"


def _name(row: Dict[str, Any]) -> str:
    return ', '.join(filter(None, [row['method'], row.get('label')]))


def _difference_of(row: Dict[str, Any], other: Optional[Dict[str, Any]], metric: str) -> Optional[float]:
    """What the paper's value is above that of another row."""
    if other is None or metric == 'ks_probability' or not {metric} <= row['values'].keys() & other['values'].keys():
        return None
    return round(row['values'][metric] - other['values'][metric], DIGITS.get(metric, 2))


def abstract_gain(experiment: Dict[str, Any]) -> Dict[str, Any]:
    """The gain that the paper's abstract gives for a data set: 'gain', 'row', 'against', 'metric', and 'own', the gain
    over the row's own baseline."""
    rows, told = {row['id']: row for row in experiment['rows']}, experiment['abstract']
    row, against, metric = rows[told['row']], rows[told['against']], told['metric']
    return {'row': row, 'against': against, 'metric': metric, 'gain': _difference_of(row, against, metric),
            'own': _difference_of(row, rows[row['baseline']], metric)}


def segmentation_rows(results: Sequence[Dict[str, Any]], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Table 2: one row per attention method and setting, mean and deviation over the segmentation's seeds."""
    table = _title(content)
    groups: Dict[Tuple, Dict[int, Dict[str, Any]]] = {}
    for result in results:
        setting = tuple(str(result.get(key)) for key in SETTINGS)
        groups.setdefault((result['attention'], setting), {})[result['seed']] = result
    rows = []
    for paper in content['rows']:
        row = _row(table, 'mIoU', method=paper['method'], paper=paper['values']['mIoU'], ours='not run',
                   needs=content['needs'],
                   command=f"{content['classifier']} && {content['command'].format(method=paper['method'])}")
        own = [group for (method, _), group in groups.items() if method == paper['method']]
        found = []
        for group in own:
            first = group[min(group)]
            misfits = [f'{key}={first.get(key)}' for key, wanted in content['deciding'].items()
                       if architecture(str(first.get(key))) != wanted]
            note = ', '.join(f'{key}={first.get(key)}' for key in SETTINGS[1:] if first.get(key) is not None)
            found.append({
                **row, 'model': first.get('network'), 'seeds': ' '.join(map(str, sorted(group))),
                'paper': None if misfits else row['paper'],
                'ours': _text(*mean_and_deviation([result['mIoU'] for result in group.values()])),
                'note': f"not the paper\u2019s settings: {', '.join(misfits)}; {note}" if misfits else note})
        rows += found if any(match['paper'] is not None for match in found) else [*found, row]
    return rows


def _difference(group: Sequence[Run], baselines: Sequence[Sequence[Run]], metric: str) -> Optional[str]:
    """Mean difference to the classification loss alone with the same options, seed by seed."""
    for baseline in baselines:
        if baseline[0].signature(True) == group[0].signature(True):
            by_seed = {run.seed: run.measures.get(metric) for run in baseline}
            pairs = [(run.measures[metric] - by_seed[run.seed]) * SCALE.get(metric, 1) for run in group
                     if run.measures.get(metric) is not None and by_seed.get(run.seed) is not None]
            digits = DIGITS.get(metric, 2)
            return f'{_text(*mean_and_deviation(pairs), sign="+", digits=digits)} (n={len(pairs)})' if pairs else None
    return None


def _counts(run: Run, key: str) -> bool:
    """Whether an option tells runs apart; those of ICASC do not matter to a baseline, and a method's name tells two."""
    return key not in (*INCIDENTAL, 'icasc', 'icasc_order', 'icasc_attention') and not (
        run.is_baseline and key.startswith('icasc'))


def _from_a_file(options: Dict[str, Any]) -> bool:
    return bool(options.get('pretrained_path') or options.get('initial_checkpoint'))


def _settled(options: Dict[str, Any], multilabel: bool) -> Dict[str, Any]:
    """Options in one form: what is written in different ways, or left to a default, can be compared."""
    options = dict(options)
    if 'pretrained' in options:
        options['pretrained'] = bool(options['pretrained']) or _from_a_file(options)
    options.update({key: options[key] or 0. for key in ('drop', 'drop_path') if key in options})
    if options.get('lr') is None and {'lr_base', 'batch_size', 'lr_base_size'} <= options.keys():
        options['lr'] = options['lr_base'] * options['batch_size'] / options['lr_base_size']
    if options.get('opt') == 'momentum':  # the paper does not say whether the momentum is Nesterov's, timm's 'sgd'
        options['opt'] = 'sgd'
    if 'icasc_weights' in options and options['icasc_weights'] is None:
        task = MultiLabelICASCTask if multilabel else ICASCTask
        options['icasc_weights'] = list(task.default_config.weights.values())
    return options


def _misfits(run: Run, options: Dict[str, Any], experiment: Dict[str, Any]) -> List[str]:
    """The options that keep a run out of the row of the paper that `options` make."""
    multilabel = 'mAP' in experiment['metrics']
    own, wanted = _settled({**_defaults(), **run.options}, multilabel), _settled(options, multilabel)
    if 'model' in own and (not own.get('pretrained') or _from_a_file(own)):  # no weights that a tag would name
        own['model'], wanted['model'] = architecture(own['model']), architecture(wanted['model'])
    decides = [key for key in own if key in wanted and key not in INCIDENTAL
               and (key not in OPEN or key in experiment.get('fixed', ()))
               and not (run.is_baseline and key.startswith('icasc'))]
    return [key for key in decides if own[key] != wanted[key]
            and own[key] not in experiment['readings'].get(key, ())]


def _departures(run: Run, options: Dict[str, Any]) -> str:
    """Options of a run that differ from `options`."""
    return ', '.join(f'{k}={v}' for k, v in sorted(run.options.items())
                     if _counts(run, k) and k in options and v != options[k])


def _distinguish(groups: Sequence[Sequence[Run]], misfits: Optional[Sequence[Sequence[str]]] = None) -> List[str]:
    """For each group, the options in which it differs from others of the same model, and its misfits."""
    notes = []
    for i, group in enumerate(groups):
        own = group[0]
        rivals = [g[0] for g in groups if g is not group and g[0].options.get('model') == own.options.get('model')]
        keys = {k for rival in rivals for k in {*rival.options, *own.options}
                if rival.options.get(k) != own.options.get(k)}
        keys |= set(misfits[i]) - {'model'} if misfits else set()
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
            ours = _mean(group, metric)
            if ours is not None:
                rows.append(_row(
                    table, metric, model=group[0].options.get('model'), method=group[0].method, ours=ours,
                    seeds=' '.join(str(run.seed) for run in group if run.measures.get(metric) is not None), note=note,
                    **{'to the baseline': None if group[0].is_baseline else _difference(group, baselines, metric)}))
    return rows


@cache
def _defaults() -> Dict[str, Any]:
    """What an option means that an args.yaml lacks."""
    return vars(build_parser().parse_args([]))


@cache
def _parsed(recipe: str, data_dir: str, extra: Tuple[str, ...]) -> Dict[str, Any]:
    return vars(parse_args(['--data-dir', data_dir, '--config', str(RECIPES / recipe), *extra]))


def recipe_options(experiment: Dict[str, Any], method: str, row: Dict[str, Any]) -> Tuple[Dict[str, Any], str]:
    """The options of train_timm.py that make a row of the paper, and as text those beyond the recipe's."""
    extra = [word for name, value in row.get('options', {}).items()
             for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))]
    extra += method.split()
    options = _parsed(row.get('recipe', experiment['recipe']), experiment['data_dir'], tuple(extra))
    return options, ''.join(f' {word}' for word in extra)


def _paper_columns(experiment: Dict[str, Any], row: Dict[str, Any], metric: str) -> Dict[str, Any]:
    """What the paper has of a row and a metric."""
    if metric not in row['values']:
        return {}
    rows = {other['id']: other for other in experiment['rows']}
    columns = {'in': experiment.get('places', {}).get(metric, row['tables']), 'paper': row['values'][metric],
               'gain': _difference_of(row, rows.get(row.get('baseline')), metric)}
    against = experiment.get('against')
    if against:
        other = rows[against['row']]
        inside = against['tables'] in columns['in'].split(', ') and row is not other
        columns[f"gain over {other['network']}"] = _difference_of(row, other, metric) if inside else None
    return columns


def _quoted(experiment: Dict[str, Any], row: Dict[str, Any], metric: str) -> Optional[str]:
    return 'quoted' if row.get('quoted') and metric not in experiment.get('places', {}) else None


def _is_rows(group: Sequence[Run], row: Dict[str, Any]) -> bool:
    return row['method'] in ('baseline' if group[0].is_baseline else group[0].method.split(',')[0])


def _experiment_rows(experiment: Dict[str, Any], runs: Sequence[Run], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    table, metrics = _title(experiment), experiment['metrics']
    groups, result, placed = group_runs(runs), [], []
    baselines = [group for group in groups if group[0].is_baseline]
    nearest: Dict[int, List[str]] = {}
    for row in experiment['rows']:
        shown = {'network': row.get('network'), 'method': _name(row)}
        if row['method'] not in content['methods']:  # of another work
            result += [_row(table, metric, **shown, **_paper_columns(experiment, row, metric),
                            note=', '.join(filter(None, [_quoted(experiment, row, metric), row.get('remark')])))
                       for metric in metrics if metric in row['values']]
            continue
        options, text = recipe_options(experiment, content['methods'][row['method']], row)
        recipe = f"timm_icasc/recipes/{row.get('recipe', experiment['recipe'])}"
        command = content['train'].format(recipe=recipe, options=text, data_dir=experiment['data_dir'])
        command = ' && '.join(filter(None, [command, experiment.get('then')]))
        own = []
        for i, group in enumerate(groups):
            if not _is_rows(group, row):
                continue
            misfits = _misfits(group[0], options, experiment)
            if not misfits:
                own.append(group)
            elif i not in nearest or len(misfits) < len(nearest[i]):
                nearest[i] = misfits
        placed += own
        found = _own_rows(table, own, metrics, baselines, [
            ', '.join(filter(None, [row.get('label'), _departures(group[0], options)])) for group in own])
        for match in found:
            metric = next(metric for metric in metrics if NAMES[metric] == match['measure'])
            note = ', '.join(filter(None, [_quoted(experiment, row, metric), match['note']]))
            result.append({**match, 'network': row['network'], **_paper_columns(experiment, row, metric),
                           'note': note, 'command': command})
        if not found:
            result += [_row(table, metric, **shown, **_paper_columns(experiment, row, metric), model=options['model'],
                            ours='not run', needs=experiment['needs'], command=command,
                            note=_quoted(experiment, row, metric) or '')
                       for metric in metrics if metric in row['values']]
    others = [i for i, group in enumerate(groups) if group not in placed]
    notes = _distinguish([groups[i] for i in others], [nearest.get(i, []) for i in others])
    notes = [', '.join(filter(None, ['not the paper\u2019s settings', note])) for note in notes]
    result += _own_rows(table, [groups[i] for i in others], metrics, baselines, notes)
    told = abstract_gain(experiment)
    note = f"against {told['against']['network']}, {_name(told['against'])}"
    if told['own'] != told['gain']:
        note += f"; over its own baseline {told['own']:+.2f}"
    result.append(_row(table, told['metric'], network=told['row']['network'], method=_name(told['row']),
                       gain=told['gain'], note=note, **{'in': 'abstract'}))
    return result


def class_rows(runs: Sequence[Run], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Table 2 of the appendix: average precision of each class, of the paper's three methods, and of runs."""
    result = []
    for experiment in (e for e in content['experiments'] if 'classes' in e):
        groups = group_runs([run for run in runs if run.data in experiment['names']])
        rows = {row['id']: row for row in experiment['rows']}
        own = {}
        for row in experiment['rows']:
            options, _ = recipe_options(experiment, content['methods'][row['method']], row)
            own[row['id']] = next((group for group in groups if _is_rows(group, row)
                                   and not _misfits(group[0], options, experiment)), ())
        metrics = [name for name in experiment['rows'][0]['values'] if name.startswith('AP_')]
        for metric in (*metrics, 'mAP'):
            line = {'table': experiment['classes'], 'class': metric.removeprefix('AP_')}
            for row in experiment['rows']:
                line[row['method']] = row['values'][metric]
                if 'baseline' in row:
                    line[f"{row['method']}, gain"] = _difference_of(row, rows[row['baseline']], metric)
            line.update({f"{row['method']}, ours": _mean(own[row['id']], metric) for row in experiment['rows']})
            result.append(line)
    return result


def paper_rows(runs: Sequence[Run], content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Tables 3 to 9 as one list of rows.

    Args:
        runs: Finished runs, of whatever data and model.
        content: Of paper.yaml.

    Returns:
        Rows with 'table', 'network' (the paper's name), 'model', 'method', 'in' (which tables have the value),
        'measure', 'paper' (its value, or None), 'gain' (over the row's own baseline, of the paper's values), 'ours'
        (mean and standard deviation over seeds), 'seeds', 'to the baseline' (mean difference seed by seed), 'note',
        'needs' and 'command'.
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
    """Table 1 and Table 1 of the appendix: the paper's settings, and below them the recipes'."""
    rows = []
    for experiment in content['experiments']:
        head = {'table': content['settings']['title'], 'data set': experiment['title']}
        rows.append({**head, 'settings': 'the paper\u2019s', **experiment['settings']})
        for recipe in experiment['recipes']:
            options = _parsed(recipe, experiment['data_dir'], ())
            if options['sched'] == 'multistep':
                epochs = [milestone - 1 for milestone in options['decay_milestones']]  # timm names the epoch after it
                schedule = f"/{1 / options['decay_rate']:g} after {' and '.join(map(str, epochs))}"
            else:
                schedule = f"{options['sched']}, one cycle"
            padding = options['crop_padding']
            rows.append({
                **head, 'settings': recipe, 'network': options['model'], 'classes': options['num_classes'],
                'pixels': options['img_size'], 'images': None, 'training images': None, 'test images': None,
                'epochs': options['epochs'], 'batch size': options['batch_size'], 'learning rate': options['lr'],
                'schedule': schedule, 'optimiser': 'SGD', 'momentum': options['momentum'],
                'weight decay': f"{options['weight_decay']:.0e}".replace('e-0', 'e-'),
                'initial weights': 'ImageNet' if options['pretrained'] else 'random',
                'augmentation': f'padded by {padding}, crop, mirror' if padding else 'random resized crop, mirror'})
    return rows


def figure_rows(content: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The figures: what each shows, whether there is one of other models or data here, what the paper's takes."""
    return [{'table': FIGURES, 'figure': figure['figure'], 'shows': figure['shows'], 'needs': figure['needs'],
             'of VOC 2007': figure['here'], 'command': figure['command']} for figure in content['figures']]


def _cell(row: Dict[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, float) and 'settings' not in row:
        digits = next((DIGITS[metric] for metric in DIGITS if NAMES[metric] == row.get('measure')), 2)
        return f"{value:{'+' if 'gain' in key else ''}.{digits}f}"
    return '' if value is None else str(value)


def _cells(rows: Sequence[Dict[str, Any]]) -> List[Dict[str, str]]:
    """Rows as text, without the columns that are empty throughout."""
    hidden = ('table', 'command') + (() if rows[0]['table'] == FIGURES else ('needs',))
    keys = [k for k in dict.fromkeys(key for row in rows for key in row) if k not in hidden
            and any(row.get(k) not in (None, '') for row in rows)]
    more = [k for k in keys if k.startswith('gain over')]  # of one table alone
    if more:
        keys = [k for k in keys if k not in more]
        keys[keys.index('gain') + 1:keys.index('gain') + 1] = more
    return [{k: _cell({k: None, **row}, k) for k in keys} for row in rows]


def _show(rows: Sequence[Dict[str, Any]], content: Dict[str, Any], markdown: bool) -> str:
    told = {_title(e): f"Here in its place: {e['here']}"
            for e in (content['segmentation'], *content['experiments']) if e.get('here')}
    told[content['settings']['title']] = content['settings']['note']
    parts = ['\n'.join(f'- {note}' for note in content['notes'])]

    def add(title: str, own: Sequence[Dict[str, Any]]) -> None:
        cells = _cells(own)
        if markdown:
            lines = [f"| {' | '.join(cells[0])} |", '|' + '---|' * len(cells[0])]
            lines += [f"| {' | '.join(row.values())} |" for row in cells]
            parts.append(f'## {title}\n\n' + '\n'.join(lines))
        else:
            parts.append(f'{title}\n{format_table(cells)}')

    for title in dict.fromkeys(row['table'] for row in rows):
        own = [row for row in rows if row['table'] == title]
        add(title, own)
        if title != FIGURES:
            parts.extend(f'Not run: needs {needs}.' for needs in dict.fromkeys(
                row['needs'] for row in own if row.get('needs')))
        if title in told:
            parts.append(told[title])
        commands = dict.fromkeys(row['command'] for row in own if row.get('command'))
        if commands:
            parts.append('\n'.join(['```bash', *commands, '```'] if markdown else [f'  {c}' for c in commands]))
    contradictions = content['contradictions']
    parts.append(f"{'## ' * markdown}{contradictions['title']}" + '\n\n'[:1 + markdown]
                 + '\n'.join(f'- {sentence}' for sentence in contradictions['sentences']))
    add(content['open']['title'], [{'table': content['open']['title'], **row} for row in content['open']['rows']])
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
            *paper_rows(runs, content), *class_rows(runs, content), *figure_rows(content)]
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
