"""A run's folder: what it says of the run, what is missing, and which weights are its own."""
import json
import os
import shutil

import pytest
import torch
import yaml
from helpers.runs import make_run

from timm_icasc.errors import HubError, ICASCError
from timm_icasc.runs import folder as files
from timm_icasc.runs.folder import (
    collect_runs,
    find_runs,
    find_weights,
    group_runs,
    has_begun,
    latest_run,
    open_run,
    open_runs,
)


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
        (run / 'eval').mkdir()
        content = {
            'checkpoint': 'elsewhere/last.pth.tar', 'dataset': 'digits', 'split': 'validation', 'whole_split': True,
            'measures': {'top1': 50., 'top1_ten_crop': 20.}}
        file = run / 'eval' / 'eval.json'
        file.write_text(json.dumps(content))
        assert open_run(run).measures == {'top1': 10., 'top1_ten_crop': 20.}, 'the run itself comes first'
        for other in (
                {'checkpoint': 'elsewhere/checkpoint-0.pth.tar'}, {'dataset': 'others'}, {'split': 'train'},
                {'whole_split': False}):
            file.write_text(json.dumps({**content, **other}))
            with pytest.warns(UserWarning, match='of other weights, or not of all images'):
                assert open_run(run).measures == {'top1': 10.}

    @pytest.mark.parametrize('options, dataset', [
        ({'dataset': 'torch/image_folder', 'data_dir': 'x'}, 'torch/image_folder'),
        ({'dataset': '', 'data_dir': 'here/photos'}, '/there/photos')])
    def test_data_in_another_place_are_the_same(self, options, dataset, tmp_path):
        run = make_run(tmp_path / 'run', **options)
        (run / 'eval').mkdir()
        (run / 'eval' / 'eval.json').write_text(json.dumps({
            'checkpoint': 'last.pth.tar', 'dataset': dataset, 'split': 'validation', 'whole_split': True,
            'measures': {'ks': 0.5}}))
        assert open_run(run).measures == {'top1': 10., 'ks': 0.5}

    def test_an_interrupted_one(self, run):
        (run / 'results.json').unlink()
        found = open_run(run)
        assert found.results == {} and found.arguments['model'] == 'resnet8_cifar' and has_begun(run)
        (run / 'last.pth.tar').unlink()
        assert not has_begun(run)


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

    def test_which_file_is_meant(self, run, tmp_path):
        assert find_weights(str(run), best=False) == run / 'last.pth.tar'
        with pytest.raises(ICASCError, match='has no model_best.pth.tar'):
            find_weights(str(run), best=True)
        shutil.copyfile(run / 'last.pth.tar', run / 'model_best.pth.tar')
        assert find_weights(str(run), best=True) == run / 'model_best.pth.tar'
        (run / 'last.pth.tar').unlink()
        assert find_weights(str(run), best=False) == run / 'model_best.pth.tar'
        assert find_weights(str(run / 'args.yaml'), best=True) == run / 'args.yaml', 'a file is that file'
        with pytest.raises(ICASCError, match='holds 1 runs, name one'):
            find_weights(str(tmp_path), best=False)


class TestSeveralRuns:

    def test_found_below(self, run, tmp_path):
        make_run(tmp_path / 'other', seed=1)
        assert find_runs(run) == [run] and find_runs(tmp_path) == [tmp_path / 'other', run]

    def test_the_latest(self, run, tmp_path):
        other = make_run(tmp_path / 'other', seed=1)
        os.utime(run / 'last.pth.tar', (1, 1))
        assert latest_run(tmp_path) == other and latest_run(tmp_path, 'run') == run
        assert latest_run(tmp_path, 'nowhere') is None

    def test_collected_and_grouped_over_seeds(self, run, tmp_path):
        make_run(tmp_path / 'other', seed=1, grad_accum_steps=2)
        make_run(tmp_path / 'third', seed=1, epochs=7)
        runs = collect_runs([tmp_path])
        assert sorted([found.seed for found in group] for group in group_runs(runs)) == [[0, 1], [1]]

    @pytest.mark.parametrize('damage', [
        lambda run: (run / 'args.yaml').unlink(), lambda run: (run / 'args.yaml').write_text('- 1'),
        lambda run: (run / 'results.json').write_text('{'), lambda run: (run / 'results.json').write_text('{}')])
    def test_what_cannot_be_read_is_left_out(self, damage, run):
        damage(run)
        with pytest.warns(UserWarning, match='run\' is left out, its files cannot be read'):
            assert collect_runs([run]) == []


class TestOpenRuns:

    def test_two_of_one_comparison(self, compared):
        assert [found.folder.name for found in open_runs(compared)] == ['baseline', 'icasc']
        assert [found.folder.name for found in open_runs(compared / 'icasc')] == ['icasc']

    def test_refused(self, run, tmp_path):
        with pytest.raises(HubError, match='no run directory'):
            open_runs(tmp_path / 'nowhere')
        with pytest.raises(HubError, match=r'does not describe its model \(an older run\?\)'):
            open_runs(run)
        (run / 'args.yaml').write_text('{')
        with pytest.raises(HubError, match="run' cannot be read"):
            open_runs(run)
        (run / 'results.json').unlink()
        with pytest.raises(HubError, match='holds no finished run .*--resume auto goes on with it'):
            open_runs(run)


def test_options_are_kept_below_the_command(tmp_path):
    files.save_args({'seed': 1, 'config': 'x', 'resume': 'auto', 'run_dir': 'y'}, tmp_path, 'train_timm.py --seed 1')
    text = (tmp_path / 'args.yaml').read_text()
    assert text.startswith('# train_timm.py --seed 1\n') and yaml.safe_load(text) == {'seed': 1}
