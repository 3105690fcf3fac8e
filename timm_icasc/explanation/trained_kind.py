"""Whether a model was trained on images of one class or of several, as far as it carries that along."""
import torch.nn as nn

from ..features.owner import owners
from ..hub.tags import WEIGHT_TAGS
from ..labels import MULTI, kind_of_measures

__all__ = ['is_multilabel']


def is_multilabel(model: nn.Module) -> bool:
    """Whether the model's configuration says that an image can have several classes.

    It is `problem_type` of transformers; of weights that ship with this package, what they were evaluated by. Weights
    whose head was replaced by one of another size say nothing.

    Args:
        model: Classifier, or what holds one.
    """
    for _, config in owners(model, 'config', lambda config: hasattr(config, 'problem_type')):
        return config.problem_type == 'multi_label_classification'
    for path, config in owners(model, 'pretrained_cfg'):
        weights = WEIGHT_TAGS.get(f"{config.get('architecture')}.{config.get('tag')}")
        own = getattr(model.get_submodule(path), 'num_classes', None) == config.get('num_classes')
        if weights is not None and own and kind_of_measures(weights.noted.get('metrics')) is MULTI:
            return True
    return False
