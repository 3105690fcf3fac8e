"""`timm-icasc COMMAND ...`: training, and what there is to do besides."""
import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import timm

from ..errors import ICASCError, VersionError, check_version
from ..training.interrupt import stopping_loaders
from ..training.messages import messages_of, report_error
from ..version import TIMM_FOR_TRAINING, __version__
from .commands import COMMANDS, NEED_TRAINING, build_parser

__all__ = ['COMMANDS', 'main']


def main(argv: Sequence[str] | None = None, prog: str = '') -> int:
    """Run one command.

    Args:
        argv: The command's name and its arguments; by default those of the process.
        prog: Name of a script that is one command; by default `timm-icasc COMMAND`.

    Returns:
        The exit code: 0, or 2 with one line on stderr where the input is at fault.
    """
    chosen = build_parser(__version__).parse_args(argv)
    prog = prog or f'timm-icasc {chosen.command}'
    try:
        if chosen.command in NEED_TRAINING:
            check_version('timm', timm.__version__, TIMM_FOR_TRAINING, 'this command')
    except VersionError as e:
        print(f'{prog}: error: {e.line}', file=sys.stderr)
        return 2
    if chosen.command != 'train' and 'TORCHELASTIC_RUN_ID' in os.environ and os.environ.get('WORLD_SIZE', '1') != '1':
        print(f'{prog}: error: this command is one process: start it without torchrun.', file=sys.stderr)
        return 2
    try:
        return _run(chosen, prog)
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace, prog: str) -> int:
    module = importlib.import_module(f'{__package__}.{chosen.command}')
    parser = getattr(module, 'Parser', argparse.ArgumentParser)(
        prog=prog, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    with messages_of(parser):
        try:
            with stopping_loaders():
                code = module.run(parser.parse_args(chosen.arguments))
                sys.stdout.flush()
                return code
        except (ICASCError, OSError, RuntimeError) as e:
            return report_error(e, parser)
