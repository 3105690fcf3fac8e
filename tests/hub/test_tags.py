"""Weight tags in timm's registry: found, verified, and in nobody's way."""
import dataclasses
import importlib
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from helpers.versions import recent_timm
from timm.models import _registry

import timm_icasc
from timm_icasc import HubError
from timm_icasc.hub import model_folder
from timm_icasc.hub import tags as registry
from timm_icasc.hub.model_folder import write_weights
from timm_icasc.hub.pull import pull

CARDS = Path(__file__).parents[2] / 'hub_cards'
NAME = 'resnet20_cifar.icasc_digits'
FRESH_IMPORT = '''
import sys, warnings
for name in [name for name in sys.modules if name.split('.')[0] == 'timm_icasc']:
    del sys.modules[name]
'''
PUBLISHED = 'test_resnet.icasc_test'  # a tag of an architecture that is timm's own


@pytest.fixture(autouse=True)
def restored():
    """timm's registry as it was, whatever a test does to it."""
    tags = {name: (list(c.tags), dict(c.cfgs)) for name, c in sys.modules['timm.models.resnet'].default_cfgs.items()}
    saved = {
        name: value.copy() for name, value in vars(_registry).items()
        if name.startswith('_model') and isinstance(value, (dict, set))}
    known = dict(registry.WEIGHT_TAGS)
    yield
    for name, value in saved.items():
        getattr(_registry, name).clear()
        getattr(_registry, name).update(value)
    registry.WEIGHT_TAGS.clear()
    registry.WEIGHT_TAGS.update(known)
    for name, config in sys.modules['timm.models.resnet'].default_cfgs.items():
        if name in tags:
            config.tags.clear()
            config.tags.extend(tags[name][0])
            config.cfgs.clear()
            config.cfgs.update(tags[name][1])


