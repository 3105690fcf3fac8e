"""Which images a user means by files and folders, and what they are called."""
import os

import pytest
from PIL import Image

from timm_icasc import DataError
from timm_icasc.data.image_files import ImageFile, find_images


@pytest.fixture
def folder(tmp_path):
    for name in ('a/x.jpg', 'a/deep/x.PNG', 'a/.hidden.jpg', 'a/.git/x.jpg', 'a/notes.txt', 'b/x.jpg', 'c/a/x.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / name, 'PNG') if not name.endswith('txt') else (
            tmp_path / name).write_text('x')
    return tmp_path


def names(*arguments, **kwargs):
    return [file.name for file in find_images(*arguments, **kwargs)]


def test_one_folder(folder):
    assert names([folder / 'a']) == ['x.jpg', 'deep/x.PNG']


def test_equal_names_of_several_folders_differ(folder):
    assert names([folder / 'a', folder / 'b', folder / 'c' / 'a']) == [
        'a/x.jpg', 'a/deep/x.PNG', 'b/x.jpg', 'a-2/x.jpg']
    assert names([folder / 'a' / 'x.jpg', folder / 'b' / 'x.jpg']) == ['a/x.jpg', 'b/x.jpg']


def test_each_file_once(folder):
    assert names([folder / 'a', folder / 'a' / 'x.jpg', str(folder / 'a')]) == ['x.jpg', 'deep/x.PNG']
    assert names([folder, folder / 'a']) and len(names([folder, folder / 'a'])) == 4


def test_names_that_differ_in_case_alone(folder):
    Image.new('RGB', (4, 4)).save(folder / 'b' / 'X.jpg')
    found = names([folder / 'b'])
    assert len({name.casefold() for name in found}) == len(found) == len(list((folder / 'b').iterdir()))


def test_a_file_that_is_named_is_taken_whatever_its_ending(folder):
    assert names([folder / 'a' / 'notes.txt']) == ['notes.txt']


def test_what_is_no_image_is_told_of(folder):
    """With its number, in one line; hidden files are no one's."""
    with pytest.warns(UserWarning, match=r"1 files of '.*/a' are left out, by their endings: .txt \(1\);") as told:
        assert names([folder / 'a']) == ['x.jpg', 'deep/x.PNG']
    assert len(told) == 1
    with pytest.warns(UserWarning, match=r'2 files of .*: .jpg \(1\), .txt \(1\); images here end in .png \('):
        assert names([folder / 'a'], endings=['.png']) == ['deep/x.PNG']


def test_results_inside_the_folder_are_left_out(folder):
    (folder / 'a' / 'explained').mkdir()
    Image.new('RGB', (4, 4)).save(folder / 'a' / 'explained' / 'y.png')
    assert names([folder / 'a'], outside=folder / 'a' / 'explained') == ['x.jpg', 'deep/x.PNG']
    assert 'explained/y.png' in names([folder / 'a'])


@pytest.mark.skipif(not hasattr(os, 'symlink'), reason='no links')
def test_a_ring_of_links(folder):
    (folder / 'a' / 'deep' / 'up').symlink_to(folder / 'a')
    assert names([folder / 'a']) == ['x.jpg', 'deep/x.PNG']


@pytest.mark.parametrize('sources, said', [(['none'], "no file or folder '.*none'"), (['empty'], 'has no images')])
def test_what_is_missing(sources, said, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=said):
        find_images([tmp_path / source for source in sources])


def test_a_folder_whose_images_are_all_left_aside(folder):
    with pytest.raises(DataError, match=r'has no images .*, those where results are written \(`output`\) left aside'):
        find_images([folder / 'a'], outside=folder / 'a')


def test_stems_of_long_names(tmp_path):
    long = [ImageFile(tmp_path, f"a/{'ä' * 120}{end}.jpg") for end in '12']
    assert long[0].stem != long[1].stem and all(len(os.fsencode(file.stem)) < 100 for file in long)
    assert ImageFile(tmp_path, 'a/b.jpg').stem == 'a/b.jpg'
