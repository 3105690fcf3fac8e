"""Copies on the way to and from the Hub, which no end of the process leaves behind."""
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['temporary_folder']

SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name))

_folders: set[str] = set()

ATTEMPTS = 5  # to remove a folder into which a transfer goes on writing


def _remove(folder: str) -> None:
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return


def _wait_for_signal(reader: socket.socket) -> None:
    """Remove the folders and end the process when the number of a signal arrives; return when the socket closes."""
    while number := reader.recv(1):
        if number[0] in SIGNALS:
            for folder in list(_folders):
                _remove(folder)
            os._exit(128 + number[0])


@contextmanager
def _watching() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP remove the folders before they end the process.

    A thread waits for the signal: a handler of Python's would wait for the main thread, which a transfer may keep for
    minutes. A signal that the process ignores, or answers in its own way, is left alone, and so is every one where this
    is not the main thread.
    """
    main = threading.current_thread() is threading.main_thread()
    caught = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    if not caught:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    watcher = threading.Thread(target=_wait_for_signal, args=(reader,), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer.fileno())
    for number in caught:
        signal.signal(number, lambda *_: None)  # what writes the signal's number to the socket
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        writer.close()
        watcher.join()
        reader.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that is gone afterwards, also where SIGTERM or SIGHUP ends the process; they may be nested."""
    with _watching():
        folder = tempfile.mkdtemp(prefix='timm-icasc-')
        _folders.add(folder)
        try:
            yield Path(folder)
        finally:
            _remove(folder)
            _folders.discard(folder)
