"""The data sets of the paper from miniature copies in the formats in which they are distributed, and users' lists."""
import copy
import csv
import hashlib
import json
import pickle
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_loader
from torchvision.datasets import CIFAR100

from timm_icasc import DataError
from timm_icasc.data import (
    VOC_CLASSES,
    Box,
    class_names,
    create_dataset,
    evenly_spaced,
    labels_of,
    name_classes,
)
from timm_icasc.labels import MULTI, SINGLE


def picture(path, width=12, height=8, colour=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (width, height), colour).save(path)


def annotation(path, objects, size=(50, 40)):
    """A VOC XML file; `objects` are (name, xmin, ymin, xmax, ymax, difficult)."""
    root = ElementTree.Element('annotation')
    for tag, value in zip(('width', 'height'), size, strict=True):
        ElementTree.SubElement(root, tag).text = str(value)
    for name, *edges, difficult in objects:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = name
        if difficult is not None:  # ILSVRC's objects may not say
            ElementTree.SubElement(item, 'difficult').text = str(difficult)
        box = ElementTree.SubElement(item, 'bndbox')
        for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), edges, strict=True):
            ElementTree.SubElement(box, tag).text = str(value)
        part = ElementTree.SubElement(item, 'part')  # as the person layout task has
        ElementTree.SubElement(part, 'name').text = 'head'
        ElementTree.SubElement(ElementTree.SubElement(part, 'bndbox'), 'xmin').text = '1'
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path)


class TestVOCdevkit:
    OBJECTS = {
        '2007_000001': [('dog', 1, 2, 20, 30, 0), ('person', 5, 5, 9, 9, 1)],
        '2007_000002': [('person', 10.7, 3, 50, 40, 0), ('person', 1, 1, 4, 4, 1), ('cat', 2, 2, 3, 3, 1)],
        '2007_000003': [('sheep', 4, 4, 8, 8, 1)],
    }
    SPLITS = {'train': ['2007_000001', '2007_000002'], 'val': ['2007_000003']}

    @pytest.fixture
    def root(self, tmp_path):
        folder = tmp_path / 'VOCdevkit' / 'VOC2012'
        for name, objects in self.OBJECTS.items():
            picture(folder / 'JPEGImages' / f'{name}.jpg', 50, 40)
            annotation(folder / 'Annotations' / f'{name}.xml', objects)
        lists = folder / 'ImageSets' / 'Main'
        lists.mkdir(parents=True)
        for split, names in {**self.SPLITS, 'trainval': sum(self.SPLITS.values(), [])}.items():
            (lists / f'{split}.txt').write_text('\n'.join(names) + '\n')
            for label in VOC_CLASSES:  # the challenge's own labels: 1, 0 (difficult only), -1
                (lists / f'{label}_{split}.txt').write_text(''.join(
                    f'{name} {self.label(name, label):2d}\n' for name in names))
        return tmp_path

    def label(self, name, label):
        marks = [o[-1] for o in self.OBJECTS[name] if o[0] == label]
        return -1 if not marks else int(0 in marks)

    @pytest.mark.parametrize('place', ['.', 'VOCdevkit', 'VOCdevkit/VOC2012'])
    def test_targets_are_those_of_the_challenges_label_files(self, place, root):
        for split, names in (('train', self.SPLITS['train']), ('validation', self.SPLITS['val'])):
            dataset = create_dataset('voc2012', str(root / place), split)
            assert dataset.ids == names and labels_of(dataset) is MULTI and class_names(dataset) == list(VOC_CLASSES)
            for c, label in enumerate(VOC_CLASSES):
                name = 'val' if split == 'validation' else split
                lines = (dataset.folder / 'ImageSets' / 'Main' / f'{label}_{name}.txt').read_text().splitlines()
                theirs = [int(line.split()[1]) for line in lines]
                ours = [{1.: 1, 0.: -1, -1.: 0}[dataset[i][1][c].item()] for i in range(len(dataset))]
                assert ours == theirs

    def test_boxes_count_from_zero_and_end_behind_the_last_pixel(self, root):
        dataset = create_dataset('voc2012', str(root), 'train')
        dog, person = VOC_CLASSES.index('dog'), VOC_CLASSES.index('person')
        assert dataset.boxes(0) == [Box(dog, 0, 1, 20, 30, False), Box(person, 4, 4, 9, 9, True)]
        assert dataset.boxes(1)[0] == Box(person, 9.7, 2, 50, 40)
        assert dataset.load(0).size == (50, 40)

    def test_the_other_year_is_another_folder(self, root):
        with pytest.raises(DataError, match="no folder 'VOCdevkit/VOC2007/JPEGImages'"):
            create_dataset('voc2007', str(root), 'train')

    def test_what_is_missing_is_named(self, root):
        with pytest.raises(DataError, match=r"No split 'test'.*test'?.txt.*\(there are: train, trainval, val\)"):
            create_dataset('voc2012', str(root), 'test')
        folder = root / 'VOCdevkit' / 'VOC2012'
        (folder / 'JPEGImages' / '2007_000003.jpg').unlink()
        with pytest.raises(DataError, match="No image '.*2007_000003.jpg', which split 'val' lists"):
            create_dataset('voc2012', str(root), 'val')
        (folder / 'Annotations' / '2007_000001.xml').unlink()
        with pytest.raises(DataError, match="No annotation '.*2007_000001.xml'"):
            create_dataset('voc2012', str(root), 'train')

    @pytest.mark.parametrize('text, message', [
        ('<annotation>', 'no element found'),
        ('<annotation><object><name>dog</name></object></annotation>', "an object 'dog' without bndbox"),
        ('<annotation><object><name>yeti</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>'
         '</bndbox></object></annotation>', "no class 'yeti'"),
        ('<annotation><object><name>dog</name><bndbox><xmin>30</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax>'
         '</bndbox></object></annotation>',
         r"the box \(30, 2, 10, 20\) of 'dog' has no area; boxes are xmin, ymin, xmax, ymax"),
        ('<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>1</ymax>'
         '</bndbox></object></annotation>', r'the box \(1, 2, 3, 1\)'),
    ])
    def test_broken_annotations_are_named(self, text, message, root):
        (root / 'VOCdevkit' / 'VOC2012' / 'Annotations' / '2007_000001.xml').write_text(text)
        with pytest.raises(DataError, match=f"2007_000001.xml' is not a VOC annotation: {message}"):
            create_dataset('voc2012', str(root), 'train')

    def test_an_empty_list_is_named(self, root):
        (root / 'VOCdevkit' / 'VOC2012' / 'ImageSets' / 'Main' / 'train.txt').write_text('')
        with pytest.raises(DataError, match="Split 'train' of data set 'voc2012' .* is empty"):
            create_dataset('voc2012', str(root), 'train')


