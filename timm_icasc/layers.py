"""Which two features of a model ICASC looks at.

The *last* layer is the deepest feature on the path to the logits whose spatial gradient is not zero. The *inner*
layer is the deepest feature at (about) twice its resolution, the end of the penultimate stage; isotropic models, whose
features share one resolution, use the feature at 3/4 of their depth.
"""
import math
import weakref
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch.nn as nn

from .errors import LayerResolutionError
from .features import FeatureLayer, ICASCLayers
from .modules import is_checkpointing, unwrap_model
from .probe import Probe

__all__ = ['resolve_layers']

# The depth rule of isotropic models, as a fraction of the feature list.
ISOTROPIC_INNER_DEPTH = 0.75
# Strides are powers of two, but odd input sizes round the grids: 1.75 to 2.12 is what models show.
MIN_INNER_RATIO = 1.5
DEFAULT_INPUT_SIZE = (3, 224, 224)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def _last_child_chain(model: nn.Module, path: str) -> List[str]:
    """`path`, its last child, that one's last child, ...: what to tap where a container itself is never called."""
    chain, module = [path], model.get_submodule(path)
    while children := list(module.named_children()):
        name, module = children[-1]
        chain.append(f'{chain[-1]}.{name}')
    return chain


def _choose_inner(features: List[FeatureLayer], last: FeatureLayer) -> Optional[FeatureLayer]:
    before = features[:features.index(last)]
    finer = [f for f in before if math.prod(f.grid) >= MIN_INNER_RATIO ** 2 * math.prod(last.grid)]
    if finer:
        return finer[-1]
    if not before:
        return None
    depth = math.ceil(ISOTROPIC_INNER_DEPTH * len(features)) - 1
    return before[min(depth, len(before) - 1)]


def _resolve_automatic(model: nn.Module, input_size: Tuple[int, int, int], prefix_tokens: int) -> ICASCLayers:
    info = [dict(entry) for entry in getattr(model, 'feature_info', None) or ()]
    remedy = "name both layers yourself: layers=('INNER_MODULE_PATH', 'LAST_MODULE_PATH'), --icasc-layers INNER LAST."
    modules = dict(model.named_modules())
    # A bare pool (VGG) repeats the layer before it: the two maps would be one.
    info = [entry for entry in info if not isinstance(modules.get(entry.get('module')), POOLS + (type(None),))]
    if not info:
        raise LayerResolutionError(
            f"{type(model).__name__} has no 'feature_info' that names its modules; {remedy}")
    chains = [_last_child_chain(model, entry['module']) for entry in info]
    probe = Probe(model, [path for chain in chains for path in chain], input_size)
    features = []
    for entry, chain in zip(info, chains, strict=True):
        path = probe.first_fired(chain)
        layer = probe.read(path, entry.get('num_chs'), prefix_tokens) if path is not None else None
        if layer is not None:
            features.append(layer)
    # The patch tokens of the last block get no gradient where the head reads the class token alone: step back, but
    # never to a coarser or finer stage.
    usable = [f for f in features if f.grid == features[-1].grid and probe.has_spatial_gradient(f)]
    if not usable:
        raise LayerResolutionError(
            f'{type(model).__name__}: no feature of feature_info has a spatial gradient from the logits; {remedy}')
    last = usable[-1]
    inner = _choose_inner(features, last)
    if inner is None or not probe.has_spatial_gradient(inner):
        raise LayerResolutionError(f"{type(model).__name__}: no inner layer before '{last.path}'; {remedy}")
    return ICASCLayers(inner=inner, last=last)


def _resolve_explicit(
        model: nn.Module,
        paths: Sequence[str],
        input_size: Tuple[int, int, int],
        prefix_tokens: int,
) -> ICASCLayers:
    if isinstance(paths, str) or len(paths) != 2:
        raise LayerResolutionError(f'layers must be two module paths, (inner, last), got {paths!r}.')
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules or not path:
            siblings = [name for name in modules if name.count('.') == path.count('.') and name]
            raise LayerResolutionError(
                f"{type(model).__name__} has no layer '{path}'; modules at that depth: {', '.join(siblings[:12])}"
                f"{', ...' if len(siblings) > 12 else ''}.")
    probe = Probe(model, paths, input_size)
    if list(probe.outputs) == [paths[1], paths[0]] or paths[0] == paths[1]:
        raise LayerResolutionError(f"layers are (inner, last): '{paths[0]}' must come before '{paths[1]}'.")
    layers = []
    for path in paths:
        layer = probe.read(path, None, prefix_tokens)
        if layer is None:
            raise LayerResolutionError(
                f"Layer '{path}' of {type(model).__name__} has no spatial feature on the path to the logits: its "
                f'module must be called in forward() and return one tensor [B, K, H, W], [B, H, W, K] or [B, L, K].')
        if not probe.has_spatial_gradient(layer):
            raise LayerResolutionError(
                f"The logits of {type(model).__name__} have no gradient on the grid of layer '{path}', so every map "
                f'would be zero (a class-token head?); name an earlier module.')
        layers.append(layer)
    return ICASCLayers(*layers)


_cache: 'weakref.WeakKeyDictionary[nn.Module, Dict[Any, ICASCLayers]]' = weakref.WeakKeyDictionary()


def resolve_layers(
        model: nn.Module,
        layers: Optional[Sequence[str]] = None,
        input_size: Optional[Tuple[int, int, int]] = None,
) -> ICASCLayers:
    """Find the inner and the last feature layer of a classifier (section 3 of the paper).

    Runs the model once on two random images, forward and backward, in evaluation mode; parameters, buffers, training
    flags and the global random state stay as they are. The answer is cached per model (its modules and pooling
    as they are), choice of layers, input size and state of gradient checkpointing.

    Args:
        model: Classifier `[B, C, H, W] -> [B, num_classes]`; timm models carry the `feature_info` this reads.
        layers: Module paths (inner, last) to use instead, for any `nn.Module`.
        input_size: Channels, height, width of the images; the model's pretrained_cfg when None, else 3 x 224 x 224.

    Returns:
        The layers `.inner` and `.last`: module path, layout, channels, grid.

    Raises:
        LayerResolutionError: A path does not exist, or no spatial feature is on the path to the logits.
    """
    model = unwrap_model(model)
    if input_size is None:
        input_size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size', DEFAULT_INPUT_SIZE)
        input_size = (getattr(model, 'in_chans', input_size[0]), *input_size[1:])
    # Checkpointed containers are not called as modules, so the taps differ with gradient checkpointing on; a new head
    # or another pooling changes which tokens the logits see.
    state = (is_checkpointing(model), str(getattr(model, 'global_pool', None)), tuple(map(id, model.modules())))
    key = (tuple(layers) if layers is not None else None, tuple(input_size), hash(state))
    resolved = _cache.setdefault(model, {})
    if key not in resolved:
        prefix_tokens = getattr(model, 'num_prefix_tokens', 0)
        if layers is not None:
            resolved[key] = _resolve_explicit(model, layers, tuple(input_size), prefix_tokens)
        else:
            resolved[key] = _resolve_automatic(model, tuple(input_size), prefix_tokens)
    return resolved[key]
