"""docs/paper.md against a table of the paper's numbers that was typed apart from paper.yaml."""
import re
import statistics
from pathlib import Path

import pytest
import yaml

from timm_icasc import ICASCConfig
from timm_icasc.training.arguments import build_parser

ROOT = Path(__file__).parents[2]
NUMBERS = yaml.safe_load((Path(__file__).parent / 'paper_numbers.yaml').read_text())
METHODS = ('baseline', 'ICASC grad_cam', 'ICASC ach')


def read_tables():
    """Heading -> rows of the table below it."""
    tables = {}
    for section in (ROOT / 'docs' / 'paper.md').read_text(encoding='utf-8').split('\n## ')[1:]:
        title, *lines = section.splitlines()
        cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
        tables[title] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return tables


TABLES = read_tables()


def rows_of(data):
    return next(rows for title, rows in TABLES.items() if title.startswith('Table') and title.endswith(f', {data}')
                and not title.startswith(('Table 2,', 'Table 2 of')))


def row_of(data, place, name, measure):
    """The one row of a network and method, `name` being 'NETWORK | METHOD' or the method alone."""
    network, _, method = name.rpartition(' | ')
    row, = [row for row in rows_of(data) if row['measure'] == measure and row['method'] == method
            and row['network'] == network and place in row['in'].split(', ')]
    return row


def check(data, place, name, measure, value, gain=None, column='gain'):
    row = row_of(data, place, name, measure)
    assert float(row['paper']) == value, name
    if gain is not None:
        assert float(row[column]) == gain, name


def test_table_2():
    rows = next(rows for title, rows in TABLES.items() if title.startswith('Table 2,'))
    assert {row['method']: float(row['paper']) for row in rows} == NUMBERS['Table 2']


@pytest.mark.parametrize('table, data', [('3', 'CUB-200-2011'), ('4', 'CIFAR-100')])
def test_tables_of_top1(table, data):
    for name, (value, *gain) in NUMBERS[f'Table {table}'].items():
        check(data, table, name, 'top-1 %', value, *gain)


@pytest.mark.parametrize('key, data, crops', [
    ('Table 5', 'Caltech-256', ''), ('Table 6', 'ILSVRC2012', ''), ('Table 6, ten crops', 'ILSVRC2012', ', ten crops')])
def test_tables_of_top1_and_top5(key, data, crops):
    for name, (top1, top5, *gain) in NUMBERS[key].items():
        check(data, key[6], name, f'top-1 %{crops}', top1, *gain)
        check(data, key[6], name, f'top-5 %{crops}', top5)


def test_table_7():
    for name, (value, *rest) in NUMBERS['Table 7'].items():
        check('CUB-200-2011', '7', name, 'top-1 %', value, *rest[:1], column='gain over ResNet-50')
        if rest[1:]:
            plain, single = rest[1:]
            note = f"{'no ' * plain}extra annotation, {'one stage' if single else 'several stages'}"
            assert row_of('CUB-200-2011', '7', name, 'top-1 %')['note'] == f'quoted, {note}'


def test_table_8():
    for name, (auc, ap, *gain) in NUMBERS['Table 8'].items():
        check('PASCAL VOC 2012', '8', name, 'AUC', auc)
        check('PASCAL VOC 2012', '8', name, 'mAP %', ap, *gain)


def test_table_9():
    for key, values in NUMBERS['Table 9'].items():
        data, network = key.split(' | ')
        label = ', N = 60' * (data == 'Caltech-256')
        for method, value in zip(METHODS, values, strict=True):
            check(data, '9', f'{network} | {method}{label}', 'mAP %' if 'VOC' in data else 'top-1 %', value)


