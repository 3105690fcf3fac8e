"""train_timm.py on multi-label data."""
import csv
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.forked import Forked
from helpers.runs import TINY as SMALL
from helpers.runs import sigterm_in_the_second_epoch, train_in_process
from PIL import Image

ROOT = Path(__file__).parent.parent

TINY = [*SMALL, '--dataset', 'multilabel', '--val-split', 'val', '--batch-size', '8', '--epochs', '2']
CLASSES = ('ant', 'bat', 'cat')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Noise with any number of three classes, some ignored; for shapes and flow, not for learning."""
    root, generator = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for split, count in (('train', 20), ('val', 10)):
        rows = [('image', *CLASSES)]
        for i in range(count):
            name = f'{split}{i}.png'
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / name)
            rows.append((name, *([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, -1]][i % 4])))
        with open(root / f'{split}.csv', 'w', newline='') as file:
            csv.writer(file).writerows(rows)
    return root


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Call main() with options; returns (exit code, stdout, stderr)."""
    return lambda *options, data=images, **kwargs: train_in_process(
        monkeypatch, capsys, '--data-dir', data, *TINY, '--output', tmp_path, *options, **kwargs)


def test_one_map_per_class_is_another_training(run, tmp_path):
    terms = {}
    for maps in ('joint', 'per_class'):
        assert run('--experiment', maps, '--epochs', 1, '--icasc-multilabel-maps', maps)[0] == 0
        result = json.loads((tmp_path / maps / 'results.json').read_text())
        assert result['model']['icasc']['multilabel_maps'] == maps
        terms[maps] = result['last']['train_loss_as_last']
    assert terms['joint'] != terms['per_class']


def test_what_icasc_refuses_is_refused_before_the_plain_loss_is_trained(run, tmp_path):
    code, _, err = run('--icasc-compare', '--experiment', 'both', '--icasc-layers', 'nope', 'nix')
    assert code == 2 and "has no layer 'nope'" in err
    assert not (tmp_path / 'both').exists()


def test_comparison(run, tmp_path):
    code, out, err = run('--icasc-compare', '--experiment', 'both', drawn=True)
    assert code == 0, err
    assert '\nSoft margin: resnet8_cifar, 3 classes, ' in out and '\nICASC: ' in out
    assert ' loss_cls ' in out and 'ross-entropy:' not in out and ' CE ' not in out
    assert 'mAP 11-point' in out and 'AUC' in out and 'top-1' not in out
    assert (tmp_path / 'both' / 'attention.png').stat().st_size > 10_000
    table = list(csv.DictReader(open(tmp_path / 'both' / 'results.csv')))
    for row, name in zip(table, ('baseline', 'icasc'), strict=True):
        folder = tmp_path / 'both' / name
        result = json.loads((folder / 'results.json').read_text())
        last = result['last']
        assert result['world_size'] == 1  # what makes a batch of an update, for `timm-icasc paper`
        assert result['method'] == ('soft margin' if name == 'baseline' else 'ICASC ach, order 1')
        assert {f'eval_AP_{c}' for c in CLASSES} <= set(last)
        assert last['eval_mAP'] == pytest.approx(np.mean([last[f'eval_AP_{c}'] for c in CLASSES]))
        assert 0 <= float(row['zero maps']) <= 1 and float(row['zero maps']) == pytest.approx(last['eval_zero_maps'])
        assert 'mAP' in result['best'] and float(row['mAP']) == pytest.approx(last['eval_mAP'])
        summary = list(csv.DictReader(open(folder / 'summary.csv')))
        assert float(summary[1]['eval_AUC']) == pytest.approx(last['eval_AUC'])
        assert (summary[0]['train_loss_as_last'] != '') == (name == 'icasc')
    # At weight 1, the default of one class per image, the terms outweigh a loss that is a mean over the classes.
    settled = result['model']['icasc']
    assert [settled[f'weight_{term}'] for term in ('as_inner', 'as_last', 'ac')] == [0.03, 0.03, 0.03]


@pytest.mark.parametrize('options', [
    ['--icasc-order', 1, '--icasc-attention', 'grad_cam'], ['--icasc-multilabel-maps', 'per_class'], ['-j', 2],
    ['--no-prefetcher'],
    ['--model-ema', '--model-ema-decay', 0.5], ['--eval-metric', 'AUC'], ['--grad-accum-steps', 2, '--drop', 0.1],
], ids=str)
def test_training_features(options, run, tmp_path):
    code, _, err = run('--experiment', 'x', '--epochs', 1, *options)
    assert code == 0, err
    assert np.isfinite(json.loads((tmp_path / 'x' / 'results.json').read_text())['last']['train_loss_as_inner'])


def test_weights_that_the_last_update_breaks(run, tmp_path):
    code, _, err = run('--experiment', 'x', '--epochs', 1, '--batch-size', 20, '--lr', 1e20)
    assert code == 2 and 'error: the class scores became NaN or infinite: lower --lr' in err
    assert not (tmp_path / 'x' / 'summary.csv').exists()


