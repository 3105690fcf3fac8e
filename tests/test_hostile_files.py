"""Every command, on every hostile file that it opens: exit code 2, one line, no traceback, nothing written outside.

What is opened here comes from `helpers/hostile_files.py`. No file of it may run code, and none may exhaust memory.
"""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hostile_files import RAW, make
from helpers.runs import make_cub, make_packed_voc, train_in_process
from PIL import Image

import train_timm
from timm_icasc import cli
from timm_icasc.data import create_dataset
from timm_icasc.data.read_image import read_image
from timm_icasc.errors import DataError, explain
from timm_icasc.training import run as training_run

WEIGHTS = (
    'hostile.pth.tar', 'hostile_zip.pth', 'text.pth', 'empty.pth', 'zeros.pth', 'short.safetensors',
    'length.safetensors', 'kinds.safetensors')

YAML = (
    'laughs', 'self', 'aliases', 'deep', 'large', 'control', 'latin', 'object', 'list', 'text', 'twice', 'kinds',
    'date', 'unhashable', 'zero', 'empty')

XML = ('laughs', 'deep', 'latin', 'kinds', 'outside')

JSON = ('deep', 'latin', 'list', 'null', 'digits', 'cut')

CLASS_MAPS = (
    'hostile.pkl', 'cut.pkl', 'empty.pkl', 'latin.txt', 'kind.bin', 'list.pkl', 'kinds.pkl', 'below.pkl', 'large.pkl')

LISTS = ('up', 'absolute', 'link', 'drive', 'share', 'nul')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus') / 'files'
    make(folder)
    return folder


@pytest.fixture(scope='module')
def run(train_on_noise):
    return train_on_noise()


@pytest.fixture
def command(corpus, capfd, monkeypatch, tmp_path):
    """Call a command that must refuse; returns what it said."""
    def contents():
        return {path: path.read_bytes() for path in sorted((corpus / 'outside').rglob('*')) if path.is_file()}

    before = contents()
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        words = list(map(str, arguments))
        capfd.readouterr()
        if name == 'train':
            monkeypatch.setattr(sys, 'argv', ['train_timm.py', *words])
            code = train_timm.main()
        else:
            code = cli.main([name, *words])
        said = capfd.readouterr()
        assert code == 2, said
        error = [line for line in said.err.split('\n') if line and not line.startswith(('warning: ', 'cues'))]
        assert len(error) == 1 and ': error: ' in error[0], said.err
        assert not any(raw in said.err + said.out for raw in RAW), said
        assert 'Traceback' not in said.err and 'weights_only' not in said.err and len(said.err) < 5000
        assert contents() == before and not (corpus / 'outside' / 'ran').exists(), 'written outside'
        return error[0]
    return call


