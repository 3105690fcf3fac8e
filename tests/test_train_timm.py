"""train_timm.py as its users run it: what it leaves behind, resuming, and one clear line for every bad input."""
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers.fake_cuda_graph import OpRecorder
from helpers.forked import Forked
from helpers.gpu import on_a_gpu
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY as SMALL
from helpers.runs import blank_figures, train_in_process
from PIL import Image

import train_timm
from timm_icasc.labels import SINGLE
from timm_icasc.runs import provenance
from timm_icasc.runs.lock import alone_in
from timm_icasc.training import epoch as training_epoch
from timm_icasc.training import job as setup
from timm_icasc.training import run as training_run

ROOT = Path(__file__).parent.parent

TINY = [*SMALL, '--batch-size', '8', '--epochs', '2', '--smoothing', '0']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Three classes of 32-pixel noise, 24 training and 9 validation images; for shapes and flow, not for learning."""
    return save_noise(tmp_path_factory.mktemp('images'), train=8, val=3)


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Call main() with options; returns (exit code, stdout, stderr)."""
    return lambda *options, data=('--data-dir', images), **kwargs: train_in_process(
        monkeypatch, capsys, *data, '--output', tmp_path, *TINY, *options, **kwargs)


@pytest.fixture(scope='module')
def finished(images, tmp_path_factory):
    """A run of one epoch, for `begun` alone."""
    folder = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch, blank_figures():
        patch.setattr(sys, 'argv', [
            'train_timm.py', '--data-dir', str(images), '--output', str(folder), *TINY, '--epochs', '1',
            '--experiment', 'x'])
        assert train_timm.main() == 0
    return folder / 'x'


@pytest.fixture
def begun(finished, tmp_path):
    """The folder `x` of a run of one epoch, a copy of its own."""
    return shutil.copytree(finished, tmp_path / 'x')


def weights(path, key='state_dict'):
    return torch.load(path, weights_only=False)[key]


def assert_equal_checkpoints(one, other):
    for key in ('state_dict', 'state_dict_ema'):
        a, b = weights(one, key), weights(other, key)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestWhatARunLeavesBehind:

    def test_comparison(self, run, tmp_path):
        code, out, _ = run('--icasc-compare', '--experiment', 'both', drawn=True)
        assert code == 0
        for column in ('loss', 'loss_cls', 'L_AS inner', 'L_AS last', 'L_AC', 'top-1', 'overlap inner', 'overlap last'):
            assert column in out
        assert (tmp_path / 'both' / 'attention.png').stat().st_size > 10_000
        table = list(csv.DictReader(open(tmp_path / 'both' / 'results.csv')))
        assert [row['method'] for row in table] == ['cross-entropy', 'ICASC ach, order 1']
        for name in ('baseline', 'icasc'):
            folder = tmp_path / 'both' / name
            rows = list(csv.DictReader(open(folder / 'summary.csv')))
            assert [row['epoch'] for row in rows] == ['0', '1']
            assert (rows[0]['train_loss_as_last'] != '') == (name == 'icasc')
            assert float(rows[0]['eval_overlap_last']) <= 1
            result = json.loads((folder / 'results.json').read_text())
            assert result['last']['eval_top1'] == pytest.approx(float(rows[1]['eval_top1']))
            assert result['seed'] == 42 and result['versions']['timm'] == timm.__version__
            assert {'last.pth.tar', 'model_best.pth.tar'} <= {p.name for p in folder.iterdir()}
        plain, icasc = (json.loads((tmp_path / 'both' / n / 'results.json').read_text())['last']
                        for n in ('baseline', 'icasc'))
        assert plain['train_loss'] == plain['train_loss_cls'] and icasc['train_loss'] != icasc['train_loss_cls']

    def test_the_checkpoint_is_timms(self, begun):
        model = timm.create_model('resnet8_cifar', num_classes=3, checkpoint_path=str(begun / 'last.pth.tar'))
        assert torch.equal(model.fc.weight, weights(begun / 'last.pth.tar')['fc.weight'])

    def test_args_yaml_repeats_the_run(self, run, tmp_path):
        run('--epochs', 1, '--experiment', 'one', '--icasc-weights', 1, 0.5, 0)
        saved = yaml.safe_load((tmp_path / 'one' / 'args.yaml').read_text())
        assert saved['icasc_weights'] == [1., 0.5, 0.] and saved['num_classes'] is None and saved['device'] is None
        run('--experiment', 'two', '--config', tmp_path / 'one' / 'args.yaml', '--epochs', 1)
        one, two = (weights(tmp_path / name / 'last.pth.tar') for name in ('one', 'two'))
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_second_run_does_not_write_over_the_first(self, run, begun, tmp_path):
        before = {path.name: path.read_bytes() for path in begun.iterdir()}
        assert run('--epochs', 1, '--experiment', 'x')[0] == 0
        assert (tmp_path / 'x-1' / 'results.json').is_file()
        assert {path.name: path.read_bytes() for path in begun.iterdir()} == before


