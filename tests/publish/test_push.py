"""Publishing over real HTTP: what arrives, what happens when something goes wrong, and getting the same bits back."""
import csv
import hashlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
from helpers import hub_server
from helpers.hub_endpoints import ROUTES

ROOT = Path(__file__).parents[2]
CARDS = ROOT / 'hub_cards'
NAME = 'resnet20_cifar.icasc_digits'
WEIGHTS = CARDS / NAME / 'model.safetensors'
PUSHED = ('.gitattributes', 'README.md', 'args.yaml', 'attention.png', 'config.json', 'model.safetensors')
WITHOUT_FIGURE = tuple(name for name in PUSHED if name != 'attention.png')


@pytest.fixture
def card(tmp_path):
    """A copy of the shipped folder and its sources: push notes beside them where it has published."""
    shutil.copytree(CARDS, tmp_path / 'cards')
    return tmp_path / 'cards' / NAME


@pytest.fixture
def push(client):
    def call(source, repo_id, *options, token='hf_owner', **kwargs):
        return client('push', source, repo_id, *options, token=token, **kwargs)
    return call


def flip(file):
    """Turn round one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def commits(hub, repo_id):
    return [commit['message'] for commit in hub.repos[repo_id].commits]


class TestTheLoopbackHub:
    """The Hub's own client finds there what it finds on the Hub."""

    def test_tree_references_and_files_by_path(self, hub, client):
        hub.create('me/listed', {'model.safetensors': b'weights', 'README.md': b'# x'})
        result = client(code='''
from huggingface_hub import HfApi
api = HfApi()
api.create_tag('me/listed', tag='v1')
files = {file.path: file for file in api.list_repo_tree('me/listed', revision='v1')}
asked, = api.get_paths_info('me/listed', ['model.safetensors'])
assert asked.lfs.sha256 == files['model.safetensors'].lfs.sha256 and asked.size == 7
refs = api.list_repo_refs('me/listed')
head = api.model_info('me/listed').sha
assert refs.branches[0].target_commit == refs.tags[0].target_commit == head and refs.tags[0].name == 'v1'
print(sorted(files), asked.lfs.sha256)''', token='hf_owner')
        assert result.out.strip() == "['.gitattributes', 'README.md', 'model.safetensors'] " + \
            hashlib.sha256(b'weights').hexdigest(), result.err

    def test_its_list_of_endpoints_is_whole(self):
        print(hub_server.__doc__)  # for pytest -n 0 -s
        listed = re.findall(r'^    (GET|HEAD|POST|PUT) +/', hub_server.__doc__, re.M)
        assert sorted(listed) == sorted(method for method, *_ in ROUTES)