@recent_timm  # an older one reads model.safetensors of a folder as a pickle
def test_listed_and_loaded_without_a_network():
    assert NAME in timm.list_pretrained('*icasc*') and timm.models.is_model_pretrained(NAME)
    model = timm.create_model(NAME, pretrained=True)
    same = timm.create_model(f'local-dir:{CARDS / NAME}', pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    assert model.pretrained_cfg['tag'] == 'icasc_digits' and model.pretrained_cfg['mean'] == (0.305,) * 3
    assert model.pretrained_cfg['label_names'] == tuple('0123456789') and model.num_classes == 10


def test_where_the_weights_of_a_card_are(tmp_path):
    """In its folder; else at the commit where `push` has published them; else there is no tag."""
    shutil.copytree(CARDS, tmp_path / 'cards')
    folder, record = tmp_path / 'cards' / NAME, tmp_path / 'cards' / f'{NAME}.hub.json'
    record.unlink(missing_ok=True)
    found = registry.find_tags(tmp_path / 'cards')[NAME]
    assert found.shipped == folder and found.hub is None
    (folder / 'model.safetensors').unlink()
    assert NAME not in registry.find_tags(tmp_path / 'cards')
    record.write_text(json.dumps({'repo_id': 'me/x', 'revision': '1' * 40, 'sha256': '2' * 64}))
    found = registry.find_tags(tmp_path / 'cards')[NAME]
    assert found.shipped is None and found.sha256 == '2' * 64
    config = found.pretrained_cfg()
    assert config.hf_hub_id == f"me/x@{'1' * 40}" and config.mean == (0.305,) * 3 and config.file is None


def test_a_head_of_ones_own():
    model = timm.create_model(NAME, pretrained=True, num_classes=3)
    assert model.fc.weight.shape == (3, 64)
    assert torch.equal(model.conv1.weight, timm.create_model(NAME, pretrained=True).conv1.weight)


def test_an_architecture_with_arguments_of_its_own(tmp_path):
    """A tag builds what its weights fit, as timm does from a config.json; what the caller says goes first."""
    arguments = {'layers': [2, 1, 1, 1], 'stem_width': 8}
    model = timm.create_model('test_resnet', num_classes=7, **arguments)
    name = 'test_resnet.icasc_short'
    (tmp_path / name).mkdir()
    written = write_weights(model.state_dict(), {}, tmp_path / name / 'model.safetensors')
    sha256 = model_folder.file_sha256(tmp_path / name / 'model.safetensors')
    (tmp_path / name / 'config.json').write_text(json.dumps({
        'architecture': 'test_resnet', 'num_classes': 7, 'model_args': arguments, 'timm_icasc': {
            **written, 'sha256': sha256},
        'pretrained_cfg': {'tag': 'icasc_short', 'num_classes': 7, 'first_conv': 'conv1.0', 'classifier': 'fc'}}))
    registry.register_tags(registry.find_tags(tmp_path))
    loaded = timm.create_model(name, pretrained=True)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    assert len(timm.create_model(name).layer1) == 2 and len(timm.create_model(name, layers=(1, 1, 1, 1)).layer1) == 1
    assert len(timm.create_model('test_resnet').layer1) == 1


def test_without_a_tag_nothing_changes():
    with pytest.raises(RuntimeError, match='No pretrained weights exist for resnet20_cifar'):
        timm.create_model('resnet20_cifar', pretrained=True)
    assert timm.get_pretrained_cfg('resnet20_cifar').tag is None
    assert timm.create_model('resnet20_cifar').num_classes == 100


def test_registering_again_is_silent_and_changes_nothing():
    def state():
        return [
            dict(getattr(_registry, name)) if isinstance(getattr(_registry, name), dict) else
            set(getattr(_registry, name)) for name in ('_model_with_tags', '_model_has_pretrained')]
    before, tags = state(), list(sys.modules[
        'timm_icasc.models.resnet_cifar'].default_cfgs['resnet20_cifar'].tags)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        registry.register_tags()
        importlib.reload(timm_icasc)
    assert state() == before
    assert list(sys.modules['timm_icasc.models.resnet_cifar'].default_cfgs['resnet20_cifar'].tags) == tags
    entrypoint = timm.models.model_entrypoint('resnet20_cifar')
    assert not hasattr(getattr(entrypoint, registry.MARK), registry.MARK), 'wrapped once'


def test_another_import_is_silent_too(client, tmp_path):
    """Under the same name once forgotten, and under another name."""
    (tmp_path / 'another_name').symlink_to(Path(timm_icasc.__file__).parent)
    result = client(code=FRESH_IMPORT + f'''
import timm
names = timm.list_models('*_cifar*', pretrained=False), timm.list_pretrained()
warnings.simplefilter('error')
sys.path.insert(0, {str(tmp_path)!r})
import timm_icasc, another_name
assert (timm.list_models('*_cifar*', pretrained=False), timm.list_pretrained()) == names
entrypoint = timm.models.model_entrypoint('resnet20_cifar')
assert not hasattr(getattr(entrypoint, {registry.MARK!r}), {registry.MARK!r})
assert timm.create_model({NAME!r}, pretrained=True).pretrained_cfg['tag'] == 'icasc_digits'
''')
    assert result.code == 0, result.err


def test_the_default_weights_of_timms_architectures_stay():
    before = {name: timm.get_pretrained_cfg(name) for name in ('test_resnet', 'resnet18', 'resnet18.a1_in1k')}
    names = timm.list_pretrained('resnet18*')
    for architecture in ('test_resnet', 'resnet18'):
        tagged = registry.WeightTag(
            f'{architecture}.icasc_test', '0' * 64, {'num_classes': 7, 'tag': 'icasc_test'},
            hub={'repo_id': 'me/x', 'revision': '1' * 40})
        registry.register_tags({tagged.name: tagged})
    assert {name: timm.get_pretrained_cfg(name) for name in before} == before
    assert timm.list_pretrained('resnet18*') == sorted([*names, 'resnet18.icasc_test'], key=_registry._natural_key)
    config = timm.get_pretrained_cfg('resnet18.icasc_test')
    assert config.hf_hub_id == f"me/x@{'1' * 40}" and config.hf_hub_filename == 'model.safetensors'
    assert config.num_classes == 7 and config.url is None
    assert timm.list_models('resnet18', module='resnet') == ['resnet18']


def test_weights_of_ones_own_are_not_overridden(tmp_path):
    """An explicit file wins over the tag's, as with any timm tag."""
    model = timm.create_model('resnet20_cifar', num_classes=10)
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    loaded = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={'file': str(tmp_path / 'x.pth')})
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


