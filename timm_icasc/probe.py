"""See what a model's modules put out, and what gradient reaches them, without leaving a trace in the model."""
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .errors import LayerResolutionError
from .features import FeatureLayer, read_layout
from .modules import evaluation_mode

__all__ = ['Probe']


class Probe:
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
        try:
            with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
                images = torch.randn(2, *input_size, generator=generator).to(parameter.device, parameter.dtype)
                # Heads that start at zero would hide every gradient; the probe sees random values in their place.
                random_weights = {
                    name: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) * 0.02
                    for name, p in model.named_parameters() if p.ndim > 1 and not p.detach().any()
                }
                try:
                    logits = torch.func.functional_call(model, random_weights, (images.requires_grad_(),))
                except Exception as e:  # whatever 1,400 architectures say of an input that they cannot take
                    raise LayerResolutionError(
                        f'{type(model).__name__} cannot run on {" x ".join(map(str, input_size))} images: '
                        f'{" ".join(str(e).split())[:200] or type(e).__name__}') from e
                self._check_logits(model, logits)
                cotangent = torch.randn(logits.shape, generator=generator).to(logits)
                tensors = list(self.outputs.values())
                self.gradients = dict(zip(self.outputs, torch.autograd.grad(
                    logits, tensors, cotangent, allow_unused=True), strict=True)) if tensors else {}
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _check_logits(model: nn.Module, logits: Any) -> None:
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or getattr(model, 'num_classes', 1) == 0:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise LayerResolutionError(
                f'{type(model).__name__} does not return class logits [B, C] but {got}; '
                f'create it with num_classes >= 2 and without features_only.')

    def first_fired(self, chain: Sequence[str]) -> Optional[str]:
        """The first of the paths whose module was called."""
        return next((path for path in chain if path in self.outputs), None)

    def read(self, path: str, channels: Optional[int], prefix_tokens: int) -> Optional[FeatureLayer]:
        """The layer at `path`; None where it is off the path to the logits or has no spatial grid."""
        if self.gradients.get(path) is None:
            return None
        layer = read_layout(path, self.outputs[path].shape, self.image_size, channels, prefix_tokens)
        if layer is None or self.outputs[path].shape[0] != 2:
            return None
        if self.outputs[path]._version != self.versions[path]:
            layer = FeatureLayer(**{**layer.__dict__, 'modified_in_place': True})
        return layer

    def has_spatial_gradient(self, layer: FeatureLayer) -> bool:
        """Whether the logits depend on the layer's grid, its prefix tokens left aside."""
        return bool(layer.to_nchw(self.gradients[layer.path], self.image_size).any())
