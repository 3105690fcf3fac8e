"""How a feature lies, told by what made it, by the user, or by the model, before its aspect is looked at."""
import logging

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import LayerNorm2d

from timm_icasc import (
    FeatureLayer,
    ICASCLayers,
    LayerResolutionError,
    attention_maps,
    resolve_layers,
)
from timm_icasc.features import resolve
from timm_icasc.features.layout import Layout, read_layout
from timm_icasc.features.origin import ImageAxes, channel_axis, flattened_grid, tokens_around

IMAGES = torch.linspace(-1, 1, 2 * 6 * 5 * 7).view(2, 6, 5, 7).requires_grad_()
WEIGHT = torch.ones(6, 6, 1, 1, requires_grad=True)


def conv(x):
    return F.conv2d(x, WEIGHT)


@pytest.mark.parametrize('axis, make', [
    (1, conv),
    (1, nn.BatchNorm2d(6)),
    (1, nn.BatchNorm2d(6).eval()),
    (1, nn.GroupNorm(2, 6)),
    (1, nn.MaxPool2d(3, 1)),
    (1, nn.AvgPool2d(3, 1)),
    (1, nn.AdaptiveAvgPool2d((4, 3))),
    (1, nn.AdaptiveMaxPool2d((4, 3))),
    (1, LayerNorm2d(6)),
    (1, nn.UpsamplingBilinear2d(scale_factor=2)),
    (3, lambda x: conv(x).permute(0, 2, 3, 1)),
    (3, lambda x: conv(x).transpose(1, -1)),
    (3, lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,))),
    (1, lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, -1, 1, 2)),
    (3, lambda x: conv(x).flatten(2).transpose(1, 2).view(2, 5, 7, 6)),
    (1, lambda x: conv(x).flatten(2).view(2, 6, 5, 7).relu() * 2 + 1),
    (3, lambda x: F.linear(F.layer_norm(conv(x).movedim(1, -1), (6,)), torch.eye(6)) + conv(x).movedim(1, -1)),
    (1, lambda x: torch.cat([conv(x), conv(x)], 1)),
    (1, lambda x: conv(x).chunk(2, 1)[0]),
    (1, lambda x: F.dropout(F.gelu(conv(x)), 0.1)),
    (1, lambda x: conv(x).relu_()),
    (1, lambda x: conv(x).flatten(2)),
    (2, lambda x: conv(x).flatten(2).transpose(1, 2)),
    (None, lambda x: F.conv1d(x.flatten(1, 2), torch.ones(30, 30, 1, requires_grad=True))),  # tokens for channels
    (None, lambda x: x * 2),
    (None, lambda x: torch.einsum('bchw,cd->bhdw', x, torch.ones(6, 6, requires_grad=True))),
])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_the_axis_of_the_channels(axis, make, device):
    x = IMAGES.detach().to(device).requires_grad_()
    if isinstance(make, nn.Module):
        make = make.to(device) if device == 'cpu' else type(make)(*_arguments(make)).to(device)
    elif device == 'meta':
        pytest.skip('the functions hold weights of the cpu')
    assert channel_axis(make(x)) == axis