FEATURES = {
    'accumulation, uneven': ['--batch-size', 4, '--grad-accum-steps', 4],
    'mixup and cutmix': ['--epochs', 2, '--mixup', 0.4, '--cutmix', 1, '--mixup-off-epoch', 1],
    'mixup in a plain loader': ['--mixup', 0.4, '--no-prefetcher'],
    'binary cross-entropy': ['--loss', 'bce'],
    'average of weights': ['--model-ema', '--model-ema-decay', 0.5],
    'clipping': ['--clip-grad', 1., '--clip-mode', 'agc'],
    'channels last': ['--channels-last'],
    'checkpointing': ['--grad-checkpointing'],
    'compiled evaluation': ['--torchcompile', 'eager'],
    'own layers': ['--icasc-layers', 'layer1', 'layer2'],
    'Grad-CAM, order 1': ['--icasc-attention', 'grad_cam', '--icasc-order', 1],
    'mask with gradient, raw': ['--icasc-mask-grad', '--icasc-mask-scale', 'raw'],
    'late start': ['--icasc-start-epoch', 0.5, '--icasc-ramp-epochs', 0.5],
    'another family': ['--model', 'vit_tiny_patch16_224', '--img-size', 32],
    'CIFAR augmentation': ['--crop-padding', 4],
    'images on the device': ['--resident-data', '--crop-padding', 4, '--color-jitter', 0],
    'worker processes': ['-j', 2],
    'plain loss': ['--no-icasc', '--torchcompile', 'eager'],
    'no measuring': ['--icasc-eval-images', 0],
    'per-update schedule': ['--sched-on-updates', '--opt', 'adamw'],
}


@pytest.mark.parametrize('options', FEATURES.values(), ids=list(FEATURES))
def test_training_features(options, run, tmp_path):
    code, _, err = run('--experiment', 'x', '--epochs', 1, *options)
    assert code == 0, err
    result = json.loads((tmp_path / 'x' / 'results.json').read_text())
    assert np.isfinite(result['last']['train_loss'])


RECORDED = ['--epochs', 2, '--batch-size', 4, '--model-ema', '--model-ema-decay', 0.5, '--sched-on-updates',
            '--clip-grad', 1., '--drop', 0.2, '--crop-padding', 4]


@pytest.mark.parametrize('options', [['--icasc-start-epoch', 1, '--icasc-ramp-epochs', 0.5], ['--no-icasc']])
def test_recorded_steps_leave_the_same_behind(options, run, tmp_path, monkeypatch):
    """On the CPU, by a stand-in for CUDA graphs, so without reading values: the targets' are known to be right."""
    recorders = []

    def on_the_cpu(args):
        fast, args.icasc_fast = args.icasc_fast, False
        device = setup.set_up_device(args)
        args.icasc_fast = fast
        return device

    assert run('--experiment', 'eager', *RECORDED, *options)[0] == 0
    monkeypatch.setattr('timm_icasc.cli.train.set_up_device', on_the_cpu)
    monkeypatch.setattr(setup, 'CudaRecorder', lambda device: recorders.append(OpRecorder()) or recorders[-1])
    monkeypatch.setattr(SINGLE, 'check', lambda *args: None)
    assert run('--experiment', 'recorded', '--icasc-fast', *RECORDED, *options)[0] == 0
    steps = 2 * 6
    assert [r.replays for r in recorders] == [steps - 3 if options == ['--no-icasc'] else steps - 2 * 3 - 2]
    eager, recorded = (tmp_path / name / 'last.pth.tar' for name in ('eager', 'recorded'))
    assert_equal_checkpoints(eager, recorded)
    eager, recorded = (weights(path, 'optimizer') for path in (eager, recorded))
    torch.testing.assert_close(eager['state'], recorded['state'], rtol=0, atol=0)
    losses = [[row['train_loss'] for row in csv.DictReader(open(tmp_path / name / 'summary.csv'))]
              for name in ('eager', 'recorded')]
    assert losses[0] == losses[1]


@on_a_gpu
@pytest.mark.parametrize('options', [[], ['--amp', '--channels-last'], ['--pin-mem', '-j', 2], ['--resident-data']])
def test_recorded_steps_on_a_gpu(options, run, tmp_path):
    code, _, err = run('--experiment', 'x', '--icasc-fast', '--icasc-compare', *RECORDED, '--color-jitter', 0, *options)
    assert code == 0, err
    assert np.isfinite(json.loads((tmp_path / 'x' / 'icasc' / 'results.json').read_text())['last']['train_loss'])


