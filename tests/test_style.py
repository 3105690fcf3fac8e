"""What ruff has no rule for: how long functions and lines of code are, and how continuation lines are indented."""
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / 'train_timm.py', *sorted((ROOT / 'timm_icasc').rglob('*.py'))]
MOST = 64
WIDTH = 100
LAYOUT = (
    tokenize.NL, tokenize.COMMENT, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)

# Functions that are longer; the set may only shrink.
LONG = {
    'timm_icasc/models/resnet_cifar.py: __init__',
}


def functions() -> Iterator[tuple[str, int]]:
    """File and name of every function of the package and the training script, and its length with the docstring."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f'{file.relative_to(ROOT)}: {node.name}', node.end_lineno - node.lineno + 1


def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def wide_lines(text: str) -> list[int]:
    """Numbers of the lines of code that are too wide; those that hold a message or a comment may be wider."""
    words, texts = set(), {tokenize.STRING, tokenize.COMMENT}
    if sys.version_info >= (3, 12):  # an f-string is several tokens
        texts |= {tokenize.FSTRING_START, tokenize.FSTRING_MIDDLE, tokenize.FSTRING_END}
    for token in tokens_of(text):
        if token.type in texts:
            words.update(range(token.start[0], token.end[0] + 1))
    return [i for i, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH and i not in words]


def aligned_lines(text: str) -> list[int]:
    """Numbers of the lines that begin right below the inside of the round bracket that they continue."""
    found, brackets, row = [], [], 0
    for token in tokens_of(text):
        if token.type in LAYOUT:
            continue
        if token.start[0] != row and brackets and token.string not in ')]}':
            opened = brackets[-1]
            if opened.string == '(' and token.start[1] == opened.end[1] and has_neighbours(opened, text):
                found.append(token.start[0])
        row = token.end[0]
        if token.type == tokenize.OP and token.string in '([{':
            brackets.append(token)
        elif token.type == tokenize.OP and token.string in ')]}':
            brackets.pop()
    return found


def has_neighbours(bracket: tokenize.TokenInfo, text: str) -> bool:
    """Whether the line goes on behind the bracket, which does not begin it."""
    line = text.splitlines()[bracket.start[0] - 1]
    return bool(line[:bracket.start[1]].strip() and line[bracket.end[1]:].strip())


def test_functions_fit_on_a_screen():
    long = {name for name, lines in functions() if lines > MOST}
    assert long <= LONG, f'longer than {MOST} lines: {sorted(long - LONG)}'
    assert long >= LONG, f'no longer too long, take them out of the list: {sorted(LONG - long)}'


@pytest.mark.parametrize('check', [wide_lines, aligned_lines])
def test_lines(check):
    faults = [f'{file.relative_to(ROOT)}:{line}' for file in FILES for line in check(file.read_text())]
    assert not faults, '\n'.join(faults)


def test_the_checks_find_what_they_look_for():
    wide = 'x = ' + ' + '.join(['name'] * 20)
    assert wide_lines(f'{wide}\nx = 1\n') == [1] and wide_lines(f"{wide} + 'text'\n") == []
    assert aligned_lines('f(a,\n  b)\n') == [2] and aligned_lines('f(\n    a,\n    b)\n') == []