class TestPackedVOC:

    @pytest.fixture
    def root(self, tmp_path):
        images = []
        for i, split in enumerate(('train', 'val', 'val')):
            labels = [-1] * 20
            labels[3], labels[5] = 1, 0
            picture(tmp_path / 'images' / f'{i:06d}.webp', 30, 20)
            images.append({'id': f'{i:06d}', 'split': split, 'width': 50, 'height': 40, 'labels': labels,
                           'boxes': [['boat', 11, 1, 50, 20]], 'scale': [0.6, 0.5], 'packed_size': [30, 20]})
        (tmp_path / 'annotations.json').write_text(json.dumps({'classes': list(VOC_CLASSES), 'images': images}))
        return tmp_path

    def test_targets_and_boxes_in_the_pixels_of_the_packed_image(self, root):
        dataset = create_dataset('voc2007-packed', str(root), 'train')
        image, target = dataset[0]
        assert image.size == (30, 20)
        assert target.tolist() == [{3: 1., 5: -1.}.get(c, 0.) for c in range(20)]
        assert dataset.boxes(0) == [Box(3, 6., 0., 30., 10.)]

    def test_splits(self, root):
        sizes = {split: len(create_dataset('voc2007-packed', str(root), split))
                 for split in ('train', 'val', 'validation', 'trainval')}
        assert sizes == {'train': 1, 'val': 2, 'validation': 2, 'trainval': 3}
        with pytest.raises(DataError, match="No split 'test' in .*; it has train, val, trainval"):
            create_dataset('voc2007-packed', str(root), 'test')

    def test_what_is_missing_is_named(self, root):
        (root / 'images' / '000002.webp').unlink()
        with pytest.raises(DataError, match="No image '.*000002.webp'"):
            create_dataset('voc2007-packed', str(root), 'val')
        content = json.loads((root / 'annotations.json').read_text())
        for key, value, message in (('labels', [1, -1], 'RuntimeError shape'), ('scale', [1], 'not enough values'),
                                    ('boxes', [['yeti', 1, 1, 2, 2]], "a box of no class, 'yeti'"),
                                    ('boxes', [['boat', 11, 1, 5, 20]], r"image '000000': the box \(11, 1, 5, 20\)")):
            broken = {**content, 'images': [{**content['images'][0], key: value}]}
            (root / 'annotations.json').write_text(json.dumps(broken))
            with pytest.raises(DataError, match=f'not in the packed VOC format: .*{message}'):
                create_dataset('voc2007-packed', str(root), 'train')
        (root / 'annotations.json').write_text(json.dumps({**content, 'classes': [*content['classes'][1:], 7]}))
        with pytest.raises(DataError, match="not in the packed VOC format: TypeError 'classes' are no names"):
            create_dataset('voc2007-packed', str(root), 'train')
        (root / 'annotations.json').write_text('{"images": []}')
        with pytest.raises(DataError, match="not in the packed VOC format: KeyError 'classes'"):
            create_dataset('voc2007-packed', str(root), 'val')
        (root / 'annotations.json').unlink()
        with pytest.raises(DataError, match="no file '.*annotations.json'"):
            create_dataset('voc2007-packed', str(root), 'val')

    @pytest.mark.parametrize('prefetcher', [True, False])
    def test_timms_loader_keeps_the_targets_as_they_are(self, prefetcher, root):
        dataset = create_dataset('voc2007-packed', str(root), 'trainval', is_training=True)
        loader = create_loader(dataset, (3, 32, 32), 2, is_training=True, num_workers=0, use_prefetcher=prefetcher,
                               device=torch.device('cpu'))
        images, target = next(iter(loader))
        assert images.shape == (2, 3, 32, 32)
        assert target.dtype == torch.float32 and target.shape == (2, 20) and set(target.unique().tolist()) == {-1, 0, 1}

    def test_copies_and_processes(self, root):
        """As EMA, spawned loader workers and subsets need it."""
        dataset = create_dataset('voc2007-packed', str(root), 'trainval')
        for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert other.boxes(0) == dataset.boxes(0) and torch.equal(other[2][1], dataset[2][1])
        assert labels_of(evenly_spaced(dataset, 2)) is MULTI


