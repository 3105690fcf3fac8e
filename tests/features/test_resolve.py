"""Which layers are chosen, and that looking leaves no trace."""
import copy
import logging
import types
from collections import Counter
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers.models import create, made_once
from helpers.several_outputs import NAMES, PARAMS, RECORDS
from helpers.versions import recent_timm
from helpers.wrappers import LightningLike
from torch.utils._python_dispatch import TorchDispatchMode

import timm_icasc
from timm_icasc import FeatureLayer, LayerResolutionError, attention_maps, resolve_layers
from timm_icasc.features import resolve
from timm_icasc.features.resolve import find_layers, resolve_layer
from timm_icasc.features.tap import capture_features


def test_layers_of_each_family(family):
    model, images, (inner, last, layout, inner_grid, last_grid) = family
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    assert (layers.inner.path, layers.last.path) == (inner, last)
    assert layers.inner.layout == layers.last.layout == layout
    assert (layers.inner.grid, layers.last.grid) == (inner_grid, last_grid)


# Where timm's own intermediates are taken: at the ends of the stages.
ENDS_OF_STAGES = {
    'resnet18': ('layer3', 'layer4'),
    'resnetv2_18d': ('stages.2', 'stages.3'),
    'convnext_atto': ('stages.2', 'stages.3'),
    'efficientnet_b0': ('blocks.4', 'blocks.6'),
    'swin_tiny_patch4_window7_224': ('layers.2', 'layers.3'),
    'vit_tiny_patch16_224': ('blocks.8', 'blocks.10'),
    'deit_tiny_distilled_patch16_224': ('blocks.8', 'blocks.10'),
}


@pytest.mark.parametrize('name', ENDS_OF_STAGES)
def test_layout_conversion_equals_the_models_own(name):
    """timm's forward_intermediates gives the same features as NCHW (ViT: all but the normalised last)."""
    model, images = create(name).eval(), torch.randn(2, 3, 64, 64)
    layers = resolve_layers(model, ENDS_OF_STAGES[name], (3, 64, 64))
    with torch.no_grad():
        own = model.forward_intermediates(images, norm=False, intermediates_only=True)
        with capture_features(model, layers, order=1) as features:
            model(images)
    for layer in layers:
        converted = layer.to_nchw(features[layer.path].detach(), (64, 64))
        assert converted.shape == (2, layer.channels, *layer.grid)
        assert any(o.shape == converted.shape and torch.equal(o, converted) for o in own)


# What stands behind the end of a stage: (stage of the inner layer, inner), (stage of the last layer, last).
BEHIND_STAGES = {
    'tf_efficientnet_lite0': (('blocks.4', 'blocks.5.0.bn1'), ('blocks.6', 'bn2')),
    'resnetv2_18d': (('stages.2', 'stages.3.blocks.0.norm1'), ('stages.3', 'norm')),
    'densenet121': (('features.denseblock3', 'features.transition3.norm'), ('features.denseblock4', 'features.norm5')),
    'mobilenetv3_small_050': (('blocks.3', 'blocks.4.0.bn1'), ('blocks.5', 'blocks.5')),
    'repghostnet_050': (('blocks.5', 'blocks.5'), ('blocks.7', 'blocks.9')),
    'test_nfnet': (('stages.2', 'stages.3.0.act1'), ('stages.3', 'final_act')),
    'swin_tiny_patch4_window7_224': (('layers.2', 'layers.2'), ('layers.3', 'norm')),
    'vit_tiny_patch16_224': (('blocks.8', 'blocks.8'), ('blocks.10', 'blocks.11.norm1')),
}


@pytest.mark.parametrize('name', BEHIND_STAGES)
def test_a_stage_is_read_behind_the_activation_that_follows_it(name):
    """Cut there, and nothing of the class scores reaches the grid of the stage before."""
    torch.manual_seed(0)
    sized = {'img_size': 64} if 'vit' in name else {'img_size': 64, 'window_size': 2} if 'swin' in name else {}
    model = timm.create_model(name, num_classes=10, **sized).eval()
    images = torch.randn(2, 3, 64, 64)
    layers = resolve_layers(model, input_size=(3, 64, 64))
    assert tuple(layer.path for layer in layers) == tuple(path for _, path in BEHIND_STAGES[name])
    for (stage, path), layer in zip(BEHIND_STAGES[name], layers, strict=True):
        if stage == path:
            continue
        end = {}

        def keep(module, args, output, end=end):
            end['feature'] = output

        hooks = [
            model.get_submodule(stage).register_forward_hook(keep),
            model.get_submodule(path).register_forward_hook(lambda module, args, output: output.detach())]
        logits = model(images)
        for hook in hooks:
            hook.remove()
        prefix = layer.prefix_tokens  # the class token goes by the patches of its block
        if not logits.requires_grad or logits.grad_fn is None:
            continue
        gradient, = torch.autograd.grad(
            logits.sum(), [end['feature']], allow_unused=True)
        assert gradient is None or not gradient[:, prefix:].any()


@pytest.mark.parametrize('name', ['tf_efficientnet_lite0', 'resnetv2_18d', 'densenet121', 'repghostnet_050'])
def test_features_behind_a_relu_are_never_negative(name):
    model = timm.create_model(name, num_classes=10).eval()
    layers = resolve_layers(model, input_size=(3, 64, 64))
    with capture_features(model, layers, order=1) as features:
        model(torch.randn(2, 3, 64, 64))
    assert features[layers.last.path].min() >= 0 and features[layers.last.path].any()


