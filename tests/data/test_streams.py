"""train_timm.py on shards of webdataset, which are read from one end to the other: real digits as PNG in tar files."""
import csv
import io
import json
import os
import re
import signal
import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.processes import in_two_processes
from helpers.runs import train_in_process
from PIL import Image
from sklearn.datasets import load_digits

from timm_icasc.cli import main
from timm_icasc.data import begin_epoch, create_dataset
from timm_icasc.data import streams as stream
from timm_icasc.errors import DataError
from timm_icasc.training import epoch as epoch_of_training
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.loaders import set_up_data, set_up_loaders

pytest.importorskip('webdataset')

TINY = [
    '--dataset', 'wds/digits', '--model', 'resnet20_cifar', '--num-classes', '10', '--batch-size', '8', '--epochs',
    '2', '--warmup-epochs', '0', '--lr', '0.05', '--icasc-eval-images', '6', '--device', 'cpu']
SHARDS = {'train': (20, 4, 10, 14), 'validation': (9, 8)}


def write_shards(root, images, targets, image_type='png'):
    """One tar file for each of `SHARDS`, and the _info.json that timm's reader asks for."""
    splits, samples = {}, iter(enumerate(zip(images, targets, strict=True)))
    for split, lengths in SHARDS.items():
        names = [f'digits-{split}-{number}.tar' for number in range(len(lengths))]
        for name, length in zip(names, lengths, strict=True):
            with tarfile.open(root / name, 'w') as file:
                for _ in range(length):
                    key, (image, target) = next(samples)
                    for suffix, content in ((image_type, image), ('cls', str(target).encode())):
                        entry = tarfile.TarInfo(f'{key:05d}.{suffix}')
                        entry.size = len(content)
                        file.addfile(entry, io.BytesIO(content))
        splits[split] = {'name': split, 'num_samples': sum(lengths), 'filenames': names, 'shard_lengths': lengths}
    (root / '_info.json').write_text(json.dumps({'splits': splits}))
    return root


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32)).save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    digits, count = load_digits(), sum(map(sum, SHARDS.values()))
    return write_shards(
        tmp_path_factory.mktemp('shards'), map(as_png, digits.images[:count]), digits.target[:count].tolist())


@pytest.fixture
def run(shards, tmp_path, monkeypatch, capsys):
    """Call main() with options; returns (exit code, stdout, stderr)."""
    return lambda *options, data=shards, **kwargs: train_in_process(
        monkeypatch, capsys, '--data-dir', data, *TINY, '--output', tmp_path, *options, **kwargs)


@pytest.fixture
def steps(monkeypatch):
    """(epoch, step) of every training step; `steps.stop_at` is the one in which SIGTERM comes."""
    class Steps(list):
        stop_at = None
    original, seen = epoch_of_training.check_finite, Steps()

    def check(means, epoch, step):
        original(means, epoch, step)
        seen.append((epoch, step))
        if (epoch, step) == seen.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(epoch_of_training, 'check_finite', check)
    return seen


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_and_validation(workers, run, steps, tmp_path):
    """48 images are 6 steps of 8, whoever reads them."""
    code, out, err = run(
        '--experiment', 'x', '-j', workers, '--icasc-start-epoch', 0.5, '--grad-accum-steps', 4, drawn=True)
    assert code == 0 and not err, err
    assert steps == [(epoch, step) for epoch in range(2) for step in range(6)]
    assert '48 + 1' in out and 'x/attention.png' in out and 'not drawn' not in out
    results = json.loads((tmp_path / 'x' / 'results.json').read_text())
    last, model = results['last'], results['model']
    assert (model['val_images'], model['attention_images']) == (17, 6)
    assert all(np.isfinite(last[f'train_loss_{name}']) for name in ('cls', 'as_inner', 'as_last', 'ac'))
    # Every image of the 17 counts once: the accuracy is a multiple of 1/17.
    assert last['eval_top1'] * 17 / 100 == pytest.approx(round(last['eval_top1'] * 17 / 100), abs=1e-3)
    assert 0 <= last['eval_overlap_last'] <= 1


