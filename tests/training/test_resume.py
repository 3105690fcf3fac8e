"""--resume brings back what is in no checkpoint, and refuses what would mix two runs in one."""
import csv
import json
import shutil

import pytest
import torch
from helpers.hub_fixtures import save_noise
from helpers.runs import TINY, train_in_process, train_with_accuracies
from PIL import Image

from timm_icasc.cli import main
from timm_icasc.runs.folder import open_run

PLATEAU = ['--model', 'resnet20_cifar', '--batch-size', '6', '-j', '0', '--no-icasc', '--icasc-eval-images', '0',
           '--sched', 'plateau', '--patience-epochs', '1', '--lr', '0.1', '--decay-rate', '0.5']
ACCURACIES = [2., 3., 1., 1., 1., 4., 1.]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return save_noise(tmp_path_factory.mktemp('images'), train=2, val=1)


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """Train with accuracies of a list, epoch by epoch; returns (learning rate of each epoch, stdout)."""
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


@pytest.fixture
def train(images, tmp_path, monkeypatch, capsys):
    """Train the run 'x' in earnest; returns (exit code, stdout, stderr)."""
    return lambda *options: train_in_process(
        monkeypatch, capsys, '--data-dir', images, '--output', tmp_path, '--experiment', 'x', *TINY, *options)


@pytest.mark.parametrize('option, before, now', [
    ('--eval-metric', 'top5', 'top1'), ('--eval-metric', 'loss', 'top5'), ('--val-split', 'validation', 'train')])
def test_epochs_are_ranked_by_one_measure_of_one_split(option, before, now, train, tmp_path):
    """results.json told the best top-5 of the epochs before as the best top-1."""
    assert train('--epochs', 2, option, before)[0] == 0
    left = (tmp_path / 'x' / 'results.json').read_text()
    code, _, err = train('--resume', 'auto', '--epochs', 3, option, now)
    assert code == 2 and f'{option} was {before} in the epochs that the run has done' in err
    assert f'leave {option} {now} out' in err and err.count('\n') == 1
    assert (tmp_path / 'x' / 'results.json').read_text() == left
    assert train('--resume', 'auto', '--epochs', 3)[0] == 0
    best = json.loads((tmp_path / 'x' / 'results.json').read_text())['best']
    assert list(best)[0] == (before if option == '--eval-metric' else 'top1')


def test_an_evaluation_of_weights_that_are_gone_is_none_of_the_run(train, tmp_path):
    """As many epochs as before, trained anew from an earlier one: `timm-icasc paper` took the old KS margin."""
    folder = tmp_path / 'x'
    assert train('--epochs', 2)[0] == 0
    assert main(['eval', str(folder), '-j', '0']) == 0
    assert {'top1', 'ks'} <= set(open_run(folder).measures)
    assert train('--resume', folder / 'checkpoint-0.pth.tar', '--lr', 0.5)[0] == 0
    with pytest.warns(UserWarning, match='of other weights.*writes it anew'):
        assert 'ks' not in open_run(folder).measures
    assert main(['eval', str(folder), '-j', '0']) == 0
    assert 'ks' in open_run(folder).measures


def test_the_time_is_that_of_all_epochs(train, tmp_path):
    """It was that of the last session, beside the number of all epochs."""
    assert train('--epochs', 2)[0] == 0
    assert train('--resume', 'auto', '--epochs', 3)[0] == 0
    with open(tmp_path / 'x' / 'summary.csv') as file:
        seconds = [float(row['eval_seconds']) for row in csv.DictReader(file)]
    found = json.loads((tmp_path / 'x' / 'results.json').read_text())
    assert len(seconds) == found['epochs'] == 3 and found['wall_time'] == pytest.approx(sum(seconds))


