"""Each example runs without a network, and shows what it says it shows."""
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.hub_client import clean_environment
from helpers.hub_fixtures import save_noise
from helpers.processes import in_two_processes
from PIL import Image
from safetensors.torch import load_file

from timm_icasc import ICASCConfig, ICASCError
from timm_icasc.data import create_dataset

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / 'examples'
PYTHON = (
    'own_loop.py', 'maps_in_a_loss.py', 'torchvision_model.py', 'multilabel.py', 'lightning_module.py',
    'write_shards.py', 'accelerate_loop.py', 'transformers_trainer.py')
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
    text = run('multilabel.py', '--epochs', 3, '--images', 200)
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


def test_lightning_module(run, tmp_path):
    """Stopped within the warm-up of the terms, a run ends with the weights of one that was not."""
    pytest.importorskip('lightning')
    text = run('lightning_module.py', '--epochs', 2, '--output', 'one.ckpt')
    assert values('accuracy', text)[0] > 0.3 and 'after 40 steps' in text, 'chance is 0.1'
    found, model = map(int, re.search(r'(\d+) tensors; (\d+) of the model', text).groups())
    assert found == model + 1, 'each weight once, and the step'
    run('lightning_module.py', '--epochs', 2, '--output', 'two.ckpt', '--until', 1)
    assert run('lightning_module.py', '--epochs', 2, '--output', 'two.ckpt', '--resume').startswith(
        text.splitlines()[0])
    one, two = (
        torch.load(tmp_path / f'{name}.ckpt', weights_only=True)['state_dict'] for name in ('one', 'two'))
    assert_equal(one, two)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert torch.equal(x, two[name]), name


@pytest.fixture
def accelerate():
    """Its states outlive an `Accelerator`; each example begins with none."""
    pytest.importorskip('accelerate')
    from accelerate.state import AcceleratorState, GradientState

    def begin():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    begin()
    yield begin
    begin()


def test_accelerate_loop(run, accelerate, tmp_path):
    """As above; and its weights are for timm."""
    options = ('--epochs', 3, '--images', 200)
    whole = run('accelerate_loop.py', *options, '--output', 'one').splitlines()
    assert ['terms x 0.12', 'terms x 0.62', 'terms x 1.00'] == [
        re.search(r'terms x [\d.]+', line).group() for line in whole]
    parts = []
    for more in (('--until', 2), ('--resume',)):
        accelerate()
        parts += run('accelerate_loop.py', *options, '--output', 'two', *more).splitlines()
    assert parts == whole and 'loss_ac' in whole[2] and 'loss_ac' not in whole[0]
    one, two = (torch.load(tmp_path / name / 'model.pth', weights_only=True) for name in ('one', 'two'))
    assert_equal(one, two)
    assert 'layer3.0.conv1.weight' in one


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_accelerate_loop_in_half_precision(precision, run, accelerate):
    text = run(
        'accelerate_loop.py', '--epochs', 2, '--images', 100, '--mixed-precision', precision)
    assert len(values('loss_ac', text)) == 1


