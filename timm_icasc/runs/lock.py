"""One process at a time in a folder: two that train one run would write over each other."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ICASCError, unwritable

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

__all__ = ['HAS_LOCKS', 'alone_in', 'try_lock', 'was_left']

HAS_LOCKS = fcntl is not None

LOCK = '.lock'

_held: set[int] = set()


def _let_go() -> None:
    """A forked process that loads data must not keep the lock of one that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_let_go)


def try_lock(descriptor: int, shared: bool = False) -> bool | None:
    """Lock an open file as long as it is open, here or in a process that inherits it.

    Args:
        descriptor: Of a file, or of a folder where the system locks those.
        shared: Several processes may hold it like this, and none holds it alone meanwhile.

    Returns:
        False where another process has it; None where locks do not tell, as on some file systems.
    """
    if not HAS_LOCKS:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def alone_in(folder: Path, who: str, shared: bool = False) -> Iterator[int]:
    """Hold the lock of a folder, which is made where it is missing. It ends with the process, however that ends.

    Args:
        folder: Where to be alone.
        who: What may be at work there, the subject of the message.
        shared: Keep out those alone who want to be alone.

    Yields:
        The lock's file descriptor. A process that inherits it (`subprocess.Popen(pass_fds=...)`) holds the lock too.

    Raises:
        ICASCError: Another process holds it, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        raise unwritable(folder, 'output', e) from e
    _held.add(descriptor)
    try:
        if try_lock(descriptor, shared) is False:
            raise ICASCError(
                f"{who} is at work in '{folder}', or what a killed one has left: wait for it, or name another "
                f'`output`.')
        yield descriptor
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def was_left(folder: Path) -> bool:
    """Whether a folder has the lock of a process that has ended; False where locks do not tell."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return bool(try_lock(descriptor))
    finally:
        os.close(descriptor)