def test_a_norm_does_not_take_the_place_of_an_activation():
    """The stage ends in a ReLU, and a norm follows: its output would be signed."""
    model = Blocks(
        lambda m, x: m.head(m.norm(m.stage(m.stem(x))).mean((2, 3))),
        stem=conv(3, 8), stage=torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU()),
        norm=torch.nn.BatchNorm2d(8), head=torch.nn.Linear(8, 4))
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path) == ('stem', 'stage')


def test_what_a_shortcut_goes_by_is_no_layer():
    model = Blocks(
        lambda m, x: m.head((lambda y: y + m.norm(y))(m.stage(m.stem(x))).mean((2, 3))),
        stem=conv(3, 8), stage=torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 2, 1)),
        norm=torch.nn.BatchNorm2d(8), head=torch.nn.Linear(8, 4))
    assert resolve_layers(model, input_size=(3, 32, 32)).last.path == 'stage'


def test_an_activation_that_is_a_function_counts():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return torch.nn.functional.relu(self.conv(x))

    model = timm.create_model('resnet20_cifar', num_classes=4)  # its feature_info ends at layer3
    model.layer3 = torch.nn.Sequential(*model.layer3)
    model.global_pool = torch.nn.Sequential(
        torch.nn.Conv2d(64, 8, 1), Head(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.fc = torch.nn.Linear(8, 4)
    assert resolve_layers(model, input_size=(3, 32, 32)).last.path == 'global_pool.1'


def test_the_probe_leaves_no_trace():
    model = create('resnet18').train()
    model.layer4.eval()  # a user's frozen stage
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    resolve_layers(model, input_size=(3, 64, 64))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class SetByTheFirstBatch(torch.nn.Module):
    """As the ActNorm of Glow, in evaluation mode too; with dropout that never ends."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer('initialized', torch.tensor(False))
        self.register_buffer('seen', torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        if not self.initialized:
            with torch.no_grad():
                self.scale.copy_(1 / x.std())
            self.initialized.fill_(True)
        return torch.nn.functional.dropout(self.scale * x, 0.1, training=True)


def test_buffers_that_a_model_writes_and_numbers_that_it_draws(toy):
    """The first batch of the user was not the first any more."""
    toy.stage.insert(1, SetByTheFirstBatch())
    before, random_state = copy.deepcopy(dict(toy.named_buffers())), torch.get_rng_state()
    resolve_layers(toy, ('stem', 'stage'), (3, 16, 16))
    assert dict(toy.named_buffers()) == before and torch.equal(torch.get_rng_state(), random_state)
    images = 5 * torch.randn(4, 3, 16, 16)
    toy(images)
    expected = 1 / toy.stage[0](toy.stem(images)).std()
    assert toy.stage[1].scale.item() == pytest.approx(expected.item())


@pytest.mark.parametrize('count, warned', [(1, 0), (2, 1)])
def test_several_networks_in_one_are_told(count, warned, caplog):
    """Maps were of the last of them, and so was what the terms trained."""
    class Ensemble(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = torch.nn.ModuleList(create('resnet20_cifar') for _ in range(count))

        def forward(self, x):
            return sum(net(x) for net in self.nets)

    resolve._warn_of_ways_around.cache_clear()
    with caplog.at_level(logging.WARNING):
        resolve_layers(Ensemble(), input_size=(3, 32, 32))
    told = [record.message for record in caplog.records if 'ways around' in record.message]
    assert len(told) == warned
    assert all("scores of Ensemble also come by ways around 'nets.1.layer3'" in line for line in told)


def test_the_answer_is_cached_until_the_question_changes():
    model, calls = create('resnet20_cifar'), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    first = resolve_layers(model)
    assert resolve_layers(model) is first and len(calls) == 1
    resolve_layers(model, layers=('layer1', 'layer2'))
    assert len(calls) == 2


def test_a_new_head_is_a_new_question():
    """Pooled by average, the last block's tokens get gradient; with the class token they get none."""
    model = create('vit_tiny_patch16_224', global_pool='avg')
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'blocks.11'
    model.reset_classifier(5, global_pool='token')
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'blocks.11.norm1'


class Pooling(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, tokens):
        return tokens[:, 1:].mean(1) if self.kind == 'average' else tokens[:, 0]


@pytest.mark.parametrize('replaced', [True, False])
def test_a_pooling_of_ones_own_is_a_new_question(replaced):
    """A new module may be where one was that is gone, and its attribute may have been set anew; maps were all zero."""
    model = torch.nn.Sequential(
        create('vit_tiny_patch16_224', depth=4, embed_dim=24, num_classes=0, global_pool=''), Pooling('average'),
        torch.nn.Linear(24, 4))
    for _ in range(20):
        for kind, path in (('average', '0.norm'), ('token', '0.blocks.3.norm1')):
            if replaced:
                model[1] = Pooling(kind)
            model[1].kind = kind
            assert resolve_layers(model, input_size=(3, 64, 64)).last.path == path


class PooledByFlag(torch.nn.Module):
    """A head of one's own that a flag tells which tokens to take."""

    def __init__(self):
        super().__init__()
        self.vit = create('vit_tiny_patch16_224', depth=4, embed_dim=24)
        self.use_cls = False

    def pool(self, tokens):
        return tokens[:, 1:].mean(1)

    def forward(self, x):
        tokens = self.vit.forward_features(x)
        return self.vit.head(tokens[:, 0] if self.use_cls else self.pool(tokens))


def set_flag(model):
    model.use_cls = True


def replace_method(model):
    model.pool = types.MethodType(lambda self, tokens: tokens[:, 0], model)


def replace_by_partial(model):
    model.pool = partial(torch.select, dim=1, index=0)


@pytest.mark.parametrize('switch', [set_flag, replace_method, replace_by_partial])
def test_a_switch_to_the_class_token_is_a_new_question(switch):
    """The layers of before have no gradient then: all maps were zero, without a word."""
    model, images = PooledByFlag().eval(), torch.linspace(-1, 1, 3 * 64 * 64).sin().view(1, 3, 64, 64)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'vit.norm'
    switch(model)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'vit.blocks.3.norm1'
    assert attention_maps(model, images, 0).any()


def test_a_method_replaced_again_and_again_is_a_new_question():
    """A function may be where one was that is gone."""
    model = PooledByFlag()
    for _ in range(5):
        for place, path in ((slice(1, None), 'vit.norm'), (slice(0, 1), 'vit.blocks.3.norm1')):
            model.pool = types.MethodType(lambda self, tokens, place=place: tokens[:, place].mean(1), model)
            assert resolve_layers(model, input_size=(3, 64, 64)).last.path == path


def widen(model):
    model.layer4[0].conv1.stride = model.layer4[0].downsample[0].stride = (1, 1)


def widen_pooling(model):
    model.maxpool.stride = 1


@pytest.mark.parametrize('change', [widen, widen_pooling])
def test_another_stride_is_a_new_question(change):
    model = create('resnet18')
    assert resolve_layers(model, input_size=(3, 64, 64)).last.grid == (2, 2)
    change(model)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.grid == (4, 4)


class Restless(torch.nn.Module):
    """Counts its calls, follows a schedule, and keeps what cannot be compared."""

    def __init__(self):
        super().__init__()
        self.calls, self.rate, self.merged = 0, 0., False
        self.kept = ([1], {2: 3}), torch.ones(2)
        self.bound = types.MethodType(dict, self)

    def train(self, mode=True):
        self.merged = not mode  # as LoRA layers' weights are at evaluation
        return super().train(mode)

    def forward(self, x):
        self.calls, self.rate, self.last = self.calls + 1, self.rate + 0.1, (x.shape,)
        return x


def test_what_a_module_counts_is_no_new_question():
    """Every step of a training would look for the layers."""
    model = create('resnet20_cifar')
    model.conv1 = torch.nn.Sequential(model.conv1, Restless())
    task = timm_icasc.ICASCTask(model, verbose=False)
    images, target, probes = torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, 'find_layers', lambda *args: probes.append(args) or find_layers(*args))
        for mode in (True, False) * 3:
            model.train(mode)
            task(images, target)
    assert len(probes) == 2, 'one with its weights merged, one without'


def test_not_every_answer_is_kept(toy, monkeypatch):
    monkeypatch.setattr(resolve, 'MOST_ANSWERS', 3)
    for number in range(8):
        toy.setting = (number,)
        layers = resolve_layers(toy, input_size=(3, 16, 16))
    assert len(resolve._cache[toy]) == 3 and resolve_layers(toy, input_size=(3, 16, 16)) is layers


def test_zero_initialised_head_does_not_hide_the_layers():
    model = create('vit_tiny_patch16_224')
    torch.nn.init.zeros_(model.head.weight)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'blocks.11.norm1'
    assert not model.head.weight.any()


@pytest.mark.parametrize('name, inner', [('resnet18', 'layer3.1.conv2'), ('resnet50', 'layer3.5.conv3')])
def test_zero_initialised_norms_do_not_hide_the_papers_inner_layer(name, inner):
    """The last convolution of the penultimate stage feeds a BatchNorm that timm starts at zero."""
    model = timm.create_model(name, num_classes=10)
    norm = model.get_submodule(inner.replace('conv', 'bn'))
    assert not norm.weight.any()
    layers = resolve_layers(model, layers=(inner, 'layer4'), input_size=(3, 64, 64))
    assert (layers.inner.path, layers.inner.grid, layers.last.grid) == (inner, (4, 4), (2, 2))
    assert not norm.weight.any()
    config = timm_icasc.ICASCConfig()
    output = timm_icasc.icasc_forward(model, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), layers, config)
    assert not output.maps['target_inner'].any() and output.maps['target_last'].any()  # until the norm has moved
    assert output.weighted_sum(config).isfinite()


