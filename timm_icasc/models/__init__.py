"""Architectures for CIFAR, registered with timm on import."""
import warnings

import timm


def _registered_before() -> list[str]:
    """Architectures that an earlier import of this package has registered: forgotten since, or under another name."""
    modules = [f'models.{name}' for name in ('preact_resnet_cifar', 'resnet_cifar', 'resnet_cifar_stem')]
    try:
        return [
            name for name in timm.list_models('*_cifar')
            if timm.models.model_entrypoint(name).__module__.partition('.')[2] in modules]
    except AttributeError:  # another timm: its warning shows
        return []


with warnings.catch_warnings():
    for _name in _registered_before():
        warnings.filterwarnings('ignore', message=f'Overwriting {_name} in registry')
    from .preact_resnet_cifar import *  # noqa: F403
    from .resnet_cifar import *  # noqa: F403
    from .resnet_cifar_stem import *  # noqa: F403
