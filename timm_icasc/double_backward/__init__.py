"""Operations whose second derivative costs what the arithmetic asks for.

Torch differentiates some of its backward passes by other means than it computes them: a depthwise convolution channel
by channel, GELU and SiLU in a dozen passes over memory, BatchNorm in dozens of small kernels, scaled dot-product
attention only with every attention matrix kept. Here each is written out once more, `forward -> backward -> double
backward`, by the kernels that the first derivative uses. Values are those of the torch operations.
"""
from .norms import batch_norm, layer_norm
from .operations import activation, attention, convolution
from .passes import features_only

__all__ = ['activation', 'attention', 'batch_norm', 'convolution', 'features_only', 'layer_norm']
