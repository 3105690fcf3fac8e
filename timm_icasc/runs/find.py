"""Which folders hold runs: the one that a user means, the newest, the finished ones, those that may be averaged."""
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import HubError, ICASCError, one_line, unwritable
from ..foreign_files import read_json
from .files import check_writable
from .folder import (
    ARGUMENTS,
    BEST,
    CHECKPOINT,
    COMPARED,
    FIGURE,
    LAST,
    RECORDED,
    RESULTS,
    RESULTS_TABLE,
    SEGMENTATION,
    SUMMARY,
    WANDB_ID,
    Run,
    open_run,
    saved_at,
)

__all__ = [
    'check_file_to_write', 'check_folders', 'collect_runs', 'collect_segmentations', 'find_runs', 'find_weights',
    'finished_results', 'group_runs', 'has_begun', 'latest_run', 'nothing_to_lose', 'open_runs', 'refuse_folder_of_run',
    'refuse_unwritable',
]


def _read_finished(folder: Path) -> Run | None:
    """The finished run in a folder; None, with a warning, where its files do not tell all of it."""
    try:
        run = open_run(folder)
        if not run.arguments:
            raise ValueError(f'no {ARGUMENTS}')
        run.options, run.measures, run.method, run.signature()
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = one_line(e)
        warnings.warn(f"'{folder}' is left out, its files cannot be read: {reason}", stacklevel=3)
        return None


def find_runs(path: Path) -> list[Path]:
    """The folders of finished or interrupted runs at `path`: itself, or the two of --icasc-compare."""
    if any(path.glob(f'*{CHECKPOINT}')):
        return [path]
    return sorted({file.parent for file in path.glob(f'*/*{CHECKPOINT}') if (file.parent / ARGUMENTS).is_file()})


def find_weights(source: str, best: bool) -> Path:
    """The checkpoint that a user means by the folder of a run, or by a file.

    Args:
        source: Folder or file.
        best: Of a folder, the weights of the best epoch and not those of the last.

    Raises:
        ICASCError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        names = (BEST,) if best else (LAST, BEST)
        weights = next((path / name for name in names if (path / name).is_file()), None)
        if weights is None and (runs := [run for run in find_runs(path) if run != path]):
            raise ICASCError(f"'{source}' holds {len(runs)} runs, name one: {', '.join(map(str, runs))}.")
        if weights is None:
            raise ICASCError(f"'{source}' has no {names[0]}: it is not the folder of a run.")
        return weights
    if not path.is_file():
        raise ICASCError(f"no checkpoint or folder of a run '{source}'.")
    return path


def has_begun(folder: Path) -> bool:
    """Whether a run can be gone on with; one that was stopped before its first checkpoint begins anew."""
    return (folder / ARGUMENTS).is_file() and (folder / LAST).is_file()


def nothing_to_lose(folder: Path) -> bool:
    """Whether a new run may take the place of a folder: at most, a run has left it that never came to a checkpoint."""
    if not folder.is_dir():
        return not folder.exists()
    names = [path.name for path in folder.iterdir() if not path.name.startswith('.')]
    return not names or (ARGUMENTS in names and not any(folder.rglob(f'*{CHECKPOINT}')))


def refuse_folder_of_run(folder: Path) -> None:
    """Raise ICASCError where a folder to write to is that of a run: tables of other kinds have the names of its own.

    Args:
        folder: The `output` of a command.
    """
    if (Path(folder) / ARGUMENTS).is_file():
        raise ICASCError(
            f"`output`: '{folder}' is the folder of a run, whose files could be written over: name another.")


def refuse_unwritable(folder: Path, argument: str) -> None:
    """Raise WriteError where nothing can be written to a folder: better known before the work than after it.

    Args:
        folder: The folder, which need not be there yet.
        argument: What names it.
    """
    try:
        check_writable(folder)
    except OSError as e:
        raise unwritable(folder, argument, e) from e


def check_file_to_write(path: Path, argument: str) -> None:
    """Raise ICASCError where a file that work will end in is a folder, was left by a run, or cannot be written.

    Args:
        path: The file.
        argument: What names it.

    Raises:
        ICASCError: It is one of these.
    """
    path = Path(path).absolute()
    if path.is_file() or not path.exists():  # no device, no pipe
        refuse_unwritable(path.parent, argument)
    if path.is_dir():
        raise ICASCError(f"`{argument}`: '{path}' is a folder: name a file in it.")
    own = (ARGUMENTS, SUMMARY, RESULTS, RESULTS_TABLE, FIGURE, WANDB_ID)
    left = path.name in own or path.name.endswith(CHECKPOINT)
    if left and path.exists() and (path.parent / ARGUMENTS).is_file():
        raise ICASCError(f"`{argument}`: '{path}' was left by a run, and is not written over: name another file.")


def _newest_of(folder: Path) -> list[Path]:
    """The last checkpoints of a run; its args.yaml, where a kill came before the first one; else none."""
    checkpoints = [*folder.glob(LAST), *folder.glob(f'*/{LAST}')]
    left = [file for name in (f'*{CHECKPOINT}', SUMMARY, RESULTS) for file in folder.glob(name)]
    return checkpoints or [folder / ARGUMENTS] * (not left)


def latest_run(root: Path, name: str = '') -> Path | None:
    """The folder, of one run or of an --icasc-compare, whose last checkpoint is the newest; None without one.

    Args:
        root: Folder of runs.
        name: Of the only run to look at; all when empty.
    """
    folders = [root / name] if name else root.glob('*')
    found = {folder: _newest_of(folder) for folder in folders if (folder / ARGUMENTS).is_file()}
    found = {folder: files for folder, files in found.items() if files}
    if len(found) < 2:
        return next(iter(found), None)
    return max(found, key=lambda folder: max(map(saved_at, found[folder])))


def _open_finished(folder: Path) -> Run:
    if not (folder / RESULTS).is_file():
        hint = 'timm-icasc train --resume auto goes on with it' if (folder / ARGUMENTS).is_file() else \
            'a run directory is what timm-icasc train leaves in output/'
        raise HubError(f"'{folder}' holds no finished run (there is no {RESULTS}); {hint}.")
    try:
        run = open_run(folder)
    except (OSError, ValueError) as e:
        raise HubError(f"'{folder}' cannot be read: {one_line(e)}") from e
    try:
        run.metrics, [run.model[name] for name in RECORDED]
    except (KeyError, TypeError, AttributeError) as e:
        raise run.outdated() from e
    return run


def open_runs(folder: Path) -> list[Run]:
    """The finished runs in a folder, to be published: one, or the two of an --icasc-compare job, the ICASC one last.

    Raises:
        HubError: A run is not finished, or does not describe its model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HubError(f"no run directory '{folder}'.")
    compared = [folder / name for name in COMPARED]
    folders = compared if all(path.is_dir() for path in compared) else [folder]
    runs = [_open_finished(path) for path in folders]
    for run in runs:
        if not run.checkpoint.is_file():
            raise HubError(f"'{run.folder}' has no {LAST}; its weights are gone.")
    return runs


