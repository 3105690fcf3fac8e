"""`timm-icasc sweep`: from the YAML file to runs, records and the page; most of it on records made by hand."""
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.forked import fork_in
from helpers.hub_fixtures import save_noise
from scipy.stats import ttest_rel
from timm.utils import is_distributed_env

from timm_icasc.cli import main
from timm_icasc.errors import ICASCError
from timm_icasc.sweep import runner as processes
from timm_icasc.sweep.run_record import check_unchanged, correct_of, read_records, record_path
from timm_icasc.sweep.study import changed_options, load_study
from timm_icasc.sweep.summary import interval_over_seeds, interval_over_seeds_and_images, summarise

STUDIES = sorted((Path(__file__).parents[2] / 'docs' / 'evidence').glob('*.yaml'))
STUDY = {
    'baseline': 'plain', 'seeds': [0, 1, 2], 'common': {'dataset': 'digits', 'epochs': 2, 'val_split': 'validation'},
    'variants': {'plain': {'icasc': False}, 'order-1': {'icasc_order': 1}}, 'report': 'page.md'}
PAGE = '# Title\n\n<!-- study s begins -->\nold\n<!-- study s ends -->\n\nrest\n'
IMAGES = 40


def write_study(tmp_path, **changes):
    file = tmp_path / 's.yaml'
    file.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    (tmp_path / 'page.md').write_text(PAGE)
    return file


def write_record(study, run, correct, curve=(10., 20.), **final):
    """A record as a finished run leaves it; `correct` is a list of 0 and 1, one per test image."""
    study.records.mkdir(parents=True, exist_ok=True)
    (study.records / f'{run.name}.json').write_text(json.dumps({
        'study': study.name, 'variant': run.variant, 'seed': run.seed, 'command': 'train_timm.py', 'commit': 'c' * 40,
        'dirty': False, 'versions': {'torch': '2', 'timm': '1'}, 'options': run.options,
        'machine': {'processor': 'P', 'device': 'cpu', 'threads': '1'},
        'evaluated': {
            'dataset': 'digits', 'split': 'test', 'images': len(correct), 'attention': 'ach',
            'arguments': []},
        'curve': [{'epoch': i, 'eval_top1': v, 'eval_seconds': 3.} for i, v in enumerate(curve)],
        'correct': {'images': len(correct), 'bits': np.packbits(np.array(correct, dtype=bool)).tobytes().hex()},
        'final': {'top1': 100 * sum(correct) / len(correct), 'overlap_last': 0.5, **final}}))


def change_evaluated(study, run, **changes):
    file = record_path(study, run)
    record = json.loads(file.read_text())
    record['evaluated'].update(changes)
    file.write_text(json.dumps(record))


def sweep(*arguments):
    return main(['sweep', *map(str, arguments)])


@pytest.fixture
def recorded(tmp_path):
    """A study of which every run but the last has a record, and the right predictions by run."""
    study, generator = load_study(write_study(tmp_path)), np.random.default_rng(0)
    correct = {
        run.name: (generator.random(IMAGES) < 0.5 + 0.1 * (run.variant != 'plain')).astype(int).tolist()
        for run in study.runs[:-1]}
    for run in study.runs[:-1]:
        write_record(study, run, correct[run.name], ks=0.1 * run.seed + 0.3 * (run.variant != 'plain'))
    return study, correct


