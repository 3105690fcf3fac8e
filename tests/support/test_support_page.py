"""The support table: what is counted, and that its page says what the record says."""
import json
from copy import deepcopy
from pathlib import Path

import pytest
import timm

from timm_icasc import ICASCError
from timm_icasc.support.support_page import (
    level,
    load_record,
    row,
    summary,
    support_page,
    write_record,
)

ROOT = Path(__file__).parents[2]
LAYER = {'path': 'a', 'layout': 'NCHW', 'channels': 8, 'grid': [14, 14]}
FINE = {
    'family': 'timm.models.x', 'input_size': [3, 224, 224], 'inner': LAYER, 'last': {**LAYER, 'grid': [7, 7]},
    'nonzero': 1.0, 'order1': 0.5, 'order2': 1.0}
ISOTROPIC = {
    **FINE, 'last': {**LAYER, 'path': 'b', 'layout': 'NLC', 'prefix_tokens': 1, 'output_index': 2}, 'nonzero': 0.5}
FIRST = {**FINE, 'order2': 'RuntimeError: no derivative'}
REFUSED = {'family': 'timm.models.y', 'input_size': [3, 64, 64], 'error': 'no class logits'}
OURS = {**FINE, 'family': 'timm_icasc.models.resnet_cifar'}


@pytest.fixture
def record():
    models = {'fine': FINE, 'isotropic': ISOTROPIC, 'first': FIRST, 'refused': REFUSED, 'ours': OURS}
    return {**load_record(None), 'models': deepcopy(models), 'seconds': 600, 'processor_seconds': 1080.0, 'jobs': 2}


def test_levels():
    assert [level(r) for r in (FINE, FIRST, REFUSED)] == ['order 2', 'order 1 only', 'unsupported']
    assert level({**FINE, 'order1': 0.0, 'order2': 0.0}) == 'unsupported'


def test_rows():
    assert row('x', FINE) == 'x: inner a NCHW 14x14, last a NCHW 7x7, order 2'
    assert row('x', ISOTROPIC).endswith('last b[2] NLC 1+14x14, order 2, gradient on 50% of the last grid')
    assert row('x', FIRST).endswith('order 1 only (RuntimeError: no derivative)')
    assert row('x', REFUSED) == 'x: no class logits'


def test_summary_counts_timms_own_and_names_what_falls_short(record):
    text = summary(record)
    assert 'Of 4 architectures' in text and '2 modules' in text
    assert '**2 order 2, 1 order 1 only, 1 unsupported**' in text
    assert 'By module: x 3, y 1.' in text
    assert '2 have an inner layer of about twice' in text and '1 are isotropic' in text
    assert '18 minutes of processor time, 10 by the clock in 2 processes' in text
    assert '| `first` | order 1 only | RuntimeError: no derivative |' in text
    assert '| `refused` | unsupported | no class logits |' in text
    assert '`fine`' not in text and '`ours`' not in text


def test_summary_without_any_of_timms_own(record):
    """It was 'Of 0 architectures (0 modules): ****' and 'By module: .'."""
    text = summary({**record, 'models': {'ours': OURS}})
    assert text == "No architecture of timm's own is among them."
    assert text in support_page({**record, 'models': {'ours': OURS}})


def test_summary_says_what_the_maps_find(record):
    maps = ({'ach': [0.5, 0.6, 0.25], 'grad_cam': [1., 0.8, 0.]}, {'ach': None, 'grad_cam': [0.5, 0.6, 0.]})
    for result, found in zip(record['models'].values(), maps, strict=False):
        result['maps'] = found
    text = summary(record)
    assert 'than 75% of random quarters' in text and 'than of 70% of the other classes; `ach` 50% and 60%' in text
    assert '| x | 3 | 2 | 1 | 0 | 2 | 50% | 0 | 50% | 75% |' in support_page(record)


def test_values_that_are_never_negative_are_counted(record):
    for result in record['models'].values():
        result['negative'] = [0.5, 0.]
    assert 'never below 0 in 3' in summary(record)


def test_an_unfinished_sweep_says_so(record):
    assert 'not finished' not in summary({**record, 'total': 5})
    assert '**The sweep is not finished**: 1,372 architectures' in summary({**record, 'total': 1377})


def test_page_has_families_and_architectures(record):
    page = support_page(record)
    assert '| x | 3 | 2 | 1 | 0 | 2 | 50% | 0 | - | - |' in page
    assert '| resnet_cifar | 1 | 1 | 0 | 0 | 1 | 100% |' in page
    assert '| refused | 64x64 | - | - |' in page


def test_file_round_trip(record, tmp_path):
    path = tmp_path / 'deep' / 'record.json'
    write_record(path, record)
    assert load_record(path) == json.loads(path.read_text()) == record
    with pytest.raises(ICASCError, match="`img_size`: .* was made with the default"):
        load_record(path, img_size=64)
    assert [p.name for p in path.parent.iterdir()] == ['record.json']


def test_a_page_that_holds_something_else_is_kept(record, tmp_path):
    """The table went over README.md, of --json README.json."""
    page = tmp_path / 'README.md'
    page.write_text('my notes\n')
    with pytest.raises(ICASCError, match="README.md', which holds something else: name another file"):
        load_record(tmp_path / 'README.json')
    page.write_text(support_page(record))
    assert not load_record(tmp_path / 'README.json')['models']


def test_a_folder_that_cannot_be_written(record, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ICASCError, match='cannot write'):
        write_record(tmp_path / 'file' / 'record.json', record)


class TestTheCommittedRecord:
    record = json.loads((ROOT / 'docs' / 'support.json').read_text())

    def test_it_covers_every_architecture_of_its_timm(self):
        if timm.__version__ != self.record['versions']['timm']:
            pytest.skip(f"made with timm {self.record['versions']['timm']}")
        # Other tests register architectures of their own.
        names = {
            name for name in timm.list_models()
            if timm.model_entrypoint(name).__module__.startswith(('timm.', 'timm_icasc.'))}
        missing = len(names - set(self.record['models']))
        assert set(self.record['models']) <= names
        assert missing == 0 or f'{missing:,} architectures have not been looked at' in summary(self.record)

    def test_the_page_is_generated_from_it(self):
        assert (ROOT / 'docs' / 'support.md').read_text() == support_page(self.record)
