"""What ruff has no rule for: how long functions are."""
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST = 60

# Functions that are longer; the set may only shrink.
LONG = {
    'timm_icasc/evaluation/collect.py: collect_records',
    'timm_icasc/models/resnet_cifar.py: __init__',
}


def functions() -> Iterator[tuple[str, int]]:
    """File and name of every function of the package and the training script, and its length with the docstring."""
    for file in [ROOT / 'train_timm.py', *sorted((ROOT / 'timm_icasc').rglob('*.py'))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f'{file.relative_to(ROOT)}: {node.name}', node.end_lineno - node.lineno + 1


def test_functions_fit_on_a_screen():
    long = {name for name, lines in functions() if lines > MOST}
    assert long <= LONG, f'longer than {MOST} lines: {sorted(long - LONG)}'
    assert long >= LONG, f'no longer too long, take them out of the list: {sorted(LONG - long)}'
