"""Files that somebody else may have written: YAML and JSON without traps, and names that stay in a folder."""
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from .errors import ICASCError, one_line

__all__ = ['parse_yaml', 'path_inside', 'read_json', 'read_yaml', 'refuse_links_out_of']

# Of a YAML file: its size, its values (those behind an alias as often as it comes), and how deep they are nested.
# Options, studies and cards are far below.
MOST_BYTES, MOST_NODES, MOST_DEPTH = 1 << 20, 20_000, 50

DRIVE = re.compile(r'[A-Za-z]:')


class _Loader(yaml.SafeLoader):
    """YAML in which a key that comes twice is an error, and aliases stand for no more than a file could hold."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ICASCError(f"line {key.start_mark.line + 1}: '{key.value}' is there twice; names must differ.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MOST_NODES:
            raise ICASCError(f'it holds more than {MOST_NODES:,} values.')
        if self.depth > MOST_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and '\0' in node.value:
            raise ICASCError(f'line {node.start_mark.line + 1} holds a zero byte, which no name may have.')
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count(node, {}) > MOST_NODES:
            raise ICASCError(f'its aliases stand for more than {MOST_NODES:,} values.')
        return node


def _count(node: yaml.Node, counted: dict[int, float]) -> float:
    """Nodes of a tree, those behind an alias as often as it comes; infinite where one holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = float('inf')
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count(child, counted) for child in children)
    return counted[id(node)]


def parse_yaml(text: str | bytes, where: str) -> Any:
    """What YAML holds.

    Args:
        text: The YAML.
        where: What messages call it.

    Raises:
        ICASCError: It is no YAML, too large or nested too deeply, or a key comes twice.
    """
    if len(text) > MOST_BYTES:
        raise ICASCError(f'{where} has {len(text):,} bytes; no file of this kind has more than {MOST_BYTES:,}.')
    try:
        return yaml.load(text, _Loader)
    except ICASCError as e:
        raise ICASCError(f'{where}, {e}') from e
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as e:  # dates that are none, keys that are lists
        raise ICASCError(f'{where} is not valid YAML: {_reason(e)}') from e


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; as `parse_yaml`, and OSError where it cannot be read."""
    with open(path, 'rb') as file:
        return parse_yaml(file.read(MOST_BYTES + 1), f"'{path}'")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ICASCError: It is no JSON, or is nested too deeply.
        OSError: It cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as e:
        raise ICASCError(f"'{path}' is not valid JSON: {_reason(e)}") from e


def _reason(error: Exception) -> str:
    return 'it is nested too deeply' if isinstance(error, RecursionError) else one_line(error, 400)


def path_inside(folder: Path, name: str, through_links: bool = False) -> Path:
    """The path of a file that a list or a stranger names, which must lie in a folder.

    Args:
        folder: The folder.
        name: Relative to it.
        through_links: Whether a link in the folder may lead out of it.

    Raises:
        ICASCError: The name leaves the folder.
    """
    parts = re.split(r'[/\\]', name)
    path = Path(folder) / name
    if '..' in parts or not parts[0] or DRIVE.match(name) or '\0' in name or not any(part.strip('.') for part in parts):
        raise ICASCError(f"the name '{name}' leaves the folder '{folder}': names are relative to it, without '..'.")
    if not through_links and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ICASCError(f"'{path}' is a link that leaves the folder '{folder}': put the file itself there.")
    return path


def refuse_links_out_of(folder: Path, names: list[str]) -> None:
    """Raise ICASCError where one of the files of a folder is a link that leaves it."""
    for name in names:
        if os.path.islink(Path(folder) / name):
            path_inside(folder, name)
