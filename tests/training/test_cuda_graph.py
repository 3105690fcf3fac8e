"""Recorded steps: the same training as without, and one clear line where there is none.

A CUDA graph needs a GPU; `OpRecorder` does on the CPU what it does. The tests at the end are those of the real one.
"""
import copy
import multiprocessing
from functools import partial

import pytest
import timm
import torch
from helpers.fake_cuda_graph import OpRecorder
from helpers.gpu import on_a_gpu
from helpers.models import FAMILIES, ToyNet, create, made_once
from timm.data import Mixup
from timm.task import ClassificationTask
from timm.utils import dispatch_clip_grad

from timm_icasc import ICASCError, ICASCTask, MultiLabelICASCTask
from timm_icasc.labels import MULTI, SINGLE
from timm_icasc.task.public_approach import PublicApproachTask
from timm_icasc.training.cuda_graph import CudaRecorder, RecordedStep
from timm_icasc.training.step import Scaler, TrainingStep

STEPS, CLASSES = 6, 10
TERMS = {'loss_as_inner', 'loss_as_last', 'loss_ac'}


@pytest.fixture
def unread(monkeypatch):
    """Targets are looked at on a CPU, where nothing waits for it; on the devices that record they are not."""
    for kind in (SINGLE, MULTI):
        monkeypatch.setattr(kind, 'check', lambda *args: None)


def images_and_target(generator, size=4):
    return torch.randn(size, 3, 16, 16, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def mixed(images, target):
    return Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=CLASSES)(images.clone(), target)


def several_classes(images, target):
    return images, torch.nn.functional.one_hot(target, CLASSES).float().roll(1, 0).maximum(
        torch.nn.functional.one_hot(target, CLASSES).float())


def train(
        make_task=None,
        recorder=None,
        device='cpu',
        model_kwargs=None,
        batch=None,
        sizes=(4,) * STEPS,
        amp=None,
        scaler=False,
        clip=None,
        lr=0.05,
):
    """Train for some steps, recorded if there is a recorder, as train_timm.py does: EMA, schedule, and all.

    Returns:
        Everything that the steps have left behind, and what each of them gave.
    """
    timm.utils.random_seed(0)
    model = timm.create_model('resnet8_cifar', num_classes=CLASSES, **(model_kwargs or {})).to(device)
    make_task = make_task or partial(ICASCTask, order=2)
    task = make_task(model, device=torch.device(device), verbose=False)
    task.setup_ema(decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    autocast = partial(torch.autocast, device, amp, enabled=amp is not None, cache_enabled=recorder is None)
    scaler = Scaler(device=device) if scaler else None
    step = TrainingStep(task, autocast, scaler)
    if recorder is not None:
        step = RecordedStep(step, recorder)
    task.train()
    generator, results = torch.Generator().manual_seed(1), []
    for i, size in enumerate(sizes):
        images, target = images_and_target(generator, size)
        if batch is not None:
            images, target = batch(images, target)
        result = step(images.to(device), target.to(device))
        results.append({name: value.clone() for name, value in result.items()})
        if clip is not None:
            if scaler is not None:
                scaler.unscale(optimizer)
            dispatch_clip_grad(model.parameters(), clip)
        if scaler is not None:
            scaler.update(optimizer)
        else:
            optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=i + 1)
        schedule.step()
    left = {'task': task.state_dict(), 'optimizer': optimizer.state_dict()['state'], 'step': task.get_task_state(),
            'scaler': scaler.state_dict() if scaler else None}
    return left, results, step


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


CASES = {
    'order 1': {'make_task': partial(ICASCTask, order=1)},
    'order 2': {},
    'mask with gradient, raw': {'make_task': partial(
        ICASCTask, order=2, mask_grad=True, mask_scale='raw', attention='grad_cam')},
    'the most confused half': {'make_task': partial(ICASCTask, order=2, share=0.5)},
    'plain loss': {'make_task': ClassificationTask},
    'public approach': {'make_task': PublicApproachTask},
    'clipping': {'clip': 0.1},
    'mixup': {'make_task': partial(ICASCTask, order=2, criterion_kwargs={'soft_targets': True}), 'batch': mixed},
    'several classes': {'make_task': partial(MultiLabelICASCTask, order=2), 'batch': several_classes},
    'dropout and drop path': {'model_kwargs': {'drop_rate': 0.5, 'drop_path_rate': 0.5}},
    # Slow without oneDNN, whose backward pass knows neither.
    'bfloat16': {'amp': torch.bfloat16, 'sizes': (2,) * STEPS},
    'float16, scaled': {'amp': torch.float16, 'scaler': True, 'clip': 1., 'sizes': (2,) * 7},
}


