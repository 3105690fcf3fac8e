"""What is measured behind the training steps of an epoch."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from helpers.processes import in_two_processes
from timm.task import ClassificationTask

from timm_icasc.errors import TargetError
from timm_icasc.labels import SINGLE
from timm_icasc.training import epoch as training_epoch


def evaluate_average(rank, folder):
    """Statistics that differ between the processes, as each sees other images, and what is left of the difference."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    task = ClassificationTask(model, verbose=False)
    task.setup_ema(decay=0.5)
    average = task.get_trainable_module(ema=True).module
    model[0].running_mean.fill_(rank), average[0].running_mean.fill_(10 * rank)
    args = SimpleNamespace(distributed=True, dist_bn='reduce', world_size=2, rank=rank)
    job = SimpleNamespace(args=args, model=model, task=task)
    training_epoch.share_statistics(job)
    torch.save([m[0].running_mean for m in (model, average)], folder / f'{rank}.pt')


def test_processes_measure_the_same_average_of_the_weights(tmp_path):
    """With --model-ema it is the average that is measured, and saved by the first process."""
    in_two_processes(evaluate_average, tmp_path)
    for rank in range(2):
        assert [mean.tolist() for mean in torch.load(tmp_path / f'{rank}.pt')] == [[0.5, 0.5], [5., 5.]]


@pytest.mark.parametrize('target, said', [(-1, 'class -1, as of images without a label'), (3, 'holds class 3')])
def test_validation_images_of_no_class_are_named(target, said):
    """Public test splits have -1 for their labels; with cross-entropy alone it was an IndexError of torch."""
    task = ClassificationTask(nn.Linear(2, 3), verbose=False)
    args = SimpleNamespace(channels_last=False, distributed=False, rank=1)
    job = SimpleNamespace(
        args=args, device=torch.device('cpu'), labels=SINGLE, autocast=nullcontext,
        create_evaluator=task.create_evaluator, loader_val=[(torch.zeros(2, 2), torch.tensor([0, target]))])
    with pytest.raises(TargetError, match=said):
        training_epoch.validate(task.trainable_module, job, SimpleNamespace(batches=iter), averaged=False)
