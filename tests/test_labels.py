"""Which class is the true one and which the most confusing one; what follows from how many an image can have."""
import numpy as np
import pytest
import torch

from timm_icasc import TargetError
from timm_icasc.labels import KINDS, MULTI, SINGLE, kind_of


class TestSelectClasses:
    logits = torch.tensor([[3., 1., 2., 0.], [0., 5., 4., 6.]])

    def chosen(self, target):
        pair = SINGLE.select(self.logits, target)
        assert (pair.target.sum(1) == 1).all() and (pair.confused.sum(1) == 1).all()
        return pair.target.argmax(1).tolist(), pair.confused.argmax(1).tolist()

    def test_indices(self):
        assert self.chosen(torch.tensor([0, 3])) == ([0, 3], [2, 1])
        assert self.chosen(torch.tensor([1, 2])) == ([1, 2], [0, 3])

    def test_one_hot_equals_indices(self):
        target = torch.tensor([1, 2])
        assert self.chosen(torch.nn.functional.one_hot(target, 4).float()) == self.chosen(target)

    def test_mixup_with_smoothing(self):
        """The dominant class is the target; the other mixed class is never the confused one, the floor is no mass."""
        smooth = 0.1 / 4
        target = torch.full((2, 4), smooth)
        target[0, 1], target[0, 0] = 0.6, 0.35  # class 0, of highest score, is mixed in
        target[1, 3], target[1, 1] = 0.5, 0.45
        assert self.chosen(target) == ([1, 3], [2, 2])

    def test_uniform_targets_are_not_valid(self):
        pair = SINGLE.select(self.logits, torch.full((2, 4), 0.25))
        assert pair.valid.tolist() == [False, False]

    @pytest.mark.parametrize('target, message', [
        (torch.tensor([0, 4]), 'holds class 4, but the model has classes 0 to 3.*`num_classes`'),
        (torch.tensor([-1, 0]), 'holds class -1'),
        (torch.tensor([0, 1, 2]), r'\[B\] or class probabilities \[B, C\].*torch.int64 \(3,\)'),
        (torch.tensor([[0], [1]]), r'torch.int64 \(2, 1\): `target.long\(\).flatten\(\)` makes indices'),
        (torch.tensor([0., 1.]), r'torch.float32 \(2,\): `target.long\(\).flatten\(\)` makes indices'),
        (torch.zeros(2, 3), r'torch.float32 \(2, 3\)'),
        (torch.zeros(2, 4, dtype=torch.long), r'torch.int64 \(2, 4\): `target.float\(\)` makes probabilities of'),
        (torch.zeros(2, 4, dtype=torch.bool), r'torch.bool \(2, 4\): `target.float\(\)`'),
        (torch.tensor([True, False]), r'torch.bool \(2,\)'),
        (torch.tensor([[1., 0., 1., 0.], [0., 1., 0., 0.]]), 'several of 1 for one image.*`multilabel=True`'),
        (torch.tensor([[1., 0., -1., 0.], [0., 1., 0., 0.]]), 'values below 0'),
        ([0, 1], 'must be a tensor, got list'),
    ])
    def test_bad_targets_are_named(self, target, message):
        with pytest.raises(TargetError, match=message):
            SINGLE.select(self.logits, target)

    def test_a_class_that_is_switched_off_is_no_rival(self):
        logits = torch.tensor([[1., -torch.inf, 0.], [1., -torch.inf, -torch.inf]])
        pair = SINGLE.select(logits, torch.tensor([0, 0]))
        assert pair.confused.argmax(1)[0] == 2 and pair.valid.tolist() == [True, False] and not pair.confused[1].any()
        assert SINGLE.most_confusing(logits.numpy(), torch.tensor([0, 0]).numpy()).tolist() == [2, -1]

    def test_one_class_is_not_enough(self):
        with pytest.raises(TargetError, match='second class'):
            SINGLE.select(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize('kind, target', [
    (SINGLE, torch.tensor([0, 3])), (SINGLE, torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])),
    (MULTI, torch.tensor([[1., 0, 0, 0], [-1, 0, 0, 1]]))])