def test_token_grid_follows_the_image():
    model = create('vit_tiny_patch16_224', img_size=(64, 96))
    last = resolve_layers(model, input_size=(3, 64, 96)).last
    assert last.grid == (4, 6)
    # The layer reads features of other sizes as well: 32 x 128 pixels are 2 x 8 patches.
    tokens = torch.arange(17.).view(1, 17, 1)
    converted = last.to_nchw(tokens, (32, 128))
    assert torch.equal(converted[0, 0], torch.arange(1., 17.).view(2, 8))


@pytest.mark.parametrize('wrap', [lambda model: model, LightningLike])
def test_a_model_made_for_another_size_is_asked_on_images_of_that(wrap):
    """It was run on images of the size that its weights were made for, which it refuses."""
    model = create('vit_tiny_patch16_224', depth=4, embed_dim=24, img_size=(64, 96))
    assert resolve_layers(wrap(model)).last.grid == (4, 6)
    model.set_input_size((96, 64))
    assert resolve_layers(wrap(model)).last.grid == (6, 4)
    flexible = create('vit_tiny_patch16_224', depth=4, embed_dim=24, dynamic_img_size=True)
    assert resolve_layers(wrap(flexible)).last.grid == (14, 14)


def test_tokens_without_a_grid_are_refused():
    last = resolve_layers(create('vit_tiny_patch16_224'), input_size=(3, 64, 64)).last
    with pytest.raises(LayerResolutionError, match="'blocks.11.norm1' gave 14 tokens"):
        last.to_nchw(torch.zeros(1, 14, 8), (64, 64))


