"""What others read of the project: its citation, its types, its workflow."""
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import timm_icasc

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project():
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())
