"""Terms that empty the maps have a small loss and train nothing: the user is told, once."""
import json

import pytest
import torch
from helpers.runs import TINY, train_in_process

from timm_icasc.losses import attention_consistency, attention_separation, target_mask
from timm_icasc.training import run as training_run
from timm_icasc.training.run_warnings import empty_maps

TOLD = 'keeps them, or other --icasc-layers'


@pytest.mark.parametrize('record, text', [
    ({'eval_zero_maps': 0.51}, '51% of the images have an attention map of zeros'),
    ({'eval_zero_maps': 0.49}, None),
    ({'eval_zero_maps': 0.1, 'train_loss_as_inner': 0., 'train_loss_ac': 0.8}, None),
    ({'train_loss_as_inner': 0.0002, 'train_loss_ac': 0.79}, 'L_AS inner 0.0002, L_AC 0.790 of at most 0.8'),
    ({'train_loss_as_inner': 0.0002, 'train_loss_ac': 0.4}, None),
    ({'train_loss_as_inner': 0.05, 'train_loss_ac': 0.79}, None),
    ({'train_loss_as_inner': None, 'train_loss_ac': None}, None),  # before they set in
    ({'train_loss_as_inner': 0.}, None),  # without consistency
])
def test_what_says_so(record, text):
    found = empty_maps(record, theta=0.8)
    assert found is None if text is None else text in found


def test_the_terms_of_an_empty_inner_map():
    """What the rule rests on."""
    last, empty = torch.rand(2, 4, 4), torch.zeros(2, 4, 4)
    mask = target_mask(last)
    assert attention_separation(empty, empty, mask).tolist() == [0, 0]
    assert attention_consistency(empty, mask, theta=0.8).tolist() == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize('options, times', [([], 1), (['--no-icasc'], 0), (['--icasc-start-epoch', 5], 0)])
def test_it_is_told_once(options, times, monkeypatch, capsys, tmp_path):
    """And not where ICASC has no part in it: its remedies would be none."""
    monkeypatch.setattr(training_run, 'evaluate', lambda job, flag: {'top1': 1., 'loss': 1., 'zero_maps': 0.75})
    code, out, err = train_in_process(
        monkeypatch, capsys, *TINY, '--dataset', 'digits', '--limit-train', 12, '--epochs', 2,
        '--output', tmp_path, '--experiment', 'x', *options)
    assert code == 0, err
    assert (out + err).count(TOLD) == (out + err).count('75% of the images') == times


def test_what_is_not_measured_is_null_in_the_results(monkeypatch, capsys, tmp_path):
    """The overlap of maps that are empty is NaN, which is no JSON: only Python could read the file."""
    monkeypatch.setattr(training_run, 'evaluate', lambda job, flag: {'top1': 50., 'overlap_last': float('nan')})
    code, _, err = train_in_process(
        monkeypatch, capsys, '--dataset', 'digits', *TINY, '--epochs', 1, '--limit-train', 1, '--output', tmp_path,
        '--experiment', 'x')
    assert code == 0, err

    def refuse(constant):
        raise AssertionError(constant)

    results = json.loads((tmp_path / 'x' / 'results.json').read_text(), parse_constant=refuse)
    assert results['last']['eval_top1'] == 50. and results['last']['eval_overlap_last'] is None
