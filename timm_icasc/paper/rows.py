"""The tables of the paper as rows, finished runs beside its values; the values are in paper.yaml."""
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs.find import group_runs
from ..runs.folder import Run
from ..runs.tables import mean_and_deviation, mean_sd, paired_difference
from .matching import (
    SETTINGS,
    architecture,
    departures,
    distinguish,
    has_method_of,
    misfits_of,
    parsed_recipe,
    recipe_options,
)

__all__ = ['PAPER', 'abstract_gain', 'class_rows', 'figure_rows', 'paper_rows', 'segmentation_rows', 'setting_rows']

PAPER = Path(__file__).parent / 'paper.yaml'

FIGURES = 'Figures'

NAMES = {
    'top1': 'top-1 %', 'top5': 'top-5 %', 'top1_ten_crop': 'top-1 %, ten crops',
    'top5_ten_crop': 'top-5 %, ten crops', 'mAP': 'mAP %', 'AUC': 'AUC', 'ks': 'KS margin',
    'ks_probability': 'KS margin at probability', 'mIoU': 'mIoU %'}

SCALE = {'AUC': 0.01}  # the paper's unit, where the runs have per cent

DIGITS = {'AUC': 3}


def _mean(group: Sequence[Run], metric: str) -> str | None:
    """Mean and deviation of a group's runs in the paper's unit; None where no run has the metric."""
    values = [
        run.measures[metric] * SCALE.get(metric, 1) for run in group
        if run.measures.get(metric) is not None]
    return mean_sd(*mean_and_deviation(values), DIGITS.get(metric, 2)) if values else None


def _row(table: str, metric: str, **values: Any) -> dict[str, Any]:
    row = {
        'table': table, 'network': None, 'model': None, 'method': None, 'in': None, 'measure': NAMES[metric],
        'paper': None, 'gain': None, 'ours': None, 'seeds': None, 'to the baseline': None, 'note': '',
        'needs': None, 'command': None}
    assert values.keys() <= row.keys() | {key for key in values if key.startswith('gain over')}
    return {**row, **values}


def title_of(experiment: dict[str, Any]) -> str:
    return f"{experiment['tables']}, {experiment['title']}"


def _name(row: dict[str, Any]) -> str:
    return ', '.join(filter(None, [row['method'], row.get('label')]))


def _difference_of(row: dict[str, Any], other: dict[str, Any] | None, metric: str) -> float | None:
    """What the paper's value is above that of another row."""
    if other is None or metric == 'ks_probability' or not {metric} <= row['values'].keys() & other['values'].keys():
        return None
    return round(row['values'][metric] - other['values'][metric], DIGITS.get(metric, 2))


def abstract_gain(experiment: dict[str, Any]) -> dict[str, Any]:
    """The gain that the paper's abstract gives for a data set.

    Returns:
        'gain', 'row', 'against', 'metric', and 'own', the gain over the row's own baseline.
    """
    rows, told = {row['id']: row for row in experiment['rows']}, experiment['abstract']
    row, against, metric = rows[told['row']], rows[told['against']], told['metric']
    return {
        'row': row, 'against': against, 'metric': metric, 'gain': _difference_of(row, against, metric),
        'own': _difference_of(row, rows[row['baseline']], metric)}


def _short(sha256: str) -> str:
    return str(sha256)[:12]


