"""What people install, built as they would build it."""
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build_distributions(folder: Path) -> tuple[Path, Path]:
    """Build from a copy of the checkout, the wheel from the source distribution.

    Returns:
        The unpacked source distribution, and the wheel.
    """
    backend = pytest.importorskip('setuptools.build_meta')
    ignored = ('.git', '__pycache__', '*.egg-info', 'output', 'build')
    shutil.copytree(ROOT, folder / 'checkout', symlinks=True, ignore=lambda path, names: {
        *shutil.ignore_patterns(*ignored)(path, names), *({'data'} if Path(path) == ROOT else ())})
    build = f'from setuptools import build_meta; build_meta.build_{{}}({str(folder)!r})'

    def call(kind, where):
        done = subprocess.run([sys.executable, '-c', build.format(kind)], cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, f'{backend.__name__}: {done.stderr[-2000:]}'
    call('sdist', folder / 'checkout')
    with tarfile.open(next(folder.glob('*.tar.gz'))) as archive:
        archive.extractall(folder / 'unpacked', filter='data')
    unpacked, = (folder / 'unpacked').iterdir()
    call('wheel', unpacked)
    return unpacked, next(folder.glob('*.whl'))
