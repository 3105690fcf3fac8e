"""How images are prepared for a model, and what of it is refused."""
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers.bright import BrightNet, square_image
from helpers.versions import recent_timm
from helpers.wrappers import LightningLike
from timm.data import resolve_data_config
from torchvision.transforms import Normalize

from timm_icasc import ICASCError, explain, resolve_layers
from timm_icasc.explanation.data_config import data_config_of


def test_without_a_word_it_is_the_models_own():
    model = timm.create_model('test_resnet', num_classes=3)
    assert data_config_of(model, None) == resolve_data_config(model=model)
    assert data_config_of(LightningLike(model), None) == data_config_of(model, None)
    assert data_config_of(model, model.pretrained_cfg) == data_config_of(model, None)  # a whole one
    assert data_config_of(model, {'img_size': 64})['input_size'] == (3, 64, 64)


@recent_timm
@pytest.mark.parametrize('wrap', [lambda model: model, LightningLike])
def test_a_model_of_grey_images(wrap):
    """Its `pretrained_cfg` is that of weights for three channels; it was given three."""
    torch.manual_seed(0)
    model = wrap(timm.create_model('test_resnet', num_classes=3, in_chans=1))
    config = data_config_of(model, None)
    assert config['input_size'] == (1, 160, 160) and config['mean'] == (0.5,) and config['std'] == (0.5,)
    assert explain(model, square_image((64, 48), (8, 8, 30, 30)), topk=2).maps.shape == (2, 48, 64)


@pytest.mark.parametrize('config, expected', [
    ({'image_size': 32}, (3, 32, 32)), ({'image_size': [32, 48], 'num_channels': 1}, (1, 32, 48)),
    ({'image_size': None}, (3, 224, 224)), ({'image_size': [32]}, (3, 224, 224)), ({}, (3, 224, 224))])
def test_the_size_of_a_model_of_transformers(config, expected):
    model = torch.nn.Sequential(torch.nn.Conv2d(expected[0], 4, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1))
    model = torch.nn.Sequential(model, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.config = SimpleNamespace(**config)
    with pytest.warns(UserWarning, match='does not tell how its images are prepared'):
        assert data_config_of(model, None)['input_size'] == expected
    layers = resolve_layers(model, ('0.0', '0.2'))
    assert layers.last.grid == (expected[1] // 4, expected[2] // 4)


@pytest.mark.parametrize('given, said', [
    ({'input_sise': (3, 64, 64)}, r"has \['input_sise'\], which is not among input_size, img_size"),
    ((3, 64, 64), 'must be a dictionary, got tuple'),
    ({'input_size': 64}, "'input_size' is "), ({'mean': 0.5}, "'mean' and 'std' are tuples"),
    ({'mean': (0.5, 0.5)}, "'mean' and 'std' are tuples"),
    ({'input_size': (3, 64, 0)}, r"'input_size' must be .* got \(3, 64, 0\)"),
    ({'interpolation': 'cubic'}, "'interpolation' must be one of nearest, .* got 'cubic'"),
    ({'crop_mode': 'centre'}, "'crop_mode' must be one of center, .* got 'centre'"),
    ({'std': (0., 0., 0.)}, "'std' must be finite, and above 0"), ({'crop_pct': -1}, "'crop_pct' must be finite, and"),
    ({'mean': (float('nan'),)}, "'mean' must be finite"),
])
def test_what_would_change_nothing_or_fail_later_is_refused(given, said):
    with pytest.raises(ICASCError, match=f'`data_config`.*{said}'):
        explain(BrightNet(), square_image((64, 64), (8, 8, 30, 30)), data_config=given)


class Normalised(torch.nn.Module):
    """Normalises images by buffers of its own, as models of robustness research do."""

    def __init__(self, model, shape=(3, 1, 1)):
        super().__init__()
        self.register_buffer('mean', torch.full(shape, 0.5))
        self.register_buffer('std', torch.full(shape, 0.5))
        self.model = model

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


class Flagged(torch.nn.Module):
    """Keeps the numbers where kornia's `Normalize` does."""

    def __init__(self):
        super().__init__()
        self.flags = {'mean': torch.full((3,), 0.5), 'std': torch.full((3,), 0.5)}

    def forward(self, x):
        return (x - self.flags['mean'][:, None, None]) / self.flags['std'][:, None, None]


NORMALISED = {
    "'0' of Sequential": lambda model: torch.nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), model),
    'Normalised': Normalised,
    "'0' of Sequential holds": lambda model: torch.nn.Sequential(Normalised(torch.nn.Identity(), (1, 1, 1)), model),
    "'0' of Sequential holds a mean": lambda model: torch.nn.Sequential(Flagged(), model),
    "'net' of LightningLike": lambda model: LightningLike(Normalised(model)),
}


@pytest.mark.parametrize('said', NORMALISED)
def test_a_model_that_normalises_images_itself(said):
    """The model's own mean and deviation are those of the `pretrained_cfg` inside, and were taken off twice."""
    model, image = BrightNet(), square_image((64, 64), (8, 8, 30, 30))
    wrapped = NORMALISED[said](model)
    with pytest.warns(UserWarning, match=rf'{said}.*`data_config=dict\(mean=\(0, 0, 0\), std=\(1, 1, 1\)\)`'):
        twice = explain(wrapped, image)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        once = explain(wrapped, image, data_config=dict(mean=(0, 0, 0), std=(1, 1, 1)))
        expected = explain(model, image)
    torch.testing.assert_close(once.grid_maps, expected.grid_maps)
    assert once.scores == pytest.approx(expected.scores) and twice.scores != pytest.approx(expected.scores)


class Noise(torch.nn.Module):
    mean, std = 0., 0.1


class Statistics(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.std = torch.zeros(2, 64), torch.ones(2, 64)


@pytest.mark.parametrize('add', [
    Noise, lambda: Normalize((0., 0., 0.), (1., 1., 1.)), lambda: torch.nn.BatchNorm2d(3), Statistics])
def test_other_means_and_deviations_are_no_normalisation_of_images(add):
    model = BrightNet()
    model.other = add()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data_config_of(model, None)


@recent_timm
def test_a_model_of_more_channels_than_colours():
    model = timm.create_model('test_resnet', num_classes=3, in_chans=5)
    with pytest.raises(ICASCError, match='takes 5 channels, .*`attention_maps`'):
        explain(model, square_image((64, 64), (8, 8, 30, 30)))
