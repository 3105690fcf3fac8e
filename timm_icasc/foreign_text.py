"""Text that somebody else wrote, made harmless where it goes: to the terminal, into CSV, Markdown and shell commands.

Names of classes, files and folders, what a config.json says, messages of other libraries: each passes one function.
"""
import os
import re
import shlex
import unicodedata
from numbers import Number
from typing import Any
from urllib.parse import unquote

__all__ = [
    'Markdown', 'code_span', 'csv_cell', 'fenced', 'markdown_text', 'printable', 'shell_command', 'without_secrets',
]

# What turns the direction of the text around it: a name could be read as another one.
BIDI = frozenset('\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')

# Control characters, halves of surrogate pairs (names that are not UTF-8), breaks of lines and paragraphs.
UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')

# Whose values may hold a password, as `user:password@host`.
ADDRESSES = ('HF_ENDPOINT', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'FTP_PROXY')

LEAST_SECRET = 8  # letters of a password that is looked for by itself; a shorter one is half of some word

TOKENS = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN')

MASK = '***'

SECRET = re.compile(
    r'(?P<scheme>\b[a-zA-Z][\w+.-]*://)[^\s/?#\'"<>]*@'  # user and password in an address
    r'|(?P<bearer>\bBearer\s+)[^\s\'"\\]+'
    r'|(?P<prefix>\bhf_)[A-Za-z0-9]{20,}')

# Of spreadsheets, which take a cell that begins like this for a formula; the last four are the wide forms.
FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n', '\uff1d', '\uff0b', '\uff0d', '\uff20')

NUMBER = r'[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?'

NUMBERS = re.compile(rf'(?:{NUMBER}(?: \u00b1 {NUMBER})?|[+-]?(?:nan|inf))')

# What means something in the middle of a line; an underscore inside a word does not, nor a bracket by itself.
MARKDOWN = re.compile(r'[\\`|]|\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=\])[(\[:]')

# The beginnings of headings, quotes, lists and underlines.
BLOCK = re.compile(r'^(?:(?=[#>=]|[-+*]\s)|(\d+)(?=[.)]\s))')

# The beginnings of tags and of entities.
HTML = re.compile(r'<|&(?=#?\w+;)')

# What GitHub and the Hub make links of by themselves.
LINK = re.compile(r'(?i)\b(https?|ftp)://|\b(www)\.')


class Markdown(str):
    """Text that is Markdown already, not to be made harmless once more."""


def _known_secrets() -> list[str]:
    """Users and passwords in the addresses of the environment, and its tokens; the longest first."""
    found = [os.environ.get(name, '') for name in TOKENS]
    for value in (value for name, value in os.environ.items() if name.upper() in ADDRESSES and '@' in value):
        user = value.rpartition('://')[2].rpartition('@')[0]
        password = user.partition(':')[2]
        found += [f'{user}@', user * bool(password), password * (len(password) >= LEAST_SECRET)]
    found += [unquote(text) for text in found]
    return sorted({text for text in found if len(text) > 1}, key=len, reverse=True)


def without_secrets(text: str) -> str:
    """Text in which passwords in addresses, and access tokens, are asterisks."""
    for secret in _known_secrets():
        text = text.replace(secret, f'{MASK}@' if secret.endswith('@') else MASK)
    return SECRET.sub(
        lambda match: f'{match["scheme"]}{MASK}@' if match['scheme'] else (match['bearer'] or match['prefix']) + MASK,
        text)


def _is_shown(char: str) -> bool:
    return unicodedata.category(char) not in UNPRINTABLE and ord(char) & 0xfffe != 0xfffe


def _spelt(char: str) -> str:
    """A character as programmers, and bash, write it."""
    code = ord(char)
    if 0xdc80 <= code <= 0xdcff:  # a byte of a file name that is not UTF-8
        return f'\\x{code - 0xdc00:02x}'
    return f'\\u{code:04x}' if 0x7f < code < 0x100 else char.encode('unicode_escape').decode()


def printable(text: Any) -> str:
    """Text as one line without controls: escapes, line breaks and turns of direction are spelt out, secrets masked."""
    text = without_secrets(str(text))
    return text if text.isascii() and text.isprintable() else ''.join(
        char if _is_shown(char) and char not in BIDI else _spelt(char) for char in text)


def csv_cell(value: Any) -> Any:
    """A value as a cell of CSV: what a spreadsheet would take for a formula gets a quote in front; numbers stay."""
    if value is None or isinstance(value, Number):
        return value
    text = ''.join(_spelt(char) if unicodedata.category(char) == 'Cs' else char for char in str(value))
    return f"'{text}" if text.startswith(FORMULA) and not NUMBERS.fullmatch(text) else text


def markdown_text(text: Any) -> str:
    """Text as it stands in a line of Markdown: no emphasis, code, cell, link, heading or HTML of its own."""
    text = HTML.sub(lambda match: {'&': '&amp;', '<': '&lt;'}[match[0]], printable(text).lstrip())
    text = MARKDOWN.sub(lambda match: f'\\{match[0]}', text)
    text = LINK.sub(lambda match: f'{match[1]}&#58;//' if match[1] else f'{match[2]}&#46;', text)
    return BLOCK.sub(lambda match: f'{match[1] or ""}\\', text)


def code_span(text: Any) -> Markdown:
    """Text as code inside a line of Markdown, also of a table."""
    text = printable(text)
    longest = max(map(len, re.findall('`+', text)), default=0)
    ticks, space = '`' * (longest + 1), ' ' * bool(longest)
    return Markdown(f'{ticks}{space}{text}{space}{ticks}'.replace('|', '\\|'))


def fenced(text: Any) -> str:
    """Text as one line inside a block of code, which it cannot end."""
    return re.sub(r'^(\s*)(`{3,}|~{3,})', r'\1\\\2', printable(text))


def shell_command(words: list[str]) -> str:
    """Words as one line for a shell; bash's `$'...'` holds what cannot stand in a line as it is."""
    return ' '.join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if all(map(_is_shown, word)):
        return shlex.quote(word)
    marks = {'\\': '\\\\', "'": "\\'"}
    return f"$'{''.join(marks.get(char, char) if _is_shown(char) else _spelt(char) for char in word)}'"
