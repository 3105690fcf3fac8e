"""Weights in other libraries' names."""
import timm
import torch
from timm.utils import ModelEmaV3

from timm_icasc.training.pretrained import pretrained_source, rename_to_timm

# timm's name of a block's layer -> EfficientNet-PyTorch's, for inverted residuals and for the first, unexpanded block.
LAYERS = {
    'conv_pw': '_expand_conv', 'bn1': '_bn0', 'conv_dw': '_depthwise_conv', 'bn2': '_bn1',
    'conv_pwl': '_project_conv', 'bn3': '_bn2', 'se.conv_reduce': '_se_reduce', 'se.conv_expand': '_se_expand'}
FIRST = {**LAYERS, 'bn1': '_bn1', 'conv_pw': '_project_conv', 'bn2': '_bn2'}
OUTSIDE = {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1', 'classifier': '_fc'}


def foreign(model):
    """The state dict of a timm EfficientNet in EfficientNet-PyTorch's names."""
    renamed, number = {}, {}
    for name, value in model.state_dict().items():
        if not name.startswith('blocks.'):
            layer, rest = name.split('.', 1)
            renamed[f'{OUTSIDE[layer]}.{rest}'] = value
            continue
        _, stage, index, rest = name.split('.', 3)
        block = number.setdefault((stage, index), len(number))
        layer = next(layer for layer in LAYERS if rest.startswith(layer + '.'))
        theirs = (FIRST if stage == '0' else LAYERS)[layer]
        renamed[f'_blocks.{block}.{theirs}{rest[len(layer):]}'] = value
    return renamed


def check(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    torch.save(foreign(model), tmp_path / 'foreign.pth')
    renamed = rename_to_timm(foreign(model))
    assert renamed.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in renamed.items())
    other = timm.create_model(
        name, num_classes=3, pretrained=True,
        pretrained_cfg_overlay=pretrained_source(tmp_path / 'foreign.pth'))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other.eval().forward_features(images), model.forward_features(images))


def test_efficientnet_lite(tmp_path):
    check('tf_efficientnet_lite0', tmp_path)


def test_efficientnet_with_squeeze_and_excitation(tmp_path):
    check('tf_efficientnet_b0', tmp_path)


def test_timms_own_names_stay_as_they_are(tmp_path):
    state_dict = timm.create_model('resnet18', num_classes=2).state_dict()
    assert rename_to_timm(state_dict) is state_dict
    torch.save(state_dict, tmp_path / 'timm.pth')
    assert pretrained_source(tmp_path / 'timm.pth') == {'file': str(tmp_path / 'timm.pth'), 'num_classes': -1}


def test_the_model_does_not_carry_the_weights_along(tmp_path):
    """set_up_model takes them out of pretrained_cfg again, which EMA and deepcopy would copy."""
    import argparse

    from timm_icasc.training.arguments import parse_args
    from timm_icasc.training.job import set_up_model
    torch.save(foreign(timm.create_model('tf_efficientnet_lite0', num_classes=2)), tmp_path / 'foreign.pth')
    args = parse_args([
        '--data-dir', 'x', '--model', 'tf_efficientnet_lite0', '--pretrained-path',
        str(tmp_path / 'foreign.pth'), '--num-classes', '3'])
    model = set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': 3}))
    assert 'state_dict' not in model.pretrained_cfg and 'state_dict' not in ModelEmaV3(model).module.pretrained_cfg
