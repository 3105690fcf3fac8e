"""What comes before the inner layer: found in one forward pass, compiled in place, equal to the plain modules."""
import copy

import pytest
import timm
import torch
from torch import nn

from timm_icasc.features.layout import FeatureLayer
from timm_icasc.features.resolve import resolve_layers
from timm_icasc.features.trunk import compile_modules, watch_trunk, why_eager

SIZE = (3, 64, 64)


def found_in(model, inner, images=None):
    images = torch.zeros(1, *SIZE) if images is None else images
    with watch_trunk(model, FeatureLayer(inner, 'NCHW', 0, (0, 0))) as modules:
        model(images)
    names = {module: name for name, module in model.named_modules()}
    return [names[module] for module in modules]


@pytest.mark.parametrize('name, kwargs, inner, trunk', [
    ('resnet18', {}, 'layer3', ['layer1', 'layer2', 'layer3.0', 'layer3.1']),
    ('tf_efficientnet_lite0', {}, 'blocks.5.0.bn1', ['bn1', *(f'blocks.{i}' for i in range(5))]),
    ('convnext_atto', {}, 'stages.2', ['stem', 'stages.0', 'stages.1', 'stages.2.downsample', 'stages.2.blocks']),
    ('vit_tiny_patch16_224', {'img_size': 64}, 'blocks.10.norm1', ['patch_embed', *(f'blocks.{i}' for i in range(10))]),
])
def test_the_outermost_modules_before_the_layer(name, kwargs, inner, trunk):
    assert found_in(timm.create_model(name, **kwargs).eval(), inner) == trunk


class Twice(nn.Module):
    """A block that is called before and behind a layer."""

    def __init__(self):
        super().__init__()
        self.early, self.shared = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))
        self.listed = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1))])
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.shared(self.layer(self.listed[0](self.shared(self.early(x)))))


def test_what_is_called_again_behind_the_layer_is_left_alone():
    model = Twice()
    assert found_in(model, 'layer') == ['early', 'listed.0']
    assert not any(module._forward_hooks for module in model.modules())


def test_the_watch_ends_with_an_error_too():
    model = Twice()
    with pytest.raises(RuntimeError, match='channels'):
        found_in(model, 'layer', torch.zeros(1, 4, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_compiled_in_place():
    torch.manual_seed(0)
    model = timm.create_model('resnet18').train()
    plain, images = copy.deepcopy(model), torch.randn(2, *SIZE)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    with watch_trunk(model, resolve_layers(model, input_size=SIZE).inner) as modules:
        model(images), plain(images)
    compile_modules(modules, backend=backend)
    for _ in range(3):
        torch.testing.assert_close(model(images), plain(images))
        assert len(graphs) == len(modules) == 4, 'nothing is compiled twice'
    for (name, value), (plain_name, expected) in zip(
            model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == plain_name and torch.equal(value, expected), 'the statistics of BatchNorm, too'
    averaged = copy.deepcopy(model)
    averaged.layer1[0].bn2.weight.data.fill_(1.)
    assert averaged(images).sub(model(images)).abs().max() > 1e-3, 'a copy has parameters of its own'


def test_more_modules_than_torch_compiles_of_one_code():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(n, n + 1), nn.ReLU()) for n in range(2, 16)))  # eight, by default
    graphs, x = [], torch.randn(3, 2)
    expected = model(x)

    def backend(graph, inputs):
        assert all(type(size) is int for value in inputs for size in value.shape), 'compiled for its own size'
        graphs.append(graph)
        return graph

    compile_modules(list(model), backend=backend)
    for _ in range(2):
        torch.testing.assert_close(model(x), expected)
        assert len(graphs) == len(model)


def test_where_the_compiler_fails_the_module_stays_as_it_is():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1))
    images, calls = torch.randn(1, 3, 4, 4), []
    expected = model(images)

    def backend(graph, inputs):
        calls.append(graph)
        raise OSError('no C++ compiler')

    compile_modules([model[0]], backend=backend)
    with pytest.warns(UserWarning, match='Sequential is not compiled, and stays as it is: .*no C.. compiler'):
        assert torch.equal(model(images), expected)
    assert torch.equal(model(images), expected) and len(calls) == 1


def test_what_stays_eager():
    model = timm.create_model('convnext_atto')
    assert why_eager(model) is None
    model.set_grad_checkpointing()
    assert why_eager(model) == 'gradient checkpointing runs the blocks once more'