class TestResume:
    OPTIONS = ['--model-ema', '--model-ema-decay', 0.9, '--epochs', 2, '--icasc-start-epoch', 0.5,
               '--icasc-ramp-epochs', 1, '--drop', 0.2, '--drop-path', 0.1, '--sched-on-updates', '--crop-padding', 4,
               '--batch-size', 6]

    @pytest.mark.parametrize('epoch, workers', [
        (0, 0), (1, 2), pytest.param(0, 2, marks=pytest.mark.slow), pytest.param(1, 0, marks=pytest.mark.slow)])
    def test_an_interrupted_run_ends_as_an_uninterrupted_one(self, epoch, workers, run, tmp_path, monkeypatch):
        """SIGTERM in the middle of an epoch; the parameters are bit-equal in the end."""
        options = [*self.OPTIONS, '-j', workers]
        assert run(*options, '--experiment', 'whole')[0] == 0

        original, steps = training_epoch.check_finite, []

        def terminate(means, at, step):
            original(means, at, step)
            steps.append((at, step))
            if (at, step) == (epoch, 1):
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(training_epoch, 'check_finite', terminate)
        code, _, err = run(*options, '--experiment', 'cut')
        assert code == 128 + signal.SIGTERM and '--resume auto' in err
        assert ('holds the last whole epoch' if epoch else 'holds the model as it began, and no whole epoch') in err
        assert max(steps) == (epoch, 1)
        monkeypatch.setattr(training_epoch, 'check_finite', original)
        model = timm.create_model(
            'resnet8_cifar', num_classes=3, checkpoint_path=str(tmp_path / 'cut' / 'last.pth.tar'))
        assert model is not None, 'loadable'

        # No options but where: the run's own args.yaml brings the rest.
        monkeypatch.setattr(sys, 'argv', [
            'train_timm.py', '--resume', 'auto', '--output', str(tmp_path), '--experiment', 'cut'])
        assert train_timm.main() == 0
        assert_equal_checkpoints(tmp_path / 'whole' / 'last.pth.tar', tmp_path / 'cut' / 'last.pth.tar')
        whole, cut = (list(csv.DictReader(open(tmp_path / name / 'summary.csv'))) for name in ('whole', 'cut'))
        assert [r['train_loss'] for r in whole] == [r['train_loss'] for r in cut]
        whole, cut = (
            json.loads((tmp_path / name / 'results.json').read_text())['command'] for name in ('whole', 'cut'))
        assert cut == whole.replace('whole', 'cut'), 'the command that began the run, not the one that went on with it'

    def test_the_command_of_a_run_that_went_on_with_other_options_is_both(self, run, begun, tmp_path):
        first = json.loads((tmp_path / 'x' / 'results.json').read_text())['command']
        run('--experiment', 'x', '--resume', 'auto', '--epochs', 2)
        command = json.loads((tmp_path / 'x' / 'results.json').read_text())['command']
        assert command.startswith(f'{first} && python train_timm.py ') and command.endswith('--resume auto --epochs 2')

    def test_no_such_run(self, run, begun, tmp_path):
        """Neither the digits nor what the command names is trained, and nothing is left behind."""
        for options in (['--experiment', 'y'], ['--output', tmp_path / 'none']):
            code, out, err = run('--resume', 'auto', *options)
            assert code == 2 and not out and len(err.strip().splitlines()) == 1
            assert 'has no run' in err and err.strip().endswith('leave --resume out to begin a new run.')
        assert [path.name for path in tmp_path.iterdir()] == ['x']

    def test_a_finished_run_is_evaluated(self, run, begun, tmp_path):
        before = json.loads((tmp_path / 'x' / 'results.json').read_text())['last']['eval_top1']
        code, out, _ = run('--experiment', 'x', '--resume', 'auto', '--epochs', 1)
        assert code == 0 and 'all 1 epochs are done' in out
        assert json.loads((tmp_path / 'x' / 'results.json').read_text())['last']['eval_top1'] == before

    def test_an_interrupted_comparison_goes_on_with_the_second_run(self, run, tmp_path, monkeypatch):
        original = training_run.train_one_epoch

        def terminate(epoch, job, flag):
            if job.args.icasc and epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return original(epoch, job, flag)

        monkeypatch.setattr(training_run, 'train_one_epoch', terminate)
        assert run('--icasc-compare', '--experiment', 'x')[0] == 128 + signal.SIGINT
        monkeypatch.setattr(training_run, 'train_one_epoch', original)
        code, out, _ = run('--experiment', 'x', '--resume', 'auto')
        assert code == 0 and 'resumed after epoch 1' in out
        assert len(list(csv.DictReader(open(tmp_path / 'x' / 'results.csv')))) == 2


