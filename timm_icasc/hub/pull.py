"""Weights from the Hub, verified: every hash, the configuration, and that timm can build the model."""
from pathlib import Path

import timm

from ..errors import HubError, ICASCError
from ..foreign_files import path_inside
from .download import Download, fetch, split_source
from .failures import check_client
from .model_folder import FILES, WEIGHTS, check_folder
from .tags import WEIGHT_TAGS

__all__ = ['pull']


def _refuse_links(folder: Path) -> None:
    """Raise HubError where a file of a local folder is a link that leaves it; those of the Hub's cache are links."""
    cached = folder.absolute().parent.name == 'snapshots'
    try:
        for name in FILES:
            if (folder / name).is_symlink() and not (
                    cached and (folder / name).resolve().parent == (folder.parents[1] / 'blobs').resolve()):
                path_inside(folder, name)
    except ICASCError as e:
        raise HubError(str(e)) from e


def _checked(folder: Path, where: str) -> Download:
    config, sha256 = check_folder(folder, where)
    return Download(folder, where, sha256, config)


def pull(source: str) -> Download:
    """Verified weights of a repo, a weight tag of this package, or a local folder.

    Args:
        source: 'OWNER/NAME@REVISION', with or without 'hf-hub:'; 'ARCHITECTURE.TAG'; or 'local-dir:FOLDER'.

    Raises:
        HubError: As of `download.fetch`.
        VersionError: The Hub's client is too old to fetch from it.
    """
    if source.startswith('local-dir:'):
        folder = Path(source.removeprefix('local-dir:'))
        _refuse_links(folder)
        if not (folder / WEIGHTS).is_file():
            raise HubError(f"'{folder}' holds no {WEIGHTS}.")
        return _checked(folder, str(folder))
    if source in WEIGHT_TAGS:
        tag = WEIGHT_TAGS[source]
        return tag.fetch() if tag.shipped is None else _checked(tag.folder(), source)
    if '/' not in source and timm.is_model(source):
        raise HubError(
            f"'{source}' is no weight tag of timm_icasc; its tags are "
            f"{', '.join(sorted(WEIGHT_TAGS)) or 'none'}. A repo is OWNER/NAME.")
    check_client()
    return fetch(*split_source(source))
