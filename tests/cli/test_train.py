"""`timm-icasc train`: the trainer as the installed command; tests/test_train_timm.py has what training does."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from timm_icasc import cli
from timm_icasc.training.argument_files import RECIPES, find_config, list_recipes
from timm_icasc.training.arguments import parse_args

ROOT = Path(__file__).parents[2]

TINY = ['--model', 'resnet20_cifar', '--batch-size', '4', '--epochs', '1', '--warmup-epochs', '0', '-j', '0',
        '--icasc-eval-images', '3']


def train(*options):
    return cli.main(['train', *map(str, options)])


def test_a_run(noise, tmp_path, monkeypatch, capsys):
    words = ['train', '--data-dir', str(noise), *TINY, '--output', str(tmp_path), '--experiment', 'x']
    monkeypatch.setattr(sys, 'argv', ['/x/bin/timm-icasc', *words])
    assert cli.main() == 0
    assert 'Results after the last epoch' in capsys.readouterr().out
    assert {'args.yaml', 'attention.png', 'last.pth.tar', 'results.csv', 'results.json', 'summary.csv'} <= {
        path.name for path in (tmp_path / 'x').iterdir()}
    command = json.loads((tmp_path / 'x' / 'results.json').read_text())['command']
    assert command.split() == ['timm-icasc', *words]
    monkeypatch.setattr(sys, 'argv', ['/x/bin/timm-icasc', *words, '--resume', 'auto', '--epochs', '2'])
    assert cli.main() == 0
    both = json.loads((tmp_path / 'x' / 'results.json').read_text())['command']
    assert both.startswith(f'{command} && timm-icasc train ') and both.endswith('--resume auto --epochs 2')


@pytest.mark.parametrize('options, said', [
    (['--lr', 'x'], "argument --lr: invalid float value: 'x' (--help lists the options)"),
    (['--mixup', '-1', '--dataset', 'digits'], '--mixup must be at least 0, got -1.0.'),
    (['--dataset', 'digits', '--output', 'x', '--resume', 'y'], "--resume: no checkpoint 'y'."),
    (['--dataset', 'digits', '--output', 'x', '--num-classes', '1'], '--num-classes 1 is fewer than the 10 classes'),
    (['--config', 'nowhere'], "--config: cannot read 'nowhere': No such file or directory; recipes: ")])
def test_bad_input_is_one_line(options, said, capsys):
    try:
        code = train(*options)
    except SystemExit as e:
        code = e.code
    err = capsys.readouterr().err
    assert code == 2 and err.startswith(f'timm-icasc train: error: {said}') and err.count('\n') == 1


class TestRecipes:

    def test_help_lists_them_and_no_usage_buries_them(self, capsys):
        with pytest.raises(SystemExit) as stop:
            train('--help')
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith('usage: timm-icasc train [OPTIONS]\n\nTrain a timm model') and '%(prog)s' not in text
        listed = text.split('recipes (-c NAME):\n')[1].splitlines()
        assert [line.split()[0] for line in listed] == [path.stem for path in sorted(RECIPES.glob('*.yaml'))]
        assert all(len(line.split()) > 2 and len(line) <= 120 for line in listed), 'each says what it is'

    @pytest.mark.parametrize('name', ['cifar100_resnet110', 'cifar100_resnet110.yaml'])
    def test_a_name_is_enough(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        named = parse_args(['-c', name, '--data-dir', 'x'])
        assert vars(named) == {
            **vars(parse_args(['-c', str(RECIPES / 'cifar100_resnet110.yaml'), '--data-dir', 'x'])), 'config': name}
        assert named.model == 'resnet110_cifar'

    def test_a_file_of_that_name_goes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'cifar100_resnet110').write_text('model: resnet18')
        assert parse_args(['-c', 'cifar100_resnet110', '--data-dir', 'x']).model == 'resnet18'

    @pytest.mark.parametrize('name', ['../recipes/digits_resnet20', 'digits', '', '..'])
    def test_what_is_no_name_is_a_path(self, name, tmp_path):
        assert find_config(name, tmp_path) == tmp_path / name

    def test_each_says_in_its_first_line_what_it_is(self):
        assert len(list_recipes()) > 10 and all(list_recipes().values())


def test_ctrl_c_prints_the_command_that_was_used(noise, tmp_path):
    """Of a new interpreter, which is called as a module and has processes that load data."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_icasc.cli', 'train', '--data-dir', str(noise), *TINY, '-j', '2',
         '--epochs', '500', '--output', str(tmp_path), '--experiment', 'x'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])})
    for line in process.stdout:
        if line.startswith('epoch'):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and 'Traceback' not in err
    assert err.strip().endswith(
        f'Go on with: python -m timm_icasc.cli train --resume auto --output {tmp_path} --experiment x')
