"""Which two features of a model ICASC looks at, and how to read them as `[B, K, H, W]`.

The *last* layer is the deepest feature on the path to the logits whose spatial gradient is not zero. The *inner*
layer is the deepest feature at (about) twice its resolution, the end of the penultimate stage; isotropic models, whose
features share one resolution, use the feature at 3/4 of their depth.

Shapes: `B` batch, `K` channels, `H W` feature grid, `L` tokens (prefix tokens such as the class token included).
"""
import math
import weakref
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .errors import LayerResolutionError

__all__ = ['FeatureLayer', 'ICASCLayers', 'is_checkpointing', 'resolve_layers', 'unwrap_model']

# The depth rule of isotropic models, as a fraction of the feature list.
ISOTROPIC_INNER_DEPTH = 0.75
# Strides are powers of two, but odd input sizes round the grids: 1.75 to 2.12 is what models show.
MIN_INNER_RATIO = 1.5
# Aspect ratios of token grid and image differ by the rounding of each side to whole patches.
MAX_ASPECT_MISMATCH = math.log(1.3)
DEFAULT_INPUT_SIZE = (3, 224, 224)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, '_orig_mod', None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def is_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on, by the flag that timm's models carry."""
    return any(getattr(module, 'grad_checkpointing', False) for module in model.modules())


