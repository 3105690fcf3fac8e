"""Weights as a safetensors file that says where it comes from, and the folder of files around it."""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..errors import DamagedError, HubError, one_line
from ..foreign_files import read_json
from ..version import __version__

__all__ = [
    'CONFIG', 'FIGURE', 'FILES', 'FORMAT', 'METADATA_KEY', 'OPTIONS', 'README', 'WEIGHTS',
    'build_model', 'check_folder', 'file_sha256', 'half_precision', 'plugin_of', 'read_config', 'read_header',
    'tensors_sha256', 'write_weights',
]

CONFIG, WEIGHTS, README, OPTIONS, FIGURE = FILES = (
    'config.json', 'model.safetensors', 'README.md', 'args.yaml', 'attention.png')

METADATA_KEY = 'timm_icasc'  # of the safetensors header, and of config.json

FORMAT = 1  # of what stands under this key

# What it says at the least.
PROMISED = {
    'format': int, 'requires': dict, 'versions': dict, 'method': str, 'dataset': str, 'seed': int,
    'metrics': dict, 'sha256': str}

CHUNK = 1 << 20


def file_sha256(path: Path, description: str | None = None) -> str:
    """Hexadecimal sha256 of a file; a `description` shows progress."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file, tqdm(
            total=Path(path).stat().st_size, desc=description, unit='B', unit_scale=True, leave=False,
            disable=True if description is None else None) as bar:
        while data := file.read(CHUNK):
            digest.update(data)
            bar.update(len(data))
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal sha256 of names, types, shapes and values, whatever the order: the identity of a set of weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors.keys()):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def half_precision(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights rounded to 16 bits, in half the bytes; whole numbers stay.

    Raises:
        HubError: A value is too large for 16 bits.
    """
    rounded = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()}
    for name, tensor in rounded.items():
        if tensor.is_floating_point() and not tensor[state_dict[name].isfinite()].isfinite().all():
            raise HubError(f"'{name}' has values above 65504, which half precision cannot hold; keep full precision.")
    return rounded


