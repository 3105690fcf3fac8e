"""The scripts of docs/evidence, whose tables docs/evidence quotes, on a folder of a few images."""
import json
import runpy

import numpy as np
import pytest
import timm
import torch
from helpers.evidence_scripts import SCRIPTS, rows
from helpers.hub_fixtures import save_noise
from helpers.runs import make_packed_voc, make_run

from timm_icasc.attention import METHODS
from timm_icasc.evaluation.checkpoint import load_checkpoint
from timm_icasc.evaluation.collect import collect_records
from timm_icasc.evaluation.options import default_options
from timm_icasc.objective import ICASCConfig


@pytest.fixture
def folder(tmp_path):
    return save_noise(tmp_path, train=5, test=5)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({'state_dict': timm.create_model('resnet8_cifar', num_classes=3).state_dict()}, tmp_path / 'x.pth.tar')
    return tmp_path / 'x.pth.tar'


def test_gradients(folder, checkpoint, monkeypatch, capsys):
    found = rows('gradients.py', [
        folder, '--model', 'resnet8_cifar', '--checkpoint', checkpoint, '--batch-size', 8,
        '--batches', 1], monkeypatch, capsys)
    assert [row[:3] for row in found] == [
        [attention, order, term] for attention in ('ach', 'grad_cam') for order in '12'
        for term in ('L_AS inner', 'L_AS last', 'L_AC')]
    assert all(float(row[3]) > 0 and abs(float(row[4])) <= 1 for row in found)


def test_mask_scale(folder, monkeypatch, capsys):
    """Divided by its maximum a map reaches 1, so the mask's largest value there is `sigmoid(100 (1 - 0.55))`."""
    (name, maps, maximum, scaled, _), = rows('mask_scale.py', [folder, 'resnet8_cifar'], monkeypatch, capsys)
    assert name == 'resnet8_cifar' and 0 < int(maps) <= 15 and float(maximum) > 0 and scaled.endswith('to 1.00')


def test_robustness_chance(folder, checkpoint, monkeypatch, capsys):
    (name, region, *ious), = rows(
        'robustness_chance.py', [folder, '--model', 'resnet8_cifar', checkpoint], monkeypatch, capsys)
    assert name == str(checkpoint) and 0 < int(region.rstrip('%')) < 100
    assert len(ious) == 4 and all(0 <= float(iou) <= 1 for iou in ious)


def test_layers_and_methods_of_one_class_an_image(folder, checkpoint, tmp_path, monkeypatch, capsys):
    found = rows('layers_and_methods.py', [
        checkpoint, '--model', 'resnet8_cifar', '--data-dir', folder, '--val-split', 'test', '--images', 2,
        '--batch-size', 4, '--curves', '--at', 'layer1', 'layer2', '--at', 'layer2', 'layer3',
        '--json', tmp_path / 'record.json'], monkeypatch, capsys)
    assert [row[:2] for row in found] == [
        *([layer, method] for layer in ('layer2', 'layer3') for method in METHODS), ['-', 'random region']]
    record = json.loads((tmp_path / 'record.json').read_text())
    assert record['images'] == 2 and record['model'] == 'resnet8_cifar' and record['layer'] == 'last'
    for row in record['rows'][:-1]:
        assert {'silent', 'own drop', 'specificity', 'deletion', 'insertion', 'average drop', 'increase', 'overlap',
                'below 0'} <= set(row)
        assert 0 <= row['silent'] < 1 and row['below 0'] == 0  # a ResNet's stages end in a ReLU