class TestWeights:
    """13: what a file is, and that it is not opened; never torch's advice to open it all the same."""

    @staticmethod
    def check(name, said):
        assert name in said
        if name.startswith('hostile'):
            assert "a pickle that asks for 'posix.mkdir', which could run any code, and is not opened" in said

    @pytest.mark.parametrize('name', WEIGHTS)
    def test_eval(self, name, corpus, command, noise):
        file = corpus / 'weights' / name
        self.check(name, command('eval', file, '--model', 'resnet20_cifar', '--data-dir', noise))

    @pytest.mark.parametrize('option', ['--pretrained-path', '--initial-checkpoint', '--resume'])
    @pytest.mark.parametrize('name', WEIGHTS)
    def test_train(self, name, option, corpus, command, noise_options):
        self.check(name, command('train', *noise_options[1:], option, corpus / 'weights' / name))

    @pytest.mark.parametrize('name', ['hostile.pth.tar', 'hostile_zip.pth', 'text.pth', 'empty.pth'])
    def test_a_run(self, name, corpus, command, run, tmp_path):
        """The checkpoint of a folder of a run that somebody else made."""
        folder = shutil.copytree(run, tmp_path / 'run')
        shutil.copy(corpus / 'weights' / name, folder / 'last.pth.tar')
        picture = corpus / 'outside' / 'private.png'
        for words in (
                ['eval', folder], ['figure', 'classes', folder], ['explain', picture, '--model', folder],
                ['export', folder, tmp_path / 'exported'],
                ['train', '--resume', 'auto', '--output', tmp_path, '--experiment', 'run', '--epochs', 2]):
            said = command(*words)
            assert 'last.pth.tar' in said and re.search('it is damaged|posix.mkdir|it is empty', said)

    @pytest.mark.parametrize('name', ['hostile_zip.pth', 'text.pth', 'empty.pth'])
    def test_segment(self, name, corpus, command, voc, classifier, tmp_path):
        file = corpus / 'weights' / name
        options = [classifier, '--data-dir', voc, '--output', tmp_path / 'out', *TINY]
        self.check(name, command('segment', *options, '--backbone-weights', file))
        (tmp_path / 'out').mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / 'out' / 'segmentation.pth.tar')
        self.check('segmentation.pth.tar', command('segment', *options))

    def test_a_checkpoint_of_other_parts(self, command, voc, classifier, tmp_path):
        (tmp_path / 'out').mkdir()
        for content in ([1], {'config': 1}, {'config': {}, 'network': 3}):
            torch.save(content, tmp_path / 'out' / 'segmentation.pth.tar')
            command('segment', classifier, '--data-dir', voc, '--output', tmp_path / 'out', *TINY)

    @pytest.mark.parametrize('name', [*WEIGHTS[-3:], 'kinds', 'deep'])
    def test_a_published_folder(self, name, corpus, command, tmp_path):
        from safetensors.torch import save_file
        folder = tmp_path / 'folder'
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps({'architecture': 'resnet20_cifar', 'num_classes': 10}))
        if name in WEIGHTS:
            shutil.copy(corpus / 'weights' / name, folder / 'model.safetensors')
        else:
            header = {'kinds': '[1]', 'deep': '[' * 100_000 + ']' * 100_000}[name]
            save_file({'a': torch.zeros(1)}, folder / 'model.safetensors', metadata={'timm_icasc': header})
        assert 'model.safetensors' in command('pull', f'local-dir:{folder}')
        assert 'model.safetensors' in command('push', folder, 'me/x')


    def test_a_flipped_byte(self, command, run, voc, classifier, noise, noise_options, tmp_path):
        """torch loads it in silence. Wherever a checkpoint is opened, its checksums are looked at."""
        folder = shutil.copytree(run, tmp_path / 'run')
        file = folder / 'last.pth.tar'
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink()
        file.write_bytes(content)
        torch.load(file, weights_only=False)
        segment = ['segment', classifier, '--data-dir', voc, '--output', tmp_path / 'out', *TINY]
        for words in (
                *(['train', *noise_options[1:], option, file]
                  for option in ('--pretrained-path', '--initial-checkpoint', '--resume')),
                ['train', '--resume', 'auto', '--output', tmp_path, '--experiment', 'run', '--epochs', 2],
                ['eval', folder], ['eval', file, '--data-dir', noise],
                ['figure', 'ks', folder], [*segment, '--backbone-weights', file]):
            said = command(*words)
            assert f"the checkpoint '{file}' is damaged: the checksum of '" in said, said

    @pytest.mark.parametrize('option', ['--pretrained-path', '--initial-checkpoint'])
    def test_a_file_without_checksums_is_loaded(self, option, run, noise_options, monkeypatch, capsys, tmp_path):
        """Of somebody else, whose torch was told to write none."""
        state = torch.load(run / 'last.pth.tar', weights_only=False)['state_dict']
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state, tmp_path / 'weights.pth')
        finally:
            torch.serialization.set_crc32_options(before)
        code, _, err = train_in_process(
            monkeypatch, capsys, *noise_options[1:], option, tmp_path / 'weights.pth', '--output', tmp_path)
        assert code == 0, err

    @pytest.mark.parametrize('content', [
        [1], {}, {'state_dict': {'conv1.weight': 'x', 'fc.weight': 3}, 'epoch': 0}, {'state_dict': 3, 'epoch': 0},
        {'state_dict': {1: torch.zeros(1)}, 'epoch': 'x'}])
    def test_a_checkpoint_of_other_things(self, content, command, run, tmp_path):
        folder = shutil.copytree(run, tmp_path / 'run')
        torch.save(content, folder / 'last.pth.tar')
        for words in (
                ['eval', folder], ['eval', folder / 'last.pth.tar'], ['figure', 'ks', folder],
                ['train', '--resume', 'auto', '--output', tmp_path, '--experiment', 'run', '--epochs', 2]):
            assert 'last.pth.tar' in command(*words)

    @pytest.mark.parametrize('content', [b'epoch,a\nx,1\n', b'\xff\xfe', b'epoch\n\0,1\n'])
    def test_a_damaged_summary(self, content, command, run, tmp_path):
        folder = shutil.copytree(run, tmp_path / 'run')
        (folder / 'summary.csv').write_bytes(content)
        assert "summary.csv' is no table of epochs" in command(
            'train', '--resume', 'auto', '--output', tmp_path, '--experiment', 'run', '--epochs', 2)


