"""On a GPU the method is what it is on a CPU, in half precision about that, and recorded steps are the eager ones.

`pytest -m gpu`; skipped where there is no CUDA device. More of recorded steps: `tests/training/test_cuda_graph.py`.
"""
import json
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import timm
import torch
from helpers.gpu import GPU
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY, make_packed_voc, train_in_process

from timm_icasc import ICASCTask, attention_maps
from timm_icasc.benchmark import cost
from timm_icasc.benchmark.steps import BenchmarkSetting
from timm_icasc.cli import main
from timm_icasc.training.cuda_graph import CudaRecorder, RecordedStep
from timm_icasc.training.step import TrainingStep

pytestmark = GPU

NETWORKS = {
    'resnet20_cifar': {}, 'tf_efficientnet_lite0': {},
    'vit_tiny_patch16_224': {'img_size': 64, 'depth': 4}, 'convnext_atto': {'depths': (1, 1, 2, 1)}}
TERMS = ('loss_as_inner', 'loss_as_last', 'loss_ac')


@pytest.fixture(autouse=True)
def exact():
    """Products in full float32: TF32 keeps ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


def network(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **NETWORKS[name])
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=0.2)
        for scale in (p for name, p in model.named_parameters() if name.endswith('gamma')):
            scale.fill_(0.5)  # ConvNeXt's blocks begin as almost nothing
    return model


def batch(size=64, count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.randint(10, (count,), generator=generator)


def one_step(model, device, order, autocast=nullcontext):
    """Losses and gradients of a training step of a copy of the model."""
    model = deepcopy(model).to(device).train()
    task = ICASCTask(model, order=order, device=torch.device(device), verbose=False)
    task.train()
    images, target = (x.to(device) for x in batch())
    result = TrainingStep(task, autocast)(images, target)
    gradients = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters() if p.grad is not None])
    return {name: value.float().cpu() for name, value in result.items() if value.ndim == 0}, gradients


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('name', NETWORKS)
def test_losses_and_gradients_are_those_of_the_cpu_in_float32(name, order):
    model = network(name)
    (losses, gradients), (expected, expected_gradients) = (one_step(model, device, order) for device in ('cuda', 'cpu'))
    assert set(TERMS) < set(losses) and all(expected[term] > 0 for term in TERMS[:2])
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    assert relative_error(gradients, expected_gradients) < 0.02  # on an H200: Lite0 0.0105, the others below 0.005


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('name', NETWORKS)
def test_half_precision_gives_finite_losses_near_those_of_float32(name, order, dtype, tolerance):
    """Of the loss; the terms, that a mask with a steep sigmoid is in, differ by up to 0.1 of their range, 0 to 1."""
    model = network(name)
    losses, gradients = one_step(model, 'cuda', order, partial(torch.autocast, 'cuda', dtype))
    expected, _ = one_step(model, 'cuda', order)
    assert gradients.isfinite().all() and all(value.isfinite() for value in losses.values())
    torch.testing.assert_close(losses['loss_cls'], expected['loss_cls'], rtol=tolerance, atol=0)
    for term in TERMS:
        torch.testing.assert_close(losses[term], expected[term], rtol=0, atol=0.1, msg=f'{term} of {name}')


@pytest.mark.parametrize('method', ['ach', 'grad_cam'])
@pytest.mark.parametrize('dtype, least', [(torch.bfloat16, 0.98), (torch.float16, 0.999)])
@pytest.mark.parametrize('name', NETWORKS)
def test_maps_in_half_precision_look_like_those_of_float32(name, dtype, least, method):
    """By the cosine of a map with its own in float32."""
    model, (images, target) = network(name).cuda().eval(), (x.cuda() for x in batch())
    expected = attention_maps(model, images, classes=target[:, None], method=method).flatten(1)
    with torch.autocast('cuda', dtype):
        maps = attention_maps(model, images, classes=target[:, None], method=method).float().flatten(1)
    assert maps.isfinite().all()
    silent = expected.norm(dim=1) == 0
    assert not silent.all()
    cosine = torch.nn.functional.cosine_similarity(maps, expected)[~silent]
    assert cosine.min() > least


@pytest.mark.parametrize('order', [1, 2])
def test_recorded_and_eager_training_end_alike_after_twenty_steps(order):
    """The same parameters; and one that was left out would be far from both."""
    models = {}
    for how in ('eager', 'recorded'):
        model = network('resnet20_cifar').cuda().train()
        task = ICASCTask(model, order=order, device=torch.device('cuda'), verbose=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        step = TrainingStep(task)
        if how == 'recorded':
            step = RecordedStep(step, CudaRecorder(torch.device('cuda')))
        task.train()
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            images = torch.randn(16, 3, 32, 32, generator=generator).cuda()
            step(images, torch.randint(10, (16,), generator=generator).cuda())
            optimizer.step()
            optimizer.zero_grad()
        models[how] = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert how == 'eager' or step.recordings == 1
    began = torch.cat([p.detach().flatten() for p in network('resnet20_cifar').parameters()]).cuda()
    moved = (models['eager'] - began).norm()
    assert (models['recorded'] - models['eager']).norm() < 1e-3 * moved


def test_a_run_tells_the_memory_of_its_own(tmp_path, monkeypatch, capsys):
    """Not the peak of those before it in the process, nor their models, which are still there."""
    images = save_noise(tmp_path / 'images', train=8, val=3)
    options = ('--data-dir', images, *TINY, '--epochs', 1, '--output', tmp_path)
    for name, method in (('both', '--icasc-compare'), ('icasc', '--icasc'), ('plain', '--no-icasc')):
        assert train_in_process(monkeypatch, capsys, *options, method, '--experiment', name)[0] == 0
    second, alone, plain = (
        json.loads((tmp_path / run / 'results.json').read_text())['peak_memory_mib']
        for run in ('both/icasc', 'icasc', 'plain'))
    assert second == pytest.approx(alone, rel=0.05) and plain < alone


def test_the_bench_measures_memory_where_torch_counts_it():
    setting = BenchmarkSetting(batch_size=8, device='cuda')
    peaks = cost.measure_memory('resnet20_cifar', setting)
    assert set(peaks) == set(setting.variants)
    assert 0 < peaks['cross-entropy'] < peaks['ICASC order 2'] < 2000
    assert cost.measure_memory('resnet20_cifar', setting) == pytest.approx(peaks, rel=0.02)


@pytest.mark.parametrize('options', [
    [], ['--no-prefetcher'], ['--no-prefetcher', '--mixup', 0.2], ['--amp', '--channels-last', '--icasc-order', 2],
    ['--resident-data', '--no-aug'], ['--class-weights', 'balanced'], ['--model-ema', '--clip-grad', 1]],
    ids=lambda options: ' '.join(map(str, options)) or 'as by default')
def test_a_run_and_what_is_made_of_it(options, tmp_path, monkeypatch, capsys):
    """Whatever brings the images to the GPU."""
    images = save_noise(tmp_path / 'images', train=8, val=3)
    code, _, err = train_in_process(
        monkeypatch, capsys, '--data-dir', images, *TINY, '--epochs', 2, '--output', tmp_path, '--experiment', 'x',
        *options)
    assert code == 0, err
    results = json.loads((tmp_path / 'x' / 'results.json').read_text())
    assert results['device'].startswith('NVIDIA') and np.isfinite(results['last']['train_loss'])
    commands = (['eval', '--robustness', '--faithfulness', '--images', '6'], ['eval', '--ten-crop', '--device', 'cpu'],
                ['figure', 'classes', '--indices', '0', '--output', tmp_path / 'f.png'])
    for command in commands:
        place = 2 if command[0] == 'figure' else 1
        assert main([str(word) for word in (*command[:place], tmp_path / 'x', *command[place:])]) == 0


@pytest.mark.parametrize('options', [[], ['--no-prefetcher']], ids=['prefetched', 'plain'])
def test_a_run_of_several_classes(options, tmp_path, monkeypatch, capsys):
    make_packed_voc(tmp_path / 'voc')
    code, _, err = train_in_process(
        monkeypatch, capsys, '--dataset', 'voc2007-packed', '--data-dir', tmp_path / 'voc', '--val-split', 'val', *TINY,
        '--batch-size', 2, '--epochs', 1, '--output', tmp_path, '--experiment', 'x', *options)
    assert code == 0, err
    assert main(['eval', str(tmp_path / 'x'), '--faithfulness']) == 0
