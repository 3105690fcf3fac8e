"""Which class is the true one and which the most confusing one."""

import pytest
import torch

from timm_icasc import TargetError
from timm_icasc.labels import select_classes


class TestSelectClasses:
    logits = torch.tensor([[3., 1., 2., 0.], [0., 5., 4., 6.]])

    def chosen(self, target):
        pair = select_classes(self.logits, target)
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
        pair = select_classes(self.logits, torch.full((2, 4), 0.25))
        assert pair.valid.tolist() == [False, False]

    @pytest.mark.parametrize('target, message', [
        (torch.tensor([0, 4]), 'holds class 4, but the model has classes 0 to 3.*`num_classes`'),
        (torch.tensor([-1, 0]), 'holds class -1'),
        (torch.tensor([0, 1, 2]), r'\[B\] or class probabilities \[B, C\].*torch.int64 \(3,\)'),
        (torch.tensor([0., 1.]), r'torch.float32 \(2,\)'),
        (torch.zeros(2, 3), r'torch.float32 \(2, 3\)'),
        (torch.zeros(2, 4, dtype=torch.long), r'torch.int64 \(2, 4\)'),
        (torch.tensor([True, False]), r'torch.bool \(2,\)'),
    ])
    def test_bad_targets_are_named(self, target, message):
        with pytest.raises(TargetError, match=message):
            select_classes(self.logits, target)

    def test_one_class_is_not_enough(self):
        with pytest.raises(TargetError, match='second class'):
            select_classes(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))

