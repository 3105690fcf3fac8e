"""A few training images of each class, drawn by the seed."""
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.hub_fixtures import save_noise

from timm_icasc import DataError
from timm_icasc.data import (
    Box,
    LabelledImages,
    MultiLabelImages,
    create_dataset,
    few_of_each_class,
    name_classes,
)
from timm_icasc.data.streams import StreamHead

NAMES = ['ant', 'bee', 'cow']


@pytest.fixture
def labelled():
    """Classes of 9, 2 and 5 images, mixed; the pixels tell which image it is."""
    targets = [0] * 9 + [1] * 2 + [2] * 5
    order = np.random.default_rng(0).permutation(16)
    images = [np.full((4, 4, 3), number, dtype=np.uint8) for number in range(16)]
    return LabelledImages(images, [targets[i] for i in order], NAMES)


def test_at_most_so_many_of_each_class(labelled):
    few = few_of_each_class(labelled, 3, seed=0, class_names=NAMES)
    assert Counter(target for _, target in few) == {0: 3, 1: 2, 2: 3}
    assert few.class_names == NAMES
    assert all(labelled.targets[i] == few[n][1] for n, i in enumerate(few.indices))


def test_the_seed_draws(labelled):
    draws = [tuple(few_of_each_class(labelled, 3, seed).indices) for seed in (0, 0, *range(1, 9))]
    assert draws[0] == draws[1] and len(set(draws)) > 5


def test_a_larger_count_adds_to_a_smaller_one(labelled):
    small, large = (set(few_of_each_class(labelled, count, seed=4).indices) for count in (2, 4))
    assert small < large and len(large) == 4 + 2 + 4
    assert few_of_each_class(labelled, 99, seed=4).indices == list(range(16))


def test_a_transform_reaches_the_images(labelled):
    few = few_of_each_class(labelled, 1, seed=0)
    few.transform = lambda image: torch.tensor(np.asarray(image)[0, 0, 0])
    assert [few[n][0].item() for n in range(3)] == few.indices
    assert labelled.transform is few.transform


def test_boxes_are_those_of_the_images_that_were_drawn(labelled):
    assert not hasattr(few_of_each_class(labelled, 2, seed=0), 'boxes')
    labelled._boxes = [[Box(target, n, 0, n + 1, 1)] for n, target in enumerate(labelled.targets)]
    few = few_of_each_class(labelled, 2, seed=0)
    assert [few.boxes(n)[0].xmin for n in range(len(few))] == few.indices != list(range(len(few)))


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_image_folders(name, tmp_path):
    root = save_noise(tmp_path, train=5, test=2)
    whole = create_dataset(name, str(root), 'train', is_training=True)
    few = few_of_each_class(whole, 2, seed=0)
    assert len(few) == 2 * len({target for _, target in whole})
    assert len({few[n][0].tobytes() for n in range(len(few))}) == len(few)


def test_classes_that_are_numbered_anew_are_drawn_from_as_before(tmp_path):
    """Of a folder in which a class is gone since the training, other images of the others were drawn."""
    root = save_noise(tmp_path, train=9)
    names = ['ant', 'bat', 'cat']

    def drawn():
        dataset = create_dataset('', str(root), 'train')
        name_classes(dataset, names)
        few = few_of_each_class(dataset, 3, seed=0, class_names=names)
        return {few.filename(i) for i in range(len(few)) if 'ant' not in few.filename(i)}

    before = drawn()
    shutil.rmtree(root / 'train' / 'ant')
    assert drawn() == before and len(before) == 6


def test_what_it_cannot_draw_from():
    several = MultiLabelImages([np.zeros((4, 4, 3), np.uint8)] * 2, torch.tensor([[1., 0.], [1., 1.]]), ['a', 'b'])
    with pytest.raises(DataError, match='`limit_train` is for single-label data'):
        few_of_each_class(several, 1, seed=0)
    with pytest.raises(DataError, match='cannot draw from a stream'):
        few_of_each_class(StreamHead([], 1), 1, seed=0)
    with pytest.raises(DataError, match='TensorDataset does not tell'):
        few_of_each_class(torch.utils.data.TensorDataset(torch.zeros(3, 1)), 1, seed=0)
