"""Weights of files: in other libraries' names, below the prefixes of other programs, with a head that fits or not."""
import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV3

from timm_icasc import ICASCError
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up_model
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
        pretrained_cfg_overlay=pretrained_source(tmp_path / 'foreign.pth', name, 3))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other.eval().forward_features(images), model.forward_features(images))


def test_efficientnet_lite(tmp_path):
    check('tf_efficientnet_lite0', tmp_path)


def test_efficientnet_with_squeeze_and_excitation(tmp_path):
    check('tf_efficientnet_b0', tmp_path)


def test_timms_own_names_stay_as_they_are():
    state_dict = timm.create_model('resnet18', num_classes=2).state_dict()
    assert rename_to_timm(state_dict) is state_dict


def test_the_model_does_not_carry_the_weights_along(tmp_path):
    """set_up_model takes them out of pretrained_cfg again, which EMA and deepcopy would copy."""
    torch.save(foreign(timm.create_model('tf_efficientnet_lite0', num_classes=2)), tmp_path / 'foreign.pth')
    model = set_up('tf_efficientnet_lite0', tmp_path / 'foreign.pth', 3)
    assert 'state_dict' not in model.pretrained_cfg and 'state_dict' not in ModelEmaV3(model).module.pretrained_cfg


def set_up(name, path, num_classes, option='--pretrained-path'):
    args = parse_args([
        '--data-dir', 'x', '--model', name, option, str(path), '--num-classes', str(num_classes)])
    return set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': 3, 'rank': 0}))


def prefixed(state_dict, prefix):
    return {prefix + name: value for name, value in state_dict.items()}


@pytest.fixture(scope='module')
def weights():
    torch.manual_seed(0)
    return timm.create_model('resnet20_cifar', num_classes=7).state_dict()


@pytest.mark.parametrize('wrap', [
    lambda w: w,
    lambda w: prefixed(w, 'backbone.'),
    lambda w: prefixed(w, 'model.'),
    lambda w: {'model_state_dict': prefixed(w, 'module.'), 'epoch': 3},
    lambda w: {'net': w},
    lambda w: {'student': prefixed(w, 'module.backbone.')},
    lambda w: {'state_dict': {**prefixed(w, 'encoder.'), 'projector.weight': torch.ones(2, 2)}},
    lambda w: {'state_dict': prefixed(w, 'task.trainable_module.'), 'optimizer_states': [{}]},
    lambda w: {'state_dict': {n: v + 1 for n, v in w.items()}, 'state_dict_ema': w},
], ids=['plain', 'backbone', 'model', 'model_state_dict', 'net', 'student', 'encoder and more', 'Lightning', 'EMA'])
def test_what_other_programs_wrap_around_is_taken_off(wrap, weights, tmp_path, capsys):
    torch.save(wrap(weights), tmp_path / 'weights.pth')
    found = set_up('resnet20_cifar', tmp_path / 'weights.pth', 3).state_dict()
    for name in weights.keys() - {'fc.weight', 'fc.bias'}:
        assert torch.equal(found[name], weights[name]), name
    assert f'{len(weights) - 2} of {len(weights)} tensors loaded' in capsys.readouterr().out
    assert found['fc.weight'].shape[0] == 3


def test_a_head_that_fits_is_kept_and_another_said_to_be_new(weights, tmp_path, capsys):
    save_file(weights, tmp_path / 'weights.safetensors')
    kept = set_up('resnet20_cifar', tmp_path / 'weights.safetensors', 7)
    assert torch.equal(kept.fc.weight, weights['fc.weight'])
    assert capsys.readouterr().out.strip().endswith('weights.safetensors, the head too')
    set_up('resnet20_cifar', tmp_path / 'weights.safetensors', 3)
    assert 'the head (3 classes) is new' in capsys.readouterr().out


@pytest.mark.parametrize('content, first', [
    (lambda w: {'conv1.weight': w['conv1.weight']}, 'lacks'),
    (lambda w: timm.create_model('vit_tiny_patch16_224', num_classes=3).state_dict(), 'it has cls_token'),
    (lambda w: {f'x{i}': value for i, value in enumerate(w.values())}, 'it has x0, x1, x2 instead'),
    (lambda w: [1, 2], 'holds a list'),
], ids=['one layer', 'another architecture', 'unknown names', 'no dictionary'])
def test_a_file_that_would_leave_the_model_random_is_refused(content, first, weights, tmp_path):
    torch.save(content(weights), tmp_path / 'weights.pth')
    load_state_dict = torch.nn.Module.load_state_dict
    with pytest.raises(ICASCError, match=first) as e:
        set_up('resnet20_cifar', tmp_path / 'weights.pth', 3)
    assert len(str(e.value)) < 400 and str(tmp_path) in str(e.value)
    assert torch.nn.Module.load_state_dict is load_state_dict


def test_a_checkpoint_of_another_head_names_the_option_that_takes_the_rest(weights, tmp_path):
    torch.save(weights, tmp_path / 'weights.pth')
    with pytest.raises(ICASCError, match='--pretrained-path FILE takes all weights but'):
        set_up('resnet20_cifar', tmp_path / 'weights.pth', 3, '--initial-checkpoint')
