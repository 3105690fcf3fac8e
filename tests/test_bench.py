"""The cost table."""
import pytest
import torch

from timm_icasc import bench
from timm_icasc.cli import main


def test_table_of_all_variants(capsys):
    assert main(['bench', 'resnet20_cifar', '--batch-size', '2', '--repeats', '1', '--device', 'cpu']) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 4
    for line, variant in zip(lines[1:], bench.VARIANTS, strict=True):
        assert line.startswith('resnet20_cifar') and variant in line
        seconds, ratio, peak, _ = line.split()[-4:]
        assert float(seconds) > 0 and float(ratio) > 0 and (peak == '-' or float(peak) > 0)


def test_variants_do_what_they_say(monkeypatch):
    orders = []
    original = bench.ICASCTask
    monkeypatch.setattr(bench, 'ICASCTask', lambda *a, **k: orders.append(k['order']) or original(*a, **k))
    for variant in bench.VARIANTS:
        bench._make_step('resnet20_cifar', variant, 2, None, torch.device('cpu'))()
    assert orders == [1, 2]


@pytest.mark.parametrize('argv, message', [(['nonet'], "unknown architecture 'nonet'"),
                                           (['resnet18', '--repeats', '0'], '--repeats must be at least 1')])
def test_bad_input(argv, message, capsys):
    assert main(['bench', *argv]) == 2
    assert message in capsys.readouterr().err
