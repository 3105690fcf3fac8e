"""One loopback Hub and one client process for all tests; each test has repos of its own, and an empty cache.

And runs of train_timm.py on a few images of noise: for the flow of files, not for learning.
"""
import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub_client import Client
from helpers.hub_server import Hub
from helpers.runs import blank_figures
from PIL import Image

import train_timm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def hub_of_the_session(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp('hub')) as hub:
        yield hub


@pytest.fixture
def hub(hub_of_the_session):
    yield hub_of_the_session
    hub_of_the_session.faults.clear()
    hub_of_the_session.reached.clear()
    hub_of_the_session.released.clear()


@pytest.fixture(scope='session')
def client(hub_of_the_session, tmp_path_factory):
    client = Client(hub_of_the_session.endpoint, tmp_path_factory.mktemp('client') / 'x')
    yield client
    client.close()


@pytest.fixture(scope='session')
def nowhere():
    """An endpoint without a server: its port is taken, so that nothing else begins to listen there."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{taken.getsockname()[1]}'


def save_noise(root, seed=0, **counts):
    """An image folder of three classes, so many images of 32-pixel noise a class in each split."""
    generator = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in ('ant', 'bat', 'cat'):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    return root


@pytest.fixture(scope='session')
def noise(tmp_path_factory):
    """The folder of three classes, 12 training and 6 validation images."""
    return save_noise(tmp_path_factory.mktemp('noise'), train=4, val=2)


@pytest.fixture(scope='session')
def noise_options(noise):
    """Arguments of train_timm.py: one epoch on `noise`."""
    return [
        'train_timm.py', '--data-dir', str(noise), '--epochs', '1', '--warmup-epochs', '0', '-j', '0', '--lr', '0.1',
        '--batch-size', '4', '--icasc-eval-images', '4', '--icasc-order', '1', '--seed', '7']


@pytest.fixture(scope='session')
def train_on_noise(noise_options, tmp_path_factory):
    """Call with further options; returns the run directory."""
    def call(*options):
        folder, argv = tmp_path_factory.mktemp('output'), sys.argv
        sys.argv = [*noise_options, '--output', str(folder), '--experiment', 'x', *map(str, options)]
        try:
            with blank_figures():
                assert train_timm.main() == 0
        finally:
            sys.argv = argv
        return folder / 'x'
    return call


@pytest.fixture(scope='session')
def multilabel(train_on_noise, noise, tmp_path_factory):
    """A run on images of several classes each."""
    root, labels = tmp_path_factory.mktemp('multilabel'), ('1,0,1', '0,1,0', '1,1,0', '0,0,1')
    for split in ('train', 'val'):
        shutil.copytree(noise / split, root / split)
        files = sorted((root / split).rglob('*.png'))
        rows = [f'{file.relative_to(root)},{labels[i % 4]}' for i, file in enumerate(files)]
        (root / f'{split}.csv').write_text('\n'.join(['image,ant,bat,cat', *rows]))
    return train_on_noise('--data-dir', root, '--dataset', 'multilabel', '--val-split', 'val', '--smoothing', 0)


@pytest.fixture(scope='session')
def compared(train_on_noise):
    """The folder of an --icasc-compare job."""
    return train_on_noise('--icasc-compare')


@pytest.fixture(scope='session')
def averaged(train_on_noise):
    """A run that keeps an average of its weights."""
    return train_on_noise('--model-ema', '--model-ema-decay', '0.5', '--mean', 0.1, 0.2, 0.3, '--crop-pct', 0.9)


@pytest.fixture(scope='session')
def falling(train_on_noise):
    """A run whose last epoch is worse than its second, and which keeps an average of its weights."""
    run = train_on_noise('--epochs', 3, '--model-ema', '--model-ema-decay', '0.5', '--no-icasc', '--lr', 0.02)
    results = json.loads((run / 'results.json').read_text())
    assert results['best']['epoch'] == 1 and results['best']['top1'] > results['last']['eval_top1']
    return run
