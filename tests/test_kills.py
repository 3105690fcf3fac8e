"""Commands that are killed (-9) between two file operations, and given again: every file is as if nobody had killed.

docs/behaviour.md has the points as a table, which the last test holds against those that are gone through here.
"""
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from helpers.hub_fixtures import save_noise
from helpers.kills import changes, contents, kill_before, operations_of
from helpers.runs import blank_figures
from matplotlib.figure import Figure

import train_timm
from timm_icasc import cli

ROOT = Path(__file__).parent.parent

# A small network on noise. Two checkpoints are kept, and each epoch is better than the one before: the third one is the
# best, and has one to remove.
OPTIONS = ['--data-dir', '../images', '--model', 'test_efficientnet', '--img-size', '32', '--batch-size', '12',
           '--epochs', '3', '--warmup-epochs', '0', '--lr', '0.05', '-j', '0', '--icasc-eval-images', '3',
           '--eval-metric', 'loss', '--seed', '1', '--experiment', 'x']

# Before which operation, on which file, for the how-manieth time.
TRAINING = {
    'options at the beginning': ('replace', 'args.yaml', 1),
    'first checkpoint, before any epoch': ('replace', 'last.pth.tar', 1),
    'row of an epoch': ('replace', 'summary.csv', 2),
    'checkpoint, behind its row': ('replace', 'last.pth.tar', 3),
    'name of a checkpoint': ('replace', 'checkpoint-0.pth.tar', 1),
    'best model': ('replace', 'model_best.pth.tar', 1),
    'row of the last epoch': ('replace', 'summary.csv', 3),
    'last checkpoint': ('replace', 'last.pth.tar', 4),
    'name of the last checkpoint': ('replace', 'checkpoint-2.pth.tar', 1),
    'removal of the worst checkpoint': ('remove', 'checkpoint-0.pth.tar', 1),
    'best model, of the last epoch': ('replace', 'model_best.pth.tar', 3),
    'results': ('replace', 'results.json', 1),
    'table of results': ('replace', 'results.csv', 1),
    'figure': ('replace', 'attention.png', 1),
}

# Of a command that goes on with a run that was killed behind the first epoch.
RESUMING = {
    'options of the resume': ('replace', 'args.yaml', 1),
    'first checkpoint of the resume': ('replace', 'last.pth.tar', 1),
}

# Of `timm-icasc eval`, in a folder that has an older evaluation.
EVALUATION = {
    'old announcement': ('unlink', 'eval.json', 1),
    'table of classes': ('replace', 'classes.csv', 1),
    'table of images': ('replace', 'images.csv', 1),
    'records': ('replace', 'records.npz', 1),
    'announcement': ('replace', 'eval.json', 1),
}

# Of `timm-icasc sweep --report`, on a page with text of its author.
REPORT = {
    'page of a study': ('replace', 'page.md', 1),
    'curves of a study': ('replace', 's.png', 1),
}


def train(*options):
    sys.argv = ['train_timm.py', *OPTIONS, *options]
    with blank_figures():
        code = train_timm.main()
    if code:
        raise SystemExit(code)