@pytest.mark.parametrize('workers', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(workers, run, steps, tmp_path):
    options = ['-j', workers, '--sched-on-updates', '--icasc-start-epoch', 0.5, '--icasc-ramp-epochs', 1]
    assert run(*options, '--experiment', 'whole')[0] == 0
    steps.stop_at = (1, 2)
    assert run(*options, '--experiment', 'cut')[0] == 128 + signal.SIGTERM
    steps.stop_at = None
    code, out, _ = run('--experiment', 'cut', '--resume', 'auto')
    assert code == 0 and 'resumed after epoch 1' in out
    whole, cut = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'cut'))
    assert all(torch.equal(value, cut['state_dict'][name]) for name, value in whole['state_dict'].items())
    whole, cut = (list(csv.DictReader(open(tmp_path / name / 'summary.csv'))) for name in ('whole', 'cut'))
    assert [row['train_loss'] for row in whole] == [row['train_loss'] for row in cut]


def loaders_of(shards, *options, rank=0, world_size=1):
    """The stream that is trained on, and the loaders of train_timm.py: training, validation, attention."""
    args = parse_args(['--data-dir', str(shards), *TINY, '-j', '0', '--no-aug', *options])
    args.distributed, args.world_size, args.rank = world_size > 1, world_size, rank
    train, val, _ = set_up_data(args)
    config = {
        'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
        'crop_pct': 1., 'crop_mode': 'center'}
    return train, *set_up_loaders(args, config, train, val, torch.device('cpu'))[:3]


def read(shards, epochs, rank=0, world_size=1):
    """Targets of each epoch, batch by batch, and of the validation images, as train_timm.py reads them."""
    train, loader, loader_val, _ = loaders_of(
        shards, '--icasc-eval-images', '0', rank=rank, world_size=world_size)
    batches = []
    for epoch in range(epochs):
        begin_epoch(train, epoch)
        batches.append([target.tolist() for _, target in loader])
        assert len(batches[-1]) == len(loader)
    return batches, [target.tolist() for _, target in loader_val]


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_the_maps_of_the_first_images_are_measured_whoever_reads_them(workers, shards):
    """Two processes gave six images each, the first ones of either shard, and fewer where a shard has fewer."""
    *_, loader = loaders_of(shards, '-j', str(workers), '--icasc-eval-images', '12')
    first = [target for _, target in create_dataset('wds/digits', str(shards), 'validation')][:12]
    assert [int(target) for _, targets in loader for target in targets] == first


def test_each_epoch_has_an_order_of_its_own_that_follows_from_its_number(shards):
    (first, second), _ = read(shards, 2)
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, []))
    assert read(shards, 2)[0] == [first, second]


def read_in_process(rank, folder):
    (folder / f'{rank}.json').write_text(json.dumps(read(folder / 'shards', 3, rank, 2)))


def test_two_processes_do_the_same_number_of_steps(shards, tmp_path):
    """Though their shards are of different lengths: one that had fewer would leave the other waiting."""
    (tmp_path / 'shards').symlink_to(shards)
    in_two_processes(read_in_process, tmp_path)
    (one, one_val), (other, other_val) = (json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2))
    assert [len(epoch) for epoch in one] == [len(epoch) for epoch in other] == [3, 3, 3]
    assert one != other and len(one_val) == len(other_val)


BAD_INPUT = {
    'no folder': (['--data-dir', ''], '--data-dir is missing'),
    'images on the device': (['--resident-data', '--no-aug'], '--resident-data keeps all images in memory'),
    'split': (['--train-split', 'dev'], "Cannot read split 'dev' of data set 'wds/digits'"),
    'processes': (['-j', 8], '--train-split train has 4 shard(s) for 8 loading processes (--workers 8): use fewer'),
    'missing shard': (['--train-split', 'digits-train-{0..4}.tar|60'], "no shard 'digits-train-4.tar'"),
}


