"""Weights from the Hub: one commit, no pickle, every hash checked."""
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from ..errors import HubError
from ..version import __version__
from .failures import check_reachable, one_line_errors, repo_at, request_timeout
from .model_folder import CONFIG, FILES, WEIGHTS, check_folder

NAME = re.compile(r'(?!/)(?:(?!\.\.)[^\\\0-\x1f])*')  # of a branch, tag or commit: none that leaves the cache

__all__ = ['HUB_NAMES', 'Download', 'fetch', 'hub_api', 'split_source']

HUB_NAMES = ('hf-hub:', 'hf_hub:')  # timm's spellings of a model on the Hub

PICKLES = ('.bin', '.pt', '.pth', '.pth.tar', '.pkl', '.ckpt')

COMMIT = re.compile('[0-9a-f]{40}')

ANSWER_SECONDS = 30  # without a byte from the Hub


@dataclass
class Download:
    """Weights on this machine, whole and fitting.

    Attributes:
        folder: Where they lie, such as the commit's snapshot in the cache; timm loads it as `local-dir:FOLDER`.
        where: The source: `repo@commit`, a weight tag or a path.
        sha256: Of model.safetensors.
        config: config.json.
    """
    folder: Path
    where: str
    sha256: str
    config: dict[str, Any]


def hub_api() -> HfApi:
    """The Hub's client, which tells the Hub who asks."""
    return HfApi(library_name='timm_icasc', library_version=__version__)


def split_source(source: str) -> tuple[str, str | None]:
    """`hf-hub:OWNER/NAME@REVISION`, prefix and revision optional, as (repo, revision or None)."""
    prefix = next(filter(source.startswith, HUB_NAMES), '')
    repo_id, _, revision = source.removeprefix(prefix).partition('@')
    return repo_id, revision or None


def _refuse_without_safetensors(files, where: str) -> None:
    if WEIGHTS in files:
        return
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles:
        raise HubError(
            f'{where}: the weights are there as a pickle only ({pickles[0]}), which can run any code when '
            f'it is opened, and is not; ask the owner for {WEIGHTS}, or convert it where you trust it '
            f'(https://huggingface.co/spaces/safetensors/convert).')
    raise HubError(
        f"{where}: there is no {WEIGHTS}; it holds {', '.join(sorted(files)[:6]) or 'nothing'}. "
        f'Check the name.')


def _cached(repo_id: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    """The snapshot in the cache that a revision last meant, if it is complete."""
    paths = [
        try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision)
        for name in (CONFIG, WEIGHTS)]
    return Path(paths[0]).parent if all(isinstance(path, str) for path in paths) else None


def _download(
        repo_id: str,
        revision: str | None,
        cache_dir: Path | None,
        where: str,
) -> tuple[Path, str | None]:
    """The snapshot of what `revision` means on the Hub now, and the Hub's own sha256 of the weights."""
    check_reachable(where)
    api = hub_api()
    with one_line_errors(where), request_timeout(ANSWER_SECONDS):
        info = api.model_info(
            repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
        if not COMMIT.fullmatch(info.sha or ''):
            raise HubError(f'{where}: the Hub names no commit but {info.sha!r}; check HF_ENDPOINT.')
        files = {file.rfilename: file for file in info.siblings}
        if CONFIG not in files:
            _refuse_without_safetensors(files, where)
            raise HubError(f'{where}: there is no {CONFIG}; this is no timm model.')
        _refuse_without_safetensors(files, where)
        get = partial(api.hf_hub_download, repo_id, cache_dir=cache_dir)
        paths = [get(name, revision=info.sha) for name in FILES if name in files]
        if revision != info.sha:
            get(CONFIG, revision=revision)  # notes in the cache what a branch or tag means, for use without a network
        return Path(paths[0]).parent, files[WEIGHTS].lfs.sha256 if files[WEIGHTS].lfs else None


def fetch(
        repo_id: str,
        revision: str | None = None,
        sha256: str | None = None,
        cache_dir: Path | None = None,
) -> Download:
    """Bring a model's files into the cache and check them.

    A full commit that the cache holds needs no network, nor a token. With HF_HUB_OFFLINE, a branch or tag means the
    commit that it meant when it was last fetched.

    Args:
        repo_id: 'OWNER/NAME'.
        revision: Branch, tag or commit; None for main.
        sha256: What model.safetensors must hash to, besides what config.json, the file's header and the Hub say.
        cache_dir: Cache instead of the usual one.

    Raises:
        HubError: No network, no permission, no such repo or revision, pickles only, damaged files, or files that this
            installation cannot use: in one line, as `repo@revision: cause; remedy`.
    """
    where = repo_at(repo_id, revision)
    if not NAME.fullmatch(revision or ''):
        raise HubError(f'{where}: this is no name of a branch, tag or commit.')
    with one_line_errors(where):
        snapshot = _cached(repo_id, revision, cache_dir)
    hub_sha256 = None
    if snapshot is None or not constants.HF_HUB_OFFLINE and not COMMIT.fullmatch(revision or ''):
        try:
            snapshot, hub_sha256 = _download(repo_id, revision, cache_dir, where)
        except HubError as e:
            if snapshot is None:
                raise
            raise HubError(f'{e} The cache holds commit {snapshot.name[:12]}; HF_HUB_OFFLINE=1 uses it.') from e
    where = repo_at(repo_id, snapshot.name)
    config, found = check_folder(snapshot, where, {'the pinned one': sha256, "the Hub's": hub_sha256})
    return Download(snapshot, where, found, config)