def test_explicit_layers():
    model = create('resnet18')
    layers = resolve_layers(model, layers=('layer2', 'layer3'), input_size=(3, 64, 64))
    assert (layers.inner.path, layers.last.path) == ('layer2', 'layer3')
    assert layers.inner.grid == (8, 8) and layers.inner.channels == 128


def test_layers_are_taken_as_they_are():
    """Resolved for images of one size, they serve for all."""
    model = create('resnet18')
    layers = resolve_layers(model, layers=('layer2', 'layer3'), input_size=(3, 64, 64))
    assert resolve_layers(model, layers, (3, 96, 96)) is layers
    maps = attention_maps(model, torch.randn(1, 3, 96, 96), classes=0, layers=layers)
    assert maps.shape == (1, 1, 6, 6)


def test_layers_of_another_model_are_refused():
    layers = resolve_layers(create('resnet18'), input_size=(3, 64, 64))
    with pytest.raises(LayerResolutionError, match="no layer 'layer3'; modules at that depth: conv_stem"):
        resolve_layers(create('efficientnet_b0'), layers)


@pytest.mark.parametrize('paths, inner, last', [
    # Entries that tell a module's outputs apart by resolution: each layer takes its own.
    pytest.param(('parallel_blocks.3', 'parallel_blocks.4'), (2, (4, 4)), (3, (2, 2)), marks=recent_timm),
    pytest.param(('parallel_blocks.1', 'parallel_blocks.3'), (2, (4, 4)), (3, (2, 2)), marks=recent_timm),
    # None describes these, which have one output each.
    (('serial_blocks3.1', 'serial_blocks4.1'), (0, (4, 4)), (0, (2, 2))),
])
def test_a_path_means_the_output_that_feature_info_describes(paths, inner, last):
    model = timm.create_model('coat_tiny', img_size=64, num_classes=10)
    layers = resolve_layers(model, paths, (3, 64, 64))
    assert [(layer.path, layer.output_index, layer.grid) for layer in layers] == [(paths[0], *inner), (paths[1], *last)]


def test_a_module_with_two_names():
    model = create('resnet18')
    model.trunk_end = model.layer4
    assert resolve_layers(model, layers=('layer3', 'trunk_end'), input_size=(3, 64, 64)).last.path == 'layer4'


def test_a_single_point_is_no_map():
    """On 32 x 32 images the last stage has one; the stages before it serve."""
    layers = resolve_layers(create('resnet18'), input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path, layers.last.grid) == ('layer2', 'layer3', (2, 2))


def test_outputs_that_the_model_overwrites_are_marked():
    """timm's BasicBlock adds the shortcut to bn2's output in place."""
    layers = resolve_layers(create('resnet18'), layers=('layer3.1.bn2', 'layer4.1.bn2'), input_size=(3, 64, 64))
    assert layers.inner.modified_in_place and layers.last.modified_in_place
    assert not resolve_layers(create('resnet18'), input_size=(3, 64, 64)).last.modified_in_place


@recent_timm
@pytest.mark.parametrize('name', PARAMS)
def test_the_recorded_output_of_several(name):
    """On meta tensors: the layers of docs/support.json, found anew and by their paths."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=10)
    layers = resolve_layers(model, input_size=RECORDS[name]['input_size'])
    for place, layer in layers._asdict().items():
        record = {'output_index': 0, **RECORDS[name][place]}
        assert [layer.path, layer.output_index, list(layer.grid)] == [
            record[key] for key in ('path', 'output_index', 'grid')]
    assert resolve_layers(model, [layer.path for layer in layers], RECORDS[name]['input_size']) == layers


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradient_checkpointing_moves_the_tap_inside(checkpointing):
    model = create('resnet18')
    model.set_grad_checkpointing(checkpointing)
    layers = resolve_layers(model, input_size=(3, 64, 64))
    assert layers.last.path == ('layer4.1' if checkpointing else 'layer4')


def test_layers_that_gradient_checkpointing_does_not_call():
    model = create('resnet18')
    layers = resolve_layers(model, input_size=(3, 64, 64))
    model.set_grad_checkpointing(True)
    with pytest.raises(LayerResolutionError, match="ResNet did not call 'layer4': gradient checkpointing"):
        attention_maps(model.train(), torch.randn(2, 3, 64, 64), classes=0, layers=layers)


def test_torchvision_model_with_explicit_layers():
    """The README's: one flat sequence without blocks, in which no stage shows."""
    with torch.device('meta'):
        model = torchvision.models.vgg11(num_classes=5)
    with pytest.raises(LayerResolutionError, match='name both yourself'):
        resolve_layers(model, input_size=(3, 64, 64))
    layers = resolve_layers(model, layers=('features.14', 'features.19'), input_size=(3, 64, 64))
    assert (layers.inner.grid, layers.last.grid, layers.last.channels) == ((8, 8), (4, 4), 512)


def describe(layers):
    return [(layer.path, layer.output_index, layer.layout, layer.prefix_tokens, layer.grid) for layer in layers]


