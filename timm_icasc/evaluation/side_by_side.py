"""Several of what a user names beside one another: each once, under labels of their own, on the same images."""
import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from ..data import FewImages, evenly_spaced, image_file
from ..errors import DataError, ICASCError
from ..explanation import Explainer
from ..foreign_text import printable
from ..labels import check_same_classes
from ..runs.find import find_runs, find_weights
from ..training.model_factory import UNREGISTERED
from .checkpoint import Checkpoint, load_checkpoint, whole_path
from .image_records import ImageRecords
from .restore import is_name, run_beside

__all__ = [
    'check_architecture', 'check_same_data', 'expand_sources', 'load_checkpoints', 'name_apart', 'warn_of_other_layers',
]

IMAGES_COMPARED = 100  # of two data sets: a look at each file is enough to tell another folder


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Each source once, however its path is written; the folder of --icasc-compare stands for its two runs."""
    expanded: dict[str, str] = {}
    for source in sources:
        is_path = not source.startswith(UNREGISTERED) and Path(source).exists()
        runs = find_runs(Path(source)) if is_path else []
        for one in [str(run) for run in runs] or [source]:
            expanded.setdefault(os.path.realpath(one) if is_path else one, one)
    return list(expanded.values())


def name_apart(
        models: Sequence[Checkpoint | Explainer | ImageRecords],
        sources: Sequence[str],
) -> None:
    """Make the labels of models, or of what was measured of them, unique: by the folder above, then by a number."""
    labels = [model.label for model in models]
    for model, source in zip(models, sources, strict=True):
        if labels.count(model.label) > 1:
            model.label = printable('-'.join(whole_path(source).parts[-2:]))
    taken: set[str] = set()
    for i, model in enumerate(models):
        if model.label in taken:
            model.label = f'{model.label}-{i + 1}'
        taken.add(model.label)


def check_architecture(
        sources: Sequence[str],
        given: argparse.Namespace,
        name: str = 'model',
) -> None:
    """Raise ICASCError where `given.model` is the architecture of none of the sources, as each tells its own.

    Args:
        sources: Of `load_checkpoint`.
        given: Its options.
        name: What the caller calls `given.model`.
    """
    files = (find_weights(source, given.best) for source in sources if not is_name(source))
    if given.model and all(run_beside(file) is not None for file in files):
        raise ICASCError(
            f"`{name}` is for a checkpoint file outside a run's folder; '{sources[0]}' tells its own architecture: "
            f'leave it out.')


def load_checkpoints(sources: Sequence[str], given: argparse.Namespace) -> list[Checkpoint]:
    """`load_checkpoint` for each of `expand_sources`, with `check_architecture`; labels are made unique."""
    expanded = expand_sources(sources)
    check_architecture(expanded, given)
    checkpoints = [load_checkpoint(source, given) for source in expanded]
    name_apart(checkpoints, expanded)
    return checkpoints


def _drawn(checkpoint: Checkpoint) -> list[int] | None:
    """The images that `limit_train` drew, where the checkpoint is evaluated on those."""
    dataset = checkpoint.dataset
    return dataset.indices if isinstance(dataset, FewImages) else None


def _other_file(dataset: Dataset, other: Dataset) -> tuple[Path, Path] | None:
    """The first two files of one name that differ in their length, of 100 at even distances; None without any."""
    for index in evenly_spaced(dataset, IMAGES_COMPARED).indices:
        files = [image_file(one, index) for one in (dataset, other)]
        if None in files or files[0] == files[1] or not all(map(Path.is_file, files)):
            continue
        if files[0].stat().st_size != files[1].stat().st_size:
            return tuple(files)
    return None


def check_same_data(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise DataError where the checkpoints would be shown or measured on different images."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if len(other.dataset) != len(first.dataset):
            raise DataError(
                f"'{first.label}' and '{other.label}' have different data sets: give one for all with "
                f'`data_dir` and `dataset`.')
        if _drawn(other) != _drawn(first):
            raise DataError(
                f"'{first.label}' and '{other.label}' were trained on different images, which `limit_train` drew by "
                f'their seeds: give another `val_split`, or evaluate each by itself.')
        check_same_classes(first.names, other.names, f"'{first.label}'", f"'{other.label}'")
        if files := _other_file(first.dataset, other.dataset):
            raise DataError(
                f"'{first.label}' and '{other.label}' have different images: '{files[0]}' and '{files[1]}' do not have "
                f'the same content; give one place for all with `data_dir` and `val_split`.')


def warn_of_other_layers(checkpoints: Sequence[Checkpoint]) -> None:
    """Say where maps of one architecture are from different layers, which differ whatever the networks are."""
    seen: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        if checkpoint.layers is None:
            continue
        first = seen.setdefault(checkpoint.map_settings['architecture'], checkpoint)
        own, others = (c.map_settings['layers'].replace(' ', ' and ') for c in (checkpoint, first))
        if own != others:
            warnings.warn(
                f"the maps of '{first.label}' are from {others}, those of '{checkpoint.label}' from {own}: they do not "
                f'compare (`layers` takes the same for all)', stacklevel=2)
