"""Nothing is written but through `runs.files`: every call that writes a file stands in a block of `replacing`."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / 'train_timm.py', *sorted((ROOT / 'timm_icasc').rglob('*.py')), *sorted(ROOT.glob('docs/evidence/*.py'))]

# Names of functions and methods that write, whatever they belong to; `open` and `save` are looked at more closely.
WRITERS = {
    'copy', 'copy2', 'copyfile', 'copytree', 'dump', 'move', 'rename', 'replace', 'save_file', 'savefig', 'savetxt',
    'savez', 'savez_compressed', 'to_csv', 'write_bytes', 'write_text'}
OF_MODULES = {'copy', 'dump', 'move', 'replace', 'save'}  # writers only as `os.replace`, `torch.save`, ...
MODULES = {'json', 'np', 'os', 'pickle', 'shutil', 'torch', 'yaml'}

# (file, what is called): why it is right.
EXCEPTIONS = {
    ('timm_icasc/runs/files.py', 'os.replace'): 'the one way itself',
    ('timm_icasc/runs/files.py', 'open'): 'asks the disk why torch could not write to the temporary file',
    ('timm_icasc/figures/explained_files.py', 'open'): 'two blocks of `replacing`, on one stack',
    ('timm_icasc/benchmark/cost.py', 'write_text'): 'a switch of the system, no file',
    ('docs/evidence/data_path.py', 'image.save'): 'into a temporary folder, which goes with the process',
    ('timm_icasc/hub/model_folder.py', 'save_file'): 'writes where the caller says, who has opened the block',
    ('timm_icasc/sweep/runner.py', 'open'): 'a log, to which lines are added; the last one may be cut',
}


def written_by(call):
    """What a call writes with, such as 'os.replace'; None where it writes nothing."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', None)
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else None
    if name == 'open':
        mode = call.args[1] if len(call.args) > 1 else next((k.value for k in call.keywords if k.arg == 'mode'), None)
        return 'open' if isinstance(mode, ast.Constant) and set(str(mode.value)) & set('wax+') else None
    if name == 'save' and isinstance(function, ast.Attribute):
        buffer = call.args and getattr(call.args[0], 'id', '') == 'buffer'  # in memory
        own = owner in ('grid', 'page') or ast.unparse(function).startswith('self.page.')  # ends in `canvas.save`
        return None if buffer or own else f'{owner}.save'
    if name in OF_MODULES:
        return f'{owner}.{name}' if owner in MODULES else None
    return name if name in WRITERS and isinstance(function, ast.Attribute) or name == 'save_file' else None


def writing(tree, inside=()):
    """(line, what) of every call that writes, outside of a block whose temporary file it names."""
    if isinstance(tree, ast.With):
        opened = [
            item.optional_vars.id for item in tree.items
            if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name)
            and getattr(item.context_expr.func, 'id', '') in ('replacing', 'replacing_folder')]
        inside = (*inside, *opened)
    elif isinstance(tree, ast.Call) and (what := written_by(tree)):
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if not named & set(inside):
            yield tree.lineno, what
    for child in ast.iter_child_nodes(tree):
        yield from writing(child, inside)


def test_there_is_one_way_to_write_a_file():
    found = [
        (str(file.relative_to(ROOT)), line, what) for file in FILES
        for line, what in writing(ast.parse(file.read_text(encoding='utf-8')))]
    assert not [f'{name}:{line}: {what}' for name, line, what in found if (name, what) not in EXCEPTIONS]
    assert {(name, what) for name, _, what in found} == set(EXCEPTIONS), 'an exception that is not needed any more'


@pytest.mark.parametrize('code', [
    "open(path, 'w')", "open(path, mode='ab')", 'path.write_text(text)', 'torch.save(x, path)', 'json.dump(x, file)',
    'figure.savefig(path)', 'image.save(path)', 'os.replace(a, b)', 'shutil.copyfile(a, b)', 'save_file(x, path)',
    'np.savez_compressed(path)', 'with replacing(path) as partial:\n    path.write_text(text)'])
def test_what_is_found(code):
    assert list(writing(ast.parse(code)))


@pytest.mark.parametrize('code', [
    'open(path)', "text.replace('a', 'b')", 'with replacing(path) as partial:\n    partial.write_text(text)',
    'image.save(buffer)'])
def test_what_is_not(code):
    assert not list(writing(ast.parse(code)))
