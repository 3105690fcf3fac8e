"""From a finished run, or a folder of hub_cards/, to a verified commit on the Hub."""
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..data import is_public
from ..errors import HubError, ICASCError, WriteError, one_line
from ..foreign_files import read_yaml
from ..foreign_text import printable, shell_command
from ..hub.failures import endpoint
from ..hub.model_folder import (
    CONFIG,
    FIGURE,
    FILES,
    METADATA_KEY,
    OPTIONS,
    README,
    WEIGHTS,
    check_folder,
    read_header,
)
from ..hub.tags import record_path
from ..hub.temporary_folder import temporary_folder
from ..hub.upload import Upload, publish, repo_name
from ..runs.files import write_text
from ..runs.local_paths import find_local_path
from ..runs.tables import write_json
from .card import render_run, render_sources
from .export import export, is_of_public_images, open_measured_runs, refuse_links, weight_tag

__all__ = ['push', 'push_finished']


def _chosen_figure(folder: Path, public: bool, wanted: bool | None) -> Path | None:
    """The figure of a folder, if it is to be published: where it is asked for, or shows a data set that is public.

    Args:
        folder: What the user named; of no other folder a figure is taken.
        public: Whether its images are.
        wanted: Whether it was asked for; None where nothing was said.

    Raises:
        HubError: It was asked for, and is not there.
    """
    figure = folder / FIGURE
    if wanted and not figure.is_file():
        raise HubError(f"`figure`: '{folder}' holds no {FIGURE}.")
    return figure if wanted or wanted is None and figure.is_file() and public else None


def _read_ready(folder: Path) -> bool:
    """Check that an exported folder can be published as it is; returns whether it is of public images.

    Raises:
        HubError: A file is a link, is damaged, or says where something lies on the machine that it was made on.
    """
    refuse_links(*(folder / name for name in FILES))
    config = check_folder(folder, str(folder))[0]
    try:
        options = read_yaml(folder / OPTIONS) if (folder / OPTIONS).is_file() else {}
        with safe_open(folder / WEIGHTS, 'pt') as file:
            header = read_header(file)
    except (OSError, ValueError, SafetensorError) as e:
        raise HubError(f"'{folder}' cannot be read: {one_line(e)}") from e
    options = options if isinstance(options, dict) else {}
    written = ((CONFIG, config.get(METADATA_KEY)), (OPTIONS, options), (WEIGHTS, header))
    for name, content in written:
        found = find_local_path(content)
        if found is not None:
            raise HubError(
                f"'{folder / name}' names a path of the machine that it was made on ({found[:100]!r}): publish the "
                f'folder of the run itself, which leaves such paths out.')
    return is_public(options.get('dataset'), config.get('label_names'))


def _card_sources(folder: Path) -> Path | None:
    """What people have written of a folder of hub_cards/, beside it; None of another folder."""
    folder = folder.resolve()
    path = folder.with_name(f'{folder.name}.yaml')
    return path if path.is_file() else None


def _stage_ready(source: Path, folder: Path, repo_id: str, figure: Path | None) -> dict[str, Path]:
    """The files of an exported folder by name; a card that has to be written goes to `folder`."""
    files = {
        name: source / name for name in FILES
        if (source / name).is_file() and (name != FIGURE or figure is not None)}
    sources, text = _card_sources(source), None
    if sources is not None:
        text = render_sources(sources, f'hf-hub:{repo_id}', figure is not None)
    elif README in files and figure is None:
        text = re.sub(rf'^!\[.*\]\({FIGURE}\)\n+', '', files[README].read_text(encoding='utf-8'), flags=re.M)
    if text is not None:
        files[README] = folder / README
        write_text(files[README], text)
    return files


def _note_place(published: Upload, source: Path) -> None:
    """Write beside a folder of hub_cards/ where its weight tag finds the weights."""
    record = {'repo_id': published.repo_id, 'revision': published.commit, 'sha256': published.sha256}
    path = record_path(source.resolve())
    try:
        write_json(path, record)
    except WriteError as e:
        raise HubError(
            f"published as {published.repo_id}@{published.commit}, but '{path}' cannot be written "
            f'({e.strerror}), so that the weight tag does not find it; run the command again.') from e


def push(
        source: Path,
        repo_id: str,
        license: str | None = None,
        *,
        private: bool = False,
        figure: bool | None = None,
        class_names: bool | None = None,
        best: bool = False,
) -> Upload:
    """Publish `source`; see the command's description.

    Args:
        source: Run directory (of an --icasc-compare job, its ICASC run), or an exported folder with config.json. None
            of its files may be a link.
        repo_id: 'OWNER/NAME', or 'NAME' for the token's owner.
        license: Identifier of the license of the weights; by default what `export` says.
        private: Whether a new repo is private.
        figure: Whether attention.png is published, which shows validation images; None where they are of a public
            data set, and the weights those of the last epoch, which it is of.
        class_names: Whether the configuration of a run names its classes; None where the data set is a public one.
        best: Publish the weights of the best epoch of each run, not of the last.

    Raises:
        HubError: The run is not finished, or the Hub, the network or a check refuses.
        ICASCError: Its checkpoint cannot be read.
    """
    source = Path(source)
    ready = (source / CONFIG).is_file() and (source / WEIGHTS).is_file()
    if ready and license:
        raise HubError(f"`license`: '{source}' has one in its {CONFIG}.")
    if ready and class_names is False:
        raise HubError(f"`class_names`: '{source}' goes up as it is; take 'label_names' out of its {CONFIG} yourself.")
    if ready and best:
        raise HubError(f"`best`: '{source}' holds the weights of one epoch; leave it out.")
    if best and figure:
        raise HubError(f'`figure`: {FIGURE} is of the last epoch, not of the best; leave out `figure` or `best`.')
    runs = [] if ready else open_measured_runs(source, best)
    public = _read_ready(source) if ready else is_of_public_images(runs[-1])
    if class_names is None:
        class_names = public
    chosen = _chosen_figure(source, public, False if best else figure)
    repo_id = repo_name(repo_id)
    with temporary_folder() as folder:
        if ready:
            files = _stage_ready(source, folder, repo_id, chosen)
        else:
            export(
                runs[-1], folder, weight_tag(runs[-1]), license, figure=chosen,
                class_names=class_names)
            write_text(folder / README, render_run(runs[-1], runs, folder, repo_id))
            files = {name: folder / name for name in FILES if (folder / name).is_file()}
        published = publish(files, repo_id, private)
    if ready and _card_sources(source) is not None:
        _note_place(published, source)
    return published


def report(published: Upload) -> None:
    print(
        f'{endpoint()}/{printable(published.repo_id)}/tree/{published.tag}\n'
        f'commit {published.commit}, {WEIGHTS} sha256 {published.sha256}\n'
        f"timm.create_model({f'hf-hub:{published.repo_id}@{published.tag}'!r}, pretrained=True)\n"
        f"published: {', '.join(map(printable, published.files))}")
    if published.pickles:
        pickles = ', '.join(map(printable, published.pickles))
        print(f'note: the repo also holds {pickles}, from before; nothing here loads a pickle')


def push_finished(run_dir: Path, repo_id: str, license: str | None = None) -> None:
    """Publish at the end of a training run, which is saved whatever becomes of it.

    Raises:
        HubError: As of `push`, with the command that tries again.
    """
    try:
        report(push(run_dir, repo_id, license))
    except ICASCError as e:
        named = ['--license', license] if license else []
        command = shell_command(['timm-icasc', 'push', str(run_dir), repo_id, *named])
        raise HubError(f'`repo_id`: {e} The run is saved; publish it with: {command}') from e
