"""`timm-icasc paper`: finished runs beside the paper's figures."""
import csv
import json
import statistics

import pytest
import yaml

from timm_icasc.cli import main
from timm_icasc.paper import PAPER, collect_runs, paper_rows

PROTOCOL = {'dataset': 'cifar100', 'model': 'resnet110_cifar', 'epochs': 160, 'batch_size': 128}


def write_run(folder, method='cross-entropy', seed=0, top1=70., evaluated=None, **options):
    folder.mkdir(parents=True)
    options = {**PROTOCOL, 'icasc': method != 'cross-entropy', 'icasc_order': 1, 'seed': seed, **options}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    (folder / 'results.json').write_text(json.dumps({'method': method, 'last': {'eval_top1': top1, 'time': 3.}}))
    if evaluated:
        (folder / 'eval').mkdir()
        (folder / 'eval' / 'eval.json').write_text(json.dumps({'measures': evaluated}))


def rows_of(tmp_path, **wanted):
    rows = paper_rows(collect_runs([tmp_path]))
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
    assert [row['paper'] for row in rows if row['ours'] == '70.00'] == [None, None]
    assert all('not the paper’s protocol' in row['note'] for row in rows if row['ours'] == '70.00')
    assert [row['ours'][:8] for row in rows if row['paper'] == 72.78] == ['not run:']


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    write_run(tmp_path / 'a', lr=0.1)
    write_run(tmp_path / 'b', lr=0.2, seed=1, top1=80.)
    write_run(tmp_path / 'c', lr=0.2, seed=2, top1=81., output='elsewhere', workers=3)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert sorted((row['ours'], row['note']) for row in rows) == [('70.00', 'lr=0.1'), ('80.50 ± 0.71', 'lr=0.2')]


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


def test_every_figure_of_the_paper_has_a_source():
    content = yaml.safe_load(PAPER.read_text())
    for experiment in content['experiments']:
        assert experiment['gain_source'] in content['sources'] if experiment.get('gain') else True
        for row in experiment['rows']:
            assert (row['value'] is None) == ('source' not in row)
    cifar = content['experiments'][0]
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
    else:
        rows = json.loads(output.read_text()) if suffix == '.json' else list(csv.DictReader(open(output)))
        row, = [row for row in rows if row['ours'] == '70.00']
        assert float(row['paper']) == 72.78 and row['table'] == 'Table 4, CIFAR-100'


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], "no folder 'nowhere'"),
    (['EMPTY'], 'no finished run'),
    (['EMPTY', '--output', 'x.txt'], '.md, .json'),
])
def test_bad_input(arguments, message, tmp_path, capsys):
    assert main(['paper', *[str(tmp_path) if a == 'EMPTY' else a for a in arguments]]) == 2
    assert message in capsys.readouterr().err
