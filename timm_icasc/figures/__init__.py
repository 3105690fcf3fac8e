"""Figures of attention maps and of what they tell, drawn with matplotlib without a display."""
from .pairs import attention_figure

__all__ = ['attention_figure']