class TestCIFAR100:

    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        """The Python version: pickles of bytes, with checksums."""
        generator = np.random.default_rng(0)
        folder = tmp_path / 'cifar-100-python'
        folder.mkdir()
        names = [f'class_{i:02d}' for i in range(100)]
        checksums = {}
        for name, count in (('train', 6), ('test', 4), ('meta', 0)):
            content = {'fine_label_names': names} if name == 'meta' else {
                'data': generator.integers(0, 255, (count, 3072), dtype=np.uint8),
                'fine_labels': [7 * i for i in range(count)], 'coarse_labels': [0] * count}
            (folder / name).write_bytes(pickle.dumps(content))
            checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setattr(CIFAR100, 'train_list', [['train', checksums['train']]])
        monkeypatch.setattr(CIFAR100, 'test_list', [['test', checksums['test']]])
        monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': checksums['meta']})
        return tmp_path

    @pytest.mark.parametrize('place', ['.', 'cifar-100-python'])
    def test_python_version(self, place, root):
        dataset = create_dataset('cifar100', str(root / place), 'train', is_training=True)
        assert len(dataset) == 6 and class_names(dataset)[7] == 'class_07' and dataset[3][1] == 21
        rows = pickle.loads((root / 'cifar-100-python' / 'train').read_bytes())['data']
        # Rows are 1,024 red, 1,024 green and 1,024 blue values.
        assert np.array_equal(np.asarray(dataset[3][0]), rows[3].reshape(3, 32, 32).transpose(1, 2, 0))
        for split in ('test', 'validation'):
            assert len(create_dataset('cifar100', str(root / place), split)) == 4
        assert not hasattr(dataset, 'boxes') and labels_of(dataset) is SINGLE

    def test_grey(self, root):
        assert create_dataset('cifar100', str(root), 'test', input_img_mode='L')[0][0].mode == 'L'

    def test_folder_of_images(self, tmp_path):
        for split in ('train', 'test'):
            for name in ('apple', 'bear'):
                picture(tmp_path / split / name / '000.png', 32, 32)
        dataset = create_dataset('cifar100', str(tmp_path), 'validation')
        assert len(dataset) == 2 and class_names(dataset) == ['apple', 'bear']

    def test_a_changed_file_is_not_unpickled(self, root):
        (root / 'cifar-100-python' / 'test').write_bytes(b'cos\nsystem\n(S"false"\ntR.')
        with pytest.raises(DataError, match='not the original, or incomplete'):
            create_dataset('cifar100', str(root), 'test')

    def test_what_is_missing_is_named(self, root, tmp_path):
        (root / 'cifar-100-python' / 'meta').unlink()
        with pytest.raises(DataError, match="no file '.*cifar-100-python/meta'"):
            create_dataset('cifar100', str(root), 'train')
        (tmp_path / 'empty').mkdir()
        with pytest.raises(DataError, match="neither a folder 'cifar-100-python'.* nor 'train/CLASS/IMAGE'"):
            create_dataset('cifar100', str(tmp_path / 'empty'), 'train')
        with pytest.raises(DataError, match="no split 'dev'; it has train and test"):
            create_dataset('cifar100', str(root), 'dev')


