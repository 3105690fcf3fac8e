"""A compiled task: evaluation as one graph, training up to the inner layer, equal to the plain task."""
from functools import partial

import pytest
import torch
from helpers.models import create
from helpers.processes import in_two_processes, save_gradients_of_half, small_convnext

from timm_icasc import ICASCTask
from timm_icasc.models.resnet_cifar import _create_resnet_cifar

SIZE = (3, 32, 32)


def small(name='resnet20_cifar'):
    """Few blocks: what is compiled is a matter of the stages."""
    if name == 'convnext_atto':
        return create(name, depths=(1, 1, 2, 1))
    torch.manual_seed(0)
    return _create_resnet_cifar(name, 8, num_classes=10)


def counting(graphs):
    def backend(graph, inputs):
        graphs.append(graph)
        return graph
    return backend


def batches(number, size=2):
    generator = torch.Generator().manual_seed(3)
    for _ in range(number):
        yield torch.randn(size, *SIZE, generator=generator), torch.randint(10, (size,), generator=generator)


def train(task, number, autocast=False, channels_last=False):
    """Losses of so many steps of SGD."""
    optimizer, losses = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9), []
    task.train()
    for images, target in batches(number):
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            result = task(images, target)
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
        task.update_ema()
        losses.append(result['loss'].item())
    return losses


@pytest.mark.parametrize('steps, number, name, options, how', [
    (8, 2, 'resnet20_cifar', {'order': 1}, {}), (4, 2, 'resnet20_cifar', {'order': 2}, {}),
    (6, 2, 'resnet20_cifar', {'order': 1, 'start_steps': 2, 'ramp_steps': 2}, {'channels_last': True}),
    (3, 3, 'convnext_atto', {'order': 1}, {'autocast': True}),
    (4, 4, 'resnet20_cifar', {'order': 1, 'share': 0.5}, {})])
def test_the_steps_are_those_of_the_plain_task(steps, number, name, options, how):
    """And each module is compiled once; with `share` for the whole batch and for the part of it that runs again."""
    plain, compiled = (ICASCTask(small(name), verbose=False, **options) for _ in range(2))
    graphs = []
    compiled.compile(backend=counting(graphs))
    for task in (plain, compiled):
        task.setup_ema(decay=0.5)
    expected = train(plain, steps, **how)
    assert train(compiled, steps, **how) == pytest.approx(expected, rel=2e-2 if how.get('autocast') else 1e-4)
    assert len(graphs) == number
    expected = plain.trainable_module.state_dict()
    for key, value in compiled.trainable_module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=5e-2, atol=5e-2 if how.get('autocast') else 1e-3)


@pytest.mark.parametrize('own', [False, True])
def test_a_task_that_others_compile_runs_as_it_is(own):
    """As the Trainer of transformers and Accelerate do; what `task.compile` has compiled stays compiled."""
    plain, task = (ICASCTask(small(), verbose=False, order=1) for _ in range(2))
    graphs, others = [], []
    if own:
        task.compile(backend=counting(graphs))
    outer = torch.compile(task, backend=counting(others))
    expected = [plain(*batch)['loss'].item() for batch in batches(2)]
    assert [outer(*batch)['loss'].item() for batch in batches(2)] == pytest.approx(expected, rel=1e-4)
    assert not others and bool(graphs) == own and task.step == 2


def test_the_evaluation_is_one_graph_of_the_whole_model():
    model, graphs = small().eval(), []
    task = ICASCTask(model, verbose=False)
    task.compile(backend=counting(graphs))
    train(task, 2)
    images, before = next(batches(1))[0], len(graphs)
    task.eval()
    with torch.no_grad():
        torch.testing.assert_close(task.get_eval_model()(images), model(images))
    assert len(graphs) > before
    assert set(task.get_checkpoint_state()['state_dict']) == set(small().state_dict())


def test_evaluation_before_the_training_is_not_taken_for_its_first_step():
    task, graphs = ICASCTask(small(), order=1, verbose=False), []
    task.compile(backend=counting(graphs))
    task.eval()
    task(*next(batches(1)))
    assert not graphs
    train(task, 2)
    assert len(graphs) == 2


def test_what_stays_eager_is_said():
    model = create('convnext_atto')
    model.set_grad_checkpointing()
    task = ICASCTask(model, order=1, verbose=False)
    task.compile(backend='eager')
    with pytest.warns(UserWarning, match='The training is not compiled: gradient checkpointing'):
        assert train(task, 1)


def compiled_task(model):
    task = ICASCTask(model, order=1, verbose=False)
    task.compile(backend='eager')
    return task


def test_two_processes(tmp_path):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, *SIZE, dtype=torch.float64, generator=generator)
    target = torch.tensor([0, 1, 2, 3])
    torch.save((images, target), tmp_path / 'batch.pt')
    in_two_processes(partial(save_gradients_of_half, num_classes=10, make_task=compiled_task), tmp_path)
    model = small_convnext(10)
    ICASCTask(model, order=1, verbose=False)(images, target)['loss'].backward()
    for rank in range(2):
        for name, gradient in torch.load(tmp_path / f'gradients-{rank}.pt').items():
            expected = model.get_parameter(name).grad
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-10)
