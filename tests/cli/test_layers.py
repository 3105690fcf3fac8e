"""`timm-icasc layers`: what it prints and records, and that it goes on where it stopped."""
import json
import os
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import timm
import torch

from timm_icasc import ICASCConfig, cli, icasc_forward, resolve_layers
from timm_icasc.cli import layers as coverage
from timm_icasc.support import support_page as support
from timm_icasc.support.architectures import inspect_architecture

SMALL = ['test_resnet', 'test_vit']


def test_the_record_of_one_architecture():
    record = inspect_architecture('test_vit')
    assert record == {
        'family': 'timm.models.vision_transformer', 'input_size': [3, 160, 160],
        'inner': {'path': 'blocks.3', 'layout': 'NLC', 'channels': 64, 'grid': [10, 10], 'prefix_tokens': 1},
        'last': {'path': 'blocks.5.norm1', 'layout': 'NLC', 'channels': 64, 'grid': [10, 10], 'prefix_tokens': 1},
        'nonzero': 1.0, 'negative': record['negative'], 'maps': {'ach': [1.0, 0.97, 0.0], 'grad_cam': [1.0, 1.0, 0.0]},
        'order1': record['order1'], 'order2': record['order2']}
    assert all(0.4 < share < 0.6 for share in record['negative'])  # a residual stream, and a norm of it
    # Constant channel weights leave out what stands behind the last layer; exact ones reach the head.
    assert 0 < record['order1'] < record['order2'] <= 1


@pytest.mark.parametrize('name, negative', [('test_resnet', [0, 0]), ('test_byobnet', [0, 0])])
def test_behind_a_relu_the_record_has_no_negative_values(name, negative):
    assert inspect_architecture(name)['negative'] == negative


@pytest.mark.parametrize('name', ['test_vit', 'test_efficientnet', 'test_nfnet'])
def test_reached_parameters_are_those_of_a_real_step(name):
    """Depthwise convolutions, and weights that are computed, among them."""
    torch.manual_seed(0)
    record = inspect_architecture(name)
    model = timm.create_model(name, num_classes=10).train()
    layers = resolve_layers(model)
    for order in (1, 2):
        config = ICASCConfig(order=order)
        output = icasc_forward(model, torch.randn(2, *record['input_size']), torch.tensor([1, 2]), layers, config)
        gradients = torch.autograd.grad(output.weighted_sum(config), list(model.parameters()), allow_unused=True)
        reached = sum(g is not None for g in gradients) / len(gradients)
        assert reached == pytest.approx(record[f'order{order}'], abs=1e-4)


@pytest.mark.parametrize('name', ['gemma4_vit_167m_enc', 'qwen3_vit_88m_enc'])
def test_encoders_without_class_scores_are_refused(name):
    assert 'does not return class logits' in inspect_architecture(name)['error']


def test_an_operation_without_a_second_derivative_is_named(monkeypatch):
    """torch has no double backward of hardsigmoid; ours decomposes it, which is switched off here."""
    class Plain:
        def __init__(self, checkpointing):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *exc):
            pass
    monkeypatch.setattr('timm_icasc.features.tap.TwiceDifferentiable', Plain)
    record = inspect_architecture('mobilenetv3_small_050')
    assert isinstance(record['order1'], float) and 'hardsigmoid_backward' in record['order2']
    assert support.level(record) == 'order 1 only'


def test_table_record_and_resume(tmp_path, capsys, monkeypatch):
    file = tmp_path / 'record.json'
    assert cli.main(['layers', 'test_resnet', '--json', str(file), '--jobs', '1']) == 0
    out = capsys.readouterr().out
    assert 'test_resnet: inner layer3 NCHW 10x10, last layer4 NCHW 5x5, order 2' in out
    # Only the missing one is inspected; a process that did the first again would not find this name.
    record = json.loads(file.read_text())
    record['models']['test_resnet']['last']['path'] = 'from the file'
    file.write_text(json.dumps(record))
    assert cli.main(['layers', 'test_resnet', 'test_vit', '--json', str(file), '--jobs', '1']) == 0
    out = capsys.readouterr().out
    assert 'last from the file NCHW 5x5' in out and 'test_vit: inner blocks.3' in out
    assert sorted(json.loads(file.read_text())['models']) == SMALL
    row = '| test_vit | 160x160 | blocks.3 NLC 1+10x10 | blocks.5.norm1 NLC 1+10x10 | 50%, 50% |'
    assert row in file.with_suffix('.md').read_text()


