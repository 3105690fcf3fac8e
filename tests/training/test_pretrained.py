"""Weights in other libraries' names."""
import argparse
from pathlib import PosixPath

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3

from timm_icasc.errors import ICASCError
from timm_icasc.hub.tags import CARDS
from timm_icasc.training import model_factory
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.model_factory import set_up_model
from timm_icasc.training.pretrained import rename_to_timm

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


def set_up(model, path, num_classes=3, *options):
    """set_up_model as train_timm.py calls it."""
    args = parse_args([
        '--data-dir', 'x', '--model', model, '--pretrained-path', str(path), '--num-classes', str(num_classes),
        *map(str, options)])
    return set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': args.in_chans or 3, 'rank': 0}))


def check(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    torch.save(foreign(model), tmp_path / 'foreign.pth')
    renamed = rename_to_timm(foreign(model))
    assert renamed.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in renamed.items())
    other = set_up(name, tmp_path / 'foreign.pth')
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
    model = set_up('tf_efficientnet_lite0', tmp_path / 'foreign.pth')
    assert 'state_dict' not in model.pretrained_cfg and 'state_dict' not in ModelEmaV3(model).module.pretrained_cfg


def behind(prefix, **others):
    return lambda weights: {**{f'{prefix}{name}': value for name, value in weights.items()}, **others}


LAYOUTS = {
    'plain': behind(''),
    'backbone': behind('backbone.', **{'projector.0.weight': torch.zeros(2, 2)}),
    'two prefixes': behind('module.encoder.'),
    'of this package\'s task': behind('trainable_module.'),
    'the task itself': lambda weights: {'_extra_state': torch.tensor(7), **behind('trainable_module.')(weights)},
    'lightning': lambda weights: {'state_dict': behind('model.')(weights), 'epoch': 3, 'optimizer_states': []},
    'moco': lambda weights: {'state_dict': {
        **behind('module.encoder_q.', **{'module.queue': torch.zeros(3)})(weights),
        **behind('module.encoder_k.')(dict(list(weights.items())[:9]))}},
    'without counts': lambda weights: {k: v for k, v in weights.items() if 'num_batches' not in k},
    'model_state_dict': lambda weights: {'model_state_dict': weights, 'optimizer': {'state': {}}},
    'net': lambda weights: {'net': weights, 'acc': 91.},
    'student': lambda weights: {'student': behind('module.backbone.')(weights)},
    'unknown name': lambda weights: {'my_weights': weights},
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_weights_are_found_where_training_scripts_put_them(layout, tmp_path, capsys):
    weights = timm.create_model('resnet20_cifar', num_classes=5).state_dict()
    torch.save(LAYOUTS[layout](weights), tmp_path / 'weights.pth')
    state = set_up('resnet20_cifar', tmp_path / 'weights.pth').state_dict()
    heads = [name for name in state if not torch.equal(state[name], weights[name])]
    assert sorted(heads) == ['fc.bias', 'fc.weight']
    out = capsys.readouterr().out
    assert f'{len(weights) - 2} of {len(weights)} tensors loaded, head new (5 -> 3 classes)' in out


@pytest.mark.parametrize('name, others', [
    ('state_dict_ema', ('state_dict',)), ('model_ema', ('model', 'optimizer')), ('teacher', ('student',)),
    ('model_state_dict', ('scheduler',)), ('net', ('ema_loss',))])
def test_of_several_sets_of_tensors_the_one_that_is_meant(name, others, tmp_path):
    """An average before what it is of, and weights before what else has tensors."""
    weights = timm.create_model('resnet20_cifar', num_classes=5).state_dict()
    zeros = {key: torch.zeros_like(value) for key, value in weights.items()}
    torch.save({**dict.fromkeys(others, zeros), name: weights}, tmp_path / 'weights.pth')
    assert torch.equal(set_up('resnet20_cifar', tmp_path / 'weights.pth').conv1.weight, weights['conv1.weight'])


def test_a_head_of_as_many_classes_is_kept(tmp_path, capsys):
    weights = timm.create_model('resnet20_cifar', num_classes=3).state_dict()
    torch.save(weights, tmp_path / 'weights.pth')
    state = set_up('resnet20_cifar', tmp_path / 'weights.pth').state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert f'{len(weights)} of {len(weights)} tensors loaded, head loaded' in capsys.readouterr().out


def test_a_new_head_is_the_same_behind_a_prefix(tmp_path):
    heads = []
    for prefix in ('', 'backbone.'):
        torch.save(behind(prefix)(timm.create_model('resnet20_cifar', num_classes=5).state_dict()), tmp_path / 'w.pth')
        torch.manual_seed(1)
        heads.append(set_up('resnet20_cifar', tmp_path / 'w.pth').fc.weight)
    assert torch.equal(*heads)


def test_vision_transformer_of_another_size_and_pooling(tmp_path, capsys):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=5)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    other = set_up('vit_tiny_patch16_224', tmp_path / 'weights.pth', 3, '--img-size', 96, '--gp', 'avg')
    assert torch.equal(other.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert other.pos_embed.shape[1] == 37 and not torch.equal(other.pos_embed, torch.zeros_like(other.pos_embed))
    assert 'head new (5 -> 3 classes)' in capsys.readouterr().out


@pytest.mark.parametrize('make', [
    lambda: {'conv1.weight': timm.create_model('resnet20_cifar').state_dict()['conv1.weight']},
    lambda: timm.create_model('vit_tiny_patch16_224').state_dict(),
    lambda: timm.create_model('resnet18').state_dict(),
    lambda: behind('backbone.')(timm.create_model('resnet18').state_dict()),
    lambda: {'a': torch.zeros(2)}], ids=['one layer', 'vit', 'wider', 'wider, prefix', 'foreign'])
def test_weights_that_do_not_fit_are_refused(make, tmp_path):
    weights = make()
    torch.save(weights, tmp_path / 'weights.pth')
    with pytest.raises(ICASCError, match='--pretrained-path: .*weights.pth. does not fit --model') as e:
        set_up('resnet20_cifar', tmp_path / 'weights.pth')
    assert 'conv1.weight' in str(e.value) or 'conv1 weight' in str(e.value)
    assert len(str(e.value)) < 700


@pytest.mark.parametrize('content, message', [
    ({'epoch': 3}, 'holds no tensors .it has: epoch'),
    ({'a': {'x': torch.zeros(1)}, 'b': {'x': torch.zeros(1)}}, 'several sets of tensors .it has: a, b'),
    (b'', 'cannot be read')])
def test_a_file_without_one_state_dict(content, message, tmp_path):
    if content:
        torch.save(content, tmp_path / 'w.pth')
    else:
        (tmp_path / 'w.pth').write_bytes(b'no weights')
    with pytest.raises(ICASCError, match=f'--pretrained-path: .*{message}'):
        set_up('resnet20_cifar', tmp_path / 'w.pth')


def test_a_pickled_model_is_told_what_to_save(tmp_path):
    torch.save(timm.create_model('resnet20_cifar'), tmp_path / 'w.pth')
    with pytest.raises(ICASCError, match=r'w.pth. cannot be read: it is a pickle .* have its tensors saved alone'):
        set_up('resnet20_cifar', tmp_path / 'w.pth')


@pytest.mark.parametrize('channels', [(3, 1), (1, 1)])
def test_the_first_convolution_of_grey_images(channels, tmp_path):
    """Weights for colour are summed."""
    weights = timm.create_model('resnet20_cifar', num_classes=3, in_chans=channels[0]).state_dict()
    torch.save(weights, tmp_path / 'w.pth')
    model = set_up('resnet20_cifar', tmp_path / 'w.pth', 3, '--in-chans', channels[1])
    torch.testing.assert_close(model.conv1.weight, weights['conv1.weight'].sum(1, keepdim=True))


def test_weights_for_grey_images_do_not_fit_colour(tmp_path):
    torch.save(timm.create_model('resnet20_cifar', num_classes=3, in_chans=1).state_dict(), tmp_path / 'w.pth')
    with pytest.raises(ICASCError, match='does not fit --model.*conv1'):
        set_up('resnet20_cifar', tmp_path / 'w.pth')


def test_an_initial_checkpoint_with_another_head_names_the_other_option(tmp_path):
    torch.save(timm.create_model('resnet20_cifar', num_classes=5).state_dict(), tmp_path / 'w.pth')
    args = parse_args([
        '--data-dir', 'x', '--model', 'resnet20_cifar', '--initial-checkpoint', str(tmp_path / 'w.pth'),
        '--num-classes', '3'])
    args.in_chans, args.rank = 3, 0
    with pytest.raises(ICASCError, match='--initial-checkpoint: .* 3 classes; .*--pretrained-path'):
        set_up_model(args)


@pytest.mark.parametrize('size', [['--img-size', '64'], ['--input-size', '3', '64', '32'], []])
def test_a_network_of_one_size_that_its_files_alone_tell_of(size, monkeypatch):
    """It was made for the images of its files, and could not run on those that were asked for."""
    monkeypatch.setattr(model_factory, 'go_offline_unless_the_hub_answers', lambda: '')
    folder = CARDS / 'vit_tiny_patch16_224.icasc_cifar20'
    args = parse_args([
        '--data-dir', 'x', '--model', f'local-dir:{folder}', '--pretrained', '--num-classes', '20', *size])
    args.in_chans, args.rank = 3, 0
    model = set_up_model(args)
    asked = tuple(map(int, size[-2:])) if len(size) > 2 else (64, 64) if size else (32, 32)
    assert model.patch_embed.img_size == asked
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, *asked)).shape == (1, 20)
    original = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert torch.equal(model.head.weight, original.head.weight)


