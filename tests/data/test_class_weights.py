"""Weights of the classes: scikit-learn's formula, explicit loops, files, and the loss that they weigh."""
import math
import re

import numpy as np
import pytest
import torch
from helpers.hub_fixtures import save_noise
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import create_classification_loss

from timm_icasc import DataError, ICASCError
from timm_icasc.data import (
    LabelledImages,
    MultiLabelImages,
    balanced,
    class_weights,
    few_of_each_class,
)
from timm_icasc.losses import ClassWeightedLoss, MultiLabelSoftMarginLoss
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up, set_up_device

NAMES = ['ant', 'bee', 'cow']
B, C = 6, 4
SMOOTHING = 0.2
CLASS_WEIGHTS = [0.5, 2., 0.25, 3.]


def labelled(targets, names=NAMES):
    return LabelledImages([np.zeros((4, 4, 3), np.uint8)] * len(targets), targets, names)


def several(targets, names=NAMES):
    targets = torch.tensor(targets, dtype=torch.float32)
    return MultiLabelImages([np.zeros((4, 4, 3), np.uint8)] * len(targets), targets, names)


def _sklearn(targets):
    return compute_class_weight('balanced', classes=np.unique(targets), y=targets)


class TestWeights:

    def test_balanced_is_that_of_sklearn(self):
        targets = [0] * 9 + [1] * 2 + [2] * 5
        weights = class_weights('balanced', labelled(targets), 3)
        np.testing.assert_allclose(weights, _sklearn(targets), rtol=1e-6)
        assert weights[targets].mean() == pytest.approx(1)

    def test_a_class_without_images_has_no_say(self):
        weights = class_weights('balanced', labelled([0, 0, 2], [*NAMES, 'dog']), 4)
        np.testing.assert_allclose(weights, [0.75, 0, 1.5, 0])

    def test_a_file_is_relative_to_the_images(self, tmp_path):
        (tmp_path / 'w.csv').write_text('class,weight\ncow,8\nant,2\nbee,4\n')
        targets = [0] * 9 + [1] * 2 + [2] * 5
        weights = class_weights(str(tmp_path / 'w.csv'), labelled(targets), 3, NAMES)
        mean = sum([2., 4., 8.][target] for target in targets) / len(targets)
        np.testing.assert_allclose(weights, [2 / mean, 4 / mean, 8 / mean], rtol=1e-6)

    def test_of_the_images_that_are_trained_on(self):
        few = few_of_each_class(labelled([0] * 9 + [1] * 2 + [2] * 5), 4, seed=0)
        np.testing.assert_allclose(class_weights('balanced', few, 3), [10 / 12, 10 / 6, 10 / 12], rtol=1e-6)

    def test_with_balanced_sampling_of_the_classes_that_are_drawn(self, tmp_path):
        (tmp_path / 'w.csv').write_text('class,weight\ncow,8\nant,2\nbee,4\n')
        drawn = balanced(labelled([0] * 9 + [1] * 2 + [2] * 4), seed=0)
        np.testing.assert_allclose(
            class_weights(str(tmp_path / 'w.csv'), drawn, 3, NAMES), [6 / 14, 12 / 14, 24 / 14], rtol=1e-6)

    def test_several_classes_each_as_a_problem_of_its_own(self):
        """Per class and label -1 aside: scikit-learn's formula of presence, whose ratio is torch's pos_weight."""
        rows = [[1, 0, -1], [0, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0], [0, -1, 1]]
        weights = class_weights('balanced', several(rows), 3)
        for c in range(3):
            known = [row[c] for row in rows if row[c] >= 0]
            np.testing.assert_allclose(weights[:, c], _sklearn(known), rtol=1e-6)
            assert weights[1, c] / weights[0, c] == pytest.approx(known.count(0) / known.count(1))

    def test_several_classes_of_a_file(self, tmp_path):
        (tmp_path / 'w.csv').write_text('class,weight\nant,3\nbee,1\ncow,2\n')
        rows = [[1, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]
        absent, present = class_weights(str(tmp_path / 'w.csv'), several(rows), 3, NAMES)
        np.testing.assert_allclose(present / absent, [3, 1, 2])
        for c in range(3):
            weighed = [(present if row[c] else absent)[c].item() for row in rows]
            assert sum(weighed) / len(weighed) == pytest.approx(1)

    def test_a_class_that_is_always_or_never_there(self):
        weights = class_weights('balanced', several([[1, 0], [1, 0]], NAMES[:2]), 2)
        np.testing.assert_array_equal(weights, np.ones((2, 2)))

    @pytest.mark.parametrize('text, message', [
        ('class,weight\nant,1\nbee,1\n', '1 of 3 classes have no weight: cow'),
        ('class,weight\nant,1\nbee,1\ncow,1\ndog,1\n', "line 5: 'dog' is no class"),
        ('class,weight\nant,1\nant,1\n', "line 3: 'ant' is there twice"),
        ('class,weight\nant,0\n', 'line 2: a weight must be above 0, got 0.0'),
        ('class,weight\nant,inf\n', 'a weight must be above 0'), ('class,weight\nant,nan\n', 'must be above 0'),
        ('class,weight\nant,x\n', "could not convert string to float: 'x'"),
        ('label,weight\nant,1\n', "the columns must be 'class,weight'"), ('', 'the columns must be'),
        ('class,weight\nant,1,2\n', 'line 2 does not have 2 columns'), ('class,weight\nant\n', 'line 2 does not')])
    def test_files_at_fault(self, text, message, tmp_path):
        (tmp_path / 'w.csv').write_text(text)
        with pytest.raises(DataError, match=f"`class_weights`: '.*w.csv': .*{re.escape(message)}"):
            class_weights(str(tmp_path / 'w.csv'), labelled([0, 1, 2]), 3, NAMES)

    def test_no_file_and_no_labels(self, tmp_path):
        with pytest.raises(DataError, match="`class_weights`: '.*none.csv': .*No such file"):
            class_weights(str(tmp_path / 'none.csv'), labelled([0, 1]), 2)
        with pytest.raises(DataError, match='`class_weights=balanced` needs the label of each image, which list_'):
            class_weights('balanced', iter([]), 2)
        (tmp_path / 'w.csv').write_text('class,weight\n0,1\n1,3\n')
        np.testing.assert_allclose(class_weights(str(tmp_path / 'w.csv'), iter([]), 2), [0.5, 1.5])


def batch(mixed):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, C, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (B,), generator=generator)
    if mixed:
        share = torch.rand(B, 1, generator=generator, dtype=torch.float64)
        one_hot = torch.nn.functional.one_hot(target, C).double()
        target = (1 - SMOOTHING) * (share * one_hot + (1 - share) * one_hot.flip(0)) + SMOOTHING / C
    return logits, target