class TestCaltech256:

    @pytest.fixture(autouse=True)
    def quiet(self):
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* has 3 classes, Caltech-256 has 256')
            yield

    @pytest.fixture
    def root(self, tmp_path):
        folder = tmp_path / '256_ObjectCategories'
        for number, (name, count) in enumerate((('ak47', 90), ('american-flag', 90), ('backpack', 80)), 1):
            for i in range(count):
                picture(folder / f'{number:03d}.{name}' / f'{number:03d}_{i:04d}.jpg', 4, 4)
        picture(folder / '257.clutter' / '257_0001.jpg')
        picture(folder / '001.ak47' / 'greg' / 'copy.jpg')  # the archive has such leftovers
        (folder / '002.american-flag' / 'RENAME2').write_text('')
        return tmp_path

    def paths(self, root, split):
        return create_dataset('caltech256', str(root), split).images

    def test_clutter_is_dropped_and_classes_keep_their_order(self, root):
        dataset = create_dataset('caltech256', str(root), 'test')
        assert class_names(dataset) == ['ak47', 'american-flag', 'backpack']
        assert len(dataset) == 75 and np.bincount(dataset.targets).tolist() == [25, 25, 25]
        assert all(path.parent.name.endswith(class_names(dataset)[t])
                   for path, t in zip(dataset.images, dataset.targets, strict=True))

    def test_thirty_and_sixty_are_nested_and_apart_from_the_test(self, root):
        thirty, test = set(self.paths(root, 'train30')), set(self.paths(root, 'test'))
        with pytest.warns(UserWarning, match='1 classes have fewer than 60 training images, 003.backpack for one: 55'):
            sixty = set(self.paths(root, 'train60'))
        assert len(thirty) == 90 and len(sixty) == 60 + 60 + 55 and thirty < sixty and not sixty & test

    def test_the_written_split_is_the_split(self, root):
        before = self.paths(root, 'train30')
        file = root / '256_ObjectCategories' / 'split-seed0.json'
        assert [p.name for p in file.parent.glob('split*')] == ['split-seed0.json']
        order = json.loads(file.read_text())
        picture(root / '256_ObjectCategories' / '001.ak47' / '001_9999.jpg')
        assert self.paths(root, 'train30') == before, 'later files change nothing'
        order['001.ak47'].reverse()
        file.write_text(json.dumps(order))
        assert self.paths(root, 'train30') != before
        file.unlink()
        (root / '256_ObjectCategories' / '001.ak47' / '001_9999.jpg').unlink()
        assert self.paths(root, 'train30') == before, 'drawn again from the same seed'

    def test_a_folder_that_cannot_be_written_to(self, root, monkeypatch):
        from pathlib import Path

        def refuse(self, *args, **kwargs):
            raise OSError(30, 'Read-only file system')
        monkeypatch.setattr(Path, 'write_text', refuse)
        with pytest.warns(UserWarning, match='cannot write .*Read-only.*same split again'):
            one = self.paths(root, 'test')
        with pytest.warns(UserWarning):
            assert self.paths(root, 'test') == one

    def test_an_incomplete_copy_is_noticed(self, root):
        with pytest.warns(UserWarning, match='has 3 classes, Caltech-256 has 256'):
            warnings.simplefilter('always')
            self.paths(root, 'test')

    def test_what_is_missing_is_named(self, root, tmp_path):
        with pytest.raises(DataError, match="no split 'train'; it has train30, train60"):
            self.paths(root, 'train')
        victim = self.paths(root, 'test')[0]
        victim.unlink()
        with pytest.raises(DataError, match=f"No image '.*{victim.name}', which '.*split-seed0.json' lists"):
            self.paths(root, 'test')
        (tmp_path / 'empty').mkdir()
        with pytest.raises(DataError, match="no folder '256_ObjectCategories/001.ak47'"):
            self.paths(tmp_path / 'empty', 'test')


