"""Messages in the words of a command line. Light to import: every command needs it first."""
import argparse
import math
import re

from ..errors import ICASCError

__all__ = ['FLAGS', 'check_least', 'check_ranges', 'flag_of', 'name_options']

# The options that mean an argument of the library, where they are not its name with dashes.
FLAGS = {
    'defects': ('--icasc-defects',),
    'download': ('--dataset-download',),
    'layers': ('--icasc-layers',),
    'multilabel_maps': ('--icasc-multilabel-maps',),
    'name': ('--dataset',),
    'order': ('--icasc-order',),
    'padding': ('--crop-padding',),
    'path': ('--json',),
    'repo_id': ('--push-to-hub',),
    'rival': ('--icasc-rival',),
    'root': ('--data-dir',),
    'share': ('--icasc-share',),
    'split': ('--train-split', '--val-split'),
}


def flag_of(name: str) -> str:
    """An option as the command line has it."""
    return f"--{name.replace('_', '-')}"


def check_ranges(args: argparse.Namespace, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ICASCError where a number that was given for an option is outside its (least, most), or is not finite."""
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [] if value is None else [value]:
            if not least <= number <= most or not math.isfinite(number):
                kind = '' if math.isfinite(number) else 'finite, and '
                limits = f'at least {least}' if most == math.inf else f'between {least} and {most}'
                raise ICASCError(f'{flag_of(name)} must be {kind}{limits}, got {number}.')


def check_least(args: argparse.Namespace, **least: float) -> None:
    """`check_ranges` of options that have no upper limit."""
    check_ranges(args, {name: (minimum, math.inf) for name, minimum in least.items()})


def name_options(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of the library in the words of a command: `layers` is --icasc-layers, `order=1` is --icasc-order 1.

    An argument for which the command has no option stays as it is.
    """
    known = parser._option_string_actions

    def translate(match: re.Match) -> str:
        name, value = match.groups()
        flags = [flag_of(name)]
        if flags[0] not in known:
            flags = [flag for flag in FLAGS.get(name, ()) if flag in known]
        if not flags:
            return match[0]
        return ' or '.join(flags) + (f' {value}' if value else '')

    return re.sub(r'`(\w+)(?:=([^`]*))?`', translate, message)
