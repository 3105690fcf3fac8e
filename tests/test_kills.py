"""Runs that are killed (-9) between two file operations, and resumed: every file is as of a run that nobody killed."""
import shutil
import sys

import pytest
from helpers.hub_fixtures import save_noise
from helpers.kills import contents, kill_before, operations_of

import train_timm

# A small network on noise: two checkpoints are kept, so that the third epoch has one to remove.
OPTIONS = ['--data-dir', '../images', '--model', 'resnet20_cifar', '--batch-size', '12', '--epochs', '3',
           '--warmup-epochs', '0', '--lr', '0.05', '-j', '0', '--icasc-eval-images', '3', '--experiment', 'x']

# Before which operation, on which file, for the how-manieth time.
POINTS = {
    'first checkpoint': ('replace', 'last.pth.tar', 1),
    'args.yaml of the beginning': ('replace', 'args.yaml', 1),
    'table of epochs': ('replace', 'summary.csv', 2),
    'checkpoint, behind its row of the table': ('replace', 'last.pth.tar', 3),
    'name of the checkpoint of the first epoch': ('replace', 'checkpoint-0.pth.tar', 1),
    'best model of the first epoch': ('replace', 'model_best.pth.tar', 1),
    'last table of epochs': ('replace', 'summary.csv', 3),
    'last checkpoint': ('replace', 'last.pth.tar', 4),
    'results': ('replace', 'results.json', 1),
    'table of results': ('replace', 'results.csv', 1),
    'figure': ('replace', 'attention.png', 1),
}


def train(*options):
    sys.argv = ['train_timm.py', *OPTIONS, *options]
    code = train_timm.main()
    if code:
        raise SystemExit(code)


def resume():
    """With no word of what to train; without a checkpoint, the whole command begins a run of another name."""
    sys.argv = ['train_timm.py', '--resume', 'auto', '--experiment', 'x']
    return train_timm.main()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(folder of the images and of runs, what an undisturbed run leaves, its file operations)."""
    folder = tmp_path_factory.mktemp('kills')
    save_noise(folder / 'images', train=8, val=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', sys.argv)
        (folder / 'whole').mkdir()
        patch.chdir(folder / 'whole')
        operations = operations_of(train, folder / 'log')
    return folder, contents(folder / 'whole' / 'output' / 'x'), operations


@pytest.fixture
def here(whole, monkeypatch):
    folder, *_ = whole
    monkeypatch.setattr(sys, 'argv', sys.argv)
    (folder / 'cut').mkdir()
    monkeypatch.chdir(folder / 'cut')
    yield folder / 'cut' / 'output' / 'x'
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / 'cut')


def assert_ends_as(expected, folder):
    found = contents(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize('point', POINTS.values(), ids=list(POINTS))
def test_a_killed_run_ends_as_an_undisturbed_one(point, whole, here):
    operation, name, occurrence = point
    kill_before(train, operation=operation, name=name, occurrence=occurrence)
    if (here / 'last.pth.tar').is_file() and (here / 'args.yaml').is_file():
        assert resume() == 0
    else:  # nothing was trained yet: the command is given again
        shutil.rmtree(here)
        train()
    assert_ends_as(whole[1], here)


def test_a_resume_that_is_killed_can_be_resumed(whole, here):
    """args.yaml was emptied by a kill at this point: options gone, a study stuck."""
    kill_before(train, operation='replace', name='last.pth.tar', occurrence=3)
    kill_before(resume, operation='replace', name='args.yaml')
    assert resume() == 0
    assert_ends_as(whole[1], here)


@pytest.mark.slow
def test_every_operation_of_a_run(whole, here):
    """From the first checkpoint on; before it there is nothing to go on with."""
    _, expected, operations = whole
    begun = operations.index(('replace', 'args.yaml')) + 2
    for number in range(begun, len(operations) + 1):
        kill_before(train, number)
        assert resume() == 0, operations[number - 1]
        assert_ends_as(expected, here)
        shutil.rmtree(here)


def test_a_finished_run_is_left_alone(whole, here, capsys):
    train()
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert resume() == 0
    assert 'all 3 epochs are done, and output/x/results.json is complete: it stays as it is' in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before
