"""The results of a card: finished runs, evaluated once more on their validation images."""
import math
from typing import Any

import torch
from tqdm import tqdm

from ..errors import HubError
from ..evaluation.separability import evaluate_attention
from ..hub.model_folder import tensors_sha256
from ..training.arguments import parse_args
from ..training.job import icasc_config, set_up, set_up_device
from .export import Run, load_weights

__all__ = ['evaluate_runs']


def _evaluate(run: Run) -> dict[str, Any]:
    """Accuracy of the run's published weights, and how well their attention tells classes apart."""
    options = run.folder / 'args.yaml'
    if not options.is_file():
        raise HubError(f"'{run.folder}' has no args.yaml, which says how it was evaluated.")
    args = parse_args(['--config', str(options), '--no-pretrained', '--initial-checkpoint', '', '--no-icasc-fast'])
    args.icasc_compare, args.icasc, args.pretrained_path = False, run.model['icasc'] is not None, None
    device = set_up_device(args)
    job = set_up(args, device)
    weights = load_weights(run)
    job.model.load_state_dict(weights)
    job.model.eval()
    evaluator = job.create_evaluator()
    with torch.no_grad():
        for images, target in tqdm(job.loader_val, desc=str(run.folder), leave=False, disable=None):
            images, target = images.to(device), target.to(device)
            with job.autocast():
                output = job.model(images)
            evaluator.update(output, target)
    metrics, attention_images = dict(evaluator.compute()), 0
    if job.attention_loader is not None:
        attention = tqdm(job.attention_loader, desc='attention', leave=False, disable=None)
        metrics.update(evaluate_attention(job.model, attention, icasc_config(args), args.icasc_layers,
                                          job.multilabel))
        attention_images = min(args.icasc_eval_images, len(job.val_set))
    return {
        'dataset': run.model['dataset'], 'split': args.val_split, 'images': len(job.val_set),
        'attention_images': attention_images,
        'run': {'method': run.results['method'], 'icasc': run.model['icasc'], 'seed': run.results['seed'],
                'epochs': run.results['epochs'], 'command': run.results['command'], 'commit': run.results['commit'],
                'versions': run.results['versions'], 'device': run.results['device'],
                'tensors_sha256': tensors_sha256(weights),
                'metrics': {name: round(value, 6) for name, value in sorted(metrics.items()) if math.isfinite(value)}},
    }


def evaluate_runs(runs: list[Run]) -> dict[str, Any]:
    """Evaluate the last weights of runs on the same images.

    Args:
        runs: Finished runs, of one data set and one way to evaluate.

    Returns:
        'dataset', 'split', 'images', 'attention_images', and under 'runs', for each: method, ICASC parameters, seed,
        command, commit, versions, hash of the weights, and the metrics.

    Raises:
        HubError: A run is incomplete, or two were not evaluated on the same images.
    """
    evaluated = [_evaluate(run) for run in runs]
    shared = [{name: value for name, value in result.items() if name != 'run'} for result in evaluated]
    for run, values in zip(runs, shared, strict=True):
        if values != shared[0]:
            raise HubError(f"'{run.folder}' and '{runs[0].folder}' have other validation images ({values} and "
                           f'{shared[0]}); one table cannot hold both.')
    return {**shared[0], 'runs': [result['run'] for result in evaluated]}
