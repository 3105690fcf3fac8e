"""Eq. 6 of one batch: class scores, their gradients, attention maps, losses. Knows no trainer."""
from .config import ICASCConfig
from .forward import ICASCOutput, icasc_forward
from .maps import attention_maps

__all__ = ['ICASCConfig', 'ICASCOutput', 'attention_maps', 'icasc_forward']
