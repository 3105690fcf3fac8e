"""The dispatcher; each command has its tests beside its module."""
import importlib
import subprocess
import sys

import pytest

from timm_icasc import ICASCError, cli


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f'  {name} ' in text for name in cli.COMMANDS)


@pytest.mark.parametrize('command', list(cli.COMMANDS))
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, '--help'])
    assert stop.value.code == 0
    module = importlib.import_module(f'timm_icasc.cli.{command}')
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(['layer'])
    assert stop.value.code == 2 and "invalid choice: 'layer'" in capsys.readouterr().err


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    module = importlib.import_module('timm_icasc.cli.bench')

    def fail(args):
        raise ICASCError('no such thing')
    monkeypatch.setattr(module, 'run', fail)
    assert cli.main(['bench', 'resnet18']) == 2
    assert capsys.readouterr().err == 'timm-icasc bench: error: no such thing\n'


def test_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, '-m', 'timm_icasc.cli', '--version'], capture_output=True, text=True, check=True).stdout
    assert out.startswith('timm-icasc ')
