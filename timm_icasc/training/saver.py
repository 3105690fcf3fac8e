"""timm's saver of checkpoints: no moment is without an intact last.pth.tar, and no kill decides what is best."""
import os
import shutil
import time
from pathlib import Path
from typing import Any

from timm import utils

from ..runs.files import replacing
from ..runs.folder import BEST, CLASS_NAMES, FINGERPRINTS, LAST, SAVED

__all__ = ['CheckpointSaver']


class CheckpointSaver(utils.CheckpointSaver):
    """Files and format are timm's; what it keeps in 'saver' has the class names, the images and the time besides.

    Args:
        class_names: In the order of the logits; None where the data do not tell.
        fingerprints: Of the images of each split.
        **kwargs: timm's.
    """

    def __init__(
            self,
            *args: Any,
            class_names: list[str] | None = None,
            fingerprints: dict[str, str | None] | None = None,
            **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.noted = {CLASS_NAMES: class_names, FINGERPRINTS: fingerprints or {}}

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        with replacing(Path(save_path)) as partial:
            super()._save(str(partial), epoch, metric)

    def _duplicate(self, src: str, dst: str) -> None:
        """A second name of the same file; a copy where the file system has no such names."""
        if os.path.exists(dst) and os.path.samefile(src, dst):
            return
        with replacing(Path(dst)) as partial:
            partial.unlink()
            try:
                os.link(src, partial)
            except (OSError, NotImplementedError):
                shutil.copyfile(src, partial)

    def state_dict(self, epoch: int | None = None, metric: float | None = None) -> dict[str, Any]:
        """timm's, what must not change until the run goes on, and when it was written."""
        state = super().state_dict(epoch, metric)
        return {**state, **self.noted, SAVED: time.time()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history, and do what a kill behind the writing of `last` has kept from being done."""
        epoch, metric = state_dict.get('pending', (None, None))
        super().load_state_dict({**state_dict, 'pending': (None, None)})
        if metric is not None:
            self._rank(epoch, metric)
        best = self._checkpoint_path(self.best_epoch)
        if os.path.exists(best):
            self._duplicate(best, os.path.join(self.checkpoint_dir, BEST))

    def go_on_from(self, checkpoint: Path) -> None:
        """Take up the history of a checkpoint of this folder, which is the last one from now on."""
        self._duplicate(str(checkpoint), os.path.join(self.checkpoint_dir, LAST))
        self.load_state_dict_from_checkpoint(str(checkpoint))

    def save_checkpoint(
            self,
            epoch: int,
            metric: float | None = None,
    ) -> tuple[float | None, int | None]:
        """Save `last`, then its place among the best ones if there is a metric; returns the best one and its epoch."""
        self._save(os.path.join(self.checkpoint_dir, LAST), epoch, metric)
        if metric is not None:  # else the epoch was not validated
            self._rank(epoch, metric)
        return self.best_metric, self.best_epoch

    def _rank(self, epoch: int, metric: float | None) -> None:
        """Name `last` checkpoint-EPOCH and model_best, if it deserves it; the worst one goes afterwards."""
        full = len(self.checkpoint_files) >= self.max_history
        least = self.checkpoint_files[-1][1] if full else None
        if least is None or metric is not None and self.cmp(metric, least):
            path = self._checkpoint_path(epoch)
            self._duplicate(os.path.join(self.checkpoint_dir, LAST), path)
            self._track_checkpoint(path, epoch, metric)
            self._cleanup_checkpoints()
