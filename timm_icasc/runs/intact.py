"""Checkpoints before they are opened: whether they are what was written, and what may lie beside the weights.

`torch.save` notes a checksum of each tensor, which no loader looks at.
"""
import argparse
import re
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path, PosixPath

import numpy as np
import torch

from ..errors import ICASCError, one_line

__all__ = ['check_intact', 'harmless_types', 'saved_order']

# What many scripts save beside the weights, and holds values alone: options, paths, numbers of numpy.
NUMBERS = ('bool', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64')
HARMLESS = (
    argparse.Namespace, PosixPath, np.dtype, np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in NUMBERS))


def harmless_types() -> AbstractContextManager:
    """In this context torch opens checkpoints with `HARMLESS` in them, besides tensors and plain values."""
    return torch.serialization.safe_globals(list(HARMLESS))


def _damage(file: Path) -> str:
    """What is wrong with a file of `torch.save`; empty for an intact one, and for what has no checksums."""
    try:
        with open(file, 'rb') as opened:
            head = opened.read(2)
            if head != b'PK':
                return '' if head else 'it is empty'
            opened.seek(0)
            with zipfile.ZipFile(opened) as archive:
                noted = any(record.CRC for record in archive.infolist())  # else torch was told to leave them out
                record = archive.testzip() if noted else None
        return f"the checksum of '{record}' is wrong" if record else ''
    except OSError:
        raise
    except Exception as e:  # whatever a truncated or hostile archive makes the module say
        return one_line(e)


def saved_order(file: Path) -> tuple[int, float]:
    """By which checkpoints are in order: the epoch in the name, as copies have other times, then the time."""
    return int((re.findall(r'-(\d+)\.', file.name) or [-1])[-1]), file.stat().st_mtime


def _intact_beside(file: Path) -> str:
    """In words, the newest other checkpoint of the folder that is intact."""
    kind = ''.join(file.suffixes[-2:])
    others = [path for path in file.parent.glob(f'*{kind}') if path != file and path.is_file() and kind]
    for other in sorted(others, key=saved_order, reverse=True):
        if zipfile.is_zipfile(other) and not _damage(other):
            return f" '{other}' beside it is intact."
    return ''


def check_intact(file: Path) -> None:
    """Compare a checkpoint with the checksums that it holds: half a second for 100 MB.

    Args:
        file: Of `torch.save`; another format passes.

    Raises:
        ICASCError: It is damaged; names the newest intact checkpoint beside it.
    """
    file = Path(file)
    try:
        damage = _damage(file)
    except OSError as e:
        raise ICASCError(f"the checkpoint '{file}' cannot be read: {e.strerror}.") from e
    if damage:
        raise ICASCError(f"the checkpoint '{file}' is damaged: {damage}.{_intact_beside(file)}")
