"""--head-init-scale and --head-init-bias: the classifier's first weights."""
import argparse

import pytest
import timm
import torch

from timm_icasc import ICASCError
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up_model


def model_of(*argv):
    args = parse_args(['--data-dir', '.', '--num-classes', '4', *argv])
    torch.manual_seed(0)
    return set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': 3, 'rank': 0}))


@pytest.mark.parametrize('name', ['resnet20_cifar', 'convnext_atto', 'test_vit'])
def test_the_head_is_scaled_and_nothing_else(name):
    plain, scaled = model_of('--model', name), model_of('--model', name, '--head-init-scale', '0.5')
    head = {id(p) for p in scaled.get_classifier().parameters()}
    for before, after in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(after, before * 0.5 if id(after) in head else before)


def test_zero_gives_equal_scores():
    scores = model_of('--model', 'resnet20_cifar', '--head-init-scale', '0').eval()(torch.randn(2, 3, 32, 32))
    assert torch.equal(scores, torch.zeros(2, 4))


def test_the_bias():
    model = model_of('--model', 'resnet20_cifar', '--head-init-bias', '-2')
    assert (model.get_classifier().bias == -2).all() and model.get_classifier().weight.any()


def test_both_heads_of_a_distilled_network():
    model = model_of(
        '--model', 'deit_tiny_distilled_patch16_224', '--img-size', '32', '--model-kwargs', 'depth=1',
        '--head-init-scale', '0')
    assert len(model.get_classifier()) == 2 and not any(head.weight.any() for head in model.get_classifier())


def test_a_model_without_a_head(monkeypatch):
    monkeypatch.setattr(timm.models.ResNet, 'get_classifier', lambda self: torch.nn.Identity())
    with pytest.raises(ICASCError, match='--head-init-scale: resnet18 has no classifier with weights'):
        model_of('--model', 'resnet18', '--head-init-scale', '0')