class _OnDisk(Mapping):
    """The tensors of a safetensors file, read one at a time."""

    def __init__(self, file):
        self.file, self.names = file, list(file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def write_weights(
        state_dict: Mapping[str, torch.Tensor],
        provenance: Mapping[str, Any],
        path: Path,
) -> dict[str, Any]:
    """Write a safetensors file; equal weights and provenance make equal bytes.

    Args:
        state_dict: Parameters and buffers.
        provenance: JSON values; they go into one key of the header as sorted JSON (the order of several keys would
            differ from process to process).
        path: File to write.

    Returns:
        The provenance with 'tensors_sha256', as it stands in the header.

    Raises:
        HubError: The file cannot be written.
    """
    tensors, seen = {}, set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # safetensors keeps no shared memory
        seen.add(storage)
        tensors[name] = tensor
    provenance = {**provenance, 'tensors_sha256': tensors_sha256(tensors)}
    try:
        save_file(tensors, path, metadata={METADATA_KEY: json.dumps(provenance, sort_keys=True)})
    except (OSError, SafetensorError) as e:
        raise HubError(
            f"cannot write the weights to '{path.parent}' ({e}); make room, or set TMPDIR to another disk.") from e
    path.chmod(0o644)  # safetensors leaves the file to its owner alone
    return provenance


def _check_promised(ours: Any, where: str) -> None:
    """Raise `HubError` where the part of config.json that is ours is of a later format, or not whole."""
    said = ours if isinstance(ours, dict) else {}
    written, versions = said.get('format'), said.get('versions')
    if isinstance(written, int) and written > FORMAT:
        raise HubError(
            f"{where}: written by timm_icasc {versions.get('timm_icasc', '?') if isinstance(versions, dict) else '?'} "
            f'in format {written}; this is timm_icasc {__version__}, which reads format {FORMAT}. '
            f'Run: pip install -U timm_icasc')
    wrong = [name for name, kind in PROMISED.items() if not isinstance(said.get(name), kind)]
    if wrong:
        raise HubError(f"{where}: {CONFIG} is damaged: '{METADATA_KEY}' lacks a valid '{wrong[0]}'.")


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """config.json, with what it needs checked against this installation.

    Raises:
        HubError: The file is missing, no timm configuration, or asks for another version or plugin.
    """
    path = Path(folder) / CONFIG
    try:
        config = read_json(path)
    except (OSError, ValueError) as e:
        raise HubError(f'{where}: {CONFIG} cannot be read ({one_line(e)}); this is no timm model.') from e
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise HubError(f"{where}: {CONFIG} names no 'architecture'; this is no timm model.")
    if not isinstance(config.get('pretrained_cfg', {}), dict):
        raise HubError(f"{where}: {CONFIG} is damaged: its 'pretrained_cfg' holds no names and values.")
    if METADATA_KEY in config:
        _check_promised(config[METADATA_KEY], where)
    requires = config.get(METADATA_KEY, {}).get('requires', {})
    if not timm.is_model(config['architecture']):
        plugin = requires.get('plugin')
        trained = f"; it was trained with timm {requires['timm']}, this is {timm.__version__}: pip install -U timm" \
            if requires.get('timm') not in (None, timm.__version__) else ''
        remedy = f"it comes from the package '{plugin}': install it and `import {plugin}` before create_model" \
            if plugin and plugin != 'timm_icasc' else \
            f'install the package that defines it and import it, or a newer timm_icasc{trained}'
        raise HubError(
            f"{where}: architecture '{config['architecture']}' is not registered with timm "
            f'{timm.__version__} and timm_icasc {__version__}; {remedy}.')
    return config


def read_header(file: Any) -> dict[str, Any]:
    """What the header of a safetensors file says under our key; empty where it says nothing.

    Args:
        file: Of `safetensors.safe_open`.

    Raises:
        HubError: It is no JSON object.
    """
    try:
        header = json.loads((file.metadata() or {}).get(METADATA_KEY, '{}'))
    except (ValueError, RecursionError) as e:
        raise HubError(f"the header of {WEIGHTS} holds no JSON under '{METADATA_KEY}'") from e
    if not isinstance(header, dict):
        raise HubError(f"the header of {WEIGHTS} holds no names and values under '{METADATA_KEY}'")
    return header


def plugin_of(architecture: str) -> str | None:
    """The package that defines an architecture; None where it is timm."""
    package = timm.models.model_entrypoint(architecture).__module__.partition('.')[0]
    return package if package != 'timm' else None


def build_model(folder: Path, **kwargs) -> torch.nn.Module:
    """The architecture of config.json, with options of timm's; without memory for weights where it can be had so."""
    name = f'local-dir:{folder}'
    try:
        with torch.device('meta'):
            return timm.create_model(name, **kwargs)
    except (NotImplementedError, RuntimeError):  # some architectures compute in their constructor
        return timm.create_model(name, **kwargs)


def _other_timm(ours: Mapping[str, Any]) -> str:
    """The remedy where the files are whole and this timm cannot use them."""
    version = ours.get('versions', {}).get('timm', timm.__version__)
    return f'they were made with timm {version}: pip install timm=={version}' if version != timm.__version__ else \
        'its files do not belong together: ask its owner'


def check_folder(
        folder: Path,
        where: str,
        sha256: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Any], str]:
    """Check that the weights in a folder are whole and fit their architecture.

    Args:
        folder: Folder with config.json and model.safetensors.
        where: Name of the source in messages: a path, or `repo@revision`.
        sha256: What the file must hash to, by who says so, besides what config.json and the file's header say.

    Returns:
        The configuration, and the sha256 of the weights file.

    Raises:
        DamagedError: A hash differs.
        HubError: Names and shapes are not those of the architecture.
    """
    config, path = read_config(folder, where), Path(folder) / WEIGHTS
    ours = config.get(METADATA_KEY, {})
    found = file_sha256(path, 'checking')
    for source, expected in {**(sha256 or {}), f'that of {CONFIG}': ours.get('sha256')}.items():
        if expected is not None and found != expected:
            raise DamagedError(
                f'{where}: {WEIGHTS} is damaged: its sha256 {found[:12]}... is not {source}, '
                f"{expected[:12]}... Delete '{path.resolve()}' and fetch it again.")
    try:
        with safe_open(path, 'pt') as file:
            header = read_header(file)
            tensors = _OnDisk(file)
            if 'tensors_sha256' in header and tensors_sha256(tensors) != header['tensors_sha256']:
                raise DamagedError(
                    f'{where}: {WEIGHTS} is damaged: its values are not those that its header was '
                    f"written for. Delete '{path.resolve()}' and fetch it again.")
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in tensors}
    except (SafetensorError, OSError) as e:
        raise DamagedError(
            f'{where}: {WEIGHTS} is damaged or no safetensors file ({one_line(e)}); fetch it again.') from e
    except DamagedError:
        raise
    except HubError as e:
        raise DamagedError(f'{where}: {e}; fetch it again.') from e
    try:
        state = build_model(Path(folder)).state_dict()
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except Exception as e:  # whatever an architecture says to arguments that are not its own
        raise HubError(
            f"{where}: timm {timm.__version__} cannot build '{config['architecture']}' as {CONFIG} asks "
            f"({one_line(e)}); {_other_timm(ours)}.") from e
    if shapes != wanted:
        wrong = sorted(
            name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise HubError(
            f"{where}: the weights do not fit '{config['architecture']}' of timm {timm.__version__}: "
            f"{len(wrong)} differ, first {wrong[0]} (file: {shapes.get(wrong[0])}, model: "
            f'{wanted.get(wrong[0])}); {_other_timm(ours)}.')
    return config, found
