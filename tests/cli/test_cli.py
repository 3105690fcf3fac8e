"""The dispatcher; each command has its tests beside its module."""
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import timm_icasc_cli
from timm_icasc import ICASCError, cli

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize('command', [name for name in cli.COMMANDS if name != 'train'])
def test_commands_of_one_process_are_refused_under_torchrun(command, monkeypatch, capsys):
    """Each process would do the whole work, into the same files."""
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == (
        f'timm-icasc {command}: error: this command is one process: start it without torchrun.\n')


def test_a_users_mistake_is_one_line(monkeypatch, capsys):
    module = importlib.import_module('timm_icasc.cli.bench')

    def fail(args):
        raise ICASCError('no such thing')
    monkeypatch.setattr(module, 'run', fail)
    assert cli.main(['bench', 'resnet18']) == 2
    assert capsys.readouterr().err == 'timm-icasc bench: error: no such thing\n'


@pytest.mark.parametrize('arguments, code, said', [
    (['--version'], 0, 'timm-icasc '), (['--help'], 0, 'usage: timm-icasc'), (['layer'], 2, ''), ([], 2, '')])
def test_what_needs_no_torch_loads_none(arguments, code, said):
    """Nor timm, nor this package, which loads both."""
    out = subprocess.run([sys.executable, '-c', f"""
import sys, timm_icasc_cli
sys.argv = ['timm-icasc', *{arguments!r}]
try:
    timm_icasc_cli.main()
except SystemExit as e:
    print(e.code, [name for name in ('torch', 'timm', 'timm_icasc', 'numpy', 'yaml') if name in sys.modules])
"""], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.startswith(said) and out.endswith(f'{code} []\n')


def test_the_script_runs_commands(monkeypatch, capsys):
    assert 'timm-icasc = "timm_icasc_cli:main"' in (ROOT / 'pyproject.toml').read_text()
    monkeypatch.setattr(sys, 'argv', ['timm-icasc', 'card', 'nowhere.yaml'])
    assert timm_icasc_cli.main() == 2
    assert capsys.readouterr().err.startswith("timm-icasc card: error: no file 'nowhere.yaml': ")


def test_runs_as_a_module(monkeypatch, capsys):
    """As `python -m timm_icasc.cli` does."""
    monkeypatch.setattr(sys, 'argv', ['timm-icasc', '--version'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('timm_icasc.cli', run_name='__main__', alter_sys=True)
    assert not ended.value.code and capsys.readouterr().out.startswith('timm-icasc ')
