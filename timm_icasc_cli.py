"""The command `timm-icasc`: --version, --help and mistakes at once, before torch and timm are loaded for the rest.

A module beside the package, since all that lies in the package loads it.
"""
import sys
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

__all__ = ['main']


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        return _run()
    except KeyboardInterrupt:  # while torch and timm are loaded, which takes seconds
        print('\ninterrupted', file=sys.stderr)
        return 130


def _run() -> int:
    package = Path(find_spec('timm_icasc').origin).parent
    version = run_path(str(package / 'version.py'))['__version__']
    run_path(str(package / 'cli' / 'commands.py'))['build_parser'](version).parse_args()
    from timm_icasc.cli import main
    return main()


if __name__ == '__main__':
    sys.exit(main())
