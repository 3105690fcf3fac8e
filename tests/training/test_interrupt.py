"""Signals, and data loading processes that hang or end: what the training loop makes of them."""
import errno
import multiprocessing
import os
import signal
import sys
import threading
from importlib.machinery import ModuleSpec

import pytest
from helpers.runs import make_run, train_in_process
from torch.utils.data import DataLoader

from timm_icasc.cli import main
from timm_icasc.cli import train as training
from timm_icasc.cli.train import report_interrupt
from timm_icasc.errors import ICASCError
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.interrupt import (
    Interrupted,
    begin_loading,
    interruptible,
    stopping_loaders,
)

pytestmark = pytest.mark.filterwarnings('ignore:.*fork')


def hang():
    """Wait as long as the test may last."""
    threading.Event().wait(60)
    raise AssertionError('nobody has ended this')


class Hanging:
    """Images that never come; the process that asks for one has told its parent to stop."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getppid(), signal.SIGTERM)
        hang()


def loader(dataset, **options):
    return DataLoader(dataset, num_workers=1, worker_init_fn=begin_loading, **options)


def test_a_signal_acts_at_once_where_no_batch_comes():
    def batches():
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        hang()

    seen = []
    with pytest.raises(Interrupted) as e, interruptible() as flag:
        for batch in flag.batches(batches()):
            seen.append(batch)
    assert e.value.exit_code == 128 + signal.SIGTERM and seen == [1]


def test_a_step_comes_to_its_end():
    seen = []
    with pytest.raises(Interrupted), interruptible() as flag:
        for batch in flag.batches(range(5)):
            if batch == 2:
                os.kill(os.getpid(), signal.SIGINT)
            seen.append(batch)
    assert seen == [0, 1, 2]


def test_all_batches_are_seen():
    with interruptible() as flag:
        assert list(flag.batches(range(3))) == [0, 1, 2] and not flag.waiting


def test_a_process_that_hangs_in_its_data_is_ended():
    with pytest.raises(Interrupted), stopping_loaders(), interruptible() as flag:
        list(flag.batches(loader(Hanging())))
    assert not multiprocessing.active_children()


def test_a_batch_that_cannot_be_handed_on_is_not_waited_for(capfd):
    """As with a full /dev/shm: the thread that hands on the batches fails, and says it to nobody."""
    with pytest.raises(ICASCError, match='has ended before its batch was there: .*-j 0 loads the images in the main'), \
            stopping_loaders():
        list(loader(range(4), collate_fn=lambda rows: threading.Lock()))
    assert 'a data loading process cannot hand on its batch: cannot pickle' in capfd.readouterr().err
    assert not multiprocessing.active_children()


class Killed(Hanging):
    """The process that asks for an image is killed, for lack of memory say."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_not_waited_for():
    with pytest.raises(ICASCError, match='has ended before its batch was there: killed, out of memory, or'), \
            stopping_loaders(), interruptible() as flag:
        list(flag.batches(loader(Killed())))
    assert not multiprocessing.active_children()


@pytest.fixture
def full_shared_memory(monkeypatch):
    """From now on no data loading process can hand on a batch."""
    original, main = multiprocessing.queues._ForkingPickler.dumps, os.getpid()

    def dumps(batch, *args):
        if os.getpid() != main:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/torch_1')
        return original(batch, *args)

    monkeypatch.setattr(multiprocessing.queues._ForkingPickler, 'dumps', staticmethod(dumps))


@pytest.mark.parametrize('options', [[], ['--resident-data', '--no-aug']], ids=['loaders', 'resident data'])
def test_training_with_a_full_shared_memory(options, full_shared_memory, noise_options, monkeypatch, capfd, tmp_path):
    code, _, err = train_in_process(
        monkeypatch, capfd, *noise_options[1:], '--output', tmp_path, '-j', 1, '--model', 'resnet8_cifar', *options)
    said = [line for line in err.splitlines() if not line.startswith('warning: ')]
    assert code == 2 and len(said) == 2 and said[0].startswith('a data loading process cannot hand on its batch: ')
    assert 'is full. -j 0 loads the images in the main process.' in said[1] and not multiprocessing.active_children()