class TestDefinition:

    def test_runs_are_whole_seeds_one_after_the_other(self, tmp_path):
        study = load_study(write_study(tmp_path))
        assert [run.name for run in study.runs] == [
            f'{variant}-seed{seed}' for seed in (0, 1, 2) for variant in ('plain', 'order-1')]

    @pytest.mark.parametrize('count', range(1, 9))
    def test_parts_make_the_whole_once(self, count, tmp_path):
        """Neighbours stay together, the parts differ by one run at most, and records change nothing."""
        study = load_study(write_study(tmp_path))
        write_record(study, study.runs[0], [1] * IMAGES)
        parts = [study.part(number, count) for number in range(1, count + 1)]
        assert [run for part in parts for run in part] == study.runs
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_options_become_the_command_line_of_the_trainer(self, tmp_path):
        (tmp_path / 'recipe.yaml').write_text('lr: 5e-1\nbatch_size: 7\nopt_kwargs: {nesterov: true}\n')
        study = load_study(write_study(
            tmp_path, common={'config': 'recipe.yaml', 'data-dir': 'x', 'batch_size': 8},
            variants={'plain': {'icasc': False}, 'w': {'icasc_weights': [1, 0, 0.5], 'channels_last': True}}), 'here')
        command = ' '.join(study.runs[1].arguments)
        assert command == (
            '--lr 0.5 --batch-size 8 --opt-kwargs nesterov=True --data-dir here '
            '--icasc-weights 1.0 0.0 0.5 --channels-last --seed 0')
        assert study.runs[0].arguments[-3:] == ('--no-icasc', '--seed', '0')
        assert study.runs[1].options['batch_size'] == 8 and 'data_dir' not in study.runs[1].options

    def test_the_options_of_a_run_make_a_study(self, tmp_path):
        """Its seed and folder are not the study's, and nothing of it is published."""
        (tmp_path / 'args.yaml').write_text(
            'lr: 0.5\nseed: 7\noutput: there\nexperiment: mine\nicasc_compare: true\n'
            'push_to_hub: me/mine\nlicense: mit\n')
        file = write_study(tmp_path, common={'config': 'args.yaml'}, variants={'plain': {}, 'b': {'lr': 0.1}})
        with pytest.warns(UserWarning, match="args.yaml' asks to publish as 'me/mine'"):
            runs = load_study(file).runs
        assert runs[0].arguments == ('--lr', '0.5', '--seed', '0')

    def test_each_seed_goes_on_from_its_own_network(self, tmp_path):
        study = load_study(write_study(
            tmp_path, common={'initial_checkpoint': 'base-seed{seed}/last.pth.tar'}, seeds=[3, 5]))
        files = [f'base-seed{seed}/last.pth.tar' for seed in (3, 3, 5, 5)]
        assert [run.options['initial_checkpoint'] for run in study.runs] == files
        assert all(
            f'--initial-checkpoint {file} ' in ' '.join(run.arguments)
            for file, run in zip(files, study.runs, strict=True))

    def test_pretrained_weights_are_known_by_the_name_of_their_file(self, tmp_path):
        """Machines have it in different folders; another file is another variant, and another study."""
        variants = {
            'plain': {}, 'other': {'pretrained_path': 'b/other.pth'}, 'own': {'pretrained_path': 'x/last.pth.tar'}}
        study = load_study(write_study(tmp_path, common={'pretrained_path': 'a/imagenet.pth'}, variants=variants))
        plain, other, own = (run.options for run in study.runs[:3])
        assert [run['pretrained_path'] for run in (plain, other, own)] == [
            'imagenet.pth', 'other.pth', 'x/last.pth.tar']
        assert study.runs[0].arguments[:2] == ('--pretrained-path', 'a/imagenet.pth'), 'the run gets the whole path'
        assert changed_options(plain, {**plain, 'pretrained_path': '/elsewhere/imagenet.pth'}) == []
        assert changed_options(plain, other) == ['pretrained_path']
        assert changed_options(own, {**own, 'pretrained_path': 'y/last.pth.tar'}) == ['pretrained_path']
        betas = {'opt_kwargs': {'betas': (0.9, 0.99)}}
        assert changed_options(betas, json.loads(json.dumps(betas))) == [], 'a record has a list'
        del other['pretrained_path']
        assert changed_options(plain, other) == [], 'records of before do not tell it'

    def test_weights_replaced_after_some_runs_are_refused(self, tmp_path):
        study = load_study(write_study(tmp_path, common={'pretrained_path': 'a/imagenet.pth'}))
        write_record(study, study.runs[0], [1] * IMAGES)
        moved, replaced = (
            load_study(write_study(tmp_path, common={'pretrained_path': path}))
            for path in ('b/imagenet.pth', 'a/other.pth'))
        check_unchanged(moved, read_records(moved), tmp_path)
        with pytest.raises(ICASCError, match="pretrained_path was 'imagenet.pth', is 'other.pth'"):
            check_unchanged(replaced, read_records(replaced), tmp_path)

    @pytest.mark.parametrize('changes, message', [
        ({'baseline': 'none'}, "baseline 'none' is not among the variants: plain, order-1"),
        ({'variants': {'plain': {}, 'b': {'icasc_oder': 1}}},
         "variant 'b' has the unknown key 'icasc_oder' (did you mean 'icasc_order'"),
        ({'variants': {'plain': {}, 'b': {'icasc_order': 3}}}, "variant 'b': 'icasc_order' must be one of"),
        ({'variants': {'plain': {}, 'b': {'epochs': 0}}}, "variant 'b': --epochs must be at least 1"),
        ({'variants': {'plain': {}, 'b': {'icasc_share': 0.5, 'icasc_rival': 'random'}}},
         "variant 'b': --icasc-*: share below 1"),
        ({'variants': {'plain': {}, 'b': {'seed': 1}}}, "variant 'b': 'seed' is not for a study to set"),
        ({'variants': {'plain': {}, 'b': {'epochs': 2}}}, "variant 'b' has the same options as variant 'plain'"),
        ({'variants': {'plain': {}, 'a/b': {'epochs': 3}}}, "variant 'a/b': a name has letters"),
        ({'variants': {}}, 'has no variants'),
        ({'common': {'dataset': 'torch/cifar100'}}, '--data-dir is missing'),
        ({'common': {'modle': 'x'}}, "common has the unknown key 'modle' (did you mean 'model'"),
        ({'common': [1]}, "'common' must hold 'name: value' lines"),
        ({'evaluate': {'spilt': 'test'}}, "evaluate has the unknown key 'spilt'"),
        ({'evaluate': {'output': 'x'}}, "evaluate: 'output' is not for a study to set"),
        ({'seeds': [0, 0]}, "'seeds' must be a list of different whole numbers"),
        ({'seeds': 3}, "'seeds' must be a list"),
        ({'seeds': [[0], [1]]}, "'seeds' must be a list"),
        ({'sedes': [0]}, "unknown key 'sedes'"),
        ({'baseline': ['plain']}, 'is not among the variants'),
        ({'records': 3}, "'records' must be one path, got 3"),
        ({'report': ['page.md']}, "'report' must be one path"),
        ({'common': {'config': ['a.yaml']}}, "common: 'config' must be one path"),
        ({'common': {'opt_kwargs': 'a=1'}}, "common: 'opt_kwargs' must hold 'name: value' lines, got 'a=1'"),
        ({'common': {'epochs': 1.5}}, "common: 'epochs' must be int, got 1.5"),
        # {seed} without quotes is a mapping to YAML
        ({'common': {'initial_checkpoint': {'seed': None}}}, "common: 'initial_checkpoint' must be one value"),
        ({'variants': {'plain': {}, 'b': {'val_split': 'x'}}}, "'val_split' must be the same for all runs"),
    ])
    def test_mistakes_are_named_before_anything_runs(self, changes, message, tmp_path):
        with pytest.raises(ICASCError, match=re.escape(message)):
            load_study(write_study(tmp_path, **changes))

    @pytest.mark.parametrize('text, message', [
        ('variants:\n  a: {}\n  b: {}\n  a: {}\n', "line 4: 'a' is there twice"),
        ('seeds: [', 'not valid YAML'), ('? [a]\n: 1\n', 'not valid YAML'), ('- a', 'is no study')])
    def test_bad_files(self, text, message, tmp_path):
        (tmp_path / 's.yaml').write_text(text)
        with pytest.raises(ICASCError, match=message):
            load_study(tmp_path / 's.yaml')

    def test_names_may_be_numbers_and_options_a_yaml_anchor(self, tmp_path):
        file = tmp_path / 's.yaml'
        file.write_text('baseline: 1\nseeds: [0]\nvariants:\n  1: &own {dataset: digits}\n  2: {<<: *own, lr: 0.3}\n')
        study = load_study(file)
        assert study.baseline == study.variants[0] == study.runs[0].variant == '1'
        assert (study.runs[1].options['dataset'], study.runs[1].options['lr']) == ('digits', 0.3)

    def test_a_missing_file_is_one_line(self, tmp_path, capsys):
        assert sweep(tmp_path / 'none.yaml') == 2
        assert 'none.yaml' in capsys.readouterr().err


