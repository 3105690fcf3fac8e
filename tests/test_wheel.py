"""Slow: the wheel in an environment of its own, in a folder without a checkout: every journey of the README.

The packages that it depends on come from the environment of the tests, so that nothing is downloaded.
"""
import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from helpers.distributions import build_distributions
from helpers.hub_client import clean_environment
from helpers.hub_fixtures import save_noise

from timm_icasc.cli import COMMANDS
from timm_icasc.training.argument_files import list_recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder of the programs of an environment with the wheel."""
    folder = tmp_path_factory.mktemp('wheel')
    _, wheel = build_distributions(folder)
    venv.create(folder / 'venv', with_pip=False)
    programs = folder / 'venv' / ('Scripts' if sys.platform == 'win32' else 'bin')
    packages = Path(subprocess.run(
        [programs / 'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
        capture_output=True, text=True, check=True).stdout.strip())
    # Paths in a .pth file bring packages, and no .pth files of theirs: an editable install of the checkout stays out.
    others = [path for path in sys.path if Path(path).name in ('site-packages', 'dist-packages')]
    (packages / 'others.pth').write_text('\n'.join(others))
    subprocess.run(
        [sys.executable, '-m', 'pip', '-q', '--python', programs / 'python', 'install', '--no-index', '--no-deps',
         '--ignore-installed', wheel], check=True)
    return programs


@pytest.fixture(scope='module')
def call(installed, hub_of_the_session, tmp_path_factory):
    """Run a program of that environment in a folder of its own; returns its output."""
    folder = tmp_path_factory.mktemp('elsewhere')
    environment = clean_environment(
        HF_ENDPOINT=hub_of_the_session.endpoint, HF_HOME=str(folder / 'home'), HF_TOKEN='hf_owner')
    environment.pop('PYTHONPATH')

    def run(*words, code=0):
        done = subprocess.run(
            [installed / words[0], *map(str, words[1:])], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout
    run.folder = folder
    return run


@pytest.fixture(scope='module')
def run(call):
    """The folder of a run of one epoch on the digits, by a recipe's name."""
    out = call('timm-icasc', 'train', '-c', 'digits_resnet20', '--epochs', 1, '--warmup-epochs', 0, '-j', 0)
    folder = call.folder / 'output' / 'resnet20_cifar-digits'
    assert 'Results after the last epoch' in out and (folder / 'attention.png').is_file()
    assert json.loads((folder / 'results.json').read_text())['command'].startswith('timm-icasc train -c digits_')
    return folder


def test_it_is_the_wheel_that_is_tested(call, installed):
    place = call('python', '-c', 'import timm_icasc; print(timm_icasc.__file__)').strip()
    assert Path(place).is_relative_to(installed.parent)


def test_every_command_explains_itself(call):
    said = call('python', '-c', f'''
import sys
from timm_icasc import cli
for command in {list(COMMANDS)!r}:
    try:
        cli.main([command, '--help'])
    except SystemExit as e:
        assert e.code == 0, command
''')
    assert said.count('usage: timm-icasc ') == len(COMMANDS)
    assert all(f'\n  {name} ' in said for name in list_recipes())
    assert 'train' in call('timm-icasc', '--help')


def test_eval_and_figure(call, run):
    call('timm-icasc', 'eval', run, '--images', 20)
    assert json.loads((run / 'eval' / 'eval.json').read_text())['images'] == 20
    call('timm-icasc', 'figure', 'classes', run, '--output', 'classes.png')
    assert (call.folder / 'classes.png').stat().st_size > 1000


def test_a_finished_run_is_left_as_it_is(call, run):
    assert 'is complete: it stays as it is' in call('timm-icasc', 'train', '--resume', 'auto')


def test_push_and_pull(call, run, hub_of_the_session):
    call('timm-icasc', 'push', run, 'me/from-the-wheel')
    assert 'model.safetensors' in hub_of_the_session.repos['me/from-the-wheel'].head['files']
    assert 'me/from-the-wheel' in call('timm-icasc', 'pull', 'me/from-the-wheel')


def test_a_study(call):
    save_noise(call.folder / 'noise', train=4, val=2)
    options = {
        'data_dir': 'noise', 'model': 'resnet20_cifar', 'epochs': 1, 'warmup_epochs': 0, 'batch_size': 4, 'workers': 0,
        'icasc_eval_images': 0}
    (call.folder / 'tiny.yaml').write_text(yaml.safe_dump({
        'baseline': 'plain', 'seeds': [0], 'common': options,
        'variants': {'plain': {'icasc': False}, 'icasc': {'icasc': True}}}))
    assert 'icasc-seed0 done' in call('timm-icasc', 'sweep', 'tiny.yaml')
    record = json.loads((call.folder / 'records' / 'tiny' / 'icasc-seed0.json').read_text())
    assert record['command'].startswith('python -m timm_icasc.cli train ')


@pytest.mark.parametrize('command', ['layers', 'bench', 'doctor', 'paper'])
def test_the_others(command, call):
    words = {'layers': ['resnet18'], 'bench': ['resnet20_cifar', '--batch-size', 2, '--repeats', 1]}
    assert call('timm-icasc', command, *words.get(command, []))


def test_weights_that_ship(call):
    call('python', '-c', 'import timm, timm_icasc; timm.create_model("resnet20_cifar.icasc_digits", pretrained=True)')