class TestOptions:
    """YAML that somebody else wrote."""

    @pytest.mark.parametrize('name', YAML)
    def test_of_a_training(self, name, corpus, command):
        file = corpus / 'yaml' / f'{name}.yaml'
        assert str(file) in command('train', '--config', file)

    @pytest.mark.parametrize('name', [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ('aliases', 'deep'))) for name in YAML])
    def test_every_command(self, name, corpus, command, run, tmp_path):
        file = corpus / 'yaml' / f'{name}.yaml'
        folder = shutil.copytree(run, tmp_path / 'run')
        shutil.copy(file, folder / 'args.yaml')
        assert str(file) in command('sweep', file)
        assert str(file) in command('card', file)
        own = str(folder)
        assert own in command('train', '--resume', folder / 'last.pth.tar')
        assert own in command('train', '--resume', 'auto', '--output', tmp_path)
        assert own in command('eval', folder)
        assert own in command('explain', corpus / 'outside' / 'private.png', '--model', folder)
        if name not in ('kinds', 'text'):  # values are looked at where they are used
            assert own in command('push', folder, 'me/x')
            assert own in command('export', folder, 'exported')
            assert own in command('paper', folder)


class TestRecords:
    @pytest.mark.parametrize('name', JSON)
    def test_json(self, name, corpus, command, run, tmp_path):
        file = corpus / 'json' / f'{name}.json'
        folder = shutil.copytree(run, tmp_path / 'run')
        for target in ('results.json', 'segmentation.json'):
            shutil.copy(file, folder / target)
        (tmp_path / 'published').mkdir()
        shutil.copy(file, tmp_path / 'published' / 'config.json')
        shutil.copy(run / 'last.pth.tar', tmp_path / 'published' / 'model.safetensors')
        command('push', folder, 'me/x')
        command('paper', folder)
        command('eval', folder)
        command('pull', f"local-dir:{tmp_path / 'published'}")
        command('push', tmp_path / 'published', 'me/x')
        assert str(file) in command('layers', 'resnet20_cifar', '--json', file)
        command('eval', f"local-dir:{tmp_path / 'published'}", '--dataset', 'digits')
        command('train', '--dataset', 'digits', '--model', f"local-dir:{tmp_path / 'published'}")
        self.study(tmp_path / 'study.yaml')
        (tmp_path / 'records' / 'study').mkdir(parents=True)
        shutil.copy(file, tmp_path / 'records' / 'study' / 'a-seed0.json')
        assert 'a-seed0.json' in command('sweep', tmp_path / 'study.yaml', '--report')

    @staticmethod
    def study(file):
        file.write_text(
            'baseline: a\nseeds: [0]\ncommon: {dataset: digits}\nvariants: {a: {icasc: false}}\nreport: x.md\n')

    @pytest.mark.parametrize('key, value', [
        ('curve', []), ('curve', [1]), ('evaluated', []), ('evaluated', {'split': []}), ('final', {'top1': 'x'}),
        ('versions', {}), ('machine', []), ('correct', {'bits': 'zz', 'images': 1}), ('options', {}), ('seed', 'x')])
    def test_a_record_of_other_kinds(self, key, value, command, tmp_path):
        record = json.loads(next(Path(__file__).parents[1].glob(
            'docs/evidence/records/digits10_resnet20/*.json')).read_text())
        self.study(tmp_path / 'study.yaml')
        (tmp_path / 'records' / 'study').mkdir(parents=True)
        (tmp_path / 'records' / 'study' / 'a-seed0.json').write_text(json.dumps({**record, key: value}))
        assert 'a-seed0.json' in command('sweep', tmp_path / 'study.yaml', '--report')

    @pytest.mark.parametrize('key, value', [
        ('epochs', 'x'), ('versions', []), ('model', [1]), ('model', {'label_names': [1]}), ('last', None),
        ('method', 1)])
    def test_results_of_other_kinds(self, key, value, command, run, tmp_path):
        folder = shutil.copytree(run, tmp_path / 'run')
        results = json.loads((folder / 'results.json').read_text())
        (folder / 'results.json').write_text(json.dumps({**results, key: value}))
        for words in (['push', folder, 'me/x'], ['paper', folder], ['eval', folder]):
            assert str(folder) in command(*words)

    @pytest.mark.parametrize('name', ['object.npz', 'text.pth', 'empty.pth', 'zeros.pth'])
    def test_records_of_images(self, name, corpus, command, tmp_path):
        for folder in ('a', 'b'):
            (tmp_path / folder).mkdir()
            shutil.copy(corpus / 'weights' / name, tmp_path / folder / 'records.npz')
        assert 'records.npz' in command('eval', '--compare', tmp_path / 'a', tmp_path / 'b')