@pytest.mark.parametrize('file', STUDIES, ids=lambda p: p.stem)
def test_the_studies_of_docs_are_those_that_their_records_come_from(file, tmp_path):
    study = load_study(file)
    check_unchanged(study, read_records(study), tmp_path)


class TestSummary:

    def test_mean_deviation_and_difference_seed_by_seed(self, recorded):
        study, correct = recorded
        plain, own = summarise(study, read_records(study))
        top1 = {name: 100 * sum(c) / IMAGES for name, c in correct.items()}
        values = [top1[f'plain-seed{seed}'] for seed in (0, 1, 2)]
        assert plain.seeds == [0, 1, 2] and own.seeds == [0, 1]
        assert plain.means['top1'] == (pytest.approx(statistics.fmean(values)), pytest.approx(statistics.stdev(values)))
        differences = [top1[f'order-1-seed{seed}'] - top1[f'plain-seed{seed}'] for seed in (0, 1)]
        found = own.differences['top1']
        assert (found.mean, found.deviation, found.seeds) == (
            pytest.approx(statistics.fmean(differences)), pytest.approx(statistics.stdev(differences)), 2)
        assert own.differences['ks'].mean == pytest.approx(0.3)
        assert own.differences['ks'].low_images is None, 'only accuracy is recorded image by image'
        assert not plain.differences

    def test_runs_on_different_images_are_not_compared(self, recorded, capsys):
        study, _ = recorded
        write_record(study, study.runs[0], [1] * 9)
        assert sweep(study.file, '--report') == 2
        assert "'plain-seed0' was evaluated on 9 images, 'order-1-seed0' on 40" in capsys.readouterr().err

    @pytest.mark.parametrize('changed', [{'dataset': '/there/cars'}, {'sha256': '2'}])
    def test_runs_on_as_many_other_images_are_not_compared(self, changed, recorded, capsys):
        """As of another folder that `--data-dir` named."""
        study, _ = recorded
        for n, run in enumerate(study.runs[:2]):
            path = record_path(study, run)
            record = json.loads(path.read_text())
            record['evaluated'].update({'sha256': '1', **(changed if n else {})})
            path.write_text(json.dumps(record))
        assert sweep(study.file, '--report') == 2
        assert 'were evaluated on different images' in capsys.readouterr().err

    def test_interval_over_seeds(self):
        ours, theirs = [3., 5., 10., 4.], [2., 3., 4., 4.5]
        expected = ttest_rel(ours, theirs).confidence_interval(0.95)
        low, high = interval_over_seeds([a - b for a, b in zip(ours, theirs, strict=True)])
        assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))
        assert interval_over_seeds([1.]) == (None, None)
        assert interval_over_seeds([2., 2.]) == (2, 2)

    def test_interval_over_images_is_that_of_the_mean_where_the_seeds_agree(self):
        """One row in every seed: the normal approximation of the mean of N draws."""
        row = np.random.default_rng(0).choice([-100., 0., 100.], size=400)
        low, high = interval_over_seeds_and_images(np.stack([row] * 3))
        error = 1.96 * row.std() / 400 ** 0.5
        assert (low, high) == (pytest.approx(row.mean() - error, abs=0.8), pytest.approx(row.mean() + error, abs=0.8))

    def test_seeds_that_differ_widen_it(self):
        row = np.random.default_rng(0).choice([-100., 0., 100.], size=400)
        low, high = interval_over_seeds_and_images(np.stack([row, row + 30, row - 30]))
        narrow = interval_over_seeds_and_images(np.stack([row] * 3))
        assert high - low > 1.5 * (narrow[1] - narrow[0])

    def test_predictions_survive_the_record(self, recorded):
        study, correct = recorded
        records = read_records(study)
        assert all(correct_of(records[name]).astype(int).tolist() == c for name, c in correct.items())
        assert correct_of({}) is None


