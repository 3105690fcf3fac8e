"""Slow: learning on real data, through the command line."""
import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_digits_are_learned_with_and_without_icasc_and_icasc_separates_the_maps(tmp_path):
    script = [sys.executable, str(ROOT / 'train_timm.py')]
    subprocess.run([*script, '--icasc-compare', '--output', str(tmp_path), '--experiment', 'x'], check=True)
    plain, icasc = csv.DictReader(open(tmp_path / 'x' / 'results.csv'))
    assert float(plain['top-1']) > 97 and float(icasc['top-1']) > 97
    assert float(icasc['overlap last']) < float(plain['overlap last']) - 0.03
    assert float(icasc['L_AC']) < float(plain['L_AC']) - 0.05
