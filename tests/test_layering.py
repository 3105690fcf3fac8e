"""The rooms of the package: who may import whom, and what a plain import loads."""
import ast
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'timm_icasc'

# From the ground up. A room may import rooms of the floors below its own, never of its own floor or of one above, not
# inside a function either. The package itself (`timm_icasc/__init__.py`) hands on names of floors up to task.
FLOORS = [
    ['foreign_text', 'version', '_precision', '_starting'],
    ['errors'],
    ['foreign_files'],
    ['attention', 'losses', 'labels', 'double_backward', 'hub', 'runs', 'models'],
    ['features', 'metrics', 'data'],
    ['objective'],
    ['task', 'support', 'explanation'],
    ['training'],
    ['evaluation', 'paper', 'benchmark'],
    ['figures', 'publish', 'sweep', 'demo'],
    ['cli'],
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
PUBLIC = FLOOR_OF['task']  # the highest floor that `timm_icasc/__init__.py` imports
HEAVY = ['sklearn', 'scipy', 'matplotlib', 'jinja2']


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix('').parts[0]


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module of the package that a file imports, at the top or inside a function."""
    package = ['timm_icasc', *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            names = [f'{module}.{alias.name}' for alias in node.names] if module == 'timm_icasc' else [module]
            yield from ((node.lineno, name) for name in names)


def arrows() -> Iterator[tuple[str, str, str]]:
    """(place, importing room, imported room) of every import between rooms."""
    for file in sorted(PACKAGE.rglob('*.py')):
        for line, module in imported_modules(file):
            parts = module.split('.')
            if parts[0] == 'timm_icasc' and len(parts) > 1 and parts[1] != room_of(file):
                yield f'{file.relative_to(ROOT)}:{line}', room_of(file), parts[1]


def test_every_room_is_in_the_table():
    rooms = {room_of(file) for file in PACKAGE.rglob('*.py')} - {'__init__'}
    assert rooms == set(FLOOR_OF)


def test_imports_go_downwards_only():
    upwards = [
        f'{place}: {importer} (floor {FLOOR_OF[importer]}) imports {imported} (floor {FLOOR_OF[imported]})'
        for place, importer, imported in arrows()
        if importer != '__init__' and FLOOR_OF[imported] >= FLOOR_OF[importer]]
    assert not upwards, '\n'.join(upwards)


def test_the_package_itself_imports_the_public_floors_only():
    imported = {room for _, importer, room in arrows() if importer == '__init__'}
    assert imported and all(FLOOR_OF[room] <= PUBLIC for room in imported)


def test_inside_a_room_no_circle():
    """Files of one room import each other without a circle."""
    edges: dict[str, set[str]] = {}
    for file in PACKAGE.rglob('*.py'):
        name = '.'.join(['timm_icasc', *file.relative_to(PACKAGE).with_suffix('').parts]).removesuffix('.__init__')
        edges[name] = {module for _, module in imported_modules(file)}
    leaves = True
    while leaves:
        leaves = {name for name, modules in edges.items() if not modules & edges.keys()}
        edges = {name: modules - leaves for name, modules in edges.items() if name not in leaves}
    edges.pop('timm_icasc', None)
    assert not edges, f'circles among {sorted(edges)}'


def test_no_two_files_share_a_name():
    """But a file of cli/, which bears the name of its command."""
    names = Counter(
        file.name for file in PACKAGE.rglob('*.py') if room_of(file) != 'cli' and not file.name.startswith('__'))
    assert [name for name, count in names.items() if count > 1] == []


def test_imports_are_light():
    """Neither plots nor metrics nor templates are loaded before somebody asks for them; nor data to look at layers."""
    command = ''.join(
        f'import sys, {module}\nprint(*(name for name in {heavy} if name in sys.modules))\n'
        for module, heavy in (
            ('timm_icasc', HEAVY),
            ('timm_icasc.cli.layers', [*HEAVY, 'timm_icasc.data', 'timm_icasc.training.arguments'])))
    loaded = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout == '\n\n'


@pytest.mark.parametrize('options, worker, loaded', [
    ({'dist': 'loadfile'}, False, False), ({'dist': 'loadfile'}, True, True), ({'dist': 'no'}, False, True),
    ({}, False, True), ({'dist': 'loadfile', 'collectonly': True}, False, True)])
def test_who_only_hands_out_the_tests_does_not_load_what_they_need(options, worker, loaded):
    conftest, plugins = runpy.run_path(str(ROOT / 'tests' / 'conftest.py')), []
    conftest['pytest_configure'](SimpleNamespace(
        getoption=lambda name, default=None: options.get(name, default), **({'workerinput': {}} if worker else {}),
        pluginmanager=SimpleNamespace(import_plugin=plugins.append)))
    assert plugins == ['helpers.fixtures'] * loaded
    imports = [node for node in ast.walk(ast.parse((ROOT / 'tests' / 'conftest.py').read_text()))
               if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [alias.name for node in imports for alias in node.names] == ['os']
