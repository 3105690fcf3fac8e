"""Each class equally often: by the seed and the epoch, for each process its share, gone on with as if never stopped."""
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.hub_fixtures import save_noise
from helpers.runs import sigterm_in_the_second_epoch, train_in_process
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, DistributedSampler

from timm_icasc import DataError
from timm_icasc.data import (
    LabelledImages,
    MultiLabelImages,
    ResidentLoader,
    balanced,
    begin_epoch,
    few_of_each_class,
)
from timm_icasc.data.streams import StreamHead
from timm_icasc.errors import ICASCError
from timm_icasc.training.arguments import parse_args

SIZES = (18, 2, 3)  # images of classes 0, 2 and 4; 1 and 3 have none


@pytest.fixture
def images():
    """The value of the pixels is the number of the image."""
    targets = [c for c, size in zip((0, 2, 4), SIZES, strict=True) for _ in range(size)]
    pixels = [np.full((4, 4, 3), number, dtype=np.uint8) for number in range(len(targets))]
    return LabelledImages(pixels, targets, list('abcde'), np.asarray)


def drawn(dataset, epoch=0):
    begin_epoch(dataset, epoch)
    return [(int(image[0, 0, 0]), target) for image, target in (dataset[i] for i in range(len(dataset)))]


@pytest.mark.parametrize('epoch', range(3))
def test_each_class_and_each_image_of_a_class_equally_often(images, epoch):
    found = drawn(balanced(images, seed=0), epoch)
    assert len(found) == len(images) == 23
    classes = Counter(target for _, target in found)
    assert sorted(classes) == [0, 2, 4] and sorted(classes.values()) == [7, 8, 8]
    for target in classes:
        own = [number for number, label in enumerate(images.targets) if label == target]
        times = Counter(number for number, label in found if label == target)
        counts = [times[number] for number in own]
        assert sum(counts) == classes[target] and max(counts) - min(counts) <= 1


def test_it_follows_from_the_seed_and_the_epoch(images):
    draws = [drawn(balanced(images, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(map(tuple, draws))) == 4
    again = balanced(images, seed=1)
    assert [drawn(again, epoch) for epoch in (1, 0)] == [draws[3], draws[2]]
    assert {n for epoch in range(40) for n, label in drawn(again, epoch) if label == 0} == set(range(18)), 'in time'


def test_each_process_has_a_share(images):
    """The samplers of torch and of timm share out what is drawn; --aug-repeats: neighbours have the same image."""
    dataset = balanced(images, seed=0)
    begin_epoch(dataset, 4)
    shares = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, 2, rank)
        sampler.set_epoch(4)
        shares.append([int(target) for _, target in DataLoader(dataset, batch_size=None, sampler=sampler)])
    assert len(shares[0]) == len(shares[1]) == 12  # 23 and one again
    assert all(7 <= count <= 9 for count in Counter(shares[0] + shares[1]).values())
    repeats = [
        [dataset[i] for i in RepeatAugSampler(dataset, 2, rank, num_repeats=2)] for rank in range(2)]
    assert [[int(image[0, 0, 0]) for image, _ in share] for share in repeats][0] == [
        int(image[0, 0, 0]) for image, _ in repeats[1]]


@pytest.mark.parametrize('workers', [0, 1])
def test_loading_processes_know_of_the_epoch(images, workers):
    dataset = balanced(images, seed=0)
    loader = DataLoader(dataset, batch_size=23, num_workers=workers)
    for epoch in (0, 1):
        expected = drawn(dataset, epoch)
        (batch, targets), = loader
        assert list(zip(batch[:, 0, 0, 0].tolist(), targets.tolist(), strict=True)) == expected


def test_of_a_few_images_and_on_the_device(images):
    dataset = balanced(few_of_each_class(images, 3, seed=0), seed=0)
    loader = ResidentLoader(dataset, (4, 4), 8, (0., 0., 0.), (1 / 255,) * 3)
    for epoch in range(2):
        expected = drawn_with(dataset, epoch)
        found = [pair for batch, targets in loader for pair in zip(
            batch[:, 0, 0, 0].round().int().tolist(), targets.tolist(), strict=True)]
        assert sorted(found) == sorted(expected) and len(found) == 8
        assert sorted(Counter(target for _, target in found).values()) == [2, 3, 3]


def drawn_with(dataset, epoch):
    """Numbers and classes without the transform, which the loader has taken over."""
    begin_epoch(dataset, epoch)
    few = dataset.dataset
    return [(few.indices[i], few.dataset.targets[few.indices[i]]) for i in dataset.indices]


def test_what_it_cannot_draw_from():
    several = MultiLabelImages([np.zeros((4, 4, 3), np.uint8)] * 2, torch.tensor([[1., 0.], [1., 1.]]), ['a', 'b'])
    said = r'`balanced_sampling` is for single-label data: .* weights \(`class_weights`\) instead'
    with pytest.raises(DataError, match=said):
        balanced(several, seed=0)
    with pytest.raises(DataError, match='`balanced_sampling` cannot draw from a stream'):
        balanced(StreamHead([], 1), seed=0)
    with pytest.raises(DataError, match='TensorDataset does not tell'):
        balanced(torch.utils.data.TensorDataset(torch.zeros(3, 1)), seed=0)
    with pytest.raises(ICASCError, match='--balanced-sampling and --class-weights balanced balance twice'):
        parse_args(['--dataset', 'digits', '--balanced-sampling', '--class-weights', 'balanced'])


def test_a_run_that_is_gone_on_with_draws_as_if_never_stopped(tmp_path, monkeypatch, capsys):
    root = save_noise(tmp_path / 'images', train=6, val=1)
    for number in range(1, 6):
        (root / 'train' / 'bat' / f'{number}.png').unlink()
    options = [
        '--data-dir', root, '--model', 'resnet20_cifar', '--no-icasc', '--icasc-eval-images', 0, '--epochs', 2, '-j', 0,
        '--warmup-epochs', 0, '--batch-size', 4, '--limit-train', 4, '--balanced-sampling', '--output', tmp_path]
    assert train_in_process(monkeypatch, capsys, *options, '--experiment', 'whole')[0] == 0
    with sigterm_in_the_second_epoch(monkeypatch):
        code = train_in_process(monkeypatch, capsys, *options, '--experiment', 'parts')[0]
    assert code == 128 + signal.SIGTERM
    resumed = ('--resume', 'auto', '--output', tmp_path, '--experiment', 'parts')
    assert train_in_process(monkeypatch, capsys, *resumed)[0] == 0
    whole, parts = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'parts'))
    assert whole['epoch'] == parts['epoch'] == 1
    assert all(torch.equal(value, parts['state_dict'][name]) for name, value in whole['state_dict'].items())
