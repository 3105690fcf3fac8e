"""Tables in the terminal, in Markdown and in files; means with deviations, paired differences, marks of a page."""
import json
import statistics

import numpy as np
import pytest

from timm_icasc.errors import ICASCError
from timm_icasc.runs.tables import (
    around_marks,
    markdown,
    marks,
    mean_and_deviation,
    mean_sd,
    paired_difference,
    replace_between,
    text,
    write_csv,
    write_json,
)

ROWS = [
    {'measure': 'top-1 %', 'a': 99.5, 'b': '007', '': ''},
    {'measure': 'overlap', 'a': 0.123456, 'b': None, '': '*'},
    {'measure': 'loss', 'a': float('nan'), 'b': 3, '': ''}]


def test_text_is_aligned_and_numbers_keep_their_digits():
    assert text(ROWS).splitlines() == [
        'measure       a    b',
        'top-1 %   99.50  007',
        'overlap  0.1235    -  *',
        'loss          -    3']


def test_numbers_that_are_compared_have_as_many_decimals():
    """Of a measure in its row; in other tables in their columns."""
    assert text([
        {'measure': 'top-1 %', 'a': 7.5, 'b': 15.}, {'measure': 'top-5 %', 'a': 0.5, 'b': float('nan')},
        {'measure': 'overlap', 'a': 0.5, 'b': 1.}]).splitlines()[1:] == [
            'top-1 %    7.50   15.00', 'top-5 %    0.50       -', 'overlap  0.5000  1.0000']
    assert text([
        {'method': 'x', 'top-1 %': 7.5, 's': 9.5, 'ks': 0.25},
        {'method': 'y', 'top-1 %': 9., 's': 12.25, 'ks': None}]).splitlines()[1:] == [
            'x          7.50   9.50  0.2500', 'y          9.00  12.25       -']


def test_more_columns_of_text():
    rows = [{'model': 'm', 'step': 'plain', 's': '1.0'}, {'model': 'm', 'step': 'x', 's': '10.0'}]
    assert text(rows, left=2).splitlines() == ['model  step      s', 'm      plain   1.0', 'm      x      10.0']


def test_markdown_is_not_filled_up():
    """A line changes only where its own cells do."""
    assert markdown(ROWS).splitlines() == [
        '| measure | a | b |  |', '|---|---|---|---|', '| top-1 % | 99.50 | 007 |  |', '| overlap | 0.1235 | - | * |',
        '| loss | - | 3 |  |']


def test_no_rows():
    assert text([]) == markdown([]) == ''


def test_json_has_no_nan_and_no_numpy(tmp_path):
    write_json(tmp_path / 'x.json', {'a': np.float32(0.5), 'b': [float('nan'), np.int64(3)], 'c': ('x', None)})
    assert json.loads((tmp_path / 'x.json').read_text()) == {'a': 0.5, 'b': [None, 3], 'c': ['x', None]}


def test_csv_has_the_columns_of_all_rows(tmp_path):
    write_csv(tmp_path / 'x.csv', [{'a': 1}, {'a': 2, 'b': 'x,y'}])
    assert (tmp_path / 'x.csv').read_text().splitlines() == ['a,b', '1,', '2,"x,y"']


@pytest.mark.parametrize('values, expected', [((90., 92., 97.), '93.00 ± 3.61'), ((90.,), '90.00')])
def test_mean_and_sample_deviation(values, expected):
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(sum(values) / len(values))
    assert deviation is None if len(values) == 1 else deviation == pytest.approx(statistics.stdev(values))
    assert mean_sd(mean, deviation) == expected
    assert mean_sd(0.5, None, 3, '+') == '+0.500' and mean_sd(-0.5, 0.25, 1, '+') == '-0.5 ± 0.2'


def test_differences_are_paired_by_seed():
    own, baseline = {2: 5., 0: 1., 3: 4., 4: None, 5: 1.}, {0: 2., 2: 3., 4: 1., 5: None, 6: 1.}
    assert list(paired_difference(own, baseline).items()) == [(0, -1.), (2, 2.)]
    assert paired_difference(own, {}) == {}


class TestBetweenMarks:

    @pytest.fixture
    def page(self, tmp_path):
        begin, end = marks('x')
        (tmp_path / 'page.md').write_text(f'# Title\n\n{begin}\nold\n{end}\n\nmore {end}\n')
        return tmp_path / 'page.md'

    def test_the_rest_stays(self, page):
        for content in ('new ± 1', 'newer'):
            replace_between(page, 'x', content)
            assert page.read_text(encoding='utf-8') == (
                f'# Title\n\n<!-- x begins -->\n{content}\n<!-- x ends -->\n\nmore <!-- x ends -->\n')

    @pytest.mark.parametrize('content', [
        None, '', '<!-- x begins -->', '<!-- x ends -->\n<!-- x begins -->', '<!-- y begins -->\n<!-- y ends -->'])
    def test_no_marks(self, content, tmp_path):
        page = tmp_path / 'page.md'
        if content is not None:
            page.write_text(content)
        for call in (lambda: around_marks(page, 'x'), lambda: replace_between(page, 'x', 'new')):
            with pytest.raises(ICASCError, match="page.md' has no lines '<!-- x begins -->' and '<!-- x ends -->'"):
                call()
        assert content is None or page.read_text() == content
