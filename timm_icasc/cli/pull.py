"""Fetch weights from the Hub and verify them: every hash, the configuration, and that timm can build the model.

    timm-icasc pull me/resnet20-icasc-digits              main; or @BRANCH, @TAG, @COMMIT
    timm-icasc pull resnet20_cifar.icasc_digits           a weight tag of this package
    timm-icasc pull me/resnet20-icasc-digits --to DIR     copy for timm.create_model('local-dir:DIR')

Compared are the sha256 that the Hub, config.json and, for weight tags, this package know, and that of the values in the
header of the file. Nothing is unpickled. With HF_HUB_OFFLINE=1 it verifies what the cache holds.
"""
import argparse
import filecmp
import shutil
from pathlib import Path

from ..errors import HubError, ICASCError
from ..evaluation.measures import MEASURES
from ..foreign_files import path_inside, read_json
from ..foreign_text import printable
from ..hub.model_folder import CONFIG, FILES, METADATA_KEY, WEIGHTS
from ..hub.pull import pull
from ..publish.onnx_file import ONNX
from ..runs.files import is_free, replacing, replacing_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', metavar='SOURCE', help='OWNER/NAME[@REVISION], ARCHITECTURE.TAG, or local-dir:DIR')
    parser.add_argument(
        '--to', type=Path, metavar='DIR',
        help='copy configuration, weights, card, options and figure to this folder: a new one, an empty one, or one '
             'that holds a model of this package, as after an earlier --to')


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a model that this package has written."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and METADATA_KEY in config


def _same_weights(source: Path, target: Path) -> bool:
    files = source / WEIGHTS, target / WEIGHTS
    return files[1].is_file() and filecmp.cmp(*files, shallow=False)


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a model to a folder, in place of those of the model before.

    A link there is not followed out of it.
    """
    if target.exists() and target.samefile(source):
        raise HubError(f"--to: '{target}' is the folder that they come from; name another.")
    names = [name for name in reversed(FILES) if (source / name).is_file()]
    try:
        if not target.exists():  # whole or not at all: half a model would be refused the next time
            with replacing_folder(target) as folder:
                for name in names:
                    shutil.copyfile(source / name, folder / name)
            return
        if not _same_weights(source, target):  # a card, or figure, would tell of the weights before
            for name in {*FILES, ONNX} - {*names}:
                (target / name).unlink(missing_ok=True)
        for name in names:  # the configuration, which tells what the weights must be, last
            with replacing(path_inside(target, name)) as partial:
                shutil.copyfile(source / name, partial)
    except ICASCError as e:
        raise HubError(f'--to: {e}') from e


def run(args: argparse.Namespace) -> int:
    if args.to is not None and not is_free(args.to) and not _is_ours(args.to):  # known before the way to the Hub
        raise HubError(f"--to: '{args.to}' is there already, with files of its own: name a new or an empty folder.")
    pulled = pull(args.source)
    folder, config = pulled.folder, pulled.config
    ours, pretrained = config.get(METADATA_KEY, {}), config.get('pretrained_cfg', {})
    print(f'{printable(pulled.where)}: verified, sha256 {pulled.sha256}')
    trained = 'not published by timm_icasc, so the Hub alone vouches for the hash'
    if ours:
        values = {m.name: ours['metrics'].get(m.key) for m in MEASURES}
        measured = [f'{name} {value:.2f}' for name, value in values.items() if isinstance(value, (int, float))]
        trained = ', '.join([ours['method'], ours['dataset'], f"seed {ours['seed']}", *measured])
    print(printable(
        f"{config['architecture']}, {config.get('num_classes', '?')} classes, license "
        f"{pretrained.get('license', 'not named')}; {trained}"))
    if args.to is not None:
        _copy(folder, args.to)
        folder = args.to
    print(f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
    return 0
