"""What a CUDA graph does, done on the CPU: the operations of a function recorded once, and replayed without Python.

As with a CUDA graph, recording leaves everything as it was, a replay runs the same operations on the same memory (with
fresh random numbers, and with every Python number as it was), and nothing may wait for a value or for the host.
"""
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
# Their result has a shape, or is a number, that follows from the data: the host waits for it.
WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


def _tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def _memory(tensors):
    return {x.untyped_storage().data_ptr() for x in tensors if x.untyped_storage().nbytes()}


def _alias(tree):
    """The tensors of a call as they are at this moment: same memory, without graph."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


class _Log(TorchDispatchMode):
    """Runs and writes down every operation, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.kept, self.before = [], set(), [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        if func in INDEXING:
            waits = any(x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1]))
        else:
            waits = any(tag in func.tags for tag in WAITS)
        if waits:
            raise RuntimeError(f'{func} waits for the device')
        if func is aten.lift_fresh.default:
            raise RuntimeError('numbers of the host are copied to the device')
        for x in inputs:  # memory from before the recording
            storage = x.untyped_storage()
            if not _memory([x]) <= self.made | self.before.keys():
                self.before[storage.data_ptr()] = (storage, storage.clone())
        logged = _alias((args, kwargs))
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        writes = func._schema.is_mutable
        view = not writes and _memory(outputs) and _memory(outputs) <= _memory(inputs)
        if not view and torch.Tag.inplace_view not in func.tags:
            self.calls.append((func, logged, None if writes else _tensors(_alias(result))))
        self.made |= _memory(outputs) - self.before.keys()
        self.kept.extend(_alias(outputs))  # memory that is let go of could come back under another name
        return result


class OpRecorder:
    """A `Recorder` for the CPU."""

    def __init__(self):
        self.warm_ups = self.replays = 0

    def warm_up(self, function):
        self.warm_ups += 1
        return function()

    def record(self, function):
        random_state, log = torch.get_rng_state(), _Log()
        try:
            with log:
                result = function()
        finally:
            for storage, before in log.before.values():
                storage.copy_(before)
            torch.set_rng_state(random_state)

        @torch.no_grad()
        def replay():
            self.replays += 1
            for func, (args, kwargs), outputs in log.calls:
                made = _tensors(func(*args, **kwargs))
                if outputs is not None:
                    for output, new in zip(outputs, made, strict=True):
                        output.copy_(new)
        return replay, result
