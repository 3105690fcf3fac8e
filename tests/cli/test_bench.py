"""The table of costs, and that each measurement measures what it says."""
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partialmethod

import pytest
import timm
import torch
from helpers.fake_cuda_graph import OpRecorder
from timm.task import ClassificationTask

from timm_icasc.benchmark import cost, profile, scaling, steps
from timm_icasc.benchmark import map_speed as maps
from timm_icasc.benchmark.steps import (
    COMPILED,
    PLAIN,
    STEPS,
    VARIANTS,
    BenchmarkSetting,
    create_model,
    make_step,
)
from timm_icasc.cli import bench, main
from timm_icasc.labels import SINGLE
from timm_icasc.task import ICASCTask

SMALL = BenchmarkSetting(batch_size=2)


@pytest.fixture
def forked(monkeypatch):
    """Memory is measured in processes that begin as copies of this one: they need not load torch."""
    context = multiprocessing.get_context('fork')
    monkeypatch.setattr(cost.multiprocessing, 'get_context', lambda method: context)


def test_memory_is_measured_in_a_fresh_process(monkeypatch):
    monkeypatch.setattr(steps, 'VARIANTS', [PLAIN])
    (variant, peak), = cost.measure_memory('resnet20_cifar', SMALL).items()
    assert variant == PLAIN and (peak is None or 0 < peak < 1000)