def _arguments(module):
    """Of the constructors above."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups, module.num_channels
    if isinstance(module, (nn.BatchNorm2d, LayerNorm2d)):
        return (6,)
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return (module.output_size,)
    if isinstance(module, nn.UpsamplingBilinear2d):
        return None, 2
    return 3, 1


TOKENS = torch.ones(2, 25, 4, requires_grad=True)


@pytest.mark.parametrize('around, make', [
    ((5, 0), lambda x: torch.cat([torch.ones(2, 1, 4), torch.ones(2, 4, 4), x], 1)),  # frozen tokens have no graph
    ((5, 0), lambda x: torch.cat([torch.ones(2, 5, 4, requires_grad=True), x], 1) + torch.ones(1, 30, 4)),
    ((1, 0), lambda x: F.gelu(torch.cat([x[:, :1], x], dim=-2)) * 2),
    ((0, 1), lambda x: torch.cat([x, x[:, :1]], 1)),
    ((0, 5), lambda x: torch.cat([x, torch.ones(2, 1, 4), torch.ones(2, 4, 4)], 1)),
    ((1, 4), lambda x: torch.cat([torch.ones(2, 1, 4), x, x[:, :4]], 1)),
    (None, lambda x: torch.cat([torch.ones(2, 1, 4), x, torch.ones(2, 4, 4)], 1)),
    (None, lambda x: torch.cat([x, x], 1)),
    (None, lambda x: torch.cat([x[:, :1], x], 1)[:, 1:]),
    (None, lambda x: torch.cat([x, x], 2)),
    (None, lambda x: x + 1),
])
def test_tokens_around(around, make):
    assert tokens_around(make(TOKENS)) == around


class Classifier(nn.Module):
    """Two layers of given shapes, without a word on them."""

    def __init__(self, inner, last, channels):
        super().__init__()
        self.inner, self.last = nn.Sequential(inner), nn.Sequential(last)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x):
        x = self.last(self.inner(x))
        return self.fc(x.mean((2, 3)) if x.ndim == 4 else x.mean(1))


@pytest.mark.parametrize('columns_first, make', [
    (False, conv),
    (True, lambda x: conv(x).transpose(2, 3)),
    (True, lambda x: conv(x).transpose(1, 3)),
    (False, lambda x: conv(x).permute(0, 2, 3, 1)),
    (True, lambda x: F.layer_norm(conv(x).transpose(1, 3), (6,)) * 2),
    (False, lambda x: F.layer_norm(conv(x).transpose(1, 3), (6,)).transpose(1, 3)),
    (True, lambda x: conv(x).permute(0, 3, 2, 1).relu() + 1),
    (True, lambda x: conv(x).mT.flatten(2).mT.unflatten(1, (7, 5)) + conv(x).permute(0, 3, 2, 1)),
    (False, lambda x: conv(x).mT @ torch.ones(5, 5)),  # behind what mixes axes, nothing is known
    (True, lambda x: F.max_pool2d(F.batch_norm(conv(x.mT), torch.zeros(6), torch.ones(6)), 2)),
    (True, lambda x: conv(x.mT.detach().requires_grad_()).mT),  # without a graph to the images, from the convolution on
    (False, lambda x: x.mT[:, :, :, :4].mT.exp())])
def test_columns_before_rows(columns_first, make):
    assert ImageAxes(IMAGES).are_swapped(make(IMAGES).grad_fn) == columns_first


@pytest.mark.parametrize('grid, make', [
    ((3, 4), lambda x: x.flatten(2).mT), ((3, 4), lambda x: x.permute(0, 2, 3, 1).flatten(1, 2)),
    ((3, 4), lambda x: torch.cat([x.new_zeros(2, 5, 8), x.flatten(2).mT], 1).mul(2)),
    ((3, 4), lambda x: F.layer_norm(x.flatten(2).mT, (8,)) + 1),
    (None, lambda x: x.flatten(2)),  # pixels behind their channels
    (None, lambda x: x.mean(3).mT), (None, lambda x: x.flatten(2).mT @ torch.eye(8))])
def test_the_grid_that_tokens_were_flattened_from(grid, make):
    images = torch.randn(2, 8, 3, 4, requires_grad=True)
    assert flattened_grid(make(images.mul(2)), ImageAxes(images)) == (None if grid is None else (grid, False))


@pytest.mark.parametrize('make', [
    lambda x: x.mT.flatten(2).mT, lambda x: x.permute(0, 3, 2, 1).flatten(1, 2),
    lambda x: F.linear(x.transpose(1, 3).flatten(1, 2), torch.ones(5, 8))])
def test_tokens_that_were_flattened_column_by_column(make):
    images = torch.randn(2, 8, 3, 4, requires_grad=True)
    assert flattened_grid(make(F.conv2d(images, torch.ones(8, 8, 1, 1))), ImageAxes(images)) == ((3, 4), True)


def test_a_convolution_puts_channels_first_whatever_the_aspect():
    """64 x 62 is nearer to the aspect of the image than 62 x 33 is, and that alone used to decide."""
    model = Classifier(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 64, (3, 32), padding=(0, 0)), 64)
    layers = resolve_layers(model, ('inner', 'last'), (3, 64, 64))
    assert (layers.last.layout, layers.last.channels, layers.last.grid) == ('NCHW', 64, (62, 33))
    maps = attention_maps(model, torch.randn(1, 3, 64, 64), 0, layers=layers)
    assert maps.shape == (1, 1, 62, 33)


class View(nn.Module):
    """What the graph does not tell: an unknown operation put it out."""

    def __init__(self, equation):
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.ones(8, 8))

    def forward(self, x):
        return torch.einsum(self.equation, x, self.weight)


@pytest.mark.parametrize('layout, channels, grid', [('NCHW', 8, (8, 8)), ('NHWC', 8, (8, 8))])
def test_a_layout_may_be_stated(layout, channels, grid):
    model = Classifier(nn.Conv2d(3, 8, 1), View('bchw,cd->bdhw'), 8)
    layers = resolve_layers(model, ('inner:NCHW', f'last:{layout}'), (3, 8, 8))
    assert [layer.path for layer in layers] == ['inner', 'last']
    assert (layers.last.layout, layers.last.channels, layers.last.grid) == (layout, channels, grid)


def test_a_stated_layout_that_does_not_fit():
    model = Classifier(nn.Conv2d(3, 8, 1), View('bchw,cd->bdhw'), 8)
    with pytest.raises(LayerResolutionError, match="Layer 'last' .* of the layout NLC on the path"):
        resolve_layers(model, ('inner', 'last:NLC'), (3, 8, 8))
    with pytest.raises(LayerResolutionError, match="no layer 'last:NHCW'.*A layout behind a colon is NCHW, NHWC, NLC"):
        resolve_layers(model, ('inner', 'last:NHCW'), (3, 8, 8))


@pytest.mark.parametrize('text, expected', [
    ('stages.2', ('stages.2', None)),
    ('stages.2:NHWC', ('stages.2', Layout('NHWC', None, True))),
    ('blocks.5:NLC', ('blocks.5', Layout('NLC', None, True))),
    ('blocks.5:NLC+12', ('blocks.5', Layout('NLC', 12, True))),
    ('blocks.5:NCHW+1', ('blocks.5:NCHW+1', None)),
])
def test_path_and_layout(text, expected):
    assert Layout.split(text) == expected


def test_layers_made_by_the_user():
    model = Classifier(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), 8)
    layers = ICASCLayers(FeatureLayer('inner', 'NCHW', 8, (8, 8)), FeatureLayer('last', 'NCHW', 8, (8, 8)))
    assert resolve_layers(model, layers) is layers
    assert resolve_layers(model, tuple(layers)) == layers
    with pytest.raises(LayerResolutionError, match="no layer 'first'"):
        resolve_layers(model, (FeatureLayer('first', 'NCHW', 8, (8, 8)), layers.last))


def test_pixels_flattened_behind_their_channels_are_no_tokens():
    """64 channels of 8 x 8 pixels, or of 6 x 6: read as tokens, the channels made a grid of 8 x 8."""
    project = nn.Sequential(nn.Conv2d(8, 64, 1), nn.Flatten(2))
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.GELU()), nn.Sequential(nn.Conv2d(8, 8, 2, 2), nn.GELU()), project,
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 3))
    for size in (32, 24):
        layers = resolve_layers(model, input_size=(3, size, size))
        assert layers.last == FeatureLayer('1', 'NCHW', 8, (size // 4, size // 4))
        with pytest.raises(LayerResolutionError, match="Layer '2' .* no spatial feature"):
            resolve_layers(model, ('0', '2'), (3, size, size))


class Tokens(nn.Module):
    """A transformer of one's own: `before` tokens in front of the patches, put there in one of two ways."""

    def __init__(self, before, seen=True, word=None):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.before = nn.Parameter(torch.randn(1, before, 8))
        self.seen = seen
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(4)))
        self.head = nn.Linear(8, 3)
        if word is not None:
            self.num_prefix_tokens = word

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        before = self.before.expand(len(x), -1, -1)
        if self.seen:
            x = torch.cat([before, x], 1)
        else:
            x = F.pad(x, (0, 0, before.shape[1], 0)) + F.pad(before, (0, 0, 0, x.shape[1]))
        return self.head(self.blocks(x).mean(1))


