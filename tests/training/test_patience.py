"""--patience: a run ends when it has not become better for so many epochs, whoever has interrupted it."""
import csv
import json
import os
import signal

import pytest
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY as SMALL
from helpers.runs import train_with_accuracies

from timm_icasc.training import run as training_run

TINY = [*SMALL, '--no-icasc', '--icasc-eval-images', '0', '--sched', 'none', '--checkpoint-hist', '3']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp('images'), train=2, val=1)


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Train with accuracies of a list, epoch by epoch; returns (results.json, accuracies in summary.csv, stdout)."""
    def call(accuracies, *options):
        out = train_with_accuracies(
            monkeypatch, capsys, accuracies, '--data-dir', images, '--output', tmp_path, '--experiment', 'x', *TINY,
            *options)
        with open(tmp_path / 'x' / 'summary.csv') as file:
            measured = [float(row['eval_top1']) for row in csv.DictReader(file) if row['eval_top1']]
        return json.loads((tmp_path / 'x' / 'results.json').read_text()), measured, out
    return call


def test_it_ends_so_many_epochs_after_the_best(run):
    result, measured, out = run([1., 3., 2., 2.], '--epochs', 9, '--patience', 2)
    assert measured == [1., 3., 2., 2.] and '--patience 2: none was better since epoch 2; the run ends' in out
    assert (result['epochs'], result['best'], result['last']['eval_top1']) == (4, {'top1': 3., 'epoch': 1}, 2.)


def test_progress_lets_it_go_on(run):
    result, measured, out = run([1., 0., 2., 0., 3.], '--epochs', 5, '--patience', 2)
    assert len(measured) == 5 and result['epochs'] == 5 and 'none was better' not in out


def test_a_run_that_is_made_longer_counts_on(run):
    run([3., 2.], '--epochs', 2, '--patience', 3)
    result, measured, _ = run([2., 2.], '--epochs', 9, '--patience', 3, '--resume', 'auto')
    assert measured == [3., 2., 2., 2.] and result['epochs'] == 4


def test_an_interrupted_run_counts_on(run, monkeypatch):
    options, add = ['--epochs', 9, '--patience', 3], training_run.add_epoch

    def stop(folder, epoch, values):
        add(folder, epoch, values)
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(training_run, 'add_epoch', stop)
    with pytest.raises(AssertionError, match='interrupted'):
        run([3., 2.], *options)
    monkeypatch.setattr(training_run, 'add_epoch', add)
    result, measured, _ = run([2., 2.], *options, '--resume', 'auto')
    assert measured == [3., 2., 2., 2.] and result['epochs'] == 4


def test_a_run_that_has_ended_stays_as_it_is(run, tmp_path):
    options = ['--epochs', 9, '--patience', 1]
    run([3., 2.], *options)
    before = (tmp_path / 'x' / 'results.json').read_bytes()
    _, measured, out = run([], *options, '--resume', 'auto')
    assert 'all 2 epochs are done, and' in out and 'stays as it is' in out and measured == [3., 2.]
    assert (tmp_path / 'x' / 'results.json').read_bytes() == before


def test_results_that_are_lost_are_written_anew(run, tmp_path):
    options = ['--epochs', 9, '--patience', 1]
    run([3., 2.], *options)
    (tmp_path / 'x' / 'results.json').unlink()
    result, measured, _ = run([], *options, '--resume', 'auto')
    assert result['epochs'] == 2 and result['last']['eval_top1'] == 2. and measured == [3., 2.]


def test_more_patience_trains_on(run):
    run([3., 2.], '--epochs', 4, '--patience', 1)
    result, measured, _ = run([2., 4.], '--epochs', 4, '--patience', 5, '--resume', 'auto')
    assert measured == [3., 2., 2., 4.] and result['epochs'] == 4 and result['best'] == {'top1': 4., 'epoch': 3}


def test_epochs_that_are_not_validated_do_not_end_it(run):
    result, measured, _ = run([3., 2., 2.], '--epochs', 9, '--patience', 3, '--val-interval', 2)
    assert measured == [3., 2., 2.] and result['epochs'] == 5 and result['last']['eval_top1'] == 2.