def test_a_random_rival_is_any_class_that_is_not_in_the_image(kind, target):
    torch.manual_seed(0)
    logits = torch.tensor([[0., 9, 1, 2], [3, 2, 9, 1]])
    pairs = [kind.select(logits, target, 'random') for _ in range(200)]
    plain = kind.select(logits, target)
    assert all(torch.equal(pair.target, plain.target) and torch.equal(pair.valid, plain.valid) for pair in pairs)
    drawn = torch.stack([pair.confused for pair in pairs]).sum(0)
    absent = kind.sides(logits, target)[1]
    assert (drawn[~absent] == 0).all() and drawn.sum(1).tolist() == [200, 200]
    expected = absent * 200 / absent.sum(1, keepdim=True)
    assert ((drawn - expected).abs() < 40).all(), 'each equally often'
    assert plain.confused.argmax(1).tolist() == [1, 2]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_random_rival_is_as_random_in_half_precision(dtype):
    """Of 256 numbers that bfloat16 has between 0 and 1, many classes draw the highest: the first of them won."""
    torch.manual_seed(0)
    drawn = SINGLE.select(torch.zeros(4000, 1000, dtype=dtype), torch.full((4000,), 999), 'random').confused.argmax(1)
    tenths = drawn.div(100, rounding_mode='floor').bincount(minlength=10)
    assert ((tenths - 400).abs() < 100).all(), tenths.tolist()


def test_targets_one_by_one():
    present = [[1., 0., 1., -1.], [0., 1., 0., 0.], [0., 0., 0., 0.]]
    first, second = MULTI.select(torch.zeros(3, 4), torch.tensor(present)).one_by_one()
    assert first.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert second.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    nothing, = MULTI.select(torch.zeros(3, 4), torch.zeros(3, 4)).one_by_one()
    assert not nothing.any()


class TestBothKinds:
    """On the same images: class indices, or the same classes and others besides."""
    scores = np.array([[0.9, 0.1, 0.6], [0.2, 0.7, 0.1], [0.3, 0.4, 0.8]], dtype=np.float32)
    indices = np.array([0, 2, 2])
    present = np.array([[1., 0., -1.], [0., 1., 1.], [0., 0., 0.]], dtype=np.float32)

    def test_how_to_tell(self):
        assert KINDS == {False: SINGLE, True: MULTI}
        assert kind_of(self.indices) is SINGLE and kind_of(torch.from_numpy(self.present)) is MULTI

    def test_most_confusing_is_what_select_calls_confused(self):
        for kind, targets, expected in ((SINGLE, self.indices, [2, 1, 1]), (MULTI, self.present, [1, 0, 2])):
            assert kind.most_confusing(self.scores, targets).tolist() == expected
            pair = kind.select(torch.from_numpy(self.scores), torch.from_numpy(targets))
            assert pair.confused.argmax(1).tolist() == expected

    def test_outputs_beyond_the_labelled_classes(self):
        """The head has more outputs than a multi-label data set has classes."""
        assert MULTI.most_confusing(self.scores, self.present[:, :2]).tolist() == [1, 0, 1]
        assert MULTI.most_confusing(self.scores, np.array([[1, 1], [1, -1], [0, 1.]])).tolist() == [-1, -1, 0], 'none'
        assert MULTI.known(self.present[:, :2], 3) == 2 and SINGLE.known(self.indices, 3) == 3
        assert MULTI.true_scores(self.scores, self.present[:, :2], np.arange(3)).tolist() == pytest.approx([0.9, 0.7])

    @pytest.mark.parametrize('wrap', [np.asarray, torch.as_tensor])
    def test_present_classes(self, wrap):
        assert SINGLE.present(wrap(self.indices)) == [[0], [2], [2]]
        assert MULTI.present(wrap(self.present)) == [[0], [1, 2], []]

    def test_contains_and_true_scores(self):
        for kind, targets in ((SINGLE, self.indices), (MULTI, self.present)):
            classes = kind.present(targets)
            for c in range(3):
                assert kind.contains(targets, c).tolist() == [c in own for own in classes]
            each = np.array([0, 1, 0])
            assert kind.contains(targets, each).tolist() == [c in own for c, own in zip(each, classes, strict=True)]
            rows = np.array([2, 1, 1])
            expected = [self.scores[i, c] for i in rows for c in classes[i]]
            assert kind.true_scores(self.scores, targets, rows).tolist() == expected

    def test_probabilities(self):
        logits = torch.tensor([[2., -1., 0.]], dtype=torch.bfloat16)
        exact = logits.float()
        torch.testing.assert_close(SINGLE.probabilities(logits), exact.exp() / exact.exp().sum())
        torch.testing.assert_close(MULTI.probabilities(logits), 1 / (1 + (-exact).exp()))
        assert SINGLE.predicted(SINGLE.probabilities(logits)).tolist() == [[True, False, False]]
        assert MULTI.predicted(MULTI.probabilities(logits)).tolist() == [[True, False, True]]
        for kind in KINDS.values():
            score = getattr(torch, kind.score)
            expected = score(exact, 1) if kind is SINGLE else score(exact)
            torch.testing.assert_close(kind.probabilities(logits), expected)
            assert kind.activation.startswith(kind.score)