def test_damaged_shipped_weights_are_refused(tmp_path):
    tagged = registry.WEIGHT_TAGS[NAME]
    content = bytearray((CARDS / NAME / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (tmp_path / 'model.safetensors').write_bytes(content)
    registry.register_tags({NAME: dataclasses.replace(tagged, shipped=tmp_path)})
    with pytest.raises(HubError, match='is damaged .* install timm_icasc again'):
        timm.create_model(NAME, pretrained=True)


def test_weights_that_are_published_are_checked_once(monkeypatch):
    tagged = registry.WeightTag(PUBLISHED, '0' * 64, {}, hub={'repo_id': 'me/x', 'revision': '1' * 40})
    asked = []
    monkeypatch.setattr('timm_icasc.hub.download.fetch', lambda *args: asked.append(args) or 'checked')
    registry.WEIGHT_TAGS[PUBLISHED] = tagged
    assert pull(PUBLISHED) == 'checked' and asked == [('me/x', '1' * 40, '0' * 64, None)]


@pytest.mark.parametrize('spoil', [
    lambda patch: patch.setattr(registry, 'register_model', None),
    lambda patch: patch.delattr(timm.models, 'model_entrypoint'),
    lambda patch: patch.delattr(sys.modules['timm_icasc.models.resnet_cifar'], 'default_cfgs'),
    lambda patch: patch.delattr(timm, 'get_pretrained_cfg'),
    lambda patch: patch.setattr(registry, 'find_tags', lambda: json.loads('')),
], ids=['register_model', 'model_entrypoint', 'default_cfgs', 'get_pretrained_cfg', 'a broken hub_cards'])
def test_a_changed_timm_costs_a_warning_only(spoil, monkeypatch):
    spoil(monkeypatch)
    with pytest.warns(UserWarning, match='its weight tags are not registered with timm'):
        registry.register_tags()


class TestWhereTheCardsLie:
    """Beside the package in a checkout, in it where it is installed; there is no link from one to the other."""

    @pytest.fixture
    def package(self, tmp_path):
        shutil.copytree(
            Path(timm_icasc.__file__).parent, tmp_path / 'x' / 'timm_icasc', symlinks=True,
            ignore=shutil.ignore_patterns('__pycache__', 'hub_cards'))
        return tmp_path / 'x' / 'timm_icasc'

    def test_a_checkout_finds_the_folder_beside_the_package(self, package):
        shutil.copytree(CARDS, package.parent / 'hub_cards')
        assert registry.find_cards(package) == package.parent / 'hub_cards'

    def test_an_installation_has_it_inside(self, package):
        shutil.copytree(CARDS, package / 'hub_cards')
        assert registry.find_cards(package) == package / 'hub_cards'

    def test_an_installation_lacks_it_and_says_so(self, package, client):
        """The import goes on; publishing a run, which needs the template of the card, is refused in one line."""
        result = client(code=FRESH_IMPORT + f'''
from timm.models import _registry
_registry._model_has_pretrained.clear()  # of the tests' own import
sys.path.insert(0, {str(package.parent)!r})
import timm, timm_icasc
assert timm_icasc.__file__.startswith({str(package)!r})
from timm_icasc.publish import card
assert timm.list_pretrained('*icasc*') == [] and timm.create_model('resnet20_cifar')
try:
    card.render_sources(card.Path({str(CARDS / NAME)!r} + '.yaml'))
except timm_icasc.HubError as e:
    print(e)''')
        assert result.code == 0, result.err
        assert 'its weight tags are not registered' in result.err and "no folder '" in result.err
        assert result.out.startswith(NAME) and 'card.md.j2\'; install timm_icasc again.' in result.out


@pytest.mark.parametrize('gone', [('timm.models', 'model_entrypoint'), ('timm', 'get_pretrained_cfg')], ids='.'.join)
def test_the_import_survives_it(gone, client):
    """What timm no longer has costs the tags, not the package."""
    module, name = gone
    result = client(code=FRESH_IMPORT + f'''
import timm
delattr(sys.modules[{module!r}], {name!r})
import timm_icasc, torch
assert timm_icasc.ICASCTask is not None and timm.create_model('resnet20_cifar').num_classes == 100
''')
    assert result.code == 0, result.err
    assert 'its weight tags are not registered' in result.err and name in result.err


class TestPublished:
    """A tag whose weights lie on the Hub at a pinned commit."""

    @pytest.fixture(autouse=True)
    def content(self, hub, tmp_path):
        """Weights made from seed 3, as 'me/pinned'."""
        torch.manual_seed(3)
        weights = timm.create_model('test_resnet', num_classes=7).state_dict()
        write_weights(weights, {}, tmp_path / 'model.safetensors')
        config = {'architecture': 'test_resnet', 'num_classes': 7, 'pretrained_cfg': {
            'tag': 'icasc_test', 'num_classes': 7, 'input_size': [3, 160, 160], 'first_conv': 'conv1.0',
            'classifier': 'fc'}}
        content = (tmp_path / 'model.safetensors').read_bytes()
        hub.create('me/pinned', {
            'config.json': json.dumps(config).encode(), 'model.safetensors': content, 'README.md': b''})
        return content

    def create(self, hub, client, tmp_path, sha256=None, **kwargs):
        """The process that asks timm for the tag."""
        revision = hub.repos['me/pinned'].commits[1]['oid']
        sha256 = sha256 or hub.repos['me/pinned'].commits[1]['files']['model.safetensors']['oid']
        return client(code=f'''
import timm, torch
from timm_icasc.hub.tags import WeightTag, register_tags
tagged = WeightTag({PUBLISHED!r}, {sha256!r}, {{'num_classes': 7, 'tag': 'icasc_test', 'classifier': 'fc'}},
                hub={{'repo_id': 'me/pinned', 'revision': {revision!r}}})
register_tags({{tagged.name: tagged}})
assert tagged.name in timm.list_pretrained('*icasc*')
torch.save(timm.create_model(tagged.name, pretrained=True).state_dict(), {str(tmp_path / 'state.pt')!r})
''', **kwargs)

    def test_the_pinned_commit_is_loaded_whatever_main_has_become(self, hub, client, tmp_path):
        hub.commit(hub.repos['me/pinned'], {'model.safetensors': b'something else', 'config.json': b'{}'})
        result = self.create(hub, client, tmp_path)
        assert result.code == 0, result.err
        torch.manual_seed(3)
        expected = timm.create_model('test_resnet', num_classes=7).state_dict()
        loaded = torch.load(tmp_path / 'state.pt')
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())

    def test_other_contents_than_the_pinned_are_refused(self, hub, client, tmp_path):
        result = self.create(hub, client, tmp_path, sha256='0' * 64)
        assert 'DamagedError: me/pinned@' in result.err and 'is not the pinned one' in result.err
        assert not (tmp_path / 'state.pt').exists()

    def test_without_network(self, hub, client, nowhere, tmp_path):
        result = self.create(hub, client, tmp_path, endpoint=nowhere)
        assert re.search(f'HubError: me/pinned@[0-9a-f]{{40}}: {nowhere} cannot be reached .*; check', result.err)

    def test_failures_are_said_and_a_warm_cache_needs_no_token(self, hub, client, tmp_path):
        cold = self.create(hub, client, tmp_path, token='hf_wrong')
        assert 'HubError: me/pinned@' in cold.err and 'the access token is not valid' in cold.err
        cache = client.cache()
        assert self.create(hub, client, tmp_path, cache=cache).code == 0
        assert self.create(hub, client, tmp_path, cache=cache, token='hf_wrong').code == 0
        assert self.create(hub, client, tmp_path, cache=cache, HF_HUB_OFFLINE='1').code == 0
        blob = next(cache.rglob('model.safetensors')).resolve()
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
        assert 'model.safetensors is damaged' in self.create(hub, client, tmp_path, cache=cache).err
