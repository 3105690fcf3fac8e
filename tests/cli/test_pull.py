"""`timm-icasc pull` of a local folder, without the Hub: what it copies, and what it leaves alone."""
import json
import shutil
from pathlib import Path

import pytest

from timm_icasc.cli import main

SHIPPED = Path(__file__).parents[2] / 'hub_cards' / 'resnet20_cifar.icasc_digits'


def pull_to(folder):
    return main(['pull', f'local-dir:{SHIPPED}', '--to', str(folder)])


def copied(folder):
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in SHIPPED.iterdir())


@pytest.mark.parametrize('empty', [False, True])
def test_a_copy_can_be_made_again(empty, tmp_path):
    """Into a new or an empty folder, and over what is there of an earlier copy."""
    if empty:
        (tmp_path / 'to').mkdir()
    assert pull_to(tmp_path / 'to') == 0 and copied(tmp_path / 'to')
    (tmp_path / 'to' / 'README.md').write_text('old')
    assert pull_to(tmp_path / 'to') == 0 and copied(tmp_path / 'to')
    assert [path.name for path in tmp_path.iterdir()] == ['to'], 'no half folder'


def test_nothing_of_the_model_before_stays(tmp_path):
    """Its card told the accuracy of weights that were gone; what is no model's file is not touched."""
    exported, target = tmp_path / 'exported', tmp_path / 'to'
    exported.mkdir()
    for name in ('config.json', 'model.safetensors', 'args.yaml'):
        shutil.copyfile(SHIPPED.with_name('resnet20_cifar.baseline_digits') / name, exported / name)
    assert pull_to(target) == 0
    for name in ('model.onnx', 'notes.txt'):
        (target / name).write_text('mine')
    assert main(['pull', f'local-dir:{exported}', '--to', str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == [
        'args.yaml', 'config.json', 'model.safetensors', 'notes.txt']


def test_what_was_made_of_the_same_weights_stays(tmp_path):
    assert pull_to(tmp_path) == 0
    (tmp_path / 'model.onnx').write_text('mine')
    assert pull_to(tmp_path) == 0 and (tmp_path / 'model.onnx').is_file()


@pytest.mark.parametrize('name, text', [
    ('README.md', 'mine'), ('args.yaml', 'seed: 1'), ('config.json', json.dumps({'architecture': 'resnet18'})),
    ('config.json', '[1]'), ('config.json', '{'), ('notes.txt', 'mine')])
def test_files_of_somebody_else_stay(name, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('timm_icasc.cli.pull.pull', pytest.fail)  # known before the Hub is asked
    (tmp_path / name).write_text(text)
    assert pull_to(tmp_path) == 2
    assert '--to: ' in (said := capsys.readouterr().err) and 'name a new or an empty folder' in said
    assert (tmp_path / name).read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / 'to').write_text('mine')
    assert pull_to(tmp_path / 'to') == 2
    assert 'name a new or an empty folder' in capsys.readouterr().err
