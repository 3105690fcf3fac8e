"""The text of a model's card: hub_cards/NAME.yaml, NAME.json and NAME/ through card.md.j2."""
import statistics
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from ..errors import HubError, one_line
from ..evaluation.measures import Measure, measure_of
from ..foreign_files import read_json, read_yaml
from ..foreign_text import code_span, fenced, markdown_text
from ..hub.model_folder import FIGURE, METADATA_KEY, build_model, plugin_of, read_config
from ..hub.tags import CARDS, TEMPLATE, WEIGHT_TAGS
from ..objective.config import TERMS
from ..paper.matching import architecture, recipe_options
from ..paper.rows import PAPER, abstract_gain
from ..runs.folder import BEST, Run
from ..runs.tables import mean_and_deviation, mean_sd, paired_difference

__all__ = ['check_written', 'read_written', 'render', 'render_run', 'render_sources']

ATTENTION = {  # column of the table -> key of the metrics
    **{term.title: term.name for term in TERMS}, 'overlap inner': 'overlap_inner', 'overlap last': 'overlap_last',
    'zero maps': 'zero_maps'}

WRITTEN = {
    'title', 'description', 'license', 'dataset', 'paper', 'shipped', 'shipped_run', 'half', 'twin', 'figure', 'limits'}

RUN_LIMITS = [
    'The results are of the images that the run was validated on. They were not used for training or to choose the '
    'epoch, but may have been looked at while its options were chosen.',
]

BEST_LIMITS = [
    'The weights are those of the epoch that did best on the images that the run was validated on. The results are of '
    'these same images, which makes them look better than those of new images would.',
]


def _mean(values: list[float | None], digits: int) -> str:
    """'mean +- deviation' of a column, '-' where a run has no such value."""
    return '-' if None in values or not values else mean_sd(*mean_and_deviation(values), digits)


def _rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of the table per method, in the order of the runs."""
    rows, key = [], measure_of(runs[0]['metrics']).key
    for method in dict.fromkeys(run['method'] for run in runs):
        group = sorted((run for run in runs if run['method'] == method), key=lambda run: run['seed'])
        rows.append({
            'method': method, 'seeds': [run['seed'] for run in group],
            'each': [f"{run['metrics'][key]:.2f}" for run in group],
            'measure': _mean([run['metrics'][key] for run in group], 2),
            'attention': [_mean([run['metrics'].get(key) for run in group], 3) for key in ATTENTION.values()]})
    return rows


def _differences(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Each ICASC method minus the baseline (the method that is not ICASC), over the seeds that both have."""
    key = measure_of(runs[0]['metrics']).key
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        values.setdefault(run['method'], {})[run['seed']] = run['metrics'][key]
    baseline = next((run['method'] for run in runs if not run['method'].startswith('ICASC')), None)
    rows = []
    for method in (name for name in values if name != baseline):
        deltas = list(paired_difference(values[method], values.get(baseline, {})).values())
        if not deltas:
            continue
        signs = [f'{word} in {count}' for word, count in (
            ('higher', sum(d > 0 for d in deltas)), ('equal', sum(d == 0 for d in deltas)),
            ('lower', sum(d < 0 for d in deltas))) if count]
        rows.append({
            'method': method, 'baseline': baseline,
            'measure': mean_sd(*mean_and_deviation(deltas), sign='+'),
            'verdict': f" ({', '.join(signs)} of {len(deltas)} runs)"})
    return rows


def _paper(model: str, dataset: str, measure: Measure) -> dict[str, Any]:
    """What paper.yaml knows of a data set: rows of this architecture, and the gain; nothing of other data sets."""
    content = read_yaml(PAPER)
    found = next((e for e in content['experiments'] if dataset in e['names'] and e['metrics'][0] == measure.key), None)
    if found is None:
        return {'rows': [], 'gain': None}
    known = [
        row for row in found['rows'] if measure.key in row['values'] and row['method'] in content['methods']
        and architecture(recipe_options(found, content['methods'][row['method']], row)[0]['model'])
        == architecture(model)]
    told = abstract_gain(found)
    row, against = told['row'], told['against']
    return {
        'rows': [{
            'method': ', '.join(filter(None, [
                row['method'].replace('baseline', 'cross-entropy'), row.get('label')])),
            'tables': row['tables'], 'quoted': bool(row.get('quoted')),
            'measure': f"{row['values'][measure.key]:.2f}"} for row in known],
        'gain': f"{told['gain']:+.2f} on {found['title']}: {row['network']} with {row['method']} against "
                f"{against['network']} with {against['method'].replace('baseline', 'cross-entropy')}"}


