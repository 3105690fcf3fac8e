"""A training step recorded once and replayed: small networks keep a GPU waiting for the launch of their kernels.

What is recorded is the forward and backward pass, ICASC's gradients of gradients included. Whatever depends on Python
from one step to the next (optimiser, clipping, schedule, average of weights) stays outside.
"""
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..errors import ICASCError, one_line
from ..task.icasc import ICASCTask
from .step import TrainingStep

__all__ = ['CudaRecorder', 'RecordedStep', 'Recorder']

Results = dict[str, torch.Tensor]


class Recorder(Protocol):
    """What can run a function such that it may be recorded later, and record it."""

    def warm_up(self, function: Callable[[], Results]) -> Results:
        """Run the function."""

    def record(self, function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        """Record the function without running it.

        Returns:
            What runs it again, and the result, whose tensors each run fills anew.

        Raises:
            RuntimeError: The function does something that a recording cannot repeat.
        """


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device):
        # One stream for all, so that libraries meet no stream for the first time while recording. One pool of memory:
        # no recording reads what another has left, and the results of the last are read before the next is run.
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Results]) -> Results:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
        graph = torch.cuda.CUDAGraph()
        # 'thread_local': a data loader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'):
            result = function()
        return graph.replay, result


@dataclass
class _Recording:
    """A recorded step with the tensors that it reads and fills."""
    replay: Callable[[], None]
    images: torch.Tensor
    target: torch.Tensor
    result: Results
    gradients: list[tuple[torch.nn.Parameter, torch.Tensor]]


class RecordedStep:
    """A `TrainingStep` that is recorded and replayed, one recording for each kind of batch and phase of the task.

    The first `WARM_UP` steps of a kind are run as they are. While the terms of ICASC grow (`ramp_steps`) nothing is
    recorded: their factor is a number that differs from step to step. Unlike the step inside, a call lets go of the
    gradients of the one before: `.grad` is that of this batch alone.

    The tensors of a result, and the gradients, hold until the next call, which may overwrite them.

    Args:
        step: The step. Its autocast must not cache casts, which the recording would take for granted.
        recorder: Makes the recordings.

    Raises:
        ICASCError: The step cannot be recorded.
    """
    WARM_UP = 3
    MOST = 4  # recordings: each keeps gradients of its own

    def __init__(self, step: TrainingStep, recorder: Recorder):
        self.step, self.recorder = step, recorder
        self._steps: Counter = Counter()
        self._recordings: dict[Hashable, _Recording] = {}

    @property
    def recordings(self) -> int:
        """The number of recordings made so far."""
        return len(self._recordings)

    def __call__(self, images: torch.Tensor, target: torch.Tensor, parts: int = 1) -> Results:
        """See `TrainingStep`."""
        if parts != 1:
            raise ICASCError(
                'a recorded step makes the gradient of one batch: leave --icasc-fast out, or '
                '--grad-accum-steps.')
        if not isinstance(images, torch.Tensor):
            raise ICASCError('a recorded step needs images of one size, [B, C, H, W]: leave --icasc-fast out.')
        for parameter in self.step.task.parameters():
            parameter.grad = None
        scale = self._term_scale()
        if scale not in (0., 1.):
            return self.step(images, target)
        kind = (scale, *((x.shape, x.stride(), x.dtype) for x in (images, target)))
        if kind not in self._recordings:
            self._steps[kind] += 1
            if self._steps[kind] <= self.WARM_UP or len(self._recordings) == self.MOST:
                return self.recorder.warm_up(lambda: self.step(images, target))
            self._recordings[kind] = self._record(images, target)
        return self._replay(self._recordings[kind], images, target)

    def _term_scale(self) -> float:
        task = self.step.task
        return task.term_scale if isinstance(task, ICASCTask) else 1.

    def _record(self, images: torch.Tensor, target: torch.Tensor) -> _Recording:
        task = self.step.task
        images, target = images.clone(), target.clone()
        state = task.get_task_state()  # Python counts the step, though nothing is run
        try:
            replay, result = self.recorder.record(lambda: self.step(images, target))
        except ICASCError:
            raise
        except RuntimeError as e:
            # What ends a recording that has failed fails again, and says less.
            raise ICASCError(
                f'--icasc-fast: the step of {type(task.trainable_module).__name__} cannot be recorded '
                f'({one_line(e.__context__ or e)}): leave it out (--no-icasc-fast).') from e
        task.load_task_state(state)
        gradients = [(p, p.grad) for p in task.parameters() if p.grad is not None]
        return _Recording(replay, images, target, result, gradients)

    def _replay(self, recording: _Recording, images: torch.Tensor, target: torch.Tensor) -> Results:
        task = self.step.task
        recording.images.copy_(images)
        recording.target.copy_(target)
        recording.replay()
        if isinstance(task, ICASCTask):
            task.step += 1
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        return dict(recording.result)
