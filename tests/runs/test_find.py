"""Which folders hold runs: named by a user, the newest, the finished ones."""
import os
import shutil
from pathlib import Path

import pytest
from helpers.runs import make_run

from timm_icasc.errors import HubError, ICASCError
from timm_icasc.runs.find import (
    check_file_to_write,
    collect_runs,
    find_runs,
    find_weights,
    group_runs,
    has_begun,
    latest_run,
    nothing_to_lose,
    open_runs,
    refuse_folder_of_run,
)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / 'run', grad_accum_steps=2)


def test_which_file_is_meant(run, tmp_path):
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


def test_what_has_begun(run):
    (run / 'results.json').unlink()
    assert has_begun(run), 'interrupted, with a checkpoint'
    (run / 'last.pth.tar').unlink()
    assert not has_begun(run)


def test_what_may_be_replaced(run, tmp_path):
    assert nothing_to_lose(tmp_path / 'new') and not nothing_to_lose(run)
    (run / 'last.pth.tar').unlink()
    assert nothing_to_lose(run), 'stopped before its first checkpoint'
    (run / 'args.yaml').unlink()
    assert not nothing_to_lose(run), 'files of somebody else'
    (tmp_path / 'killed').mkdir()
    (tmp_path / 'killed' / '.lock').touch()
    assert nothing_to_lose(tmp_path / 'killed'), 'killed before its first file'


def test_what_a_run_has_left_is_not_written_over(run, tmp_path):
    for name in ('args.yaml', 'results.json', 'last.pth.tar'):
        with pytest.raises(ICASCError, match=f'`json`: .*{name}. was left by a run, .* name another'):
            check_file_to_write(run / name, 'json')
    (tmp_path / 'results.json').touch()
    for path in (run / 'paper.json', run / 'summary.csv', tmp_path / 'results.json'):
        check_file_to_write(path, 'json')  # another name, not there, no run beside it
    check_file_to_write(Path('/dev/stdout'), 'json')
    with pytest.raises(ICASCError, match='`json`: .* is a folder: name a file in it'):
        check_file_to_write(tmp_path, 'json')
    with pytest.raises(ICASCError, match='`output`: .* is the folder of a run, .* name another'):
        refuse_folder_of_run(run)
    refuse_folder_of_run(run / 'eval')
    refuse_folder_of_run(tmp_path)


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

    @pytest.mark.parametrize('options, same', [
        ({'data_dir': '/elsewhere/flowers'}, True), ({'data_dir': 'cars'}, False),
        ({'data_dir': 'flowers', 'initial_checkpoint': 'base/last.pth.tar'}, False),
        ({'data_dir': 'flowers', 'pretrained_path': 'lite0.pth'}, False)])
    def test_other_data_or_initial_weights_are_no_other_seed(self, options, same, tmp_path):
        make_run(tmp_path / 'a', seed=0, dataset='torch/image_folder', data_dir='flowers')
        make_run(tmp_path / 'b', seed=1, dataset='torch/image_folder', **options)
        assert len(group_runs(collect_runs([tmp_path]))) == (1 if same else 2)

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
