"""The network that learns from cues: a DeepLabV3 of torchvision.

Shapes: `B` batch, `C` classes with the background first, `h w` grid of the network's scores.
"""
from pathlib import Path

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.models import segmentation
from torchvision.transforms.functional import normalize, pil_to_tensor, resize

from ...errors import ICASCError, one_line
from ...features.module_state import evaluation_mode
from ...runs.intact import check_intact
from ...training.pretrained import read_weights

__all__ = ['create_network', 'grid_scores', 'network_input', 'score_grid']


def create_network(name: str, num_classes: int, backbone_weights: Path | None = None) -> nn.Module:
    """A DeepLabV3 with random weights, or with those of a torchvision classifier or segmenter in its backbone.

    Args:
        name: Name of the torchvision network.
        num_classes: Classes, background included.
        backbone_weights: Of torchvision's ResNet or MobileNet, or of a DeepLabV3, as `read_weights` takes them.

    Raises:
        ICASCError: No such network, or weights that do not fit.
    """
    factory = getattr(segmentation, name, None)
    if not name.startswith('deeplabv3_') or factory is None:
        raise ICASCError(
            f"`network`: torchvision has no '{name}'; it has deeplabv3_resnet50, deeplabv3_resnet101 and "
            f'deeplabv3_mobilenet_v3_large.')
    network = factory(weights=None, weights_backbone=None, num_classes=num_classes)
    if backbone_weights is not None:
        try:
            check_intact(backbone_weights)
        except ICASCError as e:
            raise ICASCError(f'`backbone_weights`: {e}') from e
        state = read_weights(backbone_weights, '`backbone_weights`:')
        # The blocks of a MobileNet classifier are below 'features', those of a segmenter below 'backbone'.
        state = {key.removeprefix('backbone.').removeprefix('features.'): value for key, value in state.items()}
        own = network.backbone.state_dict()
        missing = [key for key in own if key not in state and not key.endswith('num_batches_tracked')]
        if missing:
            raise ICASCError(
                f"`backbone_weights`: '{backbone_weights}' lacks {missing[0]} and {len(missing) - 1} more "
                f'of {name}.')
        try:
            network.backbone.load_state_dict({key: state.get(key, own[key]) for key in own})
        except (RuntimeError, TypeError) as e:
            raise ICASCError(f"`backbone_weights`: '{backbone_weights}' does not fit {name}: {one_line(e)}") from e
    return network


def network_input(image, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image squashed to a square: normalised for the network, and its colours 0 to 255; `[3, size, size]` both."""
    colors = pil_to_tensor(resize(image, [size, size])).float()
    return normalize(colors / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), colors


def grid_scores(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Scores on the network's own grid, `[B, C, h, w]`, before it enlarges them."""
    return network.classifier(network.backbone(images)['out'])


@torch.no_grad()
def score_grid(network: nn.Module, image_size: int) -> tuple[int, int]:
    """Rows and columns of the scores of an image of `image_size`."""
    images = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    with evaluation_mode(network):
        return tuple(grid_scores(network, images).shape[-2:])
