"""What a run, or the configuration of a published model, notes down of its classes and images."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn as nn
from huggingface_hub import try_to_load_from_cache
from timm.data import ImageNetInfo, infer_imagenet_subset

from ..data import kind_of_set
from ..foreign_files import read_json
from ..hub.download import HUB_NAMES, split_source
from ..hub.model_folder import CONFIG, METADATA_KEY
from ..hub.tags import WEIGHT_TAGS
from ..labels import MULTI, LabelKind, kind_of_measures
from ..runs.folder import Run, names_in

__all__ = ['imagenet_names', 'recorded_kind', 'recorded_names', 'published_run']


def published_run(source: str) -> dict[str, Any]:
    """What the configuration of a published model notes down of its run; nothing where it is not of this package."""
    if source in WEIGHT_TAGS:
        return WEIGHT_TAGS[source].noted
    _, _, place = source.partition(':')
    file: Any = Path(place) / CONFIG
    if source.startswith(HUB_NAMES):
        repo, revision = split_source(source)
        file = try_to_load_from_cache(repo, CONFIG, revision=revision)  # timm has fetched it
    try:
        known = isinstance(file, (str, Path)) and place
        noted = read_json(Path(file))[METADATA_KEY] if known else {}
        return noted if isinstance(noted, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's configuration, which says nothing of it
        return {}


def recorded_kind(run: Run | None, source: str) -> LabelKind | None:
    """The kind of the labels that a model was trained with; None where nothing tells."""
    if run is not None and not run.results:
        return MULTI if kind_of_set(run.arguments.get('dataset')) is MULTI else None
    return kind_of_measures(published_run(source).get('metrics') if run is None else run.metrics)


def recorded_names(run: Run | None, weights: Path | None, model: nn.Module) -> list[str] | None:
    """The classes in the order of the logits."""
    if run is not None:
        names = run.class_names(weights)
    else:
        names = weights and names_in(weights) or model.pretrained_cfg.get('label_names')
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None  # of a config.json that somebody else wrote
    return list(names)


def imagenet_names(num_classes: int, names: Sequence[str]) -> list[str] | None:
    """The folders of timm's ImageNet of so many classes, in their order, where all of `names` are among them."""
    subset = infer_imagenet_subset({'num_classes': num_classes})
    known = ImageNetInfo(subset).label_names() if subset else []
    return known if names and set(names) <= set(known) else None