def segmentation_rows(
        results: Sequence[dict[str, Any]],
        content: dict[str, Any],
) -> list[dict[str, Any]]:
    """Table 2: one row per attention method and setting, mean and deviation over the segmentation's seeds."""
    table = title_of(content)
    groups: dict[tuple, dict[int, dict[str, Any]]] = {}
    for result in results:
        setting = tuple(str(result.get(key)) for key in SETTINGS)
        group = groups.setdefault((result['attention'], setting), {})
        if result['seed'] in group:
            warnings.warn(
                f"'{group[result['seed']]['folder']}' and '{result['folder']}' are the same segmentation with the same "
                f'seed; the second counts', stacklevel=2)
        group[result['seed']] = result
    rows = []
    for n, paper in enumerate(content['rows']):
        command = content['command'].format(method=paper['method'])
        if n == 0:  # one classifier, for the maps of all
            command = f"{content['classifier']} && {command}"
        row = _row(
            table, 'mIoU', method=paper['method'], paper=paper['values']['mIoU'], ours='not run',
            needs=content['needs'], command=command)
        own = [group for (method, _), group in groups.items() if method == paper['method']]
        found = []
        for group in own:
            first = group[min(group)]
            misfits = [
                f'{key}={first.get(key)}' for key, wanted in content['deciding'].items()
                if architecture(str(first.get(key))) != wanted]
            note = ', '.join(
                f'{key}={_short(first[key]) if key == "backbone_weights" else first[key]}'
                for key in SETTINGS[1:] if first.get(key) is not None)
            found.append({
                **row, 'model': first.get('network'), 'seeds': ' '.join(map(str, sorted(group))),
                'paper': None if misfits else row['paper'],
                'ours': mean_sd(*mean_and_deviation([result['mIoU'] for result in group.values()])),
                'note': f"not the paper\u2019s settings: {', '.join(misfits)}; {note}" if misfits else note})
        rows += found if any(match['paper'] is not None for match in found) else [*found, row]
    return rows


def _difference(
        group: Sequence[Run],
        baselines: Sequence[Sequence[Run]],
        metric: str,
) -> str | None:
    """Mean difference to the classification loss alone with the same options, seed by seed."""
    for baseline in baselines:
        if baseline[0].signature(True) == group[0].signature(True):
            values = [
                {run.seed: run.measures.get(metric) for run in runs} for runs in (group, baseline)]
            pairs = [SCALE.get(metric, 1) * value for value in paired_difference(*values).values()]
            if not pairs:
                return None
            return f"{mean_sd(*mean_and_deviation(pairs), DIGITS.get(metric, 2), '+')} (n={len(pairs)})"
    return None


def _own_rows(
        table: str,
        groups: Sequence[Sequence[Run]],
        metrics: Sequence[str],
        baselines: Sequence[Sequence[Run]],
        notes: Sequence[str],
) -> list[dict[str, Any]]:
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


def _paper_columns(experiment: dict[str, Any], row: dict[str, Any], metric: str) -> dict[str, Any]:
    """What the paper has of a row and a metric."""
    if metric not in row['values']:
        return {}
    rows = {other['id']: other for other in experiment['rows']}
    columns = {
        'in': experiment.get('places', {}).get(metric, row['tables']), 'paper': row['values'][metric],
        'gain': _difference_of(row, rows.get(row.get('baseline')), metric)}
    against = experiment.get('against')
    if against:
        other = rows[against['row']]
        inside = against['tables'] in columns['in'].split(', ') and row is not other
        columns[f"gain over {other['network']}"] = _difference_of(row, other, metric) if inside else None
    return columns


def _quoted(row: dict[str, Any], metric: str) -> str:
    return 'quoted' if metric in row.get('quoted', ()) else ''