class TestReport:

    def test_tables_and_curves_go_between_the_marks(self, recorded, tmp_path, capsys):
        study, correct = recorded
        assert sweep(study.file, '--report') == 0
        page = (tmp_path / 'page.md').read_text()
        assert page.startswith('# Title\n\n<!-- study s begins -->\n5 of 6 runs; 40 images of `test`')
        assert page.endswith('<!-- study s ends -->\n\nrest\n') and '\nold\n' not in page
        mean = statistics.fmean(100 * sum(correct[f'order-1-seed{seed}']) / IMAGES for seed in (0, 1))
        row, = [line for line in page.splitlines() if line.startswith('| order-1 | 0 1 |')]
        assert f'| {mean:.2f} ± ' in row
        assert '| order-1 | 0.500 ± 0.000 (+0.000) |' in page
        assert 'Not run yet, with these seeds: `order-1` 2.' in page
        assert '](records/s.png)' in page and (tmp_path / 'records' / 's.png').stat().st_size > 5000
        assert 'order-1' in capsys.readouterr().out

    def test_a_seed_that_the_baseline_lacks(self, recorded, tmp_path):
        study, _ = recorded
        (study.records / 'plain-seed1.json').unlink()
        assert sweep(study.file, '--report') == 0
        page = (tmp_path / 'page.md').read_text()
        row, = [line for line in page.splitlines() if line.startswith('| order-1 | 0 1 |')]
        assert ', 1 of 2 seeds | - |' in row
        assert '| order-1 | 0.500 ± 0.000 (+0.000, 1 of 2 seeds) |' in page

    def test_the_epoch_that_was_evaluated(self, tmp_path):
        study = load_study(write_study(tmp_path, evaluate={'best': True}))
        for run in study.runs[:2]:
            write_record(study, run, [1] * IMAGES)
            change_evaluated(study, run, arguments=['--best'])
        assert sweep(study.file, '--report') == 0
        assert 'images of `test`, best epoch of each run.' in (tmp_path / 'page.md').read_text()

    @pytest.mark.parametrize('pixels, preparation, refused', [
        ([0.1, 0.95], {}, True), ([0.11, 1.01], {}, False), ([0.1, 0.95], {'crop_pct': 0.5}, False)])
    def test_images_of_the_same_names_and_other_content(self, pixels, preparation, refused, recorded, capsys):
        study, _ = recorded
        change_evaluated(study, study.runs[0], pixels=[0.1, 1.], preparation={})
        change_evaluated(study, study.runs[2], pixels=pixels, preparation=preparation)
        assert sweep(study.file, '--report') == 2 * refused
        said = "'plain-seed0' and 'plain-seed1' were evaluated on images of the same names and other content"
        assert (said in capsys.readouterr().err) == refused

    def test_a_measure_that_a_seed_lacks(self, recorded, tmp_path):
        """As an overlap where all maps are empty: the mean of the other seeds stood there as that of all."""
        file = recorded[0].records / 'order-1-seed1.json'
        record = json.loads(file.read_text())
        record['final']['overlap_last'] = None
        file.write_text(json.dumps(record))
        assert sweep(recorded[0].file, '--report') == 0
        assert '| order-1 | 0.500, 1 of 2 seeds (+0.000) |' in (tmp_path / 'page.md').read_text()

    @pytest.mark.parametrize('noted', [True, False], ids=['by the record', 'by the options'])
    def test_maps_of_other_layers_have_no_differences(self, noted, recorded, tmp_path, capsys):
        """Maps of two layers overlap by other amounts, whatever the training did."""
        study, _ = recorded
        for run in study.runs[:-1]:
            file = record_path(study, run)
            record = json.loads(file.read_text())
            layers = ['layer2', 'layer4'] if run.variant == 'order-1' else ['layer3', 'layer4']
            (record['evaluated'] if noted else record['options'])['layers' if noted else 'icasc_layers'] = layers
            file.write_text(json.dumps(record))
        note = "Maps of order-1 are from layer2 and layer4, the baseline's from other layers"
        summaries = summarise(study, read_records(study))
        assert not summaries[0].differences and set(summaries[1].differences) == {
            'top1', 'ks', 'last_top1', 'last_seconds', 'seconds'}
        assert (sweep(study.file, '--report') == 0) == noted  # the options are no longer those of the study
        if noted:
            page = (tmp_path / 'page.md').read_text()
            assert note in capsys.readouterr().out and note in page.replace('`', '')
            assert '| order-1 | 0.500 ± 0.000 | 0.350 ± 0.071 (+0.300) |' in page
            assert '(records/s.png)\n' in page

    @pytest.mark.parametrize('change', [
        {'model': 'other'}, {'arguments': ['--layers', 'layer2', 'layer4']}, {'icasc_layers': None}],
        ids=['another network', 'one choice for all', 'layers unknown'])
    def test_where_layers_do_not_differ_or_have_to(self, change, recorded):
        study, _ = recorded
        records = read_records(study)
        for name, record in records.items():
            record['options']['icasc_layers'] = ['layer2' if name.startswith('order') else 'layer3:NCHW', 'layer4']
            if name.startswith('plain'):
                record['options'].update({k: v for k, v in change.items() if k != 'arguments'})
            record['evaluated']['arguments'] = change.get('arguments', [])
        assert 'overlap_last' in summarise(study, records)[1].differences

    def test_studies_that_share_their_records_have_a_figure_each(self, recorded, tmp_path):
        study, _ = recorded
        other = tmp_path / 'other.yaml'
        other.write_text(yaml.safe_dump({
            **STUDY, 'variants': {'plain': {'icasc': False}}, 'records': 'records/s', 'report': 'other.md'}))
        (tmp_path / 'other.md').write_text(PAGE.replace('study s', 'study other'))
        assert sweep(study.file, '--report') == 0
        figure = (tmp_path / 'records' / 's.png').read_bytes()
        assert sweep(other, '--report') == 0
        assert (tmp_path / 'records' / 's.png').read_bytes() == figure
        assert '](records/other.png)' in (tmp_path / 'other.md').read_text()

    def test_against_another_variant(self, recorded, tmp_path, capsys):
        study, correct = recorded
        assert sweep(study.file, '--report', '--baseline', 'order-1') == 0
        printed = capsys.readouterr().out
        difference = statistics.fmean(
            100 * (sum(correct[f'plain-seed{seed}']) - sum(correct[f'order-1-seed{seed}'])) / IMAGES for seed in (0, 1))
        assert f'  {difference:+.2f} ± ' in re.search('^plain .*', printed, re.MULTILINE)[0]
        assert re.search(r'^order-1 +0 1 .*  -  +-  +-  +3$', printed, re.MULTILINE)
        assert (tmp_path / 'page.md').read_text() == PAGE and 'written' not in printed

    @pytest.mark.parametrize('options, message', [
        (['--report', '--baseline', 'order-2'], "the baseline 'order-2' is not among the variants: plain, order-1."),
        (['--baseline', 'order-1'], '--baseline is of the tables: add --report.')])
    def test_a_baseline_that_is_none(self, options, message, recorded, capsys):
        assert sweep(recorded[0].file, *options) == 2
        assert message in capsys.readouterr().err

    def test_a_page_that_cannot_be_written(self, recorded, tmp_path, capsys):
        (tmp_path / 'records' / 's.png').mkdir()
        assert sweep(recorded[0].file, '--report') == 2
        assert 's.png\': Is a directory' in capsys.readouterr().err

    def test_a_page_that_is_no_text(self, recorded, tmp_path, capsys):
        (tmp_path / 'page.md').write_bytes(b'caf\xe9')
        assert sweep(tmp_path / 's.yaml', '--report') == 2
        err = capsys.readouterr().err
        assert "page.md' is not UTF-8" in err and len(err.strip().splitlines()) == 1
        assert (tmp_path / 'page.md').read_bytes() == b'caf\xe9'

    def test_it_is_the_same_every_time(self, recorded, tmp_path):
        contents = []
        for _ in range(2):
            assert sweep(recorded[0].file, '--report') == 0
            contents.append([(tmp_path / name).read_bytes() for name in ('page.md', 'records/s.png')])
        assert contents[0] == contents[1]

    def test_several_studies_share_a_page(self, recorded, tmp_path, capsys):
        study, _ = recorded
        other = tmp_path / 'other.yaml'
        other.write_text(study.file.read_text())
        (tmp_path / 'page.md').write_text(PAGE + PAGE.replace('study s', 'study other'))
        second = load_study(other)
        write_record(second, second.runs[0], [1] * IMAGES)
        assert sweep(study.file, other, '--report') == 0
        page = (tmp_path / 'page.md').read_text()
        assert [page.count(f'\n{n} of 6 runs; 40 images') for n in (5, 1)] == [1, 1] and '\nold\n' not in page
        assert sweep(study.file, other) == sweep(study.file, other, '--report', '--data-dir', 'd') == 2
        assert 'several studies take --report and no other option' in capsys.readouterr().err

    def test_of_several_studies_one_without_records_or_page_stops_none(self, recorded, tmp_path, capsys):
        study, _ = recorded
        content = yaml.safe_load(study.file.read_text())
        empty, silent = tmp_path / 'a_empty.yaml', tmp_path / 'a_silent.yaml'
        empty.write_text(yaml.safe_dump(content))
        silent.write_text(yaml.safe_dump({key: value for key, value in content.items() if key != 'report'}))
        second = load_study(silent)
        write_record(second, second.runs[0], [1] * IMAGES)
        assert sweep(empty, silent, study.file, '--report') == 0
        out = capsys.readouterr().out
        assert 'a_empty: no record yet' in out and "a_silent.yaml' names no page ('report: FILE.md')" in out
        assert '\nold\n' not in (tmp_path / 'page.md').read_text(), 'the last one has its tables'
        assert sweep(silent, '--report') == 0 and 'names no page' in capsys.readouterr().out

    def test_several_classes_per_image(self, recorded, tmp_path):
        """No top-1, so average precision, and no interval over images; what boxes tell has a table of its own."""
        for file in recorded[0].records.glob('*.json'):
            record = json.loads(file.read_text())
            del record['correct'], record['final']['top1']
            record['final']['mAP'] = 50. + record['seed'] + 2 * (record['variant'] != 'plain')
            record['final']['energy'] = 0.3 + 0.1 * (record['variant'] != 'plain')
            record['curve'] = [{'epoch': 0, 'eval_mAP': 40., 'eval_seconds': 1.}]
            file.write_text(json.dumps(record))
        assert sweep(recorded[0].file, '--report') == 0
        page = (tmp_path / 'page.md').read_text()
        assert '| order-1 | 0 1 | 40.00 ± 0.00 | +0.00 | 52.50 ± 0.71 | +2.00 ± 0.00 | +2.00 to +2.00 | 1 |' in page
        assert 'over seeds and images' not in page.lower() and '![mAP %' in page
        assert '| variant | energy in the box |' in page and '| order-1 | 0.400 ± 0.000 (+0.100) |' in page

    def test_without_records_marks_or_page(self, recorded, tmp_path, capsys):
        (tmp_path / 'page.md').write_text('no marks')
        assert sweep(recorded[0].file, '--report') == 2
        assert "has no lines '<!-- study s begins -->'" in capsys.readouterr().err
        assert sweep(recorded[0].file, '--report', '--records', tmp_path / 'empty') == 2
        assert 'no record in' in capsys.readouterr().err

    @pytest.mark.parametrize('report', ['--report', '--jobs=1'])
    def test_a_changed_variant_is_refused(self, report, recorded, tmp_path, capsys):
        file = write_study(tmp_path, variants={'plain': {'icasc': False}, 'order-1': {'icasc_order': 1, 'lr': 0.3}})
        assert sweep(file, report, '--output', tmp_path / 'runs') == 2
        message = capsys.readouterr().err
        assert "variant 'order-1' is not what" in message and 'order-1-seed0.json' in message
        assert 'lr was None, is 0.3' in message and not (tmp_path / 'runs').exists()

    def test_what_changes_no_result_may_change(self, recorded, tmp_path, capsys):
        """Where numbers are logged, how many images are measured at once, the order of a file's lines."""
        common = {
            **STUDY['common'], 'log_interval': 7, 'checkpoint_hist': 3, 'validation_batch_size': 5,
            'log_tensorboard': True}
        for evaluate in ({'workers': 0, 'batch_size': 4}, {'batch_size': 4, 'device': 'cpu'}):
            assert sweep(write_study(tmp_path, common=common, evaluate=evaluate), '--report') == 0, capsys.readouterr()

    def test_a_run_without_a_checkpoint_begins_anew(self, recorded, tmp_path):
        """Killed while it wrote its options: nothing to go on with, nothing to compare."""
        study, folder = recorded[0], tmp_path / 'runs' / 'order-1-seed2'
        folder.mkdir(parents=True)
        (folder / 'args.yaml').write_text('')
        check_unchanged(study, read_records(study), tmp_path / 'runs')

    def test_a_changed_evaluation_is_refused(self, recorded, tmp_path, capsys):
        assert sweep(write_study(tmp_path, evaluate={'images': 9}), '--report') == 2
        assert "'plain-seed0' was evaluated with '', the study says '--images 9'" in capsys.readouterr().err

    @pytest.mark.parametrize('text', ['{', '{"final": {}}', '[]'])
    def test_a_broken_record_is_named(self, text, recorded, tmp_path, capsys):
        (tmp_path / 'records' / 's' / 'plain-seed1.json').write_text(text)
        assert sweep(recorded[0].file, '--report') == 2
        assert 'plain-seed1.json' in capsys.readouterr().err

    @pytest.mark.parametrize('change', [
        lambda record: record.pop('correct'), lambda record: record['final'].update(top1=None),
        lambda record: record['curve'][0].pop('eval_top1'), lambda record: record['correct'].update(images=9),
        lambda record: record['correct'].update(bits=record['correct']['bits'][:4])])
    def test_a_record_that_lacks_what_tables_need_is_named(self, change, recorded, capsys):
        """It was a traceback, or a mean of fewer seeds than the table said."""
        file = recorded[0].records / 'plain-seed1.json'
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))
        assert sweep(recorded[0].file, '--report') == 2
        assert "plain-seed1.json' is no record of a run; remove it" in capsys.readouterr().err

    def test_a_report_needs_no_runs(self, recorded, tmp_path, capsys):
        """A damaged file in one of their folders kept the tables from being made."""
        folder = tmp_path / 'runs' / 'plain-seed0'
        folder.mkdir(parents=True)
        for name, content in (('args.yaml', 'a: ['), ('results.json', '{'), ('last.pth.tar', '')):
            (folder / name).write_text(content)
        assert sweep(recorded[0].file, '--report', '--output', tmp_path / 'runs') == 0
        capsys.readouterr()
        assert sweep(recorded[0].file, '--output', tmp_path / 'runs') == 2
        assert f"Remove '{folder}', and the sweep does the run again." in capsys.readouterr().err

    def test_a_variant_that_changes_nothing_is_told(self, recorded, tmp_path, capsys):
        """An effect of +0.00 (+0.00 to +0.00) is none that was measured."""
        study, correct = recorded
        assert sweep(study.file, '--report') == 0 and 'to the last digit' not in capsys.readouterr().out
        for run in study.runs[:-1]:
            write_record(study, run, correct[f'plain-seed{run.seed}'])
        assert sweep(study.file, '--report') == 0
        assert 'order-1: every result is that of plain, to the last digit' in capsys.readouterr().out
        assert '*`order-1`: every result is that of `plain`' in (tmp_path / 'page.md').read_text()

    def test_where_no_record_can_be_written_nothing_runs(self, recorded, tmp_path, capsys):
        blocked = tmp_path / 'blocked'
        blocked.write_text('')
        assert sweep(recorded[0].file, '--records', blocked, '--output', tmp_path / 'runs') == 2
        assert f"--records: cannot write to '{blocked}': " in capsys.readouterr().err
        assert not (tmp_path / 'runs').exists()

    @pytest.mark.parametrize('part', ['0/3', '4/3', '1/0', '2', '1/3/3', '-1/3', '', '²/3'])
    def test_bad_parts(self, part, recorded, capsys):
        assert sweep(recorded[0].file, f'--part={part}') == 2
        assert f"--part must be I/N, the I-th of N parts, from 1/N to N/N; got '{part}'." in capsys.readouterr().err

    def test_the_page_is_of_all_parts(self, recorded, capsys):
        assert sweep(recorded[0].file, '--part', '1/2', '--report') == 2
        assert '--report is of the whole study: leave out --part.' in capsys.readouterr().err
        assert sweep(recorded[0].file, recorded[0].file, '--part', '1/2', '--report') == 2
        assert 'no other option' in capsys.readouterr().err
        assert sweep(recorded[0].file, '--report') == 0
        assert 'no record yet, with these seeds: order-1 2\n' in capsys.readouterr().out

    def test_a_part_without_runs_left(self, recorded, tmp_path, capsys):
        assert sweep(recorded[0].file, '--part', '1/2', '--output', tmp_path / 'runs') == 0
        printed = capsys.readouterr().out
        assert printed.startswith('s: part 1 of 2, 3 runs, 3 done; logs in ')
        assert 'no record yet, with these seeds: order-1 2\n' in printed and 'stopped' not in printed
        assert sweep(recorded[0].file, '--part', '1/7', '--output', tmp_path / 'runs') == 0
        assert 's: part 1 of 7, 0 runs, 0 done' in capsys.readouterr().out

    @pytest.mark.parametrize('option', ['--jobs', '--minutes'])
    def test_bad_numbers(self, option, recorded, capsys):
        assert sweep(recorded[0].file, option, 0) == 2
        assert f'{option} must be more than 0' in capsys.readouterr().err


