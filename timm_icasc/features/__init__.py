"""Where a map is read: the inner and the last feature layer of any model, and the tap on them."""
from .layout import FeatureLayer, ICASCLayers
from .resolve import resolve_layers
from .tap import capture_features

__all__ = ['FeatureLayer', 'ICASCLayers', 'capture_features', 'resolve_layers']
