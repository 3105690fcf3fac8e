"""Weights that the last update of an epoch breaks, unseen by any training loss: the epoch is not saved."""
import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import in_two_processes
from helpers.runs import TINY, train_in_process

from timm_icasc.errors import NonFiniteLossError
from timm_icasc.training import epoch as training_epoch

UPDATES = 3  # an epoch: twelve images in batches of four


@pytest.fixture
def run(noise, tmp_path, monkeypatch, capsys):
    """Train; returns (exit code, stderr)."""
    def call(*options):
        code, _, err = train_in_process(
            monkeypatch, capsys, '--data-dir', noise, '--output', tmp_path, '--experiment', 'x', *TINY,
            '--batch-size', 4, *options)
        return code, err
    return call


def enlarge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e20).add_(1e20)


def break_at(patch, update, averaged=False):
    """Make the weights huge, and finite, in the update of this number, or their averages alone behind it."""
    counted, original = [0], training_epoch.update_weights

    def broken(job):
        original(job)
        counted[0] += 1
        if counted[0] == update:
            enlarge(training_epoch.evaluated_model(job) if averaged else job.model)
    patch.setattr(training_epoch, 'update_weights', broken)


@pytest.mark.parametrize('options', [
    [], ['--model-ema', '--model-ema-decay', 0.9], ['--val-interval', 3], ['--model-ema', '--val-interval', 3],
], ids=['plain', 'averaged', 'not validated', 'averaged, not validated'])
def test_the_last_update_of_an_epoch(options, run, tmp_path, monkeypatch):
    options = ['--epochs', 3, *options]
    with monkeypatch.context() as patch:
        break_at(patch, 2 * UPDATES)
        code, err = run(*options)
    assert code == 2 and 'error: the class scores became NaN or infinite: lower --lr' in err
    assert err.endswith('The last checkpoint is from before epoch 2.\n')
    assert len(err.strip().splitlines()) == 1
    kept = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)
    assert kept['epoch'] == 0 and all(value.abs().max() < 1e3 for value in kept['state_dict'].values())
    assert len(list(csv.DictReader(open(tmp_path / 'x' / 'summary.csv')))) == 1
    assert run(*options, '--resume', 'auto')[0] == 0  # as if nothing had been
    assert json.loads((tmp_path / 'x' / 'results.json').read_text())['epochs'] == 3


@pytest.mark.parametrize('options', [[], ['--val-interval', 3]], ids=['validated', 'not validated'])
def test_averages_that_are_broken_are_told_from_the_weights(options, run, monkeypatch):
    with monkeypatch.context() as patch:
        break_at(patch, 2 * UPDATES, averaged=True)
        code, err = run('--epochs', 3, '--model-ema', '--model-ema-decay', 0.9, *options)
    assert code == 2 and 'the class scores by the averaged weights (--model-ema) became NaN or infinite' in err


def test_a_rate_that_is_too_high_for_one_update(run, tmp_path):
    code, err = run('--epochs', 1, '--batch-size', 12, '--lr', 1e20)
    assert code == 2 and 'the class scores became NaN or infinite' in err and 'from before epoch 1' in err
    assert not (tmp_path / 'x' / 'summary.csv').exists() and not (tmp_path / 'x' / 'attention.png').exists()
    assert run('--epochs', 1, '--resume', 'auto', '--lr', 0.01)[0] == 0


@pytest.mark.parametrize('schedule', ['none', 'cosine'])
def test_a_run_goes_on_at_the_lower_rate(schedule, run, tmp_path, monkeypatch):
    """The optimiser's state, with the rate of before, is in the checkpoint."""
    with monkeypatch.context() as patch:
        break_at(patch, 2 * UPDATES)
        assert run('--epochs', 2, '--sched', schedule, '--min-lr', 0)[0] == 2
    assert run('--epochs', 2, '--resume', 'auto', '--lr', 0.01)[0] == 0
    rates = [float(row['lr']) for row in csv.DictReader(open(tmp_path / 'x' / 'summary.csv'))]
    assert len(rates) == 2 and rates[1] <= 0.01 < rates[0]


def test_a_checkpoint_that_was_broken_before(run, tmp_path, monkeypatch):
    """Of an older version, say: that what it holds leads nowhere is told, and so is what does."""
    assert run('--epochs', 1)[0] == 0
    file = tmp_path / 'x' / 'last.pth.tar'
    state = torch.load(file, weights_only=False)
    for value in state['state_dict'].values():
        value.mul_(1e20) if value.is_floating_point() else None
    torch.save(state, file)
    code, err = run('--epochs', 2, '--resume', 'auto')
    assert code == 2 and 'in epoch 2, step 1 (' in err
    assert 'before an update of it: train anew, or --resume an earlier checkpoint, and lower --lr' in err
    (tmp_path / 'x' / 'results.json').unlink()
    shutil.move(tmp_path / 'x' / 'summary.csv', tmp_path / 'elsewhere.csv')
    code, err = run('--epochs', 1, '--resume', 'auto')  # all epochs are done, and evaluated anew
    assert code == 2 and 'the class scores became NaN or infinite' in err and 'last checkpoint' not in err


def look(rank, folder):
    job = SimpleNamespace(args=SimpleNamespace(distributed=True, world_size=2))
    training_epoch.check_scores(job, torch.tensor(True), averaged=False)
    try:
        training_epoch.check_scores(job, torch.tensor(rank == 0), averaged=False)
    except NonFiniteLossError as e:
        (folder / f'{rank}').write_text(str(e))


def test_all_processes_end_where_one_has_seen_it(tmp_path):
    in_two_processes(look, tmp_path)
    assert all('NaN or infinite' in (tmp_path / f'{rank}').read_text() for rank in range(2))