def test_terms_that_never_start_are_told(run, tmp_path):
    code, out, _ = run('--experiment', 'x', '--epochs', 1, '--icasc-start-epoch', 1)
    assert code == 0 and 'warning: the terms of ICASC never start: --icasc-start-epoch 1, but --epochs 1' in out
    assert json.loads((tmp_path / 'x' / 'results.json').read_text())['last']['train_loss_as_inner'] is None


def test_terms_that_never_come_to_their_weights_are_told(run):
    _, out, _ = run('--experiment', 'x', '--epochs', 1, '--icasc-start-epoch', 0.5, '--icasc-ramp-epochs', 2)
    assert (
        'warning: the terms of ICASC never come to their weights: --icasc-start-epoch 0.5 and --icasc-ramp-epochs 2, '
        'but --epochs 1') in out


def test_weights_of_0_are_told_and_not_called_icasc(run, tmp_path):
    _, out, _ = run('--experiment', 'x', '--epochs', 1, '--icasc-weights', 0, 0, 0)
    assert 'warning: this trains like --no-icasc: all three of --icasc-weights are 0' in out
    assert json.loads((tmp_path / 'x' / 'results.json').read_text())['method'] == 'soft margin'


def test_a_rate_that_never_comes_is_told(run):
    code, out, _ = run('--experiment', 'x', '--epochs', 1, '--warmup-epochs', 1)
    assert code == 0
    assert 'warning: the learning rate never comes to --lr: --warmup-epochs 1, but --epochs 1' in out


def test_an_interrupted_run_ends_as_an_uninterrupted_one(run, tmp_path, monkeypatch):
    options = ['--sched-on-updates', '--icasc-start-epoch', 0.5, '--model-ema', '--model-ema-decay', 0.9]
    assert run('--experiment', 'whole', *options)[0] == 0
    with sigterm_in_the_second_epoch(monkeypatch):
        assert run('--experiment', 'cut', *options)[0] == 128 + signal.SIGTERM
    code, out, _ = run('--experiment', 'cut', '--resume', 'auto')
    assert code == 0 and 'resumed after epoch 1' in out
    whole, cut = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'cut'))
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(value, cut[key][name]) for name, value in whole[key].items())


def test_columns_in_another_order(run, images, tmp_path):
    """The classes are told by their names."""
    assert run('--experiment', 'x', '--epochs', 1)[0] == 0
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    rows = list(csv.reader(open(images / 'val.csv')))
    with open(tmp_path / 'val.csv', 'w', newline='') as file:
        csv.writer(file).writerows([row[0], *reversed(row[1:])] for row in rows)
    assert run('--experiment', 'y', '--epochs', 1, data=tmp_path)[0] == 0
    x, y = (json.loads((tmp_path / name / 'results.json').read_text())['last'] for name in 'xy')
    assert x['eval_mAP'] == y['eval_mAP'] and x['eval_loss'] == y['eval_loss']


BAD_INPUT = {
    'measure': (['--eval-metric', 'top1'], '--eval-metric top1 does not fit multi-label data: it is mAP, AUC or loss'),
    'mixup': (['--mixup', 0.2], '--mixup and --cutmix are for single-label data'),
    'smoothing': (['--smoothing', 0.2], '--smoothing is for single-label data, and does nothing here'),
    'loss': (['--loss', 'bce'], '--loss bce is for single-label data'),
    'number of classes': (['--num-classes', 5], '--num-classes 5: the multi-label data have 3 classes'),
    'split': (['--val-split', 'dev'], "neither 'dev.csv' nor 'dev.json'"),
}


@pytest.mark.parametrize('options, message', BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_one_clear_line_and_exit_code_2(options, message, run):
    code, _, err = run('--experiment', 'x', *options)
    assert code == 2 and message in err
    assert len(err.strip().splitlines()) == 1 and 'Traceback' not in err


def test_a_measure_of_multi_label_data_on_others(run):
    code, _, err = run('--dataset', 'digits', '--data-dir', '', '--eval-metric', 'mAP')
    assert code == 2 and '--eval-metric mAP does not fit single-label data: it is top1, top5 or loss' in err


@pytest.fixture
def broken(images, tmp_path):
    """A copy of the images of which one cannot be read."""
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() if path.name != 'train3.png' else b'no image')
    return tmp_path


def test_an_image_that_cannot_be_read_is_named(run, broken):
    code, _, err = run(data=broken)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert err.startswith('train_timm.py: error: Cannot read the image') and 'train3.png' in err


def test_an_error_in_a_loading_process_ends_the_run(broken, tmp_path):
    """In a process of its own: what could hang is its end. tests/cli/test_train.py ends a new interpreter."""
    process = Forked([
        sys.executable, ROOT / 'train_timm.py', '--data-dir', broken, *TINY, '-j', '2', '--output', tmp_path / 'runs'])
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith('train_timm.py: error: Cannot read the image')
