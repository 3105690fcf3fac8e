"""The options of timm's own training script: here under the same name, or left out for a reason that the docs give."""
import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm.data
import timm.loss
import torch
from helpers.runs import train_in_process

from timm_icasc import ICASCError
from timm_icasc.cli import main
from timm_icasc.runs.epochs import add_epoch
from timm_icasc.training import job as job_module
from timm_icasc.training import loaders
from timm_icasc.training import run as training_run
from timm_icasc.training.arguments import build_parser, parse_args
from timm_icasc.training.epoch import make_batch
from timm_icasc.training.job import create_criterion
from timm_icasc.training.loaders import set_up_data

ROOT = Path(__file__).parents[2]
TIMM = [
    line for line in (ROOT / 'tests' / 'data' / 'timm_train_options.txt').read_text().splitlines()
    if line.startswith('--')]
TINY = ['--model', 'resnet8_cifar', '--batch-size', '4', '--warmup-epochs', '0', '-j', '0', '--icasc-eval-images', '3']


def left_out():
    """Option -> reason, of the table in docs/training.md."""
    page = (ROOT / 'docs' / 'training.md').read_text()
    section = page.split("## timm's options that are left out")[1].split('\n## ')[0]
    rows = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('| `--')]
    return {option: reason.strip() for options, reason in rows for option in re.findall(r'`(--[\w-]+)`', options)}


def test_every_option_of_timm_is_here_or_left_out_for_a_reason():
    ours, reasons = build_parser()._option_string_actions, left_out()
    assert len(TIMM) > 150
    assert [option for option in TIMM if option not in ours and option not in reasons] == []
    assert [option for option in reasons if option in ours or option not in TIMM] == []
    assert all(reasons.values())


def set_up(monkeypatch, noise, *options):
    """The job of these options, and the keywords with which timm's functions were called."""
    seen = {}

    def watch(module, name):
        original = getattr(module, name)

        def call(*args, **kwargs):
            seen[name] = {**seen.get(name, {}), **kwargs}
            return original(*args, **kwargs)
        monkeypatch.setattr(module, name, call)

    for module, name in (
            (loaders, 'create_loader'), (loaders, 'FastCollateMixup'), (timm, 'create_model'),
            (job_module, 'create_scheduler_v2'), (timm.loss, 'create_classification_loss'),
            (timm.data, 'create_dataset')):
        watch(module, name)
    args = parse_args(['--data-dir', str(noise), *TINY, *options])
    return job_module.set_up(args, job_module.set_up_device(args)), seen


def test_without_augmentation_training_images_are_resized_as_those_of_validation(noise, monkeypatch):
    job, _ = set_up(monkeypatch, noise, '--no-aug', '--interpolation', 'bicubic')
    train, val = (
        [t.interpolation for t in loader.dataset.transform.transforms if hasattr(t, 'interpolation')]
        for loader in (job.loader_train, job.loader_val))
    assert set(map(str, train)) == set(map(str, val)) == {'InterpolationMode.BICUBIC'}


PASSED_ON = {
    '--color-jitter-prob 0.5': ('create_loader', 'color_jitter_prob', 0.5),
    '--grayscale-prob 0.25': ('create_loader', 'grayscale_prob', 0.25),
    '--gaussian-blur-prob 0.5': ('create_loader', 'gaussian_blur_prob', 0.5),
    '--reprob 0.5 --recount 3': ('create_loader', 're_count', 3),
    '--worker-seeding part': ('create_loader', 'worker_seeding', 'part'),
    '--cutmix-minmax 0.2 0.8': ('FastCollateMixup', 'cutmix_minmax', [0.2, 0.8]),
    '--model resnet18 --drop-block 0.1': ('create_model', 'drop_block_rate', 0.1),
    '--model efficientnet_lite0 --bn-momentum 0.2': ('create_model', 'bn_momentum', 0.2),
    '--model efficientnet_lite0 --bn-eps 0.01': ('create_model', 'bn_eps', 0.01),
    '--lr-noise 0.5 --lr-noise-pct 0.4': ('create_scheduler_v2', 'noise', [0.5]),
    '--lr-noise 0.5 --lr-noise-std 2': ('create_scheduler_v2', 'noise_std', 2.),
    '--lr-k-decay 2': ('create_scheduler_v2', 'k_decay', 2.),
    '--warmup-prefix': ('create_scheduler_v2', 'warmup_prefix', True),
    '--sched plateau --patience-epochs 3': ('create_scheduler_v2', 'patience_epochs', 3),
    '--loss bce --bce-sum': ('create_classification_loss', 'bce_sum', True),
    '--loss bce --bce-target-thresh 0.2': ('create_classification_loss', 'bce_target_thresh', 0.2),
    '--loss bce --bce-pos-weight 3': ('create_classification_loss', 'pos_weight', 3.),
}


