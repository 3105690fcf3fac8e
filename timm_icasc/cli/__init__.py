"""`timm-icasc COMMAND ...`: what there is to do besides training."""
import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence

from ..errors import ICASCError
from ..training.arguments import name_options
from ..version import __version__

__all__ = ['main']

# Each command is the module of its name. It has `add_arguments(parser)`, whose parser already carries the description
# (the module's docstring), and `run(args)`, which returns the exit code. Only the command at hand is imported.
COMMANDS = {
    'layers': 'which two layers ICASC looks at, and whether it trains, for any architecture',
    'eval': 'measure trained checkpoints, or two against each other',
    'figure': 'what trained checkpoints attend to: class maps, layers, KS chart, a page to browse',
    'segment': 'attention as weak cues for semantic segmentation (Table 2)',
    'paper': 'finished runs beside the figures of the paper, mean and deviation over seeds',
    'sweep': 'a study: variants x seeds of train_timm.py, their records and what follows from them',
    'bench': 'what a training step with ICASC costs on this machine',
    'card': 'the cards of hub_cards/: evaluate, render, check',
    'push': 'publish a finished run on the Hugging Face Hub',
    'pull': 'fetch weights from the Hub and verify them',
    'doctor': 'whether everything here is in order: versions, devices, packages, Hub, a step of ICASC',
}


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='timm-icasc', description='ICASC for timm models; training is train_timm.py.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='commands:\n' + '\n'.join(f'  {name:<8} {text}' for name, text in COMMANDS.items())
        + '\n\ntimm-icasc COMMAND --help explains one.')
    parser.add_argument('--version', action='version', version=f'timm-icasc {__version__}')
    parser.add_argument('command', choices=list(COMMANDS), metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 with one line on stderr where the input is at fault."""
    chosen = _build_parser().parse_args(argv)
    module = importlib.import_module(f'{__package__}.{chosen.command}')
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    parser = argparse.ArgumentParser(
        prog=f'timm-icasc {chosen.command}', description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    args = parser.parse_args(chosen.arguments)
    warnings.formatwarning = lambda message, *_, **__: f'warning: {name_options(str(message), parser)}\n'
    try:
        return module.run(args)
    except ICASCError as e:
        print(f'timm-icasc {chosen.command}: error: {name_options(e.line, parser)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        return 130

