"""What figures show of an image is read where training looks, also where a module puts out several tensors."""
import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.in_training import in_training
from helpers.models import ToyNet
from helpers.several_outputs import load_run, tapped  # noqa: F401

from timm_icasc import ICASCError, ICASCTask, attention_maps
from timm_icasc.explanation.canvas import CELL, Grid, Page
from timm_icasc.features.resolve import resolve_layers
from timm_icasc.figures import attention_figure
from timm_icasc.figures.html import browsing_page
from timm_icasc.figures.views import load_items, view_classes, view_layers
from timm_icasc.labels import MULTI, SINGLE


@pytest.fixture(scope='module', params=['coat_tiny', 'efficientvim_m1'])
def checkpoint(request, tmp_path_factory):
    return load_run(tmp_path_factory.mktemp('several') / 'run', request.param)


def test_views_show_the_maps_that_training_trains(checkpoint):
    size = checkpoint.data_config['input_size']
    layers = ICASCTask(checkpoint.model, verbose=False).resolve_layers(size)
    images, targets = load_items(checkpoint, [0])
    for place in ('inner', 'last'):
        maps = attention_maps(checkpoint.model, images, int(targets[0]), method='ach', layer=place, layers=layers)
        heat = F.interpolate(maps, size[1:], mode='bilinear')[0, 0]
        heat = (heat / heat.max()).numpy()
        shown = next(view for view in view_classes(checkpoint, [0], method='ach', layer=place)[0] if view.truth)
        assert shown.heat == pytest.approx(heat, abs=1e-5) and heat.any()
        assert getattr(view_layers(checkpoint, [0], 'ach')[1][0], place) == pytest.approx(heat, abs=1e-5)


@pytest.fixture
def of_known_scores():
    """A checkpoint whose scores are 0, 1, 2 and 3, up to the small share of the features, and one image."""
    torch.manual_seed(0)
    model = ToyNet().eval()
    with torch.no_grad():
        model.fc.weight.abs_().mul_(1e-3)
        model.fc.bias.copy_(torch.arange(4.))

    def make(target, labels=MULTI):
        return SimpleNamespace(
            dataset=[(torch.randn(3, 16, 16), torch.tensor(target))], device=torch.device('cpu'), model=model,
            labels=labels, layers=resolve_layers(model, input_size=(3, 16, 16)), class_name=str, label='model',
            num_classes=4, source='run',
            data_config={'mean': (0.5,) * 3, 'std': (0.5,) * 3})
    return make


def test_the_nearest_class_is_one_with_a_map(of_known_scores, monkeypatch):
    """Beside a true class whose map is zero, the overlap with the other one was not told."""
    maps = torch.tensor([[[0., 1, 1]], [[1, 1, 0]], [[0, 0, 0]]])[None]
    monkeypatch.setattr('timm_icasc.figures.views.attention_maps', lambda *args, **kwargs: maps)
    first, second, third = view_classes(of_known_scores([0., 1., 1., 0.]), [0], 3)[0]
    assert [view.index for view in (first, second, third)] == [3, 2, 1]
    assert first.overlap == pytest.approx(0.5) and first.note == 'overlap 0.50'
    assert np.isnan([second.overlap, third.overlap]).all() and third.note == 'map is zero'


def test_images_of_another_shape_keep_it_in_their_cells(monkeypatch):
    """As of a second model, of another input: they were stretched to the shape of the first one's."""
    places = []
    monkeypatch.setattr(Page, 'image', lambda self, rgb, *place: places.append(place))
    grid = Grid((32, 64), 1, 2, CELL, 1, 1, [])
    for shape in ((32, 64), (64, 128), (64, 64), (16, 64)):
        grid.picture(np.zeros((*shape, 3)), 0, 100)
    top, half, quarter = grid.tops[0], CELL // 2, CELL // 4
    assert grid.cell_height == half
    assert places == [
        (100, top, CELL, half), (100, top, CELL, half), (100 + quarter, top, half, half),
        (100, top + quarter // 2, CELL, quarter)]


@pytest.mark.parametrize('target, topk, shown', [
    ([1., 1., 1., 1.], 2, '3+ 2+'), ([1., 1., 1., 0.], 2, '2+ 1+'), ([1., 0., 1., 1.], 3, '3+ 2+ 0+'),
    ([1., 0., 0., 0.], 2, '3 0+'), ([1., 0., 0., 0.], 9, '3 2 1 0+'), ([0., 0., 0., 0.], 2, '3 2'),
    ([1., 1., 0., 0.], 1, '1+'), ([0., -1., 1., 1.], 1, '3+')])
def test_of_more_present_classes_than_there_is_room_for_the_highest_are_shown(target, topk, shown, of_known_scores):
    views, = view_classes(of_known_scores(target), [0], topk)
    assert ' '.join(f"{view.index}{'+' * view.truth}" for view in views) == shown
    assert [view.rank for view in views] == [4 - view.index for view in views]


@pytest.mark.parametrize('target, labels, correct', [
    ([1., 1., 1., 1.], MULTI, 'true'), ([1., 1., 1., 0.], MULTI, 'false'), (3, SINGLE, 'true'), (0, SINGLE, 'false')])
@pytest.mark.parametrize('topk', [1, 2])
def test_the_page_files_images_as_right_by_their_scores(target, labels, correct, topk, of_known_scores, tmp_path):
    page = browsing_page([of_known_scores(target, labels)], [0], tmp_path / 'page.html', topk).read_text()
    assert [unescape(found) for found in re.findall('data-correct="([^"]*)"', page)] == [f'[{correct}]']


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('draw', [
    lambda broken, path: view_classes(broken, [0]), lambda broken, path: view_layers(broken, [0], 'ach'),
    lambda broken, path: attention_figure(
        {'run': broken.model}, broken.dataset[0][0][None], torch.tensor([1]), None, (0.5,) * 3, (0.5,) * 3, path)])
def test_weights_that_training_has_broken_are_not_drawn(draw, value, of_known_scores, tmp_path):
    broken = of_known_scores(1, SINGLE)
    broken.model.fc.bias.data[2] = value
    with pytest.raises(ICASCError, match="'run' gives class scores that are NaN or infinite, for 1 of the 1 images"):
        draw(broken, tmp_path / 'figure.png')
    assert not (tmp_path / 'figure.png').exists()


def test_the_figure_takes_layers_as_they_are(checkpoint, tapped, tmp_path):  # noqa: F811
    images, targets = load_items(checkpoint, [0, 1])
    attention_figure(
        {'model': checkpoint.model}, images, targets, None, (0.5,) * 3, (0.2,) * 3, tmp_path / 'figure.png',
        layers=checkpoint.layers)
    assert tapped == list(checkpoint.layers)


def drawn(checkpoint, path):
    images, targets = load_items(checkpoint, [0, 1])
    attention_figure({'model': checkpoint.model}, images, targets, None, (0.5,) * 3, (0.2,) * 3, path)
    return path.read_bytes()


@pytest.mark.parametrize('look', [
    lambda checkpoint, path: [list(map(vars, views)) for views in view_classes(checkpoint, [0, 1])],
    lambda checkpoint, path: list(map(vars, view_layers(checkpoint, [0, 1], 'ach')[1])), drawn])
def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(look, tmp_path):
    trained = load_run(tmp_path / 'run', 'resnet20_cifar', num_classes=10, dataset='digits', drop=0.5)
    expected = look(trained, tmp_path / 'figure.png')
    with in_training(trained.model):
        np.testing.assert_equal(look(trained, tmp_path / 'figure.png'), expected)