def resume():
    """With no word of what to train."""
    sys.argv = ['train_timm.py', '--resume', 'auto', '--experiment', 'x']
    with blank_figures():
        return train_timm.main()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """(folder of the images and of runs, what an undisturbed run leaves, its file operations)."""
    folder = tmp_path_factory.mktemp('kills')
    save_noise(folder / 'images', train=8, val=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', sys.argv)
        (folder / 'whole').mkdir()
        patch.chdir(folder / 'whole')
        operations = operations_of(train, folder / 'log')
    return folder, contents(folder / 'whole' / 'output' / 'x'), operations


@pytest.fixture
def here(whole, monkeypatch):
    folder, *_ = whole
    monkeypatch.setattr(sys, 'argv', sys.argv)
    (folder / 'cut').mkdir()
    monkeypatch.chdir(folder / 'cut')
    yield folder / 'cut' / 'output' / 'x'
    monkeypatch.chdir(folder)
    shutil.rmtree(folder / 'cut')


def assert_ends_as(expected, folder):
    found = contents(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def go_on(here):
    """`--resume auto`; where it says that there is no run, the command itself."""
    if resume():
        assert not (here / 'args.yaml').exists()
        train()


@pytest.mark.parametrize('point', TRAINING.values(), ids=list(TRAINING))
def test_a_killed_run_ends_as_an_undisturbed_one(point, whole, here, capsys):
    operation, name, occurrence = point
    kill_before(train, operation=operation, name=name, occurrence=occurrence)
    go_on(here)
    refused = 'leave --resume out to begin a new run' in capsys.readouterr().err
    assert refused == (name == 'args.yaml')
    assert_ends_as(whole[1], here)


@pytest.mark.parametrize('point', RESUMING.values(), ids=list(RESUMING))
def test_a_resume_that_is_killed_can_be_resumed(point, whole, here):
    """args.yaml was emptied by a kill at this point: options gone, a study stuck."""
    operation, name, occurrence = point
    kill_before(train, operation='replace', name='last.pth.tar', occurrence=3)
    kill_before(resume, operation=operation, name=name, occurrence=occurrence)
    assert resume() == 0
    assert_ends_as(whole[1], here)


@pytest.mark.slow
def test_every_operation_of_a_run(whole, here):
    _, expected, operations = whole
    assert {point[:2] for point in TRAINING.values()} <= set(operations)
    for number in range(1, len(operations) + 1):
        kill_before(train, number)
        go_on(here)
        assert_ends_as(expected, here)
        shutil.rmtree(here)


def test_a_finished_run_is_left_alone(whole, here, capsys):
    train()
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert resume() == 0
    assert 'all 3 epochs are done, and output/x/results.json is complete: it stays as it is' in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_an_evaluation(whole, monkeypatch):
    """Never new files beside old ones under an announcement: the older evaluation, none, or the new one."""
    folder = whole[0] / 'whole' / 'output' / 'x' / 'eval'

    def evaluate(images=9):
        assert cli.main(['eval', 'output/x', '-j', '0', '--images', str(images)]) == 0

    monkeypatch.chdir(whole[0] / 'whole')
    evaluate()
    expected = contents(folder)
    evaluate(4)
    old, before = contents(folder), shutil.copytree(folder, folder.parent / 'before')
    operations = operations_of(evaluate, whole[0] / 'evaluation')
    for point in EVALUATION.values():
        assert operations.count(point[:2]) == 1
    for number in changes(operations):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        kill_before(evaluate, number)
        seen = contents(folder)
        if 'eval.json' in seen:
            assert {name: seen[name] for name in seen if not name.startswith('.')} in (old, expected)
        evaluate()
        assert contents(folder) == expected, operations[number - 1]
    shutil.rmtree(folder)
    shutil.rmtree(before)


def test_the_page_of_a_study(tmp_path, monkeypatch):
    study = ROOT / 'docs' / 'evidence' / 'digits10_resnet20.yaml'
    options = yaml.safe_load(study.read_text().replace('../../timm_icasc', str(ROOT / 'timm_icasc')))
    variants = {name: options['variants'][name] for name in ('cross-entropy', 'ach-order1')}
    (tmp_path / 's.yaml').write_text(yaml.safe_dump(
        {**options, 'seeds': [0, 1], 'variants': variants, 'report': 'page.md'}))
    (tmp_path / 'records' / 's').mkdir(parents=True)
    for name in (f'{variant}-seed{seed}.json' for variant in variants for seed in (0, 1)):
        shutil.copy(study.parent / 'records' / study.stem / name, tmp_path / 'records' / 's')
    text = 'mine\n<!-- study s begins -->\nold\n<!-- study s ends -->\nmine too\n'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, 'savefig', lambda figure, file, **kwargs: file.write_bytes(b'curves'))

    def report():
        assert cli.main(['sweep', 's.yaml', '--report']) == 0

    def all_files():
        return {str(path): path.read_bytes() for path in Path().rglob('*') if path.is_file() and path.name[0] != '.'}

    Path('page.md').write_text(text)
    report()
    expected = all_files()
    operations = operations_of(report, tmp_path / '.log')
    assert set(REPORT.values()) <= {(*operation, 1) for operation in operations}
    for number in changes(operations):
        Path('page.md').write_text(text)
        kill_before(report, number)
        assert Path('page.md').read_text() in (text, expected['page.md'].decode())
        report()
        assert all_files() == expected, operations[number - 1]


def test_the_table_of_the_documents():
    text = (ROOT / 'docs' / 'behaviour.md').read_text()
    table = re.search(r'\n\| killed before .*?\n\n', text, re.DOTALL)[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip('|').split('|')] for row in table]
    tests = (
        (test_a_killed_run_ends_as_an_undisturbed_one, TRAINING),
        (test_a_resume_that_is_killed_can_be_resumed, RESUMING),
        (test_an_evaluation, EVALUATION), (test_the_page_of_a_study, REPORT))
    points = {
        (point, f'`{file}`', f'`{test.__name__}`')
        for test, named in tests for point, (_, file, _) in named.items()}
    assert len(rows) == len(points) and all(len(row) == 5 and all(row) for row in rows)
    assert {(row[0], row[1], row[4]) for row in rows} == points
