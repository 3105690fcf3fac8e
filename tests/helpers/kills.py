"""A function in a process of its own that is ended by -9 right before a chosen file operation."""
import csv
import json
import os
import signal
import traceback

import torch

OPERATIONS = ('fsync', 'link', 'remove', 'replace', 'unlink')


def _target(operation, arguments):
    """Name of the file that an operation is about: of two, the one that it leads to."""
    place = arguments[1] if operation in ('link', 'replace') else arguments[0]
    return os.path.basename(os.readlink(f'/proc/self/fd/{place}') if isinstance(place, int) else place)


def _watch(before):
    """Call `before(operation, name)` ahead of every file operation."""
    def wrap(operation, original):
        def call(*arguments, **options):
            before(operation, _target(operation, arguments))
            return original(*arguments, **options)
        return call

    for operation in OPERATIONS:
        setattr(os, operation, wrap(operation, getattr(os, operation)))


def _in_a_process(function, before):
    child = os.fork()
    if not child:
        try:
            _watch(before)
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def operations_of(function, log):
    """Every file operation of a function, in order, as (operation, name)."""
    assert _in_a_process(function, lambda *call: open(log, 'a').write(f'{call[0]} {call[1]}\n')) == 0
    return [tuple(line.split(' ', 1)) for line in log.read_text().splitlines()]


def changes(operations):
    """Numbers of those that change a folder: what a kill leaves before a file is flushed, it leaves behind that too."""
    return [number for number, (operation, _) in enumerate(operations, 1) if operation != 'fsync']


def kill_before(function, number=None, operation=None, name=None, occurrence=1):
    """Run a function, killed before its `number`-th operation, or before an operation on the file of that name."""
    seen = []

    def before(*call):
        if number is not None or call == (operation, name):
            seen.append(call)
        if len(seen) == (occurrence if number is None else number):
            os.kill(os.getpid(), signal.SIGKILL)

    assert _in_a_process(function, before) == -signal.SIGKILL, 'it came to its end'


def _plain(value):
    """A checkpoint's content, comparable: without times."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.detach().numpy().tobytes()  # lists of numbers would take seconds
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items() if key not in ('saved', 'time', 'waiting', 'wall_time')}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: v for k, v in vars(value).items() if k != 'run_dir'} if hasattr(value, '__dict__') else value


def _content(path):
    if path.name.endswith('.pth.tar'):
        return _plain(torch.load(path, weights_only=False))
    if path.suffix == '.json':
        return _plain(json.loads(path.read_text()))
    if path.suffix == '.csv':
        with open(path, newline='') as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k not in ('eval_seconds', 's/epoch')} for row in rows]
    return path.read_bytes()


def contents(folder):
    """Every file of a folder, by name: what it says, but for times."""
    return {
        str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob('*')) if path.is_file()}
