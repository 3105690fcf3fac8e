"""The one way to write a file: beside it, synced, renamed. A kill or a full disk leaves the old file or the new one.

A temporary file is hidden (`.NAME.12345678.part`), and no reader looks for such a name. The process that writes it
holds a lock on it: what a killed one has left is removed when the same file is written again.
"""
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ICASCError, WriteError, error_chain, one_line
from .lock import HAS_LOCKS, try_lock

__all__ = ['check_writable', 'is_free', 'replacing', 'replacing_folder', 'together', 'write_text']

PARTIAL = '.part'

# What `_partial` calls that of NAME.
PARTIAL_NAME = re.compile(r'^\.(.+)\.[0-9a-f]{8}\.part(\.[^.]*)?$')

# The errors of a disk that takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class _Group:
    """Files that wait for others: where each is to be -> where it is; `stack` removes them."""
    stack: ExitStack
    written: dict[Path, Path] = field(default_factory=dict)


_waiting: ContextVar[_Group | None] = ContextVar('waiting', default=None)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of this file; on Windows, where nothing is locked, it stays."""
    head, length = f'.{path.name}.', len(path.name) + 10
    for name in os.listdir(path.parent) if HAS_LOCKS else ():
        if not name.startswith(head) or not name[length:].startswith(PARTIAL):
            continue
        with suppress(OSError):
            descriptor = os.open(path.parent / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if try_lock(descriptor):
                    _remove(path.parent / name)
            finally:
                os.close(descriptor)


@contextmanager
def _partial(path: Path, folder: bool = False) -> Iterator[Path]:
    """A new file or folder beside `path`, locked, and gone afterwards if it is still there."""
    _remove_leftovers(path)
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}{PARTIAL}{path.suffix}')
    with ExitStack() as stack:
        if folder:
            partial.mkdir()
        else:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        if HAS_LOCKS:
            descriptor = os.open(partial, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try_lock(descriptor)
        stack.callback(_remove, partial)
        yield partial


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """A renaming lasts through a loss of power from now on, where the system can promise it."""
    with suppress(OSError):
        _sync(path)


def _reason(error: BaseException, partial: Path) -> OSError | None:
    """What kept a file from being written; None where the error is of another kind."""
    if isinstance(error, ICASCError):
        return None
    for link in error_chain(error):
        if isinstance(link, OSError) and link.errno:
            return link
    if isinstance(error, (RuntimeError, OSError)) and partial.is_file():  # torch's, and numpy's, which do not say why
        try:
            with open(partial, 'ab') as file:
                file.write(bytes(2 ** 20))
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            return e
    return None


def _in_its_place(path: Path) -> Path:
    """Where a file will be that is written into a temporary folder."""
    return Path(*(PARTIAL_NAME.sub(r'\1', part) for part in path.parts))


def _failure(path: Path, reason: OSError) -> WriteError:
    path = _in_its_place(path)
    full, there = reason.errno in FULL, path.exists() and not _in_place(path)
    message = f"cannot write '{path}': {'the disk is full' if full else reason.strerror or one_line(reason)}"
    if full:
        message += f" ({reason.strerror}); make room in '{next(filter(Path.is_dir, path.parents), path.parent)}'"
    error = WriteError(f"{message}.{' The file is as it was before.' * there}")
    error.errno, error.strerror, error.filename = reason.errno, reason.strerror, str(path)
    return error


def _in_place(path: Path) -> bool:
    """Whether it is a device or a pipe (/dev/stdout), which must not be replaced by a file."""
    parent = path.parent.resolve()
    return str(parent) == '/dev' or parent.parts[1:2] == ('proc',) or (
        path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write to by its name; at the end of the block it takes the place of `path`, whole.

    A link at `path` is replaced, not followed. Folders that are missing are made.

    Args:
        path: File to write. A device or a pipe is written to as it is.

    Raises:
        WriteError: It cannot be written; `path` is as it was before.
    """
    path = Path(path)
    if _in_place(path):
        try:
            yield path
        except BrokenPipeError:  # nobody reads it any more
            raise
        except OSError as e:
            raise e if isinstance(e, ICASCError) else _failure(path, e) from e
        return
    group = _waiting.get()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        with ExitStack() as stack:
            partial = stack.enter_context(_partial(path))
            try:
                if path.exists():
                    shutil.copymode(path, partial)
                yield partial
                _sync(partial)
            except Exception as e:
                if reason := _reason(e, partial):
                    raise _failure(path, reason) from e
                raise
            if group is None:
                os.replace(partial, path)
                _sync_folder(path.parent)
            else:
                group.written[path] = partial
                group.stack.push(stack.pop_all())
    except OSError as e:
        raise e if isinstance(e, ICASCError) else _failure(path, e) from e


@contextmanager
def together(*paths: Path) -> Iterator[None]:
    """The files written inside the block appear at its end, the last of `paths`, which announces the others, last.

    The old file that announces goes first: a kill on the way leaves files that nothing announces, never old ones beside
    new ones.

    Args:
        paths: All files of the group; of one that is not written, the old one is removed. The last can be made again.

    Raises:
        WriteError: One of them cannot be written; all are as they were before.
    """
    places = [Path(path) for path in paths]
    with ExitStack() as stack:
        group = _Group(stack)
        token = _waiting.set(group)
        try:
            yield
        finally:
            _waiting.reset(token)
        try:
            places[-1].unlink(missing_ok=True)
            _sync_folder(places[-1].parent)
            for path in places:
                if path in group.written:
                    os.replace(group.written[path], path)
                else:
                    path.unlink(missing_ok=True)
            for folder in {path.parent for path in places}:
                _sync_folder(folder)
        except OSError as e:
            raise _failure(places[-1], e) from e


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; at the end of the block it takes the place of `path`, with all that it holds.

    Its files are not synced one by one: it is for what can be made again.

    Raises:
        WriteError: It cannot be written; `path` is as it was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path, folder=True) as partial:
            yield partial
            if path.exists():
                with _partial(path, folder=True) as old:
                    os.replace(path, old)
                    os.replace(partial, path)
            else:
                os.replace(partial, path)
            _sync_folder(path.parent)
    except OSError as e:
        raise e if isinstance(e, ICASCError) else _failure(path, e) from e


def check_writable(folder: Path) -> None:
    """Make a file without a name in the folder, or in the one above it that is there; nothing stays.

    Raises:
        OSError: Nothing can be written there, with the reason of the system.
    """
    place = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    with tempfile.TemporaryFile(dir=place):
        pass


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not os.path.lexists(folder) or folder.is_dir() and not any(folder.iterdir())


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all.

    Raises:
        WriteError: It cannot be written; the file is as it was before.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding='utf-8')