def test_a_process_that_is_killed_is_not_waited_for(forked, monkeypatch, capsys):
    """As the system does where memory runs out."""
    monkeypatch.setattr(cost, 'make_step', lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr('timm_icasc.cli.bench.measure_time', lambda *_: {})
    assert main(['bench', 'resnet8_cifar', '--img-size', '16', '-b', '2', '--device', 'cpu']) == 2
    assert '--batch-size 2: the process that measures the memory of resnet8_cifar, ' in capsys.readouterr().err


def test_table_and_record_of_all_variants(forked, tmp_path, capsys):
    file = tmp_path / 'new' / 'bench.json'  # whose folder is made
    options = ['--img-size', '16', '-b', '2', '--repeats', '1', '--device', 'cpu', '--json', str(file)]
    assert main(['bench', 'resnet8_cifar', *options]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + len(VARIANTS)
    record = json.loads(file.read_text())
    assert record['setting']['batch_size'] == 2 and set(record['versions']) == {'timm_icasc', 'timm', 'torch'}
    for line, (variant, result) in zip(lines[2:], record['steps']['resnet8_cifar'].items(), strict=True):
        assert line.startswith('resnet8_cifar') and variant in line
        seconds, ratio, operations, peak, _ = line.split()[-5:]
        assert float(seconds) == round(result['seconds'], 4) and float(ratio) == round(result['seconds_ratio'], 2)
        assert float(operations) == round(result['operations_ratio'], 2)
        assert peak == '-' if result['peak_mib'] is None else float(peak) == round(result['peak_mib'])


def test_maps_are_measured_beside_the_packages_that_are_installed(tmp_path, capsys):
    file = tmp_path / 'maps.json'
    argv = ['bench', 'resnet8_cifar', '--maps', '-b', '1', '--repeats', '1', '--device', 'cpu', '--topk', '2', '5']
    assert main([*argv, '--json', str(file)]) == 0
    seconds = json.loads(file.read_text())['maps']['resnet8_cifar']
    packages = ('timm_icasc', 'torchcam', 'pytorch_grad_cam')
    assert set(seconds) == {maps.FORWARD, *(
        f'{p} {place}, K={k}' for p in packages for place in ('last', 'inner') for k in (2, 5))}
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(seconds)


@pytest.mark.parametrize('place', ['inner', 'last'])
def test_the_maps_of_the_other_packages_are_the_same(place):
    """Up to their scaling: to a maximum of 1, and from a minimum of 0."""
    model, size = create_model('resnet18', replace(SMALL, img_size=64))
    model.eval()
    images = torch.randn(2, *size)
    layer = getattr(maps.resolve_layers(model, input_size=size), place)
    ours = maps.attention_maps(model, images, topk=2, method='grad_cam', layer=place)
    lowest = ours.amin((2, 3), keepdim=True)
    ours = (ours - lowest) / (ours - lowest).amax((2, 3), keepdim=True)
    theirs = maps._torchcam(model, layer.path, images, 2)
    torch.testing.assert_close(torch.stack([cams[0] for cams in theirs], 1), ours, atol=1e-4, rtol=1e-3)


def test_scaling_measures_both_series_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, 'BATCHES', (1, 2, 3))
    monkeypatch.setattr(scaling, 'AREAS', (0.25, 0.5, 1))
    file, plot = tmp_path / 'scaling.json', tmp_path / 'scaling.png'
    argv = ['bench', 'resnet8_cifar', '--scaling', str(plot), '-b', '2', '--repeats', '1', '--device', 'cpu']
    assert main([*argv, '--json', str(file)]) == 0
    results = json.loads(file.read_text())['scaling']['resnet8_cifar']
    batch, area = (results[series]['points'] for series in ('batch', 'area'))
    assert [p['batch_size'] for p in batch] == [2, 4, 6] and {p['height'] for p in batch} == {32}
    assert [p['height'] for p in area] == [16, 24, 32] and {p['batch_size'] for p in area} == {2}
    rows = [line for line in capsys.readouterr().out.strip().splitlines()[2:] if ' line over ' not in line]
    measured = [(point, step) for point in (*batch, *area) for step in scaling.STEPS]
    for row, (point, step) in zip(rows, measured, strict=True):
        *_, images, side, seconds, ratio, per_image, _ = row.split()
        assert step in row and (int(images), int(side)) == (point['batch_size'], point['height'])
        assert float(seconds) == round(point['seconds'][step], 4)
        assert float(ratio) == round(point['seconds'][step] / point['seconds'][PLAIN], 2)
        assert float(per_image) == round(point['seconds'][step] / point['batch_size'], 4)
    assert plot.stat().st_size > 10_000


def test_the_profile_divides_a_step_by_kind_of_operation(tmp_path, capsys):
    """Second derivatives occur at order 2 alone; what ICASC adds is told in percent of the plain step."""
    file = tmp_path / 'profile.json'
    argv = ['bench', 'resnet8_cifar', '--profile', '-b', '2', '--repeats', '1', '--device', 'cpu', '--json', str(file)]
    assert main(argv) == 0
    results = json.loads(file.read_text())['profile']['resnet8_cifar']
    second = f'convolutions{profile.SECOND}'
    assert results['ICASC order 2'][second] > 0 and second not in {**results[PLAIN], **results['ICASC order 1']}
    row = next(line for line in capsys.readouterr().out.splitlines() if ' all ' in line).split()
    plain, first, last = (sum(own.values()) for own in results.values())
    assert [float(row[i]) for i in (2, 3, 5)] == [round(1000 * s, 1) for s in (plain, first, last)]
    assert [row[i] for i in (4, 6)] == [f'{(s - plain) / plain:+.1%}' for s in (first, last)]


@pytest.mark.parametrize('name, kind', [
    ('aten::conv2d', 'convolutions'), ('autograd::engine::evaluate_function: ConvolutionBackward0', 'convolutions'),
    ('autograd::engine::evaluate_function: _ConvolutionInputBackward', 'convolutions, second derivatives'),
    ('autograd::engine::evaluate_function: NativeBatchNormBackwardBackward0', 'normalisation, second derivatives'),
    ('_Attention', 'attention'), ('autograd::engine::evaluate_function: AddmmBackward0', 'matrix products'),
    ('_ActivationGradientBackward', 'activations, second derivatives'), ('aten::add_', 'everything else'),
    ('autograd::engine::evaluate_function: SumBackward1', 'everything else'),
])
def test_kinds_of_operations(name, kind):
    assert profile.kind_of(name) == kind


def test_the_line_through_points():
    exact = scaling.fit_line([2, 4, 8], [1.5, 2.5, 4.5])
    assert exact == pytest.approx({'intercept': 0.5, 'slope': 0.5, 'r2': 1, 'largest_residual': 0}, abs=1e-9)
    # Residuals 1/6, -1/3, 1/6; around the mean of 7/3 the squares are 42/9.
    bent = scaling.fit_line([1, 2, 3], [1, 2, 4])
    assert bent == pytest.approx({
        'intercept': -2 / 3, 'slope': 1.5, 'r2': 1 - (1 / 6) / (42 / 9), 'largest_residual': 1 / 6})


@pytest.mark.parametrize('name, sides', [
    ('resnet20_cifar', [16, 24, 32, 40, 44]), ('resnet18', [128, 160, 224, 288, 320]),
    ('vit_tiny_patch16_224', [112, 160, 224, 272, 320])])
def test_the_areas_are_whole_cells_of_the_last_grid(name, sides):
    series = scaling._settings(name, replace(SMALL, batch_size=4))
    assert [s.img_size for s in series['area']] == sides
    assert [s.batch_size for s in series['batch']] == [2, 4, 6, 8, 12]


def operations_by_hand(model, size, classes_in_tail=0):
    """Of convolutions and linear layers with the images in a batch of 2: forward, and both gradients of each."""
    total = 0

    def count(module, args, output):
        nonlocal total
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            first = not hasattr(module, 'kernel_size') or module.in_channels != 3
            total += 2 * output.numel() * module.weight[0].numel() * (3 if first else 2)  # images need no gradient
    handles = [module.register_forward_hook(count) for module in model.modules()]
    model(torch.randn(2, *size))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize('name', ['resnet20_cifar', 'mobilenetv2_035'])
def test_operations_of_a_plain_step_layer_by_layer(name, monkeypatch):
    """Depthwise convolutions included, which torch's own counter counts many times over."""
    monkeypatch.setattr(steps, 'VARIANTS', [PLAIN])
    setting = replace(SMALL, img_size=32)
    model, size = create_model(name, setting)
    assert cost.count_operations(name, setting)[PLAIN] == operations_by_hand(model, size)


def test_operations_grow_with_the_order():
    plain, first, second, public = cost.count_operations('resnet8_cifar', SMALL).values()
    assert plain < first < second < public


def test_a_share_of_the_batch_takes_its_share_of_the_operations(monkeypatch):
    """Beside the plain step: twice the chosen samples, twice as much."""
    monkeypatch.setattr(steps, 'VARIANTS', STEPS)
    plain, _, whole = cost.count_operations('resnet8_cifar', replace(SMALL, batch_size=8)).values()
    quarter, half = ([n - plain for n in list(cost.count_operations('resnet8_cifar', replace(
        SMALL, batch_size=8, share=share)).values())[1:]] for share in (0.25, 0.5))
    assert [2 * n for n in quarter] == half
    assert quarter[1] < whole - plain


def test_every_variant_is_a_training_step():
    for variant in VARIANTS:
        step = make_step('resnet8_cifar', variant, SMALL)
        parameter = next(p for cell in step.__closure__ for p in getattr(cell.cell_contents, 'param_groups', ())
                         )['params'][0]
        before = parameter.detach().clone()
        step()
        assert not torch.equal(parameter, before)


def test_recorded_steps_are_measured_when_they_are_replayed(monkeypatch):
    """A stand-in records on the CPU what CUDA graphs record."""
    recorders, timed = [], []
    monkeypatch.setattr(steps, 'CudaRecorder', lambda device: recorders.append(OpRecorder()) or recorders[-1])
    monkeypatch.setattr(SINGLE, 'check', lambda *args: None)  # reads values, on the CPU alone

    def clock():
        timed.append([recorder.replays for recorder in recorders])
        return float(len(timed))

    monkeypatch.setattr(cost.time, 'process_time', clock)
    setting = replace(SMALL, fast=True, img_size=16)
    cost.measure_time('resnet8_cifar', setting, repeats=2)
    assert 'recorded' in str(setting) and len(recorders) == len(VARIANTS)
    assert timed[-1] == [3] * len(VARIANTS), 'the recording itself, which warms up, and the two that are timed'
    operations = [cost.count_operations('resnet8_cifar', s) for s in (setting, replace(setting, fast=False))]
    assert operations[0] == operations[1]


def test_compiled_steps_beside_the_plain_one_of_their_kind(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, 'measure_memory', lambda name, setting: dict.fromkeys(setting.variants))  # as of others
    for task in (ICASCTask, ClassificationTask):
        monkeypatch.setattr(task, 'compile', partialmethod(task.compile, backend='eager'))
    file = tmp_path / 'bench.json'
    options = ['--compile', '--repeats', '1', '-b', '2', '--img-size', '16', '--device', 'cpu', '--json', str(file)]
    assert main(['bench', 'resnet8_cifar', *options]) == 0
    rows = json.loads(file.read_text())['steps']['resnet8_cifar']
    assert list(rows) == [f'{step}{how}' for step in STEPS for how in ('', COMPILED)]
    for how in ('', COMPILED):
        for step in STEPS:
            row = rows[step + how]
            assert row['seconds_ratio'] == row['seconds'] / rows[PLAIN + how]['seconds']
    assert 'ICASC order 1, compiled' in capsys.readouterr().out


@pytest.mark.parametrize('setting', [replace(SMALL, channels_last=True), replace(SMALL, img_size=64)])
def test_settings(setting):
    model, size = create_model('resnet18', setting)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last) == setting.channels_last
    assert size[1] == (setting.img_size or timm.get_pretrained_cfg('resnet18').input_size[1])