def _experiment_rows(
        experiment: dict[str, Any],
        runs: Sequence[Run],
        content: dict[str, Any],
) -> list[dict[str, Any]]:
    table, metrics = title_of(experiment), experiment['metrics']
    groups, result, placed = group_runs(runs), [], []
    baselines = [group for group in groups if group[0].is_baseline]
    nearest: dict[int, list[str]] = {}
    for row in experiment['rows']:
        shown = {'network': row.get('network'), 'method': _name(row)}
        if row['method'] not in content['methods']:  # of another work
            result += [
                _row(
                    table, metric, **shown, **_paper_columns(experiment, row, metric),
                    note=', '.join(filter(None, [_quoted(row, metric), row.get('remark')])))
                for metric in metrics if metric in row['values']]
            continue
        options, text = recipe_options(experiment, content['methods'][row['method']], row)
        recipe = row.get('recipe', experiment['recipe']).removesuffix('.yaml')
        command = content['train'].format(recipe=recipe, options=text, data_dir=experiment['data_dir'])
        command = ' && '.join(filter(None, [command, experiment.get('then')]))
        own = []
        for i, group in enumerate(groups):
            if not has_method_of(group, row):
                continue
            misfits = misfits_of(group[0], options, experiment)
            if not misfits:
                own.append(group)
            elif i not in nearest or len(misfits) < len(nearest[i]):
                nearest[i] = misfits
        placed += own
        found = _own_rows(table, own, metrics, baselines, [
            ', '.join(filter(None, [row.get('label'), departures(group[0], options)])) for group in own])
        for match in found:
            metric = next(metric for metric in metrics if NAMES[metric] == match['measure'])
            note = ', '.join(filter(None, [_quoted(row, metric), match['note']]))
            result.append({
                **match, 'network': row['network'], **_paper_columns(experiment, row, metric),
                'note': note, 'command': command})
        if not found:
            result += [
                _row(
                    table, metric, **shown, **_paper_columns(experiment, row, metric), model=options['model'],
                    ours='not run', needs=experiment['needs'], command=command,
                    note=_quoted(row, metric))
                for metric in metrics if metric in row['values']]
    others = [i for i, group in enumerate(groups) if group not in placed]
    notes = distinguish([groups[i] for i in others], [nearest.get(i, []) for i in others])
    notes = [', '.join(filter(None, ['not the paper\u2019s settings', note])) for note in notes]
    result += _own_rows(table, [groups[i] for i in others], metrics, baselines, notes)
    told = abstract_gain(experiment)
    note = f"against {told['against']['network']}, {_name(told['against'])}"
    if told['own'] != told['gain']:
        note += f"; over its own baseline {told['own']:+.2f}"
    result.append(_row(
        table, told['metric'], network=told['row']['network'], method=_name(told['row']),
        gain=told['gain'], note=note, **{'in': 'abstract'}))
    return result


def class_rows(runs: Sequence[Run], content: dict[str, Any]) -> list[dict[str, Any]]:
    """Table 2 of the appendix: average precision of each class, of the paper's three methods, and of runs."""
    result = []
    for experiment in (e for e in content['experiments'] if 'classes' in e):
        groups = group_runs([run for run in runs if run.data in experiment['names']])
        rows = {row['id']: row for row in experiment['rows']}
        own = {}
        for row in experiment['rows']:
            options, _ = recipe_options(experiment, content['methods'][row['method']], row)
            fitting = [
                group for group in groups if has_method_of(group, row)
                and not misfits_of(group[0], options, experiment)]
            if len(fitting) > 1:
                found = ' and '.join(f"'{group[0].folder}'" for group in fitting)
                warnings.warn(
                    f"{experiment['classes']}: {found} are runs of different options, each of which is a reading "
                    f'of the paper; the table has those of the first.', stacklevel=2)
            own[row['id']] = fitting[0] if fitting else ()
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


def paper_rows(runs: Sequence[Run], content: dict[str, Any]) -> list[dict[str, Any]]:
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
        result += _own_rows(
            f'not in the paper, {name}', groups, ('top1', 'mAP', 'AUC'), baselines,
            distinguish(groups))
    return result


def setting_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Table 1 and Table 1 of the appendix: the paper's settings, and below them the recipes'."""
    rows = []
    for experiment in content['experiments']:
        head = {'table': content['settings']['title'], 'data set': experiment['title']}
        rows.append({**head, 'settings': 'the paper\u2019s', **experiment['settings']})
        for recipe in experiment['recipes']:
            options = parsed_recipe(recipe, experiment['data_dir'], ())
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


def figure_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures: what each shows, whether there is one of other models or data here, what the paper's takes."""
    return [{
        'table': FIGURES, 'figure': figure['figure'], 'shows': figure['shows'], 'needs': figure['needs'],
        'of VOC 2007': figure['here'], 'command': figure['command']} for figure in content['figures']]
