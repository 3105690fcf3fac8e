"""From the folder of a finished run to the files of a model repo: config.json, model.safetensors, the figure."""
import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from ..errors import HubError
from ..evaluation.measures import measure_of, metrics_of
from ..hub.model_folder import (
    CONFIG,
    FIGURE,
    FORMAT,
    METADATA_KEY,
    OPTIONS,
    WEIGHTS,
    check_folder,
    file_sha256,
    write_weights,
)
from ..runs.folder import PLACES

__all__ = ['Run', 'export', 'load_weights', 'open_runs']

# What a run notes down of its model (`training.model_record`) and cannot be guessed.
RECORDED = (
    'architecture', 'model_args', 'num_classes', 'preprocessing', 'dataset', 'val_split', 'attention_images', 'source',
    'icasc', 'layers', 'ema',
)

OWN_LICENSE = 'apache-2.0'  # of weights trained from random initialisation, where the author names none

PAPER = {'paper_name': 'Sharpen Focus: Learning with Attention Separability and Consistency',
         'paper_ids': 'arXiv:1811.07484'}


@dataclass
class Run:
    """A finished training run.

    Attributes:
        folder: Where its checkpoint and results.json lie.
        results: results.json.
        siblings: results.json of every run of the same comparison, this one included, in the order of training.
        figure: attention.png of the job, where it was drawn.
    """
    folder: Path
    results: dict[str, Any]
    siblings: list[dict[str, Any]]
    figure: Path | None

    @property
    def model(self) -> dict[str, Any]:
        return self.results['model']

    @property
    def checkpoint(self) -> Path:
        return self.folder / 'last.pth.tar'


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / 'results.json'
    if not path.is_file():
        hint = 'train_timm.py --resume auto goes on with it' if (folder / 'args.yaml').is_file() else \
            'a run directory is what train_timm.py leaves in output/'
        raise HubError(f"'{folder}' holds no finished run (there is no results.json); {hint}.")
    try:
        results = json.loads(path.read_text())
        for name in RECORDED:
            results['model'][name]
        measure_of(metrics_of(results))
    except (ValueError, KeyError, TypeError) as e:
        raise HubError(f"'{path}' does not describe its model (an older run?): train_timm.py --resume auto --output "
                       f'{folder.parent} --experiment {folder.name} evaluates it again and writes it anew.') from e
    return results


def open_runs(folder: Path) -> list[Run]:
    """The runs in a folder: one, or the two of an --icasc-compare job, the ICASC one last.

    Raises:
        HubError: A run is not finished, or does not describe its model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HubError(f"no run directory '{folder}'.")
    compared = [folder / name for name in ('baseline', 'icasc')]
    folders = compared if all(path.is_dir() for path in compared) else [folder]
    siblings = [_read_results(path) for path in folders]
    figure = next((path / FIGURE for path in (folder, folder.parent) if (path / FIGURE).is_file()), None)
    runs = [Run(path, results, siblings, figure) for path, results in zip(folders, siblings, strict=True)]
    for run in runs:
        if not run.checkpoint.is_file():
            raise HubError(f"'{run.folder}' has no last.pth.tar; its weights are gone.")
    return runs


def load_weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights that the run's last evaluation measured: the averaged ones where it kept an average.

    Raises:
        HubError: The checkpoint cannot be read, or is not that of the last epoch.
    """
    try:
        # Mapped, not read: the file may be three times the size of the weights, with the optimiser's state.
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options, beside the weights
            checkpoint = torch.load(run.checkpoint, map_location='cpu', weights_only=True, mmap=True)
        state_dict = checkpoint['state_dict_ema' if run.model['ema'] else 'state_dict']
        epoch = checkpoint['epoch']
    except Exception as e:  # whatever a truncated or foreign file makes the unpickler say
        raise HubError(f"'{run.checkpoint}' cannot be read: {' '.join(str(e).split())[:200]}") from e
    if epoch + 1 < run.results['epochs']:
        raise HubError(f"'{run.checkpoint}' is of epoch {epoch + 1} of {run.results['epochs']}, not of the results "
                       f'beside it; train_timm.py --resume auto goes on.')
    return state_dict


