"""The exceptions of timm_icasc: each message names the argument at fault and the remedy.

An argument stands in backquotes, with a value or without: `layers`, `order=1`. A command that prints the message puts
the option of its own that means the argument in its place (`training.option_names.name_options`).
"""
import errno
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

from .foreign_text import printable

# What torch and timm say of a pickle that they do not open: they advise to open it all the same.
ADVICE = re.compile(r'weights[_ ]only|mmap can only be used', re.IGNORECASE)

ASKED_FOR = re.compile(r'(?:GLOBAL |Unsupported globals: |Unsupported class )(\w+(?:\.\w+)*)')

REMEDIES = {
    errno.ENOENT: 'it, or its folder, is not there, or not any more',
    errno.EACCES: 'name a place that you may use', errno.EPERM: 'name a place that you may use',
    errno.EROFS: 'name a place that can be written to'}

# Of torch's: a process that loads data was killed; a file is written to a folder that was removed.
LOADER = re.compile(r'DataLoader worker .*?((?:is killed by signal: [^.]*)|exited unexpectedly.*)', re.DOTALL)

NOT_WRITTEN = re.compile(r'Parent directory (?P<gone>.*) does not exist|File (?P<refused>.*) cannot be opened')

# What gloo says where the other end of an exchange is gone; NCCL's errors have a type of their own.
EXCHANGE = re.compile(r'gloo/transport\S*\] (?P<said>.*?)(?:\. This is typically|$)', re.DOTALL)

MOST = 2000  # letters of a message: what it quotes may be a file of any length


def _about_pickle(error: BaseException | None) -> str | None:
    """The cause, where a file was not opened because it is a pickle; torch says so of files of no kind, too."""
    if ADVICE.search(str(error)) is None:
        return None
    said = ''
    while error is not None:
        said, error = f'{said} {error}', error.__cause__
    if 'mmap can only be used' in said:
        return 'it is damaged, or a bare pickle, which could run any code; it is not opened'
    asked = ASKED_FOR.search(said)
    if asked is None:
        return 'it is damaged, or no file that torch has written'
    return (
        f"it is a pickle that asks for '{asked[1]}', which could run any code, and is not opened; have its tensors "
        f'saved alone (a state_dict, safetensors)')


def one_line(error: BaseException, most: int = 200) -> str:
    """What an exception says, in one line; with its type where that is a mere value, as of a KeyError."""
    pickled = _about_pickle(error)
    if pickled is not None:
        return pickled
    if isinstance(error, EOFError):
        return 'it is damaged: it ends too early'
    said = printable(' '.join(str(error).split()))[:most]
    return said if ' ' in said else f"{type(error).__name__}{': ' * bool(said)}{said}"


def with_type(error: BaseException) -> str:
    """`one_line` behind the type of the exception, which is there once."""
    said, name = one_line(error), type(error).__name__
    return said if said.startswith(name) else f'{name}: {said}'


def first_of(names: Iterable[Any], most: int = 5, between: str = ', ') -> str:
    """Names in a row, as a message has them: the first `most`, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - most} more' * (len(names) > most)
    return between.join(names[:most]) + more


def failed_exchange(error: BaseException) -> str | None:
    """What a failed exchange with the other processes of a distributed run says; None of other errors."""
    if type(error).__name__ == 'DistBackendError':
        return one_line(error)
    found = EXCHANGE.search(str(error)) if isinstance(error, RuntimeError) else None
    return found and printable(' '.join(found['said'].split()))


def explain(error: Exception) -> str | None:
    """What the user can mend although no code foresaw it, as one line; None of a fault of the program."""
    if isinstance(error, ICASCError):
        return error.line
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        remedy = REMEDIES.get(error.errno, '')
        return f"'{printable(error.filename)}': {error.strerror}{'; ' * bool(remedy)}{remedy}."
    if said := failed_exchange(error):
        return f'the exchange with the other processes failed ({said}); where one of them has ended, it has said why.'
    if isinstance(error, RuntimeError) and (killed := LOADER.search(str(error))):
        return (
            f'a data loading process ended ({printable(killed[1])}), for lack of memory perhaps: take a smaller '
            f'`workers` or `batch_size`.')
    if isinstance(error, RuntimeError) and (failed := NOT_WRITTEN.search(str(error))):
        gone = 'the folder is not there any more' if failed['gone'] else 'the file cannot be written'
        return f"'{printable(failed['gone'] or failed['refused'])}': {gone}; {REMEDIES[errno.EACCES]}."
    return None


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it, each once: raised while others were handled, they may form a ring."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


class ICASCError(ValueError):
    """Base class: the caller can mend the input. The command line prints it as one line and exits with 2."""

    @property
    def line(self) -> str:
        """The message alone, fit to be printed: a process that loads data wraps its traceback around it."""
        said = str(self).strip()
        if said.startswith('Caught '):
            said = said.rpartition(f'\n{type(self).__module__}.{type(self).__name__}: ')[2]
        said = printable(said)
        return said if len(said) <= MOST else f'{said[:MOST]}...'


class WriteError(ICASCError, OSError):
    """A file cannot be written: the disk is full, or nothing may be written there. The old file is intact."""

    def __str__(self) -> str:
        return str(self.args[0])  # that of OSError is made of number and name


def unwritable(folder: Any, argument: str, error: OSError) -> WriteError:
    """The error of a folder, named by an argument, that nothing can be written to."""
    return WriteError(f"`{argument}`: cannot write to '{folder}': {error.strerror}; name another.")


class VersionError(ICASCError, ImportError):
    """An installed package is older than what was asked for needs."""


class LayerResolutionError(ICASCError):
    """No usable inner or last feature layer: unknown module path, no spatial features, unsupported model."""


class TargetError(ICASCError):
    """A target has the wrong shape or type, or names a class that the model does not have."""


class DataError(ICASCError):
    """A data set, folder or file is missing or is not in the expected format."""


class NonFiniteLossError(ICASCError):
    """The training loss, or class scores, became NaN or infinite."""


class HubError(ICASCError):
    """Publishing to the Hub or getting weights back failed: names repo@revision, the cause and the remedy."""


class DamagedError(HubError):
    """A file of weights is not what it was when it was published."""


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, of Python or of another library, and at least 1."""
    try:
        return operator.index(value) >= 1
    except TypeError:  # every tensor has an `__index__`
        return False


def check_count(name: str, value: Any) -> None:
    """Raise ICASCError where the value of an argument is no whole number, or below 1."""
    if not is_count(value):
        raise ICASCError(f'`{name}` must be at least 1, and a whole number, got {value!r}.')


def check_version(package: str, installed: str, least: str, purpose: str) -> None:
    """Raise VersionError where `installed` is a version of the package below `least`.

    Args:
        package: Its name for pip.
        installed: Its version here.
        least: The oldest version that will do.
        purpose: What needs it, the subject of the message.
    """
    numbers, wanted = ([int(n) for n in re.findall(r'\d+', version)[:3]] for version in (installed, least))
    if numbers < wanted:
        raise VersionError(
            f"{purpose} needs {package} {least} or later, this is {package} {installed}: pip install "
            f"'{package}>={least}'.")