@pytest.mark.parametrize('before', [0, 1, 3, 4, 5, 9, 16])
@pytest.mark.parametrize('size', [(40, 40), (28, 28), (32, 48)])
def test_any_number_of_tokens_in_front(before, size):
    """5 + 25 tokens are 5 x 6 as well as 5 x 5 behind 5, which the aspect alone cannot tell."""
    layers = resolve_layers(Tokens(before), ('blocks.1', 'blocks.3'), (3, *size))
    # Behind Linear the graph shows no more: read as far as the aspect tells, or stated.
    model = Tokens(before)
    stated = resolve_layers(model, (f'blocks.1:NLC+{before}', f'blocks.3:NLC+{before}'), (3, *size))
    assert stated.last.prefix_tokens == before and stated.last.grid == (size[0] // 4, size[1] // 4)
    assert layers.last.channels == 8


@pytest.mark.parametrize('length, size, own, in_front, expected', [
    (201, (224, 224), 0, None, 5),  # DINOv3 without a word
    (53, (224, 224), 0, None, 4),
    (30, (80, 80), 5, None, 5),  # the model's word leaves 5 x 5, none leaves 5 x 6
    (30, (80, 80), 0, 5, 5),  # the graph's
    (30, (80, 80), 0, None, 5),  # and the square image's
    (30, (80, 96), 0, None, 0),
    (196, (224, 224), 1, None, 0),  # CaiT: the class token joins late, and 195 = 13 x 15 is close
    (212, (224, 224), 0, None, 16),
    (197, (224, 224), 0, 8, 1),  # what was seen leaves no grid
    (19, (224, 224), 0, None, 3),
])
def test_how_many_tokens_are_no_pixels(length, size, own, in_front, expected):
    layer = read_layout('x', (2, length, 8), size, prefix_tokens=own, known=Layout(None, in_front))
    assert layer.prefix_tokens == expected


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return x + self.inside(x, x, x, need_weights=False)[0]


class LastToken(nn.Module):
    """A transformer of one's own whose class token, frozen or not, comes behind the patches."""

    def __init__(self, frozen):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8), requires_grad=not frozen)
        self.blocks = nn.Sequential(*(Attention() for _ in range(4)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([x, self.token.expand(len(x), -1, -1)], 1))
        return self.head(x[:, -1])


@pytest.mark.parametrize('frozen', [False, True])
def test_a_class_token_behind_the_patches(frozen):
    """Read as one in front of them, every map was moved by a pixel."""
    torch.manual_seed(0)
    layers = resolve_layers(LastToken(frozen), input_size=(3, 20, 20))
    assert [layer.path for layer in layers] == ['blocks.1', 'blocks.2']  # the last block's patches are not read
    numbers = torch.arange(26)[None, :, None]
    for layer in layers:
        assert (layer.prefix_tokens, layer.suffix_tokens, layer.grid) == (0, 1, (5, 5))
        assert layer.to_nchw(numbers, (20, 20)).flatten().tolist() == list(range(25))


def test_register_tokens_of_a_vision_transformer_without_a_word():
    """The residual stream leads back to where the tokens were put in front."""
    model = timm.create_model('vit_tiny_patch16_224', img_size=80, reg_tokens=4, num_classes=3, global_pool='avg')
    expected = resolve_layers(model, input_size=(3, 80, 80))
    assert expected.last.prefix_tokens == 5
    del model.num_prefix_tokens  # but for the pooling, which is told

    def forward(x):
        return model.head(model.norm(model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(x))))).mean(1))
    model.forward = forward
    layers = resolve_layers(model, [layer.path for layer in expected], (3, 80, 80))
    assert [layer.prefix_tokens for layer in layers] == [5, 5] and layers.last.grid == (5, 5)


@pytest.mark.parametrize('size, warned', [((64, 64), True), ((96, 96), True), ((128, 128), False)])
def test_small_grids_are_warned_of_once(size, warned, caplog):
    resolve._warn_of_few_cells.cache_clear()
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            resolve_layers(timm.create_model('test_resnet', num_classes=3), ('layer3', 'layer4'), (3, *size))
    messages = [record.message for record in caplog.records if 'cells' in record.message]
    assert len(messages) == warned
    if warned:
        cells = size[0] // 32
        assert messages[0] == (
            f"The last layer 'layer4' has {cells} x {cells} cells on {size[0]} x {size[1]} images, too few to say "
            f'where something is: images of 224 x 224 would give 7 x 7.')


def test_the_warning_of_a_wide_image(caplog):
    resolve._warn_of_few_cells.cache_clear()
    resolve_layers(timm.create_model('test_resnet', num_classes=3), ('layer3', 'layer4'), (3, 64, 96))
    assert 'images of 224 x 336 would give 7 x 10' in caplog.text
