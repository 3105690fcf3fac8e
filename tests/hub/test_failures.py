"""What goes wrong between here and the Hub, over real HTTP, and the line that is printed then."""
import errno
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
import timm
from helpers.hub_client import PROXIES
from huggingface_hub.utils import get_session, hf_raise_for_status

import timm_icasc
from timm_icasc import HubError
from timm_icasc.hub import failures
from timm_icasc.hub.download import fetch
from timm_icasc.hub.failures import one_line_errors
from timm_icasc.hub.tags import find_tags

CARD = Path(__file__).parents[2] / 'hub_cards' / 'resnet20_cifar.icasc_digits'
FILES = ('config.json', 'model.safetensors', 'README.md')


@pytest.fixture(scope='module', autouse=True)
def repos(hub_of_the_session):
    hub = hub_of_the_session
    files = {name: (CARD / name).read_bytes() for name in FILES}
    hub.create('me/good', files)
    hub.create('me/private', files, private=True)
    hub.create('me/gated', files, gated=True)
    hub.create('me/pickle', {'config.json': files['config.json'], 'pytorch_model.bin': b'\x80\x04'})
    hub.create('me/text', {'README.md': b'# nothing'})
    flipped = bytearray(files['model.safetensors'])
    flipped[-1] ^= 1
    hub.create('me/flipped', {**files, 'model.safetensors': bytes(flipped)})
    config = json.loads(files['config.json'])

    def variant(**ours):
        return {**files, 'config.json': json.dumps({**config, **ours}).encode()}
    hub.create('me/unknown', variant(architecture='swinconv_tiny', timm_icasc={
        **config['timm_icasc'], 'requires': {'timm': '9.0.0'}}))
    hub.create('me/plugin', variant(architecture='swinconv_tiny', timm_icasc={
        **config['timm_icasc'], 'requires': {'plugin': 'timm_swinconv', 'timm': '1.0.31'}}))
    hub.create('me/newer', variant(timm_icasc={
        **config['timm_icasc'], 'format': 2, 'versions': {'timm_icasc': '0.3.0'}}))
    other = {'num_classes': 12, 'pretrained_cfg': {**config['pretrained_cfg'], 'num_classes': 12}, 'timm_icasc': {
        **config['timm_icasc'], 'versions': {'timm': timm.__version__}}}
    hub.create('me/other-shape', variant(**other))
    hub.create('me/other-timm', variant(**{**other, 'timm_icasc': {
        **config['timm_icasc'], 'versions': {'timm': '0.9.0'}}}))