class TestOneRun:
    """What a resume must not change in silence."""

    def test_two_processes_do_not_train_one_run(self, run, begun, tmp_path):
        with alone_in(tmp_path / 'x', 'this test'):
            code, _, err = run('--experiment', 'x', '--resume', 'auto', '--epochs', 2)
        assert code == 2 and f"another training is at work in '{tmp_path / 'x'}'" in err
        assert run('--experiment', 'x', '--resume', 'auto', '--epochs', 2)[0] == 0, 'the lock has gone'

    def test_columns_that_come_later_do_not_shift_others(self, run, begun, tmp_path):
        """With --icasc-eval-images 0 the rows have fewer columns."""
        assert run('--experiment', 'x', '--resume', 'auto', '--epochs', 2, '--icasc-eval-images', 0)[0] == 0
        first, second = csv.DictReader(open(tmp_path / 'x' / 'summary.csv'))
        assert first['eval_overlap_last'] and second['eval_overlap_last'] == ''
        assert float(second['lr']) < float(first['lr']) and float(second['eval_seconds']) > 0

    def test_other_classes_are_refused(self, run, begun, images, tmp_path):
        """Of a run that is not finished, too: its checkpoint names them."""
        (tmp_path / 'x' / 'results.json').unlink()
        for split in ('train', 'val'):
            (tmp_path / 'data' / split).mkdir(parents=True)
            for name, other in (('ant', 'ant'), ('bat', 'bee'), ('cat', 'cat')):
                (tmp_path / 'data' / split / other).symlink_to(images / split / name)
        code, _, err = run(
            '--experiment', 'x', '--resume', 'auto', '--epochs', 2, data=('--data-dir', str(tmp_path / 'data')))
        assert code == 2 and "class 1 is 'bee' in the data set, and 'bat' in the run of" in err

    def test_a_damaged_checkpoint_names_the_intact_one(self, run, tmp_path):
        """A byte that was flipped, which torch would load in silence; the run goes on from the epoch before."""
        run('--experiment', 'x')
        folder, whole = tmp_path / 'x', weights(tmp_path / 'x' / 'last.pth.tar')
        (folder / 'results.json').unlink()
        kept = sorted(path for path in folder.glob('checkpoint-*'))
        for path in [path for path in folder.glob('*.pth.tar') if path.samefile(folder / 'last.pth.tar')]:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.unlink()
            path.write_bytes(content)
        torch.load(folder / 'last.pth.tar', weights_only=False)
        code, _, err = run('--experiment', 'x', '--resume', 'auto')
        os.utime(min(kept), (2 ** 31, 2 ** 31))  # as of a copied folder
        damaged = (folder / 'last.pth.tar').read_bytes()
        intact = max(path for path in kept if path.read_bytes() != damaged)
        assert code == 2 and 'last.pth.tar' in err and 'is damaged: the checksum of' in err
        assert f"'{intact}' beside it is intact" in err and len(err.strip().splitlines()) == 1
        assert run('--resume', intact)[0] == 0
        mended = weights(folder / 'last.pth.tar')
        assert all(torch.equal(mended[name], whole[name]) for name in whole)

    def test_the_newest_run_is_not_a_matter_of_file_times(self, run, begun, tmp_path):
        begun.rename(tmp_path / 'old')
        run('--experiment', 'new', '--epochs', 1)
        os.utime(tmp_path / 'new' / 'last.pth.tar', (1, 1))
        code, out, _ = run('--resume', 'auto')
        assert code == 0 and f"--resume auto: '{tmp_path / 'new'}' goes on" in out

    @pytest.mark.parametrize('processes, options, said', [
        (2, [], True), (2, ['--batch-size', 16], False), (2, ['--grad-accum-steps', 2], False),
        (1, ['--grad-accum-steps', 2], True), (1, ['--batch-size', 16], True), (1, [], False)], ids=str)
    def test_other_updates_are_said(self, processes, options, said, run, begun, tmp_path):
        """By the number of images of an update: processes, batch and accumulation together."""
        checkpoint = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)
        checkpoint['args'].world_size = processes
        torch.save(checkpoint, tmp_path / 'x' / 'last.pth.tar')
        code, out, _ = run('--experiment', 'x', '--resume', 'auto', '--epochs', 2, *options)
        before = f'warning: the run had {processes} process(es) with --batch-size 8 and --grad-accum-steps 1, this is'
        assert code == 0 and (before in out) == ('its updates are of other batches' in out) == said

    def test_results_that_lack_something_are_written_anew(self, run, begun, tmp_path):
        file = tmp_path / 'x' / 'results.json'
        whole = json.loads(file.read_text())
        file.write_text(json.dumps({**whole, 'model': {}}))
        code, out, _ = run('--experiment', 'x', '--resume', 'auto', '--epochs', 1)
        assert code == 0 and 'all 1 epochs are done; evaluating' in out
        assert json.loads(file.read_text())['model'] == whole['model']


