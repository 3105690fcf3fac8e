"""Commands on a disk without room: one line that says so and names the folder, no exit code 0, old files intact.

A small file system in memory stands for the disk, which root alone can make; where it cannot be made, `os.fsync` says
that the disk is full (the tests below), and tests/runs/test_files.py has what the others rest on.
"""
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.forked import Forked, fork_in
from helpers.hub_fixtures import save_noise
from helpers.kills import contents
from helpers.runs import blank_figures, make_run

import train_timm
from timm_icasc.cli import main
from timm_icasc.sweep import runner

OPTIONS = ['--model', 'resnet20_cifar', '--batch-size', '12', '--epochs', '2', '--warmup-epochs', '0', '--lr', '0.05',
           '-j', '0', '--icasc-eval-images', '3', '--experiment', 'x']
HUB = Path(__file__).parent.parent / 'hub_cards'
ROOM = 100_000  # bytes: for text, and for no checkpoint


@pytest.fixture
def disk(tmp_path):
    """A folder that holds 8 MiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    if not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('no file system can be mounted here')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp('images'), train=8, val=3)


def fill(disk, room=0):
    """Leave so many bytes; returns the file that takes up the rest."""
    with open(disk / 'rest', 'wb') as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - room)))
    return disk / 'rest'


@pytest.fixture
def train(images, monkeypatch, capsys):
    def call(output, *options):
        monkeypatch.setattr(sys, 'argv', [
            'train_timm.py', '--data-dir', str(images), *OPTIONS, '--output', str(output), *options])
        with blank_figures():
            code = train_timm.main()
        return code, capsys.readouterr().err
    return call


def assert_one_line(err, folder):
    assert len(err.strip().splitlines()) == 1 and 'the disk is full' in err and f"make room in '{folder}'" in err, err


@pytest.mark.parametrize('command', [
    ['layers', 'resnet20_cifar'],
    ['train', '--dataset', 'digits', '--epochs', '1', '-j', '0'],
])
def test_output_that_goes_to_a_full_disk(command, tmp_path):
    """Not the memory that data loading processes share, which ends in the same error."""
    with open('/dev/full', 'w') as full, open(tmp_path / 'err', 'w+') as err:
        process = Forked(
            [sys.executable, '-m', 'timm_icasc.cli', *command, *['--output', tmp_path] * (command[0] == 'train')],
            stdout=full, stderr=err)
        assert process.wait(60) == 2
        err.seek(0)
        said = err.read().strip()
    assert said.splitlines()[-1].endswith(
        f'timm-icasc {command[0]}: error: what is printed cannot be written: [Errno 28] No space left on device. Make '
        f'room where the output goes to, or send it elsewhere.'), said


def test_training(train, disk, tmp_path):
    """The second epoch finds no room; made room for, the run ends as one that had it all the time."""
    assert train(tmp_path / 'whole')[0] == 0
    fill(disk, 4 << 20)
    code, err = train(disk)
    assert code == 2 and f"cannot write '{disk / 'x' / 'last.pth.tar'}'" in err
    assert_one_line(err, disk / 'x')
    before = contents(disk / 'x')
    assert before['last.pth.tar']['epoch'] == 0 and not [name for name in before if 'part' in name]
    subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
    assert train(disk, '--resume', 'auto') == (0, '')
    found, whole = contents(disk / 'x'), contents(tmp_path / 'whole' / 'x')
    assert sorted(found) == sorted(whole)
    different = {name for name in found if found[name] != whole[name]}
    assert different <= {'args.yaml', 'results.json', 'last.pth.tar', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar',
                         'model_best.pth.tar'}, 'which name the folder'
    assert found['last.pth.tar']['state_dict'] == whole['last.pth.tar']['state_dict']


def test_an_evaluation(disk, capsys):
    run = make_run(disk / 'run')
    assert main(['eval', str(run), '--images', '4']) == 0
    before = contents(run / 'eval')
    fill(disk, 4096)
    capsys.readouterr()
    assert main(['eval', str(run), '--images', '8']) == 2
    assert_one_line(capsys.readouterr().err, run / 'eval')
    assert contents(run / 'eval') == before


def test_a_sweep(disk, images, tmp_path, monkeypatch, capsys):
    fork_in(runner, monkeypatch, 'a-seed0')
    (tmp_path / 's.yaml').write_text(yaml.safe_dump({
        'baseline': 'a', 'seeds': [0], 'variants': {'a': {'icasc': False}},
        'common': {'data_dir': str(images), 'epochs': 1, 'workers': 0}}))
    fill(disk, ROOM)
    assert main(['sweep', str(tmp_path / 's.yaml'), '--output', str(disk)]) == 1
    err = capsys.readouterr().err
    assert 'a-seed0 FAILED' in err and f"the disk is full: make room in '{disk}'" in err and 'Traceback' not in err
    assert not (tmp_path / 'records').exists()


def test_publishing(disk, client, train_on_noise):
    run = train_on_noise()
    fill(disk, ROOM)
    result = client('push', run, 'me/full', token='hf_owner', TMPDIR=str(disk))
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1, result.err
    assert 'make room' in result.err and str(disk) in result.err
    assert [path.name for path in disk.iterdir()] == ['rest']


@pytest.fixture
def writers(disk, images, train, train_on_noise, capsys):
    """The folder `disk` with what commands go on with, and each command that writes there: words."""
    make_run(disk / 'run')
    assert train(disk, '--epochs', '1')[0] == 0
    shutil.copytree(HUB / 'resnet20_cifar.icasc_digits', disk / 'resnet20_cifar.icasc_digits')
    for kind in ('yaml', 'json'):
        shutil.copy(HUB / f'resnet20_cifar.icasc_digits.{kind}', disk)
    (disk / 'resnet20_cifar.icasc_digits' / 'README.md').write_text('old')
    (disk / 's.yaml').write_text('baseline: a\nseeds: [0]\ncommon: {dataset: digits}\nvariants: {a: {icasc: false}}\n')
    finished = train_on_noise()
    capsys.readouterr()
    return (
        ['train', '--data-dir', images, *OPTIONS, '--output', disk, '--experiment', 'new'],
        ['train', '--resume', 'auto', '--output', disk, '--experiment', 'x', '--epochs', 2],
        ['eval', disk / 'run', '--images', 4], ['eval', finished, '--output', disk / 'o', '--images', 4],
        ['figure', 'classes', finished, '--output', disk / 'f.png'],
        ['figure', 'html', finished, '--output', disk / 'f.html'],
        ['explain', next(images.rglob('*.png')), '--model', finished, '--output', disk / 'explained'],
        ['export', finished, disk / 'exported'],
        ['pull', f"local-dir:{HUB / 'resnet20_cifar.icasc_digits'}", '--to', disk / 'to'],
        ['paper', finished, '--output', disk / 'p.md'], ['card', disk / 'resnet20_cifar.icasc_digits.yaml'],
        ['layers', 'resnet20_cifar', '--json', disk / 'l.json'], ['doctor', '--json', disk / 'd.json'])


def refusals(writers, monkeypatch, capsys):
    """What each of these commands says: one line, and the exit code 2."""
    for name, *words in writers:
        words = list(map(str, words))
        monkeypatch.setattr(sys, 'argv', ['train_timm.py', *words])
        code = train_timm.main() if name == 'train' else main([name, *words])
        said = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith('warning: ')]
        assert code == 2 and len(said) == 1 and ': error: ' in said[0], (name, said)
        yield said[0]


def test_every_command_that_writes(writers, disk, monkeypatch, capsys):
    fill(disk)
    for said in refusals(writers, monkeypatch, capsys):
        assert 'the disk is full' in said and f"make room in '{disk}" in said
    assert (disk / 'resnet20_cifar.icasc_digits' / 'README.md').read_text() == 'old'
    assert not [path for path in disk.rglob('*') if '.part' in path.name]


def test_every_command_that_writes_where_nothing_may_be_written(writers, disk, monkeypatch, capsys):
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    sweep = ['sweep', disk / 's.yaml', '--output', disk / 'runs']
    for said in refusals((*writers, sweep), monkeypatch, capsys):
        assert f"'{disk}" in said and ('Read-only file system' in said or 'Permission denied' in said)


@pytest.fixture
def full(monkeypatch):
    """From now on the disk takes nothing more, as far as `os.fsync` tells."""
    def begin(at='.part'):
        original = os.fsync

        def fsync(descriptor):
            if at in os.readlink(f'/proc/self/fd/{descriptor}'):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        monkeypatch.setattr(os, 'fsync', fsync)
    return begin


@pytest.mark.parametrize('file', ['last.pth.tar', 'args.yaml', 'summary.csv', 'results.json', 'attention.png'])
def test_training_as_fsync_tells(file, full, train, tmp_path):
    full(f'.{file}.')
    code, err = train(tmp_path / 'output', '--epochs', '1')
    assert code == 2 and f"/x/{file}'" in err
    assert_one_line(err, tmp_path / 'output' / 'x')


def test_an_evaluation_as_fsync_tells(full, tmp_path, capsys):
    run = make_run(tmp_path / 'run')
    assert main(['eval', str(run), '--images', '4']) == 0
    before = contents(run / 'eval')
    full('.images.csv.')
    capsys.readouterr()
    assert main(['eval', str(run), '--images', '8']) == 2
    assert_one_line(capsys.readouterr().err, run / 'eval')
    assert contents(run / 'eval') == before