@pytest.mark.parametrize('left', [None, 0, 1])
def test_epochs_that_the_table_has_lost_are_told(left, train, tmp_path):
    assert train('--epochs', 2)[0] == 0
    table = tmp_path / 'x' / 'summary.csv'
    lines = table.read_text().splitlines()
    if left is None:
        table.unlink()
    else:
        table.write_text('\n'.join(lines[:1 + left]) + '\n')
    (tmp_path / 'x' / 'results.json').unlink()
    code, out, _ = train('--resume', 'auto', '--epochs', 3)
    assert code == 0 and f"summary.csv' tells of {left or 0} of the 2 epochs done: tables and figures will lack" in out
    assert json.loads((tmp_path / 'x' / 'results.json').read_text())['wall_time'] is None


def test_numbers_of_the_optimiser_are_those_of_now(train, tmp_path):
    """Those of the checkpoint were taken, and args.yaml told the new ones."""
    assert train('--epochs', 1, '--opt', 'momentum', '--head-lr-scale', 2, '--opt-kwargs', 'dampening=0.1')[0] == 0
    assert train('--resume', 'auto', '--epochs', 2, '--weight-decay', 0.3, '--momentum', 0.5, '--head-lr-scale', 5,
                 '--opt-kwargs', 'dampening=0.2')[0] == 0
    groups = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)['optimizer']['param_groups']
    values = {name: {group[name] for group in groups} for name in ('weight_decay', 'momentum', 'lr_scale', 'dampening')}
    assert values == {'weight_decay': {0., 0.3}, 'momentum': {0.5}, 'lr_scale': {1., 5.}, 'dampening': {0.2}}


def test_another_optimiser_is_refused(train):
    """What its first step makes of the state of the one before is an error of torch."""
    assert train('--epochs', 1)[0] == 0
    code, _, err = train('--resume', 'auto', '--epochs', 2, '--opt', 'lion')
    assert code == 2 and '--opt was sgd so far' in err and err.count('\n') == 1


@pytest.mark.parametrize('before, now', [(['--icasc'], '--no-icasc'), (['--no-icasc'], '--icasc')])
def test_a_run_stays_with_its_method(before, now, train, tmp_path):
    """results.json called a run by its last epochs alone, and it was published as such."""
    assert train('--epochs', 1, *before)[0] == 0
    left = content(tmp_path / 'x')
    code, _, err = train('--resume', 'auto', '--epochs', 2, now)
    assert code == 2 and f'the epochs so far are {before[0]}, these would be {now}' in err and err.count('\n') == 1
    assert content(tmp_path / 'x') == left


@pytest.mark.parametrize('option', [['--weight-decay', 0], ['--layer-decay', 0.9], ['--freeze-until', 'layer2']])
def test_parameters_stay_in_their_groups(option, train):
    """torch said that the number, or the size, of the groups does not match."""
    assert train('--epochs', 1, '--weight-decay', 0.1)[0] == 0
    code, _, err = train('--resume', 'auto', '--epochs', 2, *option)
    assert code == 2 and f'{option[0]} was ' in err and f'and is {option[1]}' in err and err.count('\n') == 1
    assert 'or begin a new run from the weights with --initial-checkpoint' in err


@pytest.mark.parametrize('option, before, now', [
    ('--icasc-order', 1, 2), ('--icasc-attention', 'ach', 'grad_cam'), ('--loss', 'ce', 'bce')])
def test_and_with_what_the_method_is_made_of(option, before, now, train, tmp_path):
    assert train('--epochs', 1)[0] == 0
    left = content(tmp_path / 'x')
    code, _, err = train('--resume', 'auto', '--epochs', 2, option, now)
    assert code == 2 and f'{option} was {before} in the epochs so far' in err and err.count('\n') == 1
    assert content(tmp_path / 'x') == left


@pytest.mark.parametrize('option, before, now', [
    ('--mean', [0.2, 0.2, 0.2], [0.5, 0.5, 0.5]), ('--interpolation', ['bilinear'], ['nearest']), ('--seed', [1], [2]),
    ('--icasc-weights', [1.0, 1.0, 1.0], [0.3, 0.3, 0.3])])
