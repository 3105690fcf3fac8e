"""Scores in, numbers out: average precision, AUC, calibration, the KS statistic, each against loops."""
import json

import numpy as np
import pytest
import torch
from helpers.processes import in_two_processes
from sklearn.metrics import average_precision_score, roc_auc_score
from timm.task import MultiLabelClassificationTask

from timm_icasc import DataError, ICASCError, NonFiniteLossError
from timm_icasc.losses import MultiLabelSoftMarginLoss, multilabel_soft_margin
from timm_icasc.metrics import (
    MultiLabelEvaluator,
    expected_calibration_error,
    kolmogorov_smirnov,
    multilabel_metrics,
    per_class_metrics,
    voc_average_precision,
)


def devkit(scores, present, definition):
    """VOCevalcls.m and VOCap.m of the development kit, in loops; scores without ties."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    recall, precision, true, false = [], [], 0, 0
    for i in order:
        true, false = true + int(present[i]), false + int(not present[i])
        recall.append(true / sum(present))
        precision.append(true / (true + false))
    if definition == '11-point':
        ap = 0.
        for step in range(11):
            reached = [p for r, p in zip(recall, precision, strict=True) if r >= step / 10 - 1e-12]
            ap += max(reached, default=0.) / 11
        return ap
    recall, precision = [0., *recall, 1.], [0., *precision, 0.]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])


def random_class(seed, count=40, share=0.3):
    generator = np.random.default_rng(seed)
    return generator.permutation(count) / count, generator.random(count) < share


class TestVOCAveragePrecision:

    @pytest.mark.parametrize('definition', ['area', '11-point'])
    @pytest.mark.parametrize('seed', range(8))
    def test_equals_the_development_kit(self, seed, definition):
        scores, present = random_class(seed)
        expected = devkit(scores.tolist(), present.tolist(), definition)
        assert voc_average_precision(scores, present, definition) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize('present, area, eleven', [
        ([1, 1, 0, 0], 1., 1.),
        ([0, 0, 1, 1], 0.5, 0.5),  # precision 1/3 at recall 1/2, 1/2 at recall 1
        ([1, 0, 0, 1], 0.5 * 1 + 0.5 * 0.5, (6 * 1 + 5 * 0.5) / 11),
        ([1, 1, 1, 1], 1., 1.),
    ])
    def test_by_hand(self, present, area, eleven):
        scores = np.array([4., 3., 2., 1.])
        assert voc_average_precision(scores, np.array(present, bool)) == pytest.approx(area)
        assert voc_average_precision(scores, np.array(present, bool), '11-point') == pytest.approx(eleven)

    @pytest.mark.parametrize('count', [3, 7, 10, 30])
    def test_the_eleven_recalls_are_reached_in_spite_of_rounding(self, count):
        """k of `count` present images found is a recall of k / count, which no float may miss by its last digit."""
        assert voc_average_precision(-np.arange(count), np.ones(count, bool), '11-point') == pytest.approx(1.)

    @pytest.mark.parametrize('definition', ['area', '11-point'])
    def test_images_of_equal_score_in_any_order(self, definition):
        scores, present = random_class(3)
        scores = np.round(scores, 1)
        order = np.random.default_rng(1).permutation(len(scores))
        one = voc_average_precision(scores, present, definition)
        assert one == voc_average_precision(scores[order], present[order], definition)
        # One score for all: a single threshold, whose precision is the share of present images.
        assert voc_average_precision(np.zeros(40), present, definition) == pytest.approx(present.mean())

    def test_present_nowhere(self):
        assert np.isnan(voc_average_precision(np.arange(3.), np.zeros(3, bool)))

    def test_unknown_definition(self):
        with pytest.raises(ValueError, match="'area' or '11-point', got 'coco'"):
            voc_average_precision(np.arange(3.), np.ones(3, bool), 'coco')


def scores_and_targets(count=60, classes=4):
    generator = np.random.default_rng(5)
    targets = generator.choice([1, 0, -1], (count, classes), p=[0.3, 0.6, 0.1])
    return generator.standard_normal((count, classes)) + (targets == 1), targets


class TestPerClass:

    def test_ignored_images_are_left_out_of_their_class_alone(self):
        scores, targets = scores_and_targets()
        for c, row in enumerate(per_class_metrics(scores, targets, list('abcd'))):
            kept = [i for i in range(len(targets)) if targets[i, c] != -1]
            score, present = scores[kept, c], targets[kept, c] == 1
            assert row['class'] == 'abcd'[c] and row['images'] == present.sum()
            assert row['AP'] == pytest.approx(100 * devkit(score.tolist(), present.tolist(), 'area'))
            assert row['AP_11point'] == pytest.approx(100 * devkit(score.tolist(), present.tolist(), '11-point'))
            assert row['AP_sklearn'] == pytest.approx(100 * average_precision_score(present, score))
            assert row['AUC'] == pytest.approx(100 * roc_auc_score(present, score))

    def test_area_under_roc_is_the_share_of_ordered_pairs(self):
        scores, targets = scores_and_targets()
        present, absent = scores[targets[:, 0] == 1, 0], scores[targets[:, 0] == 0, 0]
        share = np.mean([p > a for p in present for a in absent])
        assert per_class_metrics(scores, targets, list('abcd'))[0]['AUC'] == pytest.approx(100 * share)

    def test_classes_present_nowhere_are_left_out_of_the_means(self):
        scores, targets = scores_and_targets()
        targets[:, 2] = np.minimum(targets[:, 2], 0)
        result = multilabel_metrics(scores, targets, list('abcd'))
        rows = [row for row in per_class_metrics(scores, targets, list('abcd')) if row['class'] != 'c']
        assert result['mAP'] == pytest.approx(np.mean([row['AP'] for row in rows]))
        assert result['mAP_11point'] == pytest.approx(np.mean([row['AP_11point'] for row in rows]))
        assert result['mAP_sklearn'] == pytest.approx(np.mean([row['AP_sklearn'] for row in rows]))
        assert result['AUC'] == pytest.approx(np.mean([row['AUC'] for row in rows]))
        assert set(result) == {'mAP', 'mAP_11point', 'mAP_sklearn', 'AUC', 'AP_a', 'AP_b', 'AP_d'}

    def test_nothing_to_tell_apart(self):
        with pytest.raises(DataError, match='No class is present in some'):
            multilabel_metrics(np.zeros((3, 2)), np.zeros((3, 2)), ['a', 'b'])

    @pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
    def test_scores_that_are_no_numbers(self, value):
        scores, targets = np.zeros((4, 3)), np.tile(np.eye(2), (2, 1))
        scores[2, 2] = value
        multilabel_metrics(scores, targets, ['a', 'b'])  # the third is no class
        scores[2, 1] = value
        with pytest.raises(NonFiniteLossError, match='the class scores of 1 of 4 images are NaN or infinite'):
            multilabel_metrics(scores, targets, ['a', 'b'])
        evaluator = MultiLabelEvaluator()
        evaluator.update(torch.tensor(scores[:, :2]), torch.tensor(targets))
        with pytest.raises(NonFiniteLossError, match='NaN or infinite'):
            evaluator.compute()


class TestEvaluator:

    def test_whatever_the_batches(self):
        scores, targets = (torch.tensor(x, dtype=torch.float32) for x in scores_and_targets())
        expected = {
            'loss': multilabel_soft_margin(scores, targets).mean().item(),
            **multilabel_metrics(scores.numpy(), targets.numpy(), list('abcd'))}
        for size in (7, 60):
            evaluator = MultiLabelEvaluator(class_names=list('abcd'))
            for part in range(0, 60, size):
                evaluator.update(scores[part:part + size], targets[part:part + size])
            assert evaluator.compute() == pytest.approx(expected, rel=1e-6)

    def test_padding_is_not_counted(self):
        scores, targets = (torch.tensor(x, dtype=torch.float32) for x in scores_and_targets())
        padded = MultiLabelEvaluator(max_samples=60)
        padded.update(torch.cat([scores, scores[:3]]), torch.cat([targets, targets[:3]]))
        plain = MultiLabelEvaluator()
        plain.update(scores, targets)
        assert padded.compute() == plain.compute()

    def test_nothing_is_measured_of_nothing(self):
        with pytest.raises(ICASCError, match='nothing so far'):
            MultiLabelEvaluator().compute()

    def test_timms_evaluator_agrees_where_nothing_is_ignored(self):
        scores, targets = (torch.tensor(x, dtype=torch.float32) for x in scores_and_targets())
        targets.clamp_(min=0)
        task = MultiLabelClassificationTask(torch.nn.Identity(), MultiLabelSoftMarginLoss(), verbose=False)
        theirs, ours = task.create_evaluator(), MultiLabelEvaluator()
        for evaluator in (theirs, ours):
            evaluator.update(scores, targets)
        assert ours.compute()['mAP_sklearn'] == pytest.approx(theirs.compute()['map'])
        assert ours.compute()['loss'] == pytest.approx(theirs.compute()['loss'])


def measure_half(rank, folder):
    scores, targets = torch.load(folder / 'batch.pt')
    evaluator = MultiLabelEvaluator(max_samples=30 - rank)  # 59 images: the second process has one of padding
    evaluator.update(scores[rank::2], targets[rank::2])
    (folder / f'{rank}.json').write_text(json.dumps(evaluator.compute(distributed=True)))


def test_two_processes_measure_what_one_does(tmp_path):
    scores, targets = (torch.tensor(x, dtype=torch.float32) for x in scores_and_targets())
    torch.save((scores, targets), tmp_path / 'batch.pt')
    in_two_processes(measure_half, tmp_path)
    alone = MultiLabelEvaluator()
    alone.update(scores[:59], targets[:59])
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == pytest.approx(alone.compute(), rel=1e-6)


# Expected calibration error against a loop over the bins, and its extremes.
@pytest.mark.parametrize('bins', [1, 10, 15])
def test_equals_a_loop_over_the_bins(bins):
    generator = np.random.default_rng(0)
    confidence = generator.random(200)
    confidence[:4] = 0., 1., 0.2, 0.4  # edges
    correct = generator.random(200) < confidence ** 2
    error = 0.
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        members = [i for i, p in enumerate(confidence) if low < p <= high or b == p == 0]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            error += len(members) / 200 * abs(accuracy - mean)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(error)


def test_extremes():
    sure = np.ones(10)
    assert expected_calibration_error(sure, np.ones(10, bool)) == 0
    assert expected_calibration_error(sure, np.zeros(10, bool)) == 1
    assert expected_calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


# The KS statistic against its definition, by loops over every threshold.
@pytest.mark.parametrize('seed', range(4))
def test_margin_and_its_place(seed):
    generator = np.random.default_rng(seed)
    target, confused = generator.beta(5, 2, 40), generator.beta(2, 5, 60)
    best, place = -1., None
    for p in sorted([*target, *confused]):
        distance = sum(c <= p for c in confused) / 60 - sum(t <= p for t in target) / 40
        if distance > best:
            best, place = distance, p
    result = kolmogorov_smirnov(target, confused)
    assert result.margin == pytest.approx(best) and result.probability == place
    assert (np.diff(result.target) >= 0).all() and len(result.confused) == 60


def test_the_sign_tells_which_is_larger():
    high, low = np.array([0.8, 0.9]), np.array([0.1, 0.2, 0.3])
    assert kolmogorov_smirnov(high, low).margin == 1
    assert kolmogorov_smirnov(low, high).margin == -1
    assert kolmogorov_smirnov(low, low).margin == 0


@pytest.mark.filterwarnings('error')
def test_single_values_have_a_margin_too():
    result = kolmogorov_smirnov(np.array([0.7]), np.array([0.2]))
    assert result.margin == 1 and result.probability == 0.2


def test_nothing_to_compare():
    assert np.isnan(kolmogorov_smirnov(np.array([]), np.array([0.1])).margin)