def test_ctrl_c_in_the_first_epoch_of_a_real_process(images, tmp_path):
    """Of a fork; tests/cli/test_train.py has a new interpreter."""
    process = Forked([
        sys.executable, ROOT / 'train_timm.py', '--data-dir', images, *TINY, '--epochs', '500', '--output', tmp_path,
        '--experiment', 'x'])
    for line in process.stdout:
        if line.startswith('epoch'):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and 'Traceback' not in err
    timm.create_model('resnet8_cifar', num_classes=3, checkpoint_path=str(tmp_path / 'x' / 'last.pth.tar'))


@pytest.mark.parametrize('start', [
    pytest.param(['--run-path', '--start-method=fork'], id='forked'),
    pytest.param([], marks=pytest.mark.slow, id='new interpreters')])
def test_two_processes_under_torchrun(start, images, tmp_path):
    process = Forked(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *start,
         ROOT / 'train_timm.py', '--data-dir', images, *TINY, '--model', 'resnet20_cifar',
         '--device', 'cpu', '--batch-size', '4', '--epochs', '1', '--output', tmp_path, '--experiment', 'x'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'})
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count('Results after the last epoch') == 1
    assert len(list(csv.DictReader(open(tmp_path / 'x' / 'summary.csv')))) == 1
    command = json.loads((tmp_path / 'x' / 'results.json').read_text())['command']
    assert command.startswith('torchrun --nnodes=1 --nproc_per_node=2 train_timm.py ')


@pytest.mark.parametrize('options, method', [
    (['--no-icasc'], 'cross-entropy'), (['--no-icasc', '--loss', 'bce'], 'binary cross-entropy'),
    (['--icasc-order', '1', '--loss', 'bce'], 'ICASC ach, order 1, binary cross-entropy')])
def test_results_name_the_loss(options, method, run, tmp_path):
    _, out, _ = run('--experiment', 'x', '--epochs', 1, *options)
    heading = 'ICASC' if method.startswith('ICASC') else method.capitalize()
    assert out.strip().startswith(f'{heading}: resnet8_cifar, 3 classes, ')
    assert json.loads((tmp_path / 'x' / 'results.json').read_text())['method'] == method
    assert 'top-1' in out and 'top-5' not in out, 'of three classes it is 100 for all'


@pytest.mark.parametrize('count, said', [(4, 'images; attention on 4 of them:'), (9, 'images:'), (0, 'images:')])
def test_results_tell_how_many_images_the_attention_is_of(count, said, run):
    code, out, err = run('--experiment', 'x', '--epochs', 1, '--icasc-eval-images', count)
    assert code == 0, err
    assert f'Results after the last epoch, on the 9 validation {said}' in out


def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
    """Not that of a repository in whose folder the package happens to be installed."""
    assert (provenance._commit() is not None) == (ROOT / '.git').exists()
    package = tmp_path / 'venv' / 'timm_icasc'
    package.mkdir(parents=True)
    for command in ('init -q', '-c user.name=x -c user.email=x commit -q --allow-empty -m x'):
        subprocess.run(['git', *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, '__file__', str(package / 'runs' / 'provenance.py'))
    assert provenance._commit() is None


@pytest.fixture
def featureless():
    """A registered architecture that tells nothing about its features."""
    if timm.is_model('featureless_net'):
        return 'featureless_net'

    @timm.models.register_model
    def featureless_net(pretrained=False, num_classes=10, in_chans=3, **kwargs):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_chans * 32 * 32, num_classes))
    return 'featureless_net'


