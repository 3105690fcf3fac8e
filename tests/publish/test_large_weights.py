"""Slow: weights of the size of ViT-L (304 million parameters, 1.2 GB) to the loopback Hub and back, with the commands.

Prints wall time and peak memory of each. The peak is the resident set, which counts the pages of mapped files.
"""
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hub_client import clean_environment
from helpers.hub_server import Hub
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_vit_large_there_and_back(tmp_path, capsys):
    for split in ('train', 'val'):
        for name in ('ant', 'bat'):
            folder = tmp_path / 'images' / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / 'x.png')
            Image.fromarray(np.full((32, 32, 3), 255, dtype=np.uint8)).save(folder / 'y.png')

    def measured(label, *argv, **environment):
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)], env=clean_environment(**environment),
            stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        with capsys.disabled():
            print(
                f'\n{label}: {time.monotonic() - started:.1f} s, processor {usage.ru_utime + usage.ru_stime:.1f} s, '
                f'peak {usage.ru_maxrss / 2 ** 20:.2f} GiB', end='')
        return usage.ru_maxrss * 1024

    run_dir = tmp_path / 'output' / 'x'
    measured(
        'train', ROOT / 'train_timm.py', '--data-dir', tmp_path / 'images', '--model', 'vit_large_patch16_224',
        '--img-size', 32, '--batch-size', 2, '--epochs', 1, '--warmup-epochs', 0, '-j', 0, '--no-icasc',
        '--icasc-eval-images', 0, '--checkpoint-hist', 1, '--output', tmp_path / 'output', '--experiment', 'x')
    with Hub(tmp_path / 'hub', multipart_above=1 << 30) as hub:
        def command(*argv, home):
            return measured(
                f'timm-icasc {argv[0]}', '-m', 'timm_icasc.cli', *argv, HF_ENDPOINT=hub.endpoint,
                HF_HOME=str(tmp_path / home), HF_TOKEN='hf_owner', TMPDIR=str(tmp_path))
        plain = measured('import alone', '-c', 'import timm_icasc.publish.push, timm_icasc.hub.pull')
        pushed = command('push', run_dir, 'me/large', home='one')
        pulled = command('pull', 'me/large', '--to', tmp_path / 'pulled', home='two')
    trained = torch.load(run_dir / 'last.pth.tar', weights_only=False, mmap=True)['state_dict']
    path = tmp_path / 'pulled' / 'model.safetensors'
    with safe_open(path, 'pt') as file:
        assert set(file.keys()) == set(trained)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in trained.items())
    size = path.stat().st_size
    with capsys.disabled():
        print(f'\n{size / 1e9:.2f} GB, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}')
    assert size > 1.2e9
    # One copy of the weights, as mapped pages of a file; never two.
    assert pushed < plain + 1.5 * size and pulled < plain + 1.5 * size