def _token_grid(num_tokens: int, image_size: Tuple[int, int]) -> Optional[Tuple[int, int]]:
    """Factor `num_tokens` into the rows and columns whose aspect is the image's; None if no factors come close."""
    image_aspect = math.log(image_size[0] / image_size[1])
    grids = [(h, num_tokens // h) for h in range(1, num_tokens + 1) if num_tokens % h == 0]
    mismatch, grid = min((abs(math.log(h / w) - image_aspect), (h, w)) for h, w in grids) if grids else (math.inf, None)
    return grid if mismatch <= MAX_ASPECT_MISMATCH else None


@dataclass(frozen=True)
class FeatureLayer:
    """One feature map of a model.

    Attributes:
        path: Module path of the tap (`model.get_submodule(path)`); its output is the feature.
        layout: 'NCHW', 'NHWC' or 'NLC' (tokens).
        channels: Number of channels `K`.
        grid: Rows and columns `H, W` at the input size the layer was resolved with.
        prefix_tokens: Leading tokens that are not pixels (class, distillation and register tokens); 'NLC' only.
        modified_in_place: The model overwrites this output in its next operation, so the tap must hand on a copy.
    """
    path: str
    layout: str
    channels: int
    grid: Tuple[int, int]
    prefix_tokens: int = 0
    modified_in_place: bool = False

    def to_nchw(self, x: torch.Tensor, image_size: Tuple[int, int]) -> torch.Tensor:
        """View the tap's output, or a gradient of its shape, as `[B, K, H, W]`.

        Args:
            x: Tensor in this layer's layout, for any input size that the model takes.
            image_size: Height and width of the model's input, which give the aspect of a token grid.
        """
        if self.layout == 'NCHW':
            return x
        if self.layout == 'NHWC':
            return x.permute(0, 3, 1, 2)
        grid = _token_grid(x.shape[1] - self.prefix_tokens, image_size)
        if grid is None:
            raise LayerResolutionError(
                f"Layer '{self.path}' gave {x.shape[1]} tokens, which do not form a grid of the input's aspect "
                f"{tuple(image_size)}; resize the images to a multiple of the patch size.")
        return x[:, self.prefix_tokens:].transpose(1, 2).unflatten(2, grid)


class ICASCLayers(NamedTuple):
    """The two features that ICASC works on."""
    inner: FeatureLayer
    last: FeatureLayer


def _read_layout(
        path: str,
        shape: Sequence[int],
        image_size: Tuple[int, int],
        channels: Optional[int],
        prefix_tokens: int,
) -> Optional[FeatureLayer]:
    """Tell the layout of a tap's output from its shape; None where it has no spatial grid."""
    def mismatch(h: int, w: int) -> float:
        return abs(math.log(h / w) - math.log(image_size[0] / image_size[1]))

    if len(shape) == 4:
        readings = [
            FeatureLayer(path, 'NCHW', shape[1], (shape[2], shape[3])),
            FeatureLayer(path, 'NHWC', shape[3], (shape[1], shape[2])),
        ]
        if channels is not None:
            readings = [r for r in readings if r.channels == channels]
        # min() keeps the first of equals: a 64-channel 64 x 64 feature is read as NCHW.
        return min(readings, key=lambda r: mismatch(*r.grid), default=None)
    if len(shape) == 3 and channels in (None, shape[2]):
        # The attribute is the model's word; elsewhere the token count decides which small number leaves a grid.
        for prefix in dict.fromkeys((prefix_tokens, 0, 1, 2)):
            grid = _token_grid(shape[1] - prefix, image_size) if shape[1] > prefix else None
            if grid is not None:
                return FeatureLayer(path, 'NLC', shape[2], grid, prefix_tokens=prefix)
    return None


def _last_child_chain(model: nn.Module, path: str) -> List[str]:
    """`path`, its last child, that one's last child, ...: what to tap where a container itself is never called."""
    chain, module = [path], model.get_submodule(path)
    while children := list(module.named_children()):
        name, module = children[-1]
        chain.append(f'{chain[-1]}.{name}')
    return chain


class _Probe:
    """Outputs and gradients of candidate modules, from one forward and one backward pass in evaluation mode."""

    def __init__(self, model: nn.Module, paths: Sequence[str], input_size: Tuple[int, int, int]):
        self.image_size = input_size[-2:]
        self.outputs: Dict[str, torch.Tensor] = {}
        self.versions: Dict[str, int] = {}
        parameter = next(model.parameters())
        generator = torch.Generator().manual_seed(0)  # leaves the global random state alone

        def record(path):
            def hook(module, args, output):
                if isinstance(output, torch.Tensor):
                    self.outputs[path] = output
                    self.versions[path] = output._version
            return hook

        handles = [model.get_submodule(path).register_forward_hook(record(path)) for path in paths]
        training = {module: module.training for module in model.modules()}
        try:
            model.eval()
            with torch.inference_mode(False), torch.enable_grad():
                images = torch.randn(2, *input_size, generator=generator).to(parameter.device, parameter.dtype)
                # Heads that start at zero would hide every gradient; the probe sees random values in their place.
                random_weights = {
                    name: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) * 0.02
                    for name, p in model.named_parameters() if p.ndim > 1 and not p.detach().any()
                }
                logits = torch.func.functional_call(model, random_weights, (images.requires_grad_(),))
                self._check_logits(model, logits)
                cotangent = torch.randn(logits.shape, generator=generator).to(logits)
                tensors = list(self.outputs.values())
                self.gradients = dict(zip(self.outputs, torch.autograd.grad(
                    logits, tensors, cotangent, allow_unused=True), strict=True)) if tensors else {}
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in training.items():
                module.training = mode

    @staticmethod
    def _check_logits(model: nn.Module, logits: Any) -> None:
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or getattr(model, 'num_classes', 1) == 0:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise LayerResolutionError(
                f'{type(model).__name__} does not return class logits [B, C] but {got}; '
                f'create it with num_classes >= 2 and without features_only.')

    def first_fired(self, chain: Sequence[str]) -> Optional[str]:
        return next((path for path in chain if path in self.outputs), None)

    def read(self, path: str, channels: Optional[int], prefix_tokens: int) -> Optional[FeatureLayer]:
        """The layer at `path`; None where it is off the path to the logits or has no spatial grid."""
        if self.gradients.get(path) is None:
            return None
        layer = _read_layout(path, self.outputs[path].shape, self.image_size, channels, prefix_tokens)
        if layer is None or self.outputs[path].shape[0] != 2:
            return None
        if self.outputs[path]._version != self.versions[path]:
            layer = FeatureLayer(**{**layer.__dict__, 'modified_in_place': True})
        return layer

    def has_spatial_gradient(self, layer: FeatureLayer) -> bool:
        return bool(layer.to_nchw(self.gradients[layer.path], self.image_size).any())


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
    info = [entry for entry in info if entry.get('module') in modules]
    if not info:
        raise LayerResolutionError(
            f"{type(model).__name__} has no 'feature_info' that names its modules; {remedy}")
    chains = [_last_child_chain(model, entry['module']) for entry in info]
    probe = _Probe(model, [path for chain in chains for path in chain], input_size)
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
    probe = _Probe(model, paths, input_size)
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
    flags and the global random state stay as they are. The answer is cached per model, choice of layers, input size
    and state of gradient checkpointing.

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
    # Checkpointed containers are not called as modules, so the taps differ with gradient checkpointing on.
    key = (tuple(layers) if layers is not None else None, tuple(input_size), is_checkpointing(model))
    resolved = _cache.setdefault(model, {})
    if key not in resolved:
        prefix_tokens = getattr(model, 'num_prefix_tokens', 0)
        if layers is not None:
            resolved[key] = _resolve_explicit(model, layers, tuple(input_size), prefix_tokens)
        else:
            resolved[key] = _resolve_automatic(model, tuple(input_size), prefix_tokens)
    return resolved[key]
