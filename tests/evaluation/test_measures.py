"""Numbers from records, recomputed with loops; the paired bootstrap against one resample at a time."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from timm_icasc import DataError, ICASCError
from timm_icasc.evaluation.bootstrap import SEED, compare
from timm_icasc.evaluation.image_records import ImageRecords, load_records, save_records
from timm_icasc.evaluation.measures import (
    class_table,
    confused_classes,
    correct_predictions,
    ks_of,
    mean_measures,
    summarise,
)
from timm_icasc.evaluation.report import image_rows
from timm_icasc.metrics import MultiLabelEvaluator, expected_calibration_error

NAMES = ['ant', 'bee', 'cow', 'dog', 'eel', 'fox', 'gnu']


def records(seed=0, count=40, classes=7, multilabel=False, label='a'):
    generator = np.random.default_rng(seed)
    scores = 3 * generator.random((count, classes))
    targets = np.random.default_rng(99).integers(classes, size=count)
    images = {'overlap_last': generator.random(count), 'ac': generator.random(count)}
    images['overlap_last'][seed::7] = np.nan  # maps of zeros are each network's own
    places = np.random.default_rng(98)  # objects are the data's, the same for every checkpoint
    cells = np.sort(places.choice(count * classes, size=60, replace=False))
    pairs = {'image': cells // classes, 'class': cells % classes}
    for name in ('pointing', 'energy', 'iou', 'iou50', 'no_map', 'box_area'):
        values = generator.random(60)
        pairs[name] = values.round() if name in ('pointing', 'iou50', 'no_map') else values
    if multilabel:
        targets = np.random.default_rng(99).choice([-1., 0., 0., 1.], size=(count, classes))
        scores += targets
    files = [f'{i}.jpg' for i in range(count)]
    return ImageRecords(label, NAMES[:classes], np.arange(count), files, scores, targets, images=images, pairs=pairs)


def test_images_of_the_same_names_are_told_by_their_content():
    a, b = records(0), records(1, label='b')
    a.preparation = b.preparation = {'input_size': [3, 8, 8], 'crop_pct': 0.9}
    a.pixels = np.random.default_rng(0).random((40, 2))
    b.pixels = a.pixels + 0.001  # another decoder
    expected = compare(a, b, resamples=9)
    b.pixels = a.pixels + 0.1 * (np.arange(40) == 7)[:, None]
    with pytest.raises(DataError, match="'a' and 'b' were evaluated on images of the same names, 1 of 40 with other"):
        compare(a, b, resamples=9)
    b.preparation = {'input_size': [3, 8, 8], 'crop_pct': 1.}
    with pytest.warns(UserWarning, match=r"given their images in other ways \(crop_pct 0\.9 and 1\.0\), which is in"):
        assert compare(a, b, resamples=9) == expected
    b.pixels, b.preparation = None, {}  # of an earlier version
    assert compare(a, b, resamples=9) == expected


def probabilities(r, multilabel=False):
    if multilabel:
        return [[1 / (1 + math.exp(-s)) for s in row] for row in r.scores]
    return [[math.exp(s) / sum(math.exp(other) for other in row) for s in row] for row in r.scores]


def test_accuracy():
    r = records()
    values, n = summarise(r), len(r.targets)
    for k, name in ((1, 'top1'), (5, 'top5')):
        hits = sum(t in sorted(range(7), key=lambda c: -s[c])[:k] for s, t in zip(r.scores, r.targets, strict=True))
        assert values[name] == pytest.approx(100 * hits / n)
    assert 'mAP' not in values and 'top5' not in summarise(records(classes=5)), 'the five best of five are no test'


def test_calibration_is_that_of_the_predicted_class():
    r = records()
    hits = np.array([s.argmax() == t for s, t in zip(r.scores, r.targets, strict=True)])
    confidence = np.array([max(row) for row in probabilities(r)])
    assert summarise(r)['ece'] == pytest.approx(expected_calibration_error(confidence, hits))
    assert 'ece' not in summarise(records(multilabel=True))


def test_confused_class_and_ks_margin():
    r = records()
    target, confused = [], []
    for s, t in zip(probabilities(r), r.targets, strict=True):
        others = [c for c in range(7) if c != t]
        best = max(others, key=lambda c: s[c])
        target.append(s[t])
        confused.append(s[best])
        assert confused_classes(r)[len(target) - 1] == best
    margins = [np.mean(np.array(confused) <= p) - np.mean(np.array(target) <= p) for p in target + confused]
    best = max(margins, key=abs)
    assert summarise(r)['ks'] == pytest.approx(best)
    assert ks_of(r, np.arange(40)).probability == summarise(r)['ks_probability']
    assert any(summarise(r)['ks_probability'] == pytest.approx(p) for p in target + confused)


def test_means_leave_undefined_images_out_and_pool_the_boxes():
    r = records()
    values = summarise(r)
    defined = [v for v in r.images['overlap_last'] if v == v]
    assert values['overlap_last'] == pytest.approx(sum(defined) / len(defined)) and len(defined) < 40
    assert values['energy'] == pytest.approx(sum(r.pairs['energy']) / 60), 'over images and classes'


def test_several_classes_per_image():
    r = records(multilabel=True)
    precisions, areas, present, absent = [], [], [], []
    for c in range(7):
        known = r.targets[:, c] != -1
        precisions.append(average_precision_score(r.targets[known, c], r.scores[known, c]))
        areas.append(roc_auc_score(r.targets[known, c], r.scores[known, c]))
    for s, t in zip(probabilities(r, multilabel=True), r.targets, strict=True):
        present += [s[c] for c in range(7) if t[c] == 1]
        if any(t == 0):
            absent.append(max(s[c] for c in range(7) if t[c] == 0))
    values = summarise(r)
    assert values['mAP_sklearn'] == pytest.approx(100 * np.mean(precisions))
    assert values['AUC'] == pytest.approx(100 * np.mean(areas))
    margins = [np.mean(np.array(absent) <= p) - np.mean(np.array(present) <= p) for p in present + absent]
    assert values['ks'] == pytest.approx(max(margins, key=abs))
    assert 'mAP_ten_crop' not in values
    crops = records(seed=1, multilabel=True)
    r.ten_crop_probabilities = crops.scores
    assert {name: summarise(r)[f'{name}_ten_crop'] for name in ('mAP', 'AUC')} == pytest.approx(
        {name: summarise(crops)[name] for name in ('mAP', 'AUC')})
    assert {**summarise(r), **values} == summarise(r), 'the others stay as they are'
    table = class_table(r)
    assert [row['AUC'] for row in table] == pytest.approx([100 * a for a in areas])


def test_scores_of_probability_1_are_still_told_apart():
    """A confident network, all of whose probabilities are 1 in single precision, ranks its images as any other."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(200, 3, generator=generator) < 0.4).float()
    scores = 60 + 3 * (targets + torch.randn(200, 3, generator=generator))
    assert scores.sigmoid().unique().numel() == 1
    r = ImageRecords(
        'a', NAMES[:3], np.arange(200), [str(i) for i in range(200)], scores.numpy(), targets.numpy())
    evaluator = MultiLabelEvaluator()
    evaluator.update(scores, targets)
    values = summarise(r)
    assert values['mAP'] == pytest.approx(evaluator.compute()['mAP'], abs=1e-6) and 60 < values['mAP'] < 90
    lower = replace(r, scores=(scores - 60).numpy())
    assert {name: values[name] for name in ('mAP', 'AUC')} == pytest.approx(
        {name: summarise(lower)[name] for name in ('mAP', 'AUC')})
    far = ImageRecords(
        'b', NAMES, np.arange(1), ['0'], np.array([[200., 50, 40, 30, 20, 10, 5]], dtype=np.float32), np.array([1]))
    assert summarise(far)['top5'] == 100 and summarise(far)['top1'] == 0


