"""From the folder of a finished run to the files of a model repo: config.json, model.safetensors, the figure."""
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import yaml

from ..data import is_public
from ..errors import HubError
from ..evaluation.measures import measure_of
from ..hub.model_folder import (
    CONFIG,
    FIGURE,
    FORMAT,
    METADATA_KEY,
    OPTIONS,
    WEIGHTS,
    check_folder,
    file_sha256,
    half_precision,
    plugin_of,
    write_weights,
)
from ..runs.epochs import of_best_epoch
from ..runs.files import is_free, replacing, replacing_folder, write_text
from ..runs.find import open_runs
from ..runs.folder import (
    ARGUMENTS,
    BEST,
    COMPARED,
    LAST,
    LOGGING_OPTIONS,
    PUBLISHING_OPTIONS,
    RESULTS,
    SUMMARY,
    Run,
)
from ..runs.local_paths import without_local_paths
from .onnx_file import check_onnx_packages, write_onnx

__all__ = [
    'check_publishable', 'export', 'export_run', 'is_of_public_images', 'open_measured_runs', 'refuse_links',
    'weight_tag',
]

OWN_LICENSE = 'apache-2.0'  # of weights trained from random initialisation, where the author names none

PAPER = {
    'paper_name': 'Sharpen Focus: Learning with Attention Separability and Consistency',
    'paper_ids': 'arXiv:1811.07484'}


def refuse_links(*files: Path) -> None:
    """Raise HubError where one of the files is a link: what it leads to was not put there to be published."""
    for file in files:
        if file.is_symlink():
            raise HubError(f"'{file}' is a link, and none is followed to what is published: put the file itself there.")


def open_measured_runs(folder: Path, best: bool = False) -> list[Run]:
    """`open_runs`, to be published: each with a measure that a card can judge it by, and without local paths.

    Args:
        folder: Of a run, or of an --icasc-compare job.
        best: Whether each is to be as of its best epoch, and not of the last.

    Raises:
        HubError: As of `open_runs` and `of_best_epoch`, a run has no such measure, or one of its files is a link.
    """
    compared = [Path(folder) / name for name in COMPARED]
    read = (ARGUMENTS, RESULTS, LAST, FIGURE, *([BEST, SUMMARY] if best else []))
    refuse_links(*compared, *(place / name for place in (Path(folder), *compared) for name in read))
    runs = [of_best_epoch(run) if best else run for run in open_runs(folder)]
    for run in runs:
        try:
            measure_of(run.metrics)
        except KeyError as e:
            raise run.outdated() from e
    return [
        replace(run, **{name: without_local_paths(getattr(run, name)) for name in ('arguments', 'results')})
        for run in runs]


def is_of_public_images(run: Run) -> bool:
    return is_public(run.arguments.get('dataset'), run.class_names(run.checkpoint))


def check_publishable(model: dict[str, Any], license: str | None) -> str:
    """Check before a run, or after it, that its weights can be published; returns their license.

    Args:
        model: What the run notes down of its model (`training.model_record`).
        license: Identifier that the user chose.

    Raises:
        HubError: The license is not known, or timm could not load the weights again.
    """
    if not timm.is_model(model['architecture']):
        raise HubError(
            f"the architecture '{model['architecture']}' is not registered with timm: import the package "
            f'that defines it.')
    if model['model_args'] is None:
        raise HubError(
            f"timm does not tell the arguments of the model '{model['architecture']}'; its weights could not be "
            f'loaded again.')
    source = model['source']
    if license or source is None:
        return license or OWN_LICENSE
    if not source['license']:
        raise HubError(
            f"the license of the weights that the run starts from, '{source['name']}', is not known: name that of "
            f'the result with `license`, for instance `license=apache-2.0`.')
    return source['license']


def _provenance(run: Run, class_names: bool) -> dict[str, Any]:
    """What the run notes down of itself; the average precision of a class bears its name."""
    results, model = run.results, run.model
    metrics = {
        name: value for name, value in run.metrics.items() if class_names or not name.startswith('AP_')}
    plugin = plugin_of(model['architecture'])
    return {
        'format': FORMAT,
        'requires': {**({'plugin': plugin} if plugin else {}), 'timm': results['versions']['timm']},
        'method': results['method'], 'icasc': model['icasc'], 'layers': model['layers'],
        'command': results['command'], 'commit': results['commit'], 'seed': results['seed'],
        'epochs': results['epochs'], 'versions': results['versions'], 'device': results['device'],
        'dataset': model['dataset'], 'train_images': model['train_images'], 'val_images': model['val_images'],
        'source': model['source'], 'ema': model['ema'], 'metrics': metrics,
    }


