"""--resume brings back what is in no checkpoint: where --sched plateau was."""
import csv

import pytest
from helpers.hub_fixtures import save_noise
from helpers.runs import train_with_accuracies

PLATEAU = ['--model', 'resnet20_cifar', '--batch-size', '6', '-j', '0', '--no-icasc', '--icasc-eval-images', '0',
           '--sched', 'plateau', '--patience-epochs', '1', '--lr', '0.1', '--decay-rate', '0.5']
ACCURACIES = [2., 3., 1., 1., 1., 4., 1.]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp('images'), train=2, val=1)


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Train with accuracies of a list, epoch by epoch; returns (learning rate of each epoch's end, stdout)."""
    def call(accuracies, *options):
        out = train_with_accuracies(
            monkeypatch, capsys, list(accuracies), '--data-dir', images, '--output', tmp_path, '--experiment', 'x',
            *PLATEAU, *options)
        with open(max(tmp_path.glob('x*'), key=lambda folder: len(folder.name)) / 'summary.csv') as file:
            return [float(row['lr']) for row in csv.DictReader(file)], out
    return call


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
@pytest.mark.parametrize('warmup, noise', [(0, []), (2, []), (0, ['--lr-noise', '0.1'])])
def test_plateau_goes_on_as_if_unbroken(warmup, noise, run, tmp_path):
    options = ['--warmup-epochs', warmup, *noise]
    run(ACCURACIES[:4], '--epochs', 4, *options)
    resumed, out = run(ACCURACIES[4:], '--epochs', 7, '--resume', 'auto')
    assert 'counts anew' not in out
    whole, _ = run(ACCURACIES, '--epochs', 7, *options)  # in x-1
    assert resumed == whole and len({round(rate, 6) for rate in whole}) > 1


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
def test_plateau_without_its_table(run, tmp_path):
    run(ACCURACIES[:4], '--epochs', 4, '--warmup-epochs', 0)
    (tmp_path / 'x' / 'summary.csv').unlink()
    _, out = run(ACCURACIES[4:], '--epochs', 5, '--resume', 'auto')
    assert "last.pth.tar' is no table of its 4 epochs: --sched plateau counts anew" in out
