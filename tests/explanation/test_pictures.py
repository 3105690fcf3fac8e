"""What an explanation shows of itself."""
import io

import numpy as np
import pytest
import torch
from helpers.bright import BrightNet, square_image
from PIL import Image

from timm_icasc import Explanation, explain
from timm_icasc.explanation.pictures import _caption
from timm_icasc.losses import attention_overlap


@pytest.fixture
def found() -> Explanation:
    return explain(BrightNet(label_names=['bright', '$dark$ \u202e']), square_image((300, 200), (120, 80, 160, 120)))


def test_a_notebook_shows_the_picture(found):
    png, words = found._repr_png_()
    assert words['alt'].startswith('image: $dark$ ') and words['alt'].endswith('%') and '\u202e' not in words['alt']
    with Image.open(io.BytesIO(png)) as shown:
        assert shown.format == 'PNG' and shown.size == found.picture().size
        pixels = np.asarray(shown.convert('RGB')).astype(int)
    assert ((pixels.max(2) - pixels.min(2)) > 60).any()  # the colours of the maps on a black and white image


def test_a_notebook_shows_several_pictures(found, monkeypatch):
    images = [square_image((40, 30), (10, 10, 20, 20))] * 3
    several = explain(BrightNet(label_names=['<b>&"', 'dark']), images)
    assert isinstance(several, list) and len(several) == 3 and several[1:] == list(several)[1:]
    html = several._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 3 and 'more' not in html
    assert ' &lt;b&gt;&amp;&quot; ' in html and '<b>' not in html
    monkeypatch.setattr('timm_icasc.explanation.pictures.MOST_SHOWN', 2)
    assert several._repr_html_().count('<img') == 2 and '... and 1 more: look at [2:].' in several._repr_html_()


@pytest.mark.parametrize('ending', ['.png', '.pdf', '.svg', '.jpg', '.jpeg', '.JPEG', '.webp'])
def test_save(found, ending, tmp_path):
    path = found.save(tmp_path / 'new' / f'picture{ending}')
    assert path.stat().st_size > 1000 and [file.name for file in path.parent.iterdir()] == [path.name]


def test_save_refuses_other_endings(found, tmp_path):
    with pytest.raises(ValueError, match='`path` must end in one of .png'):
        found.save(tmp_path / 'picture.txt')
    assert not list(tmp_path.iterdir())


def test_show_asks_the_system(found, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, 'show', lambda image: shown.append(image))
    found.show()
    assert [image.size for image in shown] == [found.picture().size]


def test_overlap(found):
    expected = attention_overlap(found.grid_maps[:1], found.grid_maps[1:2]).item()
    assert found.overlap() == found.overlap(1, 0) == pytest.approx(expected) and found.overlap(0, 0) == pytest.approx(1)


@pytest.mark.parametrize('size', [(20, 900), (900, 20), (1, 1), (3000, 2000)])
def test_pictures_of_odd_images_are_of_a_size_to_look_at(size):
    found = explain(BrightNet(crop_mode='squash'), Image.new('RGB', size, 'white'))
    picture = found.picture()
    assert 300 < picture.width < 1200 and 60 < picture.height < 600
    assert max(found.overlay(0, 100).size) <= 100 and found.overlay(0).size == size


def test_the_legend_of_what_is_dark_stands_where_something_is():
    """A size at which the edges of what is seen are off by rounding; of two models the second alone crops."""
    image = Image.new('RGB', (404, 404), 'white')
    whole, cropped = (
        explain(BrightNet(mode, pct, (224, 224)), image) for mode, pct in (('squash', 1.), ('center', 0.5)))
    assert whole.seen != (0, 0, 404, 404) and whole.seen == pytest.approx((0, 0, 404, 404))
    for shown, dark in (([whole], False), ([cropped], True), ([whole, cropped], True), ([whole, whole], False)):
        assert ('Dark: ' in _caption(shown)) == dark
    assert np.array_equal(np.asarray(whole.overlay(0)) > 0, np.ones((404, 404, 3), dtype=bool))


def test_an_explanation_says_what_it_is(found):
    assert "class_names=['$dark$" in repr(found) and 'tensor' not in repr(found) and len(found) == 2
    assert torch.equal(found.maps_at((300, 200)), found.maps)