class TestRoundTrip:

    def test_a_run_comes_back_bit_by_bit(self, compared, hub, push, client, tmp_path):
        result = push(compared, 'me/round')
        assert result.code == 0, result.err
        repo = hub.repos['me/round']
        assert tuple(sorted(repo.head['files'])) == WITHOUT_FIGURE
        assert len(repo.commits) == 2, 'one commit after the first'
        (tag, commit), = repo.tags.items()
        assert tag.startswith('verified-') and commit == repo.head['oid'] and f'me/round@{tag}' in result.out
        config = json.loads(hub.read('me/round', 'config.json'))
        content = hub.read('me/round', 'model.safetensors')
        assert config['timm_icasc']['sha256'] == hashlib.sha256(content).hexdigest()
        assert config['timm_icasc']['seed'] == 7 and 'label_names' not in config

        assert client('pull', f'me/round@{tag}', '--to', tmp_path / 'pulled').code == 0
        for name in ('hf-hub:me/round', f'hf-hub:me/round@{tag}', f'local-dir:{tmp_path / "pulled"}'):
            path = tmp_path / 'state.pt'
            assert client(code=(
                f'import timm, timm_icasc, torch\nmodel = timm.create_model({name!r}, pretrained=True)\n'
                f'torch.save([model.state_dict(), model.pretrained_cfg["mean"]], {str(path)!r})')).code == 0
            loaded, mean = torch.load(path)
            trained = torch.load(compared / 'icasc' / 'last.pth.tar', weights_only=False)['state_dict']
            assert loaded.keys() == trained.keys()
            assert all(torch.equal(loaded[k], trained[k]) for k in trained)
            assert tuple(mean) == (0.5071, 0.4865, 0.4409)

    def test_a_shipped_folder_goes_up_as_it_is_and_its_place_is_noted(self, hub, push, card):
        assert push(card, 'shipped').code == 0, 'the owner is the token\'s'
        assert hub.read('me/shipped', 'model.safetensors') == WEIGHTS.read_bytes()
        assert b"timm.create_model('hf-hub:me/shipped'" in hub.read('me/shipped', 'README.md')
        record = json.loads((card.parent / f'{NAME}.hub.json').read_text())
        assert record['revision'] == hub.repos['me/shipped'].head['oid']

    def test_a_place_that_cannot_be_noted(self, hub, push, card):
        (card.parent / f'{NAME}.hub.json').mkdir()
        result = push(card, 'me/unnoted')
        assert result.code == 2 and f"published as me/unnoted@{hub.repos['me/unnoted'].head['oid']}, but" in result.err
        assert len(result.err.splitlines()) == 1 and hub.repos['me/unnoted'].tags

    def test_a_run_on_images_of_several_classes(self, multilabel, hub, push, client):
        """Judged by mean average precision, on its card and by pull."""
        result = push(multilabel, 'me/several')
        assert result.code == 0, result.err
        value = json.loads((multilabel / 'results.json').read_text())['last']['eval_mAP']
        text = hub.read('me/several', 'README.md').decode()
        assert f'| 7 | {value:.2f} |' in text and '.sigmoid()' in text
        assert f'seed 7, Mean average precision {value:.2f}' in client('pull', 'me/several').out

    def test_the_best_epoch_with_its_own_figures(self, falling, hub, push, tmp_path):
        """Weights and figures are of the same epoch, and the card says how it was chosen; the figure is of the last."""
        with open(falling / 'summary.csv', newline='') as file:
            _, best, last = [float(row['eval_top1']) for row in csv.DictReader(file)]
        run = shutil.copytree(falling, tmp_path / 'run')
        arguments = run / 'args.yaml'
        arguments.write_text(arguments.read_text().replace("dataset: ''", 'dataset: digits'))
        for name, options, value, chosen in (
                ('me/last', (), last, 'the last epoch'), ('me/best', ('--best',), best, 'the best epoch')):
            assert push(run, name, *options).code == 0
            card, config = hub.read(name, 'README.md').decode(), json.loads(hub.read(name, 'config.json'))
            assert f'| 7 | {value:.2f} |' in card and f'weights after {chosen}.' in card
            assert config['timm_icasc']['metrics']['top1'] == value
            assert ('The weights are those of the epoch that did best' in card) == (name == 'me/best')
            assert ('They were not used for training or to choose the epoch' in card) == (name == 'me/last')
            assert ('attention.png' in hub.repos[name].head['files']) == (name == 'me/last')
        assert config['timm_icasc']['epochs'] == 2
        result = push(run, 'me/best', '--best', '--figure')
        assert result.code == 2 and '--figure: attention.png is of the last epoch' in result.err

    def test_an_exported_folder_has_no_best(self, push, card):
        result = push(card, 'me/best-of-one', '--best')
        assert result.code == 2 and f"--best: '{card}' holds the weights of one epoch" in result.err

    def test_the_card_of_a_run_has_the_baseline_beside_it(self, compared, hub, push):
        push(compared, 'me/round')
        card = hub.read('me/round', 'README.md').decode()
        rows = [line for line in card.splitlines() if line.startswith('| ') and '| 7 |' in line]
        assert [row.split(' | ')[0] for row in rows] == ['| cross-entropy', '| ICASC ach, order 1']
        for row, name in zip(rows, ('baseline', 'icasc'), strict=True):
            top1 = json.loads((compared / name / 'results.json').read_text())['last']['eval_top1']
            assert f'| {top1:.2f} |' in row

    def test_again_makes_no_commit(self, hub, push, card):
        for _ in range(2):
            assert push(card, 'me/again').code == 0
        assert len(hub.repos['me/again'].commits) == 2 and len(hub.repos['me/again'].tags) == 1

    def test_an_existing_repo_is_updated(self, compared, hub, push):
        hub.create('me/old', {'pytorch_model.bin': b'\x80\x04', 'README.md': b'old'})
        result = push(compared, 'me/old')
        assert result.code == 0 and 'also holds pytorch_model.bin' in result.out
        assert hub.read('me/old', 'README.md') != b'old' and len(hub.repos['me/old'].commits) == 3

    def test_a_private_repo(self, hub, push, client, card):
        assert push(card, 'me/secret', '--private').code == 0
        assert hub.repos['me/secret'].private
        assert client('pull', 'me/secret', token='hf_owner').code == 0
        assert client('pull', 'me/secret').code == 2

    def test_private_is_no_wish_that_a_public_repo_overrules(self, hub, push, card):
        hub.create('me/public')
        result = push(card, 'me/public', '--private')
        assert result.code == 2 and 'me/public@main: the repo is there, and public' in result.err
        assert len(hub.repos['me/public'].commits) == 1

    def test_what_else_lies_in_the_folder_stays_there(self, hub, push, card):
        (card / 'notes').mkdir()
        for name in ('.env', 'optimizer.pth', 'notes/x.txt'):
            (card / name).write_bytes(b'x')
        assert push(card, 'me/tidy').code == 0
        assert tuple(sorted(hub.repos['me/tidy'].head['files'])) == PUSHED

    def test_a_pulled_folder_is_whole(self, hub, push, client, card, tmp_path):
        """With the figure that the card shows, and the options of the run."""
        assert push(card, 'me/whole').code == 0
        assert client('pull', 'me/whole', '--to', tmp_path / 'pulled').code == 0
        assert {path.name for path in (tmp_path / 'pulled').iterdir()} == {*PUSHED} - {'.gitattributes'}
        for path in (tmp_path / 'pulled').iterdir():
            assert path.read_bytes() == hub.read('me/whole', path.name)

    def test_in_parts(self, hub, push, monkeypatch, card):
        hub.object(hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()).unlink(missing_ok=True)
        monkeypatch.setattr(hub, 'multipart_above', 1 << 20)
        monkeypatch.setattr(hub, 'part_size', 1 << 19)
        before = len(hub.requests)
        assert push(card, 'me/parts').code == 0
        assert len([r for r in hub.requests[before:] if '/storage/part/' in r]) == 3
        assert hub.read('me/parts', 'model.safetensors') == WEIGHTS.read_bytes()


