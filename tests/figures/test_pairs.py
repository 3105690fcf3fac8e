"""The attention figure, read back from the file: pixels from PNG, texts from SVG (where they are comments)."""
import importlib
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import ToyNet, create
from PIL import Image

import timm_icasc
from timm_icasc import (
    ICASCConfig,
    LayerResolutionError,
    TargetError,
    attention_maps,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.explanation.canvas import CELL, MARGIN, PAIR_GAP
from timm_icasc.explanation.overlay import COLORMAP, OPACITY
from timm_icasc.figures import attention_figure
from timm_icasc.figures.pairs import CAPTION
from timm_icasc.labels import SINGLE
from timm_icasc.losses import attention_overlap

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAMES = ['cat', 'dog', 'bird', 'a 4$ by 4$ pickup truck of the seventies']


@pytest.fixture
def images():
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture
def draw(tmp_path, images):
    def call(models, targets=(1, 3), names=NAMES, file='figure.png', images=images, mean=MEAN, std=STD, **kwargs):
        if isinstance(models, torch.nn.Module):
            models = {'ICASC': models}
        return attention_figure(models, images, torch.tensor(targets), names, mean, std, tmp_path / file, **kwargs)
    return call


def pixels_of(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


def texts_of(path):
    return re.findall(r'<!-- (.*?) -->', path.read_text(encoding='utf-8'))


def frames_of(pixels):
    """Left and top corners of the red frames: where runs of red as long as a cell begin."""
    red = (abs(pixels - (224, 16, 42)) < 30).all(2)
    lefts, tops = (np.flatnonzero(red.sum(axis) > CELL * 0.9) for axis in (0, 1))
    starts = [c[np.flatnonzero(np.diff(c, prepend=-9) > 1)] for c in (lefts, tops)]
    # A frame has two edges on each axis, and half of its width lies outside the cell.
    return [(x + 2, y + 2) for y in starts[1][::2] for x in starts[0][::2]]


def cell(pixels, left, top):
    """One value for each of the 32 x 32 image pixels, the frame's left out."""
    return pixels[top + 2:top + CELL:4, left + 2:left + CELL:4][2:-2, 2:-2]


@pytest.mark.parametrize('labels, size', [(['ICASC'], (716, 546)), (['Cross-entropy', 'ICASC'], (1284, 546))])
def test_file_of_one_and_two_models(labels, size, draw):
    path = draw({label: create('resnet20_cifar', num_classes=4) for label in labels}, file='new/folder/figure.png')
    assert path.name == 'figure.png' and Image.open(path).size == size
    pixels = pixels_of(path)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3000
    assert len(frames_of(pixels)) == 2 * 2 * len(labels), 'a red frame per image, layer and model'
    assert path.stat().st_size < 400_000


def test_image_and_maps_are_what_the_pixels_show(draw, images, toy):
    """The image in its own colours; each map bilinear, over grey, divided by the larger maximum of its pair."""
    targets = (1, 3)
    pixels = pixels_of(draw(toy, targets))
    rgb = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).permute(0, 2, 3, 1).numpy()
    grey = rgb @ np.array([0.299, 0.587, 0.114])
    maps = icasc_forward(
        toy, images, torch.tensor(targets), resolve_layers(toy, input_size=(3, 32, 32)), ICASCConfig(order=1)).maps
    frames = frames_of(pixels)
    assert len(frames) == 4
    for i, (left, top) in enumerate(frames):
        row, place = divmod(i, 2)
        if place == 0:
            assert (pixels[top:top + CELL, MARGIN:MARGIN + CELL] == np.rint(255 * rgb[row]).repeat(4, 0).repeat(
                4, 1)).all(), 'the image, each of its pixels 4 x 4 dots'
        pair = torch.stack([maps[f'{which}_{("last", "inner")[place]}'][row] for which in ('target', 'confused')])
        heat = F.interpolate(pair.detach()[:, None], (32, 32), mode='bilinear')[:, 0].numpy()
        heat /= heat.max()
        for k, x in enumerate((left, left + CELL + PAIR_GAP)):
            alpha = OPACITY * heat[k][..., None]
            expected = 255 * ((1 - alpha) * grey[row][..., None] + alpha * COLORMAP(heat[k])[..., :3])
            assert abs(cell(pixels, x, top) - expected[2:-2, 2:-2]).max() <= 1


def test_names_probabilities_and_overlaps(draw, images, toy):
    """The first image is classified correctly, the second is not: its confused class is the predicted one."""
    toy.fc.bias.data = torch.tensor([9., 6., 3., 0.])  # cat before dog before bird, for every image
    targets = (0, 2)
    texts = texts_of(draw({'Cross-entropy': toy, 'ICASC': toy}, targets, ['cat', 'dog', 'bird', 'fish'], 'figure.svg'))
    for text, count in {
            'Cross-entropy': 1, 'ICASC': 1, 'Last layer': 2, 'Inner layer': 2, 'target': 4, 'confused': 4, 'image': 1,
            'cat': 5, 'dog': 4, 'bird': 5, '\u2717 cat': 4, 'fish': 0,
    }.items():
        assert texts.count(text) == count, text
    correct = texts_of(draw(toy, (0, 0), file='correct.svg'))
    assert not any('\u2717' in text for text in correct if text not in CAPTION[SINGLE])
    for row, classes in enumerate([(0, 1), (2, 0)]):
        for index in classes:
            assert f'{toy(images).softmax(1)[row, index]:.1%}' in texts
    layers = resolve_layers(toy, input_size=(3, 32, 32))
    maps = icasc_forward(toy, images, torch.tensor(targets), layers, ICASCConfig()).maps
    for place in ('inner', 'last'):
        for overlap in attention_overlap(maps[f'target_{place}'], maps[f'confused_{place}']).tolist():
            assert f'overlap {overlap:.2f}' in texts


@pytest.mark.parametrize('file', ['figure.png', 'figure.svg', 'figure.pdf'])
def test_formats(file, draw, toy):
    assert draw(toy, file=file).stat().st_size > 10_000


def test_class_names_are_optional(draw, toy):
    texts = texts_of(draw(toy, (1, 3), None, 'figure.svg'))
    assert {'1', '3'} <= set(texts)


def test_long_and_odd_names(draw, toy):
    """Shortened to their cell in the middle, since names differ at the ends; never taken for a formula, even at a
    hundred times the width; the caption is whole."""
    texts = texts_of(draw({'a long label ' * 20 + '1': toy}, (3, 3), file='figure.svg'))
    assert any(re.fullmatch(r'a 4\$.*\u2026.*\S', text) for text in texts)
    assert any(re.fullmatch(r'a long label.*\u2026.*label 1', text) for text in texts)
    assert set(CAPTION[SINGLE]) <= set(texts), 'fits the page of one model'
    draw(toy, (2, 3), ['', '\n', '$\\frac{$', 'W' * 10_000])


def test_zero_maps_leave_the_grey_image(draw, toy):
    toy.fc.weight.data.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        path, svg = draw(toy), draw(toy, file='figure.svg')
    pixels = pixels_of(path)
    frames = frames_of(pixels)
    assert len(frames) == 4
    for left, top in frames:
        maps = [cell(pixels, x, top) for x in (left, left + CELL + PAIR_GAP)]
        assert (maps[0] == maps[1]).all() and (np.ptp(maps[0], axis=2) == 0).all() and np.ptp(maps[0]) > 100
    assert sum('a map is zero' in text for text in texts_of(svg)) == 4


@pytest.mark.parametrize('value', [0., 1.])
def test_one_channel(value, draw):
    """Black and white images too: no value leaves the range of colours."""
    model = create('resnet20_cifar', num_classes=4, in_chans=1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        path = draw(model, images=torch.full((2, 1, 32, 32), (value - 0.5) / 0.2), mean=(0.5,), std=(0.2,))
    assert (pixels_of(path)[150, MARGIN:MARGIN + CELL] == 255 * value).all()


def test_rectangular_and_large_images(draw, toy):
    assert Image.open(draw(toy, images=torch.randn(2, 3, 48, 32))).size == (716, 546 + 2 * 64)
    assert Image.open(draw(toy, images=torch.randn(2, 3, 150, 300))).size == (716, 546 - 2 * 64)


def test_method_and_layers_are_used(draw, toy):
    torch.manual_seed(1)
    default = pixels_of(draw(toy))
    no_terms = ICASCConfig(weight_as_inner=0., weight_as_last=0., weight_ac=0.)
    assert (pixels_of(draw(toy, config=no_terms)) == default).all(), 'every map, whatever the weights of the terms'
    assert (pixels_of(draw(toy, config=ICASCConfig(attention='grad_cam'))) != default).any()
    assert (pixels_of(draw(toy, layers=('stem.0', 'stem'))) != default).any()
    with pytest.raises(LayerResolutionError, match='nowhere'):
        draw(toy, layers=('nowhere', 'stem'))


def test_the_model_and_the_random_state_stay_as_they_are(draw, images):
    model = create('resnet20_cifar', num_classes=4).train()
    model.layer2.eval()
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    first = draw(model).read_bytes()
    with pytest.raises(TargetError):
        draw(model, (1, 4), None)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state[1]).all()
    assert torch.is_grad_enabled()
    assert draw(model.eval()).read_bytes() == first, 'drawn in evaluation mode, the same file each time'
    assert attention_maps(model, images).shape == (2, 4, 8, 8)


def test_no_pyplot(monkeypatch, tmp_path, images, toy):
    """None in sys.modules makes every import of pyplot fail, that of a fresh copy of the module included."""
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    for name in [name for name in sys.modules if name.startswith('timm_icasc.figures')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(timm_icasc, 'figures', None)  # undone at the end, unlike what the import below does
    figures = importlib.import_module('timm_icasc.figures')
    for suffix in ('png', 'pdf', 'svg'):
        figures.attention_figure({'': toy}, images, torch.tensor([0, 1]), None, MEAN, STD, tmp_path / f'a.{suffix}')


@pytest.mark.parametrize('arguments, message', [
    ({'models': {}}, 'models is empty'),
    ({'images': torch.zeros(0, 3, 32, 32), 'targets': ()}, 'images must be'),
    ({'images': torch.zeros(2, 3, 32)}, r'images must be .*\(2, 3, 32\)'),
    ({'images': torch.zeros(2, 4, 32, 32)}, '1 or 3 channels'),
    ({'targets': (1,)}, r'targets must be 2 class indices.*\(1,\)'),
    ({'targets': (1., 2.)}, 'targets must be 2 class indices.*float32'),
    ({'mean': (0.5,)}, 'mean and std must have 3 values, .* got 1 and 3'),
    ({'std': (0.5, 0.5)}, 'got 3 and 2'),
    ({'targets': (0, 4)}, r'0 to 3, the classes named, got \[0, 4\]'),
    ({'targets': (0, -1)}, r'0 to 3, the classes named, got \[0, -1\]'),
    ({'names': NAMES + ['cow']}, "has 5 names, but model 'ICASC' has 4 classes"),
    ({'file': 'figure.docx'}, r"must end in one of \.png, \.pdf, \.svg, \.jpg, \.jpeg, \.webp, got '.*figure\.docx'"),
    ({'file': 'figure'}, 'must end in one of'),
])
def test_bad_arguments_are_named(arguments, message, draw, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(**{'models': ToyNet(), **arguments})
    assert not any(Path(tmp_path).iterdir()), 'nothing is written'


def test_unwritable_path_fails_before_the_model_runs(draw, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError):
        draw(torch.nn.Identity(), file='file/figure.png')