def _license(run: Run, chosen: str | None) -> str:
    source = run.model['source']
    if chosen or source is None:
        return chosen or OWN_LICENSE
    if not source['license']:
        raise HubError(f"'{run.folder}' started from the weights '{source['name']}', whose license is not known: "
                       f'name that of the result with --license, for instance --license apache-2.0.')
    return source['license']


def _provenance(run: Run) -> dict[str, Any]:
    results, model = run.results, run.model
    defined_in = timm.models.model_entrypoint(model['architecture']).__module__.split('.')[0]
    return {
        'format': FORMAT, 'requires': {'plugin': defined_in, 'timm': results['versions']['timm']}
        if defined_in != 'timm' else {'timm': results['versions']['timm']},
        'method': results['method'], 'icasc': model['icasc'], 'layers': model['layers'],
        'command': results['command'], 'commit': results['commit'], 'seed': results['seed'],
        'epochs': results['epochs'], 'versions': results['versions'], 'device': results['device'],
        'dataset': model['dataset'], 'train_images': model['train_images'], 'val_images': model['val_images'],
        'source': model['source'], 'ema': model['ema'], 'metrics': metrics_of(results),
    }


def _write_options(run: Run, folder: Path) -> None:
    """All options of the run, without those that say where its files went."""
    try:
        options = yaml.safe_load((run.folder / OPTIONS).read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as e:
        raise HubError(f"'{run.folder}' has no {OPTIONS}, which says how it was trained ({e}).") from e
    kept = {name: value for name, value in options.items() if name not in PLACES}
    (folder / OPTIONS).write_text(yaml.safe_dump(kept), encoding='utf-8')


def export(run: Run, folder: Path, tag: str, license: str | None = None) -> dict[str, Any]:
    """Write config.json, model.safetensors, args.yaml and attention.png of a run; check that timm can load them.

    `config.json` says what the run itself noted down: nothing of it comes from the configuration of the weights
    that the run may have started with.

    Args:
        run: A finished run.
        folder: Where to; it is created.
        tag: Name of these weights among those of the architecture, as in `ARCHITECTURE.TAG`.
        license: Identifier of the license; by default that of the source weights, or apache-2.0 for a run that
            started from random ones.

    Returns:
        The configuration.

    Raises:
        HubError: The run lacks something, or its weights do not fit the architecture that it names.
    """
    model = run.model
    if not timm.is_model(model['architecture']):
        raise HubError(f"the architecture '{model['architecture']}' is not registered with timm: import the package "
                       f'that defines it.')
    if model['model_args'] is None:
        raise HubError(f'timm {run.results["versions"]["timm"]} did not tell the arguments of the model; its weights '
                       f'could not be loaded again.')
    folder.mkdir(parents=True, exist_ok=True)
    _write_options(run, folder)
    license = _license(run, license)
    provenance = write_weights(load_weights(run), _provenance(run), folder / WEIGHTS)
    config = {
        'architecture': model['architecture'], 'num_classes': model['num_classes'], 'model_args': model['model_args'],
        'pretrained_cfg': {
            **model['preprocessing'], **(PAPER if model['icasc'] else {}),
            'tag': tag, 'license': license, 'num_classes': model['num_classes'],
            'fixed_input_size': model['fixed_input_size'], 'first_conv': model['first_conv'],
            'classifier': model['classifier'],
            'custom_load': False, 'hf_hub_filename': WEIGHTS,  # so that no pickle is ever asked for
        },
        METADATA_KEY: {**provenance, 'sha256': file_sha256(folder / WEIGHTS)},
    }
    if model['label_names']:
        config['label_names'] = model['label_names']
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    if run.figure is not None:
        shutil.copyfile(run.figure, folder / FIGURE)
    return check_folder(folder, str(run.folder))[0]
