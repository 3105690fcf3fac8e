"""Default configuration shared by the CIFAR architectures."""
from typing import Any

__all__ = ['CIFAR100_MEAN', 'CIFAR100_STD', 'cifar_cfg']

# per channel statistics of the CIFAR-100 training images, scaled to [0, 1]
CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)

CIFAR100_STD = (0.2673, 0.2564, 0.2762)


def cifar_cfg(**kwargs) -> dict[str, Any]:
    """Create the default configuration of a CIFAR architecture that has no pretrained weights.

    Args:
        **kwargs: Entries that add to or override the defaults.

    Returns:
        Configuration dict for `timm.models.generate_default_cfgs`.
    """
    return {
        'url': '',
        'num_classes': 100, 'input_size': (3, 32, 32), 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bilinear',
        'mean': CIFAR100_MEAN, 'std': CIFAR100_STD,
        'first_conv': 'conv1', 'classifier': 'fc',
        'license': 'apache-2.0',
        **kwargs,
    }