class TestWhatLeavesTheMachine:
    """No more than was asked for: files of the folder alone, no link, no picture of private images, no local path."""

    @pytest.fixture
    def run(self, compared, tmp_path):
        return shutil.copytree(compared, tmp_path / 'jobs' / 'run')

    def published(self, hub, repo_id):
        return {name for name in hub.repos[repo_id].head['files'] if name != '.gitattributes'}

    def test_pictures_of_a_users_images_are_asked_for(self, run, hub, push):
        assert (run / 'attention.png').is_file()
        result = push(run, 'me/figure')
        assert result.out.endswith('published: README.md, args.yaml, config.json, model.safetensors\n')
        assert 'attention.png' not in hub.read('me/figure', 'README.md').decode()
        assert push(run, 'me/figure', '--figure').code == 0
        assert hub.read('me/figure', 'attention.png') == (run / 'attention.png').read_bytes()
        assert '![Attention maps](attention.png)' in hub.read('me/figure', 'README.md').decode()

    def test_a_public_name_makes_no_public_images(self, run, hub, push):
        """'imagenet' reads a folder of any classes."""
        arguments = run / 'icasc' / 'args.yaml'
        arguments.write_text(arguments.read_text().replace("dataset: ''", 'dataset: imagenet'))
        assert push(run, 'me/own').code == 0
        assert 'attention.png' not in self.published(hub, 'me/own')
        assert 'label_names' not in json.loads(hub.read('me/own', 'config.json'))

    def test_those_of_a_public_data_set_go_along(self, run, hub, push, card):
        arguments = run / 'icasc' / 'args.yaml'
        arguments.write_text(arguments.read_text().replace("dataset: ''", 'dataset: digits'))
        assert push(run, 'me/of-digits').code == 0 and 'attention.png' in self.published(hub, 'me/of-digits')
        assert push(run, 'me/of-digits-without', '--no-figure').code == 0
        assert 'attention.png' not in self.published(hub, 'me/of-digits-without')
        assert push(card, 'me/card-without', '--no-figure').code == 0
        assert 'attention.png' not in hub.read('me/card-without', 'README.md').decode()

    def test_a_folder_of_private_images(self, run, hub, push, client, tmp_path):
        """Published with its figure, fetched, and pushed to another place: asked for again."""
        assert push(run, 'me/first', '--figure').code == 0
        assert client('pull', 'me/first', '--to', tmp_path / 'pulled').code == 0
        assert push(tmp_path / 'pulled', 'me/second').code == 0
        assert 'attention.png' not in self.published(hub, 'me/second')
        assert 'attention.png' not in hub.read('me/second', 'README.md').decode()

    def test_a_figure_that_is_not_there(self, run, push):
        result = push(run / 'icasc', 'me/no-figure', '--figure')
        assert result.code == 2 and f"--figure: '{run / 'icasc'}' holds no attention.png." in result.err

    def test_nothing_is_taken_from_the_folder_above(self, run, hub, push):
        """Neither the job's figure for one of its runs, nor anybody's for a run of its own."""
        arguments = run / 'icasc' / 'args.yaml'
        arguments.write_text(arguments.read_text().replace("dataset: ''", 'dataset: digits'))
        shutil.copy(run / 'attention.png', run.parent)
        alone = shutil.copytree(run / 'icasc', run.parent / 'alone')
        for folder, name in ((run / 'icasc', 'me/inner'), (alone, 'me/alone')):
            assert push(folder, name).code == 0 and 'attention.png' not in self.published(hub, name)

    def test_names_of_classes(self, run, hub, push):
        """Those of a user's own images are published where they are asked for."""
        assert push(run, 'me/named', '--class-names').code == 0
        assert json.loads(hub.read('me/named', 'config.json'))['label_names'] == ['ant', 'bat', 'cat']
        assert push(run, 'me/nameless').code == 0
        assert 'label_names' not in json.loads(hub.read('me/nameless', 'config.json'))
        for name in self.published(hub, 'me/nameless') - {'model.safetensors'}:
            assert b'ant' not in re.findall(rb'\w+', hub.read('me/nameless', name)), name

    @pytest.mark.parametrize('name', ['README.md', 'args.yaml', 'config.json', 'model.safetensors', 'attention.png'])
    def test_a_link_in_an_exported_folder(self, name, hub, push, card, tmp_path):
        (tmp_path / 'token').write_text('hf_secret')
        if (card / name).exists() and name != 'README.md':
            (card / name).rename(tmp_path / 'token')
        (card / name).unlink(missing_ok=True)
        (card / name).symlink_to(tmp_path / 'token')
        result = push(card, 'me/linked')
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert f"'{card / name}' is a link" in result.err and 'me/linked' not in hub.repos

    @pytest.mark.parametrize('name', [
        'attention.png', 'icasc', 'icasc/args.yaml', 'icasc/results.json', 'icasc/last.pth.tar', 'baseline/args.yaml'])
    def test_a_link_in_a_run(self, name, run, hub, push, tmp_path):
        (run / name).rename(tmp_path / 'elsewhere')
        (run / name).symlink_to(tmp_path / 'elsewhere')
        result = push(run, 'me/linked', '--figure')
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert f"'{run / name}' is a link" in result.err and 'me/linked' not in hub.repos

    def test_the_folder_itself_may_be_one(self, run, push, tmp_path):
        (tmp_path / 'newest').symlink_to(run)
        assert push(tmp_path / 'newest', 'me/newest').code == 0

    def test_local_paths_stay_here(self, run, noise, hub, push):
        assert str(noise) in (run / 'icasc' / 'results.json').read_text()
        assert push(run, 'me/paths', '--figure').code == 0
        for name in self.published(hub, 'me/paths'):
            assert str(noise.parent).encode() not in hub.read('me/paths', name), name
        config = json.loads(hub.read('me/paths', 'config.json'))
        assert f'--data-dir {noise.name} ' in config['timm_icasc']['command']
        assert f'data_dir: {noise.name}\n' in hub.read('me/paths', 'args.yaml').decode()
        assert f'--data-dir {noise.name} ' in hub.read('me/paths', 'README.md').decode()

    @pytest.mark.parametrize('name', ['args.yaml', 'config.json'])
    def test_an_exported_folder_with_local_paths(self, name, hub, push, card):
        if name == 'args.yaml':
            (card / name).write_text('data_dir: /home/alice/cats\n')
        else:
            config = json.loads((card / name).read_text())
            config['timm_icasc']['command'] = 'train_timm.py --data-dir /home/alice/cats'
            (card / name).write_text(json.dumps(config))
        result = push(card, 'me/old-export')
        assert result.code == 2 and len(result.err.splitlines()) == 1
        assert f"'{card / name}' names a path of the machine that it was made on" in result.err
        assert 'me/old-export' not in hub.repos

    @pytest.mark.parametrize('method, path', [('PUT', '/storage/upload/'), ('GET', '/storage/object/')])
    def test_a_signal_leaves_no_copy(self, method, path, run, hub, client, push, tmp_path):
        """SIGTERM on the way there and on the way back: the process ends at once, its copies are gone."""
        (tmp_path / 'tmp').mkdir()
        name = f'me/stopped-{method}'
        assert push(run, name).code == 0  # what it sends
        content = hub.read(name, 'model.safetensors')
        if method == 'PUT':
            hub.object(hashlib.sha256(content).hexdigest()).unlink()
        hub.fail(method, path, 'hold')
        code = (
            f'import tempfile\ntempfile.tempdir = {str(tmp_path / "tmp")!r}\n'
            f'from pathlib import Path\nfrom timm_icasc.publish.push import push\npush(Path({str(run)!r}), "{name}-2")')
        pid = client.start(code=code, token='hf_owner')
        assert hub.reached.wait(60)
        assert list((tmp_path / 'tmp').iterdir()), 'copies'
        os.kill(pid, signal.SIGTERM)
        assert client.finish().code == 128 + signal.SIGTERM
        hub.released.set()
        assert not list((tmp_path / 'tmp').iterdir())


