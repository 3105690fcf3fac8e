"""One pass over the test images: everything that is measured of each image is kept, so that runs can be compared.

Shapes: `N` images, `C` classes, `B` batch, `K` classes drawn per image, `h w` grid of a layer, `H W` input size.
"""
import argparse
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from timm import utils
from tqdm import tqdm

from ..data import evenly_spaced, image_name
from ..data.geometry import Geometry, transform_geometry
from ..features.module_state import looking_at
from ..features.outputs import class_scores
from ..labels import MULTI
from ..losses import attention_overlap
from ..objective.config import ICASCConfig
from ..objective.maps import attention_maps
from ..objective.separability import separability
from .batches import Numbered, SizedTransform, TenCropTransform, make_loader, transformed_by
from .boxes import boxes_by_class, localise_batch
from .checkpoint import Checkpoint
from .faithfulness import map_faithfulness
from .image_records import ImageRecords
from .robustness import across_images, map_robustness
from .scores import check_targets, checked_scores, make_records, ten_crop_probabilities

__all__ = ['collect_records', 'evaluate_checkpoint']

SEED = 0


def _filled_up(present: list[list[int]], device: torch.device) -> torch.Tensor:
    """The present classes of each image as `[B, K]`, rows filled up with a class of their own."""
    most = max(1, *map(len, present))
    filled = [(classes + [classes[0] if classes else 0] * most)[:most] for classes in present]
    return torch.tensor(filled, device=device)


def _asked_for(present: list[list[int]], drawn: torch.Tensor) -> torch.Tensor:
    """Which of the classes of `_filled_up` are present ones, bool `[B, K]`: the others fill up a row."""
    counts = torch.tensor([len(classes) for classes in present], device=drawn.device)
    return torch.arange(drawn.shape[1], device=drawn.device) < counts[:, None]


