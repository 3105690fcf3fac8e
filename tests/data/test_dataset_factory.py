"""Data sets: the embedded digits, image folders, and what is said when something is missing."""
import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data import create_loader
from torchvision import transforms

from timm_icasc import DataError
from timm_icasc.data import (
    DigitsDataset,
    class_names,
    create_dataset,
    evenly_spaced,
    image_name,
    is_public,
    labels_of,
    use_pad_crop,
)
from timm_icasc.labels import SINGLE
from timm_icasc.training.arguments import build_parser
from timm_icasc.training.option_names import name_options


@pytest.fixture
def image_folder(tmp_path):
    """Two classes, three images each, in the splits train and test."""
    for split in ('train', 'test'):
        for c, name in enumerate(('ape', 'bee')):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new('RGB', (40, 36), (80 * c, 40 * i, 0)).save(tmp_path / split / name / f'{i}.png')
    return tmp_path


class TestDigits:

    def test_splits_are_stratified_disjoint_and_complete(self):
        train, val = DigitsDataset('train'), DigitsDataset('validation')
        assert len(train) + len(val) == 1797
        assert set(train.indices).isdisjoint(val.indices)
        shares = [np.bincount(d.targets) / len(d) for d in (train, val)]
        assert np.abs(shares[0] - shares[1]).max() < 0.005

    def test_images(self):
        from sklearn.datasets import load_digits
        dataset = DigitsDataset('train', transform=np.asarray)
        image, target = dataset[5]
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        original = load_digits().images[dataset.indices[5]]
        # The mean ink is kept by the enlargement, up to its border.
        assert image.mean() == pytest.approx(original.mean() * 255 / 16, abs=6)
        assert target == load_digits().target[dataset.indices[5]]

    def test_unknown_split(self):
        with pytest.raises(DataError, match=r"the splits train and validation \(val\), no 'test'"):
            DigitsDataset('test')


def test_image_folder(image_folder):
    dataset = create_dataset('', str(image_folder), 'train', is_training=True)
    assert len(dataset) == 6 and class_names(dataset) == ['ape', 'bee']
    assert len(create_dataset('', str(image_folder), 'test')) == 6


@pytest.mark.parametrize('name, expected', [('digits', 10), ('', 2)])
def test_class_names(name, expected, image_folder):
    assert len(class_names(create_dataset(name, str(image_folder), 'train', is_training=True))) == expected


class TestClearErrors:

    def test_missing_folder(self, tmp_path):
        with pytest.raises(DataError, match="no folder '.*nowhere'"):
            create_dataset('', str(tmp_path / 'nowhere'), 'train')

    def test_missing_split_names_what_is_there(self, image_folder):
        """timm would read the whole folder, with the splits as its classes."""
        with pytest.raises(DataError, match=r"no folder 'validation' \(it has: test, train\).*`split`"):
            create_dataset('', str(image_folder), 'validation')

    def test_split_without_classes(self, tmp_path):
        (tmp_path / 'train').mkdir()
        with pytest.raises(DataError, match='has no class folders'):
            create_dataset('', str(tmp_path), 'train', is_training=True)

    def test_split_without_images(self, tmp_path):
        (tmp_path / 'train' / 'ape').mkdir(parents=True)
        with pytest.raises(DataError, match="Cannot read split 'train'.*|is empty"):
            create_dataset('', str(tmp_path), 'train', is_training=True)

    def test_a_mere_value(self, tmp_path, monkeypatch):
        def create(*_, **__):
            raise KeyError('train')
        monkeypatch.setattr(timm.data, 'create_dataset', create)
        with pytest.raises(DataError, match="Cannot read split 'test' of data set 'torch/cifar100': KeyError: 'train'"):
            create_dataset('torch/cifar100', str(tmp_path), 'test')

    @pytest.mark.parametrize('name', ['', 'torch/image_folder'])
    def test_a_part_of_a_folder(self, name, image_folder):
        """timm reads all of it, so that training and validation were of the same images."""
        with pytest.raises(DataError, match=r"`split`: 'train\[:80%\]' asks for a part of a folder"):
            create_dataset(name, str(image_folder), 'train[:80%]')

    @pytest.mark.parametrize('name', ['torch/cifar10', 'torch/CIFAR100', 'torch/qmnist'])
    def test_a_split_that_torchvision_does_not_have(self, name, tmp_path):
        """timm takes it for the test images."""
        with pytest.raises(DataError, match=rf"'{name}' has the splits train and test \(validation\), no 'training-'"):
            create_dataset(name, str(tmp_path), 'training-')

    @pytest.mark.parametrize('name', ['digits', 'cub200', 'torch/image_folder'])
    def test_a_class_map_that_would_not_be_read(self, name, image_folder):
        """`eval` takes the classes for those of the map."""
        with pytest.raises(DataError, match=f"`class_map`: data set '{name}' has classes of its own"):
            create_dataset(name, str(image_folder), 'train', class_map='map.txt')

    def test_unknown_type(self, tmp_path):
        with pytest.raises(DataError, match='Cannot read split'):
            create_dataset('torch/nothing', str(tmp_path), 'train', is_training=True)


