"""From what a user names to a model that explains images, which need no labels."""
import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import ICASCError
from ..explanation import Explainer
from ..explanation.class_names import class_names_of, fill_up
from ..labels import MULTI
from ..runs.find import find_weights
from ..runs.folder import names_in
from .checkpoint import Checkpoint, load_checkpoint
from .recorded_classes import published_run, recorded_kind
from .restore import is_name, run_beside
from .side_by_side import check_architecture, name_apart

__all__ = ['load_explainer', 'load_explainers']

def _names_of_classes(checkpoint: Checkpoint, source: str) -> list[str]:
    """Names where no run has noted them down. The number of classes tells none of a model trained on one's own data."""
    if checkpoint.run is not None:  # the configuration is that of the weights that it started from
        return [str(c) for c in range(checkpoint.num_classes)]
    dataset = published_run(source).get('dataset', 'imagenet')
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
        multilabel = recorded_kind(checkpoint.run, source) is MULTI
    return Explainer(
        checkpoint.model, names, multilabel, checkpoint.data_config, checkpoint.layers,
        checkpoint.label)


def load_explainers(sources: Sequence[str], args: argparse.Namespace) -> list[Explainer]:
    """`load_explainer` for each, with the options of `add_explained_model_arguments`; labels are made unique.

    Raises:
        ICASCError: As of `load_explainer`; `pretrained_path` is not for one of the models alone; or
            `architecture` for none of them.
    """
    named = [source for source in sources if is_name(source)]
    if args.pretrained_path and len(named) != 1:
        which = ' and '.join(map(repr, named)) if named else f"'{sources[0]}', which has its own"
        raise ICASCError(f'`pretrained_path` holds the weights of one name of timm, not of {which}: leave it out.')
    given = argparse.Namespace(**{**vars(args), 'model': args.architecture, 'data_dir': None})
    check_architecture(sources, given, 'architecture')
    explainers = [load_explainer(source, given, args.multilabel) for source in sources]
    name_apart(explainers, sources)
    return explainers
