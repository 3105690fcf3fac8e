"""Images that are trained on and measured on, whatever data set they are in."""
import os

import numpy as np
import pytest
from PIL import Image

from timm_icasc.data import LabelledImages, count_shared, create_dataset, few_of_each_class

FILES = ('ant/1.png', 'ant/2.png', 'bee/1.png', 'bee/3.png')


def pictures(folder, files=FILES):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(folder / file)


@pytest.fixture
def root(tmp_path):
    pictures(tmp_path / 'train')
    return tmp_path


def shared(root, train='train', val='val', name=''):
    sets = [create_dataset(name, str(root), split) for split in (train, val)]
    return count_shared(*sets, train == val)


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
class TestFolders:

    def test_copies_of_the_same_names_are_other_images(self, name, root):
        pictures(root / 'val')
        assert shared(root, name=name) == 0

    def test_one_folder(self, name, root):
        assert shared(root, val='train', name=name) == 4

    def test_a_folder_that_is_a_link(self, name, root):
        os.symlink(root / 'train', root / 'val')
        assert shared(root, name=name) == 4

    def test_images_that_are_links(self, name, root):
        pictures(root / 'val', ['ant/9.png', 'bee/9.png'])
        os.symlink(root / 'train' / 'bee' / '3.png', root / 'val' / 'bee' / '3.png')
        assert shared(root, name=name) == 1

    def test_the_images_that_were_drawn(self, name, root):
        train, val = (create_dataset(name, str(root), 'train') for _ in range(2))
        assert count_shared(few_of_each_class(train, 1, seed=0), val, True) == 2
        assert count_shared(train, few_of_each_class(val, 1, seed=0), True) == 2


@pytest.mark.parametrize('name, column', [('singlelabel', 'label'), ('multilabel', 'labels')])
def test_lists(name, column, root):
    for split, numbers in (('a', (0, 1, 2)), ('b', (3, 2))):
        rows = [f'train/{FILES[number]},{FILES[number][:3]}' for number in numbers]
        (root / f'{split}.csv').write_text('\n'.join([f'image,{column}', *rows]))
    assert shared(root, 'a', 'b', name) == 1


def test_pixels_in_no_file_are_known_by_their_numbers():
    images = LabelledImages(np.zeros((6, 4, 4, 3), np.uint8), [0, 0, 0, 1, 1, 1], ['ant', 'bee'])
    few = few_of_each_class(images, 2, seed=0)
    assert count_shared(few, images, True) == 4
    assert count_shared(few, images, False) == 0
