"""`timm-icasc paper`: every table and figure with its command, finished runs beside the paper's figures."""
import argparse
import csv
import json
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

from timm_icasc.cli import eval as evaluate
from timm_icasc.cli import figure, main, segment
from timm_icasc.paper.rows import PAPER, paper_rows
from timm_icasc.runs.folder import collect_runs
from timm_icasc.training.arguments import parse_args

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load(PAPER.read_text())
PROTOCOL = {'dataset': 'cifar100', 'model': 'resnet110_cifar', 'epochs': 160, 'batch_size': 128}


def write_run(folder, method='cross-entropy', seed=0, top1=70., evaluated=None, world_size=1, **options):
    folder.mkdir(parents=True)
    options = {**PROTOCOL, 'icasc': method != 'cross-entropy', 'icasc_order': 1, 'seed': seed, **options}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    (folder / 'results.json').write_text(json.dumps(
        {'method': method, 'last': {'eval_top1': top1, 'time': 3.}, 'world_size': world_size}))
    if evaluated:
        (folder / 'eval').mkdir()
        (folder / 'eval' / 'eval.json').write_text(json.dumps({'measures': evaluated}))


def rows_of(tmp_path, **wanted):
    rows = paper_rows(collect_runs([tmp_path]), CONTENT)
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def test_mean_deviation_and_difference_over_seeds(tmp_path):
    plain, icasc = {0: 70., 1: 72., 2: 71.}, {0: 73., 1: 73.5, 5: 60.}
    for seed, top1 in plain.items():
        write_run(tmp_path / f'ce{seed}', seed=seed, top1=top1)
    for seed, top1 in icasc.items():
        write_run(tmp_path / 'deep' / f'ours{seed}', 'ICASC ach, order 1', seed, top1, icasc_order=1)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert row['ours'] == f'71.00 ± {statistics.stdev(plain.values()):.2f}' and row['paper'] == 72.78
    assert row['seeds'] == '0 1 2' and row['to the baseline'] is None
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['paper'] == 76.11 and row['seeds'] == '0 1 5'
    pairs = [73. - 70., 73.5 - 72.]  # seed 5 has no partner
    assert row['to the baseline'] == f'+{statistics.fmean(pairs):.2f} ± {statistics.stdev(pairs):.2f} (n=2)'


def test_what_was_not_run_says_what_it_needs(tmp_path):
    write_run(tmp_path / 'run', dataset='digits')
    rows = rows_of(tmp_path)
    missing = [row for row in rows if str(row['ours']).startswith('not run: needs ')]
    assert {row['table'].split(', ')[1] for row in missing} >= {
        'CIFAR-100', 'Caltech-256', 'ILSVRC2012', 'CUB-200-2011', 'PASCAL VOC 2012'}
    own, = [row for row in rows if row not in missing]
    assert own['table'] == 'not in the paper, digits' and own['ours'] == '70.00'


def test_another_protocol_is_not_the_papers(tmp_path):
    write_run(tmp_path / 'short', epochs=12)
    write_run(tmp_path / 'small', model='resnet20_cifar')
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert [(row['paper'], row['note']) for row in rows] == [
        (None, 'not the recipe’s settings, epochs=12'), (None, 'not the recipe’s settings')]
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', paper=72.78)
    assert row['ours'].startswith('not run:')


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    write_run(tmp_path / 'a', lr=0.1)
    write_run(tmp_path / 'b', lr=0.2, seed=1, top1=80.)
    write_run(tmp_path / 'c', lr=0.2, seed=2, top1=81., output='elsewhere', workers=3)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert sorted((row['ours'], row['note']) for row in rows) == [('70.00', ''), ('80.50 ± 0.71', 'lr=0.2')]


@pytest.mark.parametrize('loss', ['soft margin', 'binary cross-entropy'])
def test_every_loss_without_icasc_is_a_baseline(loss, tmp_path):
    write_run(tmp_path / 'a', loss, icasc=False)
    write_run(tmp_path / 'b', 'ICASC ach, order 1', top1=75.)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method=loss)
    assert row['to the baseline'] is None
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['to the baseline'] == '+5.00 (n=1)'