class TestImages:
    @pytest.fixture
    def data(self, corpus, tmp_path):
        """Call with the name of an image; returns a data set of which it is one."""
        def make_data(name):
            for split in ('train', 'validation'):
                for i, kind in enumerate('ab'):
                    (tmp_path / 'data' / split / kind).mkdir(parents=True, exist_ok=True)
                    for j in range(2):
                        Image.new('RGB', (32, 32), (99 * i, j, 0)).save(
                            tmp_path / 'data' / split / kind / f'{j}.png')
            shutil.copy(corpus / 'images' / name, tmp_path / 'data' / 'validation' / 'a' / name)
            return tmp_path / 'data'
        return make_data

    @pytest.mark.parametrize('name', ['bomb.png', 'cut.png', 'text.jpg'])
    def test_images(self, name, command, data):
        said = command(
            'train', '--data-dir', data(name), '--epochs', 1, '-b', 2, '-j', 0, '--img-size', 32, '--warmup-epochs', 0)
        assert name in said
        if name == 'bomb.png':
            assert 'where it is a genuine one, allow its size with --max-image-pixels' in said

    @pytest.mark.parametrize('split', [*LISTS, *(f'{name}_json' for name in LISTS), 'deep', 'kinds', 'boxes', 'latin'])
    def test_lists(self, split, corpus, command):
        said = command(
            'train', '--dataset', 'multilabel', '--data-dir', corpus / 'lists', '--train-split', split, '--val-split',
            split)
        assert f'{split}.' in said
        if split.partition('_')[0] in LISTS:
            assert 'leaves the folder' in said

    @pytest.mark.parametrize('split', LISTS)
    def test_single_label_lists(self, split, corpus, command):
        said = command(
            'train', '--dataset', 'singlelabel', '--data-dir', corpus / 'lists', '--train-split', f'single_{split}',
            '--val-split', f'single_{split}')
        assert f'single_{split}.csv' in said and 'leaves the folder' in said

    def test_lists_of_segmentation(self, corpus, command, voc, classifier, tmp_path):
        devkit = tmp_path / 'VOC2012'
        shutil.copytree(next(voc.rglob('JPEGImages')).parent, devkit)
        for name in ('../../outside', '/etc/x', 'C:x'):
            (devkit / 'ImageSets' / 'Segmentation' / 'train.txt').write_text(f'{name}\n')
            assert 'leaves the folder' in command(
                'segment', classifier, '--data-dir', devkit, '--output', tmp_path / 'out', '--cues-only')


    @pytest.mark.parametrize('name', CLASS_MAPS)
    def test_class_maps(self, name, corpus, command, run, noise_options):
        file = corpus / 'class_maps' / name
        command('train', *noise_options[1:], '--class-map', file)
        command('eval', run, '--class-map', file)

    @pytest.mark.parametrize('name', JSON)
    def test_shards(self, name, corpus, command, tmp_path):
        pytest.importorskip('webdataset')
        shutil.copy(corpus / 'json' / f'{name}.json', tmp_path / '_info.json')
        command('train', '--dataset', 'wds/x', '--data-dir', tmp_path, '--num-classes', 3)

    @pytest.mark.parametrize('name', JSON)
    def test_annotations(self, name, corpus, command, tmp_path):
        make_packed_voc(tmp_path / 'packed')
        shutil.copy(corpus / 'json' / f'{name}.json', tmp_path / 'packed' / 'annotations.json')
        said = command('train', '--dataset', 'voc2007-packed', '--data-dir', tmp_path / 'packed')
        assert 'annotations.json' in said

    @pytest.mark.parametrize('name', XML)
    def test_boxes(self, name, corpus, command, voc):
        for file in voc.rglob('Annotations/*.xml'):
            shutil.copy(corpus / 'xml' / f'{name}.xml', file)
        (next(voc.rglob('ImageSets')) / 'Main').mkdir()
        for split in ('train', 'val'):
            shutil.copy(
                next(voc.rglob(f'{split}.txt')), next(voc.rglob('ImageSets')) / 'Main' / f'{split}.txt')
        said = command(
            'train', '--dataset', 'voc2012', '--data-dir', voc, '--val-split', 'val', '-b', 2, '-j', 0,
            '--img-size', 32)
        assert '0.xml' in said and 'root:' not in said

    @pytest.mark.parametrize('content', [bytes(range(256)), b'', b'1 x\n2 y z w\n', b'1 ../../x.jpg\n'])
    @pytest.mark.parametrize('name', ['images', 'image_class_labels', 'train_test_split', 'bounding_boxes', 'classes'])
    def test_lists_of_birds(self, name, content, command, tmp_path):
        make_cub(tmp_path / 'CUB_200_2011')
        (tmp_path / 'CUB_200_2011' / f'{name}.txt').write_bytes(content)
        command('train', '--dataset', 'cub200', '--data-dir', tmp_path, '--val-split', 'test')


