"""Two processes of a distributed job, forked from the tests' own: nothing is imported anew."""
import multiprocessing

import timm
import torch
import torch.distributed as dist

from timm_icasc.errors import VersionError


def _work(function, rank, folder):
    torch.set_num_threads(1)  # the parent's threads are not there any more
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    try:
        function(rank, folder)
    except VersionError as e:
        (folder / f'too_old-{rank}').write_text(e.line)
    dist.destroy_process_group()


def in_two_processes(function, folder):
    """Run `function(rank, folder)` in two processes that form a group; results go through files in `folder`."""
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_work, args=(function, rank, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    for file in folder.glob('too_old-*'):
        raise VersionError(file.read_text())
    assert [process.exitcode for process in processes] == [0, 0], 'the traceback is on stderr'


def small_convnext(num_classes):
    """The network of `save_gradients_of_half`: no BatchNorm, so that each image counts by itself."""
    torch.manual_seed(0)
    return timm.create_model('convnext_atto', num_classes=num_classes, depths=(1, 1, 1, 1)).double()


def save_gradients_of_half(rank, folder, num_classes, make_task):
    """A process's part of a test of DDP: its half of `batch.pt`, its gradients to `gradients-RANK.pt`."""
    model = small_convnext(num_classes)
    task = make_task(model)
    images, target = torch.load(folder / 'batch.pt')
    half = slice(2 * rank, 2 * rank + 2)
    task.prepare_distributed()
    for _ in range(2):  # the second step finds the reducer as the first left it
        task.zero_grad()
        task(images[half], target[half])['loss'].backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, folder / f'gradients-{rank}.pt')