EPOCHS = 8  # of which a sweep that looks every fifth of a second finds one done, and some to do


@pytest.fixture
def tiny(tmp_path):
    """A study of real runs: three classes of noise, a few images each."""
    save_noise(tmp_path / 'images', train=4, holdout=2, test=3)
    return write_study(
        tmp_path, seeds=[3], evaluate={'val_split': 'test'},
        common={
            'data_dir': str(tmp_path / 'images'), 'val_split': 'holdout', 'epochs': EPOCHS, 'warmup_epochs': 0,
            'lr': 0.05, 'batch_size': 6, 'workers': 0, 'smoothing': 0, 'icasc_eval_images': 3},
        variants={'plain': {'icasc': False}, 'broken': {'initial_checkpoint': 'nowhere.pth'}})


def stop_after(condition, monkeypatch):
    """SIGTERM reaches the sweep once the condition holds."""
    pause = time.sleep

    def nap(seconds):
        if condition():
            monkeypatch.setattr(processes.time, 'sleep', pause)
            signal.raise_signal(signal.SIGTERM)
        pause(seconds)
    monkeypatch.setattr(processes.time, 'sleep', nap)


def test_three_sessions(tiny, tmp_path, monkeypatch, capsys):
    """Stopped; gone on with, while another run fails, in a new interpreter; nothing left to do."""
    fork_in(processes, monkeypatch, 'plain-seed3', str(tmp_path / 'runs' / 'plain-seed3'))
    output, log = tmp_path / 'runs', tmp_path / 'runs' / 'plain-seed3.log'
    folder, file = output / 'plain-seed3', tmp_path / 'records' / 's' / 'plain-seed3.json'
    stop_after((folder / 'summary.csv').is_file, monkeypatch)
    assert sweep(tiny, '--output', output) == 128 + signal.SIGTERM
    assert 'stopped, asked to: 0 of 2 runs are done' in capsys.readouterr().out
    assert 'interrupted (SIGTERM)' in log.read_text() and not file.exists()
    done = len((folder / 'summary.csv').read_text().splitlines()) - 1
    assert 1 <= done < EPOCHS

    with open(log, 'a') as file_of_log:
        file_of_log.write(2 * 'warning: of the run\n')
    assert sweep(tiny, '--jobs', 2, '--output', output) == 1
    printed = capsys.readouterr()
    assert 'broken-seed3 FAILED' in printed.err and "no file 'nowhere.pth'" in printed.err
    assert 'plain-seed3 done: top1 ' in printed.out and f'resumed after epoch {done}' in log.read_text()
    assert printed.err.count('plain-seed3: warning: of the run\n') == 1
    record = json.loads(file.read_text())
    assert (record['variant'], record['seed'], record['options']['icasc']) == ('plain', 3, False)
    assert [row['epoch'] for row in record['curve']] == list(range(EPOCHS))
    assert record['command'].startswith('python -m timm_icasc.cli train ') and '--no-icasc' in record['command']
    assert '--resume' not in record['command'], 'the command is the one that began the run'
    assert record['evaluated']['split'] == 'test' and record['evaluated']['images'] == 9
    assert {'top1', 'ks', 'ece', 'overlap_last', 'flip_overlap', 'crop_iou'} <= set(record['final'])
    assert record['final']['top1'] == pytest.approx(100 * correct_of(record).mean())
    assert record['versions']['timm'] and record['machine']['cores'] == os.cpu_count() and record['wall_time'] > 0

    study, before = yaml.safe_load(tiny.read_text()), log.read_bytes()
    del study['variants']['broken']
    tiny.write_text(yaml.safe_dump(study))
    assert sweep(tiny, '--output', output) == 0
    assert '1 runs, 1 done' in capsys.readouterr().out and log.read_bytes() == before


