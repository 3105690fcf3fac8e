"""What figures show of an image is read where training looks, also where a module puts out several tensors."""
import pytest
import torch.nn.functional as F
from helpers.several_outputs import load_run, tapped  # noqa: F401

from timm_icasc import ICASCTask, attention_maps
from timm_icasc.figures import attention_figure
from timm_icasc.figures.views import load_items, view_classes, view_layers


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


def test_the_figure_takes_layers_as_they_are(checkpoint, tapped, tmp_path):  # noqa: F811
    images, targets = load_items(checkpoint, [0, 1])
    attention_figure(
        {'model': checkpoint.model}, images, targets, None, (0.5,) * 3, (0.2,) * 3, tmp_path / 'figure.png',
        layers=checkpoint.layers)
    assert tapped == list(checkpoint.layers)