def test_unused_options_of_icasc_do_not_part_baselines(tmp_path):
    write_run(tmp_path / 'a', icasc_order=1)
    write_run(tmp_path / 'b', seed=1, top1=80., icasc_order=2)
    write_run(tmp_path / 'c', 'ICASC ach, order 2', 1, 90., icasc_order=2)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert row['seeds'] == '0 1'
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 2')
    assert row['to the baseline'] == '+10.00 (n=1)'


def test_ten_crops_come_from_the_evaluation(tmp_path):
    write_run(tmp_path / 'run', dataset='imagenet', evaluated={'top1': 1., 'top1_ten_crop': 77.})
    rows = rows_of(tmp_path, table='Tables 3-9, ILSVRC2012', method='cross-entropy')
    assert {row['measure']: row['ours'] for row in rows} == {'top-1 %': '70.00', 'top-1 %, ten crops': '77.00'}


def test_the_batch_is_that_of_an_update_over_all_processes(tmp_path):
    """128 images of an update are the paper's, however many GPUs share them."""
    write_run(tmp_path / 'shared', batch_size=16, grad_accum_steps=2, world_size=4)
    write_run(tmp_path / 'larger', batch_size=128, world_size=4, top1=80.)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert [(row['paper'], row['ours']) for row in rows] == [(72.78, '70.00'), (None, '80.00')]
    assert rows[1]['note'] == 'not the recipe’s settings, batch_size=512'


def test_what_departs_from_the_recipe_beside_the_seed_is_told(tmp_path):
    write_run(tmp_path / 'a', 'ICASC ach, order 1', icasc_weights=[0.1, 0.1, 0.1], icasc_start_epoch=1., drop_path=0.5)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['note'] == 'drop_path=0.5, icasc_start_epoch=1.0, icasc_weights=[0.1, 0.1, 0.1]'


def test_both_sizes_of_the_training_split_have_their_rows(tmp_path):
    settings = {'dataset': 'caltech256', 'model': 'resnet18.tv_in1k', 'epochs': 60, 'batch_size': 64,
                'img_size': 224, 'val_split': 'test'}
    for n in (30, 60):
        write_run(tmp_path / str(n), 'ICASC ach, order 2', top1=float(n), train_split=f'train{n}', **settings)
    rows = rows_of(tmp_path, table='Tables 3-9, Caltech-256', method='ICASC ach, order 2')
    assert [(row['ours'], row['note']) for row in rows] == [('30.00', 'N = 30'), ('60.00', 'N = 60')]


def test_a_repeated_seed_and_a_broken_run_are_named(tmp_path):
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', top1=80.)
    write_run(tmp_path / 'c', seed=1)
    (tmp_path / 'c' / 'results.json').write_text('{')
    with pytest.warns(UserWarning) as caught:
        row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    messages = [str(w.message) for w in caught]
    assert row['ours'] == '80.00'
    assert any('same seed' in m for m in messages) and any('is left out' in m and '/c' in m for m in messages)


@pytest.mark.parametrize('file, text', [
    ('args.yaml', ''), ('args.yaml', '- a list'), ('results.json', '[]'), ('results.json', '{"last": 3}'),
    ('segmentation.json', '{"mIoU": 3}'), ('segmentation.json', '[]'), ('segmentation.json', '{"mIoU": "a"}'),
])
def test_damaged_files_are_left_out(file, text, tmp_path, capsys):
    write_run(tmp_path / 'whole')
    write_run(tmp_path / 'damaged', seed=1, top1=10.)
    (tmp_path / 'damaged' / file).write_text(text)
    with pytest.warns(UserWarning, match='damaged.* is left out'):
        assert main(['paper', str(tmp_path)]) == 0
    assert '70.00' in capsys.readouterr().out or file == 'segmentation.json'


