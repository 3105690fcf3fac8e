"""The runs of a study as processes: several at a time, stopped cleanly, gone on with in the next session."""
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ICASCError
from ..foreign_text import printable
from ..runs.find import has_begun, nothing_to_lose
from ..runs.folder import RESULTS
from ..runs.lock import alone_in, try_lock
from ..training.device import usable_cores
from .run_record import make_record, record_path
from .study import PlannedRun, Study

__all__ = ['Outcome', 'carry_out', 'environment_of']

ROOT = Path(__file__).parents[2]  # of a checkout, or the folder of the installed packages

COMMAND = ('-m', f'{__package__.partition(".")[0]}.cli')

POLL = 0.2  # seconds

LEAST = 1 << 20  # bytes that must be free

PATIENCE = 120  # seconds that a stopped run may take to leave


@dataclass
class Outcome:
    """What a session came to: names of runs that finished, that failed, with the last lines, and of others' runs.

    `warned` has what those that are over have warned of.
    """
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    stopped: str | None = None
    warned: dict[str, list[str]] = field(default_factory=dict)


class _Elsewhere(Exception):
    """Another sweep is at work on the run, or has just done it."""


class _Work:
    """One run: its training, then its evaluation, then its record.

    Its log is open, and locked, until `close`, or until the last of its processes has left: nobody else begins it.

    Raises:
        _Elsewhere: It is left to another sweep.
    """

    def __init__(
            self,
            study: Study,
            run: PlannedRun,
            output: Path,
            environment: dict[str, str],
            lock: int,
    ):
        self.study, self.run, self.output = study, run, output
        self.environment, self.lock = environment, lock
        self.folder, self.log = output / run.name, output / f'{run.name}.log'
        self.process: subprocess.Popen | None = None
        self.file = open(self.log, 'ab')
        if try_lock(self.file.fileno()) is False or record_path(study, run).is_file():
            self.close()
            raise _Elsewhere
        self.trained = (self.folder / RESULTS).is_file()
        self.start(self.evaluation() if self.trained else self.training())

    def training(self) -> list[str]:
        begun = has_begun(self.folder)
        if not begun:
            shutil.rmtree(self.folder, ignore_errors=True)
        return [
            *COMMAND, 'train', *self.run.arguments, '--output', str(self.output), '--experiment', self.run.name,
            *(['--resume', 'auto'] if begun else [])]

    def evaluation(self) -> list[str]:
        place = ['--data-dir', self.run.data_dir] if self.run.data_dir else []  # which may have moved since
        return [*COMMAND, 'eval', str(self.folder), '--robustness', *place, *self.study.evaluation]

    def start(self, words: Sequence[str]) -> None:
        # A session of its own: Ctrl-C is the sweep's to answer, which then stops its runs.
        self.process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=self.file, stderr=self.file,
            env=self.environment, start_new_session=True, pass_fds=[self.lock])

    def close(self) -> None:
        self.file.close()

    def advance(self) -> bool | None:
        """None while there is something to wait for, then whether the run succeeded."""
        code = self.process.poll()
        if code is None:
            return None
        if code:
            return False
        if not self.trained:
            self.trained = True
            self.start(self.evaluation())
            return None
        try:
            make_record(self.study, self.run, self.folder, self.environment)
        except ICASCError as e:
            self.file.write(f'{e.line}\n'.encode(errors='surrogateescape'))
            self.file.flush()
            return False
        return True

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def leave(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()

    def _lines(self) -> list[str]:
        return self.log.read_text(errors='replace').splitlines()

    def warnings(self) -> list[str]:
        """What the run has warned of."""
        return [printable(line) for line in self._lines() if line.startswith('warning: ')]

    def last_lines(self) -> str:
        lines = self._lines()[-8:]
        if shutil.disk_usage(self.output).free < LEAST:
            lines.append(f"the disk is full: make room in '{self.output}'")  # perhaps the log had no room for it
        return '\n'.join(printable(line) for line in lines if line.strip())


def _check_folders(runs: Sequence[PlannedRun], output: Path) -> None:
    """Raise ICASCError where a run that begins anew would remove what it has not left itself."""
    for run in runs:
        folder = output / run.name
        if not has_begun(folder) and not nothing_to_lose(folder):
            raise ICASCError(
                f"'{folder}' is where '{run.name}' is to go, and holds other files, but no run to go on with: "
                f'move it away, or name another `output`.')


def environment_of(jobs: int) -> dict[str, str]:
    """This process's, with the runs' share of the cores, and this code before any that is installed."""
    installed = str(ROOT) in (sysconfig.get_path('purelib'), sysconfig.get_path('platlib'))
    paths = [*([] if installed else [str(ROOT)]), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {
        'OMP_NUM_THREADS': str(max(1, usable_cores() // jobs)), **os.environ,
        'WORLD_SIZE': '1',  # a run is one process, also in a job of SLURM that has more
        **({'PYTHONPATH': os.pathsep.join(paths)} if paths else {})}


def carry_out(
        study: Study,
        runs: Sequence[PlannedRun],
        output: Path,
        jobs: int,
        seconds: float,
        stop_asked: Callable[[], bool],
        on_change: Callable[[list[str], Outcome], None],
        part: bool = False,
) -> Outcome:
    """Do the runs, `jobs` at a time, in their order.

    Args:
        study: What the runs belong to.
        runs: Those without a record.
        output: Folder of the runs' folders and logs.
        jobs: Number of runs at a time.
        seconds: After this time every run is stopped; it loses its unfinished epoch.
        stop_asked: Whether to stop now.
        on_change: Called with the names of those under way, and the outcome so far, when a run begins or ends.
        part: Other sweeps may do other runs of the study in the same folder at the same time.

    Raises:
        ICASCError: Another sweep is at work in `output`, or the folder of a run holds what is not of it.
    """
    _check_folders(runs, output)
    outcome, waiting, deadline = Outcome(), list(runs), time.monotonic() + seconds
    environment, under_way = environment_of(jobs), []
    # Runs inherit the lock: those of a killed sweep are not begun again while they are still at work.
    with alone_in(output, 'another sweep', shared=part) as lock:
        try:
            while waiting or under_way:
                if stop_asked() or time.monotonic() > deadline:
                    outcome.stopped = 'asked to' if stop_asked() else 'the time is up'
                    break
                changed = False
                while waiting and len(under_way) < jobs:
                    run, changed = waiting.pop(0), True
                    try:
                        under_way.append(_Work(study, run, output, environment, lock))
                    except _Elsewhere:
                        outcome.elsewhere.append(run.name)
                for work in list(under_way):
                    success = work.advance()
                    if success is None:
                        continue
                    under_way.remove(work)
                    work.close()
                    changed = True
                    outcome.warned[work.run.name] = work.warnings()
                    if success:
                        outcome.finished.append(work.run.name)
                    else:
                        outcome.failed[work.run.name] = work.last_lines()
                if changed:
                    on_change([work.run.name for work in under_way], outcome)
                time.sleep(POLL)
        finally:
            for work in under_way:
                work.stop()
            for work in under_way:
                work.leave()
    return outcome