def _metadata(
        name: str,
        written: dict[str, Any],
        config: dict[str, Any],
        results: dict[str, Any],
        method: str,
) -> str:
    """The YAML block that the Hub reads; its model-index fills the leaderboards."""
    dataset, runs = written['dataset'], [run for run in results['runs'] if run['method'] == method]
    measure = measure_of(runs[0]['metrics'])
    evaluated = [EvalResult(
        task_type='image-classification', dataset_type=dataset['hub_id'] or dataset['name'],
        dataset_name=dataset['name'], dataset_split=results['split'], metric_type=measure.hub_type,
        metric_name=f'{measure.name}, mean of {len(runs)} seeds' if len(runs) > 1 else measure.name,
        metric_value=round(statistics.mean(run['metrics'][measure.key] for run in runs), 2))]
    icasc = ['icasc', 'attention'] if config[METADATA_KEY]['icasc'] else []
    return ModelCardData(
        license=written['license'], library_name='timm', pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *icasc], datasets=[dataset['hub_id']] if dataset['hub_id'] else None,
        metrics=[measure.hub_type], model_name=name, eval_results=evaluated).to_yaml()


def check_written(name: str, written: dict[str, Any]) -> None:
    """Raise HubError where what people say of a model lacks something, or says something that no card tells."""
    unknown, lacking = sorted(written.keys() - WRITTEN), sorted(WRITTEN - written.keys())
    if unknown or lacking:
        raise HubError(
            f"{name}: the card's YAML "
            f"{f'lacks {lacking[0]!r}' if lacking else f'has the unknown key {unknown[0]!r}'}; "
            f"its keys are {', '.join(sorted(WRITTEN))}.")
    if not isinstance(written['dataset'], dict):
        raise HubError(f"{name}: the card's YAML has no 'name: value' lines below 'dataset'.")
    if not isinstance(written['half'], bool):
        raise HubError(f"{name}: 'half' in the card's YAML is {written['half']!r}, and must be true or false.")


def _stages(folder: Path, model: nn.Module) -> list[int] | None:
    """What the example of feature maps names as `out_indices`: nothing where timm's own, the first five, fit the model.

    None where timm makes no feature maps of it.
    """
    try:
        build_model(folder, features_only=True)
    except (IndexError, AssertionError):  # it has fewer
        return list(range(len(model.feature_info)))
    except (RuntimeError, AttributeError, TypeError):
        return None
    return []


