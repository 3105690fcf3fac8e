"""What classes are called, and which one a name means."""
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.models import create

from timm_icasc import TargetError
from timm_icasc.explanation.class_names import class_names_of, find_classes

NAMES = ['tabby, tabby cat', 'crane', 'crane', 'dog', '7']


class Described(torch.nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.pretrained_cfg = config


@pytest.mark.parametrize('config, expected', [
    ({'label_names': ['a', 'b']}, ['a', 'b']),
    ({'label_names': ['n1', 'n2'], 'label_descriptions': {'n1': 'tench', 'n2': 'goldfish'}}, ['tench', 'goldfish']),
    ({'label_names': ['n1', 'n2'], 'label_descriptions': {'n1': 'tench'}}, ['n1', 'n2']),
    ({'label_names': ['a', 'b', 'c']}, ['0', '1']),  # of other weights
    ({'label_names': ['a'], 'num_classes': 2}, ['a', '1']),  # a head of more outputs than classes
    ({'label_names': ['a'], 'num_classes': 3}, ['0', '1']), ({'label_names': [], 'num_classes': 2}, ['0', '1']),
    ({'label_names': [1, 2]}, ['0', '1']), ({'label_names': 'ab'}, ['0', '1']), ({}, ['0', '1']),
    ({'num_classes': 1000}, ['0', '1'])])  # of the weights that it began with
def test_names_of_a_configuration(config, expected):
    assert class_names_of(Described(**config), 2) == expected
    assert class_names_of(torch.nn.Sequential(Described(**config)), 2) == expected


@pytest.mark.parametrize('labels, expected', [
    ({0: 'cat', 1: 'dog'}, ['cat', 'dog']),
    ({0: 'LABEL_0', 1: 'LABEL_1'}, ['0', '1']),  # placeholders of transformers
    ({0: 'cat'}, ['0', '1']), ({0: 'cat', 2: 'dog'}, ['0', '1']), ({0: 'cat', 1: 1}, ['0', '1']), (None, ['0', '1'])])
def test_names_of_a_model_of_transformers(labels, expected):
    model = torch.nn.Linear(3, 2)
    model.config = SimpleNamespace(id2label=labels)
    assert class_names_of(model, 2) == class_names_of(torch.nn.Sequential(model), 2) == expected


def test_imagenet():
    names = class_names_of(timm.create_model('resnet18'), 1000)
    assert names[0].startswith('tench') and names[281] == 'tabby, tabby cat' and len(names) == 1000
    assert class_names_of(create('resnet18'), 10) == [str(c) for c in range(10)]
    assert class_names_of(torch.nn.Linear(2, 1000), 1000)[281] == '281'
    assert class_names_of(timm.create_model('resnet18'), 1000, by_number=False)[281] == '281'


@pytest.mark.parametrize('classes, expected', [
    (None, None), (3, [3]), ('dog', [3]), ('DOG ', [3]), ('tabby', [0]), ('tabby, tabby cat', [0]), ('tabby cat', [0]),
    (['dog', 0], [3, 0]), ('2', [2]), (['7', 1], [4, 1]),
    (torch.tensor(3), [3]), (np.int64(3), [3]), (torch.tensor([3, 0]), [3, 0])])  # a name goes before a number
def test_classes_by_name_and_number(classes, expected):
    assert find_classes(classes, NAMES) == expected


@pytest.mark.parametrize('classes, said', [
    ('crane', "'crane' is the name of the classes 1, 2: give the number"), ('cat', "no class 'cat': .*tabby"),
    ('horse', "no class 'horse': there are tabby"), (5, '0 to 4, got 5'), (-1, '0 to 4, got -1'),
    ([1.7], r'got 1\.7'), (1.7, r'got 1\.7'), ([[1], [2]], r'got \[1\]'), (torch.tensor([1.7]), 'got tensor'),
    ([], 'is empty'), ([3, 'dog'], r"class 3 \('dog'\) is named twice")])
def test_what_is_no_class(classes, said):
    with pytest.raises(TargetError, match=said):
        find_classes(classes, NAMES)
