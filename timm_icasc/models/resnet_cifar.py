"""ResNet for CIFAR with 6n+2 layers and parameter-free shortcuts.

Paper: `Deep Residual Learning for Image Recognition`, section 4.2 - https://arxiv.org/abs/1512.03385

Stochastic depth: `Deep Networks with Stochastic Depth` - https://arxiv.org/abs/1603.09382
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock

from ._default_cfg import cifar_cfg

__all__ = ['ResNetCifar', 'ZeroPadShortcut']


class ZeroPadShortcut(nn.Module):
    """Parameter-free shortcut across a change of shape, option A of arXiv 1512.03385, sections 3.3 and 4.2.

    The identity is subsampled by the stride and extra zero channels make up the width of the residual branch.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        """
        Args:
            in_chs: Number of input channels.
            out_chs: Number of output channels, no fewer than the input has.
            stride: Spatial subsampling factor.
        """
        super().__init__()
        assert out_chs >= in_chs, f'Zero padding cannot reduce {in_chs} channels to {out_chs}.'
        self.pad_chs = out_chs - in_chs
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::self.stride, ::self.stride]
        # the paper does not say where the zeros go, any place amounts to the same up to an order of the channels
        return F.pad(x, (0, 0, 0, 0, 0, self.pad_chs))

    def extra_repr(self) -> str:
        return f'pad_chs={self.pad_chs}, stride={self.stride}'


class ResNetCifar(nn.Module):
    """ResNet for 32x32 images, arXiv 1512.03385, section 4.2.

    A 3x3 stem, three stages of basic blocks with strides 1, 2 and 2, global average pooling and a linear classifier.
    All shortcuts are free of parameters (option A). Stage and parameter names are those of `timm.models.resnet.ResNet`.
    """

    def __init__(
            self,
            layers: tuple[int, int, int],
            channels: tuple[int, int, int] = (16, 32, 64),
            num_classes: int = 100,
            in_chans: int = 3,
            global_pool: str = 'avg',
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device=None,
            dtype=None,
    ) -> None:
        """
        Args:
            layers: Number of basic blocks in each stage, n in each for 6n+2 layers.
            channels: Number of channels in each stage, the stem has as many as the first stage.
            num_classes: Number of classification classes.
            in_chans: Number of input (color) channels.
            global_pool: Global pooling type. One of 'avg', 'max', 'avgmax', 'catavgmax', '' for none.
            drop_rate: Dropout probability before the classifier, for training.
            drop_path_rate: Stochastic depth rate of the last block, the rates rise linearly from 0 at the first.
        """
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        # Stem
        prev_chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, prev_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(prev_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = [dict(num_chs=prev_chs, reduction=1, module='act1')]

        # Stages
        reduction = 1
        block_dprs = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
        for stage_idx, (out_chs, stage_dprs) in enumerate(zip(channels, block_dprs, strict=True)):
            stride = 1 if stage_idx == 0 else 2
            reduction *= stride
            blocks = []
            for block_dpr in stage_dprs:
                downsample = None
                if stride != 1 or prev_chs != out_chs:
                    downsample = ZeroPadShortcut(prev_chs, out_chs, stride)
                blocks.append(BasicBlock(
                    prev_chs,
                    out_chs,
                    stride,
                    downsample,
                    drop_path=DropPath(block_dpr) if block_dpr > 0. else None,
                    **dd,
                ))
                prev_chs, stride = out_chs, 1
            stage_name = f'layer{stage_idx + 1}'
            self.add_module(stage_name, nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=prev_chs, reduction=reduction, module=stage_name))

        # Head (pooling and classifier)
        self.num_features = prev_chs
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialize the convolutions with Kaiming fan out, the other layers keep PyTorch's defaults."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Create regex patterns for parameter grouping, by stage if coarse or else by block."""
        return dict(stem=r'^conv1|bn1', blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Get the classifier module."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Reset the classifier head.

        Args:
            num_classes: Number of classes for the new classifier, 0 to remove it.
            global_pool: Global pooling type, current pooling is kept if None.
        """
        parameter = next(self.parameters())
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=parameter.device,
            dtype=parameter.dtype)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

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
            norm: Apply norm layer to compatible intermediates (unused, there is no final norm).
            stop_early: Stop iterating over stages when last desired intermediate hit.
            output_fmt: Shape of intermediate feature outputs.
            intermediates_only: Only return intermediate features.

        Returns:
            Features and list of intermediate features or just intermediate features.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)

        x = self.act1(self.bn1(self.conv1(x)))
        if 0 in take_indices:
            intermediates.append(x)

        stages = [self.layer1, self.layer2, self.layer3]
        if stop_early:
            stages = stages[:max_index]
        for feat_idx, stage in enumerate(stages, start=1):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint_seq(stage, x)
            else:
                x = stage(x)
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
            prune_norm: Whether to prune normalization layers (unused, there is no final norm).
            prune_head: Whether to prune the classifier head.

        Returns:
            List of indices that were kept.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        prune_end = max_index < len(self.feature_info) - 1
        for info in self.feature_info[max_index + 1:]:
            setattr(self, info['module'], nn.Sequential())  # empty, not Identity, so checkpoint_seq can iterate it
        if prune_end:
            # features now end at the last kept stage and the classifier does not fit them, so it goes too
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through feature extraction layers."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Forward pass through pooling, dropout and, unless pre_logits, the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _create_resnet_cifar(
        variant: str,
        depth: int,
        pretrained: bool = False,
        **kwargs,
) -> ResNetCifar:
    num_blocks, remainder = divmod(depth - 2, 6)
    assert remainder == 0, 'The depth of a ResNet for CIFAR is 6n+2.'
    return build_model_with_cfg(
        ResNetCifar,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3)),
        layers=(num_blocks,) * 3,
        **kwargs,
    )


default_cfgs = generate_default_cfgs({
    'resnet20_cifar': cifar_cfg(),
    'resnet32_cifar': cifar_cfg(),
    'resnet56_cifar': cifar_cfg(),
    'resnet110_cifar': cifar_cfg(),
})


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-20 for CIFAR, 0.27 M parameters, arXiv 1512.03385, section 4.2."""
    return _create_resnet_cifar('resnet20_cifar', 20, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-32 for CIFAR, 0.46 M parameters, arXiv 1512.03385, section 4.2."""
    return _create_resnet_cifar('resnet32_cifar', 32, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-56 for CIFAR, 0.85 M parameters, arXiv 1512.03385, section 4.2."""
    return _create_resnet_cifar('resnet56_cifar', 56, pretrained, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-110 for CIFAR, 1.7 M parameters, arXiv 1512.03385, section 4.2."""
    return _create_resnet_cifar('resnet110_cifar', 110, pretrained, **kwargs)
