"""Differences that README.md and the pages of the studies tell are those of the records, rounded once."""
import csv
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import t

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / 'docs' / 'evidence'
PAGES = ['README.md', 'docs/evidence.md', 'docs/training.md', *sorted(
    str(page.relative_to(ROOT)) for page in EVIDENCE.glob('*.md'))]

NUMBER = r'[+-]?\d+\.\d+'
TOLD = re.compile(rf'({NUMBER})(?: points| points of mAP| on \w+)?,? \(({NUMBER}) to ({NUMBER})')

# Of what the records hold: those of which the pages tell differences. With one digit the first alone, since pairs
# that differ by chance would be found for any numbers.
IN_POINTS = ('top1', 'top5', 'mAP', 'train_top1')

Runs = dict[tuple[str, int], dict[str, float | str]]  # variant, seed -> measures


def differences_of(runs: Runs, variant: str, baseline: str, measure: str, seeds: Iterable[int]) -> np.ndarray:
    both = (seed for seed in seeds if (variant, seed) in runs and (baseline, seed) in runs)
    pairs = [(runs[variant, seed].get(measure), runs[baseline, seed].get(measure)) for seed in both]
    return np.array([own - other for own, other in pairs if own is not None and other is not None])


def with_interval(differences: np.ndarray) -> np.ndarray:
    """Mean and Student's 95 % interval, mean ± t(n - 1) s / sqrt(n)."""
    n = len(differences)
    half = quantile(n) * differences.std(ddof=1) / n ** 0.5
    return differences.mean() + np.array([0, -half, half])


@cache
def quantile(n: int) -> float:
    return t.ppf(0.975, n - 1)


def digits_of(numbers: tuple[str, str, str]) -> int:
    return len(numbers[0].partition('.')[2])


def written(values: np.ndarray, digits: int) -> tuple[str, ...]:
    """Rounded once; of what is 0 then, the sign is left out."""
    return tuple(f'{round(float(value), digits) + 0.:+.{digits}f}' for value in values)


@cache
def numbers_in(folder: Path) -> Runs:
    records = (json.loads(file.read_text()) for file in folder.glob('*.json'))
    return {(r['variant'], r['seed']): {
        **r['final'], **{name: r['curve'][-1].get(name) for name in ('train_top1', 'train_mAP')},
        'processor': r['machine']['processor']}
        for r in records if 'variant' in r}


def mean_of(first: Runs, again: Runs) -> Runs:
    """Of the runs that were done twice, the mean of both."""
    return {
        run: {name: (value + again[run][name]) / 2 for name, value in first[run].items() if isinstance(value, float)}
        for run in first.keys() & again.keys()}


@cache
def study(name: str, again: str = '') -> tuple[dict, Runs]:
    """A study's file and its runs; with its repetition, the means of both."""
    content = yaml.safe_load((EVIDENCE / f'{name}.yaml').read_text())
    runs = numbers_in(EVIDENCE / content.get('records', f'records/{name}'))
    return content, mean_of(runs, study(again)[1]) if again else runs


def effect(name: str, variant: str, baseline: str | None = None) -> tuple[float, np.ndarray]:
    """Mean of the baseline's seeds, and the difference with its interval."""
    content, runs = study(*name.split(' and '))
    baseline, seeds = baseline or content['baseline'], content['seeds']
    measure = 'top1' if 'top1' in next(iter(runs.values())) else 'mAP'
    level = np.mean([runs[baseline, seed][measure] for seed in seeds if (baseline, seed) in runs])
    return level, with_interval(differences_of(runs, variant, baseline, measure, seeds))


def told_in(text: str) -> list[tuple[str, str, str]]:
    return [match.groups() for match in TOLD.finditer(' '.join(text.split()))]


def rows_of(document: str, heading: str) -> list[str]:
    """The rows of the table below a line that begins with `heading`."""
    table = (ROOT / document).read_text(encoding='utf-8').partition(f'\n{heading}')[2].partition('\n\n')[0]
    return table.split('\n')[2:]


AGAIN = 'caltech101_thirty_ten'
TWICE = f'caltech101_thirty and {AGAIN}'
RANDOM_HEAD = 'caltech101_thirty_random_head'

# Of each row its baseline's mean, and each difference in it: study ('A and B': with its repetition), variant, baseline
# where it is not the study's.
ROWS = {
    ('docs/evidence.md', '| regime |'): [
        [('digits10_resnet20', 'ach-order1')],
        [('cifar20_50images', 'ach'), ('cifar20_50images_wide', 'ach')],
        [('cifar20_100images', 'ach')],
        [('cifar20_20epochs', 'ach-order1')],
        [('cifar20_finetuned', 'ach-order1')],
        [('finetune', 'recipe-icasc', 'recipe')],
        [('caltech101_few', 'ach')],
        [(TWICE, 'ach'), ('caltech101_thirty', 'ach'), (AGAIN, 'ach')],
        [('caltech101_few_random_head', 'ach')],
        [(RANDOM_HEAD, 'ach'), (f'{RANDOM_HEAD}_controls', 'cross-entropy-lr-0.005')],
        [('caltech101_cue', 'ach'), ('caltech101_cue_confirm', 'ach-lr-0.003')],
        [('voc2007_224', 'ach-w0.03'), ('voc2007_224', 'ach-w0.1')],
        [('voc2007_lite0', 'ach-order1')],
    ],
    ('README.md', '| data |'): [
        [('digits10_resnet20', 'ach-order1'), ('digits10_resnet20', 'ach-order2')],
        [('cifar20_50images', 'ach')],
        [('cifar20_50images_wide', 'ach')],
        [('cifar20_100images', 'ach')],
        [('cifar20_resnet20', 'ach-order1'), ('cifar20_resnet20', 'ach-order2')],
        [('caltech101_few', 'ach'), ('caltech101_few_controls', 'order-2')],
        [(TWICE, 'ach')],
        [(RANDOM_HEAD, 'ach')],
        [('caltech101_cue', 'ach')],
        [('voc2007_224', 'ach-w0.03')],
    ],
}


