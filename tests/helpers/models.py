"""Small real timm models, one per family, at small input sizes, and a smooth one for finite differences."""
import copy

import helpers.resnet8  # noqa: F401  registers the architecture
import timm
import torch

import timm_icasc  # noqa: F401  registers the architectures

# name -> (arguments, input size, inner path, last path, layout, inner grid, last grid)
FAMILIES = {
    'resnet18': ({}, (3, 64, 64), 'layer3', 'layer4', 'NCHW', (4, 4), (2, 2)),
    'resnetv2_18d': ({}, (3, 64, 64), 'stages.3.blocks.0.norm1', 'norm', 'NCHW', (4, 4), (2, 2)),
    # The narrow head saves 100 million weights.
    'vgg11_bn': ({'mlp_ratio': 1 / 64}, (3, 64, 64), 'features.20', 'features.27', 'NCHW', (8, 8), (4, 4)),
    'convnext_atto': ({}, (3, 64, 64), 'stages.3.downsample.0', 'stages.3', 'NCHW', (4, 4), (2, 2)),
    'efficientnet_b0': ({}, (3, 64, 64), 'blocks.5.0.bn1', 'bn2', 'NCHW', (4, 4), (2, 2)),
    'tf_efficientnet_lite0': ({}, (3, 64, 64), 'blocks.5.0.bn1', 'bn2', 'NCHW', (4, 4), (2, 2)),
    'swin_tiny_patch4_window7_224': (
        {'img_size': 64, 'window_size': 2, 'depths': (2, 2, 2, 2)}, (3, 64, 64), 'layers.2', 'norm', 'NHWC', (4, 4),
        (2, 2)),
    'vit_tiny_patch16_224': ({'img_size': 64}, (3, 64, 64), 'blocks.8', 'blocks.11.norm1', 'NLC', (4, 4), (4, 4)),
    'deit_tiny_distilled_patch16_224': (
        {'img_size': 64}, (3, 64, 64), 'blocks.8', 'blocks.11.norm1', 'NLC', (4, 4), (4, 4)),
    'resnet20_cifar': ({}, (3, 32, 32), 'layer2', 'layer3', 'NCHW', (16, 16), (8, 8)),
}


MADE = {}


def made_once(name, **kwargs):
    """timm's model with the weights of seed 0, made once in a process and copied; random numbers go on as behind it."""
    key = name, repr(sorted(kwargs.items())), torch.empty(0).device
    if key not in MADE:
        torch.manual_seed(0)
        MADE[key] = timm.create_model(name, **kwargs), torch.get_rng_state()
    model, state = MADE[key]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def create(name, **kwargs):
    return made_once(name, **{'num_classes': 10, **FAMILIES[name][0], **kwargs})


class ToyNet(torch.nn.Module):
    """A smooth classifier without BatchNorm: every derivative exists, so finite differences are exact tests."""

    def __init__(self, num_classes=4, activation=torch.nn.Softplus):
        super().__init__()
        self.num_classes = num_classes
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, 2, 1), activation())
        self.stage = torch.nn.Sequential(torch.nn.Conv2d(5, 6, 3, 2, 1), activation())
        self.fc = torch.nn.Linear(6, num_classes)
        self.feature_info = [
            {'num_chs': 5, 'reduction': 2, 'module': 'stem'}, {'num_chs': 6, 'reduction': 4, 'module': 'stage'}]

    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).square().mean((2, 3)))