def test_evaluation_with_a_full_shared_memory(full_shared_memory, noise, capfd, tmp_path):
    run = make_run(tmp_path / 'run', num_classes=3, data_dir=str(noise), dataset='')
    assert main(['eval', str(run), '-j', '1']) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and 'is full. -j 0 loads the images in the main process.' in said[1], said


def test_a_signal_acts_at_once_while_a_run_is_set_up(noise_options, monkeypatch, capsys, tmp_path):
    """Where --resident-data reads images that do not come, say."""
    def set_up(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        hang()

    monkeypatch.setattr(training, 'set_up', set_up)
    code, _, err = train_in_process(monkeypatch, capsys, *noise_options[1:], '--output', tmp_path)
    assert code == 128 + signal.SIGTERM and err.strip() == 'interrupted (SIGTERM) before the first step'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('environment, launcher', [
    ({}, ''),
    ({'WORLD_SIZE': '1', 'LOCAL_WORLD_SIZE': '1'}, ''),
    ({'WORLD_SIZE': '8', 'LOCAL_WORLD_SIZE': '4'}, 'torchrun --nnodes=2 --nproc_per_node=4 ')])
@pytest.mark.parametrize('argv, alone, of_several', [
    (['/x/train_timm.py', '--lr', '1'], 'train_timm.py', 'train_timm.py'),
    (['/x/bin/timm-icasc', 'train', '--lr', '1'], 'timm-icasc train', '--no-python timm-icasc train'),
    (['/x/timm_icasc/cli/__main__.py', 'train'], 'python -m timm_icasc.cli train', '-m timm_icasc.cli train')])
def test_what_is_printed_goes_on_as_it_was_called_with_as_many_processes(
        argv, alone, of_several, environment, launcher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys.modules['__main__'], '__spec__', ModuleSpec(
        'timm_icasc.cli.__main__', None, origin='/x/timm_icasc/cli/__main__.py'))
    for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = parse_args(['--dataset', 'digits'])
    args.run_dir, args.rank = str(tmp_path / 'two words'), 0
    report_interrupt(args, 'SIGTERM')
    assert capsys.readouterr().err.strip().endswith(
        f'Go on with: {launcher}{of_several if launcher else alone} '
        f"--resume auto --output {tmp_path} --experiment 'two words'")
    args.rank = 1
    report_interrupt(args, 'SIGTERM')
    assert not capsys.readouterr().err, 'one of the processes says it'


def start_a_process(ended):
    code = compile('os.kill(os.getpid(), signal.SIGTERM)\nended.append(True)', '/x/popen_fork.py', 'exec')
    exec(code, {'os': os, 'signal': signal, 'ended': ended})


def let_go_of_a_loader(ended):
    class Loader:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    Loader()


@pytest.mark.parametrize('moment', [start_a_process, let_go_of_a_loader])
def test_a_signal_that_python_would_swallow_comes_again(moment):
    """In the hooks of a fork and in destructors, an exception ends in a traceback and nothing else."""
    ended = []

    def batches():
        moment(ended)
        hang()
        yield

    with pytest.raises(Interrupted), interruptible() as flag:
        next(flag.batches(batches()))
    assert ended == [True]


class Broken:
    """As a loader whose processes the signal has ended, while they began."""

    def __del__(self):
        raise RuntimeError('DataLoader worker is killed by signal: Terminated.')


@pytest.mark.parametrize('stopped', [False, True])
def test_what_a_signal_breaks_in_a_destructor_is_not_told(stopped, monkeypatch):
    told = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda error: told.append(str(error.exc_value)))
    with interruptible():
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        Broken()
    assert len(told) == (not stopped)
    Broken()
    assert len(told) == 1 + (not stopped), 'as before'


def test_nor_what_stopping_the_loaders_breaks(monkeypatch):
    told = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda error: told.append(error))

    def fail():
        broken = Broken()  # in a frame of the traceback, as a loader
        raise ICASCError(f'of {type(broken).__name__}')

    with pytest.raises(ICASCError), stopping_loaders():
        fail()
    assert not told