def loop(kind, logits, target, smoothing):
    """`1/B sum_i w(i) l_i`, number by number."""
    total = 0.
    for x, t in zip(logits.tolist(), target.tolist(), strict=True):
        exponents = [math.exp(v) for v in x]
        p = [e / sum(exponents) for e in exponents]
        if isinstance(t, int):
            weight = CLASS_WEIGHTS[t]
            t = [(1 - smoothing) * (c == t) + smoothing / C for c in range(C)]
        else:
            weight = sum((t[c] - SMOOTHING / C) / (1 - SMOOTHING) * CLASS_WEIGHTS[c] for c in range(C))
        if kind == 'bce':
            s = [1 / (1 + math.exp(-v)) for v in x]
            loss = sum(-t[c] * math.log(s[c]) - (1 - t[c]) * math.log(1 - s[c]) for c in range(C)) / C
        else:
            loss = -sum(t[c] * math.log(p[c]) for c in range(C))
        if kind == 'poly':
            loss += 2. * (1 - sum(t[c] * p[c] for c in range(C)))
        total += weight * loss
    return total / B


def weighted(kind, mixed, smoothing, **kwargs):
    criterion = create_classification_loss(kind, smoothing=smoothing, soft_targets=mixed, **kwargs)
    weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)
    return ClassWeightedLoss(criterion, weights, SMOOTHING if mixed else 0.)