BAD_INPUT = {
    'data folder': (['--data-dir', '/nowhere/at/all'], "no folder '/nowhere/at/all'"),
    'split': (['--val-split', 'dev'], "no folder 'dev' (it has: train, val)"),
    'layer': (['--icasc-layers', 'layer3', 'layer9'], "no layer 'layer9'"),
    'model': (['--model', 'resnet20_cifr'], 'close: resnet20_cifar'),
    'model argument': (['--model-kwargs', 'depht=3'], 'depht'),
    'no weights': (['--pretrained'], '--model resnet8_cifar: '),
    'number of classes': (['--num-classes', 2], 'fewer than the 3 classes'),
    'optimizer': (['--opt', 'sdg'], '--opt sdg'),
    'schedule': (['--sched', 'sawtooth'], '--sched sawtooth'),
    'device': (['--device', 'gpu9'], "cannot use 'gpu9'"),
    'fp16 on the CPU': (['--device', 'cpu', '--amp'], '--amp-dtype bfloat16'),
    'batch size': (['--batch-size', 100], '--batch-size 100 is more than the 24 training images'),
    'batch of one pixel': (
        ['--model', 'test_efficientnet', '--batch-size', 1],
        '--batch-size 1: BatchNorm cannot train on one image whose features are one pixel, as those of this model are '
        'here: raise --batch-size or --img-size.'),
    'mean': (['--mean', 1, 2], '--mean and --std'),
    'weights': (['--icasc-weights', -1, 1, 1], '--icasc-weights must be at least 0'),
    'fraction': (['--drop', 2], '--drop must be between 0 and 0.99'),
    'flips': (['--hflip', 3], '--hflip must be between 0 and 1'),
    'nan': (['--icasc-sigma', 'nan'], '--icasc-sigma must be finite, and between 0 and 1'),
    'channels twice': (
        ['--in-chans', 1, '--input-size', 3, 32, 32], '--in-chans 1 contradicts --input-size 3 32 32'),
    'size twice': (['--img-size', 64, '--input-size', 3, 64, 96], '--img-size 64 contradicts --input-size 3 64 96'),
    'channels': (['--in-chans', 2], '--in-chans (or --input-size) must be 1, for grey images, or 3'),
    'pooling': (['--gp', ''], 'ResNetCifar cannot run on 3 x 16 x 16 images'),
    'compiler': (['--torchcompile', 'gcc'], '--torchcompile gcc'),
    'mere value': (
        ['--model', 'resnet18', '--model-kwargs', 'act_layer=gelou'],
        "--model resnet18: KeyError: 'gelou' (with --model-kwargs act_layer=gelou)"),
    'folder name': (['--experiment', 'a/b'], 'plain folder name'),
    'data set type': (['--dataset', 'foo/bar'], "unknown type 'foo/bar'"),
    'weights file': (['--initial-checkpoint', '/nope'], "--initial-checkpoint: no file '/nope'"),
    'archive': (['--data-dir', __file__], "test_train_timm.py', but a file: unpack it, and name the folder"),
    'archive of our own kinds': (['--data-dir', __file__, '--dataset', 'cub200'], 'but a file: unpack it'),
    'resumed comparison': (['--icasc-compare', '--resume', 'x.pth.tar'], "no checkpoint 'x.pth.tar'"),
    'start': (['--icasc-start-epoch', -1], '--icasc-start-epoch must be at least 0, got -1.0'),
    'augmentation': (['--aa', 'nonsense'], 'augmentation options do not fit'),
    'rising rate': (['--lr', 0.01, '--min-lr', 5], '--min-lr 5 is above --lr 0.01, so that the rate would rise'),
    'infinite loss': (['--lr', 1e30], 'lower --lr'),
    'recorded on a CPU': (['--icasc-fast', '--device', 'cpu'], 'leave it out (--no-icasc-fast)'),
    'recorded maps of each class': (['--icasc-fast', '--icasc-multilabel-maps', 'per_class'],
                                    'leave it out, or --icasc-multilabel-maps per_class'),
    'recorded accumulation': (['--icasc-fast', '--grad-accum-steps', 2], 'leave it out, or --grad-accum-steps'),
    'recorded checkpointing': (['--icasc-fast', '--grad-checkpointing'], 'leave it out, or --grad-checkpointing'),
    'recorded and compiled': (['--icasc-fast', '--no-icasc', '--torchcompile'], 'leave it out, or --torchcompile'),
}


