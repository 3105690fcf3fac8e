"""The smallest ResNet for CIFAR, one block a stage: two fifths of ResNet-20's modules and work, and all of its kinds.

Registered where the tests run and in forks of it, not in processes of their own.
"""
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from timm_icasc.models._default_cfg import cifar_cfg
from timm_icasc.models.resnet_cifar import ResNetCifar

default_cfgs = generate_default_cfgs({'resnet8_cifar': cifar_cfg()})


@register_model
def resnet8_cifar(pretrained=False, **kwargs):
    return build_model_with_cfg(
        ResNetCifar, 'resnet8_cifar', pretrained, feature_cfg={'out_indices': (0, 1, 2, 3)}, layers=(1, 1, 1), **kwargs)
