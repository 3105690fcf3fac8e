"""Two processes: what travels between them, and parameters that live in shards. (DDP's gradients: test_task.)"""
import json
from collections import Counter
from functools import partial
from itertools import product

import pytest
import timm
import torch
from helpers.processes import in_two_processes
from timm.task import ClassificationTask

from timm_icasc import ICASCError, ICASCTask, attention_maps, resolve_layers
from timm_icasc.errors import VersionError
from timm_icasc.features import module_state

IMAGES, TARGET = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
SHARES = (1., 0.5)
RUNS_SHARDS = hasattr(torch.cpu.Stream, 'record_event')  # torch 2.6 does not, on a CPU


def half(batch, rank):
    part = batch[2 * rank:2 * rank + 2]
    return part.double() if part.is_floating_point() else part


def create(name='resnet20_cifar', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **kwargs)


def count_collectives(rank, folder):
    """Calls of the process group in the second training step, by name, of the plain task and of both orders."""
    counts = []
    for make in (ClassificationTask, partial(ICASCTask, order=1), partial(ICASCTask, order=2)):
        task = make(create(), verbose=False).train()
        task.prepare_distributed(bucket_cap_mb=0.1)
        for _ in range(2):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                task(IMAGES, TARGET)['loss'].backward()
        counts.append(Counter(e.name for e in profile.events() if e.name.startswith('gloo:')))
    (folder / f'{rank}.json').write_text(json.dumps(counts))


def test_icasc_adds_no_collective_to_a_step_of_ddp(tmp_path):
    """One all-reduce a bucket, as without ICASC, while the backward pass goes on."""
    in_two_processes(count_collectives, tmp_path)
    for rank in range(2):
        plain, *orders = json.loads((tmp_path / f'{rank}.json').read_text())
        assert plain['gloo:all_reduce'] > 3 and orders == [plain, plain]


def gradients_of_shards(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh('cpu', (2,))
    for name, blocks, kwargs, layers in ARCHITECTURES:
        model = create(name, **kwargs).double().eval()
        for block in [module for path in blocks for module in model.get_submodule(path).children()]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if not RUNS_SHARDS:
            with pytest.raises(VersionError, match=r'^torch 2\.6\S* cannot run fully_shard \(FSDP2\) on a CPU'):
                ICASCTask(model, order=1, verbose=False)(half(IMAGES, rank), half(TARGET, rank))
            continue
        for share in SHARES:
            model.zero_grad()
            task = ICASCTask(model, order=1, layers=layers, share=share, verbose=False)
            task(half(IMAGES, rank), half(TARGET, rank))['loss'].backward()
            gradients = {key: p.grad.full_tensor() for key, p in model.named_parameters()}
            if rank == 0:
                torch.save(gradients, folder / f'{name}-{share}.pt')
        with pytest.raises(ICASCError, match='order=2 does not work with fully_shard'):
            ICASCTask(model, order=2, verbose=False)(half(IMAGES, rank), half(TARGET, rank))


ARCHITECTURES = (
    ('resnet20_cifar', ('layer1', 'layer2', 'layer3'), {}, ('layer2', 'layer3')),
    ('vit_tiny_patch16_224', ('blocks',), {'img_size': 32, 'depth': 4}, ('blocks.1', 'blocks.2')),
)


@pytest.mark.parametrize('call', [
    lambda model: resolve_layers(model),
    lambda model: ICASCTask(model, order=1, verbose=False)(IMAGES, TARGET),
    lambda model: attention_maps(model, IMAGES)], ids=['layers', 'task', 'maps'])
def test_a_torch_that_cannot_run_shards_on_a_cpu(call, monkeypatch):
    """torch 2.6: AttributeError, 'Stream' object has no attribute 'record_event'."""
    monkeypatch.delattr(torch.cpu.Stream, 'record_event', raising=False)
    call(create())
    monkeypatch.setattr(module_state, 'is_sharded', lambda model: True)
    with pytest.raises(VersionError, match=r'^torch \S+ cannot run fully_shard \(FSDP2\) on a CPU'):
        call(create())


def test_fully_sharded_parameters_at_order_1(tmp_path):
    """Gradients are the mean of those that each process's batch gives elsewhere; order 2 is refused."""
    in_two_processes(gradients_of_shards, tmp_path)
    if not RUNS_SHARDS:
        return
    for (name, _, kwargs, layers), share in product(ARCHITECTURES, SHARES):
        model = create(name, **kwargs).double().eval()
        task = ICASCTask(model, order=1, layers=layers, share=share, verbose=False)
        for rank in range(2):
            (task(half(IMAGES, rank), half(TARGET, rank))['loss'] / 2).backward()
        gradients = torch.load(tmp_path / f'{name}-{share}.pt')
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-8, atol=1e-12)
