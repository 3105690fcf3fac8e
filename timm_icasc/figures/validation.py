"""The figure that a training run leaves: maps of a few validation images, by each of its models."""
from pathlib import Path
from typing import Any

from timm.data import create_loader

from ..data import evenly_spaced
from ..explanation.class_names import fill_up
from ..training.arguments import icasc_config
from .pairs import attention_figure

__all__ = ['validation_figure']

IMAGES = 6


def validation_figure(runs: dict[str, dict[str, Any]], path: Path) -> Path:
    """Draw the attention maps of the true and of the most confusing class.

    Args:
        runs: Label of each run -> its 'model' and 'job', the validation images of which are drawn.
        path: File to write, see `attention_figure`.
    """
    job = next(iter(runs.values()))['job']
    config = job.data_config
    # The images come through the run's own transform, which normalises them itself where nothing is fetched ahead.
    loader = create_loader(
        evenly_spaced(job.val_set, IMAGES), config['input_size'], IMAGES, mean=config['mean'], std=config['std'],
        num_workers=0, device=job.device, use_prefetcher=not job.args.no_prefetcher)
    images, targets = next(iter(loader))
    names = job.names and fill_up(job.names, job.args.num_classes)
    return attention_figure(
        {label: run['model'] for label, run in runs.items()}, images, targets, names, config['mean'], config['std'],
        path, config=icasc_config(job.args), layers=job.layers)
