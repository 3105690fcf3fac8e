"""Whether one architecture of timm works: its two layers, and what the gradient of the ICASC terms reaches."""
from dataclasses import asdict, fields
from typing import Any

import timm
import torch
import torch.nn as nn

from ..errors import LayerResolutionError, with_type
from ..features.graph import graph_nodes
from ..features.layout import FeatureLayer, ICASCLayers
from ..features.meta import RememberShapes
from ..features.resolve import find_layers
from ..objective.config import ICASCConfig
from ..objective.forward import icasc_forward
from .map_check import map_check

__all__ = ['inspect_architecture']

_SHAPES = RememberShapes()  # for all architectures of a process: those of a family ask the same questions


def _describe(layer: FeatureLayer) -> dict[str, Any]:
    """What is not the default of the layer's attributes; the order of a few thousand tokens is left out."""
    values = {**asdict(layer), 'grid': list(layer.grid), 'token_order': layer.token_order and 'reroll'}
    defaults = {f.name: f.default for f in fields(layer)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _reached_share(
        model: nn.Module,
        layers: ICASCLayers,
        input_size: tuple[int, int, int],
        order: int,
) -> float:
    """Share of the parameter tensors that the gradient of the ICASC terms reaches in a training step.

    The backward pass runs down to the inner layer; what lies before it is an ordinary backward pass, whose graph is
    followed but not computed.
    """
    images = torch.empty(2, *input_size, device='meta')
    target = torch.empty(2, dtype=torch.int64, device='meta')
    config = ICASCConfig(order=order)
    parameters = [p for p in model.parameters() if p.requires_grad]
    features = []
    with model.get_submodule(layers.inner.path).register_forward_hook(
            lambda module, args, output: features.append(layers.inner.get(output))):
        loss = icasc_forward(model, images, target, layers, config).weighted_sum(config)
    before = {node.variable for node in graph_nodes(features[-1]) if hasattr(node, 'variable')}
    behind = [p for p in parameters if p not in before]
    inner, *gradients = torch.autograd.grad(loss, [features[-1], *behind], allow_unused=True)
    reached = sum(g is not None for g in gradients) + (len(before) if inner is not None else 0)
    return reached / len(parameters)


def inspect_architecture(name: str, img_size: int | None = None) -> dict[str, Any]:
    """Layers and twice-differentiability of one architecture, on meta tensors.

    Args:
        name: timm architecture.
        img_size: Height and width of the images; the architecture's own when None.

    Returns:
        'family' (the module that defines it), 'input_size', and either 'error' or: 'inner' and 'last' (path, layout,
        channels, grid and what else is not the default of `FeatureLayer`), 'nonzero' (share of the last layer's grid
        that the class scores depend on), 'negative' (share of values below 0 of both layers, with random weights and
        random values before them; None where they cannot be known), 'maps' (`map_check` of the last layer), 'order1'
        and 'order2' (share of the parameter tensors that the gradient of the terms reaches, or the reason why there is
        none).
    """
    with _SHAPES:
        with torch.device('meta'):
            fixed = timm.get_pretrained_cfg(name).fixed_input_size
            model = timm.create_model(name, num_classes=10, **({'img_size': img_size} if img_size and fixed else {}))
        channels, height, width = model.pretrained_cfg['input_size']
        input_size = (channels, img_size or height, img_size or width)
        record: dict[str, Any] = {'family': timm.model_entrypoint(name).__module__, 'input_size': list(input_size)}
        try:
            layers, probe = find_layers(model, input_size)
        except LayerResolutionError as e:
            return {**record, 'error': str(e)}
        negative = probe.negative_share(layers)
        checked = map_check(probe.tail, layers.last, input_size[1:])
        record.update(
            inner=_describe(layers.inner), last=_describe(layers.last),
            nonzero=round(probe.nonzero_share(layers.last), 4),
            negative=negative and [round(share, 3) for share in negative],
            maps={
                name: shares and [round(share, 2) for share in shares]
                for name, shares in checked.items()})
        model.train()
        for order in (1, 2):
            try:
                record[f'order{order}'] = round(_reached_share(model, layers, input_size, order), 4)
            except Exception as e:  # whatever an operation without a derivative says
                record[f'order{order}'] = with_type(e)
        return record