def test_a_run_is_not_gone_on_with_on_other_images(tiny, tmp_path, capsys):
    """What was trained on the images of one folder was recorded as that of another."""
    study = yaml.safe_load(tiny.read_text())
    del study['variants']['broken']
    study['common']['epochs'] = 1
    tiny.write_text(yaml.safe_dump(study))
    assert sweep(tiny, '--output', tmp_path / 'runs') == 0
    moved = shutil.copytree(tmp_path / 'images', tmp_path / 'moved')
    other = save_noise(tmp_path / 'other', seed=1, train=4, holdout=2, test=3)
    again = ['--output', tmp_path / 'runs', '--records', tmp_path / 'again', '--data-dir']
    assert sweep(tiny, *again, other) == 2
    assert "was begun on the images of '" in capsys.readouterr().err
    (tmp_path / 'images').rename(tmp_path / 'gone')
    assert sweep(tiny, *again, moved) == 0, 'the same images elsewhere'
    record = json.loads((tmp_path / 'again' / 'plain-seed3.json').read_text())
    assert record['evaluated']['dataset'] == str(moved)
    assert len(record['evaluated']['pixels']) == 2 and record['evaluated']['preparation']['input_size'] == [3, 32, 32]


@pytest.mark.parametrize('left', ['model_best.pth.tar', 'icasc/last.pth.tar', 'notes.txt', None])
def test_what_a_run_has_not_left_is_not_removed(left, tiny, tmp_path, capsys):
    """The folder of a run that begins anew: also files that a user has put there, or a file of that name."""
    place = tmp_path / 'runs' / 'plain-seed3'
    file = place / left if left else place
    file.parent.mkdir(parents=True)
    file.write_text('kept')
    if left and left.endswith('.pth.tar'):
        (place / 'args.yaml').write_text('')
    assert sweep(tiny, '--output', tmp_path / 'runs') == 2
    assert f"'{place}' is where 'plain-seed3' is to go, and holds other files" in capsys.readouterr().err
    assert file.read_text() == 'kept'