@pytest.mark.filterwarnings('ignore:Detected call of .lr_scheduler')  # a first step that the scaler skips
@pytest.mark.parametrize('case', CASES.values(), ids=list(CASES))
def test_training_is_the_same_with_recorded_steps(case, unread):
    """Bit by bit: weights, averages, BatchNorm's statistics, momentum, loss scale, count of steps, every result."""
    with torch.backends.mkldnn.flags(enabled='amp' not in case):
        left, results, _ = train(**case)
        recorder = OpRecorder()
        left_recorded, results_recorded, step = train(**case, recorder=recorder)
    assert recorder.replays == len(results) - RecordedStep.WARM_UP and step.recordings == 1
    assert_equal(left_recorded, left)
    assert_equal(results_recorded, results)
    assert results[0]['loss'] != results[-1]['loss']


def test_the_phases_of_a_late_start(unread):
    """Plain steps are recorded, then the steps with full terms; those in between, with a factor each, are not."""
    make_task, recorder = partial(ICASCTask, order=2, start_steps=6, ramp_steps=4), OpRecorder()
    sizes = (4,) * 14
    left, results, _ = train(make_task, sizes=sizes)
    left_recorded, results_recorded, step = train(make_task, recorder, sizes=sizes)
    assert_equal(left_recorded, left)
    assert_equal(results_recorded, results)
    assert step.recordings == 2
    plain, full = 6, 14 - 6 - 3
    assert recorder.warm_ups == 2 * RecordedStep.WARM_UP
    assert recorder.replays == plain + full - recorder.warm_ups
    assert [TERMS < set(result) for result in results_recorded] == [False] * 6 + [True] * 8


def test_odd_batches_in_between(unread):
    sizes = (4, 4, 4, 3, 4, 4, 3, 4)
    recorder = OpRecorder()
    left, results, _ = train(sizes=sizes)
    left_recorded, results_recorded, step = train(sizes=sizes, recorder=recorder)
    assert step.recordings == 1 and recorder.replays == sizes.count(4) - RecordedStep.WARM_UP
    assert_equal(left_recorded, left)
    assert_equal(results_recorded, results)


def recorded_toy(model, **kwargs):
    return RecordedStep(TrainingStep(ICASCTask(model, order=2, verbose=False, **kwargs)), OpRecorder())


def test_few_kinds_of_batches_are_recorded(toy, unread):
    step, generator = recorded_toy(toy), torch.Generator().manual_seed(1)
    for size in range(2, 9):
        images, target = images_and_target(generator, size)
        for _ in range(RecordedStep.WARM_UP + 1):
            step(images, target % 4)
    assert step.recordings == RecordedStep.MOST == step.recorder.replays


def test_channels_last_batches_are_another_kind(toy, unread):
    step, (images, target) = recorded_toy(toy), images_and_target(torch.Generator().manual_seed(1))
    for _ in range(RecordedStep.WARM_UP + 1):
        step(images, target % 4)
        step(images.contiguous(memory_format=torch.channels_last), target % 4)
    assert step.recordings == 2


def test_gradients_are_those_of_the_batch_whatever_was_there(toy, unread):
    """And frozen parameters keep none."""
    toy.stem.requires_grad_(False)
    step, (images, target) = recorded_toy(toy), images_and_target(torch.Generator().manual_seed(1))
    seen = []
    for _ in range(RecordedStep.WARM_UP + 3):
        step(images, target % 4)
        seen.append([None if p.grad is None else p.grad.clone() for p in toy.parameters()])
        toy.fc.weight.grad = torch.ones_like(toy.fc.weight)
    assert [g is None for g in seen[-1]] == [not p.requires_grad for p in toy.parameters()]
    for gradients in seen[1:]:
        assert_equal(gradients, seen[0])


def test_evaluation_in_between_leaves_the_recording_alone(toy, unread):
    step, (images, target) = recorded_toy(toy), images_and_target(torch.Generator().manual_seed(1))
    losses = []
    for _ in range(RecordedStep.WARM_UP + 2):
        losses.append(step(images, target % 4)['loss'].item())
        with torch.no_grad():
            toy.eval()(images)
        toy.train()
    assert len(set(losses)) == 1


HIERA = 'hiera_tiny_224'  # keeps its tokens in an order of its own
# Of each kind of operations, with fewer blocks; the other families are made of the same.
OF_ALL_OPERATIONS = {
    'convnext_atto': {'depths': (1, 1, 2, 1)}, 'efficientnet_b0': {}, 'swin_tiny_patch4_window7_224': {},
    'vit_tiny_patch16_224': {'depth': 4},
    HIERA: {'img_size': 64, 'stages': (1, 2, 2, 1)}}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in OF_ALL_OPERATIONS else pytest.mark.slow) for name in (*FAMILIES, HIERA)])
def test_no_family_waits_for_the_device(name, unread):
    size, kwargs = FAMILIES[name][1] if name in FAMILIES else (3, 64, 64), OF_ALL_OPERATIONS.get(name, {})
    model = (create(name, **kwargs) if name in FAMILIES else made_once(name, num_classes=10, **kwargs)).train()
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    images, target = torch.randn(2, *size, generator=generator), torch.tensor([1, 2])

    def step_of(network):
        task = ICASCTask(network, order=2, input_size=size, verbose=False)
        task._has_looked = True  # a recording is made behind steps that were run
        return partial(TrainingStep(task), images, target)

    replay, result = OpRecorder().record(step_of(model))
    for values in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(*values), 'recording runs nothing'
    images.copy_(torch.randn(2, *size, generator=generator))
    torch.manual_seed(2)
    replay()
    torch.manual_seed(2)
    assert_equal(result, step_of(twin)())
    assert_equal({n: p.grad for n, p in model.named_parameters()}, {n: p.grad for n, p in twin.named_parameters()})
    assert_equal(dict(model.named_buffers()), dict(twin.named_buffers()))