def test_table_2_of_the_appendix():
    title, = [title for title in TABLES if title.startswith('Table 2 of the appendix')]
    found = {row['class']: [float(row[method]) for method in METHODS] for row in TABLES[title]}
    expected = dict(NUMBERS['Table 2 of the appendix'])
    assert found == expected
    means = expected.pop('mAP')
    for i, mean in enumerate(means):
        assert statistics.fmean(values[i] for values in expected.values()) == pytest.approx(mean, abs=0.006)
    best = {name: METHODS[values.index(max(values))] for name, values in expected.items()}
    assert {name for name, method in best.items() if method != 'ICASC ach'} == {'tvmonitor'}


def test_figures_9_and_10():
    for name, (margin, probability) in NUMBERS['Fig. 9'].items():
        check('CUB-200-2011', 'Fig. 9', name, 'KS margin', margin)
        check('CUB-200-2011', 'Fig. 9', name, 'KS margin at probability', probability)
    shown, = [row['shows'] for row in TABLES['Figures'] if row['figure'] == 'Fig. 10']
    assert all(text in shown for text in NUMBERS['Fig. 10'])


def test_gains_of_the_abstract_and_over_the_own_baseline():
    for data, gain in NUMBERS['abstract'].items():
        row, = [row for row in rows_of(data) if row['in'] == 'abstract']
        assert float(row['gain']) == gain
        assert ('over its own baseline +4.00' in row['note']) == (data == 'CUB-200-2011')
    assert float(row_of('CUB-200-2011', '7', 'ResNet-101 | ICASC ach', 'top-1 %')['gain']) == 4.0


def test_only_cited_values_are_marked_as_quoted():
    quoted = {row['method'] for title, rows in TABLES.items() for row in rows if 'quoted' in row.get('note', '')}
    assert quoted >= {'baseline', 'baseline, stochastic depth', 'MAMC', 'PN-CNN'}
    assert not any(method.startswith('ICASC') for method in quoted)
    for title, rows in TABLES.items():
        if title.startswith(('Tables 5', 'Tables 8')):
            assert not any('quoted' in row['note'] for row in rows)
        if title.startswith('Tables 6'):  # both ten-crop values of the baseline, and neither of single crops
            assert [(row['method'], row['measure']) for row in rows if 'quoted' in row['note']] == [
                ('baseline', 'top-1 %, ten crops'), ('baseline', 'top-5 %, ten crops')]


def test_the_contradictions_stand_in_one_place():
    text = (ROOT / 'docs' / 'paper.md').read_text(encoding='utf-8')
    section = text.split('## Where the paper contradicts itself')[1].split('\n## ')[0]
    sentences = [line for line in section.splitlines() if line.startswith('- ')]
    assert len(sentences) == 8
    told = (
        '+4.8', '5,823', 'Tables 4 and 7 are cited', 'ten-crop baseline', 'ResNet-18 for CIFAR-100', '80 images',
        '15,000', 'No repetitions')
    for words, sentence in zip(told, sentences, strict=True):
        assert words in sentence


def test_what_the_paper_gives_is_told_from_what_it_leaves_open():
    """Given are the constants, which are the defaults here, Eq. 6's weights from the first step, layers and maps."""
    rows = {row['choice']: row for row in TABLES['What the paper gives, and what it leaves open']}
    given = {choice for choice, row in rows.items() if row['the paper'].startswith('given')}
    assert given == {'theta of Eq. 5', 'sigma of Eq. 4', 'omega of Eq. 4', 'weights of the terms',
                     'when the terms begin', 'other layers', 'kind of map'}
    for name in ('theta', 'sigma', 'omega'):
        row, = [row for choice, row in rows.items() if choice.startswith(name)]
        assert float(row['here (default)']) == getattr(ICASCConfig(), name)
        assert str(float(row['here (default)'])).removesuffix('.0') in row['the paper']
    assert all(row['the paper'].startswith(('given', 'open', 'ambiguous')) for row in rows.values())
    parser = build_parser()
    for row in rows.values():
        options = re.findall(r'--[\w-]+', row['option'])
        assert options or row['option'] == 'none'
        assert all(option in parser.format_help() for option in options)