def _told_from(present: list[list[int]], drawn: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Which classes each drawn one is to be told from, as weights `[B, K, C]` that add up to 1.

    The other present ones; a class that is alone has none.
    """
    weights = torch.zeros(*drawn.shape, logits.shape[1], device=logits.device, dtype=logits.dtype)
    for i, classes in enumerate(present):
        for k in range(len(classes)):
            rest = [c for c in classes if c != classes[k]]
            if rest:
                weights[i, k, rest] = 1 / len(rest)
    return weights


def _cooccurring_overlap(maps: torch.Tensor, present: list[list[int]]) -> torch.Tensor:
    """Mean overlap of the maps of every two classes present in an image, `[B]`; NaN with fewer than two.

    Args:
        maps: Attention maps of the present classes, `[B, K, h, w]`.
        present: The classes themselves; only their number counts.
    """
    values = torch.full((len(maps),), torch.nan)
    for i, classes in enumerate(present):
        if len(classes) > 1:
            first, second = torch.triu_indices(len(classes), len(classes), 1)
            values[i] = attention_overlap(maps[i, first], maps[i, second]).nanmean()
    return values


def _mean_over_present(
        values: dict[str, torch.Tensor],
        present: list[list[int]],
) -> dict[str, torch.Tensor]:
    """Means over the present classes, `[B]`, of values `[B, K]` in the rows of `_filled_up`; NaN without one."""
    return {
        name: torch.stack([
            row[:len(classes)].nanmean() for row, classes in zip(value, present, strict=True)])
        for name, value in values.items()}


class _Collector:
    """What is measured of each image, batch by batch."""

    def __init__(
            self,
            checkpoint: Checkpoint,
            config: ICASCConfig,
            indices: Sequence[int],
            tolerance: float,
            layer: str,
            robustness: bool,
            faithfulness: bool,
    ):
        self.checkpoint, self.config, self.indices = checkpoint, config, indices
        self.tolerance, self.layer = tolerance, layer
        self.robustness, self.faithfulness = robustness, faithfulness
        self.transform = checkpoint.dataset.transform
        self.has_boxes = hasattr(checkpoint.dataset, 'boxes')
        self.geometries: dict[tuple[int, int], Geometry] = {}
        self.scores: list[torch.Tensor] = []
        self.targets: list[torch.Tensor] = []
        self.pixels: list[torch.Tensor] = []
        self.columns: dict[str, list[torch.Tensor]] = {}
        self.pairs: list[dict[str, float]] = []
        self.maps: list[torch.Tensor] = []  # of the present classes, `[h, w]` each, and the rows of their images
        self.map_rows: list[int] = []
        self.outside: list[str] = []  # boxes that do not lie in their images

    def add(
            self,
            images: torch.Tensor,
            sizes: Sequence[torch.Tensor],
            target: torch.Tensor,
            rows: list[int],
    ) -> None:
        """Measure a batch; `sizes` are the widths and the heights of its images as loaded."""
        checkpoint, labels = self.checkpoint, self.checkpoint.labels
        values: dict[str, torch.Tensor] = {}
        if checkpoint.layers is None:
            with torch.inference_mode():
                logits = class_scores(checkpoint.model(images))
        else:
            logits, values = separability(
                checkpoint.model, images, target, checkpoint.layers, self.config, labels)
        scores = checked_scores(checkpoint, logits)
        if checkpoint.layers is not None:
            values.update(
                self._of_present_classes(images, sizes, labels.present(target), rows, logits))
        self.scores.append(scores)
        self.targets.append(target.cpu())
        deviation, mean = torch.std_mean(images.float(), (1, 2, 3), correction=0)
        self.pixels.append(torch.stack([mean, deviation], 1).cpu())
        for name, column in values.items():
            self.columns.setdefault(name, []).append(column.cpu().double())

    def _of_present_classes(
            self,
            images: torch.Tensor,
            sizes: Sequence[torch.Tensor],
            present: list[list[int]],
            rows: list[int],
            logits: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Measures of the maps of the present classes, `[B]` each; those of the boxes go to `pairs`."""
        checkpoint, config = self.checkpoint, self.config
        several = checkpoint.labels is MULTI
        drawn, values = _filled_up(present, images.device), {}
        if several or self.has_boxes or self.robustness or self.faithfulness:
            maps = attention_maps(
                checkpoint.model, images, drawn, method=config.attention, layer=self.layer,
                layers=checkpoint.layers)
        if self.robustness:
            values.update(_mean_over_present(map_robustness(
                checkpoint.model, images, maps, drawn, checkpoint.layers, config.attention,
                self.layer, config.sigma), present))
            for row, own, classes in zip(rows, maps.cpu(), present, strict=True):
                self.maps.extend(own[:len(classes)].clone())
                self.map_rows.extend([row] * len(classes))
        if self.faithfulness:
            if several:
                others = _told_from(present, drawn, logits)
            else:
                others = checkpoint.labels.select(logits, drawn[:, 0]).confused[:, None]
            values.update(_mean_over_present(map_faithfulness(
                checkpoint.model, images, maps, drawn, others, [self.indices[row] for row in rows],
                checkpoint.labels.probabilities, _asked_for(present, drawn)), present))
        if several:
            values['overlap_cooccurring'] = _cooccurring_overlap(maps, present)
        if self.has_boxes:
            boxes = [boxes_by_class(checkpoint.dataset, self.indices[row]) for row in rows]
            self._note_outside(boxes, sizes, rows)
            self.pairs += localise_batch(
                maps, present, boxes, self._geometries_of(sizes), rows, config.sigma,
                self.tolerance)
        return values

    def _note_outside(
            self,
            boxes: list[dict[int, np.ndarray]],
            sizes: Sequence[torch.Tensor],
            rows: list[int],
    ) -> None:
        for grouped, width, height, row in zip(boxes, *sizes, rows, strict=True):
            for box in (box for group in grouped.values() for box in group):
                # A pixel more: protocols differ in whether they count from 0 and whether ends are included.
                if box[:2].min() < -1 or box[2] > width + 1 or box[3] > height + 1:
                    self.outside.append(
                        f"({', '.join(f'{edge:g}' for edge in box)}) of "
                        f"'{image_name(self.checkpoint.dataset, self.indices[row])}', which is {width} x {height}")

    def _geometries_of(self, sizes: Sequence[torch.Tensor]) -> list[Geometry]:
        batch_sizes = [(int(w), int(h)) for w, h in zip(*sizes, strict=True)]
        for size in set(batch_sizes) - set(self.geometries):
            self.geometries[size] = transform_geometry(self.transform, size)
        return [self.geometries[size] for size in batch_sizes]

    def _across_images(self) -> torch.Tensor:
        """Mean correlation of the maps of each image with those of the others, `[N]`; NaN without one."""
        rows = torch.tensor(self.map_rows)
        values = across_images(torch.stack(self.maps), rows)
        total, count = torch.zeros(2, len(self.indices), dtype=values.dtype)
        total.index_add_(0, rows, values.nan_to_num())
        return total / count.index_add_(0, rows, (~values.isnan()).to(count.dtype))

    def records(self) -> ImageRecords:
        if self.maps:
            self.columns['across_images'] = [self._across_images()]
        if self.outside:
            warnings.warn(
                f'Boxes lie outside of their images ({len(self.outside)} in all), the first {self.outside[0]}: what is '
                f'outside is not measured. Boxes are xmin, ymin, xmax, ymax in pixels of the image as loaded.',
                stacklevel=3)
        names = self.pairs[0] if self.pairs else ()
        settings = {
            'attention': self.config.attention, 'sigma': self.config.sigma, 'layer': self.layer,
            'tolerance': self.tolerance, **self.checkpoint.map_settings}
        return replace(
            make_records(self.checkpoint, self.indices, self.scores, self.targets),
            images={name: torch.cat(parts).numpy() for name, parts in self.columns.items()},
            pairs={name: np.array([pair[name] for pair in self.pairs]) for name in names},
            settings=settings, pixels=torch.cat(self.pixels).numpy(),
            preparation=self.checkpoint.preparation)


def collect_records(
        checkpoint: Checkpoint,
        config: ICASCConfig | None = None,
        indices: Sequence[int] | None = None,
        ten_crop: bool = False,
        tolerance: float = 0.,
        layer: str = 'last',
        robustness: bool = False,
        faithfulness: bool = False,
) -> ImageRecords:
    """Run a checkpoint over its test images and keep what is measured of each.

    The result depends on the checkpoint and the images alone: no shuffling, no augmentation, every value per image
    (the batch size plays no part beyond rounding).

    Args:
        checkpoint: From `load_checkpoint`.
        config: Attention method and mask of the measures; the weights of the terms do not matter.
        indices: Positions in the data set; all when None.
        ten_crop: Also score ten crops of each image.
        tolerance: Margin of the pointing game in pixels of the input.
        layer: 'last' or 'inner': whose maps are held against boxes, against those of co-occurring classes, and flipped,
            cropped and blurred images.
        robustness: Also hold the present classes' maps against those of the flipped and of the cropped image, and
            against those of all other images.
        faithfulness: Also blur and mask the images by the present classes' maps (`faithfulness.map_faithfulness`).

    Raises:
        DataError: Ten crops of images that are prepared without a crop.
    """
    utils.random_seed(SEED)
    device, dataset = checkpoint.device, checkpoint.dataset
    if device.type == 'cuda':
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    indices = list(range(len(dataset))) if indices is None else list(indices)
    if ten_crop:
        TenCropTransform(dataset.transform)  # what it refuses is refused before the work
    collector = _Collector(
        checkpoint, config or ICASCConfig(), indices, tolerance, layer, robustness, faithfulness)
    with looking_at(checkpoint.model), transformed_by(dataset, SizedTransform(dataset.transform)):
        loader = make_loader(checkpoint, Numbered(dataset, indices), checkpoint.batch_size)
        for (images, sizes), target, rows in tqdm(
                loader, desc=checkpoint.label, leave=False, disable=None):
            check_targets(target, checkpoint)
            collector.add(images.to(device), sizes, target.to(device), rows.tolist())
    records = collector.records()
    if ten_crop:
        records.ten_crop_probabilities = ten_crop_probabilities(checkpoint, indices)
    return records


def evaluate_checkpoint(checkpoint: Checkpoint, options: argparse.Namespace) -> ImageRecords:
    """The one evaluation, of `timm-icasc eval` and of the cards.

    Args:
        checkpoint: From `load_checkpoint`.
        options: Those of `add_evaluation_arguments`.
    """
    config = ICASCConfig(attention=options.attention, sigma=options.sigma)
    indices = evenly_spaced(checkpoint.dataset, options.images or len(checkpoint.dataset)).indices
    return collect_records(
        checkpoint, config, indices, options.ten_crop, options.tolerance, options.layer,
        options.robustness, options.faithfulness)
