"""From a classifier and images as they are to classes, scores and maps, in one forward pass.

Shapes: `B` batch, `C` classes, `K` classes shown.
"""
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
import torch.nn as nn
from timm.data import create_transform

from ..attention import check_method
from ..errors import ICASCError, check_count
from ..features.layout import FeatureLayer, ICASCLayers
from ..features.module_state import evaluation_mode
from ..features.outputs import check_order, class_scores
from ..features.wrappers import check_model, unwrap_model
from ..labels import SINGLE, kind_by_flag
from ..objective.maps import scored_maps
from .class_names import class_names_of, find_classes
from .data_config import data_config_of
from .pictures import Explanation, Explanations
from .pixels import Item, prepare, take_apart
from .trained_kind import is_multilabel

__all__ = ['Explainer', 'explain']

Classes = int | str | Sequence[int | str]


class Explainer:
    """A classifier, with what it takes to show what it sees in images.

    Args:
        model: Classifier; it is run in evaluation mode, on its own device, and its training flags are restored.
        class_names: In the order of the class scores; by default those of the model (`class_names_of`).
        multilabel: Whether an image can have several classes: scores are sigmoids, not a softmax. None: where the
            model says so, as weights of this package do, and `config.problem_type` of transformers.
        data_config: timm's: 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'; what is left out is
            the model's own.
        layers: From `resolve_layers`, or module paths (inner, last), if the automatic choice is not wanted.
        label: What pages call the model.

    Attributes:
        data_config: All of it.
        labels: `labels.SINGLE` or `labels.MULTI`.
    """

    def __init__(
            self,
            model: nn.Module,
            class_names: Sequence[str] | None = None,
            multilabel: bool | None = None,
            data_config: dict[str, Any] | None = None,
            layers: ICASCLayers | Sequence[str] | None = None,
            label: str = '',
    ):
        check_model(model)
        if isinstance(class_names, Mapping):  # as transformers' id2label
            raise ICASCError(
                f'`class_names` must be a list, in the order of the class scores, got {type(class_names).__name__}: of '
                f'numbers and names, [names[c] for c in range(len(names))] makes one.')
        self.model = model
        self.labels = kind_by_flag(is_multilabel(model) if multilabel is None else multilabel)
        self.layers, self.label = layers, label
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self._num_classes: int | None = None
        self.data_config = data_config_of(unwrap_model(model), data_config)
        self.transform = create_transform(**self.data_config)

    def prepare(self, image: Any, normalised: bool | None = None) -> Item:
        """A single image as `explain_items` takes it; as of `explain`."""
        return prepare(image, self.transform, self.data_config, normalised)

    def find_classes(self, classes: Classes | None, num_classes: int) -> list[int] | None:
        """Indices of classes given by name or index, of a model of so many classes."""
        if self.class_names is None:
            self.class_names = class_names_of(unwrap_model(self.model), num_classes)
        if len(self.class_names) != num_classes:
            raise ICASCError(
                f'`class_names` has {len(self.class_names)} names, the model {num_classes} classes: give one for each.')
        return find_classes(classes, self.class_names)

    def num_classes(self) -> int:
        """Number of class scores, as a pass over an empty image shows; kept.

        What a model says of itself is that of its backbone, or from before a head was put in by hand.
        """
        if self._num_classes is None:
            empty = self._batch([torch.zeros(*self.data_config['input_size'], device='cpu')])
            with evaluation_mode(self.model), torch.inference_mode():
                self._num_classes = class_scores(self.model(empty)).shape[1]
        return self._num_classes

    def _batch(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        parameter = next(self.model.parameters(), None)
        batch = torch.stack(list(tensors))
        return batch if parameter is None else batch.to(parameter)

    def explain_items(
            self,
            items: Sequence[Item],
            classes: Classes | None = None,
            topk: int = 3,
            method: str = 'grad_cam',
            layer: str | FeatureLayer = 'last',
    ) -> list[Explanation]:
        """Explain images of one input size in one forward pass.

        Args:
            items: Of `prepare`.
            classes, topk, method, layer: As of `explain`.
        """
        with evaluation_mode(self.model):
            found = scored_maps(
                self.model, self._batch([item.tensor for item in items]),
                partial(self.find_classes, classes), topk, method, layer, self.layers)
        check_order(found.logits, f"'{self.label}'" if self.label else 'the model')
        if found.logits.shape[1] == 1 and self.labels is SINGLE:
            raise ICASCError(
                'the model has one class score, and a softmax of one is 1 whatever the image shows: `multilabel=True` '
                'takes its sigmoid.')
        probabilities = self.labels.probabilities(found.logits).cpu()
        shown, maps = found.classes.tolist(), found.maps.float().cpu()
        # By the scores: sigmoids of those above 17 are all 1 in single precision.
        rankings = found.logits.cpu().argsort(dim=1, descending=True, stable=True).tolist()
        return [
            Explanation(
                image=item.picture, name=item.name, classes=shown[n],
                class_names=[self.class_names[c] for c in shown[n]],
                scores=probabilities[n, shown[n]].tolist(), probabilities=probabilities[n],
                grid_maps=maps[n], geometry=item.geometry, method=method,
                layer=layer.path if isinstance(layer, FeatureLayer) else layer, labels=self.labels,
                ranking=rankings[n])
            for n, item in enumerate(items)]

    def explain_all(
            self,
            items: Iterator[Item],
            batch_size: int,
            **kwargs: Any,
    ) -> Iterator[Explanation]:
        """Explain one image after the other, `batch_size` at a time; those of another input size start a new batch.

        Args:
            items: Of `prepare`.
            batch_size: Images in memory.
            **kwargs: As of `explain_items`.
        """
        for _, same_size in groupby(items, key=lambda item: item.tensor.shape):
            while batch := list(islice(same_size, batch_size)):
                yield from self.explain_items(batch, **kwargs)


def explain(
        model: nn.Module,
        image: Any,
        classes: Classes | None = None,
        topk: int = 3,
        method: str = 'grad_cam',
        layer: str | FeatureLayer = 'last',
        *,
        class_names: Sequence[str] | None = None,
        multilabel: bool | None = None,
        data_config: dict[str, Any] | None = None,
        layers: ICASCLayers | Sequence[str] | None = None,
        normalised: bool | None = None,
        batch_size: int = 16,
) -> Explanation | list[Explanation]:
    """Show what a classifier sees in an image: classes, scores, and a map of each class at the size of the image.

        timm_icasc.explain(model, 'dog.jpg').show()

    Files, PIL images and arrays are resized and cropped as timm does it for the model's evaluation. The maps undo that.

    Args:
        model: Classifier, run in evaluation mode; its training flags are restored.
        image: Path, PIL image, array or tensor; or a list of these, or whatever else gives them one by one, or a
            batch. Images are turned as their EXIF orientation says. Arrays are `[H, W, 3]` or `[H, W]`, uint8 or
            floating point in [0, 1]. Tensors are `[channels, h, w]`: uint8 pixels, or floating point as `normalised`
            says.
        classes: Indices or names of the classes to draw; None for the `topk` highest ones.
        topk: Number of classes where `classes` is None.
        method: Of `attention.METHODS`.
        layer: 'inner', 'last', or the path of a module.
        class_names: In the order of the class scores. By default those of the model's `pretrained_cfg`, of timm's
            ImageNets where the number of classes is theirs, else numbers.
        multilabel: Whether an image can have several classes: scores are sigmoids, not a softmax. None: where the
            model says so, as weights of this package do, and `config.problem_type` of transformers.
        data_config: timm's, where it is not the model's own: 'input_size', 'mean', 'std', 'crop_pct', ...
        layers: From `resolve_layers`, or module paths (inner, last), if the automatic choice is not wanted.
        normalised: Whether floating point tensors are what the model takes already (they go to it as they are), or
            pixels from 0 to 1 (they are resized, cropped and normalised). None tells it from their values, and refuses
            those that allow both or neither.
        batch_size: Images of a list that go through the model at once.

    Returns:
        The explanation of the image, or a list of them where it is several.

    Raises:
        DataError: A file cannot be read.
        TargetError: No such class.
        LayerResolutionError: No such layer.
        ICASCError: What cannot be told, or is out of range.
    """
    check_method(method)
    check_count('topk', topk)
    check_count('batch_size', batch_size)
    if normalised not in (None, True, False):
        raise ICASCError(f'`normalised` must be True, False or None, got {normalised!r}.')
    explainer = Explainer(model, class_names, multilabel, data_config, layers)
    images, alone = take_apart(image)
    items = (explainer.prepare(one, normalised) for one in images)
    found = list(explainer.explain_all(
        items, batch_size, classes=classes, topk=topk, method=method, layer=layer))
    return found[0] if alone else Explanations(found)
