"""`--dataset singlelabel`: images of one class each in a CSV, from the list to an evaluated run."""
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

import train_timm
from timm_icasc import DataError
from timm_icasc.cli import main
from timm_icasc.data import class_names, create_dataset, few_of_each_class, is_public, labels_of
from timm_icasc.labels import SINGLE

SHADES = {'a.png': 10, 'sub/b.png': 20, 'c.png': 30}


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'sub').mkdir()
    for name, shade in SHADES.items():
        Image.new('RGB', (4, 2), (shade,) * 3).save(tmp_path / name)
    return tmp_path


def read(root, text, split='train', **options):
    (root / f'{split}.csv').write_text(text)
    return create_dataset('singlelabel', str(root), split, **options)


class TestTheList:

    def test_images_and_classes(self, root):
        """Classes sorted by name, whatever the order of the lines; spaces around a name are no part of it."""
        data = read(root, 'image,label\nsub/b.png,zebra\na.png, ant\nc.png,zebra\n')
        assert class_names(data) == ['ant', 'zebra'] and labels_of(data) is SINGLE and len(data) == 3
        found = [(image.getpixel((0, 0))[0], target) for image, target in (data[i] for i in range(3))]
        assert found == [(20, 1), (10, 0), (30, 1)]
        assert not is_public('singlelabel')

    def test_a_byte_order_mark_and_quoted_names(self, root):
        data = read(root, '\ufeffimage,label\n"a.png","cat, grey"\n')
        assert class_names(data) == ['cat, grey']

    def test_an_image_is_turned_as_it_says(self, root):
        image, exif = Image.new('RGB', (4, 2)), Image.Exif()
        exif[0x0112] = 6
        image.save(root / 'turned.jpg', exif=exif)
        assert read(root, 'image,label\nturned.jpg,a\n')[0][0].size == (2, 4)

    def test_classes_of_a_file(self, root):
        (root / 'map.txt').write_text('zebra\nant\nbee\n')
        text = 'image,label\na.png,ant\nc.png,zebra\n'
        data = read(root, text, class_map=str(root / 'map.txt'))
        assert class_names(data) == ['zebra', 'ant', 'bee'] and [data[i][1] for i in range(2)] == [1, 0]
        (root / 'map.txt').rename(root / 'classes.txt')
        assert class_names(read(root, text)) == ['zebra', 'ant', 'bee']

    def test_few_of_each_class(self, root):
        data = read(root, 'image,label\nsub/b.png,z\na.png,a\nc.png,z\n')
        assert sorted(target for _, target in few_of_each_class(data, 1, 0)) == [0, 1]

    @pytest.mark.parametrize('text, said', [
        ('image,labels\na.png,x\n', "it has the columns ['image', 'labels']; expected a CSV with the header"),
        ('a.png,x\nc.png,y\n', "it has the columns ['a.png', 'x']"), ('', 'it has the columns []'),
        ('image,label\na.png\n', 'line 2 does not have 2 columns'),
        ('image,label\na.png,x,y\n', 'line 2 does not have 2 columns'),
        ('image,label\na.png,x\nc.png, \n', 'line 3 names no class'),
        ('image,label\na.png,x\nc.png,y\na.png,y\n', "line 4 gives 'a.png' a second class"),
        ('image,label\nno.png,x\n', "no.png', which"), ('image,label\n../x.png,x\n', '../x.png'),
        ('image,label\n/x.png,x\n', '/x.png'), ('image,label\n', 'is empty')])
    def test_a_broken_list(self, text, said, root):
        with pytest.raises(DataError) as error:
            read(root, text)
        assert said in str(error.value) and '\n' not in str(error.value)

    def test_what_is_no_class_and_no_list(self, root):
        (root / 'classes.txt').write_text('ant\n')
        with pytest.raises(DataError, match="line 2 has the label 'bee', which is not one of the classes"):
            read(root, 'image,label\na.png,bee\n')
        (root / 'classes.txt').write_text('ant\nant\n')
        with pytest.raises(DataError, match='a class is named twice'):
            read(root, 'image,label\na.png,ant\n')
        with pytest.raises(DataError, match="`root`: no 'dev.csv' in .*; expected a CSV with the header 'image,label'"):
            create_dataset('singlelabel', str(root), 'dev')


@pytest.fixture(scope='module')
def listed(noise, tmp_path_factory):
    """The folder of noise, with lists; that of the validation begins with the last class."""
    root = tmp_path_factory.mktemp('listed')
    for split in ('train', 'val'):
        shutil.copytree(noise / split, root / split)
        images = sorted((root / split).rglob('*.png'), reverse=split == 'val')
        rows = [f'{image.relative_to(root)},{image.parent.name}' for image in images]
        (root / f'{split}.csv').write_text('\n'.join(['image,label', *rows]))
    return root


class TestARun:

    def test_it_learns_what_the_folders_teach(self, listed, train_on_noise, noise_options, tmp_path, capsys):
        run = train_on_noise('--data-dir', listed, '--dataset', 'singlelabel', '--val-split', 'val')
        results = json.loads((run / 'results.json').read_text())
        assert results['model']['label_names'] == ['ant', 'bat', 'cat'] and results['model']['num_classes'] == 3
        checkpoint, other = (
            torch.load(folder / 'last.pth.tar', weights_only=False) for folder in (run, train_on_noise()))
        assert checkpoint['saver']['class_names'] == ['ant', 'bat', 'cat']
        for name, tensor in other['state_dict'].items():
            torch.testing.assert_close(checkpoint['state_dict'][name], tensor)
        lines = (listed / 'val.csv').read_text().splitlines()
        (listed / 'two.csv').write_text('\n'.join([lines[0], *(line for line in lines if ',cat' in line)]))
        assert main(['eval', str(run), '--val-split', 'two', '-j', '0', '--output', str(tmp_path / 'e')]) == 0
        assert json.loads(next((tmp_path / 'e').rglob('eval.json')).read_text())['images'] == 2

    def test_a_class_that_the_training_lacks(self, listed, noise_options, monkeypatch, tmp_path, capsys):
        (listed / 'more.csv').write_text((listed / 'val.csv').read_text() + '\nval/ant/0.png,eel'.replace('0', '9'))
        shutil.copy(listed / 'val' / 'ant' / '0.png', listed / 'val' / 'ant' / '9.png')
        monkeypatch.setattr(sys, 'argv', [
            *noise_options, '--data-dir', str(listed), '--dataset', 'singlelabel', '--val-split', 'more', '--output',
            str(tmp_path)])
        assert train_timm.main() == 2
        err = capsys.readouterr().err
        assert 'only the second has eel.' in err and 'pass --class-map.' in err and len(err.splitlines()) == 1
