"""What lies in an image folder without being a class, or an image that timm reads."""
import csv
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import TINY, train_in_process
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from timm_icasc.cli import main
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
    endings = ['png', ending]
    assert len(create_dataset('', str(root), 'train', image_endings=endings)) == 4, 'the remedy'
    assert get_img_extensions() == ('.png', '.jpg', '.jpeg'), 'and timm reads what it did'
    (root / 'map.txt').write_text('ant\n')
    with pytest.warns(UserWarning, match='2 files of .* are left out'):
        assert len(create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))) == 2


def test_some_images_that_timm_does_not_read(root):
    convert(root / 'train' / 'bat', '.bmp', 1)
    said = r"1 files of '.*train' are left out, by their endings: .bmp \(1\); images here end in .png, .jpg, .jpeg \("
    with pytest.warns(UserWarning, match=said):
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
    (root / 'train' / 'ant' / '.DS_Store').write_bytes(b'x')
    with pytest.warns(UserWarning, match=r"2 files of '.*' are left out, by their endings: .txt \(1\), .xml \(1\);"):
        assert len(create_dataset('', str(root), 'train')) == 5


def test_endings_of_ones_choice(root):
    convert(root / 'train' / 'ant', '.bmp', 1)
    (root / 'train' / 'bat' / 'no_ending').write_bytes(b'x')
    with pytest.warns(UserWarning, match=r'1 files of .*: no ending \(1\); images here end in .bmp, .png \('):
        dataset = create_dataset('', str(root), 'train', image_endings=['BMP', '.png', 'png'])
    assert sorted(int(np.array(image).max()) for image, _ in dataset) == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"the images of '.*bat' end in .png, which are not read here \(.bmp are\)"):
        create_dataset('', str(root), 'train', image_endings=['.bmp'])


def test_endings_of_lists(root):
    """A list names its files: all are taken unless endings are asked for."""
    convert(root / 'train' / 'bat', '.bmp', 1)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.*'))
    lists = {
        'singlelabel': ('label', [file.split('/')[1] for file in files]),
        'multilabel': ('labels', [f"{file.split('/')[1]};any" for file in files])}
    for name, (column, labels) in lists.items():
        rows = [f'{file},{label}' for file, label in zip(files, labels, strict=True)]
        (root / 'x.csv').write_text('\n'.join([f'image,{column}', *rows]))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert len(create_dataset(name, str(root), 'x')) == 4
        with pytest.warns(UserWarning, match=r"1 files of '.*x.csv' are left out, by their endings: .bmp \(1\);"):
            dataset = create_dataset(name, str(root), 'x', image_endings=['.png'])
        assert len(dataset) == 3 and [path.suffix for path in dataset.images] == ['.png'] * 3
        with pytest.raises(DataError, match='no image ends in .jpg'):
            create_dataset(name, str(root), 'x', image_endings=['.jpg'])


def test_endings_that_are_none(root):
    for ending in ('', '.', '*.jpg', '.tar.gz', 'a b'):
        with pytest.raises(DataError, match='`image_endings` are such as .jpg, got'):
            create_dataset('', str(root), 'train', image_endings=[ending])
    with pytest.raises(DataError, match='`image_endings` are missing'):
        create_dataset('', str(root), 'train', image_endings=[])
    with pytest.raises(DataError, match="of image folders and lists .* data set 'torch/image_folder' knows its files"):
        create_dataset('torch/image_folder', str(root), 'train', image_endings=['.jpg'])


def test_a_run_and_its_evaluation(root, tmp_path, monkeypatch, capsys):
    """eval reads the endings of the run; one that is given goes before."""
    convert(root / 'train' / 'bat', '.bmp', 2)
    shutil.copytree(root / 'train', root / 'val')
    Image.new('RGB', (4, 4)).save(root / 'val' / 'ant' / '9.bmp')
    monkeypatch.chdir(tmp_path)
    code, _, err = train_in_process(
        monkeypatch, capsys, '--data-dir', root, '--image-endings', '.png', 'bmp', '--model', 'resnet20_cifar',
        '--no-icasc', '--epochs', 1, '--warmup-epochs', 0, '--batch-size', 2, '-j', 0, '--icasc-eval-images', 0,
        '--experiment', 'x')
    assert code == 0 and 'left out' not in err
    assert main(['eval', 'output/x', '-j', '0', '--output', 'all']) == 0
    assert '"images": 5' in next(Path('all').rglob('eval.json')).read_text()
    assert 'left out' not in capsys.readouterr().err
    assert main(['eval', 'output/x', '-j', '0', '--output', 'some', '--image-endings', '.png']) == 2
    assert "end in .bmp, which are not read here (.png are): name all endings that are with --image-endings" in (
        capsys.readouterr().err)


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


@pytest.mark.parametrize('has_map', [False, True])
@pytest.mark.parametrize('reader', ['', 'torch/image_folder', 'imagenet'])
def test_hidden_files_are_no_images(reader, has_map, root):
    """As those that macOS puts beside each image, which no reader can open."""
    if has_map and reader:
        pytest.skip('has its own order of classes')
    (root / 'train' / 'ant' / '._0.png').write_bytes(b'Mac OS X')
    (root / 'map.txt').write_text('bat\nant\n')
    dataset = create_dataset(reader, str(root), 'train', class_map=str(root / 'map.txt') if has_map else None)
    assert [target for _, target in dataset] == ([1, 1, 0, 0] if has_map else [0, 0, 1, 1])
    assert class_names(dataset) == (['bat', 'ant'] if has_map else ['ant', 'bat'])


