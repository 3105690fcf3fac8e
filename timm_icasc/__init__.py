"""ICASC (Wang et al., "Sharpen Focus", ICCV 2019) for every timm model.

Importing this package registers its architectures and weight tags with timm.
"""
from . import attention as attention
from . import losses as losses
from . import models as models
from .errors import DataError, HubError, ICASCError, LayerResolutionError, NonFiniteLossError, TargetError
from .features import FeatureLayer, ICASCLayers
from .hub.registry import register_tags as _register_tags
from .layers import resolve_layers
from .objective import ICASCConfig, ICASCOutput, attention_maps, icasc_forward
from .task import ICASCTask, MultiLabelICASCTask
from .version import __version__

__all__ = [
    'DataError', 'FeatureLayer', 'HubError', 'ICASCConfig', 'ICASCError', 'ICASCLayers', 'ICASCOutput', 'ICASCTask',
    'LayerResolutionError', 'MultiLabelICASCTask', 'NonFiniteLossError', 'TargetError', '__version__', 'attention',
    'attention_maps', 'icasc_forward', 'losses', 'models', 'resolve_layers',
]

_register_tags()
