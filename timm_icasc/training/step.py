"""Forward and backward pass of a training step, and the AMP scaler in the parts that go before and behind them."""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler

from ..errors import ICASCError

__all__ = ['Scaler', 'TrainingStep']


class Scaler(NativeScaler):
    """timm's gradient scaler with its one call in three, between which gradients can be clipped."""

    def backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        self._scaler.unscale_(optimizer)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        self._scaler.step(optimizer)
        self._scaler.update()


class TrainingStep:
    """The forward pass of a task, and the backward pass of its loss, which adds to the gradients that are there.

    Args:
        task: A timm task.
        autocast: Makes the context of the forward pass.
        scaler: Scales the loss before the backward pass.
    """

    def __init__(
            self,
            task: ClassificationTask,
            autocast: Callable[[], AbstractContextManager] = nullcontext,
            scaler: Scaler | None = None,
    ):
        self.task, self.autocast, self.scaler = task, autocast, scaler

    def __call__(
            self,
            images: torch.Tensor,
            target: torch.Tensor,
            parts: int = 1,
    ) -> dict[str, torch.Tensor]:
        """One step.

        Args:
            images: What the task takes.
            target: What the task takes.
            parts: Batches that share one update of the optimiser: the gradient is divided by their number.

        Returns:
            The task's result, without its graph.

        Raises:
            ICASCError: BatchNorm has one value per channel.
        """
        try:
            with self.autocast():
                result = self.task(images, target)
        except ValueError as e:
            if 'more than 1 value per channel' not in str(e):
                raise
            raise ICASCError(
                f'`batch_size={len(images)}`: BatchNorm cannot train on one image whose features are one pixel, as '
                f'those of this model are here: raise `batch_size` or `img_size`.') from e
        loss = result['loss'] / parts
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.backward(loss)
        return {name: value.detach() for name, value in result.items()}