def test_scores_that_are_no_numbers_are_never_right():
    r = records()
    broken = replace(r, scores=np.full_like(r.scores, np.nan))
    assert not correct_predictions(broken).any() and correct_predictions(r).any()


def test_class_table():
    r = records()
    table = {row['class']: row for row in class_table(r)}
    for c, name in enumerate(NAMES):
        own = [i for i in range(40) if r.targets[i] == c]
        assert table[name]['images'] == len(own)
        assert table[name]['top1'] == pytest.approx(100 * np.mean([r.scores[i].argmax() == c for i in own]))
        energies = [e for e, k in zip(r.pairs['energy'], r.pairs['class'], strict=True) if k == c]
        assert table[name]['energy'] == pytest.approx(np.mean(energies))


def test_an_image_that_has_every_class_is_confused_with_none():
    """A row without a rival counts nowhere; the others count as if it were not there."""
    r = records(multilabel=True, count=12)
    r.targets[:4], r.targets[4:] = [1, 1, 1, 1, 1, 1, -1], [1, 0, 1, 0, 1, 0, 1]
    rows = image_rows(r)
    assert [(row['confused'], row['confused_probability']) for row in rows[:4]] == [('', '')] * 4
    assert all(row['confused'] in ('bee', 'dog', 'fox') for row in rows[4:])
    table = {row['class']: row['confused_with'] for row in class_table(r)}
    assert set(table.values()) <= {'bee', 'dog', 'fox', ''} and table['bee'] == table['fox'] == '' != table['ant']
    absent = np.sort(r.probabilities[4:, [1, 3, 5]].max(1))
    assert ks_of(r, np.arange(12)).confused.tolist() == absent.tolist()
    assert len(ks_of(r, np.arange(4)).confused) == 0


