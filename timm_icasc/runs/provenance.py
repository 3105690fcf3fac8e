"""What it takes to repeat a run: command, commit, seed, versions, device."""
import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torchvision

from ..version import __version__
from .begin import command_of


def _commit() -> str | None:
    """The commit of this code, '-dirty' if it was changed; None for an installation, whatever repository it lies in."""
    root = Path(__file__).parents[2]
    if not (root / '.git').exists():
        return None
    try:
        return subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=40'], cwd=root, capture_output=True, text=True,
            check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(args: argparse.Namespace, command: str | None = None) -> dict:
    """What it takes to repeat what `command` began; by default this process's."""
    return {
        'command': command or command_of({}, None), 'commit': _commit(), 'seed': args.seed,
        'versions': {
            'python': sys.version.split()[0], 'torch': torch.__version__,
            'torchvision': torchvision.__version__, 'timm': timm.__version__,
            'timm_icasc': __version__},
        'device': torch.cuda.get_device_name() if args.device.startswith('cuda') else args.device}


def installed_versions() -> dict[str, str]:
    """What a record of measurements should name: this package, timm and torch."""
    return {'timm_icasc': __version__, **{name: version(name).split('+')[0] for name in ('timm', 'torch')}}
