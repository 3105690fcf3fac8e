"""The images of a checkpoint's data set in batches: as evaluation takes them, with sizes, or ten crops of each."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ..errors import DataError
from ..training.interrupt import answer_for_batches
from .checkpoint import Checkpoint

__all__ = ['Numbered', 'SizedTransform', 'TenCropTransform', 'make_loader', 'transformed_by']


class SizedTransform:
    """A transform that also tells the size of the image as loaded, (width, height)."""

    def __init__(self, transform: transforms.Compose):
        self.transform = transform

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        return self.transform(image), image.size


class Numbered(Dataset):
    """Adds to each chosen item its row."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple:
        return *self.dataset[self.indices[row]], row


@contextmanager
def transformed_by(dataset: Dataset, transform: Callable) -> Iterator[None]:
    before = dataset.transform
    dataset.transform = transform
    try:
        yield
    finally:
        dataset.transform = before


class TenCropTransform:
    """timm's evaluation transform with the four corners and the centre, and their mirror images (Krizhevsky, 2012)."""

    def __init__(self, transform: transforms.Compose):
        steps = list(transform.transforms)
        places = [i for i, step in enumerate(steps) if isinstance(step, transforms.CenterCrop)]
        if len(places) != 1:
            raise DataError('`ten_crop` needs the crop mode center or squash.')
        self.before = transforms.Compose(
            [*steps[:places[0]], transforms.TenCrop(steps[places[0]].size)])
        self.after = transforms.Compose(steps[places[0] + 1:])

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.stack([self.after(crop) for crop in self.before(image)])


def make_loader(checkpoint: Checkpoint, dataset: Dataset, batch_size: int) -> DataLoader:
    return DataLoader(
        dataset, batch_size=batch_size, num_workers=checkpoint.args.workers,
        worker_init_fn=answer_for_batches)
