"""What a classifier looks at in images as people have them: files, arrays, tensors, without labels."""
from .explainer import Explainer, explain
from .overlay import overlay
from .pictures import Explanation

__all__ = ['Explainer', 'Explanation', 'explain', 'overlay']
