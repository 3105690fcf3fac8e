"""A model in any wrapping gives the layers of the bare model, with a prefix."""
import warnings
from dataclasses import replace
from functools import lru_cache

import pytest
import timm
import torch
from helpers.architectures import DEPTH, SMALLEST
from helpers.models import create
from helpers.versions import recent_timm
from helpers.wrappers import WRAPPERS, Copies, HandsOn, LightningLike, PeftLike

from timm_icasc import ICASCTask, attention_maps, resolve_layers
from timm_icasc.features.meta import RememberShapes
from timm_icasc.features.owner import described_features

# One for each interface that is read: token order and grids of its own (Hiera), tokens and a picture in turn (XCiT),
# register tokens (DINOv3), several outputs (CoaT), a class token that joins late (CaiT), NHWC (Swin), names that do not
# exist (Twins), entries that describe nothing (HRNet), and plain ones.
INTERFACES = [
    'hiera_tiny_224', 'xcit_nano_12_p8_224', pytest.param('vit_tiny_patch16_dinov3_qkvb', marks=recent_timm),
    pytest.param('coat_tiny', marks=recent_timm), 'cait_xxs24_224',
    'swin_tiny_patch4_window7_224', 'twins_svt_small', 'hrnet_w18_small', 'test_convnext', 'test_efficientnet']


# A wrapping has nothing to do with the depth.
SHALLOW = {
    **{name: {'depth': 4} for name in ('cait_xxs24_224', 'xcit_nano_12_p8_224', 'vit_tiny_patch16_dinov3_qkvb')},
    **{name: {'depth': depth} for name, depth in DEPTH.items()}, 'coat_tiny': {'parallel_depth': 2},
    'hiera_tiny_224': {'stages': (1, 2, 2, 1)}, 'swin_tiny_patch4_window7_224': {'depths': (2, 2, 2, 2)},
    'twins_svt_small': {'depths': (2, 2, 4, 2)}}


def create_on_meta(name):
    kwargs = {'img_size': SMALLEST[name]} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    kwargs |= SHALLOW.get(name, {})
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return timm.create_model(name, num_classes=6, **kwargs)


SHAPES = RememberShapes()  # a model in another wrapping asks the same questions


def layers_of(model, name):
    with SHAPES:
        return resolve_layers(model, input_size=(3, SMALLEST[name], SMALLEST[name]))


@lru_cache
def bare_layers(name):
    return layers_of(create_on_meta(name), name)


def check(name, wrapper):
    wrap, prefix = WRAPPERS[wrapper]
    with torch.device('meta'):
        wrapped = wrap(create_on_meta(name))
    expected = tuple(replace(layer, path=prefix + layer.path) for layer in bare_layers(name))
    assert tuple(layers_of(wrapped, name)) == expected


@pytest.mark.parametrize('name', INTERFACES)
def test_each_interface(name):
    check(name, 'peft')


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_each_wrapping(wrapper):
    check('test_vit', wrapper)


@recent_timm
@pytest.mark.slow
@pytest.mark.parametrize('name', SMALLEST)
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_every_module_of_timm_in_every_wrapping(name, wrapper):
    check(name, wrapper)


# The layouts by the wrappers.
LAYOUTS, AROUND = ('resnet18', 'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'), (
    'sequential', 'lightning', 'hands on')


@pytest.mark.parametrize('name, wrapper', [
    pytest.param(name, wrapper, marks=() if LAYOUTS.index(name) == AROUND.index(wrapper) else pytest.mark.slow)
    for name in LAYOUTS for wrapper in AROUND])
def test_maps_and_training_are_those_of_the_bare_model(name, wrapper):
    model, images = create(name).eval(), torch.randn(2, 3, 64, 64)
    wrapped = WRAPPERS[wrapper][0](model)
    for layer in ('inner', 'last'):
        expected = attention_maps(model, images, [1, 2], layer=layer)
        assert torch.equal(attention_maps(wrapped, images, [1, 2], layer=layer), expected)
    losses = [ICASCTask(m, order=2, verbose=False)(images, torch.tensor([0, 1]))['loss'] for m in (model, wrapped)]
    assert torch.equal(*losses)


@recent_timm
def test_the_input_size_is_the_wrapped_models():
    model = timm.create_model('test_vit', in_chans=4, num_classes=5)
    sizes = []
    model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[1:])))
    for wrapped in (model, torch.nn.Sequential(model), HandsOn(model), Copies(model)):
        resolve_layers(wrapped)
    assert set(sizes) == {(4, *model.pretrained_cfg['input_size'][1:])} and len(sizes) >= 4


def test_another_pooling_inside_is_a_new_question():
    model = create('vit_tiny_patch16_224', global_pool='avg')
    wrapped = LightningLike(model)
    assert resolve_layers(wrapped, input_size=(3, 64, 64)).last.path == 'net.blocks.11'
    model.reset_classifier(5, global_pool='token')
    assert resolve_layers(wrapped, input_size=(3, 64, 64)).last.path == 'net.blocks.11.norm1'


def test_a_head_of_ones_own_on_a_feature_extractor():
    """`features_only` flattens paths; what feature_info says of them still holds."""
    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model('vgg11_bn', features_only=True)
            self.fc = torch.nn.Linear(512, 5)

        def forward(self, x):
            return self.fc(self.backbone(x)[-2].mean((2, 3)))

    with torch.device('meta'):
        model = Classifier()
    entries = described_features(model, ['backbone.features_1'], lambda path: True)
    assert [entry['module'] for entry in entries][:2] == ['backbone.features_2', 'backbone.features_6'], entries


def test_of_two_models_the_one_that_the_scores_come_from():
    class Ensemble(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = create('resnet20_cifar'), create('resnet18')
            self.unused = create('convnext_atto')

        def forward(self, x):
            self.unused(x)
            return self.first(x) + self.second(x)

    layers = resolve_layers(Ensemble(), input_size=(3, 64, 64))
    assert (layers.inner.path, layers.last.path) == ('second.layer2', 'second.layer3')


def test_lora_trains_with_icasc():
    model = PeftLike(create('vit_tiny_patch16_224'))
    result = ICASCTask(model, order=2, verbose=False)(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    result['loss'].backward()
    trained = {name.split('.')[-2] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {'lora_B'}  # lora_A moves once lora_B has left zero


def test_a_list_of_another_kind_under_timms_name(toy):
    expected = resolve_layers(toy, ('stem', 'stage'), (3, 16, 16))
    toy.feature_info = ['stem', 'stage']
    assert resolve_layers(toy, input_size=(3, 16, 16)) == expected
