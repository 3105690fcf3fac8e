"""Stop a training run between two steps, so that no checkpoint is ever half written."""
import signal
from contextlib import contextmanager
from typing import Iterator

__all__ = ['Interrupted', 'interruptible']


class Interrupted(Exception):
    """Ctrl-C or SIGTERM reached the run; `exit_code` is the shell's, 128 + signal number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class _Flag:
    signal_number = 0

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.signal_number:
            raise Interrupted(self.signal_number)


@contextmanager
def interruptible() -> Iterator[_Flag]:
    """Turn SIGINT and SIGTERM into a flag for `check()`; the second one acts at once, as without this context."""
    flag = _Flag()
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
    finally:
        restore()
