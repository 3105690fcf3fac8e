"""The scripts of docs/evidence that make and measure what its studies need."""
import json
import runpy
import shutil
import sys

import numpy as np
import pytest
from helpers.evidence_scripts import SCRIPTS, rows
from helpers.hub_fixtures import save_noise
from helpers.runs import make_run
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    return save_noise(tmp_path / 'images', train=3, test=2)


def test_data_path(folder, tmp_path):
    """Every kind of file is made and loaded; what trains is not run here."""
    script = runpy.run_path(str(SCRIPTS / 'data_path.py'))
    photos = sorted(folder.rglob('*.png'))[:9]
    for kind, (side, ending, options) in script['KINDS'].items():
        made = tmp_path / ending / str(side)
        script['make_folder'](photos, made, min(side, 80), ending, options)
        assert len(list(made.rglob(f'train/*/*.{ending}'))) == 9 and len(list(made.rglob('val/*/*'))) == 8, kind
        assert script['milliseconds_of_loading'](made, 16, 3) > 0


def test_spoilt_images():
    """The cue lies in the corner of what a network is tested on, where it is said; the rest of the image stays."""
    script = runpy.run_path(str(SCRIPTS / 'spoil_images.py'))
    image = Image.new('RGB', (60, 40), (255, 0, 0))
    marked = np.asarray(script['with_cue'](image, Image.new('RGB', (7, 9), (0, 255, 0))))
    cue = np.zeros((40, 60), bool)
    cue[24:, 34:50] = True
    assert (marked[cue] == (0, 255, 0)).all() and (marked[~cue] == (255, 0, 0)).all()
    hidden = np.asarray(script['occluded'](image, 'name'))
    assert (hidden != np.asarray(image)).any(-1).mean() == 0.25
    other = np.asarray(script['with_background'](image, Image.new('RGB', (10, 10), (0, 0, 255))))
    assert (other[6:34, 9:51] == (255, 0, 0)).all() and (other[..., 2] == 255).sum() == 60 * 40 - 28 * 42


def test_each_class_has_a_picture_of_its_own(folder):
    """The first ones of all folders, then the second ones."""
    script = runpy.run_path(str(SCRIPTS / 'spoil_images.py'))
    cues = script['cues_of'](folder / 'train', ['one', 'two', 'three', 'four'])
    pictures = [sorted(of_class.iterdir()) for of_class in sorted((folder / 'train').iterdir())]
    assert len(pictures) == 3
    for cue, path in zip(cues.values(), [own[0] for own in pictures] + [pictures[0][1]], strict=True):
        assert (np.asarray(cue) == np.asarray(Image.open(path).convert('RGB'))).all()


def test_spoilt_folders(folder, tmp_path, monkeypatch):
    (folder / 'holdout').symlink_to(folder / 'test')
    monkeypatch.setattr(sys, 'argv', ['spoil_images.py', str(folder), str(folder / 'train'), str(tmp_path / 'spoilt')])
    runpy.run_path(str(SCRIPTS / 'spoil_images.py'), run_name='__main__')
    splits = {path.name for path in (tmp_path / 'spoilt').iterdir()}
    assert splits == {'train', 'holdout', 'test', *(
        f'test_{name}' for name in ('own_cue', 'other_cue', 'occluded', 'background'))}
    names = [sorted(f'{path.parent.name}/{path.stem}' for path in (tmp_path / 'spoilt' / split).rglob('*.png'))
             for split in splits - {'train', 'holdout', 'test'}]
    assert names[0] and names == names[:1] * 4
    own, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*.png')}
        for folder in (tmp_path / 'spoilt' / 'test_own_cue', tmp_path / 'spoilt' / 'test_other_cue'))
    assert all(own[name] != other[name] for name in own)


def test_measures_of_runs(folder, tmp_path, monkeypatch, capsys):
    """Two variants, one the other's copy: every difference is 0."""
    make_run(tmp_path / 'runs' / 'plain-seed0', num_classes=3, dataset='torch/image_folder', data_dir=str(folder))
    shutil.copytree(tmp_path / 'runs' / 'plain-seed0', tmp_path / 'runs' / 'ours-seed0')
    arguments = [
        tmp_path / 'runs', folder, '--splits', 'test', '--baseline', 'plain', '--cue', '--images', '6', '--json',
        tmp_path / 'measured.json']
    baseline, ours = rows('measures_of_runs.py', arguments, monkeypatch, capsys)
    assert (baseline[0], ours[0]) == ('plain', 'ours')
    assert all(own == f'{cell}; +0.000' for cell, own in zip(baseline[1:], ours[1:], strict=True))
    content = json.loads((tmp_path / 'measured.json').read_text())
    found = content['runs']['ours-seed0']['test']
    assert {'top1', 'overlap_last', 'cue_ach', 'cue_grad_cam'} <= set(found) and len(found) == len(ours) - 1
    named = [*arguments, '--measures', 'top1', 'overlap_last', 'cue_ach']
    assert content['layers']['ours-seed0'] == content['layers']['plain-seed0'] == 'layer2 layer3'
    content['runs']['ours-seed0']['test']['top1'] += 1
    content['layers']['ours-seed0'] = 'layer1 layer3'
    (tmp_path / 'measured.json').write_text(json.dumps(content))
    baseline, changed = rows('measures_of_runs.py', named, monkeypatch, capsys)
    assert len(changed) == 4
    assert changed[1].endswith('; +1.000'), 'what is measured is not measured again'
    assert changed[2:] == baseline[2:], 'maps of other layers have no difference'
    with pytest.raises(SystemExit, match='--measures: own_drop not measured, but top1, '):
        rows('measures_of_runs.py', [*arguments, '--measures', 'own_drop'], monkeypatch, capsys)
    with pytest.raises(SystemExit, match='was made with the options'):
        rows('measures_of_runs.py', [*arguments, '--robustness'], monkeypatch, capsys)
    assert (content['runs of'], content['images of']) == ('runs', folder.name)
    with pytest.raises(SystemExit, match="has the images of '.*', not of 'others': name another file"):
        rows('measures_of_runs.py', [arguments[0], tmp_path / 'others', *arguments[2:]], monkeypatch, capsys)
    with pytest.raises(SystemExit, match="has the runs of 'runs', not of 'plain-seed0': name another file"):
        rows('measures_of_runs.py', [arguments[0] / 'plain-seed0', *arguments[1:]], monkeypatch, capsys)


@pytest.mark.slow
def test_inference_speed(folder, tmp_path, monkeypatch, capsys):
    """Every command that is timed runs; the plain loop is the measure of itself."""
    run = make_run(
        tmp_path / 'run', num_classes=3, dataset='torch/image_folder', data_dir=str(folder), img_size=32,
        val_split='test')
    found = rows('inference_speed.py', [
        run, folder, folder / 'train', '--model', 'resnet20_cifar', '--size', 32, '-n', 3, '--rounds', 1,
    ], monkeypatch, capsys)
    assert len(found) == 6 and found[0][0].startswith('plain loop') and found[0][-1] == '1.00'


@pytest.mark.slow
def test_starts(monkeypatch, capsys):
    found = {name: float(seconds) for name, seconds, _ in rows('starts.py', [], monkeypatch, capsys)}
    assert found['`timm-icasc --version`'] < found['`python -c "import timm_icasc"`'] / 4, 'torch is not loaded'