@pytest.mark.parametrize('options, message', BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_one_clear_line_and_exit_code_2(options, message, run):
    code, _, err = run('-j', 0, *options)
    assert code == 2 and message in err
    assert len(err.strip().splitlines()) == 1 and 'Traceback' not in err


def test_the_number_of_classes_is_not_in_the_shards(run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'TINY', [o for o in TINY if o not in ('--num-classes', '10')])
    code, _, err = run('-j', 0)
    assert code == 2 and "--num-classes is missing: data set 'wds/digits' does not tell its classes" in err


@pytest.mark.parametrize('dataset, package', [
    ('wds/digits', 'webdataset'), ('hfds/mnist', 'datasets'), ('hfids/mnist', 'datasets')])
def test_a_missing_package_is_named(dataset, package, run, monkeypatch):
    monkeypatch.setattr(stream, 'find_spec', lambda name: None)
    code, out, err = run('--dataset', dataset)
    assert code == 2 and not out
    assert err == f'train_timm.py: error: --dataset {dataset} needs another package: pip install {package}\n'


def test_shards_without_a_readable_image(run, tmp_path):
    (tmp_path / 'broken').mkdir()
    count = sum(map(sum, SHARDS.values()))
    code, _, err = run('-j', 0, data=write_shards(tmp_path / 'broken', [b'no image'] * count, [0] * count))
    assert code == 2 and err.strip().splitlines()[-1].startswith("train_timm.py: error: --train-split train of '")
    assert 'has no image that can be read' in err and 'Traceback' not in err


def test_evaluation_needs_an_index(run, tmp_path, capsys):
    assert run('--experiment', 'x', '-j', 0, '--epochs', 1)[0] == 0
    assert main(['eval', str(tmp_path / 'x')]) == 2
    assert "data set 'wds/digits' is a stream; evaluation needs one that can be indexed" in capsys.readouterr().err


def test_sixteen_bits_and_an_image_that_cannot_be_read(tmp_path, caplog):
    """It is left out, with a warning, and no other one takes its place."""
    def deep(level):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4), 257 * level, 'uint16')).save(file, 'PNG')
        return file.getvalue()

    count = sum(map(sum, SHARDS.values()))
    images = [deep(level) for level in range(count)]
    images[-2] = b'no image'
    stream = create_dataset('wds/digits', str(write_shards(tmp_path, images, range(count))), 'validation')
    read = [(int(np.array(image).max()), target) for image, target in stream]
    assert read == [(level, level) for level in range(count - 17, count) if level != count - 2]
    name = f"the sample '{count - 2:05d}' of the shard '{tmp_path / 'digits-validation-1.tar'}': cannot identify image"
    assert name in caplog.text


def test_a_target_that_cannot_be_read(tmp_path, caplog):
    count = sum(map(sum, SHARDS.values()))
    targets = ['cat' if i == count - 17 else i % 10 for i in range(count)]
    shards = write_shards(tmp_path, [as_png(np.zeros((8, 8)))] * count, targets)
    assert len(list(create_dataset('wds/digits', str(shards), 'validation'))) == 16
    assert f"'{count - 17:05d}' of the shard '{tmp_path / 'digits-validation-0.tar'}': invalid literal" in caplog.text


def test_levels_of_no_known_scale_end_the_run(tmp_path):
    """They are no damage of one file."""
    file = io.BytesIO()
    Image.fromarray(np.array([[0, .5]], 'float32')).save(file, 'TIFF')
    count = sum(map(sum, SHARDS.values()))
    shards = write_shards(tmp_path, [file.getvalue()] * count, [0] * count)
    name = f"the image '{count - 17:05d}' of the shard '{tmp_path / 'digits-validation-0.tar'}': its levels are"
    with pytest.raises(DataError, match=re.escape(name)):
        next(iter(create_dataset('wds/digits', str(shards), 'validation')))