@pytest.mark.parametrize('options, message', BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_one_clear_line_and_exit_code_2(options, message, run):
    code, _, err = run('--experiment', 'x', *options)
    assert code == 2 and message in err
    assert len(err.strip().splitlines()) == 1 and 'Traceback' not in err


@pytest.mark.parametrize('options, message', [
    (['--icasc-fast'], 'not of several processes'),
    (['--sync-bn', '--device', 'cpu'], '--sync-bn: torch has no synchronised BatchNorm for a CPU; leave it out.')])
def test_what_several_processes_cannot_have(options, message, run, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    code, _, err = run(*options)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_processes_that_do_not_find_each_other(run, monkeypatch):
    """As of a job of SLURM with several tasks and no MASTER_ADDR: it was a traceback of torch."""
    for name, value in {'SLURM_NTASKS': '2', 'SLURM_PROCID': '0', 'RANK': '0', 'LOCAL_RANK': '0'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    code, _, err = run()
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert 'MASTER_ADDR expected, but not set' in err and 'WORLD_SIZE=1 makes it one process' in err


def test_statistics_are_shared_behind_every_epoch(run, monkeypatch):
    """Behind those without validation too: what the first process saves is what all go on with."""
    shared = []
    monkeypatch.setattr(training_run, 'share_statistics', lambda job: shared.append(job.args.epochs))
    assert run('--experiment', 'x', '--epochs', 3, '--val-interval', 2)[0] == 0
    assert len(shared) == 3


@pytest.mark.parametrize('options', [['--model', 'resnet18', '--pretrained'], ['--model', 'hf-hub:no-one/nothing']])
def test_weights_without_a_network_are_refused_at_once(options, run, monkeypatch, tmp_path):
    import socket

    import huggingface_hub.constants as constants
    attempts = []

    def refuse(address, *args, **kwargs):
        attempts.append(address)
        raise OSError('no network')

    address = (socket.AF_INET, socket.SOCK_STREAM, 6, '', ('192.0.2.1', 443))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: [address])
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run(*options)
    assert code == 2 and len(attempts) == 1 and len(err.strip().splitlines()) == 1
    if '--pretrained' in options:
        assert '--pretrained-path FILE' in err
    else:
        assert 'no-one/nothing@main: not in the cache, and ' in err and 'cannot be reached (no network)' in err
        assert '--pretrained-path' not in err


def test_model_without_features(run, featureless):
    code, _, err = run('--model', featureless, '--img-size', 32)
    assert code == 2 and 'no two features' in err and '--icasc-layers' in err


def test_unknown_yaml_key(run, tmp_path):
    (tmp_path / 'bad.yaml').write_text('lerning_rate: 1')
    code, _, err = run('--config', tmp_path / 'bad.yaml')
    assert code == 2 and "unknown key 'lerning_rate'" in err


def test_unwritable_output(run, tmp_path):
    (tmp_path / 'file').write_text('')
    code, _, err = run('--output', tmp_path / 'file' / 'deeper')
    assert code == 2 and '--output: cannot write to' in err


def test_grey_images(run, images, tmp_path):
    assert run('--in-chans', 1, '--epochs', 1, '--experiment', 'x')[0] == 0
    assert weights(tmp_path / 'x' / 'last.pth.tar')['conv1.weight'].shape[1] == 1


def test_a_head_with_more_outputs_than_classes(run, tmp_path):
    assert run('--num-classes', 99, '--epochs', 1, '--experiment', 'x', drawn=True)[0] == 0
    assert (tmp_path / 'x' / 'attention.png').is_file()


def test_plain_loss_on_a_model_without_features(run, featureless):
    with pytest.warns(UserWarning, match='Attention is not measured'):
        code, out, _ = run('--no-icasc', '--model', featureless, '--img-size', 32, '--epochs', 1)
    assert code == 0 and 'Results' in out


@pytest.mark.parametrize('icasc', [True, False])
def test_images_of_a_size_that_the_model_cannot_take(icasc, run):
    """ConvNeXt halves them five times."""
    code, _, err = run('--icasc' if icasc else '--no-icasc', '--model', 'convnext_atto', '--img-size', 8)
    assert code == 2 and 'ConvNeXt cannot run on 3 x 8 x 8 images' in err and 'Traceback' not in err


def test_images_that_cannot_be_read(run, tmp_path):
    for split in ('train', 'val'):
        for name in ('ant', 'bat'):
            folder = tmp_path / 'broken' / split / name
            folder.mkdir(parents=True)
            for i in range(12):
                (folder / f'{i}.png').write_bytes(b'no image')
    code, _, err = run(data=('--data-dir', str(tmp_path / 'broken')))
    assert code == 2 and "Cannot read the image '" in err and '.png' in err and 'Traceback' not in err


def in_two_parts():
    """A PNG whose second part has no known kind: Pillow raises a SyntaxError, no OSError."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)).save(file, 'PNG')
    first, _, second = file.getvalue().rpartition(b'IDAT')
    assert b'IDAT' in first
    return first + b'????' + second


BROKEN = {
    'no image': lambda whole: b'no image', 'cut off': lambda whole: whole[:len(whole) // 2],
    'empty': lambda whole: b'', 'broken PNG': lambda whole: in_two_parts()}


@pytest.mark.parametrize('how, workers', [(how, 0) for how in BROKEN] + [('broken PNG', 1)])
def test_an_image_that_cannot_be_read(how, workers, run, tmp_path, images, caplog):
    """In training the next one of its class is taken, with a warning; nothing is measured in another's place."""
    shutil.copytree(images, tmp_path / 'data')
    broken = BROKEN[how]((tmp_path / 'data' / 'train' / 'bat' / '3.png').read_bytes())
    (tmp_path / 'data' / 'train' / 'bat' / '3.png').write_bytes(broken)
    code, _, _ = run('--epochs', '1', data=('--data-dir', str(tmp_path / 'data')))
    assert code == 0 and 'bat/3.png' in caplog.text and 'next one of its class is taken' in caplog.text
    (tmp_path / 'data' / 'val' / 'bat' / '1.png').write_bytes(broken)
    code, _, err = run('--epochs', '1', '-j', workers, data=('--data-dir', str(tmp_path / 'data')))
    assert code == 2 and "Cannot read the image '" in err and 'val/bat/1.png' in err and 'Traceback' not in err


def test_maps_of_several_classes_are_refused_where_there_is_one(run):
    code, _, err = run('--epochs', '1', '--icasc-multilabel-maps', 'per_class')
    assert code == 2 and '--icasc-multilabel-maps per_class is for images of several classes' in err


def test_an_image_of_too_many_pixels(run, tmp_path, images, caplog, monkeypatch):
    """Pillow's DecompressionBombError is an error of its own kind."""
    shutil.copytree(images, tmp_path / 'data')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    for split in ('train', 'val'):
        Image.new('RGB', (101, 101)).save(tmp_path / 'data' / split / 'bat' / '1.png')
        data = ('--data-dir', str(tmp_path / 'data'))
        code, _, err = run('--epochs', '1', '-j', 0, data=data)
        assert code == (0 if split == 'train' else 2) and 'Traceback' not in err
    assert 'train/bat/1.png' in caplog.text and 'exceeds limit' in caplog.text
    assert 'val/bat/1.png' in err and 'exceeds limit' in err


def test_a_refused_run_leaves_no_folder(run, tmp_path):
    run('--model', 'nonsense')
    run('--icasc-layers', 'a', 'b')
    assert not list(tmp_path.iterdir())


def test_a_refused_resume_leaves_the_run_as_it_was(run, begun, tmp_path):
    before = {p.name: p.read_bytes() for p in (tmp_path / 'x').iterdir()}
    code, _, err = run('--experiment', 'x', '--resume', 'auto', '--model', 'resnet32_cifar', '--epochs', 2)
    assert code == 2 and 'does not fit this run' in err
    assert {p.name: p.read_bytes() for p in (tmp_path / 'x').iterdir()} == before


def test_a_checkpoint_from_elsewhere_starts_a_folder_of_its_own(run, begun, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'x' / 'last.pth.tar').rename(tmp_path / 'elsewhere' / 'some.pth.tar')
    code, out, _ = run('--experiment', 'y', '--resume', tmp_path / 'elsewhere' / 'some.pth.tar', '--epochs', 2)
    assert code == 0 and 'resumed after epoch 1' in out
    assert [p.name for p in (tmp_path / 'elsewhere').iterdir()] == ['some.pth.tar']
    assert (tmp_path / 'y' / 'last.pth.tar').is_file()


def test_sigterm_to_the_whole_group_with_loading_processes(images, tmp_path):
    """As service managers and torchrun send it; the workers leave the answer to the main process."""
    process = Forked(
        [sys.executable, ROOT / 'train_timm.py', '--data-dir', images, *TINY, '-j', '2', '--epochs', '500',
         '--output', tmp_path, '--experiment', 'x'],
        start_new_session=True)
    for line in process.stdout:
        if line.strip().startswith('2 '):
            os.killpg(process.pid, signal.SIGTERM)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in err and '--resume auto' in err


def data_of(images, root, **names):
    """Folders of these classes in each split."""
    for split, classes in names.items():
        (root / split).mkdir(parents=True)
        for name in classes.split():
            (root / split / name).symlink_to(images / split / name)
    return '--data-dir', str(root)


def test_classes_of_the_validation_alone(run, images, tmp_path):
    code, _, err = run(data=data_of(images, tmp_path / 'data', train='ant bat', val='ant bat cat'))
    assert code == 2 and 'differ: only the first has none; only the second has cat. Name them alike' in err


def test_classes_without_a_validation_image(run, images, tmp_path):
    """Rare ones may have none; the others keep their numbers."""
    data = data_of(images, tmp_path / 'data', train='ant bat cat', val='bat cat')
    with pytest.warns(UserWarning, match='--val-split validation has no image of 1 of the 3 classes: ant.'):
        assert run(data=data)[0] == 0
    results = json.loads(next(tmp_path.rglob('results.json')).read_text())
    assert results['model']['label_names'] == ['ant', 'bat', 'cat']


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', None])
def test_broken_checkpoint_is_refused_and_kept(content, run, begun):
    checkpoint = begun / 'last.pth.tar'
    content = checkpoint.read_bytes()[:5000] if content is None else content
    checkpoint.write_bytes(content)
    code, _, err = run('--resume', checkpoint)
    expected = 'does not fit this run' if content == b'not a checkpoint' else 'is damaged'
    assert code == 2 and '--resume' in err and expected in err and len(err.strip().splitlines()) == 1
    assert checkpoint.read_bytes() == content


def test_a_diverged_run_keeps_its_last_good_checkpoint(run, begun, tmp_path):
    good = weights(tmp_path / 'x' / 'last.pth.tar')
    code, _, err = run('--resume', tmp_path / 'x' / 'last.pth.tar', '--epochs', 2, '--lr', 1e30)
    assert code == 2 and err.rstrip().endswith('The last checkpoint is from before epoch 2.')
    kept = weights(tmp_path / 'x' / 'last.pth.tar')
    assert all(torch.equal(good[name], kept[name]) for name in good)