def accelerate_in_a_group(rank, folder, begin):
    """One of two processes, as `accelerate launch` sets them up: the weights after each of three runs."""
    os.environ.update({
        'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
        'ACCELERATE_USE_CPU': 'true', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'})
    os.chdir(folder)
    for name, more in (('one', ()), ('two', ('--until', '1')), ('two', ('--resume',))):
        begin()
        sys.argv = ['accelerate_loop.py', '--epochs', '2', '--images', '200', '--output', name, *more]
        shown = runpy.run_path(str(EXAMPLES / 'accelerate_loop.py'), run_name='example')
        shown['Accelerator'].end_training = lambda self: None  # the group is that of all three
        models, create = [], shown['timm'].create_model
        shown['timm'].create_model = lambda *args, make=create, made=models, **kwargs: made.append(
            make(*args, **kwargs)) or made[-1]
        shown['main']()
        shown['timm'].create_model = create
        torch.save(models[0].state_dict(), f'{name}{len(more)}-{rank}.pth')


def test_accelerate_loop_in_two_processes(accelerate, tmp_path):
    in_two_processes(partial(accelerate_in_a_group, begin=accelerate), tmp_path)
    weights = {
        name: [torch.load(tmp_path / f'{name}-{rank}.pth', weights_only=True) for rank in range(2)]
        for name in ('one0', 'two1')}
    for ours, theirs in ((weights['one0'][0], weights['one0'][1]), (weights['two1'][0], weights['two1'][1])):
        for name, x in ours.items():  # statistics of BatchNorm are a process's own until the next step
            assert 'running' in name or torch.equal(x, theirs[name]), name
    assert_equal(weights['one0'][0], weights['two1'][0])
    assert torch.load(tmp_path / 'two' / 'custom_checkpoint_0.pkl', weights_only=True)['last_epoch'] == 2


@pytest.fixture
def trainer_of(accelerate):
    """A namespace of the example, and what makes a Trainer of it."""
    transformers = pytest.importorskip('transformers')
    example = runpy.run_path(str(EXAMPLES / 'transformers_trainer.py'), run_name='example')

    def make(model, folder, batch_size=4, **options):
        torch.manual_seed(0)
        rows = [{'pixel_values': torch.randn(3, 16, 16), 'labels': i % 3} for i in range(8)]
        own = {name: options.pop(name) for name in ('start_steps', 'config') if name in options}
        arguments = transformers.TrainingArguments(
            str(folder), per_device_train_batch_size=batch_size, report_to=[], use_cpu=True, disable_tqdm=True,
            label_names=['labels'], remove_unused_columns=False, save_strategy='no', max_grad_norm=0., optim='sgd',
            learning_rate=0.1, **{'num_train_epochs': 1, **options})
        return example['ICASCTrainer'](
            example['create_model'](model), arguments, train_dataset=rows, eval_dataset=rows,
            **{'config': ICASCConfig(), **own})

    return make


@pytest.mark.parametrize('model', ['transformers', 'wrapped', 'timm'])
def test_transformers_trainer(model, run, accelerate, tmp_path):
    """Stopped within an epoch and the warm-up of the terms, a run ends with the weights of one that was not."""
    pytest.importorskip('transformers')
    options = ('--epochs', 2, '--model', model)
    found = values("'eval_accuracy':", run('transformers_trainer.py', *options, '--output', 'one').replace(": '", ': '))
    assert len(found) == 2 and found[1] > 0.3, 'chance is 0.1'
    for more in (('--until', 26), ('--resume',)):
        accelerate()
        run('transformers_trainer.py', *options, '--output', 'two', *more)
    assert (tmp_path / 'two' / 'checkpoint-26').is_dir()
    assert_equal(*(load_file(tmp_path / name / 'model.safetensors') for name in ('one', 'two')))


def test_the_trainers_accumulated_batches_are_one(trainer_of, accelerate, tmp_path):
    """A mean of each; the Trainer would add them up where the model's forward() takes any keyword."""
    weights = []
    for options in ({'batch_size': 8}, {'batch_size': 4, 'gradient_accumulation_steps': 2}):
        accelerate()
        trainer = trainer_of('transformers', tmp_path, **options)
        before = {name: x.detach().clone() for name, x in trainer.model.named_parameters()}
        trainer.train()
        assert trainer.state.global_step == 1
        weights.append({name: x - before[name] for name, x in trainer.model.named_parameters()})
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize('options', [
    {'bf16': True}, {'activation_checkpointing': True}, {'config': ICASCConfig(order=2)}], ids=str)
def test_the_trainers_options(options, trainer_of, tmp_path):
    known = inspect.signature(sys.modules['transformers'].TrainingArguments).parameters
    if 'activation_checkpointing' in options and 'activation_checkpointing' not in known:
        options = {'gradient_checkpointing': True}  # of older versions
    trainer = trainer_of('wrapped', tmp_path, **options)
    trainer.train()
    assert trainer.evaluate()['eval_loss'] > 0


def test_the_trainers_compiled_model_is_refused(trainer_of, tmp_path):
    trainer = trainer_of('transformers', tmp_path, torch_compile=True, torch_compile_backend='eager')
    with pytest.raises(ICASCError, match='leave `torch_compile` out'):
        trainer.train()


@pytest.mark.parametrize('name, package', [
    ('lightning_module.py', 'lightning'), ('accelerate_loop.py', 'accelerate'),
    ('transformers_trainer.py', 'transformers')])
def test_without_the_package(name, package, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=package):
        run(name)


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