# name -> (arguments, size, inner, last)
UNUSUAL = {
    # Stages that put out several tensors: the one of the stage's resolution, on the path to the logits.
    'crossvit_tiny_240': (
        {'img_size': 120}, 120, ('blocks.0', 1, 'NLC', 1, (7, 7)), ('blocks.1', 1, 'NLC', 1, (7, 7))),
    'coat_tiny': (
        {'img_size': 64}, 64, ('parallel_blocks.3', 2, 'NLC', 1, (4, 4)),
        ('parallel_blocks.5.norm14', 0, 'NLC', 1, (2, 2))),
    # The head reads the class token: the patches count no further than the keys and values of the last block.
    'pit_ti_224': (
        {'img_size': 64}, 64,
        ('transformers.1', 0, 'NCHW', 0, (4, 4)), ('transformers.2.blocks.3.norm1', 0, 'NLC', 1, (2, 2))),
    # The class token joins after these blocks, so the model's number of prefix tokens is not theirs.
    'cait_xxs24_224': (
        {'img_size': 64}, 64, ('blocks.17', 0, 'NLC', 0, (4, 4)), ('blocks.23', 0, 'NLC', 0, (4, 4))),
    # feature_info names modules that do not exist.
    'twins_svt_small': ({'img_size': 64}, 64, ('blocks.2.9', 0, 'NLC', 0, (4, 4)), ('norm', 0, 'NLC', 0, (2, 2))),
    # feature_info's channels belong to no output of the stage: the last block of all with a grid.
    'hrnet_w18_small': ({}, 64, ('incre_modules.2', 0, 'NCHW', 0, (4, 4)), ('final_layer', 0, 'NCHW', 0, (2, 2))),
    'swin_tiny_patch4_window7_224': (
        {'img_size': (64, 96), 'window_size': 2}, (64, 96),
        ('layers.2', 0, 'NHWC', 0, (4, 6)), ('norm', 0, 'NHWC', 0, (2, 3))),
}


@pytest.mark.parametrize('device, name', [
    pytest.param(device, name, marks=recent_timm if name in NAMES else ())
    for device in ('cpu', 'meta') for name in UNUSUAL
    # On meta tensors, test_the_recorded_output_of_several has those of several outputs.
    if device == 'cpu' or name not in NAMES])
def test_layers_of_unusual_models(device, name):
    """The same on meta tensors, whose gradients have no values."""
    kwargs, size, *expected = UNUSUAL[name]
    with torch.device(device):
        model = made_once(name, num_classes=10, **kwargs)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert describe(resolve_layers(model, input_size=(3, height, width))) == expected


def test_on_meta_tensors_torch_is_asked_once_for_each_shape():
    """The rules run the model several times, and torch works the shapes of many operations out in Python."""
    class Count(TorchDispatchMode):
        asked = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.native_layer_norm.default and args[0].is_meta:
                self.asked[args[0].shape] += 1
            return func(*args, **kwargs or {})

    with torch.device('meta'):
        model = timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=64, depth=3)
    with Count():
        resolve_layers(model, input_size=(3, 64, 64))
    assert set(Count.asked.values()) == {1}, Count.asked


@pytest.mark.parametrize('name', ['crossvit_tiny_240', 'vit_tiny_patch16_224'])
def test_a_model_is_run_twice_however_many_features_are_held_fixed(name):
    """Prefix tokens go by each cut of the patches; that took a forward pass for each feature: 14 of CrossViT."""
    kwargs, size, *_ = UNUSUAL.get(name, ({'img_size': 64}, 64))
    model, runs = made_once(name, num_classes=10, **kwargs), []
    model.register_forward_pre_hook(lambda module, args: runs.append(module))
    resolve_layers(model, input_size=(3, size, size))
    assert len(runs) == 2


class Blocks(torch.nn.Module):
    """`forward` is given, the modules are whatever it needs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.num_classes = 4
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(inputs, outputs, stride=2):
    return torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.Softplus())


def test_a_model_without_feature_info():
    """The last block with a grid, and the last one at twice its resolution."""
    model = Blocks(
        lambda m, x: m.head(m.late(m.middle(m.early(x))).mean((2, 3))),
        early=conv(3, 8), middle=conv(8, 8), late=conv(8, 8), head=torch.nn.Linear(8, 4))
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path) == ('middle', 'late')


class Downsampled(torch.nn.Module):
    """Two blocks, then, as its last act, a stage's own downsampling: as in transformers' Swin, FocalNet and LeViT."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Conv2d(i, outputs, 3, 1, 1)) for i in (inputs, outputs))
        self.down = torch.nn.Conv2d(outputs, outputs, 2, 2)

    def forward(self, x):
        x = self.blocks[0](x)
        return self.down(x + self.blocks[1](x))


class Bypassed(Downsampled):
    def forward(self, x):
        return self.down(self.blocks[1](self.blocks[0](x))) + torch.nn.functional.avg_pool2d(x, 2)[:, :1]


@pytest.mark.parametrize('stage, inner', [
    (Downsampled, 'middle.blocks.0'),  # the shortcut goes by the second
    (Bypassed, 'early')])  # and here by both
def test_the_end_of_a_stage_before_its_own_downsampling(stage, inner):
    model = Blocks(
        lambda m, x: m.head(m.late(m.middle(m.early(x))).mean((2, 3))),
        early=conv(3, 8), middle=stage(8, 8), late=conv(8, 8, 1), head=torch.nn.Linear(8, 4))
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path) == (inner, 'late')


def test_blocks_before_a_norm_that_ends_the_trunk():
    """As in Hugging Face's DINOv2 with registers: blocks of one resolution inside an encoder, then a norm."""
    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 8, 8, 8)
            self.encoder = torch.nn.Sequential(*(
                torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(4)))
            self.norm = torch.nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(self.encoder(self.patches(x).flatten(2).transpose(1, 2)))

    model = Blocks(lambda m, x: m.head(m.trunk(x).mean(1)), trunk=Trunk(), head=torch.nn.Linear(8, 4))
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path) == ('trunk.encoder.2', 'trunk')


class Attending(torch.nn.Module):
    """A block as in transformers' ViT."""

    def __init__(self, adapted):
        super().__init__()
        self.query, self.key, self.value = (
            torch.nn.Sequential(torch.nn.Linear(8, 8)) if name in adapted else torch.nn.Linear(8, 8)
            for name in ('query', 'key', 'value'))

    def forward(self, x):
        weights = (self.query(x) @ self.key(x).mT).softmax(-1)
        return x + weights @ self.value(x)


