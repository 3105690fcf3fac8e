"""Images that live on the device: the same batches as a loader's, and crops that are crops."""
import pytest
import torch
from PIL import Image
from timm.data import create_loader

from timm_icasc import DataError
from timm_icasc.data import ResidentLoader, resident
from timm_icasc.errors import ICASCError
from timm_icasc.training.arguments import parse_args

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Noise(torch.utils.data.Dataset):
    """Images of which no two pixels are alike, and as targets their numbers."""
    transform = None

    def __init__(self, size=(6, 5), length=11):
        values = torch.rand(length, *size, 3, generator=torch.Generator().manual_seed(0))
        self.arrays = (values * 255).byte().numpy()

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.arrays[index])), index


def loader(dataset=None, size=(6, 5), **kwargs):
    return ResidentLoader(dataset or Noise(), size, 4, MEAN, STD, **kwargs)


def test_without_augmentation_they_are_the_images_that_timm_loads():
    torch.manual_seed(0)
    batches = list(loader())
    assert len(loader()) == len(batches) == 2  # of 11 images; the last batch is not full
    targets = torch.cat([target for _, target in batches])
    assert len(targets.unique()) == 8
    dataset = Noise()
    expected, = create_loader(
        dataset, (3, 6, 5), 11, mean=MEAN, std=STD, interpolation='nearest', crop_pct=1., num_workers=0,
        device=torch.device('cpu'))
    for images, target in batches:
        assert images.dtype == torch.float32 and images.is_contiguous()
        torch.testing.assert_close(images, expected[0][target])


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic'])
def test_images_of_another_size_are_resized_as_timm_does(interpolation):
    loaded = torch.cat([images for images, _ in loader(Noise((9, 12), 4), interpolation=interpolation)])
    expected, = create_loader(
        Noise((9, 12), 4), (3, 6, 5), 4, is_training=True, no_aug=True, mean=MEAN, std=STD, num_workers=0,
        interpolation=interpolation, device=torch.device('cpu'))
    order = (loaded[:, None] - expected[0]).abs().amax((2, 3, 4)).argmin(1)
    assert order.unique().numel() == 4
    torch.testing.assert_close(loaded, expected[0][order])


def test_a_crop_is_a_window_of_the_padded_image_or_its_mirror_image():
    torch.manual_seed(0)
    dataset, padding = Noise(), 2
    seen = set()
    for _ in range(6):
        for images, targets in loader(dataset, padding=padding, hflip=0.5):
            for image, target in zip(images, targets.tolist(), strict=True):
                padded = torch.nn.functional.pad(torch.from_numpy(dataset.arrays[target]).permute(2, 0, 1), [2] * 4)
                padded = (padded / 255. - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
                matches = [
                    (top, left, flipped) for top in range(5) for left in range(5) for flipped in (False, True)
                    if torch.allclose(
                            (image.flip(2) if flipped else image),
                            padded[:, top:top + 6, left:left + 5], atol=1e-5)]
                assert len(matches) >= 1
                seen.update(matches)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_the_global_random_state_alone_decides():
    def epoch(seed):
        torch.manual_seed(seed)
        return [images for images, _ in loader(padding=1, hflip=0.5)]
    assert all(map(torch.equal, epoch(0), epoch(0)))
    assert not all(map(torch.equal, epoch(0), epoch(1)))


def test_images_of_another_size_are_resized():
    images, _ = next(iter(loader(size=(8, 8))))
    assert images.shape == (4, 3, 8, 8)


def test_several_labels_per_image():
    class Several(Noise):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], torch.tensor([1., 0., -1.])
    assert next(iter(loader(Several())))[1].tolist() == [[1., 0., -1.]] * 4


def test_a_stream_and_a_set_that_is_too_large_are_refused(monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())
    with pytest.raises(DataError, match='a stream'):
        loader(Stream())
    monkeypatch.setattr(resident, 'MAX_BYTES', 100)
    with pytest.raises(DataError, match='11 images of 6 x 5 take .* GiB'):
        loader()


@pytest.mark.parametrize('options, message', [
    ([], '--crop-padding N or --no-aug is missing'), (['--crop-padding', '4'], r'--color-jitter \(give 0\)'),
    (['--no-aug', '--mixup', '0.2'], '--mixup'), (['--no-aug', '--aa', 'rand-m9'], '--aa')])
def test_augmentation_that_is_not_done_on_the_device_is_refused(options, message):
    with pytest.raises(ICASCError, match=message):
        parse_args(['--data-dir', 'x', '--resident-data', *options])
