"""Stop a training run between two steps, so that no checkpoint is ever half written."""
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ['Interrupted', 'ignore_signals', 'interruptible', 'stopping_loaders']


class Interrupted(Exception):
    """Ctrl-C or SIGTERM reached the run; `exit_code` is the shell's, 128 + signal number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopSignal:
    signal_number = 0

    def raise_if_set(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.signal_number:
            raise Interrupted(self.signal_number)


@contextmanager
def interruptible() -> Iterator[StopSignal]:
    """Turn SIGINT and SIGTERM into a flag for `raise_if_set()`; the second one acts at once, as without it."""
    flag = StopSignal()
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        flag.signal_number = number
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, on_signal)
    try:
        yield flag
    except Exception as e:
        if flag.signal_number and not isinstance(e, Interrupted):
            raise Interrupted(flag.signal_number) from e  # the signal's doing, a broken connection to a process, say
        raise
    finally:
        restore()


def ignore_signals(worker_init: Callable[[int], None], worker: int) -> None:
    """Start of a data loading process: a signal to the whole process group is the main process's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker_init(worker)


@contextmanager
def stopping_loaders() -> Iterator[None]:
    """Let go of the data loading processes when an error leaves this context.

    An error that comes from such a process sits in a frame of its own traceback. That ring keeps the loader alive until
    Python's end, where the processes would be waited for in vain, since they ignore SIGTERM.
    """
    try:
        yield
    except BaseException as e:
        error: BaseException | None = e
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        raise
