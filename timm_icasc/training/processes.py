"""What the processes of a distributed run must decide alike, or one of them waits for ever."""
import argparse
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import ICASCError
from ..runs.folder import COMPUTING, PLACES
from .option_names import flag_of

__all__ = ['check_alike', 'check_same_options', 'said_by_first', 'sum_of_all', 'true_in_all']

T = TypeVar('T')


def said_by_first(args: argparse.Namespace, value: T) -> T:
    """The value of the first process, in all of them."""
    if not args.distributed:
        return value
    said = [value]
    dist.broadcast_object_list(said, 0)
    return said[0]


def _said_by_all(args: argparse.Namespace, value: T) -> list[T]:
    """The values of all processes, in all of them."""
    if not args.distributed:
        return [value]
    values = [value] * args.world_size
    dist.all_gather_object(values, value)
    return values


def true_in_all(args: argparse.Namespace, value: bool) -> bool:
    """Whether the value is true in every process."""
    return all(_said_by_all(args, value))


def sum_of_all(args: argparse.Namespace, value: int) -> int:
    """The sum of the values of all processes."""
    return sum(_said_by_all(args, value))


def check_alike(
        args: argparse.Namespace,
        value: object,
        what: str,
        remedy: str = '--output must be a folder that all machines share',
) -> None:
    """Raise ICASCError, in every process, where they do not see the same of the run's files."""
    values = _said_by_all(args, value)
    if any(each != values[0] for each in values):
        raise ICASCError(
            f'the processes do not see the same {what}: {", ".join(map(str, values))}: {remedy}.')


def check_same_options(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raise ICASCError, in every process, where they were started with options of which the results are others."""
    told = _said_by_all(args, {k: v for k, v in options.items() if k not in (*COMPUTING, *PLACES, 'run_dir')})
    for name, value in told[0].items():
        if any(each[name] != value for each in told):
            raise ICASCError(
                f'the processes were started with different options, {flag_of(name)} '
                f'{", ".join(str(each[name]) for each in told)}: start all with the same.')