def test_of_architectures_that_are_not_timms_there_is_no_total(tmp_path, capsys):
    file = tmp_path / 'record.json'
    names = ['resnet18_cifar', 'resnet20_cifar', 'test_resnet']
    for name in names:  # one at a time takes no process
        assert cli.main(['layers', name, '--json', str(file)]) == 0
    capsys.readouterr()
    assert cli.main(['layers', *names, '--json', str(file), '--jobs', '1']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines[:3]] == names and len(lines) == 4


class InThisProcess:
    """The first job is done; what comes then is as given."""
    then = None

    def __init__(self, jobs, context, begin):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def submit(self, function, *args):
        future, done = Future(), self.then is None or not hasattr(self, 'first')
        self.first = True
        future.set_result(function(*args)) if done else future.set_exception(self.then)
        return future

    def shutdown(self, cancel_futures):
        assert cancel_futures


@pytest.mark.parametrize('event, code', [(KeyboardInterrupt(), 130), (BrokenProcessPool(), 2)])
def test_what_is_done_is_kept(event, code, tmp_path, monkeypatch, capsys):
    """After Ctrl-C, and where the system killed a process."""
    monkeypatch.setattr(InThisProcess, 'then', event)
    monkeypatch.setattr(coverage, 'ProcessPoolExecutor', InThisProcess)
    monkeypatch.setattr(coverage, 'as_completed', iter)
    file = tmp_path / 'record.json'
    assert cli.main(['layers', *SMALL, '--json', str(file)]) == code
    assert ('a process was killed' in capsys.readouterr().err) == (code == 2)
    assert list(json.loads(file.read_text())['models']) == ['test_resnet']


class TestBadInput:

    @pytest.mark.parametrize('argv, message', [
        ([], 'name architectures or filters'),
        (['resnet18', '--all'], 'name architectures or filters'),
        (['nonet*'], "no architecture matches 'nonet*'"),
        ([''], "no architecture matches ''"),
        (['resnet18.foo'], "`model`: resnet18 has no weights 'foo'"),
        (['test_vit', '--jobs', '0'], '--jobs must be at least 1, got 0'),
        (['test_vit', '--json', '.'], "--json: '.' must be a file such as support.json"),
        (['test_vit', '--json', 'table.md'], "--json: 'table.md' must be a file such as support.json"),
    ])
    def test_arguments(self, argv, message, capsys):
        assert cli.main(['layers', *argv]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize('text', [
        '', '{"versions', '[]', '{"a": 1}', '{"versions": {}, "models": {"test_vit": {}}}'])
    def test_a_file_that_is_no_record(self, text, tmp_path, capsys):
        file = tmp_path / 'notes.json'
        file.write_text(text)
        assert cli.main(['layers', 'test_vit', '--json', str(file)]) == 2
        assert 'is not a record of layers' in capsys.readouterr().err
        assert file.read_text() == text

    def test_a_record_of_another_size(self, tmp_path, capsys):
        file = tmp_path / 'record.json'
        support.write_record(file, support.load_record(None, img_size=64))
        assert cli.main(['layers', 'test_resnet', '--json', str(file)]) == 2
        assert "--img-size: " in capsys.readouterr().err

    def test_a_record_of_other_versions(self, tmp_path, capsys):
        file = tmp_path / 'old.json'
        file.write_text('{"versions": {"timm": "0.9"}, "models": {}}')
        assert cli.main(['layers', 'test_vit', '--json', str(file)]) == 2
        assert "remove it to begin anew" in capsys.readouterr().err

    def test_a_summary_file_without_marks_is_refused_before_the_work(self, tmp_path, capsys, monkeypatch):
        monkeypatch.delattr(coverage, 'ProcessPoolExecutor')
        assert cli.main(['layers', 'test_vit', '--summary', str(tmp_path / 'README.md')]) == 2
        assert 'has no lines' in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(tmp_path, monkeypatch, capsys):
    """`| head -1`, in a process for the architectures: no traceback, and the record is there."""
    file = tmp_path / 'record.json'
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'w') as nobody:
        monkeypatch.setattr(sys, 'stdout', nobody)
        assert cli.main(['layers', *SMALL, '--jobs', '1', '--json', str(file)]) == 1
        monkeypatch.undo()
    assert 'rror' not in capsys.readouterr().err
    assert sorted(json.loads(file.read_text())['models']) == SMALL
