"""The step that train_timm.py takes, and timm's scaler in parts."""
import pytest
import torch
from helpers.models import ToyNet
from timm.task import ClassificationTask
from timm.utils import NativeScaler, dispatch_clip_grad

from timm_icasc.training.step import Scaler, TrainingStep

IMAGES, TARGET = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])


def make(scaler=None):
    torch.manual_seed(0)
    model = ToyNet()
    return model, TrainingStep(ClassificationTask(model, verbose=False), scaler=scaler)


@pytest.mark.parametrize('clip', [None, 0.01])
def test_the_parts_are_timms_whole(clip):
    """Also where a gradient is infinite, and the step is left out."""
    (model, step), (twin, _) = make(Scaler(device='cpu')), make()
    optimizer, twin_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    whole = NativeScaler(device='cpu')
    for factor in (1., 1e30, 1.):
        step(IMAGES * factor, TARGET)
        if clip is not None:
            step.scaler.unscale(optimizer)
            dispatch_clip_grad(model.parameters(), clip)
        step.scaler.update(optimizer)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(IMAGES * factor), TARGET)
        whole(loss, twin_optimizer, clip, 'norm', twin.parameters())
        twin_optimizer.zero_grad()
        assert step.scaler.state_dict() == whole.state_dict()
        torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert whole.state_dict()['scale'] == 2. ** 15, 'one step was left out'


def test_parts_add_up_to_the_mean():
    (model, step), (twin, whole) = make(), make()
    for part in (slice(0, 2), slice(2, 4)):
        step(IMAGES[part], TARGET[part], parts=2)
    whole(IMAGES, TARGET)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_results_carry_no_graph():
    assert not any(value.requires_grad for value in make()[1](IMAGES, TARGET).values())
