"""Stop a training run between two steps, so that no checkpoint is ever half written."""
import errno
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType

from ..errors import ICASCError, error_chain, one_line
from .messages import output_fault

__all__ = ['Interrupted', 'StopSignal', 'answer_for_batches', 'begin_loading', 'interruptible', 'stopping_loaders']

SHARED_MEMORY = '/dev/shm'

AGAIN_SECONDS = 0.05  # a signal that came in a bad moment comes again


class Interrupted(Exception):
    """Ctrl-C or SIGTERM reached the run; `exit_code` is the shell's, 128 + signal number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopSignal:
    """Whether a signal has arrived."""
    signal_number = 0
    waiting = False  # as for a batch: nothing is lost by an end right now
    process = 0

    def raise_if_set(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.signal_number:
            raise Interrupted(self.signal_number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal acts right away inside the block, where nothing is lost by it."""
        self.raise_if_set()
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False

    def batches(self, loader: Iterable) -> Iterator:
        """What a loader yields. A signal acts between two batches, and at once where one does not come."""
        iterator, end = iter(loader), object()
        while True:
            with self.at_once():
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch


def _would_be_swallowed(frame: FrameType | None) -> bool:
    """Whether Python swallows, with a traceback, what is raised here: in the hooks of a fork, or in a destructor."""
    while frame is not None:
        code = frame.f_code
        if Path(code.co_filename).name.startswith('popen_') or code.co_name == '__del__':  # popen_: multiprocessing's
            return True
        frame = frame.f_back
    return False


@contextmanager
def _destructors_unheard(when: Callable[[], bool]) -> Iterator[None]:
    """Do not tell what destructors of loaders complain of while a stop is under way, the cause of it."""
    report = sys.unraisablehook

    def hook(error: object) -> None:
        if not when():
            report(error)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextmanager
def interruptible() -> Iterator[StopSignal]:
    """Turn SIGINT and SIGTERM into a flag for `raise_if_set()`; the second one acts at once, as without it."""
    flag = StopSignal()
    flag.process = os.getpid()
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number, frame):
        flag.signal_number = number
        if flag.process != os.getpid():  # a process that is just being forked
            restore()
        elif flag.waiting and _would_be_swallowed(frame):
            again = threading.Timer(AGAIN_SECONDS, os.kill, (flag.process, number))
            again.daemon = True
            again.start()
        else:
            restore()
            if flag.waiting:
                flag.raise_if_set()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, on_signal)
    try:
        with _destructors_unheard(lambda: flag.signal_number != 0):
            yield flag
    except Exception as e:
        if flag.signal_number and not isinstance(e, Interrupted):
            raise Interrupted(flag.signal_number) from e  # the signal's doing, a broken connection to a process, say
        raise
    finally:
        restore()


def _shared_memory() -> str:
    """What fills up where batches go from process to process, in words."""
    if not os.path.isdir(SHARED_MEMORY):
        return 'shared memory'
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f'{SHARED_MEMORY} ({usage.free / 2 ** 20:.0f} of {usage.total / 2 ** 20:.0f} MiB are free)'


def _end_without_batch(error: BaseException, batch: object) -> None:
    """End a data loading process that cannot hand on its batch, for which the main process would wait for ever."""
    print(f'a data loading process cannot hand on its batch: {one_line(error)}', file=sys.stderr, flush=True)
    os._exit(1)


def answer_for_batches(worker: int) -> None:
    """Start of a data loading process, which ends where it cannot hand on a batch: `stopping_loaders` says why."""
    Queue._on_queue_feeder_error = staticmethod(_end_without_batch)


def begin_loading(worker: int, then: Callable[[int], None] | None = None) -> None:
    """Start of a data loading process: a signal to the whole process group is the main process's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answer_for_batches(worker)
    warnings.filterwarnings('ignore', 'Palette images with Transparency')  # Pillow's, once a process and so an epoch
    if then is not None:
        then(worker)


def _kill_loaders() -> None:
    """End the data loading processes, one that hangs in its data too."""
    main = threading.current_thread() is threading.main_thread()
    watched = getattr(signal, 'SIGCHLD', None) if main else None
    previous = signal.signal(watched, signal.SIG_DFL) if watched else None  # torch's would raise that one was killed
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    if previous is not None:
        signal.signal(watched, previous)


@contextmanager
def stopping_loaders() -> Iterator[None]:
    """Let go of the data loading processes when an error leaves this context.

    An error that comes from such a process sits in a frame of its own traceback. That ring keeps the loader alive until
    Python's end, where the processes would be waited for in vain, since they ignore SIGTERM.

    Raises:
        ICASCError: Such a process has ended before its batch.
    """
    try:
        yield
    except BaseException as e:
        with _destructors_unheard(lambda: True):
            _kill_loaders()
            for error in error_chain(e):
                traceback.clear_frames(error.__traceback__)
        ended = isinstance(e, RuntimeError) and 'DataLoader worker' in str(e)
        refused = isinstance(e, OSError) and e.errno == errno.ENOSPC and output_fault() is None
        if ended or refused and not isinstance(e, ICASCError):
            said = 'a data loading process has ended before its batch was there: killed, out of memory, or' if ended \
                else 'data loading processes cannot hand on their batches:'
            raise ICASCError(
                f'{said} {_shared_memory()} is full. -j 0 loads the images in the main process. {one_line(e)}') from e
        raise
