"""The scripts of docs/evidence, whose tables docs/evidence.md quotes, on a folder of a few images."""
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers.hub_fixtures import save_noise

SCRIPTS = Path(__file__).parent.parent / 'docs' / 'evidence'


@pytest.fixture
def folder(tmp_path):
    return save_noise(tmp_path, train=5, test=5)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({'state_dict': timm.create_model('resnet20_cifar', num_classes=3).state_dict()}, tmp_path / 'x.pth.tar')
    return tmp_path / 'x.pth.tar'


def rows(script, arguments, monkeypatch, capsys):
    """The cells of the table's lines, its head left out."""
    monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / script), run_name='__main__')
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def test_gradients(folder, checkpoint, monkeypatch, capsys):
    found = rows('gradients.py', [
        folder, '--model', 'resnet20_cifar', '--checkpoint', checkpoint, '--batch-size', 8,
        '--batches', 1], monkeypatch, capsys)
    assert [row[:3] for row in found] == [
        [attention, order, term] for attention in ('ach', 'grad_cam') for order in '12'
        for term in ('L_AS inner', 'L_AS last', 'L_AC')]
    assert all(float(row[3]) > 0 and abs(float(row[4])) <= 1 for row in found)


def test_mask_scale(folder, monkeypatch, capsys):
    """Divided by its maximum a map reaches 1, so the mask's largest value there is `sigmoid(100 (1 - 0.55))`."""
    (name, maps, maximum, scaled, _), = rows('mask_scale.py', [folder, 'resnet20_cifar'], monkeypatch, capsys)
    assert name == 'resnet20_cifar' and 0 < int(maps) <= 15 and float(maximum) > 0 and scaled.endswith('to 1.00')


def test_robustness_chance(folder, checkpoint, monkeypatch, capsys):
    (name, region, *ious), = rows(
        'robustness_chance.py', [folder, '--model', 'resnet20_cifar', checkpoint], monkeypatch, capsys)
    assert name == str(checkpoint) and 0 < int(region.rstrip('%')) < 100
    assert len(ious) == 4 and all(0 <= float(iou) <= 1 for iou in ious)
