"""The share of an epoch's training that went by waiting for images, and what the user is told of it."""
import json
from pathlib import Path

import pytest
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY, train_with_accuracies

from timm_icasc.training import epoch as training_epoch
from timm_icasc.training import run as training_run
from timm_icasc.training.epoch import timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that only what a test does moves on; returns how it is moved."""
    now = [100.]
    monkeypatch.setattr(training_epoch.time, 'monotonic', lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds
    return pass_by


def test_waiting_is_until_a_batch_comes_and_not_what_is_done_with_it(clock):
    def loader():
        for seconds in (3, 1):
            clock(seconds)
            yield seconds
        clock(0.5)  # to find that there is no more

    waits = []
    for _ in timed(loader(), waits):
        clock(10)
    assert waits == [3, 1, 0.5]


def test_a_loader_that_fails_is_heard(clock):
    def loader():
        yield 1
        raise ValueError('broken image')
    with pytest.raises(ValueError, match='broken image'):
        list(timed(loader(), []))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Train for two epochs; returns (what results.json tells of the last one, stdout)."""
    def call(*options):
        images = save_noise(tmp_path / 'images', train=2, val=1)
        out = train_with_accuracies(
            monkeypatch, capsys, [1., 2.], '--data-dir', images, '--output', tmp_path, '--experiment', 'x', *TINY,
            '--icasc-eval-images', '0', '--epochs', '2', *options)
        return json.loads((tmp_path / 'x' / 'results.json').read_text())['last'], out
    return call


def test_it_is_said_once_from_a_third_on(run, monkeypatch):
    monkeypatch.setattr(
        training_epoch, 'timed', lambda batches, waits: (waits.append(1e9) or batch for batch in batches))
    last, out = run()
    assert last['waiting'] > 0.3
    assert out.count("of the training time went by waiting for images; docs/training.md, 'Speed of data loading'") == 1


def test_a_run_whose_images_keep_up_says_nothing(run, monkeypatch):
    monkeypatch.setattr(training_epoch, 'timed', lambda batches, waits: batches)
    last, out = run()
    assert last['waiting'] == 0 and 'waiting for images' not in out


def test_the_page_that_is_named_has_the_section():
    page = Path(training_run.__file__).parents[2] / 'docs' / 'training.md'
    assert '## Speed of data loading' in page.read_text()
