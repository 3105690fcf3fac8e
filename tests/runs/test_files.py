"""The one way to write a file, held against kills, full disks, links and devices."""
import errno
import os
import stat
import sys
from pathlib import Path

import pytest
from helpers.forked import Forked
from helpers.kills import kill_before, operations_of

from timm_icasc.errors import ICASCError, WriteError
from timm_icasc.runs import files
from timm_icasc.runs.files import replacing, replacing_folder, together, write_text
from timm_icasc.runs.tables import replace_between


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_the_mode_stays(tmp_path):
    path = tmp_path / 'a' / 'b' / 'x.txt'
    write_text(path, 'ä\n')
    assert path.read_bytes() == 'ä\n'.encode()
    before = os.umask(0o022)
    try:
        write_text(tmp_path / 'new', '')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'new').stat().st_mode) == 0o644
    path.chmod(0o600)
    write_text(path, 'two')
    assert path.read_text() == 'two' and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == ['x.txt']


def test_a_kill_at_every_operation_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / 'x.txt'

    def write():
        write_text(path, 'new')

    path.write_text('old')
    count, seen = len(operations_of(write, tmp_path / 'log')), set()
    assert count >= 3  # sync, rename, sync of the folder
    for number in range(1, count + 1):
        path.write_text('old')
        kill_before(write, number)
        seen.add(path.read_text())
        assert seen <= {'old', 'new'}
    assert seen == {'old', 'new'}
    write()
    assert names(tmp_path) == ['log', 'x.txt'], 'what the killed ones have left is gone'


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    path = tmp_path / 'x.txt'
    with replacing(path) as first:
        first.write_text('first')
        write_text(path, 'second')
        assert first.read_text() == 'first'
    assert path.read_text() == 'first' and names(tmp_path) == ['x.txt']


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space'), KeyboardInterrupt(), KeyError('x')])
def test_an_error_leaves_the_old_file_alone(error, tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('old')
    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)), replacing(path) as partial:
        partial.write_text('half')
        raise error
    assert path.read_text() == 'old' and names(tmp_path) == ['x.txt']


@pytest.mark.parametrize('failing', ['fsync', 'replace', 'open'])
def test_a_full_disk_is_named_in_one_line(failing, tmp_path, monkeypatch):
    path = tmp_path / 'x.txt'
    path.write_text('old')
    original = getattr(os, failing)

    def full(*args, **kwargs):
        if failing == 'open' and '.part' not in str(args[0]):
            return original(*args, **kwargs)
        raise OSError(errno.ENOSPC, 'No space left on device', 'x')

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(WriteError) as e:
        write_text(path, 'new')
    monkeypatch.undo()
    assert str(e.value) == (
        f"cannot write '{path}': the disk is full (No space left on device); make room in '{tmp_path}'. "
        f'The file is as it was before.')
    assert isinstance(e.value, ICASCError) and e.value.errno == errno.ENOSPC
    assert path.read_text() == 'old' and names(tmp_path) == ['x.txt']


@pytest.mark.parametrize('write', ['torch.save(torch.zeros(100_000), partial)', 'np.save(partial, np.zeros(100_000))'])
def test_torch_and_numpy_do_not_say_that_the_disk_is_full(write, tmp_path):
    """A limit on the size of files stands for the disk; their own errors say nothing of it."""
    code = (
        'import resource, signal, sys, torch\n'
        'import numpy as np\n'
        'from pathlib import Path\n'
        'from timm_icasc.errors import WriteError\n'
        'from timm_icasc.runs.files import replacing\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
        'try:\n'
        '    with replacing(Path(sys.argv[1])) as partial:\n'
        f'        {write}\n'
        'except WriteError as e:\n'
        '    print(e.line)\n')
    path = tmp_path / 'x.npy'
    path.write_text('old')
    process = Forked([sys.executable, '-c', code, path])
    out, err = process.communicate(60)
    assert process.returncode == 0, err
    assert f"cannot write '{path}': the disk is full (File too large)" in out
    assert path.read_text() == 'old' and names(tmp_path) == ['x.npy']


