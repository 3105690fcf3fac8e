"""Training images that live on the device as one tensor, and are augmented there: for sets that fit, such as CIFAR."""
from collections.abc import Callable, Iterator

import torch
from timm.data.transforms import str_to_interp_mode
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
)
from torchvision import transforms
from tqdm import tqdm

from ..errors import DataError
from .balanced_images import BalancedImages

__all__ = ['ResidentLoader']

MAX_BYTES = 8 * 2 ** 30


def _read(
        dataset: Dataset,
        image_size: tuple[int, int],
        interpolation: str,
        num_workers: int,
        worker_init_fn: Callable[[int], None] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, uint8 `[N, C, H, W]`, resized where they are of another size, and their targets."""
    resize = transforms.Resize(image_size, str_to_interp_mode(interpolation))
    dataset.transform = transforms.Compose([resize, transforms.PILToTensor()])
    loader = DataLoader(
        dataset, batch_size=256, num_workers=num_workers, worker_init_fn=worker_init_fn)
    images, targets = zip(*tqdm(loader, desc='reading images', leave=False, disable=None), strict=True)
    return torch.cat(images), torch.cat(targets)


class ResidentLoader:
    """Shuffled training batches, normalised as timm's loader does; the last, smaller one is dropped.

    Zero padding, a random crop and a random mirror image, the augmentation of He et al. (2016) for CIFAR, are an index
    into the stored tensor, with offsets drawn per image.

    Args:
        dataset: Data set of Pillow images with a `transform`, which is replaced.
        image_size: Height and width of the images.
        batch_size: Images a batch (of this process).
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        padding: Pixels of zeros on each side, from which the crop is taken; 0 for none.
        hflip: Probability of the mirror image.
        interpolation: With which images of another size are resized.
        device: Where the images are to live.
        distributed: Whether each process takes its share of the images.
        num_workers: Processes that read the images, once.
        worker_init_fn: What each of them begins with.

    Raises:
        DataError: The data set is a stream, or too large.
    """

    def __init__(
            self,
            dataset: Dataset,
            image_size: tuple[int, int],
            batch_size: int,
            mean: tuple[float, ...],
            std: tuple[float, ...],
            padding: int = 0,
            hflip: float = 0.,
            interpolation: str = 'bilinear',
            device: torch.device | str = 'cpu',
            distributed: bool = False,
            num_workers: int = 0,
            worker_init_fn: Callable[[int], None] | None = None,
    ):
        if isinstance(dataset, IterableDataset):
            raise DataError('`resident_data` keeps all images in memory; this data set is a stream: leave it out.')
        height, width = (side + 2 * padding for side in image_size)
        size = len(dataset) * len(mean) * height * width
        if size > MAX_BYTES:
            raise DataError(
                f'`resident_data`: {len(dataset)} images of {image_size[0]} x {image_size[1]} take '
                f'{size / 2 ** 30:.1f} GiB, more than {MAX_BYTES / 2 ** 30:.0f}: leave it out.')
        self.dataset, self.image_size = dataset, tuple(image_size)
        self.padding, self.hflip = padding, hflip
        self.drawn = isinstance(dataset, BalancedImages)
        images, targets = _read(
            dataset.dataset if self.drawn else dataset, image_size, interpolation, num_workers,
            worker_init_fn)
        self.images = torch.nn.functional.pad(images, [padding] * 4).to(device)
        self.targets = targets.to(device)
        self.mean, self.std = (
            255 * torch.tensor(x, device=device)[:, None, None] for x in (mean, std))
        self.sampler = DistributedSampler(dataset) if distributed else RandomSampler(dataset)
        self.batches = BatchSampler(self.sampler, batch_size, drop_last=True)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images `[B, C, H, W]`, float32, and targets; the global random state alone decides which."""
        device = self.images.device
        generator = torch.Generator(device).manual_seed(int(torch.randint(2 ** 31, ())))
        for batch in self.batches:
            if self.drawn:
                batch = [self.dataset.indices[i] for i in batch]
            index = torch.tensor(batch, device=device)
            yield self._augmented(index, generator).sub_(self.mean).div_(self.std), self.targets[
                index]

    def _augmented(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        (height, width), batch, device = self.image_size, len(index), index.device
        top, left = torch.randint(
            2 * self.padding + 1, (2, batch, 1), generator=generator, device=device)
        rows, columns = top + torch.arange(height, device=device), left + torch.arange(
            width, device=device)
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < self.hflip
        columns = torch.where(mirrored, columns.flip(1), columns)
        crops = self.images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
        return crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