def test_what_others_call_labels_is_no_kind_of_labels(image_folder):
    """torchvision's SVHN and STL10 keep their targets under that name."""
    class Elsewhere(torch.utils.data.Dataset):
        labels = np.zeros((3, 2))

    assert labels_of(Elsewhere()) is SINGLE
    assert labels_of(create_dataset('', str(image_folder), 'test')) is SINGLE


def test_evenly_spaced_reaches_every_class_of_a_sorted_set():
    labels = torch.arange(100).repeat_interleave(10)
    subset = evenly_spaced(torch.utils.data.TensorDataset(labels), 200)
    assert len({int(x) for x, in subset}) == 100
    assert len(evenly_spaced(torch.utils.data.TensorDataset(labels), 5000)) == 1000


@pytest.mark.parametrize('path, name', [('a/0.png', '0.png'), (None, 'image 1')])
def test_an_image_of_a_table_may_have_no_name(path, name):
    """timm's reader of hfds/ data sets hands on what the table says, which is None where it holds the pixels alone."""
    class OfATable(torch.utils.data.Dataset):
        def filename(self, index):
            return path

    assert image_name(OfATable(), 1) == name


class TestPadCrop:

    def loader(self, dataset, **kwargs):
        return create_loader(dataset, (3, 32, 32), 4, is_training=True, num_workers=0, device=torch.device('cpu'),
                             use_prefetcher=False, color_jitter=None, **kwargs)

    def test_replaces_the_random_resized_crop_and_nothing_else(self, image_folder):
        dataset = create_dataset('', str(image_folder), 'train', is_training=True)
        loader = self.loader(dataset, hflip=0.3)
        before = [type(t) for t in dataset.transform.transforms]
        use_pad_crop(dataset, (32, 32), 4)
        after = [type(t) for t in dataset.transform.transforms]
        assert after[:2] == [transforms.Resize, transforms.RandomCrop] and after[2:] == before[1:]
        images, _ = next(iter(loader))
        assert images.shape == (4, 3, 32, 32)

    def test_is_a_translation_with_zeros_outside(self):
        dataset = DigitsDataset('train')
        original = np.asarray(dataset[0][0])
        self.loader(dataset, hflip=0.)
        use_pad_crop(dataset, (32, 32), 4)
        dataset.transform = transforms.Compose(dataset.transform.transforms[:2])
        padded = np.pad(original, ((4, 4), (4, 4), (0, 0)))
        windows = [padded[y:y + 32, x:x + 32] for y in range(9) for x in range(9)]
        torch.manual_seed(0)
        found = set()
        for _ in range(60):
            crop = np.asarray(dataset[0][0])
            found.add(next(i for i, window in enumerate(windows) if np.array_equal(crop, window)))
        assert len(found) > 20

    def test_other_sizes_are_resized_as_asked(self):
        dataset = DigitsDataset('train')
        self.loader(dataset)
        use_pad_crop(dataset, (24, 24), 0, 'bicubic')
        crop = transforms.Compose(dataset.transform.transforms[:2])
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
        assert np.array_equal(crop(image), image.resize((24, 24), Image.Resampling.BICUBIC))

    def test_without_augmentation(self):
        dataset = DigitsDataset('train')
        self.loader(dataset, no_aug=True)
        with pytest.raises(DataError, match='`no_aug`'):
            use_pad_crop(dataset, (32, 32), 4)


@pytest.mark.parametrize('name, classes, public', [
    ('imagenet', ['n01440764', 'n01443537'], True), ('imagenet', ['cats', 'n01443537'], False),
    ('imagenet', None, False), ('cifar100', ['cats', 'dogs'], False), ('cifar100', None, False)])
def test_folders_of_any_classes_are_told_by_their_classes(name, classes, public):
    assert is_public(name, classes) == public


def test_the_classes_of_cifar100():
    names = (
        'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can '
        'castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin '
        'elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster '
        'man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck '
        'pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk '
        'skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger '
        'tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm').split()
    assert is_public('cifar100', names[::-1]) and not is_public('cifar100', names[1:])


@pytest.mark.parametrize('name, public', [
    ('digits', True), ('voc2007-packed', True), ('torch/cifar10', True), ('torch/CIFAR10', True),
    ('', False), (None, False), ('multilabel', False), ('torch/image_folder', False), ('torch/folder', False),
    ('hfds/me/cats', False), ('hfids/me/cats', False), ('wds/cats', False), ('tfds/cats', False)])
def test_whose_images_may_be_shown(name, public):
    assert is_public(name) == public


def test_what_is_to_be_downloaded_is_told_in_the_words_of_the_command(tmp_path):
    """torchvision advises download=True."""
    with pytest.raises(DataError, match='You can use `download` to download it') as e:
        create_dataset('torch/cifar100', str(tmp_path), 'train')
    assert name_options(str(e.value), build_parser()).endswith('You can use --dataset-download to download it')
