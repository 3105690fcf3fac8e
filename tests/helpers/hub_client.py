"""A process with timm and timm_icasc loaded that runs each command in a forked child with a fresh cache.

`huggingface_hub` reads its endpoint when it is imported, so a test cannot point its own process at another server;
and loading torch for every command would take most of the time.
"""
import contextlib
import io
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROXIES = ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy')


def clean_environment(**changes: str) -> dict[str, str]:
    """The machine's environment without what it says of a Hub, an account or a proxy, and for this code."""
    kept = {
        name: value for name, value in os.environ.items()
        if name.lower() not in PROXIES and not name.startswith(('HF_', 'HUGGING', 'TRANSFORMERS_'))}
    return {
        **kept, 'OMP_NUM_THREADS': '1', 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))), **changes}


@dataclass
class Result:
    code: int
    out: str
    err: str
    seconds: float = 0.


class Client:
    """Runs `timm-icasc` commands and Python code against one endpoint, each in a process of its own."""

    def __init__(self, endpoint: str, folder: Path):
        self.endpoint, self.folder, self.count = endpoint, Path(folder), 0
        self.folder.mkdir(parents=True)
        seed = '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'  # another than that of the tests
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=clean_environment(HF_ENDPOINT=endpoint, HF_HOME=str(self.folder / 'home'), PYTHONHASHSEED=seed))
        self.ready = False

    def cache(self) -> Path:
        self.count += 1
        return self.folder / f'cache-{self.count}'

    def start(
            self, *argv, code: str = '', cache: Path | None = None, token: str = '', endpoint: str = '',
            **environment: str) -> int:
        """Begin a command, or `code`; returns the process id."""
        request = {
            'argv': [str(a) for a in argv], 'code': code, 'cache': str(cache or self.cache()),
            'endpoint': endpoint or self.endpoint, 'environment': {'HF_TOKEN': token, **environment}}
        self.ready = self.ready or self.process.stdout.readline() == 'ready\n'
        self.started = time.monotonic()
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())['pid']

    def finish(self) -> Result:
        result = Result(**json.loads(self.process.stdout.readline()), seconds=time.monotonic() - self.started)
        if result.code:
            print(f"\n{result.seconds:.1f} s: {(result.err.strip() or 'killed').splitlines()[-1]}")  # pytest -n 0 -s
        return result

    def __call__(self, *argv, **kwargs) -> Result:
        self.start(*argv, **kwargs)
        return self.finish()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def _child(request: dict, path: str) -> None:
    from huggingface_hub import constants

    from timm_icasc import cli
    os.environ.update(request['environment'])
    tempfile.tempdir = None  # it may have been looked up already, in the place of before
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]
    constants.HF_HUB_CACHE, constants.ENDPOINT = request['cache'], request['endpoint']
    constants.HF_HUB_OFFLINE = os.environ.get('HF_HUB_OFFLINE') == '1'
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if request['code']:
                exec(request['code'], {})
                code = 0
            else:
                code = cli.main(request['argv'])
        except SystemExit as e:
            code = e.code
        except BaseException:
            code = 1
            traceback.print_exc()
    Path(path).write_text(json.dumps({'code': code, 'out': out.getvalue(), 'err': err.getvalue()}))
    os._exit(0)


def _serve() -> None:
    import tempfile

    import timm_icasc  # noqa: F401
    from timm_icasc.cli import card, pull, push  # noqa: F401
    from timm_icasc.publish import card as cards
    read, paper = cards.read_yaml, cards.read_yaml(cards.PAPER)  # once, and not for every card
    cards.read_yaml = lambda path: paper if path == cards.PAPER else read(path)
    # Nobody here speaks https: the certificates need not be read for every child's client.
    ssl.SSLContext.load_verify_locations = lambda *args, **kwargs: None
    pause = time.sleep
    time.sleep = lambda seconds: pause(min(seconds, 0.01))  # the Hub's client waits seconds before it tries again
    print('ready', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            path = os.path.join(folder, 'result')
            Path(path).unlink(missing_ok=True)
            pid = os.fork()
            if not pid:
                _child(json.loads(line), path)
            print(json.dumps({'pid': pid}), flush=True)
            _, status = os.waitpid(pid, 0)
            result = json.loads(Path(path).read_text()) if not status else {
                'code': os.waitstatus_to_exitcode(status), 'out': '', 'err': ''}
            print(json.dumps(result), flush=True)


if __name__ == '__main__':
    _serve()
    os._exit(0)  # torch takes seconds to leave