class TestPages:
    def test_text_that_is_not_utf_8(self, command, tmp_path):
        (tmp_path / 'page.md').write_bytes(b'caf\xe9')
        assert "page.md' is not UTF-8" in command('layers', 'resnet20_cifar', '--summary', tmp_path / 'page.md')
        assert (tmp_path / 'page.md').read_bytes() == b'caf\xe9'


class TestLinks:
    """What is written lies where the user said."""

    @pytest.mark.parametrize('link', ['last.pth.tar', 'summary.csv', 'results.json', 'args.yaml'])
    def test_a_run_to_go_on_with(self, link, corpus, command, run, tmp_path):
        folder = shutil.copytree(run, tmp_path / 'run')
        shutil.move(folder / link, tmp_path / link)
        (folder / link).symlink_to(tmp_path / link)
        before = (tmp_path / link).read_bytes()
        said = command('train', '--resume', 'auto', '--output', tmp_path, '--experiment', 'run', '--epochs', 2)
        assert f"'{folder / link}' is a link that leaves the folder" in said
        assert (tmp_path / link).read_bytes() == before

    def test_an_evaluation(self, corpus, command, run, tmp_path):
        folder = shutil.copytree(run, tmp_path / 'run')
        (folder / 'eval').symlink_to(corpus / 'outside', target_is_directory=True)
        assert f"'{folder / 'eval'}' is a link" in command('eval', folder)
        (folder / 'eval').unlink()
        (folder / 'eval').mkdir()
        (folder / 'eval' / 'eval.json').symlink_to(corpus / 'outside' / 'token')
        assert "eval.json' is a link" in command('eval', folder)

    def test_a_folder_to_copy_to(self, corpus, command, tmp_path):
        shipped = Path(__file__).parents[1] / 'hub_cards' / 'resnet20_cifar.icasc_digits'
        (tmp_path / 'to').mkdir()
        shutil.copy(shipped / 'config.json', tmp_path / 'to')
        (tmp_path / 'to' / 'README.md').symlink_to(corpus / 'outside' / 'token')
        assert "README.md' is a link" in command('pull', f'local-dir:{shipped}', '--to', tmp_path / 'to')
        assert 'name another' in command('pull', f'local-dir:{shipped}', '--to', shipped)
        linked = shutil.copytree(shipped, tmp_path / 'linked')
        (linked / 'args.yaml').unlink()
        (linked / 'args.yaml').symlink_to(corpus / 'outside' / 'token')
        assert "args.yaml' is a link" in command('pull', f'local-dir:{linked}', '--to', tmp_path / 'new')
        assert "args.yaml' is a link" in command('push', linked, 'me/x')

    def test_cues(self, corpus, command, voc, classifier, tmp_path):
        (tmp_path / 'out').mkdir()
        (tmp_path / 'out' / 'cues').symlink_to(corpus / 'outside', target_is_directory=True)
        options = ['segment', classifier, '--data-dir', voc, '--output', tmp_path / 'out', '--cues-only']
        assert 'is a link' in command(*options)


