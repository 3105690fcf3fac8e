"""Pre-activation ResNet for CIFAR with 9n+2 layers.

Paper: `Identity Mappings in Deep Residual Networks`, section 4 and appendix - https://arxiv.org/abs/1603.05027

Stochastic depth: `Deep Networks with Stochastic Depth` - https://arxiv.org/abs/1603.09382
"""
from collections import OrderedDict

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnetv2 import ResNetV2

from ._default_cfg import cifar_cfg

__all__ = ['PreActResNetCifar']


class PreActResNetCifar(ResNetV2):
    """Pre-activation bottleneck ResNet for 32x32 images, arXiv 1603.05027, section 4 and appendix.

    A 3x3 stem without norm, three stages with strides 1, 2 and 2, the final BN and ReLU, global average pooling and
    the classifier. The first unit of each stage has a 1x1 projection shortcut that shares the unit's pre-activation,
    all other shortcuts are the identity. The unit is `timm.models.resnetv2.PreActBottleneck`, which differs from the
    authors' code in one point: a stage's stride is in the 3x3 convolution, not in the 1x1 before it. The number of
    parameters is the same.

    The last feature is the output of the final BN and ReLU, the ones before it are stage outputs of either sign.
    """

    def __init__(
            self,
            layers: tuple[int, ...],
            channels: tuple[int, ...] = (64, 128, 256),
            num_classes: int = 100,
            in_chans: int = 3,
            global_pool: str = 'avg',
            stem_chs: int = 16,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device=None,
            dtype=None,
    ) -> None:
        """
        Args:
            layers: Number of bottleneck units in each stage, n in each of three for 9n+2 layers.
            channels: Number of output channels of each stage.
            num_classes: Number of classification classes.
            in_chans: Number of input (color) channels.
            global_pool: Global pooling type. One of 'avg', 'max', 'avgmax', 'catavgmax', '' for none.
            stem_chs: Number of stem channels.
            drop_rate: Dropout probability before the classifier, for training.
            drop_path_rate: Stochastic depth rate of the last unit, the rates rise linearly from 0 at the first.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__(
            layers=list(layers),
            channels=channels,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            stem_chs=stem_chs,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **dd,
        )
        # The 7x7 stride 2 stem and its pooling, 4 times coarser, make way for the paper's 3x3
        conv = create_conv2d(in_chans, stem_chs, 3, **dd)
        nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
        self.stem = nn.Sequential(OrderedDict(conv=conv))
        self.feature_info = [dict(num_chs=stem_chs, reduction=1, module='stem.conv')]
        for stage_idx, num_chs in enumerate(channels):
            self.feature_info.append(dict(num_chs=num_chs, reduction=2 ** stage_idx, module=f'stages.{stage_idx}'))
        self.feature_info[-1]['module'] = 'norm'  # the last stage continues into the final BN and ReLU

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Forward features that returns intermediates.

        Args:
            x: Input image tensor.
            indices: Take last n features if int, all if None, select matching indices if sequence.
            norm: Apply norm layer to compatible intermediates (unused, the last feature is the final norm output).
            stop_early: Stop iterating over stages when last desired intermediate hit.
            output_fmt: Shape of intermediate feature outputs.
            intermediates_only: Only return intermediate features.

        Returns:
            Features and list of intermediate features or just intermediate features.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)

        x = self.stem(x)
        if 0 in take_indices:
            intermediates.append(x)

        last_idx = len(self.feature_info) - 1
        if torch.jit.is_scripting() or not stop_early:  # can't slice stages in torchscript
            stages = self.stages
        else:
            stages = self.stages[:max_index]
        for feat_idx, stage in enumerate(stages, start=1):
            x = stage(x)
            if feat_idx == last_idx:
                x = self.norm(x)
            if feat_idx in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates

        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Prune layers not required for specified intermediates.

        Args:
            indices: Indices of intermediate layers to keep.
            prune_norm: Whether to prune normalization layers (unused, the final norm is the last feature).
            prune_head: Whether to prune the classifier head.

        Returns:
            List of indices that were kept.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        prune_end = max_index < len(self.feature_info) - 1
        self.stages = self.stages[:max_index]  # the stem is index 0
        if prune_end:
            # features now end at the last kept stage, the final norm and the classifier do not fit them
            self.norm = nn.Identity()
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices


def _create_preact_resnet_cifar(
        variant: str,
        depth: int,
        pretrained: bool = False,
        **kwargs,
) -> PreActResNetCifar:
    num_blocks, remainder = divmod(depth - 2, 9)
    assert remainder == 0, 'The depth of a pre-activation bottleneck ResNet for CIFAR is 9n+2.'
    return build_model_with_cfg(
        PreActResNetCifar,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), flatten_sequential=True),
        layers=(num_blocks,) * 3,
        **kwargs,
    )


default_cfgs = generate_default_cfgs({
    'preact_resnet164_cifar': cifar_cfg(first_conv='stem.conv', classifier='head.fc'),
})


@register_model
def preact_resnet164_cifar(pretrained: bool = False, **kwargs) -> PreActResNetCifar:
    """Pre-activation ResNet-164 for CIFAR, 1.7 M parameters, arXiv 1603.05027, section 4 and appendix."""
    return _create_preact_resnet_cifar('preact_resnet164_cifar', 164, pretrained, **kwargs)