@pytest.mark.parametrize('options', PASSED_ON)
def test_timm_gets_what_it_is_about(options, noise, monkeypatch):
    function, name, value = PASSED_ON[options]
    _, seen = set_up(monkeypatch, noise, *options.split())
    assert seen[function][name] == value


def test_the_rate_grows_with_the_root_of_the_batch(noise, monkeypatch):
    job, _ = set_up(monkeypatch, noise, '--lr-base', '0.1', '--lr-base-scale', 'sqrt', '--lr-base-size', '16')
    assert job.args.lr == pytest.approx(0.1 * (4 / 16) ** 0.5)
    job, _ = set_up(monkeypatch, noise, '--lr-base', '0.1', '--lr-base-size', '16')
    assert job.args.lr == pytest.approx(0.1 * 4 / 16)


def test_momentum_of_batch_norm(noise, monkeypatch):
    job, _ = set_up(monkeypatch, noise, '--model', 'efficientnet_lite0', '--bn-momentum', '0.3', '--bn-eps', '0.02')
    norms = [m for m in job.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all((m.momentum, m.eps) == (0.3, 0.02) for m in norms)


@pytest.mark.parametrize('options, said', [
    ('--aug-repeats 2', '--aug-repeats spreads the repeats over processes: start several with torchrun'),
    ('--bce-sum', '--bce-sum is of --loss bce, this is --loss ce'),
    ('--bce-pos-weight 2 --loss poly', '--bce-pos-weight is of --loss bce, this is --loss poly'),
    ('--cutmix-minmax 0.8 0.2', r'--cutmix-minmax is \(smallest, largest\)'),
    ('--cutmix-minmax 0.2 0.8 --batch-size 3', '--mixup and --cutmix pair the images of a batch'),
    ('--input-key img', "--input-key names a column of hfds/, hfids/ or wds/ data, not of ''"),
    ('--val-interval 2 --sched plateau', '--sched plateau asks for a measure after every epoch'),
    ('--val-interval 0', '--val-interval must be at least 1'),
    ('--model resnet18.a1_inlk', "`model`: resnet18 has no weights 'a1_inlk'; it has resnet18.a1_in1k"),
    ('--opt adahessian', '--opt adahessian takes second derivatives of the whole loss'),
    ('--opt lookahead_adahessian', '--opt lookahead_adahessian takes second derivatives'),
    ('--model dla46_c --grad-checkpointing', '--grad-checkpointing: dla46_c does not support it'),
    ('--drop-block 0.1', '--model resnet8_cifar: .*drop_block_rate'),
    ('--train-crop-mode rkrr --resident-data --no-aug', '--resident-data pads, .*: --train-crop-mode'),
    ('--grayscale-prob 1 --resident-data --no-aug', '--resident-data pads, .*: --grayscale-prob')])
def test_what_does_not_fit_is_said(options, said, noise, monkeypatch):
    with pytest.raises(ICASCError, match=said):
        set_up(monkeypatch, noise, *options.split())


def test_the_digits_are_in_no_folder():
    with pytest.raises(ICASCError, match='--data-dir has no effect on the embedded digits: leave it out'):
        set_up_data(parse_args(['--dataset', 'digits', '--data-dir', '3']))


@pytest.mark.parametrize('options, said', [
    (['--val-split', 'train', '--limit-train', '20'], '--val-split train: 200 of its 1347 images are also trained on'),
    (['--val-split', 'val'], None)])
def test_images_that_are_trained_on_and_measured_on(options, said, recwarn):
    args = parse_args(['--dataset', 'digits', *options])
    args.world_size = 1
    set_up_data(args)
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == bool(said) and all(said in line for line in told)


@pytest.mark.parametrize('data', [['--dataset', 'digits'], ['--data-dir', 'x'], ['--dataset', 'hfds/x']])
@pytest.mark.parametrize('option', ['--train-num-samples', '--val-num-samples'])
def test_the_number_of_images_is_of_a_stream(option, data):
    """Of other data it had no effect: all images were trained on."""
    with pytest.raises(ICASCError, match=f'{option} is the number of images of a stream .*--limit-train'):
        parse_args([*data, option, '3'])
    assert parse_args(['--data-dir', 'x', '--dataset', 'wds/x', option, '3']).dataset == 'wds/x'


class TestIntervalOfValidation:

    @pytest.fixture
    def run(self, noise, tmp_path, monkeypatch, capsys):
        return lambda *options: train_in_process(
            monkeypatch, capsys, '--data-dir', noise, '--output', tmp_path, *TINY, *options)

    def test_only_these_epochs_are_measured(self, run, tmp_path):
        code, out, err = run('--epochs', 4, '--val-interval', 2, '--experiment', 'x', '--checkpoint-hist', 9)
        assert code == 0, err
        with open(tmp_path / 'x' / 'summary.csv') as file:
            rows = list(csv.DictReader(file))
        assert [bool(row['eval_top1']) for row in rows] == [True, False, True, True]
        assert all(row['train_loss'] for row in rows)
        assert sorted(path.name for path in (tmp_path / 'x').glob('checkpoint-*')) == [
            f'checkpoint-{epoch}.pth.tar' for epoch in (0, 2, 3)]
        assert json.loads((tmp_path / 'x' / 'results.json').read_text())['last']['eval_top1'] is not None

    def test_a_run_goes_on_behind_an_epoch_without_measures(self, run, tmp_path):
        options = ['--val-interval', 3, '--sched', 'none']
        assert run('--experiment', 'whole', '--epochs', 3, *options)[0] == 0
        assert run('--experiment', 'cut', '--epochs', 2, *options)[0] == 0
        code, out, _ = run('--experiment', 'cut', '--resume', 'auto', '--epochs', 3)
        assert code == 0 and 'resumed after epoch 2' in out
        whole, cut = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'cut'))
        assert all(torch.equal(value, cut['state_dict'][name]) for name, value in whole['state_dict'].items())