TINY = (
    '--network', 'deeplabv3_mobilenet_v3_large', '--image-size', '65', '--iterations', '1', '--train-batch-size', '2')


@pytest.fixture
def voc(tmp_path):
    """VOC 2012 with two images, in both lists."""
    folder = tmp_path / 'voc' / 'VOC2012'
    for name in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        Image.new('RGB', (40, 40), (i, 0, 0)).save(folder / 'JPEGImages' / f'{i}.jpg')
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / 'SegmentationClass' / f'{i}.png')
        (folder / 'Annotations' / f'{i}.xml').write_text(
            '<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>'
            '</bndbox></object></annotation>')
    for split in ('train', 'val'):
        (folder / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('0\n1\n')
    return tmp_path / 'voc'


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """A run of twenty classes, as far as segmentation looks at it."""
    import timm
    folder = tmp_path_factory.mktemp('classifier')
    model = timm.create_model('resnet20_cifar', num_classes=20)
    torch.save({'state_dict': model.state_dict(), 'epoch': 0}, folder / 'last.pth.tar')
    (folder / 'args.yaml').write_text('model: resnet20_cifar\ndataset: digits\n')
    return folder


class TestLargeImages:
    """Genuine images beyond Pillow's limit of pixels are read where the user allows them."""

    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # 200 are an error, of Pillow's

    @pytest.fixture
    def file(self, tmp_path):
        Image.new('RGB', (20, 20)).save(tmp_path / 'x.png')
        return tmp_path / 'x.png'

    def test_the_limit(self, file):
        with pytest.raises(DataError, match=r"x.png.*400 pixels.*allow its size with `max_image_pixels`"):
            read_image(file)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # what is allowed is not warned of
            assert read_image(file, max_image_pixels=400).size == (20, 20)
        with pytest.raises(DataError, match='exceeds limit of 399 pixels'):
            read_image(file, max_image_pixels=399)

    @pytest.mark.parametrize('name', ['', 'multilabel', 'torch/image_folder'])
    def test_data_sets(self, name, tmp_path):
        for kind in 'ab':
            (tmp_path / 'validation' / kind).mkdir(parents=True)
            Image.new('RGB', (20, 20)).save(tmp_path / 'validation' / kind / '0.png')
        (tmp_path / 'validation.csv').write_text('image,labels\nvalidation/a/0.png,a\n')
        with pytest.raises(DataError, match='max_image_pixels'):
            create_dataset(name, str(tmp_path), 'validation')[0]
        assert create_dataset(name, str(tmp_path), 'validation', max_image_pixels=400)[0][0].size == (20, 20)

    def test_the_option(self, run, capsys, tmp_path):
        """On the images of the run, of 32 x 32 pixels."""
        assert cli.main(['eval', str(run), '--output', str(tmp_path), '-j', '0']) == 2
        assert 'allow its size with --max-image-pixels' in capsys.readouterr().err
        assert cli.main([
            'eval', str(run), '--output', str(tmp_path), '-j', '0', '--max-image-pixels', '1024']) == 0


class _Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class TestEnvironment:
    """What happens to a command from outside."""

    def test_a_killed_loading_process(self):
        with pytest.raises(RuntimeError) as e:
            next(iter(torch.utils.data.DataLoader(_Killed(), num_workers=1)))
        assert re.fullmatch(
            r'a data loading process ended \((is killed by signal: Killed|exited unexpectedly.*)\), for lack of memory '
            r'perhaps: take a smaller `workers` or `batch_size`.', explain(e.value))

    def test_a_folder_that_is_gone(self, tmp_path):
        with pytest.raises(RuntimeError) as e:
            torch.save({}, tmp_path / 'gone' / 'x.pth')
        assert f"'{tmp_path / 'gone'}': the folder is not there any more" in explain(e.value)
        with pytest.raises(FileNotFoundError) as e:
            (tmp_path / 'gone' / 'x').write_text('')
        assert explain(e.value).startswith(f"'{tmp_path / 'gone' / 'x'}': No such file or directory; it, or its folder")

    def test_a_folder_that_goes_while_a_run_trains(self, noise_options, command, monkeypatch, tmp_path):
        epoch = training_run.train_one_epoch

        def and_then(*args):
            shutil.rmtree(tmp_path / 'output')
            return epoch(*args)

        monkeypatch.setattr(training_run, 'train_one_epoch', and_then)
        assert str(tmp_path / 'output') in command('train', *noise_options[1:], '--output', tmp_path / 'output')

    @pytest.mark.parametrize('number, remedy', [
        (errno.EACCES, '; name a place that you may use'), (errno.EROFS, '; name a place that can be written to'),
        (errno.EIO, '')])
    def test_a_place_that_cannot_be_written(self, number, remedy):
        assert explain(OSError(number, 'no', 'x\x1b')) == f"'x\\x1b': no{remedy}."

    def test_a_fault_of_the_program_stays_one(self):
        assert explain(RuntimeError('shape mismatch')) is None and explain(OSError('no')) is None

    def test_ctrl_c_while_torch_is_loaded(self, tmp_path):
        """No traceback of somebody else's import."""
        (tmp_path / 'torch.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
        root = Path(__file__).parents[1]
        for words, codes in (
                (['-m', 'timm_icasc_cli', 'doctor'], (130,)), (['train_timm.py'], (-signal.SIGINT,)),
                (['-m', 'timm_icasc.cli', 'doctor'], (-signal.SIGINT,))):
            ended = subprocess.run(
                [sys.executable, *words], cwd=root, capture_output=True, text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
                env={**os.environ, 'PYTHONPATH': os.pathsep.join((str(tmp_path), str(root)))})
            assert ended.returncode in codes and ended.stderr.strip() in ('', 'interrupted'), ended.stderr
