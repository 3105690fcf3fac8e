"""A model in the midst of its training, which somebody looks at."""
import copy
from contextlib import contextmanager

import torch


@contextmanager
def in_training(model):
    """In training mode, but for a frozen part; flags, weights and buffers are to be left as they were."""
    model.train()
    next(model.children()).eval()
    flags, before = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    yield
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
