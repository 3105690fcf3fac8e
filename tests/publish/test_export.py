"""Weights on disk: what their hash is, what config.json says of them, and that damage shows."""
import hashlib
import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors import safe_open

from timm_icasc import HubError
from timm_icasc.hub.model_folder import (
    METADATA_KEY,
    check_folder,
    file_sha256,
    tensors_sha256,
    write_weights,
)
from timm_icasc.publish.export import export
from timm_icasc.runs.find import open_runs

PROVENANCE = {
    'format', 'requires', 'method', 'icasc', 'layers', 'command', 'commit', 'seed', 'epochs', 'versions',
    'device', 'dataset', 'train_images', 'val_images', 'source', 'ema', 'metrics', 'tensors_sha256'}


@pytest.fixture(scope='module')
def exported(averaged, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    export(open_runs(averaged)[0], folder, 'icasc_noise')
    return folder


class TestHashOfTensors:

    def test_by_hand(self):
        """sha256 of name, type, shape and little-endian values, names in order."""
        tensors = {'b': torch.tensor([[1.5, -2.]]), 'a': torch.tensor(3)}
        expected = b'a\0torch.int64\0()\0' + (3).to_bytes(8, 'little')
        expected += b'b\0torch.float32\0(1, 2)\0' + np.array([1.5, -2.], '<f4').tobytes()
        assert tensors_sha256(tensors) == hashlib.sha256(expected).hexdigest()
        assert tensors_sha256(dict(reversed(tensors.items()))) == tensors_sha256(tensors)

    @pytest.mark.parametrize('other', [
        {'x': torch.tensor([1., 2.001])}, {'y': torch.tensor([1., 2.])}, {'x': torch.tensor([[1., 2.]])},
        {'x': torch.tensor([1, 2], dtype=torch.int32)}, {'x': torch.tensor([1., 2.], dtype=torch.bfloat16)}])
    def test_everything_counts(self, other):
        assert tensors_sha256(other) != tensors_sha256({'x': torch.tensor([1., 2.])})

    def test_layout_in_memory_does_not(self):
        x = torch.arange(6.).view(2, 3)
        assert tensors_sha256({'x': x.t()}) == tensors_sha256({'x': x.t().contiguous()})
        assert tensors_sha256({'x': x[:, 1]}) == tensors_sha256({'x': torch.tensor([1., 4.])})


def test_shared_and_strided_tensors_are_written(tmp_path):
    x = torch.arange(6.).view(2, 3)
    write_weights({'a': x, 'b': x, 'c': x.t(), 'd': x[0]}, {}, tmp_path / 'x.safetensors')
    with safe_open(tmp_path / 'x.safetensors', 'pt') as file:
        assert all(torch.equal(file.get_tensor(k), v) for k, v in {'a': x, 'b': x, 'c': x.t(), 'd': x[0]}.items())


class TestExport:

    def test_the_weights_are_those_that_were_measured(self, averaged, exported):
        """The averaged ones, since the run kept an average."""
        checkpoint = torch.load(averaged / 'last.pth.tar', weights_only=False)
        model = timm.create_model(f'local-dir:{exported}', pretrained=True)
        state = model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in checkpoint['state_dict_ema'].items())
        assert not torch.equal(state['conv1.weight'], checkpoint['state_dict']['conv1.weight'])

    def test_the_configuration_is_that_of_the_run(self, exported):
        config = json.loads((exported / 'config.json').read_text())
        pretrained = config['pretrained_cfg']
        assert config['architecture'] == 'resnet20_cifar' and config['num_classes'] == pretrained['num_classes'] == 3
        assert config['label_names'] == ['ant', 'bat', 'cat'] and pretrained['tag'] == 'icasc_noise'
        assert pretrained['mean'] == [0.1, 0.2, 0.3] and pretrained['crop_pct'] == 0.9
        assert pretrained['hf_hub_filename'] == 'model.safetensors' and pretrained['license'] == 'apache-2.0'
        ours = config[METADATA_KEY]
        assert ours.keys() == PROVENANCE | {'sha256'}
        assert ours['sha256'] == file_sha256(exported / 'model.safetensors') and ours['icasc']['order'] == 1
        assert ours['requires']['plugin'] == 'timm_icasc' and ours['layers'] == {'inner': 'layer2', 'last': 'layer3'}
        assert not list(exported.glob('*.bin'))

    def test_the_options_repeat_the_run(self, averaged, exported, train_on_noise):
        """args.yaml, published, trains the same weights again."""
        again = train_on_noise('--config', exported / 'args.yaml')
        one, two = (
            torch.load(path / 'last.pth.tar', weights_only=False)['state_dict_ema']
            for path in (averaged, again))
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_the_header_has_one_key_of_sorted_json(self, exported):
        with safe_open(exported / 'model.safetensors', 'pt') as file:
            (key, text), = file.metadata().items()
        values = json.loads(text)
        assert key == METADATA_KEY and text == json.dumps(values, sort_keys=True) and values.keys() == PROVENANCE

    def test_equal_bytes_from_every_process(self, averaged, exported, client, tmp_path):
        """Whatever the order of its hashes."""
        result = client(code=f'''
from pathlib import Path
from timm_icasc.publish.export import export
from timm_icasc.runs.find import open_runs
export(open_runs({str(averaged)!r})[0], Path({str(tmp_path)!r}), 'icasc_noise')
print(hash('timm_icasc'))''')
        assert result.code == 0 and int(result.out) != hash('timm_icasc'), result.err
        for name in ('model.safetensors', 'config.json'):
            assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()

    def test_nothing_of_the_source_weights_is_inherited(self, train_on_noise, tmp_path):
        """test_resnet stands in timm's registry with 160 pixels, 1000 classes, its own tag, license and Hub repo."""
        source = timm.create_model('test_resnet', num_classes=3)
        torch.save(source.state_dict(), tmp_path / 'source.pth')
        run = open_runs(train_on_noise(
            '--model', 'test_resnet', '--input-size', 3, 32, 32, '--interpolation',
            'bicubic', '--initial-checkpoint', tmp_path / 'source.pth'))[0]
        with pytest.raises(HubError, match="that the run starts from, 'source.pth', is not known"):
            export(run, tmp_path / 'x', 'icasc_noise')
        config = export(run, tmp_path / 'x', 'icasc_noise', 'cc-by-nc-4.0')
        pretrained = config['pretrained_cfg']
        assert pretrained['tag'] == 'icasc_noise' and pretrained['license'] == 'cc-by-nc-4.0'
        assert pretrained['input_size'] == [3, 32, 32] and pretrained['num_classes'] == 3
        assert pretrained['interpolation'] == 'bicubic'
        assert not {'hf_hub_id', 'url', 'origin_url', 'test_input_size', 'test_crop_pct'} & pretrained.keys()
        assert config[METADATA_KEY]['source']['name'] == 'source.pth'
        assert config[METADATA_KEY]['requires'] == {'timm': timm.__version__}, 'no plugin is needed to load it'
        assert timm.create_model(f'local-dir:{tmp_path / "x"}', pretrained=True).fc.out_features == 3

    def test_model_arguments_and_grey_images_come_back(self, train_on_noise, tmp_path):
        run = open_runs(train_on_noise(
            '--model', 'vit_tiny_patch16_224', '--img-size', 32, '--in-chans', 1, '--gp',
            'avg', '--model-kwargs', 'depth=2', '--no-icasc'))[0]
        config = export(run, tmp_path, 'x')
        assert config['pretrained_cfg']['input_size'] == [1, 32, 32] and 'paper_ids' not in config['pretrained_cfg']
        model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
        assert len(model.blocks) == 2 and model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)

    def test_an_earlier_epoch_is_refused(self, averaged, tmp_path):
        run = shutil.copytree(averaged, tmp_path / 'x')
        results = json.loads((run / 'results.json').read_text())
        (run / 'results.json').write_text(json.dumps({**results, 'epochs': 2}))
        with pytest.raises(HubError, match='is of epoch 1 of 2, not of the results beside it'):
            export(open_runs(run)[0], tmp_path / 'y', 'x')


