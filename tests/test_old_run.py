"""A run of the time before the package was put into rooms still evaluates, resumes, draws and goes up to the Hub.

tests/data/old_run holds what commit 39a3b00 left: a narrow resnet20_cifar on the digits with averaged weights, after
two epochs (`finished`), and interrupted by a signal after the first (`interrupted`).
"""
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import train_in_process

from timm_icasc.cli import main
from timm_icasc.runs.folder import open_run

OLD = Path(__file__).parent / 'data' / 'old_run'

# What `timm-icasc eval` of that commit said of the finished run.
MEASURES = {
    'top1': 10.222222222222221, 'top5': 52.22222222222222, 'ks': -0.7711111111111112, 'ks_probability':
    0.11203937977552414, 'ece': 0.04860032280286153, 'overlap_inner': 0.9431513457828098, 'overlap_last':
    0.7829276487562391, 'as_inner': 0.25231484986013836, 'as_last': 0.3110551959772905, 'ac': 0.5187590348058276,
    'zero_maps': 0.0}


@pytest.fixture
def old(tmp_path):
    shutil.copytree(OLD, tmp_path / 'old')
    return tmp_path / 'old'


def test_it_evaluates_to_the_same_numbers(old):
    assert main(['eval', str(old / 'finished'), '--device', 'cpu']) == 0
    measured = json.loads((old / 'finished' / 'eval' / 'eval.json').read_text())['measures']
    assert measured == pytest.approx(MEASURES, rel=1e-4)


def test_it_goes_on_to_the_same_weights(old, monkeypatch, capsys):
    """Bit by bit on the machine that it came from; elsewhere rounding differs, on one other by 1.3 % of the way."""
    begun = torch.load(old / 'interrupted' / 'last.pth.tar', weights_only=False)['state_dict_ema']
    code, out, err = train_in_process(
        monkeypatch, capsys, '--resume', 'auto', '--output', old, '--experiment', 'interrupted', '--device', 'cpu',
        drawn=True)
    assert code == 0 and 'resumed after epoch 1' in out, err
    finished, resumed = open_run(old / 'finished'), open_run(old / 'interrupted')
    assert resumed.results.keys() >= finished.results.keys()
    before, after = dict(finished.results['model']), dict(resumed.results['model'])
    assert before.pop('icasc').items() <= after.pop('icasc').items(), 'options may have come since, none may go'
    assert after.pop('fingerprint') and after == before
    assert resumed.metrics['loss'] == pytest.approx(finished.metrics['loss'], rel=1e-3)
    expected, weights = finished.load_weights(), resumed.load_weights()
    assert expected.keys() == weights.keys() == begun.keys()
    way, apart = (
        sum((a[name].double() - expected[name].double()).square().sum() for name in expected).sqrt()
        for a in (begun, weights))
    assert apart < 0.05 * way
    assert (old / 'interrupted' / 'summary.csv').read_text().count('\n') == 3
    assert (old / 'interrupted' / 'attention.png').is_file()


def test_a_figure(old, tmp_path):
    assert main([
        'figure', 'classes', str(old / 'finished'), str(old / 'interrupted'), '--images', '2', '--topk', '2',
        '--device', 'cpu', '--output', str(tmp_path / 'figure.png')]) == 0
    assert (tmp_path / 'figure.png').stat().st_size > 10_000


def test_it_goes_up_to_the_hub(old, hub, client):
    result = client('push', old / 'finished', 'me/old', token='hf_owner')
    assert result.code == 0, result.err
    config = json.loads(hub.read('me/old', 'config.json'))
    assert config['architecture'] == 'resnet20_cifar' and config['timm_icasc']['ema']
    content = hub.read('me/old', 'model.safetensors')
    assert config['timm_icasc']['sha256'] == hashlib.sha256(content).hexdigest()
    assert '| ICASC ach, order 1 | 42 | 10.22 | 0.262 | 0.319 | 0.507 |' in hub.read('me/old', 'README.md').decode()
    result = client('push', old / 'interrupted', 'me/old', token='hf_owner')
    assert result.code == 2 and 'timm-icasc train --resume auto goes on with it' in result.err


def test_it_stands_in_the_tables_of_the_paper_command(old, capsys):
    assert main(['paper', str(old)]) == 0
    assert 'not in the paper, digits' in capsys.readouterr().out
