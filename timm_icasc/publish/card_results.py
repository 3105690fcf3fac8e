"""What a card reports: runs evaluated again, NAME.json, and the weights and configuration that NAME ships."""
import argparse
import math
from pathlib import Path
from typing import Any

from ..errors import HubError, first_of
from ..evaluation.checkpoint import Checkpoint, load_checkpoint
from ..evaluation.collect import evaluate_checkpoint
from ..evaluation.measures import summarise
from ..evaluation.options import default_options
from ..hub.model_folder import FIGURE, half_precision, tensors_sha256
from ..runs.folder import ARGUMENTS, Run
from ..runs.tables import write_json
from .card import check_written, read_written
from .export import export, open_measured_runs

__all__ = ['evaluate_runs', 'write_results']


def _measured_images(run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    """What NAME.json says of the images that a run is evaluated on."""
    images = len(checkpoint.dataset)
    return {
        'dataset': run.model['dataset'], 'split': checkpoint.args.val_split, 'images': images,
        'attention_images': images if checkpoint.layers else 0}


def _evaluate(
        run: Run,
        checkpoint: Checkpoint,
        options: argparse.Namespace,
        half: bool,
) -> dict[str, Any]:
    """One run's part of NAME.json: what `timm-icasc eval` measures of the run."""
    weights = checkpoint.model.state_dict()
    if half:
        weights = half_precision(weights)
        checkpoint.model.load_state_dict(weights)
    values = summarise(evaluate_checkpoint(checkpoint, options))
    return {
        'method': run.method, 'icasc': run.model['icasc'],
        **{name: run.results[name] for name in ('seed', 'epochs', 'command', 'commit', 'versions', 'device')},
        'tensors_sha256': tensors_sha256(weights),
        'metrics': {name: round(value, 6) for name, value in sorted(values.items()) if math.isfinite(value)}}


def _check_rows(runs: list[Run]) -> None:
    """Raise HubError where runs of one method, which are a row of the table, differ in more than the seed."""
    rows: dict[str, dict[int, Run]] = {}
    for run in runs:
        row = rows.setdefault(run.method, {})
        first = next(iter(row.values()), run)
        own, other = (each.common_options(each.is_baseline) for each in (run, first))
        differ = sorted(name for name in own.keys() & other.keys() if own[name] != other[name])
        if differ or run.seed in row:
            beside = first if differ else row[run.seed]
            why = f"with other options ({first_of(differ)})" if differ else f'of seed {run.seed}'
            raise HubError(
                f"'{beside.folder}' and '{run.folder}' are both {run.method}, {why}; one table cannot hold both.")
        row[run.seed] = run


def _check_table(
        runs: list[Run],
        checkpoints: list[Checkpoint],
        images: list[dict[str, Any]],
) -> None:
    """Raise HubError where runs are of other images, or their maps of other networks or layers."""
    first = runs[0].folder
    for run, checkpoint, own in zip(runs, checkpoints, images, strict=True):
        maps = [one.map_settings for one in (checkpoints[0], checkpoint)]
        if maps[0] != maps[1]:
            told = ' and '.join(', '.join(settings.values()) or 'no layers' for settings in maps)
            raise HubError(
                f"'{first}' and '{run.folder}' have different maps ({told}); one table cannot hold both. Train both "
                f'with the same `icasc_layers`.')
        if own != images[0]:
            raise HubError(
                f"'{run.folder}' and '{first}' have other validation images ({own} and {images[0]}); one table cannot "
                f'hold both.')


def evaluate_runs(runs: list[Run], split: str | None = None, half: bool = False) -> dict[str, Any]:
    """Evaluate the last weights of runs on the same images.

    Args:
        runs: Finished runs, of one data set and one way to evaluate.
        split: Of the data set; by default the one that the runs were validated on.
        half: Whether to evaluate the weights as they are in half precision.

    Returns:
        'dataset', 'split', 'images', 'attention_images', and under 'runs', for each: method, ICASC parameters, seed,
        command, commit, versions, hash of the weights, and the metrics.

    Raises:
        HubError: A run is incomplete, two were not evaluated on the same images or at the same layers, or two of one
            method have other options, or the same seed.
        ICASCError: A checkpoint or its data set cannot be read.
    """
    for run in runs:
        if not run.arguments:
            raise HubError(f"'{run.folder}' has no {ARGUMENTS}, which says how it was evaluated.")
        run.check_last_epoch()
    _check_rows(runs)
    options = default_options()
    options.val_split = split
    checkpoints = [load_checkpoint(str(run.folder), options) for run in runs]
    pairs = list(zip(runs, checkpoints, strict=True))
    images = [_measured_images(*pair) for pair in pairs]
    _check_table(runs, checkpoints, images)
    return {**images[0], 'runs': [_evaluate(*pair, options, half) for pair in pairs]}


def _shipped(
        path: Path,
        written: dict[str, Any],
        found: list[tuple[Path, Run]],
) -> tuple[Path, Run]:
    """The run that a card ships, and its folder."""
    shipped = written['shipped_run']
    chosen = [pair for pair in found if {'method': pair[1].method, 'seed': pair[1].results['seed']} == shipped]
    if len(chosen) != 1:
        raise HubError(f"'{path}': shipped_run {shipped} is {len(chosen)} of these runs, and must be one.")
    return chosen[0]


def write_results(paths: list[Path], folders: list[Path]) -> None:
    """Write NAME.json from run directories, and the weights and configuration that NAME ships.

    Args:
        paths: Of hub_cards/NAME.yaml, each of which names the run that ships: several cards of the same runs.
        folders: Of finished runs.

    Raises:
        HubError: A YAML names none of the runs, or as of `evaluate_runs`.
    """
    found = [(folder, run) for folder in folders for run in open_measured_runs(folder)]
    cards = [(path, read_written(path)) for path in paths]
    for path, written in cards:
        check_written(path.stem, written)
    shipped = [_shipped(path, written, found) for path, written in cards]
    evaluated: dict[tuple[str | None, bool], dict[str, Any]] = {}
    for (path, written), (folder, run) in zip(cards, shipped, strict=True):
        how = written['dataset'].get('split'), written['half']
        if how not in evaluated:
            evaluated[how] = evaluate_runs([run for _, run in found], *how)
        write_json(path.with_suffix('.json'), evaluated[how])
        figure = folder / FIGURE if written['figure'] and (folder / FIGURE).is_file() else None
        tag = path.stem.partition('.')[2]
        export(run, path.with_suffix(''), tag, written['license'], figure=figure, half=written['half'])
