"""`python ...` as a fork of the tests' process, where torch is loaded: its signals and exit codes without its imports.

No process of `multiprocessing`, by whose frames `timm_icasc.training.interrupt` knows a process that is being forked.
"""
import multiprocessing.util
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from types import SimpleNamespace


class Forked:
    """As much of `subprocess.Popen([sys.executable, *words])` as is asked for, of `-m MODULE`, `-c CODE` or `FILE`.

    Its stdout is a pipe of text and its stderr a file of its own, where none are given.
    """

    def __init__(
            self, command, stdin=None, stdout=None, stderr=None, env=None, start_new_session=False, pass_fds=()):
        self.words, self.returncode = list(map(str, command[1:])), None
        reading, writing = (None, stdout.fileno()) if stdout else os.pipe()
        self._err = stderr or tempfile.TemporaryFile('w+')
        self.pid = os.fork()
        if not self.pid:
            if start_new_session:
                os.setsid()
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            os.dup2(writing, 1)
            os.dup2(self._err.fileno(), 2)
            self._become()
        if not stdout:
            os.close(writing)
            self.stdout = open(reading)

    def _become(self):
        sys.stdin = open(os.devnull)
        sys.stdout, sys.stderr = (open(number, 'w', 1, closefd=False) for number in (1, 2))  # line by line
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 0
        try:
            if self.words[0] == '-m':
                sys.argv = self.words[1:]
                runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
            elif self.words[0] == '-c':
                sys.argv = ['-c', *self.words[2:]]
                exec(self.words[1], {'__name__': '__main__'})
            else:
                sys.argv = self.words
                runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        try:
            multiprocessing.util._exit_function()  # as at an exit: ends what loads data
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def poll(self):
        return self._collect(os.WNOHANG)

    def _collect(self, options=0):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and timeout:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.words, timeout)
            finally:
                os.close(descriptor)
        return self._collect()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout):
        """What is left of its stdout, and all of its stderr; it has so many seconds to leave."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._err.seek(0)
        with self.stdout, self._err:
            return self.stdout.read(), self._err.read()


def fork_in(module, monkeypatch, *names):
    """Commands that a module starts by `subprocess.Popen` are forks where one of these names is among their words."""
    original = module.subprocess

    def start(command, **options):
        forked = any(name in command for name in names)
        return (Forked if forked else original.Popen)(command, **options)

    monkeypatch.setattr(module, 'subprocess', SimpleNamespace(**{**vars(original), 'Popen': start}))
