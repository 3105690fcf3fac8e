"""A folder of model files to the Hub: one commit, fetched back and compared, then tagged."""
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, constants, hf_hub_download
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from ..errors import DamagedError, HubError
from ..version import __version__
from .download import PICKLES, fetch, hub_api
from .failures import check_client, check_reachable, one_line_errors, repo_at, request_timeout
from .model_folder import CONFIG, README, WEIGHTS, file_sha256
from .temporary_folder import temporary_folder

__all__ = ['Upload', 'check_license', 'publish', 'repo_name']

ANSWER_SECONDS = 120  # joining the parts of a large file takes the Hub a while


@dataclass
class Upload:
    """What stands on the Hub now.

    Attributes:
        repo_id: 'OWNER/NAME'.
        commit: The commit, 40 digits.
        tag: Its tag.
        sha256: Of model.safetensors.
        files: What was sent.
        pickles: Files in the repo, from before, that hold weights as a pickle.
    """
    repo_id: str
    commit: str
    tag: str
    sha256: str
    files: list[str]
    pickles: list[str]


def repo_name(repo_id: str) -> str:
    """'OWNER/NAME' with the token's owner put in where there is none; the token is found valid or refused.

    Raises:
        HubError: No repo name, no network, no token, or an invalid one.
        VersionError: The Hub's client is too old.
    """
    check_client()
    where = repo_at(repo_id, None)
    with one_line_errors(where):
        validate_repo_id(repo_id)
    check_reachable(where)
    with one_line_errors(where), request_timeout(ANSWER_SECONDS):
        user = hub_api().whoami()['name']
    return repo_id if '/' in repo_id else f'{user}/{repo_id}'


def publish(files: dict[str, Path], repo_id: str, private: bool = False) -> Upload:
    """Upload files in one commit on top of the commit seen at the start; check; tag.

    What a killed attempt has uploaded is not sent again, and what the repo already holds makes no new commit; so the
    same call is also the way to go on.

    Args:
        files: What to publish, by its name in the repo: config.json, model.safetensors and README.md among them;
            checked already.
        repo_id: 'OWNER/NAME'; created where it does not exist.
        private: Whether a repo that is created is private.

    Returns:
        What has been published. The tag `verified-...` follows from the contents.

    Raises:
        HubError: Anything that the Hub or the network refuses; a commit by somebody else since the start; files that
            come back different.
    """
    where = repo_at(repo_id, None)
    missing = {CONFIG, WEIGHTS, README} - files.keys()
    if missing:
        raise HubError(f"{where}: there is no {', '.join(sorted(missing))} to publish.")
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles:
        raise HubError(f"'{files[pickles[0]]}' is a pickle; only {WEIGHTS} is published. Remove it.")
    check_reachable(where)
    api = hub_api()
    with one_line_errors(where), request_timeout(ANSWER_SECONDS):
        _validate(files[README].read_text(encoding='utf-8'), where)  # before anything is left on the Hub
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        before = api.model_info(repo_id)
        if private and not before.private:
            raise HubError(
                f'{where}: the repo is there, and public; make it private on its page, or leave `private` '
                f'out.')
        commit = api.create_commit(
            repo_id, [CommitOperationAdd(name, files[name]) for name in sorted(files)],
            parent_commit=before.sha,
            commit_message=f'Weights, configuration and card (timm_icasc {__version__})').oid
    hashes = {name: file_sha256(path) for name, path in files.items()}
    _compare(repo_id, commit, hashes)
    tag = 'verified-' + hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()[:12]
    with one_line_errors(repo_at(repo_id, commit)), request_timeout(ANSWER_SECONDS):
        api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    return Upload(
        repo_id, commit, tag, hashes[WEIGHTS], sorted(files),
        [file.rfilename for file in before.siblings if file.rfilename.endswith(PICKLES)])


def check_license(license: str, repo_id: str) -> None:
    """Ask the Hub whether it knows a license, before there is a card that names it.

    Raises:
        HubError: It does not, or cannot be asked.
    """
    where = repo_at(repo_id, None)
    with one_line_errors(where), request_timeout(ANSWER_SECONDS):
        _validate(f'---\nlicense: {json.dumps(license)}\n---\n', where)


def _validate(card: str, where: str) -> None:
    """Ask the Hub whether it takes the metadata of a card."""
    response = get_session().post(  # `ModelCard.validate` asks huggingface.co, whatever HF_ENDPOINT says, before 2.2
        f'{constants.ENDPOINT}/api/validate-yaml', headers={'Accept': 'text/plain'},
        json={'repoType': 'model', 'content': card})
    if response.status_code == 400:
        raise HubError(f"{where}: the metadata of {README} are refused: {' '.join(response.text.split())}")
    hf_raise_for_status(response)


def _compare(repo_id: str, commit: str, hashes: dict[str, str]) -> None:
    """Fetch a commit into a fresh cache, as a stranger would, and compare it with what was sent."""
    where = repo_at(repo_id, commit)
    different = '{}: {} came back different from what was sent; it is not tagged. Run the command again.'
    with temporary_folder() as cache:
        try:
            fetch(repo_id, commit, hashes[WEIGHTS], cache)
        except DamagedError as e:
            raise HubError(different.format(where, WEIGHTS)) from e
        with one_line_errors(where), request_timeout(ANSWER_SECONDS):
            for name in sorted(hashes.keys() - {WEIGHTS}):
                fetched = hf_hub_download(repo_id, name, revision=commit, cache_dir=cache)
                if file_sha256(fetched) != hashes[name]:
                    raise HubError(different.format(where, name))
