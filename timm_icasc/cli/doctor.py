"""Whether everything here is in order: versions, devices, optional packages, access to the Hub, cache, a step of ICASC.

    timm-icasc doctor                    one screen; exit code 1 where something needs mending

Nothing is downloaded. Without a network the token is not checked, which is no fault.
"""
import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from ..errors import HubError, VersionError, check_version, with_type
from ..features.resolve import resolve_layers
from ..foreign_text import printable
from ..hub.failures import LOG_IN, check_client, check_reachable, one_line_errors, request_timeout
from ..objective.config import ICASCConfig
from ..objective.forward import icasc_forward
from ..runs.files import check_writable
from ..runs.find import check_file_to_write
from ..runs.provenance import installed_versions
from ..runs.tables import write_json
from ..version import TIMM_FOR_TRAINING

ANSWER_SECONDS = 10

# Module -> what to install, and what for.
OPTIONAL = {
    'webdataset': ('webdataset', '--dataset wds/NAME'),
    'datasets': ('datasets', '--dataset hfds/NAME, hfids/NAME'),
    'tensorflow_datasets': ('tensorflow-datasets', '--dataset tfds/NAME'),
    'pytorch_grad_cam': ('grad-cam', 'timm-icasc bench --maps, to compare with'),
    'torchcam': ('torchcam', 'timm-icasc bench --maps, to compare with'),
}

MARKS = {True: 'ok', None: '-', False: 'FAULT'}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is in order (None: it need not be there), and what to say of it."""
    name: str
    ok: bool | None
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', metavar='FILE', help='write the findings here too')


def _versions() -> dict[str, str]:
    return {
        'python': platform.python_version(), **installed_versions(), 'torchvision': version('torchvision'),
        'huggingface_hub': version('huggingface_hub')}


def _devices() -> list[str]:
    return ['cpu', *['cuda'] * torch.cuda.is_available(), *['mps'] * torch.backends.mps.is_available()]


def _check_devices() -> tuple[bool | None, str]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return True, f"{len(names)} CUDA device(s): {', '.join(sorted(set(names)))}"
    if torch.backends.mps.is_available():
        return True, 'MPS; timm-icasc train takes it with --device mps'
    cuda = f'is built for CUDA {torch.version.cuda}, and sees no device' if torch.version.cuda else 'has no CUDA'
    return None, f'CPU only, {torch.get_num_threads()} thread(s): this torch {cuda}'


def _check_token() -> tuple[bool | None, str]:
    if not get_token():
        return None, f'none; only push and private repos need one: {LOG_IN}'
    try:
        check_client()
        check_reachable('the Hub')
        with one_line_errors('the Hub'), request_timeout(ANSWER_SECONDS):
            return True, f"valid, of {HfApi().whoami()['name']}"
    except (HubError, VersionError) as e:
        refused = isinstance(
            e.__cause__, HfHubHTTPError) and e.__cause__.response.status_code == 401
        return (False, e.line) if refused else (None, f'there is one, not checked: {e.line}')


def _check_versions() -> tuple[bool | None, str]:
    """Whether everything works with the versions that are here; less than everything is no fault."""
    try:
        check_version('timm', timm.__version__, TIMM_FOR_TRAINING, 'training')
        check_client()
        return True, 'recent enough for maps, training and the Hub'
    except VersionError as e:
        return None, f'maps work, but {e.line}'


def _check_cache() -> tuple[bool | None, str]:
    cache = Path(constants.HF_HUB_CACHE)
    try:
        check_writable(cache)
        return True, f'{cache} can be written to'
    except OSError as e:
        return False, f"cannot write to '{cache}' ({e.strerror}): set HF_HOME or HF_HUB_CACHE to a folder of yours"


def _check_step(device: str, order: int) -> tuple[bool | None, str]:
    """The gradient of the terms alone, without the classification loss, has to reach the first layer."""
    torch.manual_seed(0)
    try:
        model, config = timm.create_model('resnet20_cifar').to(device), ICASCConfig(order=order)
        images, target = torch.randn(4, 3, 32, 32, device=device), torch.arange(4, device=device)
        layers = resolve_layers(model, input_size=(3, 32, 32))
        loss = icasc_forward(model, images, target, layers, config).weighted_sum(config)
        loss.backward()
        gradient = next(model.parameters()).grad
        gradient = 0. if gradient is None else gradient.abs().sum().item()
    except Exception as e:  # whatever a broken installation makes torch say
        return False, with_type(e)
    if not torch.isfinite(loss) or not 0 < gradient < float('inf'):
        return False, f'the terms are {loss.item():.3g}, their gradient on the first layer {gradient:.3g}'
    return True, f'terms of {loss.item():.3f}, and their gradient reaches the first layer'


def _findings() -> Iterator[Finding]:
    checks: dict[str, Callable[[], tuple[bool | None, str]]] = {
        'versions': _check_versions, 'accelerator': _check_devices, 'Hub token': _check_token,
        'Hub cache': _check_cache}
    for device in _devices():
        for order in (1, 2):
            checks[f'step on {device}, order {order}'] = lambda d=device, o=order: _check_step(d, o)
    for name, check in checks.items():
        yield Finding(name, *check())
    for module, (package, purpose) in OPTIONAL.items():
        there = find_spec(module) is not None
        yield Finding(package, there or None, f"{purpose}{'' if there else f' (pip install {package})'}")


def run(args: argparse.Namespace) -> int:
    if args.json:
        check_file_to_write(Path(args.json), 'json')
    versions, findings = _versions(), []
    print(', '.join(f'{name} {number}' for name, number in versions.items()))
    for finding in _findings():
        findings.append(finding)
        print(f'{finding.name:<22} {MARKS[finding.ok]:<5} {printable(finding.text)}', flush=True)
    faults = [finding.name for finding in findings if finding.ok is False]
    print(f"to be mended: {', '.join(faults)}" if faults else 'everything that is needed is in order')
    if args.json:
        record = {'versions': versions, 'in_order': not faults, 'findings': [asdict(f) for f in findings]}
        write_json(Path(args.json), record)
    return 1 if faults else 0