class TestCUB200:

    @pytest.fixture
    def root(self, tmp_path):
        folder = tmp_path / 'CUB_200_2011'
        rows = [(1, '001.Black_footed_Albatross/A_1.jpg', 1, 1, '60.0 27.0 325.0 304.0'),
                (2, '001.Black_footed_Albatross/A_2.jpg', 1, 0, '139.0 30.0 153.0 264.0'),
                (3, '002.Laysan_Albatross/L_1.jpg', 2, 1, '14.0 112.0 388.0 186.0')]
        for _, path, *_ in rows:
            picture(folder / 'images' / path)
        (folder / 'classes.txt').write_text('1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n')
        for name, column in (('images', 1), ('image_class_labels', 2), ('train_test_split', 3), ('bounding_boxes', 4)):
            (folder / f'{name}.txt').write_text(''.join(f'{row[0]} {row[column]}\n' for row in rows))
        return tmp_path

    @pytest.mark.parametrize('place', ['.', 'CUB_200_2011'])
    def test_official_split_labels_and_boxes(self, place, root):
        train = create_dataset('cub200', str(root / place), 'train', is_training=True)
        test = create_dataset('cub200', str(root / place), 'validation')
        assert [path.name for path in train.images] == ['A_1.jpg', 'L_1.jpg'] and train.targets == [0, 1]
        assert [path.name for path in test.images] == ['A_2.jpg'] and test.targets == [0]
        assert class_names(train) == ['Black_footed_Albatross', 'Laysan_Albatross']
        assert train.boxes(1) == [Box(1, 14, 112, 402, 298)]

    @pytest.mark.parametrize('name', [
        'classes.txt', 'image_class_labels.txt', 'train_test_split.txt', 'bounding_boxes.txt', 'images.txt'])
    def test_missing_lists_are_named(self, name, root):
        (root / 'CUB_200_2011' / name).unlink()
        with pytest.raises(DataError, match=f"no file '.*{name}'"):
            create_dataset('cub200', str(root), 'train')

    def test_lists_that_do_not_fit(self, root):
        (root / 'CUB_200_2011' / 'image_class_labels.txt').write_text('1 1\n2 1\n3 7\n')
        with pytest.raises(DataError, match="do not fit each other: KeyError '7'"):
            create_dataset('cub200', str(root), 'train')

    @pytest.mark.parametrize('name', ['images', 'image_class_labels', 'train_test_split', 'bounding_boxes'])
    def test_a_list_that_was_cut_off(self, name, root):
        """Of images that images.txt has lost, nobody would hear."""
        file = root / 'CUB_200_2011' / f'{name}.txt'
        file.write_text(''.join(file.read_text().splitlines(keepends=True)[:2]))
        with pytest.raises(DataError, match='1 images are not in all of them, by their numbers 3'):
            create_dataset('cub200', str(root), 'test')

    def test_a_box_without_an_area(self, root):
        file = root / 'CUB_200_2011' / 'bounding_boxes.txt'
        file.write_text(file.read_text().replace('388.0 186.0', '388.0 -1.0'))
        with pytest.raises(DataError, match=r"the box \(14, 112, 402, 111\) of '.*L_1.jpg' has no area"):
            create_dataset('cub200', str(root), 'train')

    def test_missing_image(self, root):
        (root / 'CUB_200_2011' / 'images' / '002.Laysan_Albatross' / 'L_1.jpg').unlink()
        with pytest.raises(DataError, match="No image '.*L_1.jpg'"):
            create_dataset('cub200', str(root), 'train')