@pytest.mark.parametrize('option', ['--pretrained-path', '--initial-checkpoint'])
def test_a_folder_of_a_run_in_the_place_of_its_weights(option, tmp_path):
    (tmp_path / 'last.pth.tar').touch()
    with pytest.raises(ICASCError, match=f"^{option}: no file '{tmp_path}': name the weights in it, as .*last.pth.tar"):
        set_up_model(parse_args(['--data-dir', 'x', option, str(tmp_path)]))


@pytest.mark.parametrize('beside', [
    {'best': np.float64(3)}, {'best': np.float32(3), 'epoch': np.int64(7)}, {'output': PosixPath('runs/x')}])
@pytest.mark.parametrize('option', ['--pretrained-path', '--initial-checkpoint'])
def test_records_beside_the_weights(option, beside, tmp_path):
    """They can run no code, and were refused as if they could."""
    torch.manual_seed(0)
    weights = timm.create_model('resnet8_cifar', num_classes=4).state_dict()
    torch.save({'state_dict': weights, **beside}, tmp_path / 'w.pth')
    args = parse_args(
        ['--dataset', 'digits', '--model', 'resnet8_cifar', '--num-classes', '4', option, str(tmp_path / 'w.pth')])
    model = set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': 3, 'rank': 0}))
    assert torch.equal(model.state_dict()['layer1.0.conv1.weight'], weights['layer1.0.conv1.weight'])
