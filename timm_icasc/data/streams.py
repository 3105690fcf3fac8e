"""Data sets that are read from one end to the other (timm's `wds/` and `hfids/`) and have no index."""
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.readers import reader_wds
from timm.data.readers.reader_wds import ReaderWds
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import DataError, one_line

__all__ = ['NamingReaderWds', 'StreamHead', 'begin_epoch', 'check_package', 'check_shards', 'is_stream']

# What timm's readers import.
PACKAGES = {'wds': 'webdataset', 'hfds': 'datasets', 'hfids': 'datasets', 'tfds': 'tensorflow_datasets'}


def check_package(name: str) -> None:
    """Raise DataError where the reader of the data set `TYPE/NAME` needs a package that is not installed."""
    package = PACKAGES.get(name.partition('/')[0])
    if package and find_spec(package) is None:
        raise DataError(f"`name={name}` needs another package: pip install {package.replace('_', '-')}")


def is_stream(dataset: Dataset) -> bool:
    return isinstance(dataset, IterableDataset)


def check_shards(dataset: Dataset, label: str, workers: int, world_size: int) -> None:
    """Every loading process needs a shard of its own: one without any ends at once, and the others wait for it.

    Raises:
        DataError: A shard is missing, or there are too few.
    """
    reader = getattr(dataset, 'reader', None)
    if not isinstance(reader, ReaderWds):
        return
    # Workers do not read in step: each may bring a smaller last batch, more than the loader's length foresees.
    warnings.filterwarnings('ignore', 'Length of IterableDataset')
    shards = reader.split_info.filenames
    if Path(reader.root).is_dir():
        for shard in (shard for shard in shards if not (Path(reader.root) / shard).is_file()):
            raise DataError(f"`root`: '{reader.root}' has no shard '{shard}', which _info.json or {label} names.")
    readers = world_size * (max(1, workers) if reader.is_training else 1)
    if len(shards) < readers:
        processes = f', {world_size} processes' * (world_size > 1)
        raise DataError(
            f'{label} has {len(shards)} shard(s) for {readers} loading processes (`workers={workers}`'
            f'{processes}): use fewer, or make more shards.')


def begin_epoch(dataset: Dataset, epoch: int) -> None:
    """Let a stream shuffle, or a draw be drawn, for this epoch, as a resumed run would.

    Other data sets are shuffled by their sampler.
    """
    if hasattr(dataset, 'begin_epoch'):
        dataset.begin_epoch(epoch)
    if not is_stream(dataset) or not hasattr(dataset, 'set_epoch'):
        return
    dataset.set_epoch(epoch)
    reader = getattr(dataset, 'reader', None)
    if isinstance(reader, ReaderWds):
        # Without loading processes, which are new in each epoch, the order would go on from the epoch before.
        reader.ds, reader.worker_seed = None, reader.common_seed + epoch


def _decode(decode: Callable, sample: dict[str, Any], **options: Any) -> dict[str, Any] | None:
    """What timm makes of a sample; errors, and the image itself, bear the sample's name."""
    name = f"{sample.get('__key__')}' of the shard '{sample.get('__url__')}"
    try:
        decoded = decode(sample, **options)
    except Exception as e:
        if isinstance(e, (TypeError, getattr(reader_wds, 'WdsTargetKeyError', TypeError))):
            raise  # with these timm ends the run
        raise DataError(f"Cannot read the sample '{name}': {one_line(e)}") from e
    for image in (decoded or {}).values():
        if isinstance(image, Image.Image):
            image.filename = name
    return decoded


class NamingReaderWds(ReaderWds):
    """timm's reader of shards, whose warning of a sample that is left out names the shard and the sample's key."""

    def _lazy_init(self) -> None:
        original = reader_wds._decode
        reader_wds._decode = partial(_decode, original)
        try:
            super()._lazy_init()
        finally:
            reader_wds._decode = original


class StreamHead(IterableDataset):
    """The first samples of a stream, a share from each loading process.

    Args:
        dataset: The stream, with its transform.
        count: Number of samples; fewer where the stream ends before.
    """
    transform: Any = None  # timm's loader sets it; the stream has its own

    def __init__(self, dataset: IterableDataset, count: int):
        self.dataset, self.count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        index, number = (worker.id, worker.num_workers) if worker else (0, 1)
        return islice(iter(self.dataset), self.count // number + (index < self.count % number))