# name: (command, token, message as printed; ENDPOINT and COMMIT stand for what differs from run to run)
REFUSED = str(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
LOG_IN = "'hf auth login', or a token from https://huggingface.co/settings/tokens in HF_TOKEN"
INVALID = (
    f'the access token is not valid (expired, revoked, or of another endpoint); {LOG_IN}. For public repos no '
    'token is needed: unset HF_TOKEN, or hf auth logout.')
PULL = {
    'wrong token': ('me/good', 'hf_wrong', f'me/good@main: {INVALID}'),
    'missing repo': (
        'me/nothing', 'hf_owner', 'me/nothing@main: no such repo, or a private one; check the name. If it '
        "is private, the token in use has no access to it: use the owner's."),
    'private repo, no token': (
        'me/private', '', 'me/private@main: no such repo, or a private one; check the name. If '
        f'it is private, log in: {LOG_IN}.'),
    'private repo of somebody else': (
        'me/private', 'hf_stranger', 'me/private@main: no such repo, or a private one; '
        'check the name. If it is private, the token in use has no access to it: use the '
        "owner's."),
    'gated repo': (
        'me/gated', 'hf_stranger', "me/gated@main: access is gated; ask for it on the repo's page, and log "
        f'in ({LOG_IN}).'),
    'missing revision': (
        'me/good@v9', '', 'me/good@v9: the repo has no such branch, tag or commit; its page lists '
        'them under "Files and versions".'),
    'no repo name': (
        'me/good/bad', '', 'me/good/bad@main: this is no repo name; it is OWNER/NAME, of letters, digits, '
        'dots, - and _.'),
    'pickle only': (
        'me/pickle', '', 'me/pickle@main: the weights are there as a pickle only (pytorch_model.bin), '
        'which can run any code when it is opened, and is not; ask the owner for model.safetensors, or '
        'convert it where you trust it (https://huggingface.co/spaces/safetensors/convert).'),
    'no model': (
        'me/text', '', 'me/text@main: there is no model.safetensors; it holds .gitattributes, README.md. '
        'Check the name.'),
    'unknown architecture': (
        'me/unknown', '', "me/unknown@COMMIT: architecture 'swinconv_tiny' is not registered with timm TIMM and "
        'timm_icasc VERSION; install the package that defines it and import it, or a newer timm_icasc; it was trained '
        'with timm 9.0.0, this is TIMM: pip install -U timm.'),
    'missing plugin': (
        'me/plugin', '', "me/plugin@COMMIT: architecture 'swinconv_tiny' is not registered with timm TIMM and "
        "timm_icasc VERSION; it comes from the package 'timm_swinconv': install it and `import timm_swinconv` before "
        'create_model.'),
    'incompatible version': (
        'me/newer', '', 'me/newer@COMMIT: written by timm_icasc 0.3.0 in format 2; this is '
        'timm_icasc VERSION, which reads format 1. Run: pip install -U timm_icasc'),
    'weights of another shape': (
        'me/other-shape', '', "me/other-shape@COMMIT: the weights do not fit 'resnet20_cifar' "
        'of timm TIMM: 2 differ, first fc.bias (file: (10,), model: (12,)); its files do not '
        'belong together: ask its owner.'),
    'weights of another timm': (
        'me/other-timm', '', "me/other-timm@COMMIT: the weights do not fit 'resnet20_cifar' of "
        'timm TIMM: 2 differ, first fc.bias (file: (10,), model: (12,)); they were made with '
        'timm 0.9.0: pip install timm==0.9.0.'),
    'unknown tag': (
        'resnet20_cifar.nonsense', '', "'resnet20_cifar.nonsense' is no weight tag of timm_icasc; its tags "
        f"are {', '.join(sorted(find_tags()))}. A repo is OWNER/NAME."),
}


def said(result, hub) -> str:
    """The one line on stderr, without what differs from run to run."""
    lines = result.err.strip().splitlines()
    assert result.code == 2 and len(lines) == 1, result.err
    line = re.sub(r'@[0-9a-f]{40}', '@COMMIT', lines[0].split(': error: ')[1]).replace(hub.endpoint, 'ENDPOINT')
    for text in ('timm {} and', 'this is {}:', 'of timm {}:'):
        line = line.replace(text.format(timm.__version__), text.format('TIMM'))
    return line.replace(f'timm_icasc {timm_icasc.__version__}', 'timm_icasc VERSION')


@pytest.mark.parametrize('case', PULL)
def test_pull(case, hub, client):
    source, token, message = PULL[case]
    before = len(hub.requests)
    assert said(client('pull', source, token=token), hub) == message
    # Without where the requests for a small file at main and at its commit both lead.
    asked = [r for r in hub.requests[before:] if '/me/' in r and 'resolve-cache' not in r]
    assert len(asked) == len(set(asked)), 'nothing is tried again and again'


def test_flipped_byte_on_the_hub(hub, client):
    result = client('pull', 'me/flipped')
    assert re.sub(r"'[^']*cache[^']*'|[0-9a-f]{12}\.\.\.", '#', said(result, hub)) == (
        'me/flipped@COMMIT: model.safetensors is damaged: its sha256 # is not that of config.json, # Delete # and '
        'fetch it again.')


@pytest.mark.parametrize('where', ['values', 'header'])
def test_flipped_byte_in_the_cache(where, hub, client):
    cache = client.cache()
    assert client('pull', 'me/good', cache=cache).code == 0
    blob = next(path for path in cache.rglob('model.safetensors')).resolve()
    content = bytearray(blob.read_bytes())
    content[-1 if where == 'values' else 30] ^= 1
    blob.write_bytes(content)
    line = said(client('pull', 'me/good', cache=cache), hub)
    assert 'model.safetensors is damaged' in line and f"Delete '{blob}' and fetch it again." in line
    blob.unlink()
    assert client('pull', 'me/good', cache=cache).code == 0


def test_flipped_byte_on_the_way(hub, client):
    hub.fail('GET', '/storage/object/', 'flip')
    assert 'model.safetensors is damaged' in said(client('pull', 'me/good'), hub)


def test_truncated_download_is_resumed(hub, client):
    hub.fail('GET', '/storage/object/', 'truncate')
    before = len(hub.requests)
    assert client('pull', 'me/good').code == 0
    assert len([r for r in hub.requests[before:] if '/storage/object/' in r]) == 2


def test_download_that_stays_truncated(hub, client):
    """After five attempts of the Hub's client; the storage is named, not the Hub."""
    hub.fail('GET', '/storage/object/', 'truncate', times=None)
    line = client('pull', 'me/good').err.splitlines()[-1]
    assert re.sub(r'\(Remote.*?\)\)', '(WHY)', line).replace(hub.storage, 'STORAGE') == (
        'timm-icasc pull: error: me/good@main: the connection to STORAGE broke (WHY), after repeated attempts where '
        'they are safe; run the command again, files that have arrived whole are not transferred twice.')


@pytest.mark.parametrize('status, headers, message', [
    (503, {}, 'me/good@main: the Hub has a fault (HTTP 503), after repeated attempts where they are safe; run the '
              'command again later, see https://status.huggingface.co.'),
    (429, {'Retry-After': '7'}, 'me/good@main: too many requests; run the command again in 7 seconds.'),
])
def test_faults_of_the_hub(status, headers, message, hub, client):
    hub.fail('GET', '/api/models/me/good', status=status, headers=headers)
    assert said(client('pull', 'me/good'), hub) == message


def test_wrong_token_with_a_warm_cache(hub, client):
    """A branch is asked for anew, and refused; a full commit needs neither token nor network."""
    cache = client.cache()
    assert client('pull', 'me/good', cache=cache).code == 0
    commit = hub.repos['me/good'].head['oid']
    assert said(client('pull', 'me/good', cache=cache, token='hf_wrong'), hub) == (
        f'me/good@main: {INVALID} The cache holds commit {commit[:12]}; HF_HUB_OFFLINE=1 uses it.')
    before = len(hub.requests)
    assert client('pull', f'me/good@{commit}', cache=cache, token='hf_wrong').code == 0
    assert client('pull', 'me/good', cache=cache, HF_HUB_OFFLINE='1').code == 0
    assert not [r for r in hub.requests[before:] if 'me/good' in r]


def test_offline_with_a_cold_cache(hub, client):
    assert said(client('pull', 'me/good', HF_HUB_OFFLINE='1'), hub) == (
        'me/good@main: HF_HUB_OFFLINE is set; unset it to reach the Hub.')


class TestWithoutNetwork:

    @pytest.mark.parametrize('command', [['pull', 'me/good'], ['push', str(CARD), 'me/new']], ids=lambda c: c[0])
    def test_it_is_said_before_anything_else(self, command, client, nowhere):
        result = client(*command, token='hf_owner', endpoint=nowhere)
        repo_id = 'me/good' if command[0] == 'pull' else 'me/new'
        assert result.err == (
            f'timm-icasc {command[0]}: error: {repo_id}@main: {nowhere} cannot be reached ({REFUSED}); check the '
            'network, a proxy (HTTPS_PROXY) or HF_ENDPOINT.\n')

    def test_warm_cache(self, hub, client, nowhere):
        cache = client.cache()
        assert client('pull', 'me/good', cache=cache).code == 0
        commit = hub.repos['me/good'].head['oid']
        result = client('pull', 'me/good', cache=cache, endpoint=nowhere)
        assert result.err.endswith(f'The cache holds commit {commit[:12]}; HF_HUB_OFFLINE=1 uses it.\n')
        assert client('pull', f'me/good@{commit}', cache=cache, endpoint=nowhere).code == 0
        assert client('pull', 'me/good', cache=cache, endpoint=nowhere, HF_HUB_OFFLINE='1').code == 0

    @pytest.mark.parametrize('answers, tried', [
        ({}, ['6a', '4a']),  # 5 seconds each: not one after the other through all of them
        ({'4a': None}, ['6a', '4a']),
        ({'6a': OSError(101, 'Network is unreachable'), '4a': ConnectionRefusedError(), '4b': None}, [
            '6a', '6b', '4a', '4b']),
    ], ids=['swallowed', 'swallowed by one family', 'refused by one address'])
    def test_a_host_of_many_addresses(self, answers, tried, monkeypatch):
        """An address that is silent speaks for its family; one that refuses, for itself."""
        asked = []

        def connect(address, timeout):
            asked.append(address[0])
            answer = answers.get(address[0], TimeoutError('timed out'))
            if answer is not None:
                raise answer
            return socket.socket()
        addresses = [(socket.AF_INET6, '6a'), (socket.AF_INET6, '6b'), (socket.AF_INET, '4a'), (socket.AF_INET, '4b')]
        monkeypatch.setattr(failures.socket, 'getaddrinfo', lambda *_, **__: [
            (family, 1, 6, '', (name, 443, 0, 0)) for family, name in addresses])
        monkeypatch.setattr(failures.socket, 'create_connection', connect)
        monkeypatch.setattr(failures.constants, 'HF_HUB_OFFLINE', False)
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        if None in answers.values():
            failures.check_reachable('me/x@main')
        else:
            with pytest.raises(HubError, match='^me/x@main: .* cannot be reached .timed out'):
                failures.check_reachable('me/x@main')
        assert asked == tried


class TestWhatTheClientRaises:
    """Exceptions that the loopback Hub cannot bring about."""

    @pytest.mark.parametrize('error, message', [
        (RuntimeError('Xet: reqwest error,\n  connection closed'), 'me/x@main: Xet: reqwest error, connection closed.'),
        (PermissionError(), 'me/x@main: PermissionError.'),
        (OSError(28, 'No space left on device', '/cache'), 'me/x@main: No space left on device: /cache.'),
    ], ids=['transfer by Xet', 'no text', 'full disk'])
    def test_one_line(self, error, message):
        with pytest.raises(HubError) as e, one_line_errors('me/x@main'):
            raise error
        assert str(e.value) == message

    def test_what_an_upload_hides(self):
        with pytest.raises(HubError, match='^me/x@main: No space left on device'), one_line_errors('me/x@main'):
            try:
                raise OSError(28, 'No space left on device', '/cache')
            except OSError as e:
                raise RuntimeError("Error while uploading 'x' to the Hub.") from e

    def test_a_mistake_of_this_package_is_not_dressed_up(self):
        with pytest.raises(TypeError), one_line_errors('me/x@main'):
            raise TypeError

    @pytest.mark.parametrize('token, said', [
        ('hf_expired', 'the access token is not valid'), (None, 'no such repo, or a private one')])
    def test_401_of_the_hub_itself(self, token, said, monkeypatch):
        """Over https its client calls every 401 a missing repo, that of an expired token too."""
        monkeypatch.setattr(failures, 'get_token', lambda: token)
        request = get_session().build_request('GET', 'https://huggingface.co/api/models/me/x')
        response = sys.modules[type(request).__module__.split('.')[0]].Response(
            401, headers={'X-Error-Message': 'User Access Token "x" is expired'}, request=request)
        with pytest.raises(HubError, match=f'^me/x@main: {said}'), one_line_errors('me/x@main'):
            hf_raise_for_status(response)


def test_a_proxy_that_is_not_there(hub, client, nowhere):
    """Found out without waiting; the check of the endpoint itself is left out where there is a proxy."""
    line = said(client('pull', 'me/good', HTTP_PROXY=nowhere, ALL_PROXY=nowhere), hub)
    assert line == (
        f'me/good@main: ENDPOINT cannot be reached ({REFUSED}); check the network, a proxy (HTTPS_PROXY) '
        'or HF_ENDPOINT.')


def test_evaluation_of_a_repo_that_is_not_there(hub, client):
    line = said(client('eval', 'hf-hub:me/missing', '--dataset', 'digits'), hub)
    assert line.startswith('me/missing@main: no such repo, or a private one; check the name')


def test_what_timm_alone_says(hub, client):
    """`timm.create_model('hf-hub:...')` is timm's: these are the cases that pull exists for."""
    def create(repo_id, **kwargs):
        return client(code=f"import timm; timm.create_model('hf-hub:{repo_id}', pretrained=True)", **kwargs)
    assert create('me/good').code == 0
    assert create('me/flipped').code == 0, 'loaded without a word'
    assert "Unknown model (swinconv_tiny)" in create('me/plugin').err
    cache = client.cache()
    assert create('me/good', cache=cache).code == 0
    assert create('me/good', cache=cache, token='hf_wrong').code == 0, 'from the cache, without a word'


class TestSecrets:
    """A password in an address is printed nowhere, whatever the Hub's client says of it."""

    @pytest.fixture(autouse=True)
    def endpoint(self, nowhere, monkeypatch):
        address = nowhere.replace('http://', 'http://me:s3cret-word@')
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', address)
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
        for name in ('http_proxy', 'https_proxy', 'all_proxy'):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        return address

    def test_an_endpoint_that_does_not_answer(self, nowhere):
        with pytest.raises(HubError) as e:
            failures.check_reachable('me/x@main')
        assert 's3cret' not in str(e.value) and nowhere.replace('http://', 'http://***@') in str(e.value)

    def test_a_port_that_is_none(self, monkeypatch):
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://me:s3cret-word@host:port')
        with pytest.raises(HubError) as e:
            failures.check_reachable('me/x@main')
        assert 's3cret' not in str(e.value) and 'host:port' in str(e.value)

    @pytest.mark.parametrize('said', [
        '{} refused', 'Illegal header value b"Bearer hf_{token}"', 'proxy bob:s3cret-word@p'])
    def test_what_the_client_says(self, said, endpoint, monkeypatch):
        monkeypatch.setenv('HTTPS_PROXY', 'bob:s3cret-word@p')
        for error in (ValueError, RuntimeError, OSError):
            with pytest.raises(HubError) as e, failures.one_line_errors('me/x@main'):
                raise error(said.format(endpoint, token='a' * 34))
            assert 's3cret' not in str(e.value) and 'a' * 34 not in str(e.value) and '***' in str(e.value)

    def test_the_address_that_is_printed(self, nowhere):
        assert failures.endpoint() == nowhere.replace('http://', 'http://***@')

    @pytest.mark.parametrize('revision', ['../../x', '/x', 'a\\..\\b', 'a\nb'])
    def test_a_revision_that_leaves_the_cache(self, revision):
        with pytest.raises(HubError, match='this is no name of a branch, tag or commit'):
            fetch('me/x', revision)
