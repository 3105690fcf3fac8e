"""`timm-icasc eval` from the command line to the files, on small models with random weights."""
import argparse
import csv
import errno
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from helpers.hub_fixtures import save_noise
from helpers.runs import make_cub, make_packed_voc, make_run
from PIL import Image

from timm_icasc import ICASCConfig, attention_maps, icasc_forward, resolve_layers
from timm_icasc.cli import main
from timm_icasc.data import (
    DigitsDataset,
    create_dataset,
    few_of_each_class,
    fingerprint,
    image_name,
)
from timm_icasc.evaluation import restore
from timm_icasc.evaluation.checkpoint import load_checkpoint
from timm_icasc.evaluation.faithfulness import blurred, highest
from timm_icasc.evaluation.image_records import load_records, save_records
from timm_icasc.evaluation.options import default_options
from timm_icasc.evaluation.restore import _in_chans
from timm_icasc.evaluation.side_by_side import load_checkpoints
from timm_icasc.losses import attention_overlap


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'run')


def evaluate(*arguments):
    return main(['eval', *map(str, arguments)])


def read(folder, name='eval.json'):
    return json.loads((folder / 'eval' / name).read_text())


def test_measures_of_a_run_are_those_of_its_model(run, capsys):
    assert evaluate(run, '--images', 30) == 0
    measures = read(run)['measures']
    model = timm.create_model('resnet8_cifar', num_classes=10).eval()
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    dataset = DigitsDataset('validation')
    chosen = [i * 450 // 30 for i in range(30)]
    mean, std = model.pretrained_cfg['mean'], model.pretrained_cfg['std']
    images = torch.stack([
        (torch.tensor(np.array(dataset[i][0])).permute(2, 0, 1) / 255 - torch.tensor(mean).view(3, 1, 1))
        / torch.tensor(std).view(3, 1, 1) for i in chosen])
    targets = torch.tensor([dataset[i][1] for i in chosen])
    output = icasc_forward(model, images, targets, resolve_layers(model), ICASCConfig(), inference=True)
    assert measures['top1'] == pytest.approx(100 * (output.logits.argmax(1) == targets).float().mean().item())
    assert measures['as_last'] == pytest.approx(output.terms['as_last'].mean().item(), rel=1e-4)
    overlap = attention_overlap(output.maps['target_inner'], output.maps['confused_inner'])
    assert measures['overlap_inner'] == pytest.approx(overlap.nanmean().item(), rel=1e-4)
    rows = list(csv.DictReader(open(run / 'eval' / 'images.csv')))
    assert [int(row['index']) for row in rows] == chosen
    probabilities = output.logits.softmax(1)[range(30), targets]
    assert [float(row['target_probability']) for row in rows] == pytest.approx(probabilities.tolist(), rel=1e-3)
    text = capsys.readouterr().out
    assert 'top-1 %' in text and 'KS margin' in text and 'by class' in text


def voc_run(folder, seed=0):
    """A run on coloured squares, the data beside it."""
    data = folder.parent / 'voc'
    if not data.exists():
        make_packed_voc(data)
    return make_run(folder, num_classes=3, dataset='voc2007-packed', data_dir=str(data), val_split='val', seed=seed)


@pytest.mark.parametrize('make, sizes', [(make_run, (30, 7)), (voc_run, (6, 1))])
def test_the_same_numbers_each_time_and_for_every_batch_size(make, sizes, tmp_path):
    run = make(tmp_path / 'run')
    for name, size in (('first', sizes[0]), ('second', sizes[0]), ('third', sizes[1])):
        assert evaluate(
            run, '--images', 30, '--batch-size', size, '--output', tmp_path / name,
            *['--faithfulness'] * (make is voc_run)) == 0
    first, second, third = (json.loads((tmp_path / name / 'run' / 'eval.json').read_text())['measures']
                            for name in ('first', 'second', 'third'))
    assert ('pointing' in first) == (make is voc_run)
    assert first == second
    assert first == pytest.approx(third, rel=1e-4)
    assert (tmp_path / 'first' / 'summary.csv').read_text().startswith('checkpoint,')


FAITHFULNESS = {
    'own_drop', 'other_drop', 'class_specificity', 'deletion', 'insertion', 'average_drop', 'average_increase'}


@pytest.mark.parametrize('layer', ['last', 'inner'])
def test_faithfulness_of_several_classes_by_loops(layer, tmp_path, capsys):
    """Each present class of each image by itself: its map's quarter blurred, the scores before and after."""
    run = voc_run(tmp_path / 'run')
    assert evaluate(run, '--faithfulness', '--layer', layer, '--attention', 'grad_cam', '--batch-size', 4) == 0
    rows = list(csv.DictReader(open(run / 'eval' / 'images.csv')))
    checkpoint = load_checkpoint(str(run), default_options())
    found = {name: [] for name in ('own_drop', 'other_drop', 'class_specificity', 'silent_maps')}
    several = 0
    for row in rows:
        image, target = checkpoint.dataset[int(row['index'])]
        present, values = (target > 0).nonzero().flatten().tolist(), {name: [] for name in found}
        several += len(present) > 1
        for c in present:
            heat = attention_maps(checkpoint.model, image[None], [c], method='grad_cam', layer=layer)[0]
            values['silent_maps'].append(float(heat.max() == 0))
            if heat.max() == 0:
                continue
            ranked = F.interpolate(heat[None], (32, 32), mode='bilinear')[0, 0].flatten().argsort(
                descending=True, stable=True)[:256]
            changed, blur = image.clone().flatten(1), blurred(image[None])[0].flatten(1)
            changed[:, ranked] = blur[:, ranked]
            with torch.no_grad():
                drop = (checkpoint.model(image[None]) - checkpoint.model(changed.view(1, 3, 32, 32)))[0]
            values['own_drop'].append(drop[c].item())
            if rest := [drop[d].item() for d in present if d != c]:
                values['other_drop'].append(sum(rest) / len(rest))
                values['class_specificity'].append(drop[c].item() - sum(rest) / len(rest))
        for name, column in values.items():
            found[name].append(np.mean(column) if column else np.nan)
            assert float(row[name]) == pytest.approx(found[name][-1], rel=1e-3, abs=1e-5, nan_ok=True)
        assert (row['other_drop'] == 'nan') == (len(values['other_drop']) == 0)
    assert 0 < several < len(rows)
    measures, text = read(run)['measures'], capsys.readouterr().out
    for name, column in found.items():
        assert measures[name] == pytest.approx(np.nanmean(column), rel=1e-3, abs=1e-5)
    random = {f'{name}_random' for name in ('own_drop', 'other_drop', 'class_specificity')}
    assert FAITHFULNESS | random <= set(measures)
    printed = [line.split('  ')[0] for line in text.splitlines()]
    assert printed.index('own drop (logit)') < printed.index('silent maps') < printed.index('pointing game')


def test_networks_of_other_outputs_are_not_compared(run, tmp_path, capsys):
    """It was said after both were measured."""
    other = make_run(tmp_path / 'other', num_classes=12)
    assert evaluate('--compare', run, other, '--images', 4) == 2
    assert "'run' has 10 class scores, 'other' 12, and probabilities of one among more" in capsys.readouterr().err
    assert not (run / 'eval').exists() and not (other / 'eval').exists()


def test_faithfulness_of_one_class_is_told_from_its_rival_and_compared(run, tmp_path, capsys):
    other = make_run(tmp_path / 'other', seed=1)
    assert evaluate('--compare', run, other, '--faithfulness', '--images', 4, '--resamples', 20) == 0
    result = read(other, 'comparison.json')['measures']
    assert FAITHFULNESS <= set(result) and all(result[name]['low'] <= result[name]['high'] for name in FAITHFULNESS)
    checkpoint = load_checkpoint(str(run), default_options())
    for row in csv.DictReader(open(run / 'eval' / 'images.csv')):
        image, target = checkpoint.dataset[int(row['index'])]
        with torch.no_grad():
            logits = checkpoint.model(image[None])[0]
        rival = max((c for c in range(10) if c != target), key=lambda c: float(logits[c]))
        heat = attention_maps(checkpoint.model, image[None], [target], method='ach')[0]
        mask = highest(heat, (32, 32))
        with torch.no_grad():
            drop = logits - checkpoint.model(torch.where(mask, blurred(image[None]), image[None]))[0]
        assert float(row['own_drop']) == pytest.approx(drop[target].item(), rel=1e-3, abs=1e-5)
        assert float(row['other_drop']) == pytest.approx(drop[rival].item(), rel=1e-3, abs=1e-5)


def test_what_is_not_asked_for_is_not_measured(run):
    assert evaluate(run, '--images', 4) == 0
    assert not (FAITHFULNESS | {'silent_maps', 'flip_iou'}) & set(read(run)['measures'])


def test_ten_crops(run):
    """Without a margin the ten crops are five copies of the image and of its mirror image."""
    assert evaluate(run, '--images', 20, '--ten-crop') == 0
    measures = read(run)['measures']
    assert evaluate(run, '--images', 20, '--ten-crop', '--crop-pct', 0.8) == 0
    cropped = read(run)['measures']
    assert 'top1_ten_crop' in measures and measures['top5_ten_crop'] >= measures['top1_ten_crop']
    assert cropped['overlap_last'] != measures['overlap_last']
    model = timm.create_model('resnet8_cifar', num_classes=10).eval()
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    dataset, hits = DigitsDataset('validation'), 0
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    for i in [i * 450 // 20 for i in range(20)]:
        image = dataset[i][0].resize((40, 40), Image.Resampling.BILINEAR)
        assert model.pretrained_cfg['interpolation'] == 'bilinear'
        crops = [torch.tensor(np.array(image.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1) / 255
                 for left, top in ((0, 0), (8, 0), (0, 8), (8, 8), (4, 4))]
        crops = torch.stack(crops + [crop.flip(2) for crop in crops])
        hits += int(model((crops - mean) / std).softmax(1).sum(0).argmax() == dataset[i][1])
    assert cropped['top1_ten_crop'] == pytest.approx(100 * hits / 20)


def test_two_runs_compared(run, tmp_path, capsys):
    other = make_run(tmp_path / 'other', seed=1)
    assert evaluate('--compare', run, other, '--images', 30, '--resamples', 50) == 0
    text = capsys.readouterr().out
    assert 'other - run: 30 images, 50 paired bootstrap resamples' in text
    result = read(other, 'comparison.json')['measures']
    a, b = read(run)['measures'], read(other)['measures']
    assert result['top1']['images'] == 30 and a['zero_maps'] == b['zero_maps'] == 0
    for name, row in result.items():
        assert row['difference'] == pytest.approx(b[name] - a[name]) and row['low'] <= row['high']
    header = (other / 'eval' / 'comparison.csv').read_text().splitlines()[0]
    assert header == 'measure,a,b,difference,low,high,share_above,images'


def test_the_order_of_a_comparison_is_that_of_its_option(run, tmp_path, capsys):
    other = make_run(tmp_path / 'other', seed=1)
    assert evaluate(other, '--compare', run, other, '--images', 10, '--resamples', 5) == 0
    assert 'other - run: 10 images' in capsys.readouterr().out


def test_a_compared_run_is_the_same_however_its_path_is_written(run, tmp_path, capsys, monkeypatch):
    """B - A of the two that were named, whichever runs are listed beside them."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate('ab'):
        make_run(tmp_path / name, seed=seed + 1)
    for listed, first, second in (
            (['a', 'b', 'run'], 'a/', './b'), (['.'], 'b', tmp_path / 'a'), (['b', 'a/'], 'run/', 'b')):
        assert evaluate(*listed, '--compare', first, second, '--images', 4, '--resamples', 2) == 0
        said = capsys.readouterr().out
        names = [str(path).strip('./').rpartition('/')[2] for path in (first, second)]
        assert f'{names[1]} - {names[0]}: 4 images' in said
        assert all(said.count(f'\n{name}: ') + said.startswith(f'{name}: ') <= 1 for name in ('a', 'b', 'run'))
        noted = read(tmp_path / names[1], 'comparison.json')
        assert [noted[key].split('/')[-2] for key in 'ab'] == names
    assert evaluate('--compare', 'a', 'a/') == 2
    assert '--compare needs two different checkpoints' in capsys.readouterr().err


@pytest.mark.parametrize('named', [['RUN'], ['--compare', 'RUN', 'RUN']])
def test_the_table_of_a_training_is_not_written_over(named, run, capsys, monkeypatch):
    """Both are called summary.csv; known before a checkpoint is loaded."""
    monkeypatch.setattr('timm_icasc.cli.eval.load_checkpoints', pytest.fail)
    (run / 'summary.csv').write_text('epoch,eval_top1\n0,10.0\n')
    assert evaluate(*[str(run) if name == 'RUN' else name for name in named], '--output', run) == 2
    said = capsys.readouterr().err
    assert '--output: ' in said and 'is the folder of a run' in said
    assert (run / 'summary.csv').read_text() == 'epoch,eval_top1\n0,10.0\n'


def test_the_folder_that_one_is_in_has_its_name(run, tmp_path, capsys, monkeypatch):
    other = make_run(tmp_path / 'other' / 'run', seed=1)
    monkeypatch.chdir(run)
    assert evaluate('.', '--images', 2) == 0 and read(run)['label'] == 'run'
    labels = [one.label for one in load_checkpoints(['.', '../other/run'], default_options())]
    assert labels == [f'{tmp_path.name}-run', 'other-run'], str(other)
    assert load_checkpoint('last.pth.tar', default_options()).label == 'run'


def read_only(path, monkeypatch):
    """From now on no file without a name can be made in the folder, as on a disk that is read only."""
    original = tempfile.TemporaryFile

    def make(*args, dir=None, **kwargs):
        if dir is not None and Path(dir) == path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, 'TemporaryFile', make)


@pytest.mark.parametrize('written_before', [False, True])
def test_a_run_that_cannot_be_written_to_is_refused_before_the_work(written_before, run, tmp_path, capsys, monkeypatch):
    if written_before:
        (run / 'eval').mkdir()
    place = run / 'eval' if written_before else run
    read_only(place, monkeypatch)
    assert evaluate(run, '--images', 5) == 2
    printed = capsys.readouterr()
    assert f"--output: cannot write to '{run / 'eval'}': Read-only file system; name another." in printed.err
    assert not printed.out
    assert evaluate(run, '--images', 5, '--output', tmp_path / 'other') == 0


def test_checkpoints_of_one_folder_do_not_overwrite_each_other(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    other = timm.create_model('resnet8_cifar', num_classes=10)
    torch.save({**torch.load(run / 'last.pth.tar'), 'state_dict': other.state_dict()}, run / 'checkpoint-0.pth.tar')
    assert evaluate('--compare', run, run / 'checkpoint-0.pth.tar', '--images', 6, '--resamples', 2) == 0
    torch.save(other.state_dict(), tmp_path / 'one.pth')
    torch.save(timm.create_model('resnet8_cifar', num_classes=10).state_dict(), tmp_path / 'two.pth')
    bare = ['--model', 'resnet8_cifar', '--dataset', 'digits', '--images', 6, '-j', 0]
    assert evaluate('one.pth', 'two.pth', *bare) == 0
    for folder, count in ((run / 'eval', 2), (tmp_path / 'eval', 2)):
        contents = [json.loads(path.read_text()) for path in folder.glob('*/eval.json')]
        assert len({content['checkpoint'] for content in contents}) == len(contents) == count
        assert len({content['measures']['overlap_last'] for content in contents}) == count
        assert not (folder / 'eval.json').exists()


def test_weights_of_no_run_do_not_overwrite_those_of_the_last_call(tmp_path, monkeypatch):
    """Neither other files, nor those of the same name in another folder, nor published ones."""
    monkeypatch.chdir(tmp_path)
    given = ['--dataset', 'digits', '--images', 6, '-j', 0]
    for seed, folder in enumerate('ab'):
        torch.manual_seed(seed)
        model = timm.create_model('resnet8_cifar', num_classes=10)
        timm.models.save_for_hf(model, tmp_path / f'hub_{folder}', model_config={'num_classes': 10})
        (tmp_path / folder).mkdir()
        torch.save(model.state_dict(), tmp_path / folder / 'model.pth')
        assert evaluate(f'{folder}/model.pth', '--model', 'resnet8_cifar', *given) == 0
        assert evaluate(f'local-dir:hub_{folder}', *given) == 0
    assert sorted(path.parent.name for path in (tmp_path / 'eval').glob('*/eval.json')) == [
        'a-model.pth', 'b-model.pth', 'local-dir_hub_a', 'local-dir_hub_b']
    assert evaluate('--compare', 'eval/a-model.pth', 'eval/b-model.pth', '--resamples', 5) == 0


@pytest.mark.parametrize('make', [make_run, voc_run])
def test_weights_that_training_has_broken_are_not_measured(make, tmp_path, capsys):
    """Not a class would be above the true one: every image would count as right."""
    run = make(tmp_path / 'run')
    checkpoint = torch.load(run / 'last.pth.tar')
    checkpoint['state_dict']['fc.bias'][1] = torch.nan
    torch.save(checkpoint, run / 'last.pth.tar')
    for options in ([], ['--robustness', '--faithfulness']):
        assert evaluate(run, *options) == 2
        said = capsys.readouterr().err
        assert "last.pth.tar' gives class scores that are NaN or infinite, for" in said and 'too high a rate' in said
    assert not (run / 'eval').exists()
    for command in (['ks'], ['classes'], ['layers'], ['classes', '--choose', 'wrong']):
        assert main(['figure', *command, str(run), '--output', str(tmp_path / 'figure.png')]) == 2
        assert 'gives class scores that are NaN or infinite' in capsys.readouterr().err
    checkpoint['state_dict']['fc.bias'][1] = -torch.inf
    torch.save(checkpoint, run / 'last.pth.tar')
    assert evaluate(run, '--images', 6) == 0, 'a class that is switched off'


def test_a_run_without_a_finished_epoch_is_told(tmp_path, recwarn):
    """As a full disk leaves it behind, whose numbers would be those of random weights."""
    run = make_run(tmp_path / 'run')
    checkpoint = torch.load(run / 'last.pth.tar')
    for epoch, told in ((0, False), (-1, True)):
        torch.save({**checkpoint, 'epoch': epoch}, run / 'last.pth.tar')
        assert evaluate(run, '--images', 6) == 0
        said = [str(warning.message) for warning in recwarn]
        assert any('has finished no epoch yet: these are the weights that it began' in line for line in said) == told


def test_comparison_of_earlier_evaluations(tmp_path, capsys):
    runs = [voc_run(tmp_path / f'run{i}', seed=i) for i in range(2)]
    assert evaluate('--compare', *runs, '--resamples', 10, '--ten-crop') == 0
    first = read(runs[1], 'comparison.json')
    assert {'mAP', 'mAP_ten_crop', 'AUC_ten_crop', 'pointing_both'} <= set(first['measures'])
    (runs[1] / 'last.pth.tar').unlink()
    assert evaluate('--compare', *[run / 'eval' for run in runs], '--resamples', 10) == 0
    assert read(runs[1], 'comparison.json')['measures'] == first['measures']
    assert 'run1 - run0: 6 images' in capsys.readouterr().out
    for late in (['--images', 3], ['--attention', 'grad_cam', '--per-class']):
        assert evaluate('--compare', *[run / 'eval' for run in runs], *late) == 2
        assert f'leave out {late[0]}' in capsys.readouterr().err
    assert evaluate(runs[0], '--attention', 'grad_cam', '--layer', 'inner') == 0
    assert evaluate('--compare', *[run / 'eval' for run in runs]) == 2
    assert 'different maps: --attention grad_cam and ach, --layer inner and last' in capsys.readouterr().err
    (runs[0] / 'eval' / 'records.npz').write_bytes(b'')
    assert evaluate('--compare', *[run / 'eval' for run in runs]) == 2
    assert 'holds no records' in capsys.readouterr().err


def test_earlier_evaluations_of_one_name_are_told_apart(tmp_path, capsys):
    """The same name of a folder for each seed: both stood in one column, which was that of the second."""
    runs = [voc_run(tmp_path / f'seed{i}' / 'run', seed=i) for i in range(2)]
    for run in runs:
        assert evaluate(run) == 0
    capsys.readouterr()
    assert evaluate('--compare', *[run / 'eval' for run in runs], '--resamples', 10) == 0
    out = capsys.readouterr().out
    assert 'seed1-run - seed0-run: 6 images' in out
    measures = read(runs[1], 'comparison.json')['measures']['mAP']
    line, = (line.split() for line in out.partition(' - ')[2].splitlines() if line.startswith('mAP % (VOC 2010'))
    assert line[4:6] == [f"{measures[name]:.2f}" for name in 'ab']


def test_a_comparison_on_different_data_is_refused_before_anything_is_measured(run, tmp_path, capsys):
    other = voc_run(tmp_path / 'other')
    assert evaluate('--compare', run, other) == 2
    assert "'run' and 'other' have different data sets" in capsys.readouterr().err
    assert not (run / 'eval').exists() and not (other / 'eval').exists()


def test_other_images_of_the_same_names_are_not_compared(tmp_path, capsys):
    """The folders of two studies have their images by the same names; the numbers of each stay right."""
    runs = []
    for i, name in enumerate(('colour', 'grey')):
        data = save_noise(tmp_path / name, train=1, val=2)
        for file in data.rglob('*.png') if i else ():
            Image.open(file).convert('L').convert('RGB').save(file)
        runs.append(make_run(tmp_path / f'run{i}', num_classes=3, dataset='', data_dir=str(data), val_split='val'))
    assert evaluate('--compare', *runs) == 2
    assert "'run0' and 'run1' have different images: '" in capsys.readouterr().err
    assert not (runs[0] / 'eval').exists(), 'refused before the work'
    assert evaluate(*runs) == 0 and evaluate('--compare', *[run / 'eval' for run in runs]) == 2
    assert 'were evaluated on images of the same names, 6 of 6 with other content' in capsys.readouterr().err
    assert evaluate('--compare', *runs, '--data-dir', tmp_path / 'grey', '--resamples', 5) == 0


def test_images_that_were_prepared_in_another_way_are_told(tmp_path, capsys, recwarn):
    runs = [make_run(tmp_path / f'run{i}') for i in range(2)]
    assert evaluate(runs[0], '--images', 6) == 0 and evaluate(runs[1], '--images', 6, '--img-size', 40) == 0
    assert evaluate('--compare', *[run / 'eval' for run in runs], '--resamples', 5) == 0
    told = [str(w.message) for w in recwarn if 'in other ways' in str(w.message)]
    assert len(told) == 1 and '(input_size [3, 32, 32] and [3, 40, 40])' in told[0]


def test_an_interval_without_a_width_shows_nothing(run, tmp_path, capsys):
    other = make_run(tmp_path / 'other', seed=1)
    assert evaluate('--compare', run, other, '--images', 1) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('overlap last')]
    assert len(lines) == 2 and not lines[1].rstrip().endswith('*')


def test_the_split_that_a_run_was_trained_on_is_the_images_that_it_drew(tmp_path, capsys):
    """So that their accuracy is that of the training; other splits are whole."""
    runs = [make_run(tmp_path / f'run{seed}', limit_train=3, seed=seed) for seed in range(2)]
    files = {}
    for run in runs:
        assert evaluate(run, '--val-split', 'train') == 0
        records = load_records(run / 'eval' / 'records.npz')
        assert np.bincount(records.targets, minlength=10).tolist() == [3] * 10
        dataset = DigitsDataset('train')
        expected = few_of_each_class(dataset, 3, int(run.name[-1])).indices
        assert records.files == [image_name(dataset, i) for i in expected]
        files[run] = expected
        assert evaluate(run, '--val-split', 'validation') == 0 and read(run)['images'] == 450
    assert files[runs[0]] != files[runs[1]]
    capsys.readouterr()
    assert evaluate('--compare', *runs, '--val-split', 'train') == 2
    assert "'run0' and 'run1' were trained on different images" in capsys.readouterr().err


def test_maps_of_other_layers_of_one_network_are_not_compared(tmp_path, capsys):
    """A run whose options name its layers, and a baseline without ICASC, which names none."""
    runs = [voc_run(tmp_path / f'run{i}', seed=i) for i in range(2)]
    options = yaml.safe_load((runs[1] / 'args.yaml').read_text())
    (runs[1] / 'args.yaml').write_text(yaml.safe_dump({**options, 'icasc_layers': ['layer1', 'layer2']}))
    assert evaluate('--compare', *runs) == 2
    said = capsys.readouterr().err
    assert "'run0' and 'run1' have different maps: --layers layer2 layer3 and layer1 layer2. Evaluate both" in said
    assert not (runs[0] / 'eval').exists() and not (runs[1] / 'eval').exists()
    assert evaluate(*runs) == 0 and evaluate('--compare', *[run / 'eval' for run in runs]) == 2
    assert 'have different maps: --layers layer2 layer3' in capsys.readouterr().err
    assert evaluate('--compare', *runs, '--layers', 'layer1', 'layer3', '--resamples', 5) == 0


def test_ten_crops_without_a_crop_are_refused_before_the_work(run, monkeypatch, capsys):
    monkeypatch.setattr('timm_icasc.evaluation.collect.make_loader', lambda *_: pytest.fail('images are measured'))
    assert evaluate(run, '--ten-crop', '--crop-mode', 'border') == 2
    assert '--ten-crop needs the crop mode center or squash' in capsys.readouterr().err


@pytest.mark.parametrize('names, message', [
    (['red', 'blue', 'green'], "class 1 is 'green' in 'run0', and 'blue' in 'run1'"),
    (['red', 'lime', 'blue'], "class 1 is 'green' in 'run0', and 'lime' in 'run1'")])
def test_earlier_evaluations_of_other_classes_are_not_compared(names, message, tmp_path, capsys):
    runs = [voc_run(tmp_path / f'run{i}', seed=i) for i in range(2)]
    assert evaluate(*runs) == 0
    file = runs[1] / 'eval' / 'records.npz'
    save_records(file, replace(load_records(file), names=names))
    assert evaluate('--compare', *[run / 'eval' for run in runs]) == 2
    assert message in capsys.readouterr().err and not (runs[1] / 'eval' / 'comparison.json').exists()


def test_tables_that_an_evaluation_does_not_write_are_not_those_of_an_earlier_one(run):
    (run / 'eval').mkdir()
    (run / 'eval' / 'pairs.csv').touch()
    assert evaluate(run, '--images', 4) == 0
    assert sorted(path.name for path in (run / 'eval').iterdir()) == [
        'classes.csv', 'eval.json', 'images.csv', 'records.npz']


def test_both_runs_of_a_comparison_are_found(tmp_path, capsys):
    for name in ('baseline', 'icasc'):
        make_run(tmp_path / 'both' / name)
    assert evaluate(tmp_path / 'both', '--images', 10) == 0
    assert capsys.readouterr().out.count('10 images of 32 x 32') == 2
    assert evaluate('--compare', tmp_path / 'both', tmp_path / 'both' / 'icasc') == 2
    assert 'holds 2 runs, name one' in capsys.readouterr().err


@pytest.mark.parametrize('options, size, corner', [
    ((), (45, 36), (6, 2)), (('--crop-mode', 'squash'), (36, 36), (2, 2))], ids=['center', 'squash'])
def test_boxes_of_one_class(options, size, corner, tmp_path):
    """CUB: the map of the bird's species against its box, after the resize, with its aspect or without, and the crop.

    Images of 50 x 40 are brought to `size`, and 32 x 32 are cut from it at `corner`.
    """
    run = make_run(tmp_path / 'run', num_classes=3, dataset='cub200', data_dir=str(make_cub(tmp_path / 'cub')))
    options = ('--crop-pct', 0.875, *options)
    assert evaluate(run, *options) == 0
    measures = read(run)['measures']
    model = timm.create_model('resnet8_cifar', num_classes=3).eval()
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    energies, areas = [], []
    for c, colour in enumerate(('red', 'green', 'blue')):
        for i in (0, 2):
            image = Image.open(tmp_path / 'cub' / 'images' / f'{c + 1:03d}.{colour}' / f'{i}.png')
            image = image.resize(size, Image.Resampling.BILINEAR).crop((*corner, corner[0] + 32, corner[1] + 32))
            x = (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
            maps = attention_maps(model, x[None], [c], method='ach')
            heat = F.interpolate(maps, (32, 32), mode='bilinear')[0, 0].numpy()
            scale_x, scale_y = size[0] / 50, size[1] / 40
            left, top = (5 + 3 * i) * scale_x - corner[0], (10 + c) * scale_y - corner[1]
            in_box = [(y, x) for y in range(32) for x in range(32)
                      if left <= x + 0.5 < left + 16 * scale_x and top <= y + 0.5 < top + 16 * scale_y]
            energies.append(sum(float(heat[y, x]) for y, x in in_box) / float(heat.sum()))
            areas.append(len(in_box) / 32 ** 2)
    assert measures['box_area'] == pytest.approx(np.mean(areas))
    assert measures['energy'] == pytest.approx(np.mean(energies), rel=1e-4)
    assert len(list(csv.DictReader(open(run / 'eval' / 'pairs.csv')))) == 6
    assert evaluate(run, *options, '--layer', 'inner') == 0
    inner = read(run)['measures']
    assert inner['energy'] != measures['energy'] and inner['overlap_last'] == measures['overlap_last']


def test_several_classes_per_image(tmp_path, capsys):
    run, data = voc_run(tmp_path / 'run'), tmp_path / 'voc'
    assert evaluate(run) == 0
    result = read(run)
    measures = result['measures']
    assert {'mAP', 'mAP_11point', 'mAP_sklearn', 'AUC', 'overlap_cooccurring', 'energy', 'pointing'} <= set(measures)
    assert 'top1' not in measures
    rows = list(csv.DictReader(open(run / 'eval' / 'images.csv')))
    pairs = list(csv.DictReader(open(run / 'eval' / 'pairs.csv')))
    assert len(rows) == 6 and sum(len(row['target'].split(';')) for row in rows) == sum(
        row['images'] for row in result['classes'])
    assert [row['file'] for row in rows] == [f'{i:06d}.webp' for i in (1, 2, 3, 5, 6, 7)]
    assert {p['file'] for p in pairs} == {row['file'] for row in rows}
    assert {p['class_name'] for p in pairs} == {'red', 'green', 'blue'}

    # The overlap of the maps of the two squares in one image, drawn on its own.
    model = timm.create_model('resnet8_cifar', num_classes=3).eval()
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    image = Image.open(data / 'images' / '000001.webp')
    image = image.resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
    x = (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    maps = attention_maps(model, x[None], [1, 2], method='ach')[0]
    assert rows[0]['target'] == 'green;blue'
    expected = attention_overlap(maps[:1], maps[1:]).item()
    assert float(rows[0]['overlap_cooccurring']) == pytest.approx(expected, rel=1e-3)


def test_a_bare_checkpoint_and_a_local_folder_of_the_hub(tmp_path):
    run = make_run(tmp_path / 'run')
    (tmp_path / 'bare.pth.tar').write_bytes((run / 'last.pth.tar').read_bytes())
    model = timm.create_model('resnet8_cifar', num_classes=10)
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    timm.models.save_for_hf(model, tmp_path / 'hub', model_config={'num_classes': 10})
    for source, options in ((tmp_path / 'bare.pth.tar', ['--model', 'resnet8_cifar']),
                            (f"local-dir:{tmp_path / 'hub'}", [])):
        assert evaluate(source, *options, '--dataset', 'digits', '--images', 10, '--batch-size', 5, '-j', 0,
                        '--output', tmp_path / 'out') == 0
    results = [json.loads(path.read_text())['measures'] for path in sorted((tmp_path / 'out').glob('*/eval.json'))]
    assert len(results) == 2 and results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_run_of_timms_own_script(tmp_path, monkeypatch, capsys):
    """Its args.yaml has options that this package has not; its checkpoint says how images are prepared."""
    run, own = make_run(tmp_path / 'run'), tmp_path / 'timms' / 'last.pth.tar'
    own.parent.mkdir()
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    checkpoint['args'] = argparse.Namespace(model='resnet8_cifar', mean=[0.25], lr=None, jsd_loss=False)
    torch.save(checkpoint, own)
    (own.parent / 'args.yaml').write_text('model: resnet8_cifar\namp_impl: native\njsd_loss: false\nlr: null\n')
    assert evaluate(own.parent, '--images', 2) == 2
    assert 'no args.yaml of timm-icasc train beside it: name its architecture with --model' in capsys.readouterr().err
    given = ['--model', 'resnet8_cifar', '--dataset', 'digits', '--images', 8, '-j', 0]
    monkeypatch.chdir(tmp_path)  # outside of a run's folder, it writes to the current one
    assert evaluate('--compare', own.parent, run, *given) == 0
    assert (tmp_path / 'eval' / 'timms' / 'eval.json').is_file()
    options = default_options()
    options.model, options.dataset = 'resnet8_cifar', 'digits'
    assert load_checkpoint(str(own), options).data_config['mean'] == (0.25, 0.25, 0.25)


@pytest.mark.parametrize('architecture', ['resnet8_cifar', 'vit_tiny_patch16_224'])
def test_a_grey_model_is_evaluated_in_grey_wherever_it_comes_from(architecture, tmp_path):
    torch.manual_seed(0)
    kwargs = {'img_size': 32} if architecture.startswith('vit') else {}
    model = timm.create_model(architecture, num_classes=10, in_chans=1, **kwargs)
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    timm.models.save_for_hf(model, tmp_path / 'hub', model_config={'num_classes': 10}, model_args=kwargs)
    size = ['--img-size', 32]
    for source, options in ((tmp_path / 'bare.pth', ['--model', architecture]), (f"local-dir:{tmp_path / 'hub'}", [])):
        assert evaluate(source, *options, *size, '--dataset', 'digits', '--images', 10, '-j', 0,
                        '--output', tmp_path / 'out') == 0
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / 'out').glob('*/eval.json'))]
    assert [result['input_size'] for result in results] == [[1, 32, 32]] * 2
    assert results[0]['measures'] == pytest.approx(results[1]['measures'], rel=1e-5)


@pytest.mark.parametrize('first', ['conv1', ('conv1', 'conv2'), (), None])
def test_the_channels_of_weights(first):
    """Whatever an architecture tells of its first convolution: a name, several, nothing."""
    weights = {'conv1.weight': torch.zeros(8, 1, 3, 3), 'conv2.weight': torch.zeros(8, 3, 3, 3)}
    assert _in_chans(weights, {'first_conv': first, 'input_size': (3, 32, 32)}) == (1 if first else 3)


def test_a_run_of_a_larger_machine(tmp_path, monkeypatch):
    """Torch would warn of more loading processes than cores."""
    run = make_run(tmp_path / 'run', workers=64)
    monkeypatch.setattr(restore, 'usable_cores', lambda: 2)
    options = default_options()
    assert load_checkpoint(str(run), options).args.workers == 2
    options.workers = 5
    assert load_checkpoint(str(run), options).args.workers == 5, 'as given'


@pytest.mark.parametrize('device', ['cuda', 'cuda:7', 'mps', 'cpu', None])
def test_a_run_of_a_machine_with_another_device(device, tmp_path):
    run = make_run(tmp_path / 'run', device=device)
    assert load_checkpoint(str(run), default_options()).device == torch.device('cpu')


def test_a_device_that_is_asked_for_is_not_replaced(run, capsys):
    assert evaluate(run, '--device', 'cuda:7') == 2
    assert "--device: cannot use 'cuda:7'" in capsys.readouterr().err


ANIMALS = ['ape', 'bee', 'cow']


def zoo_run(tmp_path, results=True):
    """A finished run on the classes ANIMALS; returns its folder and a function that makes other image folders."""
    def make_images(name, classes):
        for c, animal in enumerate(classes):
            folder = tmp_path / name / 'validation' / animal
            folder.mkdir(parents=True)
            for i in range(2):
                noise = np.random.default_rng(10 * ANIMALS.index(animal) + i if animal in ANIMALS else c)
                Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{animal}{i}.png')
        return tmp_path / name

    run = make_run(tmp_path / 'run', num_classes=3, dataset='', data_dir=str(make_images('zoo', ANIMALS)))
    content = json.loads((run / 'results.json').read_text())
    content.update({'model': {'label_names': ANIMALS}} if results else {})
    (run / 'results.json').write_text(json.dumps(content))
    return run, make_images


@pytest.mark.parametrize('workers', [0, 1])
def test_classes_of_another_folder_are_those_of_the_run_by_name(workers, tmp_path, capsys, recwarn):
    run, make_images = zoo_run(tmp_path)
    assert evaluate(run) == 0
    expected = {row['file']: row for row in csv.DictReader(open(run / 'eval' / 'images.csv'))}
    assert evaluate(run, '--data-dir', make_images('other', ['bee', 'cow']), '-j', workers) == 0
    rows = list(csv.DictReader(open(run / 'eval' / 'images.csv')))
    assert [row['target'] for row in rows] == ['bee', 'bee', 'cow', 'cow']
    for row in rows:
        assert row['target_probability'] == expected[row['file']]['target_probability']
    assert not any('as the first' in str(w.message) for w in recwarn)
    assert evaluate(run, '--data-dir', tmp_path / 'other', '--dataset', 'torch/image_folder', '-j', workers) == 0
    for row, again in zip(rows, csv.DictReader(open(run / 'eval' / 'images.csv')), strict=True):
        assert row['target_probability'] == again['target_probability']
    assert evaluate(run, '--data-dir', make_images('capitals', ['Bee', 'cow'])) == 2
    assert 'has the classes Bee, which' in capsys.readouterr().err
    other = make_images('third', ['bee', 'cow', 'zebra'])
    assert evaluate(run, '--data-dir', other) == 2
    error = capsys.readouterr().err
    assert 'has the classes zebra, which' in error and 'it knows ape, bee, cow' in error and '--class-map' in error
    (tmp_path / 'map.txt').write_text('zebra\nbee\ncow\n')
    assert evaluate(run, '--data-dir', other, '--class-map', tmp_path / 'map.txt') == 0
    assert {row['target'] for row in csv.DictReader(open(run / 'eval' / 'images.csv'))} == {'bee', 'cow', 'zebra'}


def test_a_class_map_of_the_names_that_a_run_knows_has_their_order(tmp_path):
    """It said that the classes are in another order than those of the network, which no map can."""
    run, _ = zoo_run(tmp_path)
    assert evaluate(run) == 0
    expected = (run / 'eval' / 'images.csv').read_text()
    (tmp_path / 'map.txt').write_text('cow\nape\nbee\n')
    assert evaluate(run, '--class-map', tmp_path / 'map.txt') == 0
    assert (run / 'eval' / 'images.csv').read_text() == expected


def test_a_checkpoint_that_has_left_its_run_keeps_classes_and_preparation(tmp_path):
    run, make_images = zoo_run(tmp_path)
    checkpoint, options = torch.load(run / 'last.pth.tar'), {'mean': [0.2] * 3, 'std': [0.4] * 3, 'crop_pct': 0.5}
    checkpoint['saver'] = {'class_names': ANIMALS}
    checkpoint['args'] = argparse.Namespace(model='resnet8_cifar', **options)
    torch.save(checkpoint, tmp_path / 'left.pth.tar')
    arguments = yaml.safe_load((run / 'args.yaml').read_text())
    (run / 'args.yaml').write_text(yaml.safe_dump({**arguments, **options}))
    other = make_images('other', ['cow', 'bee'])
    (other / 'validation.csv').write_text('image,label\nvalidation/cow/cow0.png,cow\nvalidation/bee/bee1.png,bee\n')
    (other / 'classes.txt').write_text('cow\nbee\nape\n')
    data = ['--data-dir', other, '--dataset', 'singlelabel', '-j', 0, '--val-split', 'validation']
    assert evaluate(run, *data) == 0
    assert evaluate(tmp_path / 'left.pth.tar', '--model', 'resnet8_cifar', *data, '--output', tmp_path / 'out') == 0
    expected, found = (
        list(csv.DictReader(open(path))) for path in (run / 'eval' / 'images.csv', *tmp_path.glob('out/*/images.csv')))
    assert found == expected and [row['target'] for row in found] == ['cow', 'bee']
    assert evaluate(tmp_path / 'left.pth.tar', '--model', 'resnet8_cifar', *data, '--crop-pct', 1,
                    '--output', tmp_path / 'given') == 0
    assert list(csv.DictReader(open(next(tmp_path.glob('given/*/images.csv'))))) != expected


@pytest.mark.parametrize('dataset, columns', [
    (None, {'input_key': 'crop', 'target_key': 'species'}), ('hfds/b', {})])
def test_columns_of_a_table_are_those_of_the_run(dataset, columns, tmp_path, monkeypatch):
    """Others were measured, without a word."""
    run = make_run(tmp_path / 'run', dataset='hfds/a', input_key='crop', target_key='species')
    seen = []

    def record(name, **options):
        seen.append({key: options[key] for key in ('input_key', 'target_key') if key in options})
        return DigitsDataset('val')
    monkeypatch.setattr(restore, 'create_dataset', record)
    load_checkpoint(str(run), argparse.Namespace(**{**vars(default_options()), 'dataset': dataset}))
    assert seen == [columns]


def test_other_images_than_those_of_the_run_are_told(tmp_path, monkeypatch, recwarn):
    """A relative path leads to those of another folder where the command is given elsewhere."""
    for place, seed in (('a', 0), ('b', 1)):
        save_noise(tmp_path / place / 'data', seed, validation=2)
    run = make_run(tmp_path / 'a' / 'run', num_classes=3, dataset='', data_dir='data')
    checkpoint = torch.load(run / 'last.pth.tar')
    images = create_dataset('', str(tmp_path / 'a' / 'data'), 'validation')
    checkpoint['saver'] = {'fingerprints': {'val': fingerprint(images)}}
    torch.save(checkpoint, run / 'last.pth.tar')
    monkeypatch.chdir(tmp_path / 'a')
    assert evaluate('run') == 0
    monkeypatch.chdir(tmp_path / 'b')
    assert not [w for w in recwarn if 'other images' in str(w.message)]
    with pytest.warns(UserWarning, match="'data' has other images than the run .* was validated on: name the folder"):
        assert evaluate('../a/run') == 0
    recwarn.clear()
    assert evaluate('../a/run', '--data-dir', 'data') == 0
    assert not [w for w in recwarn if 'other images' in str(w.message)], 'they are asked for'


def test_classes_of_a_published_model_are_known_by_name(tmp_path):
    run, make_images = zoo_run(tmp_path)
    assert evaluate(run) == 0
    expected = {row['file']: row for row in csv.DictReader(open(run / 'eval' / 'images.csv'))}
    model = timm.create_model('resnet8_cifar', num_classes=3)
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    timm.models.save_for_hf(model, tmp_path / 'hub', model_config={'num_classes': 3, 'label_names': ANIMALS})
    assert evaluate(f"local-dir:{tmp_path / 'hub'}", '--data-dir', make_images('other', ['bee', 'cow']), '-j', 0,
                    '--output', tmp_path / 'out') == 0
    for row in csv.DictReader(open(next((tmp_path / 'out').glob('*/images.csv')))):
        assert row['target_probability'] == expected[row['file']]['target_probability']


def test_a_run_that_has_no_class_names_says_so(tmp_path, recwarn):
    run, make_images = zoo_run(tmp_path, results=False)
    assert evaluate(run) == 0 and not any('class names' in str(w.message) for w in recwarn)
    with pytest.warns(UserWarning, match='has not noted down its class names'):
        assert evaluate(run, '--data-dir', make_images('other', ['bee', 'cow'])) == 0


def test_a_published_model_without_class_names_says_so(tmp_path):
    """Shared weights do not tell the classes of one's own images unless asked to: other folders passed for theirs."""
    _, make_images = zoo_run(tmp_path)
    model = timm.create_model('resnet8_cifar', num_classes=3)
    timm.models.save_for_hf(model, tmp_path / 'hub', model_config={'num_classes': 3})
    with pytest.warns(UserWarning, match='has not noted down its class names: those of the data set are taken'):
        assert evaluate(
            f"local-dir:{tmp_path / 'hub'}", '--data-dir', make_images('other', ['x', 'y', 'z']), '-j', 0,
            '--output', tmp_path / 'out') == 0


def test_folders_of_imagenet_are_known_to_a_network_of_as_many_classes(tmp_path, recwarn):
    """A few of its folders are not its first classes."""
    _, make_images = zoo_run(tmp_path)
    model = timm.create_model('resnet8_cifar', num_classes=1000)
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    folders = ['n02123045', 'n02099601']  # tabby, golden retriever
    assert evaluate(
        tmp_path / 'bare.pth', '--model', 'resnet8_cifar', '--data-dir', make_images('few', folders), '-j', 0,
        '--output', tmp_path / 'out') == 0
    assert set(load_records(next((tmp_path / 'out').glob('*/records.npz'))).targets) == {281, 207}
    assert not [w for w in recwarn if 'class names' in str(w.message)]


def test_labels_of_another_kind_than_those_trained_with_are_told(tmp_path):
    """Scores for a softmax are none for a sigmoid, and look well as such."""
    run = make_run(tmp_path / 'run', num_classes=3)
    (tmp_path / 'voc').mkdir()
    make_packed_voc(tmp_path / 'voc')
    with pytest.warns(UserWarning, match="'.*run' was trained on single-label images, these are multi-label"):
        assert evaluate(run, '--dataset', 'voc2007-packed', '--data-dir', tmp_path / 'voc', '--images', 4, '-j', 0) == 0


def test_a_class_map_is_not_asked_for_where_there_is_one(tmp_path, recwarn):
    """Of a network with more outputs than the map has classes."""
    run, make_images = zoo_run(tmp_path)
    model = timm.create_model('resnet8_cifar', num_classes=6)
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    (tmp_path / 'map.pkl').write_bytes(pickle.dumps({'ape': 4, 'bee': 1, 'cow': 4}))
    options = [
        tmp_path / 'bare.pth', '--model', 'resnet8_cifar', '--data-dir', tmp_path / 'zoo', '--dataset', '', '-j', 0]
    assert evaluate(*options, '--class-map', tmp_path / 'map.pkl', '--output', tmp_path / 'out') == 0
    rows = list(csv.DictReader(open(next((tmp_path / 'out').glob('*/images.csv')))))
    assert [row['target'] for row in rows] == ['ape, cow'] * 2 + ['bee'] * 2 + ['ape, cow'] * 2
    assert not [w for w in recwarn if 'as the first' in str(w.message)]
    with pytest.warns(UserWarning, match='taken in their own order, as the first 3 of its 6'):
        assert evaluate(*options, '--output', tmp_path / 'out2') == 0


def test_a_head_of_more_outputs_than_the_data_have_classes(tmp_path):
    """Several classes per image: of the outputs besides nothing is known, and they are measured nowhere."""
    run = voc_run(tmp_path / 'run')
    assert evaluate(run) == 0
    weights = torch.load(run / 'last.pth.tar')['state_dict']
    for name in ('fc.weight', 'fc.bias'):
        weights[name] = torch.cat([weights[name], torch.ones_like(weights[name])])
    torch.save(weights, tmp_path / 'bare.pth')
    with pytest.warns(UserWarning, match='taken in their own order, as the first 3 of its 6'):
        assert evaluate(
            tmp_path / 'bare.pth', '--model', 'resnet8_cifar', '--dataset', 'voc2007-packed', '--data-dir',
            tmp_path / 'voc', '--val-split', 'val', '-j', 0, '--output', tmp_path / 'out') == 0
    found = json.loads(next((tmp_path / 'out').glob('*/eval.json')).read_text())
    assert found['measures'] == pytest.approx(read(run)['measures'], rel=1e-4)
    assert [row['class'] for row in found['classes']] == ['red', 'green', 'blue']


def test_several_classes_in_another_order_are_known_by_name(tmp_path):
    run = voc_run(tmp_path / 'run')
    assert evaluate(run) == 0
    expected, pairs = read(run), (run / 'eval' / 'pairs.csv').read_text()
    path = tmp_path / 'voc' / 'annotations.json'
    content = json.loads(path.read_text())
    (run / 'results.json').write_text(json.dumps({'model': {'label_names': content['classes']}}))
    content['classes'].reverse()
    for entry in content['images']:
        entry['labels'].reverse()
    path.write_text(json.dumps(content))
    assert evaluate(run) == 0
    assert read(run)['measures'] == pytest.approx(expected['measures']) and read(run)['classes'] == expected['classes']
    assert (run / 'eval' / 'pairs.csv').read_text() == pairs


def test_a_vision_transformer_at_another_size(tmp_path):
    """Its position embeddings are resampled; tokens become a grid on which boxes are found again."""
    data = make_packed_voc(tmp_path / 'voc')
    run = make_run(tmp_path / 'run', 'vit_tiny_patch16_224', 3, dataset='voc2007-packed', data_dir=str(data),
                   val_split='val')
    assert evaluate(run, '--img-size', 96) == 0
    result = read(run)
    assert result['input_size'] == [3, 96, 96] and 0 < result['measures']['energy'] < 1
    assert result['layers'] == ['blocks.8', 'blocks.11.norm1']


def test_another_size_than_that_of_a_run_that_is_not_square(tmp_path):
    run = make_run(tmp_path / 'run', input_size=[3, 32, 48])
    assert evaluate(run, '--images', 4) == 0 and read(run)['input_size'] == [3, 32, 48]
    assert evaluate(run, '--images', 4, '--img-size', 40) == 0 and read(run)['input_size'] == [3, 40, 40]


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers, tmp_path, capsys):
    run = voc_run(tmp_path / 'run')
    (tmp_path / 'voc' / 'images' / '000003.webp').write_bytes(b'RIFF')
    assert evaluate(run, '--workers', workers) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and '000003.webp' in error


@pytest.mark.parametrize('workers', [0, 1])
def test_nothing_is_measured_in_place_of_an_image_that_cannot_be_read(workers, tmp_path, capsys):
    """Of timm's own data sets too, which serve the next image."""
    run, _ = zoo_run(tmp_path)
    (tmp_path / 'zoo' / 'validation' / 'bee' / 'bee1.png').write_bytes(b'no image')
    assert evaluate(run, '-j', workers) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and 'bee1.png' in error and not (run / 'eval').exists()


@pytest.mark.parametrize('orientation, stored', [
    (2, 'FLIP_LEFT_RIGHT'), (3, 'ROTATE_180'), (5, 'TRANSPOSE'), (6, 'ROTATE_90'), (8, 'ROTATE_270')])
def test_boxes_of_a_turned_image(orientation, stored, tmp_path, recwarn):
    """The boxes of a user's list are those of the image as viewers show it; a file may be stored lying down."""
    torch.manual_seed(0)
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown.save(tmp_path / 'upright.png')
    shown.transpose(Image.Transpose[stored]).save(tmp_path / 'turned.png', exif=exif)
    boxes = [['a', 10, 50, 30, 70]]
    rows = [{'image': f'{name}.png', 'labels': ['a'], 'boxes': boxes} for name in ('upright', 'turned')]
    shutil.copy(tmp_path / 'upright.png', tmp_path / 'third.png')
    rows.append({'image': 'third.png', 'labels': ['b'], 'boxes': [['b', 90, 5, 110, 25]]})
    (tmp_path / 'val.json').write_text(json.dumps({'images': rows}))
    run = make_run(tmp_path / 'run', num_classes=2, dataset='multilabel', data_dir=str(tmp_path), val_split='val')
    assert evaluate(run) == 0
    first, second = csv.DictReader(open(run / 'eval' / 'pairs.csv'))
    assert float(first['energy']) == pytest.approx(float(second['energy']), rel=1e-4)
    warning = next(str(w.message) for w in recwarn if 'Boxes lie outside' in str(w.message))
    assert "(1 in all), the first (90, 5, 110, 25) of 'third.png', which is 40 x 120" in warning


@pytest.mark.parametrize('content, target', [
    ('image,labels\na.png,a\nb.png,b\n', 0), ('image,a,b\na.png,1,0\nb.png,0,1\n', -1)])
def test_a_class_that_no_image_of_the_list_has(content, target, tmp_path, recwarn):
    run = make_run(tmp_path / 'run', num_classes=3, dataset='multilabel', data_dir=str(tmp_path), val_split='val')
    (run / 'results.json').write_text(json.dumps({'model': {'label_names': ['a', 'b', 'c']}}))
    for name in 'ab':
        noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f'{name}.png')
    (tmp_path / 'val.csv').write_text(content)
    assert evaluate(run) == 0
    assert load_records(run / 'eval' / 'records.npz').targets.tolist() == [[1, 0, target], [0, 1, target]]
    said = 'no image is of 1 of the 3 classes, so that these count as absent from all'
    assert sum(said in str(w.message) for w in recwarn) == (target == 0)


def test_layers_of_ones_own(run):
    assert evaluate(run, '--images', 10, '--layers', 'layer1', 'layer2') == 0
    assert read(run)['layers'] == ['layer1', 'layer2']


@pytest.mark.parametrize('arguments, message', [
    ([], 'name a checkpoint'),
    (['nowhere'], "no checkpoint or folder of a run 'nowhere'"),
    (['EMPTY'], 'it is not the folder of a run'),
    (['RUN', '--best'], 'has no model_best.pth.tar'),
    (['BARE'], 'name its architecture with --model'),
    (['BARE', '--model', 'resnet8_cifar'], 'name it with --data-dir'),
    (['BARE', '--model', 'resnet18', '--dataset', 'digits'], 'do not fit --model resnet18'),
    (['TEXT', '--model', 'resnet8_cifar', '--dataset', 'digits'], "text.pth.tar' cannot be read: "),
    (['RUN', '--data-dir', 'nowhere'], "no folder 'nowhere'"),
    (['RUN', '--val-split', 'test'], "has the splits train and validation (val), no 'test'"),
    (['RUN', '--images', '0'], '--images must be at least 1'),
    (['RUN', '--tolerance', 'nan'], '--tolerance must be finite, and at least 0, got nan'),
    (['RUN', '--tolerance', 'inf'], '--tolerance must be finite, and at least 0, got inf'),
    (['RUN', '--sigma', '2'], '--sigma is a fraction'),
    (['nowhere', '--output', 'FILE'], '--output: cannot write to'),  # known before the checkpoint is looked for
    (['RUN', '--layers', 'layer1', 'nowhere'], "has no layer 'nowhere'"),
    (['resnet18.a1_inlk', '--dataset', 'digits'], "resnet18 has no weights 'a1_inlk'; it has resnet18.a1_in1k"),
    (['BARE', '--model', 'resnet18.foo', '--dataset', 'digits'], "--model: resnet18 has no weights 'foo'; it has"),
    (['--compare', 'RUN', 'RUN'], '--compare needs two different checkpoints'),
])
def test_bad_input_is_one_line(arguments, message, run, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bare.pth.tar').write_bytes((run / 'last.pth.tar').read_bytes())
    (tmp_path / 'text.pth.tar').write_text('no checkpoint')
    places = {'RUN': run, 'EMPTY': tmp_path / 'empty', 'BARE': tmp_path / 'bare.pth.tar',
              'TEXT': tmp_path / 'text.pth.tar', 'FILE': tmp_path / 'text.pth.tar' / 'out'}
    assert evaluate(*[places.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len([line for line in error.splitlines() if 'error:' in line]) == 1


def test_robustness_of_the_maps(run):
    assert evaluate(run, '--images', 8, '--robustness') == 0
    measures, rows = read(run)['measures'], list(csv.DictReader(open(run / 'eval' / 'images.csv')))
    for name in ('flip_overlap', 'flip_iou', 'crop_overlap', 'crop_iou', 'across_images'):
        values = [float(row[name]) for row in rows if row[name] not in ('', 'nan')]
        assert values and (-1 if name == 'across_images' else 0) <= measures[name] <= 1
        assert measures[name] == pytest.approx(sum(values) / len(values), rel=1e-4)