@pytest.mark.parametrize('multilabel', [False, True])
def test_paired_bootstrap_one_resample_at_a_time(multilabel):
    a, b = records(0, multilabel=multilabel), records(1, multilabel=multilabel, label='b')
    resamples = 6
    result = compare(a, b, resamples)
    drawn = np.random.default_rng(SEED).integers(40, size=(resamples, 40))

    def resampled(r, rows):
        taken = [np.flatnonzero(r.pairs['image'] == row) for row in rows]
        pairs = {name: np.concatenate([column[t] for t in taken]) for name, column in r.pairs.items()}
        pairs['image'] = np.concatenate([np.full(len(t), i) for i, t in enumerate(taken)])
        return ImageRecords(
            r.label, r.names, np.arange(40), r.files, r.scores[rows], r.targets[rows],
            images={name: column[rows] for name, column in r.images.items()}, pairs=pairs)

    mapped = (a.pairs['no_map'] == 0) & (b.pairs['no_map'] == 0)
    assert 0 < mapped.sum() < 60
    overlaps = [r.images['overlap_last'] for r in (a, b)]
    assert sum(math.isnan(x) or math.isnan(y) for x, y in zip(*overlaps, strict=True)) == 12
    a, b = (
        replace(r, images={**r.images, 'overlap_last': np.array([
            math.nan if math.isnan(x) or math.isnan(y) else value
            for x, y, value in zip(*overlaps, r.images['overlap_last'], strict=True)])})
        for r in (a, b))

    def everything(r, rows):
        chosen = ImageRecords(
            r.label, r.names, r.indices, r.files, r.scores, r.targets,
            pairs={name: column[mapped] for name, column in r.pairs.items()})
        both = summarise(resampled(chosen, rows))
        both = {f'{name}_both': both[name] for name in ('pointing', 'energy', 'iou', 'iou50')}
        return {**summarise(resampled(r, rows)), **both}

    pairs = [(everything(a, rows), everything(b, rows)) for rows in drawn]
    whole = everything(a, np.arange(40)), everything(b, np.arange(40))
    expected = {'ks', 'overlap_last', 'ac', 'energy', 'pointing', 'iou', 'iou50', 'no_map'}
    expected |= {'pointing_both', 'energy_both', 'iou_both', 'iou50_both'}
    assert set(result) == expected | ({'mAP', 'AUC'} if multilabel else {'top1', 'top5', 'ece'})
    for name, row in result.items():
        differences = [second[name] - first[name] for first, second in pairs]
        assert row['difference'] == pytest.approx(whole[1][name] - whole[0][name])
        assert (row['low'], row['high']) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
        above = np.mean([1. if d > 0 else 0.5 if d == 0 else 0. for d in differences])
        assert row['share_above'] == pytest.approx(above, abs=1e-9)
    assert {name for name, row in result.items() if row['images'] == 40} >= {'ks', 'ac'}
    assert result['overlap_last']['images'] == 28
    assert result['energy_both']['images'] == len(set(a.pairs['image'][mapped])) < result['energy']['images'] <= 40


