"""The figure of attention maps on multi-label images."""
import matplotlib.axes
import pytest
import torch
from helpers.models import ToyNet

from timm_icasc.figures import attention_figure

NAMES = ['ant', 'bat', 'cat', 'dog']


@pytest.fixture
def texts(monkeypatch):
    """What is written on the page."""
    written = []
    original = matplotlib.axes.Axes.text

    def text(self, x, y, s, *args, **kwargs):
        written.append((s, kwargs['font'].get_weight()))
        return original(self, x, y, s, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, 'text', text)
    return written


@pytest.fixture
def model():
    """Scores that do not depend on the image: 3, 2, 1 and -1, up to the small share of the features."""
    torch.manual_seed(0)
    model = ToyNet()
    with torch.no_grad():
        model.fc.weight.abs_().mul_(1e-3)
        model.fc.bias.copy_(torch.tensor([3., 2., 1., -1.]))
    return model


def draw(model, targets, tmp_path):
    images = torch.randn(len(targets), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return attention_figure(
        {'model': model}, images, torch.tensor(targets), NAMES, (0.5,) * 3, (0.5,) * 3, tmp_path / 'figure.png')


def test_present_classes_together_and_the_absent_one_of_highest_score(model, texts, tmp_path):
    assert draw(model, [[1., -1., 0., 1.]], tmp_path).stat().st_size > 5_000
    shown = [s for s, _ in texts]
    # The image's title, and that of the target's map at two layers; 'bat' is ignored and confuses nobody.
    assert shown.count('ant, dog') == 3 and shown.count('95%, 27%') == 2
    assert shown.count('\u2717 cat') == 2 and 'bat' not in ' '.join(shown)
    assert ('\u2717 cat', 'bold') in texts and shown.count('73%') == 2


def test_where_every_class_is_present_none_is_confused(model, texts, tmp_path):
    draw(model, [[1., 1., 1., 1.], [1., -1., 0., 1.]], tmp_path)
    shown = [s for s, _ in texts]
    assert [s for s in shown if s.startswith('\u2717')] == ['\u2717 cat'] * 2
    assert sum(s.startswith('ant, b') for s in shown) == 3, 'the image, and its map at two layers'
    assert 'ant' not in shown and shown.count('no overlap: a map is zero') == 2


def test_a_confused_class_below_one_half_is_no_mistake(model, texts, tmp_path):
    draw(model, [[1., 1., 1., 0.]], tmp_path)
    assert ('dog', 'normal') in texts and '\u2717 dog' not in [s for s, _ in texts]


@pytest.mark.parametrize('targets', [[[1, 0, 0, 1]], [[1., 0., 0., 1.]] * 2])
def test_other_targets_are_refused(targets, model, tmp_path):
    with pytest.raises(ValueError, match='targets must be 1 class indices, one per image, or floating point'):
        attention_figure(
            {'model': model}, torch.zeros(1, 3, 16, 16), torch.tensor(targets), NAMES, (0.5,) * 3,
            (0.5,) * 3, tmp_path / 'figure.png')
