"""Architectures for CIFAR, registered with timm on import."""
from .preact_resnet_cifar import *  # noqa: F403
from .resnet_cifar import *  # noqa: F403
from .resnet_cifar_stem import *  # noqa: F403
