"""Scripts of docs/evidence, run as a user runs them."""
import runpy
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / 'docs' / 'evidence'


def rows(script, arguments, monkeypatch, capsys):
    """The cells of the table's lines, its head left out."""
    monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
    monkeypatch.syspath_prepend(SCRIPTS)  # they share what they know
    runpy.run_path(str(SCRIPTS / script), run_name='__main__')
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
