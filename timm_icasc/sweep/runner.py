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
from ..runs.folder import RESULTS, has_begun
from ..runs.lock import alone_in
from .run_record import make_record
from .study import PlannedRun, Study

__all__ = ['Outcome', 'carry_out', 'environment_of']

ROOT = Path(__file__).parents[2]  # of a checkout, or the folder of the installed packages

COMMAND = ('-m', f'{__package__.partition(".")[0]}.cli')

POLL = 0.2  # seconds

LEAST = 1 << 20  # bytes that must be free

PATIENCE = 120  # seconds that a stopped run may take to leave


@dataclass
class Outcome:
    """What a session came to: names of runs that finished and of those that failed, each with its last lines."""
    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


class _Work:
    """One run: its training, then its evaluation, then its record."""

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
        return [*COMMAND, 'eval', str(self.folder), '--robustness', *self.study.evaluation]

    def start(self, words: Sequence[str]) -> None:
        with open(self.log, 'ab') as log:
            # A session of its own: Ctrl-C is the sweep's to answer, which then stops its runs.
            self.process = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment,
                start_new_session=True, pass_fds=[self.lock])

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
            with open(self.log, 'a') as log:
                log.write(f'{e.line}\n')
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

    def last_lines(self, count: int = 8) -> str:
        lines = self.log.read_text(errors='replace').splitlines()[-count:]
        if shutil.disk_usage(self.output).free < LEAST:
            lines.append(f"the disk is full: make room in '{self.output}'")  # perhaps the log had no room for it
        return '\n'.join(printable(line) for line in lines if line.strip())


def environment_of(jobs: int) -> dict[str, str]:
    """This process's, with the runs' share of the cores, and this code before any that is installed."""
    installed = str(ROOT) in (sysconfig.get_path('purelib'), sysconfig.get_path('platlib'))
    paths = [*([] if installed else [str(ROOT)]), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {
        'OMP_NUM_THREADS': str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ,
        **({'PYTHONPATH': os.pathsep.join(paths)} if paths else {})}


def carry_out(
        study: Study,
        runs: Sequence[PlannedRun],
        output: Path,
        jobs: int,
        seconds: float,
        stop_asked: Callable[[], bool],
        on_change: Callable[[list[str], Outcome], None],
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
    """
    outcome, waiting, deadline = Outcome(), list(runs), time.monotonic() + seconds
    environment, under_way = environment_of(jobs), []
    # Runs inherit the lock: those of a killed sweep are not begun again while they are still at work.
    with alone_in(output, 'another sweep') as lock:
        try:
            while waiting or under_way:
                if stop_asked() or time.monotonic() > deadline:
                    outcome.stopped = 'asked to' if stop_asked() else 'the time is up'
                    break
                changed = False
                while waiting and len(under_way) < jobs:
                    under_way.append(_Work(study, waiting.pop(0), output, environment, lock))
                    changed = True
                for work in list(under_way):
                    success = work.advance()
                    if success is None:
                        continue
                    under_way.remove(work)
                    changed = True
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