@pytest.mark.parametrize('document, heading', ROWS)
def test_rows_tell_what_the_records_hold(document, heading):
    rows, expected = rows_of(document, heading), ROWS[document, heading]
    assert len(rows) == len(expected)
    for row, effects in zip(rows, expected, strict=True):
        told, found = told_in(row), [effect(*which) for which in effects]
        assert f'{found[0][0]:.1f}' in row, row
        assert len(told) == len(found), row
        for numbers, (_, values) in zip(told, found, strict=True):
            digits = digits_of(numbers)
            assert written(np.array(numbers, float), digits) == written(values, digits), row


def classes_of(variant: str) -> list[dict[str, str]]:
    with (EVIDENCE / 'measures' / f'voc2007_224_classes_{variant}.csv').open() as file:
        return list(csv.DictReader(file))


def test_classes_of_voc_are_those_of_the_measured_pair():
    """The table holds both files, and their mean is the record's but for the half precision of the shipped weights."""
    pair = ('soft-margin', 'ach-w0.1')
    plain, icasc = (classes_of(variant) for variant in pair)
    expected = []
    for before, after in zip(plain, icasc, strict=True):
        assert before['class'] == after['class']
        numbers = [
            f'{float(row[name]):.{digits}f}'
            for name, digits in (('AP', 1), ('AUC', 1), ('energy', 2), ('iou', 2)) for row in (before, after)]
        expected.append(' | '.join([before['class'], before['images'], *numbers, f'{float(before["box_area"]):.2f}']))
    rows = rows_of('docs/evidence/voc2007.md', '| class | images | AP, soft margin |')
    assert [row.strip('| ') for row in rows] == expected
    for variant, classes in zip(pair, (plain, icasc), strict=True):
        mean = np.mean([float(row['AP']) for row in classes])
        assert mean == pytest.approx(study('voc2007_224')[1][variant, 0]['mAP'], abs=0.02)


def beside(first: Runs, again: Runs) -> Runs:
    """The runs of a study and those of its repetition, under two names."""
    return first | {(f'{variant} again', seed): measures for (variant, seed), measures in again.items()}


def by_processor(first: Runs, again: Runs) -> Runs:
    """A seed's runs on two processors are two pairs, so that no difference is over two processors."""
    return {
        (variant, (seed, measures['processor'])): measures
        for runs in (first, again) for (variant, seed), measures in runs.items()}


def sources() -> Iterator[Runs]:
    """Runs that were measured on the same images: the records of studies, and what was measured of them later."""
    for folder in sorted((EVIDENCE / 'records').iterdir()):
        if not folder.is_dir():
            continue
        runs = numbers_in(folder)
        yield runs
        if folder.name.endswith('_again'):
            first = numbers_in(folder.with_name(folder.name.removesuffix('_again')))
            yield from (beside(first, runs), mean_of(first, runs), by_processor(first, runs))
    for file in sorted((EVIDENCE / 'measures').glob('*.json')):
        splits: dict[str, Runs] = {}
        for name, measured in json.loads(file.read_text())['runs'].items():
            variant, _, seed = name.rpartition('-seed')
            for split, measures in measured.items():
                splits.setdefault(split, {})[variant, int(seed)] = measures
        yield from splits.values()


@pytest.fixture(scope='module')
def held() -> set[tuple[str, ...]]:
    """Each difference that the records hold: of all seeds, of the first five, and of the first three."""
    found = set()
    for runs in sources():
        for variant, baseline in combinations(sorted({variant for variant, _ in runs}), 2):
            seeds = sorted({seed for name, seed in runs if name == variant})
            for measure in next(iter(runs.values())):
                try:
                    whole = differences_of(runs, variant, baseline, measure, seeds)
                except TypeError:  # a name
                    continue
                for part in (whole, whole[:5], whole[:3]):
                    if len(part) > 1:
                        values = with_interval(part)
                        for digits in (1, 2) if measure in IN_POINTS else (2, 3):
                            found |= {written(values, digits), written(-values[[0, 2, 1]], digits)}
    return found


def as_told(numbers: tuple[str, str, str]) -> Iterator[tuple[str, ...]]:
    """What a text may mean that leaves signs out: 'behind by 1.4 (0.5 to 2.2)' is -1.4 (-2.2 to -0.5)."""
    digits, values = digits_of(numbers), np.array(numbers, float)
    yield written(values, digits)
    yield written(-values[[0, 2, 1]], digits)
    yield written(np.array([-values[0], *values[1:]]), digits)  # 'costs 3.0 (-4.4 to -1.5)'


@pytest.mark.parametrize('page', PAGES)
def test_pages_tell_what_the_records_hold(page, held):
    text = re.sub(r'<!-- study.*?ends -->', '', (ROOT / page).read_text(encoding='utf-8'), flags=re.S)
    unknown = [numbers for numbers in told_in(text) if held.isdisjoint(as_told(numbers))]
    assert not unknown


def test_numbers_that_no_record_holds_are_found(held):
    """Of the same differences with the last digit changed, most are in no record."""
    told = [numbers for page in PAGES for numbers in told_in((ROOT / page).read_text(encoding='utf-8'))]
    changed = [(mean, low, f'{float(high) + 0.1:+.2f}') for mean, low, high in told if len(high.partition('.')[2]) == 2]
    assert len(told) > 200 and np.mean([held.isdisjoint(as_told(numbers)) for numbers in changed]) > 0.8