def test_what_keeps_epochs_from_being_compared_is_told(option, before, now, train):
    """--seed draws other images for --limit-train."""
    few = ['--limit-train', 1, '--batch-size', 3]
    assert train('--epochs', 1, *few, option, *before)[0] == 0
    code, out, _ = train('--resume', 'auto', '--epochs', 2, *few, option, *now)
    told = [values if len(values) > 1 else values[0] for values in (before, now)]
    assert code == 0
    assert f'warning: {option} was {told[0]} so far, and is {told[1]} now: the epochs do not compare' in out


def test_other_images_are_told_and_the_same_ones_may_lie_elsewhere(images, train, tmp_path):
    assert train('--epochs', 1)[0] == 0
    moved = shutil.copytree(images, tmp_path / 'moved')
    code, out, _ = train('--resume', 'auto', '--epochs', 2, '--data-dir', moved)
    assert code == 0 and 'do not compare' not in out
    for file in (moved / 'val').rglob('*.png'):
        Image.new('RGB', (16, 16), (9, 9, 9)).save(file)
    code, out, _ = train('--resume', 'auto', '--epochs', 3, '--data-dir', moved)
    assert code == 0 and 'warning: --val-split validation has other images than so far' in out
    assert 'train-split' not in out


def test_another_size_of_the_images_is_told(train):
    assert train('--epochs', 1)[0] == 0
    code, out, _ = train('--resume', 'auto', '--epochs', 2, '--img-size', 24)
    assert code == 0 and 'warning: --img-size was 16 so far, and is 24 now: the epochs do not compare' in out
    code, out, _ = train('--resume', 'auto', '--epochs', 3, '--img-size', 24)
    assert code == 0 and 'do not compare' not in out


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_checkpoint_goes_on_in_another_folder(train, tmp_path):
    """As in timm; it went on in its own, over what the run had come to."""
    assert train('--epochs', 2)[0] == 0
    before = content(tmp_path / 'x')
    assert train('--resume', tmp_path / 'x' / 'checkpoint-0.pth.tar', '--experiment', 'y', '--epochs', 2)[0] == 0
    assert content(tmp_path / 'x') == before
    with open(tmp_path / 'y' / 'summary.csv') as file:
        assert [row['epoch'] for row in csv.DictReader(file)] == ['1']


def test_weights_are_no_run_to_go_on_with(train, tmp_path):
    """A run began anew without a word, in the folder of the weights where args.yaml lay beside them."""
    assert train('--epochs', 1)[0] == 0
    before = content(tmp_path / 'x')
    weights = tmp_path / 'x' / 'weights.pth'
    torch.save(open_run(tmp_path / 'x').load_weights(), weights)
    code, _, err = train('--resume', weights, '--epochs', 2)
    assert code == 2 and err.count('\n') == 1
    assert f"--resume: '{weights}' holds weights and no epoch" in err and '--initial-checkpoint' in err
    assert content(tmp_path / 'x').items() >= before.items()


def test_terms_set_in_at_their_epoch_where_the_batches_have_changed(train, tmp_path):
    """The checkpoint counts steps: three epochs of large batches are fewer than three of small ones."""
    options = ['--epochs', 3, '--icasc-start-epoch', 4]
    assert train(*options)[0] == 0
    assert train('--resume', 'auto', '--epochs', 6, '--batch-size', 3)[0] == 0
    with open(tmp_path / 'x' / 'summary.csv') as file:
        rows = list(csv.DictReader(file))
    assert [bool(row['train_loss_ac']) for row in rows] == [False] * 4 + [True] * 2


def test_other_words_for_the_same_are_no_change(train):
    """Splits have several names, a size two options."""
    assert train('--epochs', 1)[0] == 0
    same = ['--train-split', 'training', '--val-split', 'val', '--image-endings', '.png', '--input-size', 3, 16, 16]
    code, out, err = train('--resume', 'auto', '--epochs', 2, *same)
    assert code == 0 and 'do not compare' not in out + err
