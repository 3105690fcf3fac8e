"""Which layers are chosen, and that looking leaves no trace."""
import copy

import pytest
import timm
import torch
from conftest import create

from timm_icasc import LayerResolutionError, resolve_layers


def test_layers_of_each_family(family):
    model, images, (inner, last, layout, inner_grid, last_grid) = family
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    assert (layers.inner.path, layers.last.path) == (inner, last)
    assert layers.inner.layout == layers.last.layout == layout
    assert (layers.inner.grid, layers.last.grid) == (inner_grid, last_grid)


def test_layout_conversion_equals_the_models_own(family):
    """timm's forward_intermediates gives the same features as NCHW (ViT: all but the normalised last)."""
    model, images, _ = family
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    taps = {}
    handles = [
        model.get_submodule(layer.path).register_forward_hook(
            lambda module, args, output, path=layer.path: taps.__setitem__(path, output.detach()))
        for layer in layers
    ]
    with torch.no_grad():
        own = model.forward_intermediates(images, norm=False, intermediates_only=True)
    for handle in handles:
        handle.remove()
    for layer in layers:
        converted = layer.to_nchw(taps[layer.path], images.shape[-2:])
        assert converted.shape == (2, layer.channels, *layer.grid)
        assert any(o.shape == converted.shape and torch.equal(o, converted) for o in own)


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
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'blocks.10'


def test_zero_initialised_head_does_not_hide_the_layers():
    model = create('vit_tiny_patch16_224')
    torch.nn.init.zeros_(model.head.weight)
    assert resolve_layers(model, input_size=(3, 64, 64)).last.path == 'blocks.10'
    assert not model.head.weight.any()


def test_token_grid_follows_the_image():
    model = create('vit_tiny_patch16_224', img_size=(64, 96))
    last = resolve_layers(model, input_size=(3, 64, 96)).last
    assert last.grid == (4, 6)
    # The layer reads features of other sizes as well: 32 x 128 pixels are 2 x 8 patches.
    tokens = torch.arange(17.).view(1, 17, 1)
    converted = last.to_nchw(tokens, (32, 128))
    assert torch.equal(converted[0, 0], torch.arange(1., 17.).view(2, 8))


def test_tokens_without_a_grid_are_refused():
    last = resolve_layers(create('vit_tiny_patch16_224'), input_size=(3, 64, 64)).last
    with pytest.raises(LayerResolutionError, match="'blocks.10' gave 14 tokens"):
        last.to_nchw(torch.zeros(1, 14, 8), (64, 64))


def test_explicit_layers():
    model = create('resnet18')
    layers = resolve_layers(model, layers=('layer2', 'layer3'), input_size=(3, 64, 64))
    assert (layers.inner.path, layers.last.path) == ('layer2', 'layer3')
    assert layers.inner.grid == (8, 8) and layers.inner.channels == 128


def test_outputs_that_the_model_overwrites_are_marked():
    """timm's BasicBlock adds the shortcut to bn2's output in place."""
    layers = resolve_layers(create('resnet18'), layers=('layer3.1.bn2', 'layer4.1.bn2'), input_size=(3, 64, 64))
    assert layers.inner.modified_in_place and layers.last.modified_in_place
    assert not resolve_layers(create('resnet18'), input_size=(3, 64, 64)).last.modified_in_place


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradient_checkpointing_moves_the_tap_inside(checkpointing):
    model = create('resnet18')
    model.set_grad_checkpointing(checkpointing)
    layers = resolve_layers(model, input_size=(3, 64, 64))
    assert layers.last.path == ('layer4.1' if checkpointing else 'layer4')


def test_torchvision_model_with_explicit_layers():
    from torchvision.models import resnet18
    layers = resolve_layers(resnet18(num_classes=5), layers=('layer3', 'layer4'), input_size=(3, 64, 64))
    assert layers.last.channels == 512


class TestClearErrors:

    def test_unknown_path(self):
        with pytest.raises(LayerResolutionError, match="no layer 'layer9'.*layer1, layer2, layer3, layer4"):
            resolve_layers(create('resnet18'), layers=('layer9', 'layer4'))

    def test_one_path(self):
        with pytest.raises(LayerResolutionError, match='two module paths'):
            resolve_layers(create('resnet18'), layers=('layer4',))

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

    def test_model_without_feature_info(self):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        with pytest.raises(LayerResolutionError, match='feature_info.*--icasc-layers'):
            resolve_layers(model)

    @pytest.mark.parametrize('kwargs', [{'num_classes': 0}, {'features_only': True}])
    def test_model_without_logits(self, kwargs):
        model = timm.create_model('resnet18', **kwargs)
        with pytest.raises(LayerResolutionError, match='does not return class logits'):
            resolve_layers(model, input_size=(3, 64, 64))