def test_every_value_of_the_paper_has_a_source():
    for experiment in CONTENT['experiments']:
        assert experiment['gain_source'] in CONTENT['sources']
        for row in experiment['rows']:
            assert (row['value'] is None) == ('source' not in row)
    cifar = CONTENT['experiments'][0]
    assert cifar['rows'][1]['value'] - cifar['rows'][0]['value'] == pytest.approx(cifar['gain'])


@pytest.mark.parametrize('suffix', ['.md', '.json', '.csv'])
def test_files(suffix, tmp_path, capsys):
    write_run(tmp_path / 'run')
    output = tmp_path / 'new' / f'paper{suffix}'
    assert main(['paper', str(tmp_path / 'run'), '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    assert 'Table 4, CIFAR-100' in printed and 'not known' in printed and 'arXiv:1811.07484' in printed
    if suffix == '.md':
        assert '| resnet110_cifar | cross-entropy | top-1 % | 72.78 | 70.00 |' in output.read_text()
        assert f"timm-icasc paper {tmp_path / 'run'} --output {output}" in output.read_text()
    else:
        rows = json.loads(output.read_text()) if suffix == '.json' else list(csv.DictReader(open(output)))
        row, = [row for row in rows if row.get('ours') == '70.00']
        assert float(row['paper']) == 72.78 and row['table'] == 'Table 4, CIFAR-100'


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], "no folder 'nowhere'"),
    (['EMPTY'], 'no finished run'),
    (['EMPTY', '--output', 'x.txt'], '.md, .json'),
])
def test_bad_input(arguments, message, tmp_path, capsys):
    assert main(['paper', *[str(tmp_path) if a == 'EMPTY' else a for a in arguments]]) == 2
    assert message in capsys.readouterr().err


def test_without_runs_every_table_and_figure_has_its_command_and_what_it_needs(tmp_path, monkeypatch, capsys):
    """This is docs/paper.md: write it anew with `timm-icasc paper --output docs/paper.md` where it differs."""
    monkeypatch.chdir(tmp_path)
    assert main(['paper', '--output', 'docs/paper.md']) == 0
    assert (tmp_path / 'docs' / 'paper.md').read_text() == (ROOT / 'docs' / 'paper.md').read_text()
    assert main(['paper', '--output', 'paper.json']) == 0
    rows = json.loads((tmp_path / 'paper.json').read_text())
    printed = capsys.readouterr().out
    assert all(row['command'] in printed for row in rows if row.get('command'))
    for experiment in CONTENT['experiments']:
        own = [row for row in rows if row['table'].split(', ', 1)[1:] == [experiment['title']]]
        assert {row['method'].split(',')[0] for row in own} == {*CONTENT['methods'], 'gain over its baseline'}
        assert all(row['ours'].startswith('not run: needs ') for row in own)
    figures = ' '.join(row['figure'] for row in rows if row['table'] == 'Figures')
    assert all(number in figures for number in ('Fig. 1 ', 'Fig. 2', '4, 5', 'Fig. 9', 'Fig. 10', 'appendix'))
    assert {row['method'] for row in rows if row['table'].startswith('Table 2')} == {
        'grad_cam', 'grad_cam_plus_plus', 'ach'}


def commands():
    text = (ROOT / 'docs' / 'paper.md').read_text()
    return [shlex.split(part) for block in text.split('```bash')[1:]
            for line in block.split('```')[0].strip().splitlines() for part in line.split(' && ')]


def test_the_commands_are_ones_that_the_programs_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = set()
    for words in commands():
        seen.add(tuple(words[:2]))
        if words[0] == 'python':
            assert Path(words[1]).is_file() and parse_args(words[2:]).run_dir is None
        else:
            module = {'segment': segment, 'figure': figure, 'eval': evaluate}[words[1]]
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_args(words[2:])
    assert len(seen) == 4


def test_the_figures_of_this_repository_exist():
    here = [entry['here'] for entry in CONTENT['figures'] if entry['here']]
    here += [word for entry in (CONTENT['segmentation'], *CONTENT['experiments'])
             for word in entry.get('here', '').strip(')').split() if word.startswith('docs/')]
    assert len(here) > 3 and all((ROOT / path).is_file() for path in here)
