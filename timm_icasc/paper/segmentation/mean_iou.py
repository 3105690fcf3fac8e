"""What a segmentation network says of images, and its mean IoU with their masks."""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from ...features.module_state import evaluation_mode
from .deeplab import grid_scores, network_input
from .voc_masks import IGNORED, VOCSegmentation

__all__ = ['count_pixels', 'evaluate', 'intersection_over_union', 'predict']


@torch.no_grad()
def predict(network: nn.Module, image, image_size: int) -> np.ndarray:
    """Label map of an image at its own size, uint8 `[height, width]`; the network in the mode it is in."""
    device = next(network.parameters()).device
    x, _ = network_input(image, image_size)
    probabilities = F.softmax(grid_scores(network, x[None].to(device)), 1)
    size = (image.height, image.width)
    enlarged = F.interpolate(probabilities, size=size, mode='bilinear', align_corners=False)
    return enlarged[0].argmax(0).to(torch.uint8).cpu().numpy()


def count_pixels(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of label maps `[h, w]` by true and by predicted class, `[C, C]`; where the truth is 255 none counts."""
    counted = truth != IGNORED
    if not counted.any():
        return np.zeros((num_classes, num_classes), dtype=int)
    return confusion_matrix(truth[counted], predicted[counted], labels=range(num_classes))


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """`[C]` from pixels counted over all images, VOC's definition; NaN for a class neither true nor predicted."""
    both = np.diag(counts)
    with np.errstate(invalid='ignore'):
        return both / (counts.sum(0) + counts.sum(1) - both)


def evaluate(network: nn.Module, dataset: VOCSegmentation, image_size: int) -> np.ndarray:
    """The pixels of the images of a split with masks, as `count_pixels` has them."""
    counts, num_classes = 0, len(dataset.class_names) + 1
    with evaluation_mode(network):
        for index in tqdm(range(len(dataset)), desc='mIoU', leave=False, disable=None):
            item = dataset[index]
            predicted = predict(network, item.image, image_size)
            counts = counts + count_pixels(predicted, item.mask, num_classes)
    return counts
