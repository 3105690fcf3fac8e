"""Options of the training from YAML: the recipes of this package, a run's args.yaml, a user's own file."""
import argparse
import difflib
import re
import warnings
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from ..errors import ICASCError, first_of
from ..foreign_files import read_yaml
from ..foreign_text import shell_command

__all__ = ['RECIPES', 'check_options', 'find_config', 'list_recipes', 'load_config']

RECIPES = Path(__file__).parents[1] / 'recipes'


def list_recipes() -> dict[str, str]:
    """Names of the recipes of this package, and what the first line of each says that it is."""
    return {
        path.stem: re.split(r' \(|: ', path.read_text(encoding='utf-8').splitlines()[0].removeprefix('# '))[0]
        for path in sorted(RECIPES.glob('*.yaml'))}


def find_config(name: str, folder: Path = Path()) -> Path:
    """The file that a user means: one in `folder`, else the recipe of that name, with or without its ending."""
    path, recipe = folder / name, RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    return recipe if not path.is_file() and recipe.parent == RECIPES and recipe.is_file() else path


def _checked(action: argparse.Action, value: Any, where: str) -> Any:
    """A YAML value as the command line would have parsed it."""
    if value is None and action.default is not None:
        raise ICASCError(f"{where}: '{action.dest}' has no value: write one, or leave the line out.")
    if value is None or isinstance(action, ParseKwargs) and isinstance(value, dict):
        return value
    if isinstance(action, ParseKwargs):
        raise ICASCError(f"{where}: '{action.dest}' must hold 'name: value' lines, got {value!r}.")
    several = action.nargs in ('+', '*') or isinstance(action.nargs, int) and action.nargs > 0
    if several != isinstance(value, list) or isinstance(value, dict):
        raise ICASCError(f"{where}: '{action.dest}' must be {'a list' if several else 'one value'}, got {value!r}.")
    if several and isinstance(action.nargs, int) and len(value) != action.nargs:
        raise ICASCError(f"{where}: '{action.dest}' must have {action.nargs} values, got {value!r}.")
    if action.nargs == 0 and not isinstance(value, bool):
        raise ICASCError(f"{where}: '{action.dest}' must be true or false, got {value!r}.")
    try:
        values = [
            action.type(str(v)) if action.type else v for v in (value if several else [value])]
    except (TypeError, ValueError) as e:
        raise ICASCError(f"{where}: '{action.dest}' must be {action.type.__name__}, got {value!r}.") from e
    if action.choices is not None and not set(values) <= set(action.choices):
        raise ICASCError(f"{where}: '{action.dest}' must be one of {tuple(action.choices)}, got {value!r}.")
    if action.type is None and action.nargs != 0 and not all(isinstance(v, str) for v in values):
        raise ICASCError(f"{where}: '{action.dest}' must be text, got {value!r}: write it in quotes.")
    return values if several else values[0]


def _without_publishing(options: dict[str, Any], file: Path) -> dict[str, Any]:
    """The options of a file, which may be somebody else's, without its wish to publish what comes of them."""
    repo_id, license = options.pop('push_to_hub', ''), options.pop('license', None)
    if repo_id:
        asked = ['--push-to-hub', repo_id, *(['--license', license] if license else [])]
        warnings.warn(
            f"'{file}' asks to publish as '{repo_id}', which the command line alone can: add {shell_command(asked)}.",
            stacklevel=3)
    return options


def load_config(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options from a YAML file, but those that publish: keys are option names, with '-' or '_'.

    Raises:
        ICASCError: The file is missing or no YAML mapping, or a key or value is not an option's.
    """
    try:
        config = read_yaml(path)
    except OSError as e:
        raise ICASCError(
            f"--config: cannot read '{path}': {e.strerror}; recipes: {', '.join(list_recipes())}.") from e
    except ICASCError as e:
        raise ICASCError(f'--config: {e}') from e
    if not isinstance(config, dict):
        raise ICASCError(f"--config: '{path}' holds no 'option: value' lines.")
    return _without_publishing(check_options(config, parser, f"--config: '{path}'"), path)


def check_options(
        config: dict[str, Any],
        parser: argparse.ArgumentParser,
        where: str,
) -> dict[str, Any]:
    """The options of a mapping as the command line would have parsed them; keys with '-' or '_'.

    Raises:
        ICASCError: A key or value is not an option's; the message begins with `where`.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    named = {str(key).replace('-', '_'): value for key, value in config.items()}
    if unknown := [name for name in named if name not in actions]:
        close = {name: difflib.get_close_matches(name, actions, 1) for name in unknown}
        told = [f"'{name}'{f' (did you mean {close[name][0]!r}?)' if close[name] else ''}" for name in unknown]
        raise ICASCError(
            f"{where} has the unknown key{'s' * (len(told) > 1)} {first_of(told, 10)}.")
    return {name: _checked(actions[name], value, where) for name, value in named.items()}
