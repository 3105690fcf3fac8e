"""The README's examples run as they stand (without the download of weights), and its commands are the project's."""
import re
from pathlib import Path

import pytest
import yaml
from helpers.commands import training_commands, training_options

from timm_icasc.cli import main
from timm_icasc.training.arguments import parse_args

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


@pytest.mark.parametrize('code', re.findall(r'```python\n(.*?)```', README, re.S))
def test_examples_run(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert 'pretrained=True' in code
    if 'icasc_digits' not in code:  # those weights are here
        code = code.replace('pretrained=True', 'pretrained=False')
    exec(compile(code, 'README.md', 'exec'), {})


@pytest.mark.parametrize('line', training_commands(README))
def test_commands_parse(line, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    parse_args(training_options(line, tmp_path))


def test_the_default_recipe_is_the_one_described():
    recipe = yaml.safe_load((ROOT / 'timm_icasc' / 'recipes' / 'digits_resnet20.yaml').read_text())
    assert recipe['dataset'] == 'digits'


def test_nothing_is_left_to_fill_in():
    assert '@RESULTS@' not in README and 'TODO' not in README


def test_who_publishes_is_told_of_the_pictures(capsys):
    """attention.png shows images of the user's: in README, in the page on publishing and in --help."""
    assert 'your images and class names when asked' in README
    assert 'attention.png' in (ROOT / 'docs' / 'hub.md').read_text()
    with pytest.raises(SystemExit):
        main(['push', '--help'])
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'attention.png shows six of your validation images' in shown and '--figure' in shown
    with pytest.raises(SystemExit):
        parse_args(['--help'])
    assert 'with its figure of validation images only where' in ' '.join(capsys.readouterr().out.split())


def test_files_that_the_readme_names_exist():
    paths = re.findall(r'\]\(((?!http|#)[^)]+)\)', README)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).is_file(), path