class Waiting(ToyNet):
    """Reads a value in the forward pass."""
    def forward(self, x):
        return super().forward(x) * (1 if x.mean().item() < 9 else 2)


class Choosing(ToyNet):
    """Its shapes follow from the data."""
    def forward(self, x):
        return super().forward(x) + x[x > 0].mean()


class Copying(ToyNet):
    """Brings numbers from the host."""
    def forward(self, x):
        return super().forward(x) * torch.tensor([1., 2., 3., 4.])


@pytest.mark.parametrize('model, reason', [
    (Waiting(), '_local_scalar_dense'), (Choosing(), 'waits for the device'), (Copying(), 'numbers of the host')])
def test_models_that_wait_for_the_device_are_refused(model, reason, unread):
    step, (images, target) = recorded_toy(model), images_and_target(torch.Generator().manual_seed(1))
    for _ in range(RecordedStep.WARM_UP):
        step(images, target % 4)
    with pytest.raises(ICASCError, match=f'(?s)--icasc-fast: .*{type(model).__name__}.*{reason}.*--no-icasc-fast') as e:
        step(images, target % 4)
    assert '\n' not in e.value.line


def test_what_a_recording_cannot_hold_is_refused(toy):
    images, target = images_and_target(torch.Generator().manual_seed(1))
    with pytest.raises(ICASCError, match='--grad-accum-steps'):
        recorded_toy(toy)(images, target % 4, parts=2)
    with pytest.raises(ICASCError, match='images of one size'):
        recorded_toy(toy)({'patches': images}, target % 4)


@on_a_gpu
@pytest.mark.parametrize('case', [
    {'make_task': ClassificationTask}, {'make_task': partial(ICASCTask, order=1)}, {'clip': 0.1},
    {'make_task': partial(ICASCTask, order=2, share=0.5)},
    {'make_task': partial(ICASCTask, order=2, start_steps=6, ramp_steps=4), 'sizes': (4,) * 20},
    {'amp': torch.bfloat16},
    {'amp': torch.float16, 'scaler': True, 'clip': 1.}, {'batch': mixed, 'make_task': partial(
        ICASCTask, criterion_kwargs={'soft_targets': True})},
    {'make_task': partial(MultiLabelICASCTask, order=2), 'batch': several_classes}, {'make_task': PublicApproachTask},
], ids=['plain', 'order 1', 'clipping', 'share', 'late start', 'bfloat16', 'float16', 'mixup',
        'several classes', 'public'])
def test_cuda_graphs_train_the_same(case):
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        left, results, _ = train(**case, device='cuda', lr=1e-3)
        recorder = CudaRecorder(torch.device('cuda'))
        left_recorded, results_recorded, step = train(**case, device='cuda', lr=1e-3, recorder=recorder)
    assert step.recordings >= 1
    tolerance = {'rtol': 1e-2, 'atol': 1e-2} if 'amp' in case else {'rtol': 1e-3, 'atol': 1e-4}
    assert left_recorded['step'] == left['step'] and left_recorded['scaler'] == left['scaler']
    torch.testing.assert_close(left_recorded['task'], left['task'], **tolerance)
    torch.testing.assert_close([r['loss'] for r in results_recorded], [r['loss'] for r in results], **tolerance)


@on_a_gpu
def test_cuda_graphs_draw_random_numbers_anew():
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=CLASSES, drop_rate=0.5).cuda()
    step = RecordedStep(TrainingStep(ICASCTask(model, order=2, device=torch.device('cuda'), verbose=False)),
                        CudaRecorder(torch.device('cuda')))
    images, target = (x.cuda() for x in images_and_target(torch.Generator().manual_seed(1)))
    losses = [step(images, target)['loss'].item() for _ in range(RecordedStep.WARM_UP + 4)]
    assert step.recordings == 1 and len(set(losses)) == len(losses)


def refusal_on_a_gpu():
    model = Waiting().cuda()
    step = RecordedStep(TrainingStep(ICASCTask(model, order=2, device=torch.device('cuda'), verbose=False)),
                        CudaRecorder(torch.device('cuda')))
    images, target = (x.cuda() for x in images_and_target(torch.Generator().manual_seed(1)))
    for _ in range(RecordedStep.WARM_UP):
        step(images, target % 4)
    try:
        step(images, target % 4)
    except ICASCError as e:
        return e.line


@on_a_gpu
def test_cuda_graphs_of_models_that_wait_are_refused():
    """In a process of its own: a recording that has failed may leave the GPU's memory locked."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        assert '--no-icasc-fast' in pool.apply(refusal_on_a_gpu)