class TestFaults:

    @pytest.mark.parametrize('fault', [
        ('PUT', '/storage/upload/', 'status', {'status': 500}),
        ('PUT', '/storage/upload/', 'drop', {}),
        ('POST', 'objects/batch', 'status', {'status': 503}),
        ('GET', '/storage/object/', 'truncate', {}),
    ], ids=['500 on PUT', 'connection dropped on PUT', '503 on batch', 'truncated on the way back'])
    def test_passing_faults_are_survived(self, fault, hub, push, card):
        method, path, action, options = fault
        # The weights are gone from the storage, or there would be nothing to upload.
        hub.object(hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()).unlink(missing_ok=True)
        hub.fail(method, path, action, **options)
        name = f"me/{method}-{action}-{options.get('status', 0)}"
        result = push(card, name)
        assert result.code == 0, result.err
        assert not hub.faults, 'it happened'
        assert hub.repos[name].tags

    @pytest.mark.slow
    @pytest.mark.parametrize('fault, message', [
        (('PUT', '/storage/upload/', 'status', {'status': 500}), 'the Hub has a fault (HTTP 500), after repeated '),
        (('PUT', '/storage/upload/', 'drop', {}), 'the connection to STORAGE broke (RemoteProtocolError: Server '),
        (('POST', 'objects/batch', 'status', {'status': 503}), 'the Hub has a fault (HTTP 503), after repeated '),
        (('POST', '/preupload/', 'status', {'status': 429, 'headers': {'Retry-After': '7'}}), 'too many requests; run '
         'the command again in 7 seconds.'),
        (('HEAD', '/resolve/', 'status', {'status': 503}), 'the Hub has a fault (HTTP 503), after repeated '),
    ], ids=['500 on PUT', 'connection dropped on PUT', '503 on batch', '429 on preupload', '503 on the way back'])
    def test_faults_that_stay(self, fault, message, hub, push, card):
        """Given up after five more attempts of the Hub's client, in half a minute; the next push completes it."""
        method, path, action, options = fault
        hub.object(hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()).unlink(missing_ok=True)
        hub.fail(method, path, action, times=None, **options)
        name = f"me/stays-{method}-{action}-{options.get('status', 0)}"
        result = push(card, name)
        line = re.sub('@[0-9a-f]{40}', '@main', result.err.splitlines()[-1]).replace(hub.storage, 'STORAGE')
        assert result.code == 2 and line.startswith(f'timm-icasc push: error: {name}@main: {message}')
        assert not hub.repos[name].tags
        hub.faults.clear()
        assert push(card, name).code == 0 and len(hub.repos[name].commits) == 2

    def test_killed_in_mid_upload(self, hub, client, push, card):
        """SIGKILL with half of the weights sent; nothing is visible, and the same command completes it."""
        oid = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        hub.object(oid).unlink(missing_ok=True)
        hub.fail('PUT', f'/storage/upload/{oid}', 'hold')
        pid = client.start('push', card, 'me/killed', token='hf_owner')
        assert hub.reached.wait(60)
        os.kill(pid, signal.SIGKILL)
        assert client.finish().code == -signal.SIGKILL
        hub.released.set()
        assert commits(hub, 'me/killed') == ['initial commit'] and not hub.repos['me/killed'].tags
        assert push(card, 'me/killed').code == 0
        assert hub.read('me/killed', 'model.safetensors') == WEIGHTS.read_bytes()
        assert len(hub.repos['me/killed'].commits) == 2

    def test_killed_after_the_upload(self, hub, client, push, card):
        """What has arrived is not sent again."""
        oid = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        hub.object(oid).unlink(missing_ok=True)
        hub.fail('POST', '/commit/', 'drop', before=lambda: (hub.reached.set(), hub.released.wait(60)))
        pid = client.start('push', card, 'me/killed-later', token='hf_owner')
        assert hub.reached.wait(60)
        os.kill(pid, signal.SIGKILL)
        client.finish()
        hub.released.set()
        before = len(hub.requests)
        assert push(card, 'me/killed-later').code == 0
        assert not [r for r in hub.requests[before:] if r.startswith('PUT')]

    def test_a_commit_by_somebody_else_is_not_overwritten(self, hub, push, card):
        push(card, 'me/race')
        repo = hub.repos['me/race']
        hub.commit(repo, {'config.json': b'{}'})
        hub.fail('POST', '/preupload/', 'pass', before=lambda: hub.commit(repo, {'README.md': b'by somebody else'}))
        result = push(card, 'me/race')
        assert result.code == 2 and result.err == (
            'timm-icasc push: error: me/race@main: somebody has committed to the repo meanwhile, and nothing was '
            'overwritten; look at the change, then run the command again.\n')
        assert hub.read('me/race', 'README.md') == b'by somebody else'
        assert push(card, 'me/race').code == 0, 'again, on top of what is there now'

    def test_a_hub_that_falls_silent_is_given_up(self, hub, client, push, card):
        """Two minutes, shortened here; the Hub's client itself would wait for ever. The next push has the tag to do."""
        hub.fail('POST', '/tag/', 'hold')
        result = client(code=f"""
from pathlib import Path
from timm_icasc.hub import upload
from timm_icasc.publish import push
compare = upload._compare
def with_little_patience_then(*args):
    compare(*args)
    upload.ANSWER_SECONDS = 0.2
upload._compare = with_little_patience_then
push.push(Path({str(card)!r}), 'me/silent')""", token='hf_owner')
        hub.released.set()
        assert 'HubError: me/silent@' in result.err and 'broke (ReadTimeout' in result.err
        assert len(hub.repos['me/silent'].commits) == 2, 'all but the tag was done'
        assert push(card, 'me/silent').code == 0
        assert len(hub.repos['me/silent'].commits) == 2 and len(hub.repos['me/silent'].tags) == 1

    def test_what_comes_back_different_is_not_tagged(self, hub, push, card):
        hub.fail('GET', '/storage/object/', 'flip', times=None)
        result = push(card, 'me/bent')
        assert result.code == 2 and result.err == (
            f"timm-icasc push: error: me/bent@{hub.repos['me/bent'].head['oid']}: model.safetensors came back "
            'different from what was sent; it is not tagged. Run the command again.\n')
        assert not hub.repos['me/bent'].tags

    @pytest.mark.parametrize('name', ['README.md', 'args.yaml', 'config.json'])
    def test_so_is_none_of_the_small_files(self, name, hub, push, card):
        """Each is compared, and not the last one alone."""
        hub.fail('GET', f'/api/resolve-cache/.*/{name}', 'flip', times=None)
        result = push(card, f'me/bent-{name}')
        assert result.code == 2 and f'@{hub.repos[f"me/bent-{name}"].head["oid"]}: {name} ' in result.err
        assert not hub.repos[f'me/bent-{name}'].tags


