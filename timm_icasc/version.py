"""Which versions are at work."""
from importlib.metadata import version
from typing import Dict

__version__ = '0.1.0'


def installed_versions() -> Dict[str, str]:
    """What a record of measurements should name: this package, timm and torch."""
    return {'timm_icasc': __version__, **{name: version(name).split('+')[0] for name in ('timm', 'torch')}}