def render(
        folder: Path,
        written: dict[str, Any],
        results: dict[str, Any],
        name: str,
        load: str,
        figure: bool = True,
) -> str:
    """The text of a card.

    Args:
        folder: Folder with config.json and, where there is one, attention.png.
        written: What people say of the model; see `hub_cards/*.yaml`.
        results: Evaluated runs: 'dataset', 'split', 'images', 'attention_images', 'runs'.
        name: Name of the model, in the Hub's leaderboards.
        load: What `timm.create_model` takes.
        figure: Whether to show attention.png, where there is one.

    Raises:
        HubError: A value that the card needs is missing, or one is there that it does not know.
    """
    check_written(name, written)
    config = read_config(folder, name)
    ours, pretrained = config[METADATA_KEY], config['pretrained_cfg']
    model = build_model(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(CARDS), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True)
    # Of what no author has written as Markdown: names of folders, what a run and its config.json say.
    environment.filters.update(text=markdown_text, code=code_span, fenced=fenced, quoted=repr)
    try:
        measure = measure_of(results['runs'][0]['metrics'])
        context = {
            **{key: ours[key] for key in (
                'method', 'icasc', 'layers', 'command', 'commit', 'seed', 'epochs', 'versions', 'source', 'sha256',
                'tensors_sha256')},
            **{key: pretrained[key] for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
            **written, 'dataset': {
                'train_images': ours['train_images'], 'val_images': ours['val_images'],
                **written['dataset']},
            'architecture': config['architecture'], 'num_classes': config['num_classes'],
            'parameters': sum(p.numel() for p in model.parameters()), 'stages': _stages(folder, model),
            'topk': min(3, config['num_classes']),
            'plugin': plugin_of(config['architecture']), 'load': load, 'by_tag': ':' not in load,
            'measure': measure, 'results': results,
            'published': _paper(config['architecture'], results['dataset'], measure),
            'rows': _rows(results['runs']), 'attention': list(ATTENTION), 'differences': _differences(results['runs']),
            'several_seeds': len({run['seed'] for run in results['runs']}) > 1,
            'figure': written['figure'] if figure and (folder / FIGURE).is_file() else None,
        }
        body = environment.get_template(TEMPLATE).render(context)
        head = _metadata(name, written, config, results, ours['method'])
    except jinja2.TemplateNotFound as e:
        raise HubError(f"{name}: no '{CARDS / TEMPLATE}'; install timm_icasc again.") from e
    except (jinja2.UndefinedError, KeyError) as e:
        raise HubError(f'{name}: the card lacks a value: {e}.') from e
    return f'---\n{head.strip()}\n---\n{body}'


def read_written(path: Path) -> dict[str, Any]:
    """What people say of a model."""
    if not path.is_file():
        raise HubError(f"no file '{path}': people write it, with the keys {', '.join(sorted(WRITTEN))}.")
    written = read_yaml(path)
    if not isinstance(written, dict):
        raise HubError(f"'{path}' holds no 'key: value' lines; its keys are {', '.join(sorted(WRITTEN))}.")
    return written


def _read_sources(path: Path) -> tuple:
    written, file = read_written(path), path.with_suffix('.json')
    try:
        return written, read_json(file)
    except (OSError, ValueError) as e:
        raise HubError(
            f"'{file}': {one_line(e, 400)}; timm-icasc card {path} --runs ... makes the results.") from e


def render_sources(path: Path, load: str | None = None, figure: bool = True) -> str:
    """The card of hub_cards/NAME.yaml, with NAME.json and NAME/ beside it; `load`, `figure` as for `render`."""
    written, results = _read_sources(path)
    own = path.stem if path.stem in WEIGHT_TAGS else f'local-dir:{path.stem}'
    return render(path.with_suffix(''), written, results, path.stem, load or own, figure)


def render_run(run: Run, siblings: list[Run], folder: Path, repo_id: str) -> str:
    """The card of a single run, from what it noted down and nothing else.

    Args:
        run: What is published.
        siblings: Every run of the same comparison, this one included, in the order of training.
        folder: What `export` has made of it.
        repo_id: 'OWNER/NAME'.
    """
    config, best = read_config(folder, repo_id), run.weights == BEST
    data = {'name': run.model['dataset'], 'hub_id': None, 'description': None}
    written = {
        'title': repo_id.split('/')[-1], 'dataset': data, 'shipped': None, 'shipped_run': None, 'half': False,
        'twin': None,
        'license': config['pretrained_cfg']['license'],
        'description': f"{code_span(config['architecture'])}, trained on {markdown_text(data['name'])} with "
                       f'{markdown_text(run.method)} by `timm-icasc train`.',
        'paper': 'its protocol was not necessarily followed; see the training command.',
        'limits': (BEST_LIMITS if best else RUN_LIMITS) + (
            ['One run: how much its results depend on the seed is not known.'] if len(siblings) < 3 else []),
        'figure': 'Validation images; framed is the map of the true class, beside it that of the most confusing one.',
    }
    results = {
        'dataset': data['name'], 'split': run.model['val_split'], 'images': run.model['val_images'],
        'attention_images': run.model['attention_images'],
        'weights': 'the best epoch' if best else 'the last epoch',
        'runs': [
            {'method': sibling.method, 'seed': sibling.results['seed'], 'metrics': sibling.metrics}
            for sibling in siblings]}
    return render(folder, written, results, repo_id.split('/')[-1], f'hf-hub:{repo_id}')
