"""ImageNet ResNet with a stem for CIFAR.

Papers:
* `Deep Residual Learning for Image Recognition`, section 4.1 - https://arxiv.org/abs/1512.03385
* `A Simple Framework for Contrastive Learning of Visual Representations`, appendix B.9, for the stem -
    https://arxiv.org/abs/2002.05709
"""
import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from ._default_cfg import cifar_cfg

__all__ = ['ResNetCifarStem']


class ResNetCifarStem(ResNet):
    """`timm.models.resnet.ResNet` with a 3x3 stride 1 stem and no max pooling, arXiv 2002.05709, appendix B.9.

    All features are 4 times finer than ResNet's, except for the stem's, 2 times. Parameter names are the same and so
    are the shapes, but for the stem convolution.
    """

    def __init__(
            self,
            block: type[BasicBlock] | type[Bottleneck],
            layers: tuple[int, ...],
            in_chans: int = 3,
            device=None,
            dtype=None,
            **kwargs,
    ) -> None:
        """
        Args:
            block: Class of the residual block.
            layers: Number of blocks in each stage.
            in_chans: Number of input (color) channels.
            **kwargs: Arguments of ResNet except for the type of the stem and its pooling, which are fixed here.
        """
        dd = {'device': device, 'dtype': dtype}
        # passing the fixed arguments by name makes them a TypeError in kwargs, not options without effect
        super().__init__(block, layers, in_chans=in_chans, stem_type='', replace_stem_pool=False, **kwargs, **dd)
        self.conv1 = nn.Conv2d(
            in_chans, self.conv1.out_channels, kernel_size=3, padding=1, bias=False, **dd)
        nn.init.kaiming_normal_(self.conv1.weight, mode='fan_out', nonlinearity='relu')
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info['reduction'] = max(1, info['reduction'] // 4)  # the stem's 2 becomes 1


def _create_resnet_cifar_stem(variant: str, pretrained: bool = False, **kwargs) -> ResNetCifarStem:
    return build_model_with_cfg(ResNetCifarStem, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs({
    'resnet18_cifar': cifar_cfg(pool_size=(4, 4)),
})


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs) -> ResNetCifarStem:
    """ResNet-18 with a 3x3 stride 1 stem and no max pooling, arXiv 2002.05709, appendix B.9."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _create_resnet_cifar_stem('resnet18_cifar', pretrained, **dict(model_args, **kwargs))
