"""From a finished run, or a folder of hub_cards/, to a verified commit on the Hub."""
import json
import tempfile
from pathlib import Path

from huggingface_hub import constants

from ..errors import HubError, ICASCError
from ..hub.model_folder import CONFIG, FILES, README, WEIGHTS, check_folder
from ..hub.tags import record_path
from ..hub.upload import Upload, publish, repo_name
from .card import render_run, render_sources
from .export import export, open_measured_runs

__all__ = ['push', 'push_finished']


def push(source: Path, repo_id: str, license: str | None = None, private: bool = False) -> Upload:
    """Publish `source`; see the command's description.

    Args:
        source: Run directory (of an --icasc-compare job, its ICASC run), or an exported folder with config.json.
        repo_id: 'OWNER/NAME', or 'NAME' for the token's owner.
        license: Identifier of the license of the weights; by default what `export` says.
        private: Whether a new repo is private.

    Raises:
        HubError: The run is not finished, or the Hub, the network or a check refuses.
        ICASCError: Its checkpoint cannot be read.
    """
    source = Path(source)
    ready = (source / CONFIG).is_file() and (source / WEIGHTS).is_file()
    if ready and license:
        raise HubError(f"`license`: '{source}' has one in its {CONFIG}.")
    if not ready:
        runs = open_measured_runs(source)
        run = runs[-1]
    repo_id = repo_name(repo_id)
    with tempfile.TemporaryDirectory(prefix='timm-icasc-') as staging:
        folder, card = Path(staging), source.resolve().parent / f'{source.resolve().name}.yaml'
        if ready:
            check_folder(source, str(source))
            text = render_sources(card, f'hf-hub:{repo_id}') if card.is_file() else None
        else:
            tag = f"{'icasc' if run.model['icasc'] else 'baseline'}_{run.model['dataset'].replace('/', '_')}"
            export(run, folder, tag, license)
            text = render_run(run, runs, folder, repo_id)
        if text is not None:
            (folder / README).write_text(text, encoding='utf-8')
        found = [
            place / name for place in ((source, folder) if ready else (folder,)) for name in FILES]
        files = {path.name: path for path in found if path.is_file()}
        published = publish(files, repo_id, private)
    if ready and card.is_file():
        record = {'repo_id': published.repo_id, 'revision': published.commit, 'sha256': published.sha256}
        path = record_path(source.resolve())
        try:
            path.write_text(json.dumps(record, indent=2) + '\n')
        except OSError as e:
            raise HubError(
                f"published as {published.repo_id}@{published.commit}, but '{path}' cannot be written "
                f'({e.strerror}), so that the weight tag does not find it; run the command again.') from e
    return published


def report(published: Upload) -> None:
    print(
        f'{constants.ENDPOINT}/{published.repo_id}/tree/{published.tag}\n'
        f'commit {published.commit}, {WEIGHTS} sha256 {published.sha256}\n'
        f"timm.create_model('hf-hub:{published.repo_id}@{published.tag}', pretrained=True)")
    if published.pickles:
        print(f"note: the repo also holds {', '.join(published.pickles)}, from before; nothing here loads a pickle")


def push_finished(run_dir: Path, repo_id: str) -> None:
    """Publish at the end of a training run, which is saved whatever becomes of it.

    Raises:
        HubError: As of `push`, with the command that tries again.
    """
    try:
        report(push(run_dir, repo_id))
    except ICASCError as e:
        raise HubError(
            f'`repo_id`: {e} The run is saved; publish it with: timm-icasc push {run_dir} '
            f'{repo_id}') from e