def _write_options(run: Run, folder: Path) -> None:
    """All options of the run, without those that say where its files and numbers went and how it was published."""
    if not run.arguments:
        raise HubError(f"'{run.folder}' has no {ARGUMENTS}, which says how it was trained.")
    kept = {
        name: value for name, value in run.arguments.items()
        if name not in PUBLISHING_OPTIONS + LOGGING_OPTIONS}
    write_text(folder / OPTIONS, yaml.safe_dump(kept))


def export(
        run: Run,
        folder: Path,
        tag: str,
        license: str | None = None,
        *,
        figure: Path | None = None,
        class_names: bool = True,
        half: bool = False,
) -> dict[str, Any]:
    """Write config.json, model.safetensors, args.yaml and the figure of a run; check that timm can load them.

    `config.json` says what the run itself noted down: nothing of it comes from the configuration of the weights
    that the run may have started with.

    Args:
        run: A finished run, of `open_measured_runs`.
        folder: Where to; it is created.
        tag: Name of these weights among those of the architecture, as in `ARCHITECTURE.TAG`.
        license: Identifier of the license; by default that of the source weights, or apache-2.0 for a run that
            started from random ones.
        figure: attention.png of the run, which shows validation images; None to leave it out.
        class_names: Whether the configuration names the classes.
        half: Whether the weights are written in half precision.

    Returns:
        The configuration.

    Raises:
        HubError: The run lacks something, or its weights do not fit the architecture that it names.
        ICASCError: Its checkpoint cannot be read.
    """
    model, license = run.model, check_publishable(run.model, license)
    run.check_last_epoch()
    _write_options(run, folder)
    weights = half_precision(run.load_weights()) if half else run.load_weights()
    with replacing(folder / WEIGHTS) as partial:
        provenance = write_weights(weights, _provenance(run, class_names), partial)
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
    if model['label_names'] and class_names:
        config['label_names'] = model['label_names']
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + '\n')
    if figure is not None:
        with replacing(folder / FIGURE) as partial:
            shutil.copyfile(figure, partial)
    return check_folder(folder, str(run.folder))[0]


def weight_tag(run: Run) -> str:
    """Name of a run's weights among those of the architecture."""
    return f"{'icasc' if run.model['icasc'] else 'baseline'}_{run.model['dataset'].replace('/', '_')}"


def export_run(
        source: Path,
        folder: Path,
        best: bool = False,
        license: str | None = None,
        class_names: bool | None = None,
        onnx: bool = False,
) -> dict[str, Any]:
    """Write the files of a finished run that `timm.create_model('local-dir:FOLDER')` loads, all of them or none.

    Args:
        source: Folder of a run; of an --icasc-compare job, its ICASC run.
        folder: Where to; it must be new, or empty.
        best: The weights of the best epoch, not of the last.
        license: Identifier of the license; by default as `export` says.
        class_names: Whether the configuration names the classes; None where the data set is a public one.
        onnx: Whether to write the network as ONNX, too.

    Returns:
        The configuration.

    Raises:
        HubError: The run is not finished, or the folder holds something.
        ICASCError: Its checkpoint cannot be read, or the network has no form in ONNX.
        VersionError: Packages for ONNX are missing.
        WriteError: The folder cannot be written.
    """
    folder = Path(folder).absolute()
    if not is_free(folder):
        raise HubError(f"`folder`: '{folder}' is there already, and not an empty folder: name a new one.")
    if onnx:
        check_onnx_packages()
    run = open_measured_runs(source, best)[-1]
    if class_names is None:
        class_names = is_of_public_images(run)
    with replacing_folder(folder.resolve()) as partial:  # a link to an empty folder stays one
        config = export(run, partial, weight_tag(run), license, class_names=class_names)
        if onnx:
            write_onnx(partial)
    return config
