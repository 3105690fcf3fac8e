"""--log-wandb and --log-tensorboard, offline: a stand-in for the first, event files of the second."""
import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.runs import TINY, train_in_process

from timm_icasc.cli import train as cli_train
from timm_icasc.training import run as training_run


@pytest.fixture
def run(noise, tmp_path, monkeypatch, capsys):
    return lambda *options, **kwargs: train_in_process(
        monkeypatch, capsys, '--data-dir', noise, '--output', tmp_path, *TINY, '--experiment', 'x', *options, **kwargs)


@pytest.fixture
def wandb(monkeypatch):
    """What a run of Weights & Biases is told, by a module of its name."""
    told = SimpleNamespace(init=[], log=[], finished=0)

    class Run:
        def __init__(self, id):
            self.id = id

        def log(self, values, step):
            told.log.append((step, values))

        def finish(self):
            told.finished += 1

    def init(**kwargs):
        told.init.append(kwargs)
        return Run(kwargs['id'] or 'made-up')
    monkeypatch.setitem(sys.modules, 'wandb', SimpleNamespace(init=init, Image=lambda image: image))
    return told


def rows_of(folder):
    with open(folder / 'summary.csv') as file:
        return list(csv.DictReader(file))


def test_weights_and_biases(run, wandb, tmp_path):
    code, _, err = run('--epochs', 2, '--log-wandb', '--wandb-project', 'icasc', '--wandb-tags', 'a', 'b', drawn=True)
    assert code == 0, err
    begun, = wandb.init
    assert (begun['project'], begun['name'], begun['tags'], begun['id']) == ('icasc', 'x', ['a', 'b'], None)
    assert begun['config']['model'] == 'resnet8_cifar' and wandb.finished == 1
    assert [step for step, _ in wandb.log] == [1, 2]
    for (_, told), row in zip(wandb.log, rows_of(tmp_path / 'x'), strict=True):
        for name in ('train_loss', 'eval_top1', 'lr'):
            assert told[name] == pytest.approx(float(row[name])), name
    first, second = (np.asarray(told['attention']) for _, told in wandb.log)
    assert first.shape == second.shape and first.ndim == 3 and (first != second).any(), 'the model has changed'

    assert run('--epochs', 3, '--resume', 'auto')[0] == 0
    assert wandb.init[1]['id'] == 'made-up' and wandb.init[1]['resume'] == 'allow', 'the same run there'
    assert [step for step, _ in wandb.log] == [1, 2, 3] and wandb.finished == 2


@pytest.mark.parametrize('options', [[], ['--sched-on-updates'], ['--sched', 'none']])
def test_the_rate_of_an_epoch_is_what_it_begins_with(options, run, wandb, tmp_path, monkeypatch):
    """It was that of the next epoch."""
    begun, original = [], training_run.train_one_epoch

    def train_one_epoch(epoch, job, flag):
        begun.append(job.optimizer.param_groups[0]['lr'])
        return original(epoch, job, flag)

    monkeypatch.setattr(training_run, 'train_one_epoch', train_one_epoch)
    assert run('--epochs', 2, '--log-wandb', *options)[0] == 0
    assert len(begun) == 2 and begun[0] == 0.05
    assert [float(row['lr']) for row in rows_of(tmp_path / 'x')] == begun
    assert [told['lr'] for _, told in wandb.log] == begun


def test_a_run_there_that_is_named(run, wandb):
    assert run('--epochs', 1, '--log-wandb', '--wandb-resume-id', 'abc')[0] == 0
    assert wandb.init[0]['id'] == 'abc' and wandb.init[0]['resume'] == 'must'


def test_logging_does_not_change_the_run(run, wandb, tmp_path):
    assert run('--epochs', 2, '--log-wandb')[0] == 0
    assert run('--epochs', 2)[0] == 0
    logged, plain = rows_of(tmp_path / 'x'), rows_of(tmp_path / 'x-1')
    assert [row['train_loss'] for row in logged] == [row['train_loss'] for row in plain]


@pytest.mark.parametrize('option, module', [('--log-wandb', 'wandb'), ('--log-tensorboard', 'torch.utils.tensorboard')])
def test_a_package_that_is_missing(option, module, run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run('--epochs', 1, option)
    assert code == 2
    assert err == f"train_timm.py: error: {option} needs another package: pip install 'timm_icasc[log]'.\n"
    assert not (tmp_path / 'x').exists()


def test_options_of_what_is_not_asked_for(run):
    code, _, err = run('--epochs', 1, '--wandb-project', 'p')
    assert code == 2 and '--wandb-project is of --log-wandb, which is missing' in err


def test_tensorboard(run, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    assert run('--epochs', 2, '--log-tensorboard')[0] == 0
    assert run('--epochs', 3, '--resume', 'auto')[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / 'x' / 'tensorboard'), size_guidance={'images': 0})
    events.Reload()
    values = [(event.step, event.value) for event in events.Scalars('eval/top1')]
    assert values == [(i + 1, pytest.approx(float(row['eval_top1']))) for i, row in enumerate(rows_of(tmp_path / 'x'))]
    assert {'train/loss', 'train/loss_cls', 'lr'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Images('attention')] == [1, 2, 3]


def test_two_runs_under_one_name(run, wandb):
    code, _, err = run('--epochs', 1, '--log-wandb', '--wandb-resume-id', 'abc', '--icasc-compare')
    assert code == 2 and '--wandb-resume-id names one run, and --icasc-compare makes two' in err


def test_what_the_package_refuses_is_one_line(run, wandb, monkeypatch):
    class UsageError(Exception):
        pass

    def init(**kwargs):
        raise UsageError('api_key not configured')

    monkeypatch.setattr(sys.modules['wandb'], 'init', init)
    code, _, err = run('--epochs', 1, '--log-wandb')
    assert code == 2 and '--log-wandb: api_key not configured' in err and 'Traceback' not in err


def test_paths_of_the_machine_stay_there(run, wandb, noise):
    assert run('--epochs', 1, '--log-wandb')[0] == 0
    config = wandb.init[0]['config']
    assert config['data_dir'] == noise.name and str(noise.parent) not in str(config)


def test_the_training_outlives_its_tracker(run, wandb, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ConnectionError('the service is down')

    def init(**kwargs):
        return SimpleNamespace(id='x', log=fail, finish=fail)

    monkeypatch.setattr(sys.modules['wandb'], 'init', init)
    code, out, err = run('--epochs', 2, '--log-wandb')
    assert code == 0 and len(rows_of(tmp_path / 'x')) == 2, err
    assert 'warning: --log-wandb lacks epoch 2: the service is down' in out
    assert 'warning: --log-wandb: the service is down' in out, 'at its end'


def test_the_training_outlives_its_pictures(run, wandb, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(cli_train, 'epoch_maps', fail)
    code, out, err = run('--epochs', 1, '--log-wandb')
    assert code == 0 and 'warning: the maps of this epoch are not drawn: ' in out, err
    assert 'attention' not in wandb.log[0][1] and wandb.log[0][1]['train_loss'] > 0
