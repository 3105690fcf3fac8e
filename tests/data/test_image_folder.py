"""What lies in an image folder without being a class, or an image that timm reads."""
import warnings

import numpy as np
import pytest
from PIL import Image

from timm_icasc.data import class_names, create_dataset
from timm_icasc.errors import DataError


@pytest.fixture
def root(tmp_path):
    """Two classes of two images, whose levels are the numbers of the classes."""
    for c, name in enumerate(('ant', 'bat')):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((4, 4, 3), c, np.uint8)).save(tmp_path / 'train' / name / f'{i}.png')
    return tmp_path


def convert(folder, ending, count):
    for file in sorted(folder.iterdir())[:count]:
        with Image.open(file) as image:
            image.save(file.with_suffix(ending))
        file.unlink()


@pytest.mark.parametrize('ending', ['.webp', '.bmp', '.tif', '.WEBP'])
def test_a_class_of_images_that_timm_does_not_read(ending, root):
    convert(root / 'train' / 'bat', ending, 2)
    with pytest.raises(DataError, match=rf"train/bat' end in {ending.lower()}, which are not read here \(.png, .jpg"):
        create_dataset('', str(root), 'train')
    assert len(create_dataset('torch/image_folder', str(root), 'train')) == 4, 'the remedy'
    (root / 'map.txt').write_text('ant\n')
    with pytest.warns(UserWarning, match='2 images in .* are left out'):
        assert len(create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))) == 2


def test_some_images_that_timm_does_not_read(root):
    convert(root / 'train' / 'bat', '.bmp', 1)
    with pytest.warns(UserWarning, match=r"1 images in '.*train' are left out: they end in .bmp, which are not read"):
        assert len(create_dataset('', str(root), 'train')) == 3


@pytest.mark.parametrize('files, message', [
    (['0.heic', '1.heic'], 'its files end in .heic'), (['README.txt', 'x.json'], 'its files end in .json, .txt'),
    (['0', '1'], 'its files have no endings'), ([], 'it is empty'), (['below/0.heic'], 'its files end in .heic')])
def test_a_class_without_an_image(files, message, root):
    """timm leaves it out without a word, and the model has a class less than the folder."""
    (root / 'train' / 'cat').mkdir()
    for file in files:
        (root / 'train' / 'cat' / file).parent.mkdir(exist_ok=True)
        (root / 'train' / 'cat' / file).write_bytes(b'x')
    with pytest.raises(DataError, match=rf"the class '.*train/cat' has no image .* \(.png, .*\): {message}\. Put"):
        create_dataset('', str(root), 'train')
    (root / 'map.txt').write_text('ant\nbat\n')
    assert len(create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))) == 4, 'as the map says'


def test_what_else_lies_in_a_class(root):
    for file in ('README.txt', 'annotations/0.xml', 'more/2.png'):
        (root / 'train' / 'bat' / file).parent.mkdir(exist_ok=True)
        (root / 'train' / 'bat' / file).write_bytes(b'x')
    assert len(create_dataset('', str(root), 'train')) == 5


@pytest.mark.parametrize('reader', ['', 'torch/image_folder', 'cifar100'])
@pytest.mark.parametrize('folder', [
    '.ipynb_checkpoints', '__MACOSX', 'ant/.ipynb_checkpoints', 'bat/.cache/x', '@eaDir', 'bat/@eaDir', 'lost+found'])
def test_folders_that_are_no_classes(folder, reader, root):
    (root / 'train' / folder).mkdir(parents=True)
    Image.new('RGB', (4, 4), (9, 9, 9)).save(root / 'train' / folder / 'x.png')
    Image.new('RGB', (4, 4), (9, 9, 9)).save(root / 'train' / 'y.png')  # beside the classes
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dataset = create_dataset(reader, str(root), 'train')
    assert class_names(dataset) == ['ant', 'bat']
    images = [(int(np.array(image).max()), target) for image, target in dataset]
    assert images == [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_a_split_of_no_classes(root):
    (root / 'val' / '.ipynb_checkpoints').mkdir(parents=True)
    with pytest.raises(DataError, match='has no class folders'):
        create_dataset('', str(root), 'val')


def test_a_map_may_name_hidden_folders(root):
    (root / 'train' / 'bat').rename(root / 'train' / '.bat')
    (root / 'map.txt').write_text('.bat\nant\n')
    dataset = create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))
    assert sorted(target for _, target in dataset) == [0, 0, 1, 1] and class_names(dataset) == ['.bat', 'ant']