def test_layers_and_methods_of_several_classes_are_those_of_eval(tmp_path, monkeypatch, capsys):
    """One batch or several, one class or more an image: means over the maps of what eval measures."""
    data = make_packed_voc(tmp_path / 'voc')
    run = make_run(tmp_path / 'run', num_classes=3, dataset='voc2007-packed', data_dir=str(data), val_split='val')
    found = rows('layers_and_methods.py', [
        run, '--methods', 'finer_cam', 'ach', '--curves', '--batch-size', 4, '--json', tmp_path / 'record.json'],
        monkeypatch, capsys)
    assert [row[1] for row in found] == ['finer_cam', 'ach', 'random region']
    row = json.loads((tmp_path / 'record.json').read_text())['rows'][1]
    records = collect_records(
        load_checkpoint(str(run), default_options()), ICASCConfig(attention='ach'), faithfulness=True)
    counts = (records.targets > 0).sum(1)
    # An image's value is the mean over its classes; the table's over all of them, where no map is silent.
    assert row['silent'] == records.images['silent_maps'].max() == 0 and counts.max() > 1
    for name, column in (('own_drop', 'own drop'), ('deletion', 'deletion'), ('average_drop', 'average drop')):
        pooled = (records.images[name] * counts).sum() / counts.sum()
        assert row[column] == pytest.approx(pooled, rel=1e-4, abs=1e-6)
    assert row['pointing'] == pytest.approx(records.pairs['pointing'].mean())
    assert row['energy'] == pytest.approx(records.pairs['energy'].mean())
    assert row['overlap'] == pytest.approx(np.nanmean(records.images['overlap_cooccurring']), rel=1e-4)


def test_the_tables_of_layers_are_those_of_the_records():
    page = runpy.run_path(str(SCRIPTS / 'layers_page.py'))
    text = (SCRIPTS / 'layers.md').read_text()
    assert f"<!-- tables begins -->\n{page['tables']()}\n<!-- tables ends -->" in text
    assert all(f'{name}_' in ''.join(file.name for file in (SCRIPTS / 'maps').iterdir()) for name in page['NETWORKS'])
    rows = [{'layer': 'a', 'method': 'ach', 'silent': 0.125, 'own drop': 1.5, 'below 0': 0.5},
            {'layer': '-', 'method': 'random region', 'silent': None, 'own drop': -0.25}]
    assert page['table'](rows).splitlines()[2:] == [
        '| `a` | 50% | `ach` | 12.5% | 1.50 |', '|  |  | random region |  | -0.25 |']


def test_journeys(tmp_path, monkeypatch):
    """What is typed and printed, without paths of this machine, and seconds; a server is ended when it serves."""
    script = runpy.run_path(str(SCRIPTS / 'journeys.py'))
    text = (SCRIPTS.parent / 'journeys.md').read_text()
    for name, commands in script['JOURNEYS'].items():
        _, shown = text.split(f'<!-- {name} begins -->')
        shown = ' '.join(shown.split(f'<!-- {name} ends -->')[0].replace('\\\n', '').split())
        assert all(' '.join(command.split()) in shown for command in commands)
    assert '/tmp/' not in text and str(SCRIPTS.parent.parent) not in text

    steps = [
        script['run'](command, tmp_path, {'PATH': '/usr/bin:/bin'}) for command in (
            f'echo {tmp_path}/output/x; for i in $(seq 40); do echo $i; done', 'printf "1/2\\r2/2"; exit 3')]
    assert steps[0].output.splitlines()[0] == 'output/x' and len(steps[0].output.splitlines()) == script['LINES']
    assert '... 28 lines' in steps[0].output and steps[0].output.endswith('39\n40')
    assert steps[1].output == '2/2' and steps[1].code == 3 and steps[1].seconds > 0
    (tmp_path / 'timm-icasc').write_text('#!/bin/sh\necho http://127.0.0.1:7860\nexec sleep 300\n')
    (tmp_path / 'timm-icasc').chmod(0o755)
    served = script['run']('timm-icasc demo x', tmp_path, {'PATH': f'{tmp_path}:/usr/bin:/bin'})
    assert served.code == 0 and served.output == 'http://127.0.0.1:7860'
    page = script['as_markdown'](steps)
    assert page.count('```console\n$ ') == 2 and 'on a processor, exit code 3.' in page