def test_one_sweep_at_a_time(tiny, tmp_path, capsys):
    output = tmp_path / 'runs'
    with processes.alone_in(output, 'a sweep'):
        assert sweep(tiny, '--output', output) == 2
    assert f"another sweep is at work in '{output}'" in capsys.readouterr().err
    (tmp_path / 'file').write_text('')
    assert sweep(tiny, '--output', tmp_path / 'file' / 'runs') == 2
    assert '--output: cannot write to' in capsys.readouterr().err


def test_a_killed_sweep_leaves_the_lock_to_its_runs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, 'COMMAND', ('-c', 'import signal; signal.pause()'))
    study, output = load_study(tiny), tmp_path / 'runs'
    with processes.alone_in(output, 'a sweep') as lock:
        work = processes._Work(study, study.runs[0], output, processes.environment_of(1), lock)
    try:
        assert sweep(tiny, '--output', output) == 2
        assert 'or what a killed one has left' in capsys.readouterr().err
    finally:
        work.stop()
        work.leave()


MEET = """
import sys, time
from pathlib import Path
name = sys.argv[sys.argv.index('--experiment') + 1] if 'train' in sys.argv else Path(sys.argv[2]).name
Path(f'{name}.begun').touch()
while len(list(Path().glob('*.begun'))) < 2:
    time.sleep(0.01)
print(f'{name}: {sys.argv[1]}')
"""


