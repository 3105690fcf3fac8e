"""Class scores of images, and images that are of no class of the model."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.in_training import in_training
from helpers.several_outputs import load_run

from timm_icasc.errors import TargetError
from timm_icasc.evaluation.scores import check_targets, score_images, ten_crop_probabilities
from timm_icasc.figures.views import load_items
from timm_icasc.labels import MULTI, SINGLE


def test_an_image_without_a_label_is_not_taken_for_the_last_class():
    """Where labels are kept secret, as in the test splits of many public data sets, -1 stands in their place."""
    checkpoint = SimpleNamespace(labels=SINGLE, num_classes=3, source='run')
    check_targets(torch.tensor([0, 2]), checkpoint)
    with pytest.raises(TargetError, match=r'images without a label \(class -1\).*`val_split`'):
        check_targets(torch.tensor([0, -1]), checkpoint)
    with pytest.raises(TargetError, match='class 3, the model of run classes 0 to 2'):
        check_targets(torch.tensor([0, 3]), checkpoint)


def test_nor_is_it_drawn_as_one():
    checkpoint = SimpleNamespace(labels=SINGLE, num_classes=3, dataset=[(torch.zeros(3, 8, 8), -1)], device='cpu')
    with pytest.raises(TargetError, match='images without a label'):
        load_items(checkpoint, [0])


def test_of_several_classes_it_is_a_class_that_is_ignored():
    check_targets(torch.tensor([[1., -1.]]), SimpleNamespace(labels=MULTI, num_classes=2, source='run'))


@pytest.mark.parametrize('measure', [
    lambda checkpoint: score_images(checkpoint, range(3)).scores,
    lambda checkpoint: ten_crop_probabilities(checkpoint, range(3))])
def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(measure, tmp_path):
    checkpoint = load_run(tmp_path / 'run', 'resnet20_cifar', num_classes=10, dataset='digits', drop=0.5)
    expected = measure(checkpoint)
    with in_training(checkpoint.model):
        np.testing.assert_array_equal(measure(checkpoint), expected)