def check_folders(folders: Sequence[Path]) -> None:
    """Raise ICASCError where a folder is missing."""
    for folder in folders:
        if not folder.is_dir():
            raise ICASCError(f"no folder '{folder}'.")


def collect_runs(folders: Sequence[Path]) -> list[Run]:
    """Every finished run at or below the folders; what cannot be read is left out with a warning."""
    files = sorted({file.resolve() for folder in folders for file in folder.rglob(RESULTS)})
    return [run for run in (_read_finished(file.parent) for file in files) if run is not None]


def collect_segmentations(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Every finished segmentation.json at or below the folders, with its 'folder'; --cues-only leaves no mean IoU."""
    results = []
    for file in sorted({file.resolve() for folder in folders for file in folder.rglob(f'{SEGMENTATION}.json')}):
        try:
            result = read_json(file)
            if result.get('mIoU') is not None:
                results.append({
                    **result, 'mIoU': float(result['mIoU']), 'attention': result['attention'],
                    'seed': result['seed'], 'folder': str(file.parent)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            warnings.warn(f"'{file}' is left out, it cannot be read: {one_line(e)}", stacklevel=2)
    return results


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone; of two with one seed, the later folder in the alphabet counts."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, run.signature(run.is_baseline)), {})
        if run.seed in group:
            warnings.warn(
                f"'{group[run.seed].folder}' and '{run.folder}' are the same run with the same seed; the "
                f'second counts', stacklevel=2)
        group[run.seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def finished_results(folder: Path, epochs: int) -> dict[str, Any] | None:
    """results.json of a run of so many epochs; None where there is none, or it does not tell all that it should."""
    try:
        run = Run(folder, {}, read_json(folder / RESULTS))
        run.method, run.metrics, run.results['best'], [run.model[name] for name in RECORDED]
        return run.results if run.results['epochs'] == epochs else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
