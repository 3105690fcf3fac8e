"""From what a user names to a model that explains images, which need no labels."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from ..errors import ICASCError
from ..explanation import Explainer
from ..explanation.class_names import class_names_of, fill_up
from ..foreign_files import read_json
from ..hub.model_folder import CONFIG, METADATA_KEY
from ..hub.tags import WEIGHT_TAGS
from ..labels import MULTI
from ..runs.find import find_weights
from ..runs.folder import names_in
from ..training.model_factory import HUB_NAMES
from .checkpoint import Checkpoint, load_checkpoint, name_apart
from .restore import is_name, run_beside

__all__ = ['load_explainer', 'load_explainers']

# Data sets whose images can have several classes, by their names.
MULTI_LABEL_NAMES = ('voc2007', 'voc2012', 'voc2007-packed', 'multilabel')


def _published_run(source: str) -> dict[str, Any]:
    """What the configuration of a published model notes down of its run; nothing where it is not of this package."""
    if source in WEIGHT_TAGS:
        return WEIGHT_TAGS[source].noted
    _, _, place = source.partition(':')
    file: Any = Path(place) / CONFIG
    if source.startswith(HUB_NAMES):
        repo, _, revision = place.partition('@')
        file = try_to_load_from_cache(repo, CONFIG, revision=revision or None)  # timm has fetched it
    try:
        known = isinstance(file, (str, Path)) and place
        noted = read_json(Path(file))[METADATA_KEY] if known else {}
        return noted if isinstance(noted, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's configuration, which says nothing of it
        return {}


def _says_multilabel(checkpoint: Checkpoint, source: str) -> bool:
    """Whether the model's images can have several classes, as its run, or the configuration beside it, notes down."""
    run = checkpoint.run
    if run is not None and not run.results:
        return checkpoint.args.dataset in MULTI_LABEL_NAMES
    metrics = _published_run(source).get('metrics') if run is None else run.metrics
    return isinstance(metrics, dict) and any(name in MULTI.measures for name in metrics)


def _names_of_classes(checkpoint: Checkpoint, source: str) -> list[str]:
    """Names where no run has noted them down. The number of classes tells none of a model trained on one's own data."""
    if checkpoint.run is not None:  # the configuration is that of the weights that it started from
        return [str(c) for c in range(checkpoint.num_classes)]
    dataset = _published_run(source).get('dataset', 'imagenet')
    return class_names_of(
        checkpoint.model, checkpoint.num_classes, by_number=isinstance(dataset, str) and 'imagenet' in dataset)


def load_explainer(
        source: str,
        given: argparse.Namespace,
        multilabel: bool | None = None,
) -> Explainer:
    """A model to explain images with, which need no labels: no data set is opened.

    Args:
        source: As for `load_checkpoint`.
        given: Options of `add_model_arguments`.
        multilabel: Whether images can have several classes; None: as the run or the published model notes down.

    Raises:
        ICASCError: As of `load_checkpoint`.
    """
    weights = None if is_name(source) else find_weights(source, given.best)
    if weights is not None and run_beside(weights) is None and not given.model:
        raise ICASCError(f"'{source}' is of no run of timm-icasc train: name its `architecture`.")
    checkpoint = load_checkpoint(source, given, with_data=False)
    file = Path(checkpoint.source)
    names = names_in(file) if checkpoint.run is None else checkpoint.run.class_names(file)
    if names is not None and len(names) > checkpoint.num_classes:
        raise ICASCError(
            f"the run '{source}' has {len(names)} class names, its weights {checkpoint.num_classes} classes.")
    if names is None:
        names = _names_of_classes(checkpoint, source)
    names = fill_up(names, checkpoint.num_classes)
    if multilabel is None:
        multilabel = _says_multilabel(checkpoint, source)
    return Explainer(
        checkpoint.model, names, multilabel, checkpoint.data_config, checkpoint.layers,
        checkpoint.label)


def load_explainers(sources: Sequence[str], args: argparse.Namespace) -> list[Explainer]:
    """`load_explainer` for each, with the options of `add_explained_model_arguments`; labels are made unique."""
    given = argparse.Namespace(**{**vars(args), 'model': args.architecture, 'data_dir': None})
    explainers = [load_explainer(source, given, args.multilabel) for source in sources]
    name_apart(explainers, sources)
    return explainers