@pytest.mark.parametrize('options', [[], ['--no-icasc']])
def test_binary_cross_entropy_is_smoothed(options, monkeypatch, tmp_path):
    """timm makes the targets of it, with --smoothing, of the classes' indices: these must come to it as they are."""
    args = parse_args(['--data-dir', 'x', '--loss', 'bce', '--smoothing', '0.3', *options])
    job = SimpleNamespace(args=args, device=torch.device('cpu'))
    _, target = make_batch(job, torch.zeros(2, 3, 4, 4), torch.tensor([2, 0]))
    logits = torch.randn(2, 3, dtype=torch.float64)
    expected = 0.
    for i, label in enumerate((2, 0)):
        for c in range(3):
            probability, y = 1 / (1 + math.exp(-logits[i, c])), 0.7 * (c == label) + 0.1
            expected -= (y * math.log(probability) + (1 - y) * math.log(1 - probability)) / 6
    assert create_criterion(args, None)(logits, target).item() == pytest.approx(expected)


@pytest.mark.parametrize('loss', ['asl', 'poly'])
def test_other_losses_are_smoothed_as_timm_does_it(loss):
    logits, target = torch.randn(2, 3), torch.tensor([2, 0])
    args = parse_args(['--data-dir', 'x', '--loss', loss, '--smoothing', '0.3'])
    smoothed, plain = (timm.loss.create_classification_loss(loss, smoothing=s)(logits, target) for s in (0.3, 0.))
    assert create_criterion(args, None)(logits, target) == smoothed != plain


@pytest.mark.parametrize('measured', [True, False])
def test_results_are_of_an_epoch_that_was_measured(measured, monkeypatch, tmp_path):
    """A run may end, by a kill or by fewer --epochs, with an epoch that --val-interval left out."""
    add_epoch(tmp_path, 0, {'train_loss': 1., 'eval_top1': 40. if measured else None, 'eval_seconds': 2.})
    monkeypatch.setattr(training_run, 'evaluate', lambda job, flag: {'top1': 50.})
    job = SimpleNamespace(args=SimpleNamespace(eval_metric='top1', rank=0, distributed=False))
    assert training_run.last_record(job, tmp_path, 1, None)['eval_top1'] == (40. if measured else 50.)


def test_names_that_are_not_utf_8(noise, monkeypatch, capsys, tmp_path):
    """A class and its images under bytes of another encoding: trained, measured and drawn."""
    root = shutil.copytree(noise, tmp_path / 'images')
    for split in ('train', 'val'):
        folder = min((root / split).iterdir())
        for number, file in enumerate(sorted(folder.iterdir())):
            file.rename(folder / (os.fsdecode(b'caf\xe9') + f'{number}{file.suffix}'))
        folder.rename(folder.with_name(os.fsdecode(b'caf\xe9')))
    code, _, err = train_in_process(
        monkeypatch, capsys, '--data-dir', root, '--output', tmp_path, *TINY, '--epochs', 1, '--experiment', 'x',
        drawn=True)
    assert code == 0, err
    for words in (['eval', '-j', '0'], ['figure', 'classes', '-j', '0', '--output', str(tmp_path / 'classes.png')]):
        assert main([*words, str(tmp_path / 'x')]) == 0, capsys.readouterr().err
    for file in [*(tmp_path / 'x').glob('*.json'), *(tmp_path / 'x').rglob('*.csv'), tmp_path / 'x' / 'args.yaml']:
        file.read_bytes().decode('utf-8')
