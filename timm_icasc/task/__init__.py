"""ICASC as a task of timm (`timm.task`): the model and its losses, for any loop."""
from .icasc import ICASCTask, MultiLabelICASCTask
from .public_approach import PublicApproachTask

__all__ = ['ICASCTask', 'MultiLabelICASCTask', 'PublicApproachTask']