class TestILSVRC2012:
    SYNSETS = ('n01440764', 'n01443537')

    @pytest.fixture
    def root(self, tmp_path):
        for split in ('train', 'val'):
            for synset in self.SYNSETS:
                picture(tmp_path / split / synset / f'{synset}_1.JPEG')
        return tmp_path

    @pytest.fixture
    def kaggle(self, tmp_path):
        """ILSVRC/{Data,Annotations}/CLS-LOC, a flat val, LOC_val_solution.csv."""
        base = tmp_path / 'ILSVRC'
        for synset in self.SYNSETS:
            picture(base / 'Data' / 'CLS-LOC' / 'train' / synset / f'{synset}_1.JPEG')
            annotation(base / 'Annotations' / 'CLS-LOC' / 'train' / synset / f'{synset}_1.xml',
                       [(synset, 1, 1, 5, 5, None)])
        rows = []
        for i, synset in enumerate(reversed(self.SYNSETS), 1):
            name = f'ILSVRC2012_val_{i:08d}'
            picture(base / 'Data' / 'CLS-LOC' / 'val' / f'{name}.JPEG')
            annotation(base / 'Annotations' / 'CLS-LOC' / 'val' / f'{name}.xml', [(synset, 2, 3, 6, 7, 0)])
            rows.append((name, f'{synset} 2 3 6 7 '))
        with open(tmp_path / 'LOC_val_solution.csv', 'w', newline='') as file:
            csv.writer(file).writerows([('ImageId', 'PredictionString'), *rows])
        return tmp_path

    def test_class_folders(self, root):
        for split in ('train', 'validation'):
            dataset = create_dataset('imagenet', str(root), split)
            assert class_names(dataset) == list(self.SYNSETS) and dataset.targets == [0, 1]
            assert not hasattr(dataset, 'boxes') and dataset[0][0].size == (12, 8)

    @pytest.mark.parametrize('place', ['.', 'ILSVRC', 'ILSVRC/Data/CLS-LOC'])
    def test_kaggle_copy(self, place, kaggle):
        train = create_dataset('imagenet', str(kaggle / place), 'train', is_training=True)
        val = create_dataset('imagenet', str(kaggle / place), 'val')
        assert train.targets == [0, 1] and val.targets == [1, 0]
        assert train.boxes(1) == [Box(1, 0, 0, 5, 5)] and val.boxes(0) == [Box(1, 1, 2, 6, 7)]
        assert val[1][1] == 0

    def test_what_macos_leaves_beside_images_needs_no_class(self, kaggle):
        picture(kaggle / 'ILSVRC' / 'Data' / 'CLS-LOC' / 'val' / '._ILSVRC2012_val_00000001.JPEG')
        assert create_dataset('imagenet', str(kaggle), 'val').targets == [1, 0]

    def test_edges_in_the_place_of_the_opposite_ones(self, kaggle):
        """As some of the published annotations have them."""
        synset = self.SYNSETS[1]
        annotation(kaggle / 'ILSVRC' / 'Annotations' / 'CLS-LOC' / 'train' / synset / f'{synset}_1.xml',
                   [(synset, 5, 2, 1, 9, None), (synset, 4, 7, 4, 7, 0)])
        train = create_dataset('imagenet', str(kaggle), 'train')
        assert train.boxes(1) == [Box(1, 0, 1, 5, 9), Box(1, 3, 6, 4, 7)]

    def test_what_is_missing_is_named(self, kaggle, tmp_path):
        (kaggle / 'LOC_val_solution.csv').unlink()
        with pytest.raises(DataError, match="no class folders, and there is no '.*LOC_val_solution.csv'"):
            create_dataset('imagenet', str(kaggle), 'val')
        with pytest.raises(DataError, match='splits train and val'):
            create_dataset('imagenet', str(kaggle), 'test')
        (tmp_path / 'empty').mkdir()
        with pytest.raises(DataError, match="no folder 'train/n01440764'"):
            create_dataset('imagenet', str(tmp_path / 'empty'), 'train')

    @pytest.mark.parametrize('rows, message', [
        ('{1},{b} 1\n', r'does not tell the class of 1 images of .*: ILSVRC2012_val_00000002.JPEG'),
        ('{1},{b} 1\n{2}\n', 'cannot be read: line 3 does not have 2 columns'),
        ('{1},{b} 1\n{2},\n', 'cannot be read: '),
        ('{1},{b} 1\n{2},n99999999 1\n', "unknown class or column 'n99999999'")])
    def test_a_list_that_was_cut_off_or_is_broken(self, rows, message, kaggle):
        """In part it would be measured as if it were the whole."""
        names = {str(i): f'ILSVRC2012_val_{i:08d}' for i in (1, 2)}
        for name, value in {**names, 'b': self.SYNSETS[1]}.items():
            rows = rows.replace(f'{{{name}}}', value)
        (kaggle / 'LOC_val_solution.csv').write_text(f'ImageId,PredictionString\n{rows}')
        with pytest.raises(DataError, match=message):
            create_dataset('imagenet', str(kaggle), 'val')

    def test_classes_that_differ(self, root):
        picture(root / 'val' / 'n99999999' / 'x.JPEG')
        with pytest.raises(DataError, match='differ in the classes: n99999999'):
            create_dataset('imagenet', str(root), 'val')