def test_maps_that_one_of_two_has_lost_are_no_difference():
    """B has A's maps, but zeros where A's overlap is large: its own mean is lower, and no map lies apart more."""
    a, b = records(), records(label='b')
    b.images['overlap_last'] = np.where(a.images['overlap_last'] > 0.5, np.nan, a.images['overlap_last'])
    assert summarise(b)['overlap_last'] < summarise(a)['overlap_last'] - 0.1
    for first, second in ((a, b), (b, a)):
        row = compare(first, second, 20)['overlap_last']
        assert row['a'] == row['b'] == pytest.approx(np.nanmean(b.images['overlap_last']))
        assert row['difference'] == row['low'] == row['high'] == 0
        assert row['images'] == np.isfinite(b.images['overlap_last']).sum()
    b.images['overlap_last'][:] = np.nan
    assert math.isnan(compare(a, b, 20)['overlap_last']['difference'])


def test_a_checkpoint_does_not_differ_from_itself():
    for row in compare(records(), records(), 20).values():
        assert row['difference'] == row['low'] == row['high'] == 0 and row['share_above'] == 0.5


def test_the_interval_covers_a_real_difference_of_every_image():
    """Images differ much from each other and little between A and B: only pairing shows it."""
    a, b = records(), records()
    b.images['ac'] = a.images['ac'] + 0.01
    row = compare(a, b, 200)['ac']
    assert row['low'] == pytest.approx(0.01) and row['high'] == pytest.approx(0.01) and row['share_above'] == 1


def test_other_images_cannot_be_compared():
    with pytest.raises(DataError, match="'a' and 'b' were not evaluated on the same images"):
        compare(records(), records(count=39, label='b'))
    other = records(label='b')
    other.files[3] = 'another.jpg'
    with pytest.raises(DataError, match='not evaluated on the same images'):
        compare(records(), other)


def test_weights_of_pairs_are_counts():
    numerator, weight = mean_measures(records())['energy']
    assert weight.sum() == 60 and numerator.sum() == pytest.approx(records().pairs['energy'].sum())


def test_records_are_read_as_they_were_written(tmp_path):
    r = replace(
        records(multilabel=True), settings={'attention': 'ach', 'sigma': 0.55},
        ten_crop_probabilities=np.random.default_rng(0).random((40, 7)))
    r.preparation, r.pixels = {'input_size': [3, 8, 8]}, np.ones((len(r.files), 2))
    save_records(tmp_path / 'records.npz', r)
    read = load_records(tmp_path / 'records.npz')
    assert read.settings == r.settings and summarise(read) == summarise(r)
    assert read.preparation == r.preparation and np.array_equal(read.pixels, r.pixels)
    with np.load(tmp_path / 'records.npz') as file:
        arrays = dict(file)
    del arrays['format']  # the first version, whose scores were probabilities
    np.savez(tmp_path / 'records.npz', **arrays)
    with pytest.raises(ICASCError, match='another version of the package; evaluate the checkpoint again'):
        load_records(tmp_path / 'records.npz')


@pytest.mark.parametrize('name, value', [
    ('attention', 'grad_cam'), ('sigma', 0.2), ('layer', 'inner'), ('tolerance', 5.), ('layers', 'a b')])
def test_different_maps_are_not_compared(name, value):
    settings = {
        'attention': 'ach', 'sigma': 0.55, 'layer': 'last', 'tolerance': 0., 'architecture': 'toy', 'layers': 'c d'}
    a, b = replace(records(), settings=settings), replace(records(1, label='b'), settings={**settings, name: value})
    with pytest.raises(DataError, match=f'have different maps: `{name}` {settings[name]} and'):
        compare(a, b, 5)
    assert compare(a, replace(b, settings=settings), 5)
    assert compare(a, replace(b, settings={**settings, 'architecture': 'other', 'layers': 'e f'}), 5)


def test_boxes_that_one_of_two_crops_has_lost_are_compared_where_both_have_them():
    a, b = records(), records(1, label='b')
    kept = np.arange(60) % 4 != 1
    fewer = replace(b, pairs={name: column[kept] for name, column in b.pairs.items()})
    result = compare(a, fewer, 20)
    expected = compare(replace(a, pairs={name: column[kept] for name, column in a.pairs.items()}), fewer, 20)
    assert result == expected
    energies = [r.pairs['energy'][kept].mean() for r in (a, b)]
    assert result['energy']['difference'] == pytest.approx(energies[1] - energies[0])
    mapped = kept & (a.pairs['no_map'] == 0) & (b.pairs['no_map'] == 0)
    assert result['energy_both']['b'] == pytest.approx(b.pairs['energy'][mapped].mean())
    assert compare(fewer, a, 20)['energy']['difference'] == pytest.approx(energies[0] - energies[1])
