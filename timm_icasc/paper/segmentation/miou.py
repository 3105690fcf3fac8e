"""Mean intersection over union of label maps, VOC's definition: one confusion matrix over all images.

Shapes: `C` classes, `h w` size of an image.
"""
import numpy as np

__all__ = ['ConfusionMatrix', 'IGNORED']

IGNORED = 255  # VOC's label of object borders


class ConfusionMatrix:
    """Counts of pixels by true class (rows) and predicted class (columns)."""

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Add label maps `[h, w]`; pixels whose truth is 255 do not count."""
        counted = truth != IGNORED
        classes = len(self.counts)
        pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
        self.counts += np.bincount(pairs, minlength=classes ** 2).reshape(classes, classes)

    def iou(self) -> np.ndarray:
        """Intersection over union of each class, `[C]`, NaN where it is neither in the truth nor predicted."""
        intersection = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - np.diag(self.counts)
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    def mean_iou(self) -> float:
        """Mean over the classes that occur; NaN without any pixel."""
        values = self.iou()
        return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan

    def precision(self) -> np.ndarray:
        """Share of each class's predicted pixels that are right, `[C]`, NaN where it is not predicted."""
        predicted = self.counts.sum(0)
        return np.divide(np.diag(self.counts), predicted, out=np.full(len(predicted), np.nan), where=predicted > 0)

    def recall(self) -> np.ndarray:
        """Share of each class's true pixels that are found, `[C]`, NaN where it does not occur."""
        true = self.counts.sum(1)
        return np.divide(np.diag(self.counts), true, out=np.full(len(true), np.nan), where=true > 0)