@pytest.mark.parametrize('adapted', [(), ('value',), ('query', 'key'), ('query', 'key', 'value')], ids=str)
def test_an_adapter_in_a_block_is_no_block(adapted):
    """LoRA puts a module with children in the place of a linear layer; here the class token alone is read."""
    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = torch.nn.Conv2d(3, 8, 8, 8)
            self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
            self.layers = torch.nn.Sequential(*(Attending(adapted) for _ in range(4)))

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.layers(torch.cat([self.token.expand(len(x), -1, -1), x], 1))

    model = Blocks(lambda m, x: m.head(m.trunk(x)[:, 0]), trunk=Trunk(), head=torch.nn.Linear(8, 4))
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert (layers.inner.path, layers.last.path) == ('trunk.layers.1', 'trunk.layers.2')


@pytest.mark.parametrize('name, inner, last', [
    ('resnet18', 'layer3', 'layer4'),
    # All stages in one container: the layers are inside it.
    ('convnext_tiny', 'features.6.0', 'features.7'),
    ('mobilenet_v3_small', 'features.9.block.0', 'features.12'),
    ('regnet_y_400mf', 'trunk_output.block3', 'trunk_output.block4'),
    # Not the branch of a block, which is at the finer resolution too, and later.
    ('inception_v3', 'Mixed_6e', 'Mixed_7c'),
    # The class token alone is read.
    ('vit_b_16', 'encoder.layers.encoder_layer_8', 'encoder.layers.encoder_layer_11.ln_1'),
])
def test_torchvision_models_without_a_word(name, inner, last):
    kwargs = {'init_weights': False} if name == 'inception_v3' else {}
    with torch.device('cpu' if name.startswith('regnet') else 'meta'):  # it computes its widths with tensors
        model = getattr(torchvision.models, name)(num_classes=5, **kwargs)
    layers = resolve_layers(model.to('meta'), input_size=(3, 224, 224))
    assert (layers.inner.path, layers.last.path) == (inner, last)


@pytest.mark.parametrize('wrap', [
    lambda x, extra: (x, extra), lambda x, extra: [extra, x], lambda x, extra: {'map': x, 'extra': [extra]}])
def test_a_feature_among_several_outputs(wrap):
    """What is computed inside the stage but not used behind it cannot be tapped there."""
    class Stage(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, x):
            x = self.conv(x)
            return wrap(x, x.square())

    def find(output):
        return output['map'] if isinstance(output, dict) else output[0] if wrap(0, 1)[0] == 0 else output[1]

    model = Blocks(
        lambda m, x: m.head(find(m.stage(m.stem(x))).mean((2, 3))),
        stem=conv(3, 8), stage=Stage(), head=torch.nn.Linear(8, 4))
    model.feature_info = [
        {'num_chs': 8, 'reduction': 2, 'module': 'stem'},
        {'num_chs': 8, 'reduction': 4, 'module': 'stage'}]
    last = resolve_layers(model, input_size=(3, 32, 32)).last
    images = torch.randn(2, 3, 32, 32)
    output = model.stage(model.stem(images))
    assert last.path == 'stage' and torch.equal(last.get(output), find(output))
    replaced = last.replace(output, torch.zeros(()))
    assert find(replaced).ndim == 0 and type(replaced) is type(output)


def test_a_block_that_is_called_more_than_once():
    """The last call counts, for the layer and for the map."""
    def forward(m, x):
        x = m.stem(x)
        return m.head(m.block(m.block(m.block(x))).mean((2, 3)))
    model = Blocks(forward, stem=conv(3, 8), block=conv(8, 8), head=torch.nn.Linear(8, 4))
    model.feature_info = [
        {'num_chs': 8, 'reduction': 2, 'module': 'stem'},
        {'num_chs': 8, 'reduction': 16, 'module': 'block'}]
    layers = resolve_layers(model, input_size=(3, 64, 64))
    assert (layers.inner.path, layers.last.path, layers.last.grid) == ('stem', 'block', (4, 4))
    images = torch.randn(2, 3, 64, 64)
    maps = attention_maps(model, images, classes=0, method='ach')
    feature = model.block(model.block(model.block(model.stem(images))))
    weights = (model.head.weight[0] / 16).relu() * 16  # the gradient of the mean, summed over the 4 x 4 grid
    expected = torch.einsum('k,bkhw->bhw', weights, feature).relu() / 16
    torch.testing.assert_close(maps[:, 0], expected)


HIERA = {'num_classes': 10, 'img_size': 64, 'stages': (1, 2, 2, 1)}


@pytest.mark.parametrize('name, kwargs', [
    ('hiera_tiny_224', HIERA), ('levit_128s', {'num_classes': 10, 'img_size': 96})])
def test_tokens_lie_as_the_models_own_intermediates_do(name, kwargs):
    """Hiera keeps its tokens unrolled; `forward_intermediates` gives the same features in the order of the pixels."""
    model, size = made_once(name, **kwargs).eval(), kwargs['img_size']
    ends = [entry['module'] for entry in model.feature_info][-2:]
    layers = resolve_layers(model, ends, input_size=(3, size, size))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        own = model.forward_intermediates(images, intermediates_only=True)
        with capture_features(model, layers, order=1) as features:
            model(images)
    for layer in layers:
        converted = layer.to_nchw(features[layer.path], (size, size))
        assert any(o.shape == converted.shape and torch.allclose(o, converted, atol=1e-5) for o in own)