def test_two_parts_at_once(tmp_path, monkeypatch):
    """Two processes in one folder, whose first runs wait for each other; together they leave what one sweep leaves."""
    monkeypatch.chdir(tmp_path)
    study, fork = load_study(write_study(tmp_path)), multiprocessing.get_context('fork')
    monkeypatch.setattr(processes, 'COMMAND', ('-c', MEET))
    monkeypatch.setattr(
        processes, 'make_record', lambda study, run, folder, environment: write_record(study, run, [1] * IMAGES))
    parts = [
        fork.Process(target=lambda i=i: sys.exit(sweep(study.file, '--part', f'{i}/2', '--output', 'runs')))
        for i in (1, 2)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    assert [part.exitcode for part in parts] == [0, 0]
    assert sorted(read_records(study)) == sorted(run.name for run in study.runs)
    for run in study.runs:
        log = Path('runs', f'{run.name}.log').read_text()
        assert log == f'{run.name}: train\n{run.name}: eval\n', 'each run was trained and measured once'
    assert sweep(study.file, '--report') == 0 and 'Not run yet' not in Path('page.md').read_text()


def test_parts_and_the_whole_do_not_meet(tiny, tmp_path, monkeypatch, capsys):
    output = tmp_path / 'runs'
    monkeypatch.setattr(processes, 'COMMAND', ('-c', 'raise SystemExit(3)'))
    with processes.alone_in(output, 'the whole'):
        assert sweep(tiny, '--output', output, '--part', '1/2') == 2
    assert f"another sweep is at work in '{output}'" in capsys.readouterr().err
    with processes.alone_in(output, 'a part', shared=True):
        assert sweep(tiny, '--output', output) == 2
        assert f"another sweep is at work in '{output}'" in capsys.readouterr().err
        assert sweep(tiny, '--output', output, '--part', '1/2') == 1
    assert 'plain-seed3 FAILED' in capsys.readouterr().err


def test_a_run_is_left_to_the_sweep_that_has_begun_it(tiny, tmp_path, monkeypatch, capsys):
    """As where a part is begun twice, or beside one of another number of parts; also after a kill of the first."""
    monkeypatch.setattr(processes, 'COMMAND', ('-c', 'import signal; signal.pause()'))
    study, output = load_study(tiny), tmp_path / 'runs'
    with processes.alone_in(output, 'a part', shared=True) as lock:
        work = processes._Work(study, study.runs[0], output, processes.environment_of(1), lock)
    work.close()  # its process has the log open, and with it the lock
    monkeypatch.setattr(processes, 'COMMAND', ('-c', 'raise SystemExit(3)'))
    try:
        assert sweep(tiny, '--output', output, '--part', '1/1') == 1
        printed = capsys.readouterr()
        assert 'left to another sweep: plain-seed3\n' in printed.out
        assert '1 runs failed: broken-seed3\n' in printed.err and work.process.poll() is None
    finally:
        work.stop()
        work.leave()
    assert sweep(tiny, '--output', output, '--part', '1/1') == 1
    assert '2 runs failed' in capsys.readouterr().err


def test_a_run_that_another_part_has_done_meanwhile(recorded, tmp_path):
    study, _ = recorded
    outcome = processes.carry_out(
        study, study.runs[:1], tmp_path / 'runs', 1, 9, lambda: False, lambda names, outcome: None, part=True)
    assert outcome.elsewhere == ['plain-seed0'] and not outcome.finished + list(outcome.failed)


def test_runs_share_the_cores_that_the_sweep_may_use(monkeypatch):
    """A scheduler lends some of the machine's."""
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(6)), raising=False)
    assert [processes.environment_of(jobs)['OMP_NUM_THREADS'] for jobs in (1, 2, 8)] == ['6', '3', '1']


def test_a_run_is_one_process_in_a_job_of_several(monkeypatch):
    """SLURM's variables of a job with more tasks made it wait for the others, without a word."""
    monkeypatch.setenv('SLURM_NTASKS', '4')
    monkeypatch.setenv('WORLD_SIZE', '4')
    for name, value in processes.environment_of(1).items():
        monkeypatch.setenv(name, value)
    assert not is_distributed_env()


def test_a_measure_that_a_run_lacks_is_not_told(recorded, tmp_path, monkeypatch, capsys):
    study, _ = recorded

    def finish(study, runs, output, jobs, seconds, stop_asked, on_change, part):
        write_record(study, runs[0], [1] * IMAGES, overlap_last=None)
        outcome = processes.Outcome(finished=[runs[0].name])
        on_change([], outcome)
        return outcome

    monkeypatch.setattr('timm_icasc.cli.sweep.carry_out', finish)
    assert sweep(study.file, '--output', tmp_path / 'runs') == 0
    assert 'order-1-seed2 done: top1 100.00\n' in capsys.readouterr().out


def test_the_time_is_up_before_a_run_ends(tiny, tmp_path, capsys):
    assert sweep(tiny, '--minutes', 1e-9, '--output', tmp_path / 'runs') == 0
    assert 'stopped, the time is up: 0 of 2 runs are done; the same command goes on' in capsys.readouterr().out
    assert not (tmp_path / 'records').exists()
