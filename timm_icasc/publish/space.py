"""The page of `timm-icasc demo` as a Hugging Face Space beside a published model."""
import json
import warnings
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, hf_hub_download

from ..errors import HubError
from ..hub.download import hub_api
from ..hub.failures import endpoint, one_line_errors, repo_at, request_timeout
from ..hub.model_folder import README
from ..hub.temporary_folder import temporary_folder
from ..hub.upload import ANSWER_SECONDS, Upload
from ..runs.files import write_text
from ..version import __version__

__all__ = ['push_space', 'write_space']

APP, REQUIREMENTS = 'app.py', 'requirements.txt'

MARK = '# Written by timm-icasc push --space.'


def write_space(
        folder: Path,
        repo_id: str,
        revision: str,
        license: str | None = None,
) -> dict[str, Path]:
    """Write app.py, requirements.txt and README.md of the Space.

    Args:
        folder: Where to.
        repo_id: 'OWNER/NAME' of the model.
        revision: Its branch, tag or commit.
        license: Of the weights, if known.

    Returns:
        The files by name.
    """
    name = repo_id.rpartition('/')[2]
    head = {
        'title': name, 'sdk': 'gradio', 'app_file': APP, 'models': [repo_id], 'tags': ['timm', 'timm_icasc'],
        **({'license': license} if license else {})}
    texts = {
        APP: f"{MARK}\nfrom timm_icasc.demo.page import serve\n\n"
             f"serve({json.dumps(f'hf-hub:{repo_id}@{revision}')}, server_name='0.0.0.0')\n",
        REQUIREMENTS: f'timm_icasc[demo]>={__version__}\n',
        README: f'---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {name}\n\n'
                f'What [{repo_id}]({endpoint()}/{repo_id}) sees in an image: upload one, pick classes, kind of map and '
                f'layer.\n'}
    for file, text in texts.items():
        write_text(folder / file, text)
    return {file: folder / file for file in texts}


def push_space(
        published: Upload,
        space_id: str = '',
        license: str | None = None,
        private: bool = False,
) -> str:
    """Publish the page of a model; returns its address.

    Args:
        published: The model.
        space_id: 'OWNER/NAME' of the Space; that of the model when empty. It is created where it does not exist.
        license: Of the weights, if known.
        private: Whether a Space that is created is private; that of a private model always is.

    Raises:
        HubError: The Hub refuses, the Space holds something else, or a file comes back different.
    """
    space_id = space_id or published.repo_id
    where = repo_at(f'spaces/{space_id}', None)
    api = hub_api()
    with temporary_folder() as folder, one_line_errors(where), request_timeout(ANSWER_SECONDS):
        files = write_space(folder, published.repo_id, published.tag, license)
        of_private = bool(api.repo_info(published.repo_id).private)
        api.create_repo(
            space_id, repo_type='space', space_sdk='gradio', private=private or of_private, exist_ok=True)
        before = api.repo_info(space_id, repo_type='space')
        cache = folder / 'cache'
        there = {file.rfilename for file in before.siblings or ()} - {'.gitattributes', README}
        if there and APP not in there:
            raise HubError(
                f'{where}: it holds {min(there)}, and no page of this command, and is left alone: name another Space '
                f'with `space`.')
        if there:
            app = hf_hub_download(
                space_id, APP, repo_type='space', revision=before.sha, cache_dir=cache)
            if MARK not in Path(app).read_text(encoding='utf-8', errors='replace'):
                raise HubError(
                    f"{where}: it holds another {APP}, which is left alone: name another Space with `space`.")
        commit = api.create_commit(
            space_id, [CommitOperationAdd(name, files[name]) for name in sorted(files)], repo_type='space',
            parent_commit=before.sha, commit_message=f'Page of {published.repo_id} (timm_icasc {__version__})').oid
        for name, file in files.items():
            fetched = hf_hub_download(
                space_id, name, repo_type='space', revision=commit, cache_dir=cache)
            if Path(fetched).read_bytes() != file.read_bytes():
                raise HubError(f'{where}: {name} came back different from what was sent. Run the command again.')
    if of_private:
        warnings.warn(
            f'{published.repo_id} is private: the Space needs the secret HF_TOKEN, a token that may read it, in its '
            f'settings.', stacklevel=2)
    return f'{endpoint()}/spaces/{space_id}'
