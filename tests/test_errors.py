"""Messages of the library name arguments; the commands put their options in the place of these."""
import argparse
import ast
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from timm_icasc import cli
from timm_icasc.errors import ICASCError, first_of, one_line, with_type
from timm_icasc.training.arguments import build_parser
from timm_icasc.training.option_names import FLAGS, name_options

PACKAGE = Path(__file__).parent.parent / 'timm_icasc'
SPEAK_OF_OPTIONS = ('training', 'cli')

# Whole commands that the reader may run.
COMMANDS = [r'timm-icasc train --resume auto( --output \S+ --experiment \S+)?', r'timm-icasc card \S+ --runs']


@pytest.mark.parametrize('error, said', [
    (KeyError(101), 'KeyError: 101'), (KeyError('width'), "KeyError: 'width'"), (AssertionError(), 'AssertionError'),
    (ValueError('two\n  lines'), 'two lines'), (OSError(2, 'No such file'), '[Errno 2] No such file')])
def test_a_mere_value_is_no_message(error, said):
    assert one_line(error) == said


def text_of(node: ast.AST) -> str:
    """The text of a message, with X for every value."""
    return ''.join(
        part.value if isinstance(part, ast.Constant) else 'X'
        for part in (node.values if isinstance(node, ast.JoinedStr) else [node]))


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string in the making of an exception or a warning."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and re.search(r'(Error|Warning|\bwarn)$', ast.unparse(call.func)):
            parts = [part for node in ast.walk(call) if isinstance(node, ast.JoinedStr) for part in node.values]
            for node in ast.walk(call):
                text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts
                if text or isinstance(node, ast.JoinedStr):
                    yield node.lineno, text_of(node)


def test_library_code_names_no_options():
    named = []
    for file in sorted(PACKAGE.rglob('*.py')):
        if file.relative_to(PACKAGE).parts[0] not in SPEAK_OF_OPTIONS:
            for line, text in messages(file.read_text()):
                if re.search(r'(?<![\w-])--[a-z]', re.sub('|'.join(COMMANDS), '', text)):
                    named.append(f'{file.relative_to(PACKAGE)}:{line}: {text}')
    assert not named, '\n'.join(named)


def test_the_walk_finds_options():
    source = "raise DataError(f\"--data-dir: no '{x}'; \" f'see {y}') from e\nwarn('--x')\nprint('--y')"
    assert [text for _, text in messages(source) if '--' in text] == ["--data-dir: no 'X'; see X", '--x']


@pytest.mark.parametrize('message, printed', [
    ("`root`: no folder 'x'.", "--data-dir: no folder 'x'."),
    ('use `order=1`, or lower `lr`.', 'use --icasc-order 1, or lower --lr.'),
    ('`batch_size=8` is too large', '--batch-size 8 is too large'),
    ('name the folder with `split`.', 'name the folder with --train-split or --val-split.'),
    ('`name=wds/x` needs another package', '--dataset wds/x needs another package'),
    ('`topk` is no option of this command, `hf auth login` no argument', None),
])
def test_arguments_become_the_options_of_a_command(message, printed):
    assert name_options(message, build_parser()) == (printed or message)


def test_each_command_names_its_own_option():
    parser = argparse.ArgumentParser()
    parser.add_argument('--layers', nargs=2)
    parser.add_argument('--val-split')
    assert name_options('`layers`, `split`, `order`', parser) == '--layers, --val-split, `order`'


def test_every_entry_of_the_table_differs_from_the_default():
    for name, flags in FLAGS.items():
        assert f"--{name.replace('_', '-')}" not in flags


def test_a_command_prints_its_options(monkeypatch, capsys):
    def fail(args):
        sys.stderr.write(warnings.formatwarning('`device` is slow', UserWarning, '', 0))
        raise ICASCError('`img_size=8` does not fit; `layers` are missing.')
    monkeypatch.setattr(cli.importlib.import_module('timm_icasc.cli.bench'), 'run', fail)
    assert cli.main(['bench', 'resnet18']) == 2
    assert capsys.readouterr().err == (
        'warning: --device is slow\n'
        'timm-icasc bench: error: --img-size 8 does not fit; `layers` are missing.\n')


def test_a_program_has_its_own_formats_back_behind_a_command(monkeypatch, caplog):
    """The formats of its log and its warnings, which named options of the command from then on."""
    before = warnings.formatwarning
    monkeypatch.setattr(cli.importlib.import_module('timm_icasc.cli.bench'), 'run', lambda args: 0)
    assert cli.main(['bench', 'resnet18']) == 0
    logging.getLogger('mine').warning('use `device`')
    assert 'use `device`' in caplog.text and 'test_errors.py' in caplog.text
    assert warnings.formatwarning is before


@pytest.mark.parametrize('names, said', [
    (['cat'], 'cat'),
    (iter(['cat', 'dog']), 'cat, dog'),
    ([1, 2, 3], '1, 2 and 1 more'),
    ([], ''),
])
def test_a_list_that_is_cut_says_so(names, said):
    assert first_of(names, 2) == said


@pytest.mark.parametrize('error, said', [
    (KeyError('x'), "KeyError: 'x'"), (RuntimeError(), 'RuntimeError'), (ValueError('a b'), 'ValueError: a b'),
])
def test_the_type_stands_there_once(error, said):
    assert with_type(error) == said