@pytest.mark.parametrize('patch, grid', [((16, 8), (6, 12)), ((8, 16), (12, 6)), ((32, 8), (3, 12))])
@pytest.mark.parametrize('kwargs', [{}, {'global_pool': 'avg', 'class_token': False}])
def test_patches_that_are_not_square(patch, grid, kwargs):
    """72 tokens of a square image were read as 9 x 8, or as 8 x 8 behind 8 that are no pixels."""
    model = timm.create_model(
        'vit_tiny_patch16_224', num_classes=5, img_size=96, patch_size=patch, depth=4, embed_dim=32, num_heads=2,
        dynamic_img_size=True, **kwargs).eval()
    layers = resolve_layers(model, ('blocks.1', 'blocks.2'), (3, 96, 96))
    assert [layer.grid for layer in (*layers, *resolve_layers(model, input_size=(3, 96, 96)))] == [grid] * 4
    stated = resolve_layers(
        model, [f'{layer.path}:NLC+{model.num_prefix_tokens}' for layer in layers], (3, 96, 96))
    assert stated == layers
    for size in ((96, 96), (64, 96), (96, 160)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            own = model.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
            with capture_features(model, layers, order=1) as features:
                model(images)
        for layer, feature in zip(layers, own, strict=True):
            torch.testing.assert_close(layer.to_nchw(features[layer.path], size), feature)


class ByColumns(torch.nn.Module):
    """A network that may keep columns before rows between its stages, which changes nothing but how features lie."""

    def __init__(self, layout, columns_first):
        super().__init__()
        rows_first = {'NCHW': (0, 1, 2, 3), 'NHWC': (0, 2, 3, 1), 'NLC': (0, 2, 3, 1)}[layout]
        by_columns = {'NCHW': (0, 1, 3, 2), 'NHWC': (0, 3, 2, 1), 'NLC': (0, 3, 2, 1)}[layout]
        self.order, self.layout = by_columns if columns_first else rows_first, layout
        self.embed = torch.nn.Conv2d(3, 8, 8, stride=8)
        stage = (lambda: torch.nn.BatchNorm2d(8)) if layout == 'NCHW' else (lambda: torch.nn.Linear(8, 8))
        self.inner, self.last, self.head = stage(), stage(), torch.nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).permute(self.order)
        x = self.last(self.inner(x.flatten(1, 2) if self.layout == 'NLC' else x)).relu()
        return self.head(x.mean({'NCHW': (2, 3), 'NHWC': (1, 2), 'NLC': 1}[self.layout]))


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NLC'])
def test_columns_before_rows_give_the_same_maps(layout):
    """Behind `x.transpose(1, 3)`, maps lay with rows and columns changed."""
    plain, swapped = ByColumns(layout, False).eval(), ByColumns(layout, True).eval()
    swapped.load_state_dict(plain.state_dict())
    for size in ((64, 64), (40, 64), (72, 48)):
        images = torch.randn(2, 3, *size)
        for layers in (('inner', 'last'), (f'inner:{layout}', f'last:{layout}')):
            maps, expected = (
                attention_maps(model, images, layers=layers, layer='inner') for model in (swapped, plain))
            torch.testing.assert_close(maps, expected)
    layers = resolve_layers(swapped, ('inner', 'last'), (3, 40, 64))
    assert [layer.grid for layer in layers] == [(5, 8)] * 2 and layers.last.columns_first
    images = torch.randn(2, 3, 72, 48)  # of another size than the layers were resolved with
    torch.testing.assert_close(
        attention_maps(swapped, images, layers=layers), attention_maps(plain, images, layers=('inner', 'last')))


def test_hieras_inner_tokens_are_not_in_row_major_order():
    model, block = made_once('hiera_tiny_224', **HIERA), 4  # the last of the stage before the last
    order = resolve_layers(model, input_size=(3, 64, 64)).inner.token_order
    assert order == tuple(model.reroll(torch.arange(16)[None, :, None], block).flatten().tolist())
    assert sorted(order) == list(range(16))
    assert (order != tuple(range(16))) == (len(model.reroll.schedule[block][0]) > 0)


class NumberedByStage(torch.nn.Module):
    """As Hiera in transformers: 8 x 8 tokens in an order of their own, and `reroll` takes the number of a stage."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.patches = 4, torch.nn.Conv2d(3, 8, 8, 8)
        self.stages = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(2))
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x.reshape(-1, 4, 2, 4, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 64, 8)
        x = self.stages[0](x).reshape(-1, 4, 16, 8).amax(1)
        return self.head(self.stages[1](x).mean(1))

    def reroll(self, tokens, stage):
        if stage:
            return tokens.view(-1, 4, 4, tokens.shape[-1])
        tokens = tokens.view(-1, 2, 2, 4, 4, tokens.shape[-1])
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(-1, 8, 8, tokens.shape[-1])


def test_an_order_of_tokens_that_is_numbered_by_stages():
    inner, last = resolve_layers(NumberedByStage(), input_size=(3, 64, 64))
    assert (inner.path, inner.grid, last.path, last.grid) == ('stages.0', (8, 8), 'stages.1', (4, 4))
    assert inner.token_order[:4] == (0, 16, 1, 17) and last.token_order == tuple(range(16))


def test_the_attention_pooling_head_is_behind_the_last_layer():
    """SigLIP's head attends to all tokens of the norm behind the last block, so they have a gradient everywhere."""
    model = timm.create_model('vit_tiny_patch16_224', img_size=64, num_classes=10, global_pool='map', class_token=False)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'norm'


