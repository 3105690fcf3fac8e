"""What `timm-icasc doctor` finds, and that only what needs mending makes it fail."""
import json

import huggingface_hub
import pytest
import timm
import torch

from timm_icasc.cli import doctor, main
from timm_icasc.runs.provenance import installed_versions


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Run the command on this machine, without an account and with a cache of its own; returns code, lines, record."""
    monkeypatch.setattr(doctor, 'get_token', lambda: None)
    monkeypatch.setattr(doctor.constants, 'HF_HUB_CACHE', str(tmp_path / 'home' / 'hub'))

    def call():
        code = main(['doctor', '--json', str(tmp_path / 'doctor.json')])
        return code, capsys.readouterr().out.splitlines(), json.loads((tmp_path / 'doctor.json').read_text())
    return call


def found(record, name):
    finding, = (f for f in record['findings'] if f['name'] == name)
    return finding['ok'], finding['text']


def test_everything_in_order(examine, tmp_path):
    code, (versions, *lines, summary), record = examine()
    assert code == 0 and record['in_order'] and summary == 'everything that is needed is in order'
    assert record['versions'].items() >= installed_versions().items()
    assert all(f'{name} {number}' in versions for name, number in record['versions'].items())
    for line, finding in zip(lines, record['findings'], strict=True):
        assert line.split()[:1] == finding['name'].split()[:1] and line.endswith(finding['text'])
    assert found(record, 'step on cpu, order 1')[0] and found(record, 'step on cpu, order 2')[0]
    assert found(record, 'Hub cache')[0] and not (tmp_path / 'home').exists(), 'nothing is left behind'
    assert found(record, 'accelerator')[0] is (
        True if torch.cuda.is_available() or torch.backends.mps.is_available()
        else None)
    assert len(lines) < 24, 'one screen'


def test_optional_packages_may_be_missing(examine, monkeypatch):
    monkeypatch.setattr(doctor, 'find_spec', lambda name: None)
    code, _, record = examine()
    assert code == 0
    assert found(record, 'webdataset') == (None, '--dataset wds/NAME (pip install webdataset)')


def test_a_cache_that_cannot_be_written(examine, tmp_path):
    (tmp_path / 'home').write_text('a file, where a folder should be')
    code, lines, record = examine()
    assert code == 1 and not record['in_order'] and lines[-1] == 'to be mended: Hub cache'
    assert found(record, 'Hub cache')[1].startswith(f"cannot write to '{tmp_path / 'home' / 'hub'}'")


def test_a_step_that_fails(examine, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('no kernel image\nis available')
    monkeypatch.setattr(doctor, 'icasc_forward', fail)
    code, lines, record = examine()
    assert code == 1 and lines[-1].startswith('to be mended: step on cpu, order 1, step on cpu, order 2')
    assert found(record, 'step on cpu, order 1') == (False, 'RuntimeError: no kernel image is available')


def test_terms_whose_gradient_reaches_nothing(examine, monkeypatch):
    create_model = timm.create_model

    def create_cut(name):
        model = create_model(name)
        model.conv1.register_forward_hook(lambda module, args, output: output.detach())
        return model
    monkeypatch.setattr(doctor.timm, 'create_model', create_cut)
    code, _, record = examine()
    ok, text = found(record, 'step on cpu, order 2')
    assert code == 1 and not ok and text.endswith('their gradient on the first layer 0')


class TestOlderPackages:
    """Maps work with them, the rest says what it needs: no fault of the installation."""

    def test_timm(self, examine, monkeypatch):
        monkeypatch.setattr(timm, '__version__', '1.0.23')
        code, _, record = examine()
        assert code == 0 and found(record, 'versions') == (
            None, "maps work, but training needs timm 1.0.31 or later, this is timm 1.0.23: pip install "
            "'timm>=1.0.31'.")
        assert found(record, 'step on cpu, order 2')[0]

    def test_the_client_of_the_hub(self, examine, monkeypatch):
        monkeypatch.setattr(doctor, 'get_token', lambda: 'hf_owner')
        monkeypatch.setattr(huggingface_hub, '__version__', '0.36.2')
        code, _, record = examine()
        said = "exchanging weights with the Hub needs huggingface_hub 1.33 or later, this is huggingface_hub 0.36.2: " \
            "pip install 'huggingface_hub>=1.33'."
        assert code == 0 and found(record, 'versions') == (None, f'maps work, but {said}')
        assert found(record, 'Hub token') == (None, f'there is one, not checked: {said}')


class TestToken:
    """Against a server; the token itself is never printed."""

    @pytest.mark.parametrize('token, code, line', [
        ('hf_owner', 0, 'ok    valid, of me'), ('hf_wrong', 1, 'FAULT the Hub: the access token is not valid'),
        ('', 0, '-     none; only push and private repos need one')])
    def test_is_asked_of_the_hub(self, token, code, line, hub, client):
        result = client('doctor', token=token)
        assert result.code == code, result.err
        assert f'Hub token              {line}' in result.out and (not token or token not in result.out + result.err)

    def test_without_a_network_it_is_not_checked(self, client, nowhere):
        result = client('doctor', token='hf_owner', endpoint=nowhere)
        assert result.code == 0 and 'Hub token              -     there is one, not checked: ' in result.out
        assert 'cannot be reached' in result.out and 'hf_owner' not in result.out

    def test_a_hub_with_a_fault_is_not_a_fault_here(self, hub, client):
        hub.fail('GET', '/api/whoami-v2', status=503)
        result = client('doctor', token='hf_owner')
        assert result.code == 0 and 'there is one, not checked: the Hub: ' in result.out


def test_bad_input(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(['doctor', '--json', str(tmp_path / 'file' / 'doctor.json')]) == 2
    assert f"--json: cannot write to '{tmp_path / 'file'}': " in capsys.readouterr().err
