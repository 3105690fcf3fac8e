"""ICASC (Wang et al., "Sharpen Focus", ICCV 2019) for every timm model.

Importing this package registers its architectures and weight tags with timm.
"""
from typing import Any as _Any

from . import _starting as _starting
from . import attention as attention
from . import losses as losses
from . import models as models
from .errors import (
    DataError,
    HubError,
    ICASCError,
    LayerResolutionError,
    NonFiniteLossError,
    TargetError,
    VersionError,
)
from .features.layout import FeatureLayer, ICASCLayers
from .features.resolve import resolve_layers
from .hub.tags import register_tags as _register_tags
from .objective.config import ICASCConfig
from .objective.forward import ICASCOutput, icasc_forward
from .objective.maps import attention_maps
from .task.icasc import ICASCTask, MultiLabelICASCTask
from .version import __version__

__all__ = [
    'DataError', 'Explanation', 'FeatureLayer', 'HubError', 'ICASCConfig', 'ICASCError', 'ICASCLayers', 'ICASCOutput',
    'ICASCTask', 'LayerResolutionError', 'MultiLabelICASCTask', 'NonFiniteLossError', 'TargetError', 'VersionError',
    '__version__', 'attention', 'attention_maps', 'explain', 'icasc_forward', 'losses', 'models', 'overlay',
    'resolve_layers',
]

# Loaded when they are asked for: they draw, and training does not.
_DRAWING = ('Explanation', 'explain', 'overlay')


def __getattr__(name: str) -> _Any:
    if name in _DRAWING:
        from . import explanation
        return getattr(explanation, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


_register_tags()