class TestLoss:

    @pytest.mark.parametrize('kind', ['ce', 'bce', 'poly'])
    @pytest.mark.parametrize('mixed, smoothing', [(False, 0.), (False, SMOOTHING), (True, SMOOTHING)])
    def test_it_equals_explicit_loops(self, kind, mixed, smoothing):
        logits, target = batch(mixed)
        if kind == 'poly':  # timm's computes in float32
            logits = logits.float().double()
        found, exact = weighted(kind, mixed, smoothing)(logits, target), 1e-6 if kind == 'poly' else 1e-12
        assert found.item() == pytest.approx(loop(kind, logits, target, smoothing), rel=exact)

    @pytest.mark.parametrize('kind, kwargs', [
        ('asl', {}), ('bce', {'bce_sum': True}), ('bce', {'pos_weight': 3.}), ('bce', {'bce_target_thresh': 0.3})])
    def test_of_other_losses_each_image_is_what_timm_makes_of_it_alone(self, kind, kwargs):
        logits, target = batch(False)
        plain = create_classification_loss(kind, smoothing=SMOOTHING, **kwargs)
        expected = sum(
            CLASS_WEIGHTS[target[i]] * plain(logits[i:i + 1], target[i:i + 1]).item() for i in range(B)) / B
        assert weighted(kind, False, SMOOTHING, **kwargs)(logits, target).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize('mixed', [False, True])
    def test_the_mean_over_processes_is_the_loss_of_all(self, mixed):
        """As DistributedDataParallel and --grad-accum-steps take it; with the weights' sum below, it would not be."""
        logits, target = batch(mixed)
        criterion = weighted('ce', mixed, 0.)
        halves = [criterion(logits[part], target[part]) for part in (slice(0, B // 2), slice(B // 2, B))]
        assert (sum(halves) / 2).item() == pytest.approx(criterion(logits, target).item(), rel=1e-12)

    def test_equal_weights_change_nothing(self):
        for mixed in (False, True):
            logits, target = batch(mixed)
            plain = create_classification_loss('ce', smoothing=0. if mixed else SMOOTHING, soft_targets=mixed)
            criterion = ClassWeightedLoss(plain, torch.ones(C, dtype=torch.float64), SMOOTHING)
            assert criterion(logits, target).item() == pytest.approx(plain(logits, target).item(), rel=1e-12)

    def test_autocast_does_not_round_the_weights(self):
        logits, target = batch(True)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = weighted('ce', True, 0.)(logits.float(), target.float())
        assert found.item() == pytest.approx(loop('ce', logits, target, 0.), rel=1e-5)

    def test_a_loss_that_says_nothing_of_images_is_refused(self):
        with pytest.raises(TypeError, match='`criterion`: Identity has no `reduction`'):
            ClassWeightedLoss(torch.nn.Identity(), torch.ones(2))

    def test_several_classes_equal_explicit_loops(self):
        logits, _ = batch(False)
        generator = torch.Generator().manual_seed(1)
        target = torch.randint(-1, 2, (B, C), generator=generator).double()
        weights = torch.rand(2, C, generator=generator, dtype=torch.float64)
        total = 0.
        for x, t in zip(logits.tolist(), target.tolist(), strict=True):
            s = [1 / (1 + math.exp(-v)) for v in x]
            losses = [
                -weights[1, c].item() * math.log(s[c]) if t[c] == 1 else -weights[0, c].item() * math.log(1 - s[c])
                for c in range(C) if t[c] >= 0]
            total += sum(losses) / max(1, len(losses))
        criterion = MultiLabelSoftMarginLoss(weights)
        assert criterion(logits, target).item() == pytest.approx(total / B, rel=1e-12)
        assert not criterion.state_dict(), 'checkpoints stay as they are'


@pytest.mark.parametrize('options, smoothing', [
    ([], 0.1), (['--no-icasc'], 0.1), (['--loss', 'bce', '--no-icasc'], 0.1), (['--mixup', '0.5'], 0.1)])
def test_the_trainer_weighs_the_classification_loss_alone(options, smoothing, tmp_path):
    """The terms of ICASC, and what they add, are those without weights."""
    root = save_noise(tmp_path, train=8, val=2)
    for number in range(2, 8):
        (root / 'train' / 'bat' / f'{number}.png').unlink()
    losses = {}
    for weights in ([], ['--class-weights', 'balanced']):
        args = parse_args([
            '--data-dir', str(root), '--model', 'resnet20_cifar', '--batch-size', '6', '-j', '0',
            '--warmup-epochs', '0', '--icasc-eval-images', '0', *options, *weights])
        job = set_up(args, set_up_device(args))
        torch.manual_seed(0)
        target = torch.tensor([0, 1, 2, 1, 0, 2])
        weight = torch.tensor([18 / 24, 18 / 6, 18 / 24])[target]
        if args.mixup:
            target = (1 - smoothing) * torch.nn.functional.one_hot(target, 3) + smoothing / 3
        losses[bool(weights)] = job.task(torch.randn(6, 3, 32, 32), target)
    plain, result = losses[False], losses[True]
    log_p = plain['output'].detach().double().log_softmax(1)
    if target.ndim == 1:
        target = (1 - smoothing) * torch.nn.functional.one_hot(target, 3) + smoothing / 3
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    each = -(target * log_p).sum(1) if '--loss' not in options else binary(
        plain['output'].detach().double(), target.double(), reduction='none').mean(1)
    loss_cls = result.get('loss_cls', result['loss'])
    assert loss_cls.item() == pytest.approx((weight * each).mean().item(), rel=1e-5)
    added = [r['loss'].item() - r['loss_cls'].item() if 'loss_cls' in r else 0. for r in (plain, result)]
    assert added[0] == pytest.approx(added[1], abs=1e-5)


def test_the_trainer_names_what_is_wrong(tmp_path):
    root = save_noise(tmp_path, train=2, val=2)
    args = parse_args(['--data-dir', str(root), '--batch-size', '2', '-j', '0', '--class-weights', 'none.csv'])
    with pytest.raises(ICASCError, match="`class_weights`: 'none.csv'"):
        set_up(args, set_up_device(args))
