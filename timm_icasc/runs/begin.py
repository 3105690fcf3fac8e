"""What a run writes before it trains: its folder, and args.yaml with the command that began it."""
import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from timm import utils

from ..errors import unwritable
from ..foreign_files import read_yaml
from ..foreign_text import shell_command
from .files import write_text
from .folder import ARGUMENTS, PUBLISHING_OPTIONS, read_mapping
from .lock import was_left

__all__ = ['command_of', 'open_run_dir', 'program', 'save_args']

COMMAND = '# '  # before the command, in the first line of args.yaml


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock, or half a file, of a run that was killed before its first file."""
    return folder.is_dir() and all(name.startswith('.') for name in os.listdir(folder)) and was_left(folder)


def open_run_dir(args: argparse.Namespace) -> Path:
    """A new folder for the run, or one that is as good as new: runs are never written over."""
    name = args.experiment or f"{args.model.replace('/', '_').replace(':', '_')}-" \
                              f"{(args.dataset or Path(args.data_dir).name).replace('/', '_')}"
    try:
        base = Path(args.output) / name
        folder, count = base, 1
        while utils.is_primary(args):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                if not folder.is_dir():
                    raise
                if _is_empty(folder):
                    break
                folder, count = Path(f'{base}-{count}'), count + 1
        return folder
    except OSError as e:
        raise unwritable(args.output, 'output', e) from e


def program() -> list[str]:
    """The words that call this process's program as it was called: behind them, its options.

    With those of torchrun where this job has several processes, `train` where that is a command of the program.
    """
    world = int(os.environ.get('WORLD_SIZE', 1))
    local = int(os.environ.get('LOCAL_WORLD_SIZE', world))
    words = ['torchrun', f'--nnodes={world // local}', f'--nproc_per_node={local}'] if world > 1 else []
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    script = Path(sys.argv[0])
    if spec is not None and spec.origin == sys.argv[0]:
        words += [*([] if words else ['python']), '-m', spec.name.removesuffix('.__main__')]
    else:
        words += [*(['--no-python'] if words and script.suffix != '.py' else []), script.name]
    return words + sys.argv[1:2] * (sys.argv[1:2] == ['train'])


def command_of(given: dict[str, Any], run_dir: Path | None) -> str:
    """The command that began a run, which its args.yaml keeps; followed by this one if it goes on with other options.

    Args:
        given: Options of this process.
        run_dir: Folder of the run to go on with; None for a new one.
    """
    called = program()
    command = shell_command([*called, *sys.argv[1 + (sys.argv[1:2] == ['train']):]])
    text = (run_dir / ARGUMENTS).read_text(errors='replace') if run_dir and (run_dir / ARGUMENTS).is_file() else ''
    if not text.startswith(COMMAND):
        return command
    first = text.partition('\n')[0].removeprefix(COMMAND)
    kept = read_mapping(run_dir / ARGUMENTS, read_yaml)
    same = all(given.get(name) == kept[name] for name in kept.keys() - {*PUBLISHING_OPTIONS})
    return first if same else f"{first} && {'python ' if called[0].endswith('.py') else ''}{command}"


def save_args(given: dict[str, Any], folder: Path, command: str) -> None:
    """Write args.yaml: the options as given, before the machine and the data set filled them in, below the command."""
    text = yaml.safe_dump({k: v for k, v in given.items() if k not in ('run_dir', 'config', 'resume')})
    write_text(folder / ARGUMENTS, f'{COMMAND}{command}\n{text}')
