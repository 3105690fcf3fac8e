"""Each example runs without a network, and shows what it says it shows."""
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_client import clean_environment
from helpers.hub_fixtures import save_noise
from PIL import Image

from timm_icasc.data import create_dataset

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / 'examples'
PYTHON = (
    'own_loop.py', 'maps_in_a_loss.py', 'torchvision_model.py', 'multilabel.py', 'lightning_module.py',
    'write_shards.py')
SHELL = ('compare_two_runs.sh', 'publish.sh')


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """What an example prints; it runs in this process, in a folder of its own."""
    def printed(name, *options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, options)])
        runpy.run_path(str(EXAMPLES / name), run_name='__main__')
        return capsys.readouterr().out
    return printed


def run_script(name, *options, cwd, **environment):
    """What a shell example prints; `python` and `timm-icasc` are those of the tests."""
    path = f'{Path(sys.executable).parent}:{clean_environment()["PATH"]}'
    environment = clean_environment(**{'PATH': path, 'HF_HUB_OFFLINE': '1', **environment})
    result = subprocess.run(
        list(map(str, ['bash', EXAMPLES / name, *options])), cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def values(name, text):
    """The numbers after `name`, one an epoch."""
    return [float(value) for value in re.findall(rf'{name} (-?\d+\.\d+)', text)]


def test_there_is_a_test_for_each():
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()) == sorted(PYTHON + SHELL)


def test_own_loop(run):
    text = run('own_loop.py', '--epochs', 3, '--images', 500)
    loss = values('loss_cls', text)
    assert len(loss) == 3 and loss[2] < 0.5 * loss[0]
    assert values('accuracy', text)[2] > 0.5, 'chance is 0.1'
    assert all(0 < value < 1 for name in ('as_inner', 'as_last') for value in values(f'loss_{name}', text))
    assert all(-0.2 <= value <= 0.8 for value in values('loss_ac', text)), 'theta - 1 to theta'


def test_own_loop_without_icasc(run):
    text = run(
        'own_loop.py', '--epochs', 1, '--images', 100, '--baseline')
    assert values('loss_as_last', text) == [0.] and values('loss_cls', text)[0] > 1


def test_maps_in_a_loss(run):
    options = ('--epochs', 2, '--images', 300)
    guided = values('digit', run('maps_in_a_loss.py', *options, '--weight', 3))
    plain = values('digit', run(
        'maps_in_a_loss.py', *options, '--weight', 0))
    assert len(guided) == len(plain) == 2
    assert guided[1] > plain[1] + 0.05, 'the loss draws the maps to where the digits are'


def test_torchvision_model(run, tmp_path):
    text = run('torchvision_model.py', '--steps', 4)
    assert 'inner layer: layer3, 256 channels, grid (4, 4)' in text and 'last layer: layer4, 512' in text
    first, last = values('loss', text)
    assert last < first
    with Image.open(tmp_path / 'torchvision_maps.png') as picture:
        assert picture.size == (8 * 66 + 2, 2 * 66 + 2)
        maps = picture.convert('L').crop((0, 68, *picture.size))
        assert maps.getextrema() == (0, 255), 'each map reaches its maximum'


def test_torchvision_model_with_named_layers(run, capsys, tmp_path):
    text = run(
        'torchvision_model.py', '--steps', 1, '--layers', 'layer2', 'layer3', '--output', tmp_path / 'x.png',)
    assert 'inner layer: layer2, 128 channels' in text and (tmp_path / 'x.png').is_file()
    with pytest.raises(SystemExit):
        run(
            'torchvision_model.py', '--layers', 'layer2', 'layer9')
    assert "has no layer 'layer9'" in capsys.readouterr().err


def test_multilabel(run):
    text = run('multilabel.py', '--epochs', 3, '--images', 400)
    precision, loss = values('mAP', text), values('loss_cls', text)
    assert len(precision) == 3 and loss[2] < loss[0]
    assert precision[2] > 40, 'chance is the share of images that show a digit, 19 %'