def test_a_split_of_no_classes(root):
    (root / 'val' / '.ipynb_checkpoints').mkdir(parents=True)
    with pytest.raises(DataError, match='has no class folders'):
        create_dataset('', str(root), 'val')


@pytest.mark.parametrize('indices, names', [
    ({'ant': 0, 'bat': 0}, ['ant, bat']), ({'bat': 2, 'ant': 0}, ['ant', '1', 'bat']),
    ({'ant': 3, 'bee': 1, 'bat': 1}, ['0', 'bee, bat', '2', 'ant']),
    ({'ant': 1, 'bat': 2, '0': 3}, ['no class 0', 'ant', 'bat', '0'])])
def test_the_classes_of_a_map_are_named_by_its_numbers(indices, names, root):
    """Which may leave some out, and give several folders one."""
    (root / 'map.pkl').write_bytes(pickle.dumps(indices))
    dataset = create_dataset('', str(root), 'train', class_map=str(root / 'map.pkl'))
    assert class_names(dataset) == names
    for image, target in dataset:
        folder = 'bat' if np.asarray(image).any() else 'ant'
        assert target == indices[folder] and folder in names[target].split(', ')


def test_what_a_map_leaves_out_is_told(root):
    """A slip in a name took a class of images away, and put an empty class in its place."""
    (root / 'map.txt').write_text('amt\nbat\n')
    with pytest.warns(UserWarning) as told:
        assert len(create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))) == 2
    assert [str(w.message).partition('map.txt')[2] for w in told] == [
        "' leaves out the images of these folders: ant (2).", "' has classes without an image here: amt."]


def test_folders_in_class_folders(root):
    """timm calls the innermost folder the class; two of one name were one class, without a word."""
    (root / 'train' / 'bat').rename(root / 'train' / 'old')
    (root / 'train' / 'wings').mkdir()
    (root / 'train' / 'old').rename(root / 'train' / 'wings' / 'bat')
    with pytest.warns(UserWarning, match=r"as in 'wings/bat' \(1 such folders\): .* is the class, here 'bat'"):
        assert class_names(create_dataset('', str(root), 'train')) == ['ant', 'bat']
    shutil.copytree(root / 'train' / 'ant', root / 'train' / 'nest' / 'bat')
    with pytest.raises(DataError, match=r"nest/bat' and '.*wings/bat' would be one class, 'bat'"):
        create_dataset('', str(root), 'train')
    (root / 'map.txt').write_text('ant\nbat\n')
    assert len(create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))) == 6, 'as the map says'


@pytest.mark.parametrize('text', ['ant\n\nbat\n', 'ant\nbat\n\n', 'ant\nbat\nant\n'])
def test_each_line_of_a_map_is_a_class(text, root):
    """An empty line was a class too, and so was the first of two lines of one name."""
    (root / 'map.txt').write_text(text)
    with pytest.raises(DataError, match='map.txt. has an empty line, or a class twice: each line is a class'):
        create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))


def test_a_map_of_absurd_numbers(root):
    (root / 'map.pkl').write_bytes(pickle.dumps({'ant': 0, 'bat': 2 ** 20}))
    with pytest.raises(DataError, match="gives 'bat' no number of a class; they are counted from 0, to at most 1048"):
        create_dataset('', str(root), 'train', class_map=str(root / 'map.pkl'))


def test_a_run_on_a_map_names_its_classes_by_it(root, tmp_path, monkeypatch, capsys, recwarn):
    """So do its evaluation, on the same folder and on one that has the classes alone."""
    for split in ('train', 'validation'):
        for name in ('ant', 'bat', 'bee'):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(4):
                Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(root / split / name / f'{i}.png')
    (root / 'map.pkl').write_bytes(pickle.dumps({'bat': 3, 'ant': 1, 'bee': 3}))
    code, _, err = train_in_process(
        monkeypatch, capsys, *TINY, '--data-dir', root, '--class-map', root / 'map.pkl', '--epochs', 1, '--output',
        tmp_path, '--experiment', 'run')
    assert code == 0, err
    run = tmp_path / 'run'
    assert json.loads((run / 'results.json').read_text())['model']['label_names'] == ['0', 'ant', '2', 'bat, bee']
    for arguments in ([], ['--data-dir', root, '--class-map', root / 'map.pkl']):
        assert main(['eval', str(run), *map(str, arguments)]) == 0
        with open(run / 'eval' / 'images.csv', newline='') as file:
            targets = [row['target'] for row in csv.DictReader(file)]
        assert targets == ['ant'] * 4 + ['bat, bee'] * 8
    assert not [w for w in recwarn if 'as the first' in str(w.message)]


def test_a_map_may_name_hidden_folders(root):
    (root / 'train' / 'bat').rename(root / 'train' / '.bat')
    (root / 'map.txt').write_text('.bat\nant\n')
    dataset = create_dataset('', str(root), 'train', class_map=str(root / 'map.txt'))
    assert sorted(target for _, target in dataset) == [0, 0, 1, 1] and class_names(dataset) == ['.bat', 'ant']