def test_a_file_of_a_folder_that_is_being_filled_is_named_by_its_place(tmp_path):
    with pytest.raises(WriteError) as e, replacing_folder(tmp_path / 'maps') as folder, replacing(folder / 'a' / 'x'):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert str(e.value) == (
        f"cannot write '{tmp_path / 'maps' / 'a' / 'x'}': the disk is full (No space left on device); make room in "
        f"'{tmp_path}'.")


def test_a_device_that_takes_no_more(tmp_path):
    with pytest.raises(WriteError, match="cannot write '/dev/full': the disk is full .*; make room in '/dev'.$"):
        write_text(Path('/dev/full'), 'x')


def test_a_link_is_replaced_and_a_device_is_not(tmp_path, capfd):
    (tmp_path / 'elsewhere').write_text('old')
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')
    write_text(tmp_path / 'link', 'new')
    assert (tmp_path / 'elsewhere').read_text() == 'old' and not (tmp_path / 'link').is_symlink()
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / 'pipe', 'through')
    assert os.read(reader, 100) == b'through'
    os.close(reader)
    write_text(Path('/dev/null'), 'nothing')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)


def test_the_author_s_page_is_found_behind_a_link(tmp_path):
    (tmp_path / 'page.md').write_text('mine\n<!-- x begins -->\n<!-- x ends -->\nmine too\n')
    (tmp_path / 'link.md').symlink_to('page.md')
    replace_between(tmp_path / 'link.md', 'x', 'table')
    assert (tmp_path / 'link.md').is_symlink()
    assert (tmp_path / 'page.md').read_text() == 'mine\n<!-- x begins -->\ntable\n<!-- x ends -->\nmine too\n'


def test_a_page_is_whole_after_a_kill_at_any_operation(tmp_path):
    page, text = tmp_path / 'page.md', 'mine\n<!-- x begins -->\nold\n<!-- x ends -->\nmine too\n'

    def write():
        replace_between(page, 'x', 'new')

    page.write_text(text)
    for number in range(1, len(operations_of(write, tmp_path / 'log')) + 1):
        page.write_text(text)
        kill_before(write, number)
        assert page.read_text() in (text, text.replace('old', 'new'))


class TestTogether:
    FILES = ('b.csv', 'c.npz', 'a.json')

    def write(self, folder, words=('b', 'c', 'a')):
        with together(*(folder / name for name in self.FILES)):
            for name, word in zip(self.FILES, words, strict=True):
                if word:
                    write_text(folder / name, word)

    def test_all_appear_and_what_is_not_written_goes(self, tmp_path):
        self.write(tmp_path)
        self.write(tmp_path, ('B', '', 'A'))
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'b.csv': 'B', 'a.json': 'A'}

    def test_an_error_leaves_all_as_they_were(self, tmp_path):
        self.write(tmp_path)
        with pytest.raises(KeyError), together(*(tmp_path / name for name in self.FILES)):
            write_text(tmp_path / 'a.json', 'A')
            raise KeyError
        assert {path.read_text() for path in tmp_path.iterdir()} == {'a', 'b', 'c'}

    def test_a_kill_at_every_operation_never_announces_a_mixture(self, tmp_path):
        folder = tmp_path / 'x'
        self.write(folder)
        count = len(operations_of(lambda: self.write(folder), tmp_path / 'log'))
        for number in range(1, count + 1):
            self.write(folder)
            kill_before(lambda: self.write(folder, ('B', 'C', 'A')), number)
            found = ''.join((folder / name).read_text() for name in self.FILES if (folder / name).is_file())
            assert found in ('bca', 'BCA') or not (folder / 'a.json').is_file(), found
        self.write(folder)
        assert names(folder) == sorted(self.FILES)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / 'cues'
    folder.mkdir()
    (folder / 'old').touch()
    with pytest.raises(KeyError), replacing_folder(folder) as partial:
        (partial / 'half').touch()
        raise KeyError
    assert names(folder) == ['old']
    with replacing_folder(folder) as partial:
        (partial / 'new').touch()
    assert names(folder) == ['new'] and names(tmp_path) == ['cues']


def test_no_file_can_be_written_where_none_may(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match="cannot write '.*/file/x': (Not a directory|File exists)"):
        write_text(tmp_path / 'file' / 'x', '')
    with pytest.raises(WriteError, match='Is a directory'):
        write_text(tmp_path, '')
