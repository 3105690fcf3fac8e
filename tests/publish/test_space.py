"""The page of a model as a Space: what arrives, and what is left alone."""
import runpy
import shutil
from pathlib import Path

import pytest
import yaml

from timm_icasc.demo import page
from timm_icasc.publish.space import write_space
from timm_icasc.version import __version__

CARD = Path(__file__).parents[2] / 'hub_cards' / 'resnet20_cifar.icasc_digits'
FILES = ('README.md', 'app.py', 'requirements.txt')


@pytest.fixture
def card(tmp_path):
    return shutil.copytree(CARD, tmp_path / 'model')


def test_the_files(tmp_path, monkeypatch):
    files = write_space(tmp_path, 'me/sharp', 'verified-1', 'cc-by-nc-4.0')
    assert tuple(sorted(files)) == FILES and all(path.is_file() for path in files.values())
    served = []
    monkeypatch.setattr(page, 'serve', lambda *models, **kwargs: served.append((models, kwargs)))
    runpy.run_path(str(files['app.py']))
    assert served == [(('hf-hub:me/sharp@verified-1',), {'server_name': '0.0.0.0'})]
    assert files['requirements.txt'].read_text() == f'timm_icasc[demo]>={__version__}\n'
    _, head, body = files['README.md'].read_text().split('---\n')
    assert yaml.safe_load(head) == {
        'title': 'sharp', 'sdk': 'gradio', 'app_file': 'app.py', 'models': ['me/sharp'], 'license': 'cc-by-nc-4.0',
        'tags': ['timm', 'timm_icasc']}
    assert 'me/sharp' in body


def test_push_writes_the_space_beside_the_model(hub, client, card):
    for _ in range(2):  # again, after an interruption say
        result = client('push', card, 'me/tried', '--space', token='hf_owner')
        assert result.code == 0, result.err
    assert result.out.rstrip().endswith('/spaces/me/tried')
    assert set(FILES) <= set(hub.repos['spaces/me/tried'].head['files'])
    tag, = hub.repos['me/tried'].tags
    assert f'hf-hub:me/tried@{tag}' in hub.read('spaces/me/tried', 'app.py').decode()


def test_a_space_by_another_name(hub, client, card):
    assert client('push', card, 'me/named', '--space', 'me/page', token='hf_owner').code == 0
    assert 'spaces/me/page' in hub.repos and 'spaces/me/named' not in hub.repos


def test_another_app_is_left_alone(hub, client, card):
    hub.create('spaces/me/taken', {'app.py': b'print(1)\n'})
    result = client('push', card, 'me/taken', '--space', token='hf_owner')
    assert result.code == 2 and 'holds another app.py' in result.err and '--space' in result.err
    assert hub.read('spaces/me/taken', 'app.py') == b'print(1)\n' and 'me/taken' in hub.repos


def test_no_space_unless_asked_for(hub, client, card):
    assert client('push', card, 'me/plain', token='hf_owner').code == 0
    assert 'spaces/me/plain' not in hub.repos


def test_a_space_of_another_kind_is_left_alone(hub, client, card):
    """Without an app.py: a page of plain HTML, which our README would end."""
    hub.create('spaces/me/static', {'README.md': b'sdk: static\n', 'index.html': b'<p>'})
    result = client('push', card, 'me/static', '--space', token='hf_owner')
    assert result.code == 2 and 'it holds index.html' in result.err and '--space' in result.err
    assert hub.read('spaces/me/static', 'README.md') == b'sdk: static\n'


def test_the_space_of_a_private_model_is_private(hub, client, card):
    hub.create('me/secret', private=True)
    result = client('push', card, 'me/secret', '--space', token='hf_owner')
    assert result.code == 0 and 'me/secret is private: the Space needs the secret HF_TOKEN' in result.err
    assert hub.repos['spaces/me/secret'].private


def test_the_name_of_a_space_is_looked_at_first(hub, client, card):
    assert client('push', card, 'me/late', '--space', 'a b', token='hf_owner').code == 2
    assert 'me/late' not in hub.repos
    assert client('push', card, 'me/late', '--space', 'page', token='hf_owner').code == 0
    assert 'spaces/me/page' in hub.repos