def test_an_architecture_whose_weights_have_no_head_gets_one():
    name = next(name for name in timm.list_models('vit_small*') if not timm.get_pretrained_cfg(name).num_classes)
    assert create_model(name, replace(SMALL, img_size=None, device='meta'))[0].num_classes == 1000


@pytest.mark.parametrize('argv, message', [
    (['nonet'], "unknown architecture 'nonet'"),
    (['resnet18.a1_inlk'], "resnet18 has no weights 'a1_inlk'; it has resnet18.a1_in1k"),
    (['hf-hub:timm/resnet18.a1_in1k'], "MODEL: name an architecture of timm, not 'hf-hub:timm/resnet18.a1_in1k'"),
    (['resnet20_cifar', '--maps', '--topk', '2', '101'], '--topk: resnet20_cifar has 100 classes, got 101'),
    (['resnet18', '--repeats', '0'], '--repeats must be at least 1'),
    (['resnet18', '--share', '0'], '--share must be above 0 and at most 1, got 0'),
    (['resnet18', '--img-size', '0'], '--img-size must be at least 1'),
    (['resnet18', '--device', 'tpu'], "--device: cannot use 'tpu'"),
    (['resnet18', '--device', 'cpu', '--fast'], '--fast records training steps as CUDA graphs: use --device cuda'),
    (['resnet18', '--device', 'cpu', '--fast', '--compile'], 'CUDA graphs: leave it out, or --compile'),
    (['resnet18', '--json', '.'], "' is a folder: name a file in it"),
    (['resnet18', '--topk', '3'], '--topk is of --maps: leave it out'),
    (['resnet18', '--maps', '--share', '0.5'], '--share is of training steps, and --maps makes none: leave it out'),
    (['test_resnet', '--img-size', '32', '-b', '1', '--profile', '--repeats', '1'],
     '--batch-size 1: BatchNorm cannot train on one image whose features are one pixel'),
    (['resnet18', '--scaling', 'cost.doc'], '--scaling must end in one of .png'),
    (['resnet20_cifar', '--scaling', 'cost.png', '-b', '1'], 'give resnet20_cifar a larger --batch-size'),
    (['convnext_atto', '--img-size', '8', '--maps'], 'ConvNeXt cannot run on 3 x 8 x 8 images'),
    (['xcit_nano_12_p16_224', '--img-size', '8'], '--img-size 8 does not fit xcit_nano_12_p16_224'),
])
def test_bad_input(argv, message, capsys):
    assert main(['bench', *argv]) == 2
    assert message in capsys.readouterr().err
