"""How the commands say what goes wrong: one line, in the words of their own options."""
import argparse
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import explain, one_line
from ..foreign_text import printable
from .option_names import name_options

__all__ = ['messages_of', 'output_fault', 'report_error']


def _plain(text: str) -> str:
    return printable(' '.join(text.split()))


class _Formatter(logging.Formatter):
    """Messages of this package and of others, each as one line in the words of the command's options."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__('%(message)s')
        self.parser = parser

    def formatMessage(self, record: logging.LogRecord) -> str:
        return name_options(_plain(super().formatMessage(record)), self.parser)


@contextmanager
def messages_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Let warnings and messages of all libraries be one line each, and no name be too odd to be printed.

    A program that calls a command has its own formats back behind it.

    Args:
        parser: Whose options stand for the arguments that messages name.
    """
    logging.basicConfig(level=logging.WARNING)
    # The Hub's client has a handler of its own: the root logger's would print all twice.
    hub = logging.getLogger('huggingface_hub')
    handlers = [*logging.getLogger().handlers, *hub.handlers]
    before = {handler: handler.formatter for handler in handlers}
    propagate, hub.propagate = hub.propagate, False
    warning_before, is_first = warnings.formatwarning, os.environ.get('RANK', '0') == '0'  # all of torchrun's say it
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        for handler in before:
            handler.setFormatter(_Formatter(parser))
        warnings.formatwarning = lambda message, *_, **__: is_first * (
            f'warning: {name_options(_plain(str(message)), parser)}\n')
        yield
    finally:
        for handler, formatter in before.items():
            handler.setFormatter(formatter)
        hub.propagate = propagate
        warnings.formatwarning = warning_before


def _nobody_reads() -> bool:
    """Whether what stdout was piped to has ended, as `| head` does; then nothing more is printed."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout, select.POLLOUT)
        closed = any(event & select.POLLERR for _, event in pipe.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows; a stdout that is no file
        return False
    if closed:
        _print_no_more()
    return closed


def output_fault() -> OSError | None:
    """Why what was printed to stdout cannot be written, as to a file on a full disk; None where it can be."""
    try:
        sys.stdout.flush()  # once more: what could not be written waits
    except OSError as e:
        return e
    return None


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: Exception, parser: argparse.ArgumentParser) -> int:
    """Say in one line what the user can mend, and return the exit code; a fault of the program is raised again."""
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return 1
    if isinstance(error, OSError) and (fault := output_fault()):
        _print_no_more()
        print(
            f'{parser.prog}: error: what is printed cannot be written: {one_line(fault)}. Make room where the output '
            f'goes to, or send it elsewhere.', file=sys.stderr)
        return 2
    said = explain(error)
    if said is None:
        raise error
    print(f'{parser.prog}: error: {name_options(said, parser)}', file=sys.stderr)
    return 2
