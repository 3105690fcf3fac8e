"""The figure of a run shows the images that its network is evaluated on, whatever loads them."""
import numpy as np
import pytest
import torch
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY
from PIL import Image

from timm_icasc.figures import validation
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up, set_up_device


def job_of(images, *options):
    args = parse_args([*map(str, ['--data-dir', images, *TINY, '--seed', 1, *options])])
    return set_up(args, set_up_device(args))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp('images'), train=2, val=2)


def drawn(job, path, monkeypatch):
    """The images of the figure, and the figure itself, with maps, as arrays."""
    seen, draw = [], validation.attention_figure

    def remember(models, images, *args, **kwargs):
        seen.append(images.numpy())
        return draw(models, images, *args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(validation, 'attention_figure', remember)
        validation.validation_figure({'': {'model': job.model, 'job': job}}, path)
    with Image.open(path) as picture:
        return seen[0], np.asarray(picture.convert('RGB'), dtype=float)


@pytest.mark.parametrize('options', [[], ['--in-chans', 1, '--crop-pct', 0.8]], ids=['colour', 'grey'])
def test_with_and_without_a_prefetcher(options, images, tmp_path, monkeypatch):
    fetched, plain = (
        drawn(job_of(images, *options, *loading), tmp_path / f'{len(loading)}.png', monkeypatch)
        for loading in ([], ['--no-prefetcher']))
    assert np.abs(fetched[0] - plain[0]).max() < 1e-4 and np.ptp(plain[0]) > 1
    assert fetched[1].shape == plain[1].shape and np.abs(fetched[1] - plain[1]).max() <= 2


@pytest.mark.parametrize('loading', [[], ['--no-prefetcher']], ids=['prefetched', 'plain'])
def test_they_are_the_images_of_the_validation(loading, images, tmp_path, monkeypatch):
    job = job_of(images, *loading)
    validated = torch.cat([batch for batch, _ in job.loader_val]).numpy()
    figure, _ = drawn(job, tmp_path / 'figure.png', monkeypatch)
    assert len(figure) == validation.IMAGES == len(validated) and np.array_equal(figure, validated)