class TestClearErrors:

    def test_unknown_path(self):
        with pytest.raises(LayerResolutionError, match="no layer 'layer9'.*layer1, layer2, layer3, layer4"):
            resolve_layers(create('resnet18'), layers=('layer9', 'layer4'))

    @pytest.mark.parametrize('layers', [('layer4',), 'layer4', 3, (None, 'layer4'), ()])
    def test_not_two_paths(self, layers):
        with pytest.raises(LayerResolutionError, match='two module paths'):
            resolve_layers(create('resnet18'), layers=layers)

    @pytest.mark.parametrize('input_size', [64, (64, 64), (3, 64, '64'), (3, 64, -1), (3, 64., 64.), (3, 0, 64)])
    def test_not_an_input_size(self, input_size):
        with pytest.raises(LayerResolutionError, match='input_size must be'):
            resolve_layers(create('resnet18'), input_size=input_size)

    def test_an_input_size_of_another_library(self):
        model = create('resnet18')
        size = np.array([3, 64, 64])
        assert resolve_layers(model, input_size=tuple(size)) == resolve_layers(model, None, (3, 64, 64))

    def test_not_a_model(self):
        with pytest.raises(LayerResolutionError, match="`model` must be a torch.nn.Module, got 'resnet18'"):
            resolve_layers('resnet18')

    def test_wrong_order(self):
        with pytest.raises(LayerResolutionError, match="'layer4' must come before 'layer3'"):
            resolve_layers(create('resnet18'), layers=('layer4', 'layer3'), input_size=(3, 64, 64))

    def test_input_that_the_model_cannot_take(self):
        with pytest.raises(LayerResolutionError, match='cannot run on 3 x 96 x 96 images'):
            resolve_layers(create('vit_tiny_patch16_224'), input_size=(3, 96, 96))

    def test_layer_without_grid(self):
        with pytest.raises(LayerResolutionError, match="'global_pool' of ResNet has no spatial feature"):
            resolve_layers(create('resnet18'), layers=('layer3', 'global_pool'), input_size=(3, 64, 64))

    def test_class_token_head(self):
        with pytest.raises(LayerResolutionError, match="no gradient on the grid of layer 'blocks.11'"):
            resolve_layers(create('vit_tiny_patch16_224'), layers=('blocks.8', 'blocks.11'), input_size=(3, 64, 64))

    def test_model_without_two_features(self):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        with pytest.raises(LayerResolutionError, match='no two features.*`layers`'):
            resolve_layers(model)

    @pytest.mark.parametrize('kwargs', [{'num_classes': 0}, {'features_only': True}])
    def test_model_without_logits(self, kwargs):
        model = timm.create_model('resnet18', **kwargs)
        with pytest.raises(LayerResolutionError, match='does not return class logits'):
            resolve_layers(model, input_size=(3, 64, 64))

    @pytest.mark.parametrize('name, head', [
        ('resnet18', 'fc'), ('vit_tiny_patch16_224', 'head'), ('convnext_atto', 'head.fc')])
    def test_model_with_a_classifier_of_its_users(self, name, head):
        """timm's way to fine-tune: the model goes on to say that it has no classes."""
        size = {'img_size': 64} if name.startswith('vit') else {}
        model = timm.create_model(name, num_classes=0, **size)
        parent, _, child = head.rpartition('.')
        setattr(model.get_submodule(parent), child, torch.nn.Linear(model.num_features, 5))
        expected = resolve_layers(timm.create_model(name, num_classes=5, **size), input_size=(3, 64, 64))
        assert resolve_layers(model, input_size=(3, 64, 64)) == expected and model.num_classes == 0

    def test_layer_hidden_by_an_operation_in_place(self):
        """torchvision's densenet calls F.relu(x, inplace=True) behind its features."""
        torch.manual_seed(0)  # with so few channels some weights pass nothing on
        model = torchvision.models.DenseNet(2, (1, 1, 1, 1), 4, num_classes=5)
        with pytest.raises(LayerResolutionError, match=(
                "'features.norm5' of DenseNet is hidden: what follows overwrites its output .* Name 'features'")):
            resolve_layers(model, ('features.denseblock3', 'features.norm5'), (3, 64, 64))
        layers = resolve_layers(model, ('features.denseblock3', 'features'), (3, 64, 64))
        assert layers.last.path == 'features' and layers.last.modified_in_place

    def test_logits_under_another_name(self):
        """As of torchvision's segmentation models."""
        class Wrapped(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = timm.create_model('resnet18')

            def forward(self, x):
                return {'out': self.model(x)}

        with pytest.raises(LayerResolutionError, match="logits .* but dict; .* a model of one's own may return"):
            resolve_layers(Wrapped(), input_size=(3, 64, 64))

    def test_two_outputs_of_one_module(self, toy):
        pair = [FeatureLayer('stage', 'NCHW', 6, (4, 4), output_index=index) for index in range(2)]
        with pytest.raises(LayerResolutionError, match="not two outputs of 'stage': name modules inside of it"):
            resolve_layers(toy, pair)

    @pytest.mark.parametrize('layers', [None, ('net.stem', 'net.stage')])
    def test_several_passes_of_one_network(self, layers, toy):
        """A map would be of the mirror image alone, and half as strong."""
        class Mirrored(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = toy

            def forward(self, x):
                return (self.net(x) + self.net(x.flip(3))) / 2

        with pytest.raises(LayerResolutionError, match=r"calls 'net\.stem' several times .* the last call alone"):
            resolve_layers(Mirrored(), layers, (3, 16, 16))
        with pytest.raises(LayerResolutionError, match=r"calls 'net\.stage' several times"):
            resolve_layer(Mirrored(), 'net.stage', input_size=(3, 16, 16))

    def test_a_module_called_again_on_what_it_put_out(self):
        """Its last call has it all: torchvision's blocks share one activation."""
        model = torchvision.models.resnet18(num_classes=5)
        layers = resolve_layers(model, ('layer3.1.relu', 'layer4.1.relu'), (3, 64, 64))
        assert layers.last.grid == (2, 2)
