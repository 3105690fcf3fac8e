"""What a run noted down, without the paths of the machine that it ran on: of each, its last part stays."""
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from .folder import PLACES

__all__ = ['find_local_path', 'without_local_paths']

# Options whose values are paths of files or folders, whatever they look like.
PATH_OPTIONS = (*PLACES, 'class_map', 'class_weights', 'config', 'resume', 'output')

SHORT_OPTIONS = {'-c': 'config'}

RECIPES = 'timm_icasc/recipes/'  # the same everywhere

# An absolute path, or one that begins with ~, ./ or ../, spaces included, also right behind a short option (-cFILE);
# the address of a page is none.
LOCAL_PATH = re.compile(
    r'(?P<address>\b(?!file:|local-dir:)[a-zA-Z][\w+.-]*://\S*)'
    r'''|(?:file://(?=/)|(?<![\w.~/\\-])|(?<=/)(?=/)|(?<=[\s'"]-[A-Za-z])|(?<=^-[A-Za-z]))'''
    r'''(?:~[\w.-]*|[A-Za-z]:|\.\.?|\\)?[/\\][^\n'",;:=()\[\]{}]+''')

ATTACHED = re.compile(r'(-[A-Za-z])(=?)(.+)', re.DOTALL)  # a short option and its value in one word


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r'[/\\]+', path) if part not in ('', '.', '..', '~')]
    return parts[-1] if parts else '.'


def _without_paths(text: str) -> str:
    return LOCAL_PATH.sub(lambda match: match['address'] or _last_part(match[0]), text)


def _is_path_option(word: str) -> bool:
    """Whether a word of a command is an option of `PATH_OPTIONS`, spelt out or cut short."""
    name = SHORT_OPTIONS.get(word) or word.removeprefix('--').replace('-', '_')
    return word.startswith('-') and len(name) > 1 and any(option.startswith(name) for option in PATH_OPTIONS)


def _value_of_option(option: str, value: str) -> str:
    if _is_path_option(option) and not PurePosixPath(value).as_posix().startswith(RECIPES):
        return _last_part(value) if value else value
    return _without_paths(value)


def _command(text: str) -> str:
    """A command line, word by word."""
    try:
        words = shlex.split(text)
    except ValueError:  # written by somebody else
        return _without_paths(text)
    kept, option = [], ''
    for word in words:
        name, equals, value = word.partition('=')
        if attached := ATTACHED.fullmatch(word):
            word = f'{attached[1]}{attached[2]}{_value_of_option(attached[1], attached[3])}'
        elif word.startswith('-') and equals:
            word = f'{name}={_value_of_option(name, value)}'
        elif not word.startswith('-'):
            word = _value_of_option(option, word)
        option = word if word.startswith('-') and not equals and not attached else ''
        kept.append(word if word == '&&' else shlex.quote(word))
    return ' '.join(kept)


def without_local_paths(value: Any, name: str = '') -> Any:
    """What is to be published of `value`.

    Args:
        value: Text, or dictionaries and lists of it.
        name: Under which it stands: an option, 'command', or anything else. Names of classes stay as they are.
    """
    if isinstance(value, dict):
        return {key: without_local_paths(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and name != 'label_names':
        return [without_local_paths(item, name) for item in value]
    if not isinstance(value, str):
        return value
    if name == 'command':
        return _command(value)
    return _value_of_option(f'--{name}', value)


def find_local_path(value: Any, name: str = '') -> str | None:
    """The first text in `value` with an absolute path in it; None without one."""
    if isinstance(value, dict):
        found = (find_local_path(item, str(key)) for key, item in value.items())
    elif isinstance(value, (list, tuple)) and name != 'label_names':
        found = (find_local_path(item, name) for item in value)
    else:
        found = iter([value] if isinstance(value, str) and _without_paths(value) != value else [])
    return next((text for text in found if text is not None), None)
