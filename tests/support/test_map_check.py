"""Whether maps find what the class scores depend on, in an architecture with random weights."""
from dataclasses import replace

import pytest
import timm
import torch

from timm_icasc.attention import METHODS
from timm_icasc.features.layout import FeatureLayer
from timm_icasc.features.meta import random_tensor
from timm_icasc.features.resolve import find_layers
from timm_icasc.support.map_check import (
    CHECKED,
    SAMPLE,
    SMALL_SAMPLE,
    _flattened,
    _share_below,
    map_check,
)


@pytest.fixture(scope='module')
def pooled():
    """Tail, last layer and image size of a network that ends in pool and linear."""
    with torch.device('meta'):
        model = timm.create_model('resnet20_cifar', num_classes=10)
    layers, probe = find_layers(model, (3, 32, 32))
    return probe.tail, layers.last, (32, 32)


@pytest.fixture
def other_weights(pooled, monkeypatch):
    """Eight times, the same network with other weights."""
    def draw():
        for seed in range(8):
            table = random_tensor((1_000_003,), torch.Generator().manual_seed(seed)).mul_(0.1)
            monkeypatch.setattr('timm_icasc.features.meta._table', lambda table=table: table)
            yield pooled
    return draw


def test_grad_cam_finds_what_a_pooled_score_is_made_of(other_weights):
    """There, the map before its ReLU is what each position adds to the score."""
    own, other, silent = torch.tensor([map_check(*network)['grad_cam'] for network in other_weights()]).mean(0)
    assert own > 0.95 and other > 0.9 and silent < 0.1


def test_nor_does_it_need_a_value_that_the_network_computes(pooled, monkeypatch):
    tail, layer, size = pooled
    monkeypatch.setattr(tail, 'value', lambda layer: None)
    assert map_check(tail, layer, size)['grad_cam'][0] > 0.9


def test_a_layer_read_in_the_wrong_layout_is_found_out(other_weights):
    """Of what are no positions, a map says less, or nothing."""
    found = []
    for tail, layer, size in other_weights():
        misread = FeatureLayer(layer.path, 'NHWC', layer.grid[1], (layer.channels, layer.grid[0]))
        found.append(map_check(tail, misread, size)['grad_cam'])
    _, other, silent = torch.tensor(found).mean(0)
    assert other < 0.85 and silent > 0.3


def test_large_grids_give_the_same_one_by_one(pooled, monkeypatch):
    at_once = map_check(*pooled)
    monkeypatch.setattr('timm_icasc.support.map_check.POSITIONS_AT_ONCE', 63)
    assert map_check(*pooled) == at_once


def test_no_map_no_shares(pooled, monkeypatch):
    silent = replace(METHODS['ach'], function=lambda features, gradients: features[:, 0] * 0)
    monkeypatch.setattr('timm_icasc.support.map_check.METHODS', dict.fromkeys(CHECKED, silent))
    assert map_check(*pooled) == dict.fromkeys(CHECKED)


@pytest.mark.parametrize('sample, large', [(SAMPLE, 4096), (SMALL_SAMPLE, 4095)])  # the feature is 64 x 8 x 8
def test_the_shares_by_explicit_loops(pooled, sample, large, monkeypatch):
    monkeypatch.setattr('timm_icasc.support.map_check.LARGE_FEATURE', large)
    tail, layer, size = pooled
    found = map_check(*pooled)
    value = tail.value(layer)
    generator = torch.Generator().manual_seed(2)
    random = torch.rand((sample.regions, *layer.grid), generator=generator)

    def scores(feature):
        with tail.run(layer, feature) as (_, logits):
            return logits.detach()[0].double()

    def drops(map_):
        """Fall of every score when each channel is set to its mean at the map's highest quarter."""
        height, width = layer.grid
        order = sorted(range(height * width), key=lambda p: -map_[p // width, p % width].item())
        changed = value.clone()
        for k in range(layer.channels):
            mean = value[0, k].double().mean()
            for p in order[:height * width // 4]:
                changed[0, k, p // width, p % width] = mean
        return scores(value) - scores(changed)

    by_chance = [drops(map_) for map_ in random]
    for method in CHECKED:
        own, other = [], []
        for c in range(sample.classes):
            with tail.run(layer, value) as (feature, logits):
                gradient, = torch.autograd.grad(logits[0, c], feature)
            mine = drops(METHODS[method].function(feature.detach(), gradient)[0])
            own += [float(by[c] < mine[c]) for by in by_chance]
            other += [float(mine[k] < mine[c]) for k in range(10) if k != c]
        assert found[method] == pytest.approx([sum(own) / len(own), sum(other) / len(other), 0], abs=1e-6)


@pytest.mark.parametrize('layout, shape', [('NCHW', (1, 3, 2, 4)), ('NHWC', (1, 2, 4, 3)), ('NLC', (1, 10, 3))])
def test_a_region_gets_the_mean_of_each_channel(layout, shape):
    """Prefix tokens stay, and take no part in the mean."""
    layer = FeatureLayer('x', layout, 3, (2, 4), prefix_tokens=2 if layout == 'NLC' else 0)
    value = torch.randn(shape)
    positions = layer.to_nchw(torch.arange(value.numel()).view(shape), (2, 4))[0].flatten(1)
    changed = _flattened(value, positions, torch.tensor([[0, 5], [7, 3]]))
    for row, region in zip(changed, ([0, 5], [7, 3]), strict=True):
        before, after = layer.to_nchw(value, (2, 4))[0], layer.to_nchw(row[None], (2, 4))[0]
        for k in range(3):
            mean = sum(before[k, p // 4, p % 4].item() for p in range(8)) / 8
            for p in range(8):
                expected = mean if p in region else before[k, p // 4, p % 4].item()
                assert after[k, p // 4, p % 4].item() == pytest.approx(expected, abs=1e-6)
        if layout == 'NLC':
            assert torch.equal(row[:2], value[0, :2])


def test_equal_values_count_half():
    assert _share_below(torch.tensor([0., 1., 2., 3.]), 2.) == 2.5 / 4
