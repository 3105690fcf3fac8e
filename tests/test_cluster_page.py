"""The scripts of docs/cluster.md, with stand-ins for the commands of SLURM."""
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / 'docs' / 'cluster.md'

# `torchrun` lasts until SIGTERM; `scancel` sends it, as SLURM would to the tasks of srun.
COMMANDS = {
    'scontrol': 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "scontrol $*"; fi',
    'srun': 'exec "$@"',
    'torchrun': 'tail -f /dev/null & trap "kill $!; echo ended; exit 1" TERM; echo $$ > torchrun.pid\n'
                'echo "torchrun $*"; wait $!',
    'scancel': 'echo "scancel $*"; kill -TERM "$(cat torchrun.pid)"',
    'timm-icasc': 'echo "timm-icasc $*"'}


@pytest.fixture
def job(tmp_path):
    """Start a script of the page, the n-th of those that SLURM runs, in a folder of its own."""
    (tmp_path / 'bin').mkdir()
    for name, text in COMMANDS.items():
        (tmp_path / 'bin' / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    scripts = re.findall(r'^```bash\n(#!/bin/bash\n.*?)^```', PAGE.read_text(), re.S | re.M)
    assert len(scripts) == 2

    def start(number, **environment):
        path = f'{tmp_path / "bin"}:{os.environ["PATH"]}'
        return subprocess.Popen(
            ['bash', '-c', scripts[number]], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'PATH': path, 'SLURM_JOB_ID': '7', **environment})
    return start


@pytest.mark.parametrize('begun', [False, True])
def test_a_training_ends_before_its_time_and_is_queued_again(begun, job, tmp_path):
    if begun:
        (tmp_path / 'output' / 'big').mkdir(parents=True)
        (tmp_path / 'output' / 'big' / 'args.yaml').touch()  # all that a run may have when it is killed
    process = job(0, SLURM_NNODES='2', SLURM_JOB_NODELIST='node-[a-b]')
    started = process.stdout.readline()
    assert started.startswith(
        'torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=node-a:29500 --rdzv_id=7-0 '
        '-m timm_icasc.cli train ')
    assert (' --resume auto ' in started) == begun and ('--data-dir' in started) != begun
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ['scancel --signal=TERM 7', 'ended', 'scontrol requeue 7']


def test_each_task_of_an_array_does_its_part(job):
    out, _ = job(1, SLURM_ARRAY_TASK_ID='3').communicate(timeout=60)
    assert out == 'timm-icasc sweep study.yaml --part 3/8\n'
