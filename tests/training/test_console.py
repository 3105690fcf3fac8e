"""The table of epochs."""
import pytest

from timm_icasc.labels import MULTI, SINGLE
from timm_icasc.training.console import format_epoch, format_header


@pytest.mark.parametrize('labels, measure', [(SINGLE, 'top1'), (MULTI, 'mAP')])
def test_columns_stay_below_their_names_whatever_the_numbers(labels, measure):
    """Of per cents two decimals, of losses and shares four, so that 7.50 stands above 100.00."""
    header = format_header(labels)
    lines = [
        format_epoch(epoch, {f'eval_{measure}': value, 'train_loss': 0.5, 'time': 1.}, labels)
        for epoch, value in ((8, 7.5), (9, 100.))]
    assert [len(line) for line in lines] == [len(header)] * 2
    assert [[cell for cell in line.split() if cell != '-'] for line in lines] == [
        ['9', '0.5000', '7.50', '1.0s'], ['10', '0.5000', '100.00', '1.0s']]


def test_what_no_image_has_is_a_dash():
    """The overlap of maps, where all of them are zeros, is a mean over no image."""
    line = format_epoch(0, {'eval_overlap_inner': float('nan'), 'train_loss': 0.5, 'time': 1.}, SINGLE)
    assert 'nan' not in line and line == format_epoch(0, {'train_loss': 0.5, 'time': 1.}, SINGLE)
