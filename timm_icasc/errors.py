"""The exceptions of timm_icasc: each message names the argument at fault and the remedy.

An argument stands in backquotes, with a value or without: `layers`, `order=1`. A command that prints the message puts
the option of its own that means the argument in its place (`training.arguments.name_options`).
"""
import re
from collections.abc import Iterator


def one_line(error: BaseException, most: int = 200) -> str:
    """What an exception says, in one line; with its type where that is a mere value, as of a KeyError."""
    said = ' '.join(str(error).split())[:most]
    return said if ' ' in said else f"{type(error).__name__}{': ' * bool(said)}{said}"


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
        """The message alone: a process that loads data wraps its traceback around it."""
        return str(self).strip().splitlines()[-1].removeprefix(f'{type(self).__module__}.{type(self).__name__}: ')


class WriteError(ICASCError, OSError):
    """A file cannot be written: the disk is full, or nothing may be written there. The old file is intact."""

    def __str__(self) -> str:
        return str(self.args[0])  # that of OSError is made of number and name


class VersionError(ICASCError, ImportError):
    """An installed package is older than what was asked for needs."""


class LayerResolutionError(ICASCError):
    """No usable inner or last feature layer: unknown module path, no spatial features, unsupported model."""


class TargetError(ICASCError):
    """A target has the wrong shape or type, or names a class that the model does not have."""


class DataError(ICASCError):
    """A data set, folder or file is missing or is not in the expected format."""


class NonFiniteLossError(ICASCError):
    """The training loss became NaN or infinite."""


class HubError(ICASCError):
    """Publishing to the Hub or getting weights back failed: names repo@revision, the cause and the remedy."""


class DamagedError(HubError):
    """A file of weights is not what it was when it was published."""


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
