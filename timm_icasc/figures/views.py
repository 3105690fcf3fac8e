"""What figures and the browsing page show of an image: its classes, their probabilities and maps, and their overlap.

Shapes: `N` images, `K` classes shown, `h w` image size.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.checkpoint import Checkpoint
from ..evaluation.scores import check_targets, checked_scores
from ..explanation.canvas import displayed, heats
from ..explanation.pictures import ZERO_MAP
from ..features.module_state import looking_at
from ..features.outputs import class_scores
from ..labels import MULTI
from ..losses import attention_consistency, attention_overlap, resize_mask, target_mask
from ..objective.maps import attention_maps

__all__ = ['ClassView', 'LayerView', 'load_items', 'view_classes', 'view_layers']


@dataclass
class ClassView:
    """One class of one image in the eyes of one model.

    Attributes:
        index: Class index.
        name: Class name.
        probability: Softmax probability, or sigmoid where an image can have several classes.
        rank: 1 for the highest score.
        truth: Whether the class is in the image.
        heat: Attention over its own maximum, `[h, w]` in [0, 1].
        overlap: Histogram intersection with the map of the nearest ground-truth class; None for that class itself,
            NaN where a map is zero.
    """
    index: int
    name: str
    probability: float
    rank: int
    truth: bool
    heat: np.ndarray
    overlap: float | None

    @property
    def title(self) -> str:
        """Its name, with a cross where the highest-scoring class is not in the image."""
        return '\u2717 ' * (self.rank == 1 and not self.truth) + self.name

    @property
    def note(self) -> str:
        """That its map is zero, or how far it overlaps; empty where there is neither to say."""
        if not self.heat.any():
            return ZERO_MAP
        return '' if self.overlap is None or np.isnan(self.overlap) else f'overlap {self.overlap:.2f}'


@dataclass
class LayerView:
    """The inner and the last layer's map of one class, by one method.

    Attributes:
        probability: Softmax probability of the class, or sigmoid where an image can have several classes.
        inner, last: Attention over its own maximum, `[h, w]` in [0, 1].
        inside: Share of the inner attention inside the last layer's mask, Eq. 5 without theta.
        overlap: Histogram intersection of the two maps on the inner grid.
    """
    probability: float
    inner: np.ndarray
    last: np.ndarray
    inside: float
    overlap: float


def load_items(checkpoint: Checkpoint, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[N, channels, h, w]` on the model's device, and their targets."""
    items = [checkpoint.dataset[i] for i in indices]
    targets = torch.stack([torch.as_tensor(target) for _, target in items])
    check_targets(targets, checkpoint)
    return torch.stack([image for image, _ in items]).to(checkpoint.device), targets


def colors_of(checkpoint: Checkpoint, images: torch.Tensor) -> np.ndarray:
    return displayed(images, checkpoint.data_config['mean'], checkpoint.data_config['std'])


def _scored(
        checkpoint: Checkpoint,
        indices: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, targets, class scores and probabilities."""
    images, targets = load_items(checkpoint, indices)
    with looking_at(checkpoint.model), torch.inference_mode():
        logits = checked_scores(checkpoint, class_scores(checkpoint.model(images)))
    return images, targets, logits, checkpoint.labels.probabilities(logits)


def view_classes(
        checkpoint: Checkpoint,
        indices: Sequence[int],
        topk: int = 5,
        method: str = 'grad_cam',
        layer: str = 'last',
) -> list[list[ClassView]]:
    """For each image the `topk` classes of highest score, highest first.

    A ground-truth class below them takes the place of the last one, so that it is shown; where an image has more than
    `topk` of them, those of highest score are.
    """
    images, targets, logits, scores = _scored(checkpoint, indices)
    topk = min(topk, logits.shape[1])
    order = logits.sort(dim=1, descending=True, stable=True).indices
    truths, chosen = checkpoint.labels.present(targets), []
    for row, truth in zip(order.tolist(), truths, strict=True):
        shown = [c for c in row if c in truth][:topk]
        others = [c for c in row[:topk] if c not in truth][:topk - len(shown)]
        chosen.append(sorted(shown + others, key=row.index))
    maps = attention_maps(
        checkpoint.model, images, torch.tensor(chosen, device=images.device), method=method,
        layer=layer, layers=checkpoint.layers).cpu()
    scaled = heats(maps, tuple(images.shape[-2:]))
    views = []
    for n, (classes, truth) in enumerate(zip(chosen, truths, strict=True)):
        own = [k for k, c in enumerate(classes) if c in truth]
        rows = []
        for k, c in enumerate(classes):
            others = [j for j in own if j != k]
            overlap = None
            if others and (c not in truth or checkpoint.labels is MULTI):
                overlaps = attention_overlap(maps[n, [k] * len(others)], maps[n, others])
                known = overlaps[~overlaps.isnan()]  # a class without a map is not the nearest
                overlap = known.max().item() if len(known) else torch.nan
            rows.append(ClassView(
                index=c, name=checkpoint.class_name(c), probability=scores[n, c].item(),
                rank=order[n].tolist().index(c) + 1, truth=c in truth, heat=scaled[n, k],
                overlap=overlap))
        views.append(rows)
    return views


def view_layers(
        checkpoint: Checkpoint,
        indices: Sequence[int],
        method: str,
) -> tuple[list[int], list[LayerView]]:
    """Inner against last layer for each image's ground-truth class (of several, the one of highest score).

    Returns:
        The classes and their views. An image without a class is drawn for its highest-scoring one.
    """
    images, targets, logits, scores = _scored(checkpoint, indices)
    classes = [
        max(truth or range(len(row)), key=lambda c, row=row: row[c])
        for truth, row in zip(checkpoint.labels.present(targets), logits.tolist(), strict=True)]
    drawn = torch.tensor(classes, device=images.device)[:, None]
    maps = {
        layer: attention_maps(
            checkpoint.model, images, drawn, method=method, layer=layer,
            layers=checkpoint.layers).cpu()
        for layer in ('inner', 'last')}
    scaled = {layer: heats(values, tuple(images.shape[-2:])) for layer, values in maps.items()}
    inner, last = maps['inner'][:, 0], maps['last'][:, 0]
    inside = -attention_consistency(
        inner, resize_mask(target_mask(last), inner.shape[-2:]), theta=0.)
    overlap = attention_overlap(inner, resize_mask(last, inner.shape[-2:]))
    return classes, [
        LayerView(scores[n, c].item(), scaled['inner'][n, 0], scaled['last'][n, 0], inside[n].item(), overlap[n].item())
        for n, c in enumerate(classes)]