class TestDamage:

    def test_every_place_where_a_byte_can_flip(self, exported, tmp_path):
        """At both ends and throughout the file, with the hash of config.json to tell, and with the header alone."""
        content = (exported / 'model.safetensors').read_bytes()
        config = json.loads((exported / 'config.json').read_text())
        bare = {k: v for k, v in config.items() if k != METADATA_KEY}
        header = 8 + int.from_bytes(content[:8], 'little')
        for position in (9, header // 2, header, (header + len(content)) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[position] ^= 1
            (tmp_path / 'model.safetensors').write_bytes(flipped)
            for told in (config, bare) if position >= header else (config,):
                (tmp_path / 'config.json').write_text(json.dumps(told))
                with pytest.raises(HubError, match='is damaged'):
                    check_folder(tmp_path, 'here')

    def test_whole_files_pass(self, exported):
        config, sha256 = check_folder(exported, 'here', {'the pinned one': None})
        assert config[METADATA_KEY]['sha256'] == sha256

    def test_another_file_than_the_pinned_one(self, exported):
        with pytest.raises(HubError, match='here: model.safetensors is damaged: its sha256 .* is not the pinned one'):
            check_folder(exported, 'here', {'the pinned one': '0' * 64})

    @pytest.mark.parametrize('content', [b'', b'no safetensors file at all', b'\xff' * 100])
    def test_no_safetensors_file(self, content, exported, tmp_path):
        (tmp_path / 'config.json').write_text('{"architecture": "resnet20_cifar"}')
        (tmp_path / 'model.safetensors').write_bytes(content)
        with pytest.raises(HubError, match='is damaged or no safetensors file'):
            check_folder(tmp_path, 'here')

    @pytest.mark.parametrize('said, wrong', [
        ('nothing', 'format'), ({'format': '1'}, 'format'), ({'requires': None}, 'requires'), ({'sha256': 5}, 'sha256'),
        ({'metrics': [99.]}, 'metrics')])
    def test_a_configuration_that_is_not_whole(self, said, wrong, exported, tmp_path):
        config = json.loads((exported / 'config.json').read_text())
        config[METADATA_KEY] = {**config[METADATA_KEY], **said} if isinstance(said, dict) else said
        (tmp_path / 'config.json').write_text(json.dumps(config))
        with pytest.raises(HubError, match=f"here: config.json is damaged: 'timm_icasc' lacks a valid '{wrong}'"):
            check_folder(tmp_path, 'here')

    @pytest.mark.parametrize('text', ['', '[]', '{}', '{"num_classes": 3}', '{"architecture": ["resnet18"]}'])
    def test_no_configuration(self, text, tmp_path):
        (tmp_path / 'config.json').write_text(text)
        with pytest.raises(HubError, match='this is no timm model'):
            check_folder(tmp_path, 'here')


@pytest.mark.parametrize('class_names', [False, True])
def test_measures_of_a_class_bear_its_name(class_names, averaged, tmp_path):
    """Of images with several classes, results.json has an average precision of each."""
    run = shutil.copytree(averaged, tmp_path / 'run')
    results = json.loads((run / 'results.json').read_text())
    results['last']['eval_AP_patient_x'] = 12.5
    (run / 'results.json').write_text(json.dumps(results))
    export(open_runs(run)[0], tmp_path / 'out', 'x', class_names=class_names)
    told = [file.name for file in (tmp_path / 'out').iterdir() if b'patient_x' in file.read_bytes()]
    assert sorted(told) == (['config.json', 'model.safetensors'] if class_names else [])


def test_where_its_numbers_were_logged_stays_here(averaged, tmp_path):
    run = shutil.copytree(averaged, tmp_path / 'run')
    options = yaml.safe_load((run / 'args.yaml').read_text())
    options.update(wandb_project='secret', wandb_tags=['secret'], log_wandb=True)
    (run / 'args.yaml').write_text(yaml.safe_dump(options))
    export(open_runs(run)[0], tmp_path / 'out', 'x')
    assert 'wandb' not in (tmp_path / 'out' / 'args.yaml').read_text()