REFUSED = {
    'no token': (
        'me/x', '', "me/x@main: no access token; 'hf auth login', or a token from "
        'https://huggingface.co/settings/tokens in HF_TOKEN.'),
    'wrong token': (
        'me/x', 'hf_wrong', 'me/x@main: the access token is not valid (expired, revoked, or of another '
        "endpoint); 'hf auth login', or a token from https://huggingface.co/settings/tokens in HF_TOKEN. "
        'For public repos no token is needed: unset HF_TOKEN, or hf auth logout.'),
    'account of somebody else': (
        'you/x', 'hf_owner', "you/x@main: the access token may not do this (You don't have "
        'the rights to create a model under this namespace); use one with write permission '
        "to this account's repos: 'hf auth login', or a token from "
        'https://huggingface.co/settings/tokens in HF_TOKEN.'),
    'repo of somebody else': (
        'me/round', 'hf_stranger', "me/round@main: the access token may not do this (You don't "
        "have the rights to write to this repository.); use one with write permission to this "
        "account's repos: 'hf auth login', or a token from "
        'https://huggingface.co/settings/tokens in HF_TOKEN.'),
    'no repo name': (
        'a b', 'hf_owner', 'a b@main: this is no repo name; it is OWNER/NAME, of letters, digits, dots, '
        '- and _.'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_with_a_reason(case, hub, push, card):
    hub.repos.get('me/round') or hub.create('me/round')
    repo_id, token, message = REFUSED[case]
    result = push(card, repo_id, token=token)
    assert result.code == 2 and result.err == f'timm-icasc push: error: {message}\n'


def test_what_the_hub_would_refuse_leaves_no_empty_repo(compared, hub, client, push, tmp_path):
    result = push(compared, 'me/license', '--license', 'Apache 2.0')
    assert result.code == 2 and result.err == (
        'timm-icasc push: error: me/license@main: the metadata of README.md are refused: "license" must be one of the '
        'license identifiers\n')
    files = {name: str(tmp_path / name) for name in ('config.json', 'model.safetensors', 'README.md', 'x.bin')}
    result = client(code=f'''
from pathlib import Path
from timm_icasc.hub.upload import publish
publish({{name: Path(path) for name, path in {files!r}.items()}}, 'me/license')''', token='hf_owner')
    assert "x.bin' is a pickle; only model.safetensors is published" in result.err
    assert 'me/license' not in hub.repos


@pytest.mark.parametrize('status, headers, message', [
    (409, {}, 'the Hub reports a conflict; run the command again.'),
    (429, {'Retry-After': '7'}, 'too many requests; run the command again in 7 seconds.'),
    (500, {}, 'the Hub has a fault (HTTP 500), after repeated attempts where they are safe; run the command again '
              'later, see https://status.huggingface.co.'),
])
def test_a_commit_that_fails_is_not_tried_again(status, headers, message, hub, push, card):
    """It may have been made; the next push finds out."""
    hub.fail('POST', '/commit/', status=status, headers=headers)
    result = push(card, 'me/uncommitted')
    assert result.code == 2 and result.err == f'timm-icasc push: error: me/uncommitted@main: {message}\n'


@pytest.mark.parametrize('spoil, message', [
    (lambda run: (run / 'results.json').unlink(), 'holds no finished run (there is no results.json); timm-icasc train '
     '--resume auto goes on with it.'),
    (lambda run: (run / 'results.json').write_text('{}'), 'does not describe its model (an older run?)'),
    (lambda run: (run / 'last.pth.tar').unlink(), 'has no last.pth.tar; its weights are gone.'),
    (lambda run: (run / 'last.pth.tar').write_bytes(b'x'), "last.pth.tar' cannot be read: "),
    (lambda run: flip(run / 'last.pth.tar'), "last.pth.tar' is damaged: the checksum of "),
], ids=['unfinished', 'older', 'no checkpoint', 'broken checkpoint', 'flipped byte'])
def test_a_run_that_is_none(spoil, message, compared, push, tmp_path):
    run = shutil.copytree(compared / 'icasc', tmp_path / 'run')
    spoil(run)
    result = push(run, 'me/none')
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1


def test_train_timm_pushes_when_it_is_done(noise_options, hub, client, tmp_path):
    options = [*noise_options, '--output', str(tmp_path), '--experiment', 'x', '--push-to-hub']
    code = (
        f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train_timm\n'
        'sys.argv = {argv}\nsys.exit(train_timm.main())')
    before = len(hub.requests)
    refused = client(code=code.format(argv=[*options, 'me/trained']), token='hf_wrong')
    assert refused.code == 2 and 'the access token is not valid' in refused.err and not list(tmp_path.iterdir())
    assert [r for r in hub.requests[before:] if 'agent' not in r] == ['GET /api/whoami-v2'], 'before training'

    hub.fail('POST', '/commit/', status=403)
    result = client(code=code.format(argv=[*options, 'me/trained']), token='hf_owner')
    run_dir = tmp_path / 'x'
    assert result.code == 2 and result.err.strip().endswith(
        f'The run is saved; publish it with: timm-icasc push {run_dir} me/trained')
    assert client('push', run_dir, 'me/trained', token='hf_owner').code == 0
    model = timm.create_model('resnet20_cifar', num_classes=3, checkpoint_path=str(run_dir / 'last.pth.tar'))
    content = hub.read('me/trained', 'model.safetensors')
    (tmp_path / 'x.safetensors').write_bytes(content)
    loaded = timm.create_model('resnet20_cifar', num_classes=3, checkpoint_path=str(tmp_path / 'x.safetensors'))
    assert torch.equal(model.fc.weight, loaded.fc.weight)


class TestLicense:
    """Found out before the first step, from the same sources as after the last."""

    @pytest.fixture
    def train(self, noise_options, client, tmp_path):
        """Train on weights of unknown license, to be published; returns what a command returns."""
        torch.save(timm.create_model('resnet20_cifar', num_classes=3).state_dict(), tmp_path / 'source.pth')

        def call(*options):
            argv = [
                *noise_options, '--initial-checkpoint', str(tmp_path / 'source.pth'), '--output',
                str(tmp_path / 'output'), '--experiment', 'x', '--push-to-hub', 'me/licensed', *options]
            return client(token='hf_owner', code=(
                f'import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport train_timm\nsys.argv = {argv}\n'
                f'sys.exit(train_timm.main())'))
        return call

    @pytest.mark.parametrize('options, message', [
        ((), "the license of the weights that the run starts from, 'source.pth', is not known: name that of the result "
             'with --license, for instance --license apache-2.0.'),
        (('--license', 'Apache 2.0'), 'me/licensed@main: the metadata of README.md are refused: "license" must be one '
                                      'of the license identifiers')])
    def test_refused_before_the_first_step(self, options, message, train, tmp_path):
        result = train(*options)
        assert result.code == 2 and result.err == f'train_timm.py: error: {message}\n'
        assert not (tmp_path / 'output').exists() and 'epoch' not in result.out

    def test_the_remedy_has_it(self, hub, train, client, tmp_path):
        hub.fail('POST', '/commit/', status=403)
        result = train('--license', 'cc-by-4.0')
        command = f'push {tmp_path / "output" / "x"} me/licensed --license cc-by-4.0'
        assert result.code == 2 and result.err.strip().endswith(f'publish it with: timm-icasc {command}')
        assert client(*command.split(), token='hf_owner').code == 0
        assert json.loads(hub.read('me/licensed', 'config.json'))['pretrained_cfg']['license'] == 'cc-by-4.0'
