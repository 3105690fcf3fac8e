"""What was measured of every image, in memory and as records.npz."""
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ICASCError, one_line
from ..foreign_text import printable
from ..labels import LabelKind, kind_of
from ..runs.files import replacing

__all__ = ['SAME_PIXELS', 'ImageRecords', 'load_records', 'save_records']

SAME_PIXELS = 0.02  # in mean or deviation of normalised images: more than another decoder makes

FORMAT = 2  # 1 had probabilities for scores


@dataclass
class ImageRecords:
    """What was measured, by image.

    Attributes:
        label: Name of the checkpoint.
        names: Names of the `C` classes.
        indices: Positions of the images in the data set, `[N]`.
        files: File names of the images, or their numbers.
        scores: Class scores `[N, C]`, before softmax or sigmoid: probabilities near 1 are equal where these are not.
        targets: Class indices `[N]`; several classes: `[N, C]` with 1 present, 0 absent, -1 ignored.
        ten_crop_probabilities: Averaged over ten crops, `[N, C]`.
        images: Name of a measure -> one value per image, `[N]`, NaN where it is not defined.
        pairs: Name -> one value per image and class that has boxes, `[P]`; 'image' (row in `indices`) and 'class' say
            which.
        settings: What the maps were made and measured with: option -> value.
        preparation: How images were brought to what the network takes: size, crop, interpolation, mean, std.
        pixels: Mean and standard deviation of what the network was given of each image, `[N, 2]`; None in earlier
            files.
    """
    label: str
    names: list[str]
    indices: np.ndarray
    files: list[str]
    scores: np.ndarray
    targets: np.ndarray
    ten_crop_probabilities: np.ndarray | None = None
    images: dict[str, np.ndarray] = field(default_factory=dict)
    pairs: dict[str, np.ndarray] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    pixels: np.ndarray | None = None

    @property
    def labels(self) -> LabelKind:
        return kind_of(self.targets)  # the file does not tell

    @property
    def sha256(self) -> str:
        """Of the images' names and targets: the same where the same images were measured, on any machine."""
        told = json.dumps([self.files, self.targets.tolist()])
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Class probabilities `[N, C]`, float64: softmax, or sigmoid where an image can have several classes."""
        return self.labels.probabilities(torch.from_numpy(self.scores).double()).numpy()

    @property
    def known(self) -> int:
        """Number of the classes that the targets know, the first ones of the model's outputs."""
        return self.labels.known(self.targets, self.scores.shape[1])


def save_records(path: Path, records: ImageRecords) -> None:
    """Everything that a comparison needs, as one .npz file."""
    arrays = {
        'scores': records.scores, 'targets': records.targets, 'indices': records.indices,
        'files': np.array(records.files), 'label': np.array(records.label), 'names': np.array(records.names),
        'settings': np.array(json.dumps(records.settings)), 'preparation': np.array(json.dumps(records.preparation)),
        'format': np.array(FORMAT)}
    for name in ('ten_crop_probabilities', 'pixels'):
        if getattr(records, name) is not None:
            arrays[name] = getattr(records, name)
    for group in ('images', 'pairs'):
        arrays.update({f'{group}/{name}': column for name, column in getattr(records, group).items()})
    with replacing(path) as partial:
        np.savez_compressed(partial, **arrays)


def load_records(path: Path) -> ImageRecords:
    """What `save_records` wrote.

    Raises:
        ICASCError: The file is not of that kind, or of an earlier version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if int(arrays.get('format', 1)) != FORMAT:
            raise ValueError('they are of another version of the package; evaluate the checkpoint again.')
        groups = {
            group: {name.split('/', 1)[1]: column for name, column in arrays.items() if name.startswith(f'{group}/')}
            for group in ('images', 'pairs')}
        return ImageRecords(
            printable(arrays['label']), arrays['names'].tolist(), arrays['indices'], arrays['files'].tolist(),
            arrays['scores'], arrays['targets'], arrays.get('ten_crop_probabilities'),
            settings=json.loads(str(arrays['settings'])), preparation=json.loads(str(arrays.get('preparation', '{}'))),
            pixels=arrays.get('pixels'), **groups)
    except Exception as e:  # whatever numpy and zipfile say of a damaged or foreign file
        raise ICASCError(f"'{path}' holds no records of timm-icasc eval: {one_line(e)}") from e
