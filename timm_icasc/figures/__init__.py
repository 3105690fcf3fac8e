"""Figures of attention maps and of what they tell, drawn with matplotlib without a display."""
from .pair import attention_figure

__all__ = ['attention_figure']
