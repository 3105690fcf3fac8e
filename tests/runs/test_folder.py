"""A run's folder: what it says of the run, what is missing, and which weights are its own."""
import json
import os

import pytest
import torch
from helpers.runs import make_run

from timm_icasc.errors import HubError, ICASCError
from timm_icasc.runs import folder as files
from timm_icasc.runs.folder import open_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'run', grad_accum_steps=2)


def change(folder, **values):
    path = folder / 'results.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_names_are_those_that_a_run_has_always_had():
    """Folders of earlier versions are read by them."""
    assert (files.ARGUMENTS, files.LAST, files.BEST) == ('args.yaml', 'last.pth.tar', 'model_best.pth.tar')
    assert (files.RESULTS, files.RESULTS_TABLE, files.SUMMARY) == ('results.json', 'results.csv', 'summary.csv')
    assert (files.FIGURE, files.COMPARED) == ('attention.png', ('baseline', 'icasc'))
    assert (files.EVALUATION, files.EVALUATED, files.RECORDS) == ('eval', 'eval.json', 'records.npz')


class TestRun:

    def test_what_it_says(self, run):
        change(run, world_size=3, last={'eval_top1': 10., 'eval_ac': None, 'eval_ks': float('nan'), 'train_loss': 1.})
        found = open_run(run)
        assert found.arguments['batch_size'] == 16 and found.options['batch_size'] == 16 * 2 * 3, 'of an update'
        assert found.metrics == found.measures == {'top1': 10.}
        assert found.method == 'cross-entropy' and found.is_baseline and found.seed == 0 and found.data == 'digits'

    def test_what_an_evaluation_adds(self, run):
        checkpoint = torch.load(run / 'last.pth.tar')
        torch.save({**checkpoint, 'saver': {'saved': 12.5}}, run / 'last.pth.tar')
        change(run, model={'val_images': 7})
        (run / 'eval').mkdir()
        content = {
            'checkpoint': 'elsewhere/last.pth.tar', 'dataset': 'digits', 'split': 'validation', 'whole_split': True,
            'epochs': 1, 'other_pixels': False, 'saved': 12.5, 'images': 7,
            'measures': {'top1': 50., 'top1_ten_crop': 20.}}
        file = run / 'eval' / 'eval.json'
        file.write_text(json.dumps(content))
        assert open_run(run).measures == {'top1': 10., 'top1_ten_crop': 20.}, 'the run itself comes first'
        for other in (
                {'checkpoint': 'elsewhere/checkpoint-0.pth.tar'}, {'dataset': 'others'}, {'split': 'train'},
                {'whole_split': False}, {'epochs': 2}, {'other_pixels': True}, {'saved': 10.5}, {'images': 8}):
            file.write_text(json.dumps({**content, **other}))
            with pytest.warns(UserWarning, match='of other weights, of other pixels, or not of all images'):
                assert open_run(run).measures == {'top1': 10.}
        for name in ('saved', 'images'):  # of earlier versions
            file.write_text(json.dumps({**content, name: None}))
            assert open_run(run).measures == {'top1': 10., 'top1_ten_crop': 20.}

    @pytest.mark.parametrize('options, dataset', [
        ({'dataset': 'torch/image_folder', 'data_dir': 'x'}, 'torch/image_folder'),
        ({'dataset': '', 'data_dir': 'here/photos'}, '/there/photos')])
    def test_data_in_another_place_are_the_same(self, options, dataset, tmp_path):
        run = make_run(tmp_path / 'run', **options)
        (run / 'eval').mkdir()
        (run / 'eval' / 'eval.json').write_text(json.dumps({
            'checkpoint': 'last.pth.tar', 'dataset': dataset, 'split': 'validation', 'whole_split': True,
            'epochs': 1, 'measures': {'ks': 0.5}}))
        assert open_run(run).measures == {'top1': 10., 'ks': 0.5}

    def test_an_interrupted_one(self, run):
        (run / 'results.json').unlink()
        found = open_run(run)
        assert found.results == {} and found.arguments['model'] == 'resnet8_cifar'


class TestWeights:

    def test_the_averaged_ones_where_there_are_any(self, run):
        checkpoint = torch.load(run / 'last.pth.tar')
        assert torch.equal(open_run(run).load_weights()['fc.weight'], checkpoint['state_dict']['fc.weight'])
        checkpoint['state_dict_ema'] = {name: value + 1 for name, value in checkpoint['state_dict'].items()}
        torch.save(checkpoint, run / 'last.pth.tar')
        averaged = open_run(run).load_weights()
        assert torch.equal(averaged['fc.weight'], checkpoint['state_dict']['fc.weight'] + 1)
        change(run, model={'ema': True})
        assert torch.equal(open_run(run).load_weights()['fc.weight'], averaged['fc.weight'])

    def test_an_average_that_is_gone(self, run):
        change(run, model={'ema': True})
        with pytest.raises(ICASCError, match='lacks the averaged weights, which the results beside it are of'):
            open_run(run).load_weights()

    def test_no_code_is_run(self, run):
        class Code:
            def __reduce__(self):
                return os.mkdir, (str(run / 'made'),)
        torch.save({'epoch': 0, 'state_dict': {}, 'x': Code()}, run / 'last.pth.tar')
        with pytest.raises(ICASCError, match="last.pth.tar' cannot be read"):
            open_run(run).load_weights()
        assert not (run / 'made').exists()

    def test_of_another_epoch(self, run):
        change(run, epochs=1)
        open_run(run).check_last_epoch()
        change(run, epochs=2)
        with pytest.raises(HubError, match='is of epoch 1 of 2, not of the results beside it'):
            open_run(run).check_last_epoch()