class TestMultiLabelLists:

    @pytest.fixture
    def root(self, tmp_path):
        for name in 'abc':
            picture(tmp_path / 'photos' / f'{name}.png')
        return tmp_path

    def targets(self, root, **kwargs):
        dataset = create_dataset('multilabel', str(root), 'train', **kwargs)
        assert labels_of(dataset) is MULTI
        return class_names(dataset), [dataset[i][1].tolist() for i in range(len(dataset))]

    def test_csv_with_names(self, root):
        (root / 'train.csv').write_text('image,labels\nphotos/a.png,dog; potted plant\nphotos/b.png,\n')
        assert self.targets(root) == (['dog', 'potted plant'], [[1, 1], [0, 0]])

    @pytest.mark.parametrize('present, absent, ignored', [
        ('1', '0', '-1'), ('1.0', '0.0', '-1.0'), ('True', 'False', '-1')])
    def test_csv_with_a_column_per_class(self, present, absent, ignored, root):
        """As pandas writes numbers and truth values."""
        (root / 'train.csv').write_text(
            f'\ufeffimage,dog,cat\nphotos/a.png,{present},{absent}\nphotos/b.png,{ignored},{present}\n', 'utf-8')
        assert self.targets(root) == (['dog', 'cat'], [[1, 0], [-1, 1]])

    def test_json_with_boxes(self, root):
        (root / 'train.json').write_text(json.dumps({'classes': ['cat', 'dog'], 'images': [
            {'image': 'photos/a.png', 'labels': ['dog'], 'ignore': ['cat'], 'boxes': [['dog', 1, 2, 3, 4]]},
            {'image': 'photos/b.png', 'labels': []}]}))
        assert self.targets(root) == (['cat', 'dog'], [[-1, 1], [0, 0]])
        dataset = create_dataset('multilabel', str(root), 'train')
        assert dataset.boxes(0) == [Box(1, 1, 2, 3, 4)] and dataset.boxes(1) == []

    def test_an_image_twice_with_the_same_classes_counts_twice(self, root):
        (root / 'train.csv').write_text('image,labels\nphotos/a.png,dog;cat\nphotos/a.png,cat;dog\n')
        assert self.targets(root) == (['cat', 'dog'], [[1, 1], [1, 1]])

    def test_a_box_of_an_ignored_class(self, root):
        (root / 'train.json').write_text(json.dumps({'images': [
            {'image': 'photos/a.png', 'labels': ['dog'], 'ignore': ['cat'], 'boxes': [['cat', 1, 2, 3, 4]]}]}))
        assert create_dataset('multilabel', str(root), 'train').boxes(0) == [Box(0, 1, 2, 3, 4)]

    @pytest.mark.parametrize('place', ['classes.txt', 'elsewhere.txt'])
    def test_a_class_list_rules(self, place, root):
        (root / 'train.csv').write_text('image,labels\nphotos/a.png,dog\n')
        (root / place).write_text('cat\ndog\nemu\n')
        kwargs = {'class_map': str(root / place)} if place == 'elsewhere.txt' else {}
        assert self.targets(root, **kwargs) == (['cat', 'dog', 'emu'], [[0, 1, 0]])

    @pytest.mark.parametrize('content, emu', [
        ('image,labels\nphotos/a.png,dog;cat\nphotos/b.png,\n', 0),  # each image names all of its classes
        ('image,cat,dog\nphotos/a.png,1,1\nphotos/b.png,0,0\n', -1)])  # of others nothing is said
    def test_a_class_that_no_image_has(self, content, emu, root):
        """A validation without any emu counted as one in which nobody had looked for emus."""
        (root / 'train.csv').write_text(content)
        dataset = create_dataset('multilabel', str(root), 'train')
        name_classes(dataset, ['emu', 'dog', 'cat'])
        assert [dataset[i][1].tolist() for i in range(2)] == [[emu, 1, 1], [emu, 0, 0]]

    BAD = {
        'unknown label': ('train.csv', 'image,labels\nphotos/a.png,dgo\n', "'a.png' has the label 'dgo'"),
        'columns': ('train.csv', 'file,dog\nphotos/a.png,1\n', "the first column must be 'image'"),
        'value': ('train.csv', 'image,dog,cat\nphotos/a.png,1,yes\n', "line 2 has 'yes' for class 'cat'"),
        'short line': ('train.csv', 'image,dog,cat\nphotos/a.png,1\n', 'line 2 does not have 3 columns'),
        'no JSON': ('train.json', '{', 'Expecting property name'),
        'no list': ('train.json', '[]', 'it is no {"images": .*; expected a CSV'),
        'a key nearly right': ('train.json', '{"images": [{"image": "photos/a.png", "labels": ["dog"], '
                               '"box": [["dog", 1, 2, 3, 4]]}]}', "has 'box', which nothing reads; is it 'boxes'?"),
        'a key of the list': ('train.json', '{"class": ["dog", "cat"], "images": [{"image": "photos/a.png", '
                              '"labels": ["dog"]}]}', "it has 'class', which nothing reads; is it 'classes'?"),
        'no image': ('train.csv', 'image,labels\nphotos/z.png,dog\n', "No image '.*z.png'"),
        'no images': ('train.csv', 'image,labels\n', 'is empty'),
        'no classes': ('train.json', '{"images": [{"image": "photos/a.png", "labels": []}]}', 'no class occurs'),
        'numbers for names': ('train.json', '{"images": [{"image": "photos/a.png", "labels": [3, "dog"]}]}',
                              'the class 3 is no name: write it in quotes'),
        'a text for a list': ('train.json', '{"images": [{"image": "photos/a.png", "labels": "dog"}]}',
                              "the labels of 'photos/a.png' are no list of names"),
        'twice': ('train.csv', 'image,dog,dog\nphotos/a.png,1,1\n', 'a class is named twice'),
        'box of no class': ('train.json', '{"images": [{"image": "photos/a.png", "labels": ["dog"], '
                                          '"boxes": [["cat", 1, 2, 3, 4]]}]}', 'cat'),
        'x, y, width, height': (
            'train.json', '{"images": [{"image": "photos/a.png", "labels": ["dog"], '
            '"boxes": [["dog", 1, 2, 3, 4], ["dog", 10, 50, 5, 70]]}]}',
            r"'a.png': the box \(10, 50, 5, 70\) of 'dog' has no area; boxes are xmin, ymin, xmax, ymax"),
        'shares of the image': (
            'train.json', '{"images": [{"image": "photos/a.png", "labels": ["dog"], '
            '"boxes": [["dog", 0.1, 0.2, 0.5, 1.0]]}]}',
            r"'a.png': the box \(0.1, 0.2, 0.5, 1\) of 'dog' lies in one pixel; edges are in pixels"),
        'box without its label': (
            'train.json', '{"images": [{"image": "photos/a.png", "labels": ["dog"], "boxes": [["cat", 1, 2, 3, 4]]}, '
            '{"image": "photos/b.png", "labels": ["cat"]}]}', "'a.png' has a box of 'cat' and not the label"),
        'a row per class': (
            'train.csv', 'image,labels\nphotos/a.png,dog\nphotos/./a.png,cat\n',
            "'a.png' is listed twice, with other classes: name all of them at one place"),
        'ignored once': (
            'train.csv', 'image,dog,cat\nphotos/a.png,1,0\nphotos/a.png,1,-1\n', "'a.png' is listed twice"),
    }

    @pytest.mark.parametrize('name, text, message', BAD.values(), ids=list(BAD))
    def test_bad_lists_are_explained(self, name, text, message, root):
        if name == 'train.csv' and 'labels' in text:
            (root / 'classes.txt').write_text('dog\ncat\n')
        (root / name).write_text(text)
        with pytest.raises(DataError, match=message):
            create_dataset('multilabel', str(root), 'train')

    def test_no_list(self, root):
        (root / 'val.csv').touch()
        for name, missing in (('multilabel', "neither 'dev.csv' nor 'dev.json'"), ('singlelabel', "no 'dev.csv'")):
            with pytest.raises(DataError, match=f'{missing}.*, which has the lists .*val.*; expected a CSV'):
                create_dataset(name, str(root), 'dev')


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_an_image_that_cannot_be_read_is_named(content, tmp_path):
    picture(tmp_path / 'a.jpg', 200, 200)
    path = tmp_path / 'a.jpg'
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    (tmp_path / 'train.csv').write_text('image,dog,cat\na.jpg,1,0\n')
    with pytest.raises(DataError, match="Cannot read the image '.*a.jpg'"):
        create_dataset('multilabel', str(tmp_path), 'train')[0]


@pytest.mark.parametrize('name', ['cifar100', 'caltech256', 'imagenet', 'cub200', 'voc2007', 'voc2012',
                                  'voc2007-packed', 'multilabel', 'singlelabel'])
def test_a_missing_folder_is_named(name, tmp_path):
    with pytest.raises(DataError, match="`root`: no folder '.*nowhere'"):
        create_dataset(name, str(tmp_path / 'nowhere'), 'train')