def test_write_shards(run, tmp_path):
    """timm's reader finds each image once, with its class, in another order than the folder's."""
    pytest.importorskip('webdataset')
    save_noise(tmp_path / 'photos', train=5, val=2)
    assert run('write_shards.py', 'photos', 'shards', '--shards', 3) == '3 classes; images: 15 of train, 6 of val\n'
    pixels = {}
    for file in (tmp_path / 'photos').rglob('*.png'):
        with Image.open(file) as image:
            pixels[image.tobytes()] = file.relative_to(tmp_path / 'photos').parts
    for split, count in (('train', 15), ('val', 6)):
        found = [
            (pixels[image.tobytes()], target) for image, target in create_dataset('wds/x', 'shards', split)]
        assert len(found) == count and len({file for file, _ in found}) == count
        assert all(file[:2] == (split, ('ant', 'bat', 'cat')[target]) for file, target in found)
        assert found != sorted(found)


def test_lightning_module(run):
    pytest.importorskip('lightning')
    text = run('lightning_module.py', '--epochs', 3)
    assert values('accuracy', text)[0] > 0.5 and 'after 60 steps' in text, 'chance is 0.1'
    found, model = map(int, re.search(r'(\d+) tensors; (\d+) of the model', text).groups())
    assert found == model + 1, 'each weight once, and the step'


def test_lightning_module_without_lightning(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lightning', None)
    with pytest.raises(ModuleNotFoundError, match='lightning'):
        run('lightning_module.py')


@pytest.mark.slow  # four commands, each of which loads torch
def test_compare_two_runs(tmp_path):
    """One epoch a run, at a quarter of the pixels."""
    text = run_script('compare_two_runs.sh', 'out', 1, '--img-size', 16, '--icasc-eval-images', 20, cwd=tmp_path)
    assert 'icasc - baseline: 450 images' in text and 'figure: out/classes.png' in text
    comparison = json.loads((tmp_path / 'out' / 'eval' / 'comparison.json').read_text())
    methods = [
        json.loads((tmp_path / 'out' / name / 'results.json').read_text())['method']
        for name in ('baseline', 'icasc')]
    assert methods == ['cross-entropy', 'ICASC ach, order 1']
    overlap = comparison['measures']['overlap_last']
    assert overlap['low'] <= overlap['difference'] <= overlap['high']
    with Image.open(tmp_path / 'out' / 'classes.png') as picture:
        assert min(picture.size) > 200
    again = subprocess.run(
        ['bash', EXAMPLES / 'compare_two_runs.sh', 'out'], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and 'name another folder' in again.stderr


@pytest.mark.slow  # three commands
def test_publish(compared, hub, tmp_path):
    source = shutil.copytree(compared / 'icasc', tmp_path / 'run')
    text = run_script(
        'publish.sh', source, 'me/example', 'pulled', '--private', cwd=tmp_path, HF_HUB_OFFLINE='0',
        HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / 'home'), HF_TOKEN='hf_owner')
    assert 'loaded: ResNetCifar' in text and '3 classes' in text
    assert hub.repos['me/example'].private and list(hub.repos['me/example'].tags)[0].startswith('verified-')
    pulled = (tmp_path / 'pulled' / 'model.safetensors').read_bytes()
    assert pulled == hub.read('me/example', 'model.safetensors')


@pytest.mark.parametrize('name', SHELL)
def test_shell_examples_explain_themselves(name):
    result = subprocess.run(['bash', EXAMPLES / name, '--help'], capture_output=True, text=True)
    assert 'You learn' in result.stdout and f'bash examples/{name}' in result.stdout and 'set -' not in result.stdout


@pytest.mark.parametrize('name', PYTHON + SHELL)
def test_examples_are_short_and_use_the_public_names(name):
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 100 and max(map(len, text.splitlines())) <= 100
    assert 'You learn' in text and f'examples/{name}' in text
    allowed = {'timm_icasc', 'timm_icasc.attention', 'timm_icasc.losses', 'timm_icasc.models'}
    assert set(re.findall(r'^(?:from|import) (timm_icasc[\w.]*)', text, re.M)) <= allowed
