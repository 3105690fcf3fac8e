"""What is measured behind the training steps of an epoch."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from timm.task import ClassificationTask

from timm_icasc.errors import TargetError
from timm_icasc.labels import SINGLE
from timm_icasc.training import epoch as training_epoch


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
