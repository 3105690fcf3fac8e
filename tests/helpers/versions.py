"""Tests that know of models what an older timm does not tell."""
import pytest
import timm

from timm_icasc.errors import VersionError, check_version
from timm_icasc.version import TIMM_FOR_TRAINING

__all__ = ['recent_timm', 'too_old']

INSTALLED = timm.__version__  # some tests change it


def too_old(error: BaseException | None) -> str:
    """What says that the installed timm is too old, in an error or in one that it hides; empty where nothing does."""
    while error is not None:
        if isinstance(error, VersionError) and f'this is timm {INSTALLED}:' in error.line:
            return error.line
        error = error.__cause__ or error.__context__
    return ''


def _reason() -> str:
    try:
        check_version('timm', INSTALLED, TIMM_FOR_TRAINING, 'this description of models')
    except VersionError as e:
        return e.line
    return ''


recent_timm = pytest.mark.skipif(bool(_reason()), reason=_reason())
