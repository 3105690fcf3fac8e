"""Attention maps at inference, against one forward pass and against other packages that are installed."""
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
import torch.nn as nn

from ..errors import ICASCError
from ..features.resolve import resolve_layers
from ..objective.maps import attention_maps
from .cost import interleaved_seconds
from .steps import BenchmarkSetting, create_model

__all__ = ['FORWARD', 'measure_maps']

FORWARD = 'forward pass'


def _torchcam(model: nn.Module, path: str, images: torch.Tensor, topk: int) -> Any:
    from torchcam.methods import GradCAM
    with GradCAM(model, target_layer=path) as extractor:
        scores = model(images)
        classes = scores.detach().topk(topk).indices.T.tolist()
        return [extractor(indices, scores, retain_graph=True) for indices in classes]


def _pytorch_grad_cam(model: nn.Module, path: str, images: torch.Tensor, topk: int) -> Any:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    with torch.no_grad():
        classes = model(images).topk(topk).indices.T.tolist()
    with GradCAM(model, [model.get_submodule(path)]) as cam:
        return [
            cam(images, [ClassifierOutputTarget(index) for index in indices])
            for indices in classes]


PEERS = {'torchcam': _torchcam, 'pytorch_grad_cam': _pytorch_grad_cam}


def measure_maps(
        name: str,
        setting: BenchmarkSetting,
        topk: Sequence[int],
        repeats: int,
) -> dict[str, float]:
    """Median seconds for the maps of the top classes of a batch at the last and the inner layer, Grad-CAM throughout.

    Args:
        name: timm architecture.
        setting: What is measured.
        topk: Numbers of classes.
        repeats: Timed calls of each.

    Returns:
        Seconds of `FORWARD` and, with layer and number of classes after the name, of this package and of the others.

    Raises:
        ICASCError: The model has fewer classes than `topk`.
    """
    model, size = create_model(name, setting)
    model.eval()
    if max(topk) > model.num_classes:
        raise ICASCError(f'`topk`: {name} has {model.num_classes} classes, got {max(topk)}.')
    images = torch.randn(setting.batch_size, *size, device=setting.device)
    layers = resolve_layers(model, input_size=size)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(images)

    calls: dict[str, Callable[[], Any]] = {FORWARD: forward}
    for place, k in product(('last', 'inner'), topk):
        layer = getattr(layers, place)
        calls[f'timm_icasc {place}, K={k}'] = partial(
            attention_maps, model, images, topk=k, method='grad_cam', layer=place)
        if layer.layout == 'NCHW':  # the others take grids of channels without more ado
            calls.update({
                f'{peer} {place}, K={k}': partial(call, model, layer.path, images, k)
                for peer, call in PEERS.items() if find_spec(peer)})
    return interleaved_seconds(calls, torch.device(setting.device), repeats, f'{name}: maps')
