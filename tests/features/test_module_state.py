"""Running a model for a moment leaves nothing behind."""
import copy
import threading

import pytest
import timm
import torch
from helpers.models import create

from timm_icasc import ICASCError, ICASCTask, attention_maps, resolve_layers
from timm_icasc.features import module_state
from timm_icasc.features.module_state import (
    evaluation_mode,
    is_checkpointing,
    one_survey,
    one_thread,
    survey,
)
from timm_icasc.features.wrappers import unwrap_model


def test_unwrap():
    model = torch.nn.Linear(2, 2)
    assert unwrap_model(model) is model
    assert unwrap_model(torch.compile(torch.nn.DataParallel(model))) is model


def test_a_model_is_one_threads_at_a_time():
    """Two threads' hooks on one model would mix up their features."""
    model, images = create('resnet20_cifar').eval(), torch.randn(2, 3, 32, 32)
    attention_maps(model, images)
    errors = []

    def take_maps():
        try:
            with evaluation_mode(model):
                attention_maps(model, images)
        except Exception as e:  # also what should not come
            errors.append(e)

    with one_thread(model), one_thread(model):  # the same thread may come again
        thread = threading.Thread(target=take_maps)
        thread.start()
        thread.join()
    assert len(errors) == 1 and isinstance(errors[0], ICASCError)
    assert 'another thread' in str(errors[0]) and 'DistributedDataParallel' in str(errors[0])
    thread = threading.Thread(target=take_maps)
    thread.start()
    thread.join()
    assert len(errors) == 1, 'the model is free again'


def test_checkpointing_flag():
    model = create('resnet18')
    assert not is_checkpointing(model)
    model.set_grad_checkpointing(True)
    assert is_checkpointing(model)


def count_walks(monkeypatch):
    walks, walk = [], module_state._walk
    monkeypatch.setattr(module_state, '_walk', lambda model: walks.append(model) or walk(model))
    return walks


@pytest.mark.parametrize('order', [1, 2])
def test_a_step_walks_through_the_modules_once(order, monkeypatch):
    model = create('resnet20_cifar')
    task = ICASCTask(model, order=order, verbose=False)
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    task(images, target)
    walks = count_walks(monkeypatch)
    monkeypatch.setattr(torch.nn.Module, 'named_modules', None)  # nor in any other way
    task(images, target)['loss'].backward()
    assert walks == [model]


def test_a_survey_is_of_now():
    model, other = create('resnet18'), create('resnet20_cifar')
    now = survey(model)
    assert not (now.checkpointing or now.sharded or now.synchronised) and survey(model) == now
    model.set_grad_checkpointing(True)
    assert survey(model).checkpointing
    model.fc = torch.nn.Linear(512, 3)
    assert survey(model).made_of != now.made_of
    with one_survey(model):
        assert survey(model).checkpointing
        model.set_grad_checkpointing(False)
        assert survey(torch.nn.DataParallel(model)).checkpointing, 'as at the beginning of the step'
        with one_survey(other), one_survey(other):
            assert not survey(other).checkpointing
        with one_survey(model):
            assert survey(model).checkpointing
    assert not survey(model).checkpointing
    assert survey(torch.nn.SyncBatchNorm.convert_sync_batchnorm(other)).synchronised


def test_every_module_is_met_once():
    model = create('vit_tiny_patch16_224')
    model.again = model.blocks
    walked = list(module_state._walk(model))
    assert len(walked) == len(set(walked)) and set(walked) == set(model.modules())


def test_flags_come_back_even_after_an_error():
    model = create('resnet18').train()
    model.layer4.eval()
    flags = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == flags


def test_attributes_come_back():
    module = torch.nn.Linear(2, 2)
    module.cache, module.name = {'a': 1}, 'before'
    with evaluation_mode(module):
        module.cache['b'], module.name, module.new = 2, 'inside', True
    assert module.cache == {'a': 1} and module.name == 'before' and not hasattr(module, 'new')


class AlwaysTraining(torch.nn.Sequential):
    """Measures by the statistics of the batch, whatever it is told."""

    def train(self, mode=True):
        return super().train(True)


def test_statistics_of_a_norm_that_stays_in_training_do_not_move():
    """Those of two random images, that the layers are found with, were counted."""
    model = AlwaysTraining(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3),
        torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    resolve_layers(model, ('1', '4'), (3, 16, 16))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert model[1].momentum == 0.1


class Config(dict):
    __getattr__ = dict.__getitem__


def test_containers_stay_the_objects_that_others_hold():
    """A list that a hook of the user fills, a configuration that two modules share."""
    module, seen, shapes = torch.nn.Linear(2, 2), [1], {2}
    module.seen, module.shapes, module.config = seen, shapes, Config(scale=2., last=torch.ones(3))
    config = module.config
    with evaluation_mode(module):
        seen.append(3)
        shapes.add(4)
        config['scale'] = 5.
    assert module.seen is seen and module.shapes is shapes and module.config is config
    assert (seen, shapes, config.scale) == ([1], {2}, 2.) and isinstance(config, Config)


class MergingLinear(torch.nn.Linear):
    """A LoRA layer as loralib's: `eval()` adds the product of two factors to the weight, `train()` takes it off."""

    def __init__(self):
        super().__init__(2, 2)
        self.factor, self.merged = torch.nn.Parameter(torch.ones(2, 1)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1) ** mode * (self.factor @ self.factor.T)
            self.merged = not mode
        return self


@pytest.mark.parametrize('flags', [(True, True, True), (True, False, True), (False, False, False)])
def test_weights_that_are_merged_at_evaluation_come_back(flags):
    """They stayed merged, called unmerged, so that the next evaluation added the product once more."""
    model = torch.nn.Sequential(MergingLinear(), MergingLinear()).double()
    for module, flag in zip(model, flags[1:], strict=True):
        module.train(flag)
    model.training = flags[0]
    before = copy.deepcopy(model)
    with evaluation_mode(model):
        assert all(module.merged for module in model)
    assert [m.training for m in model.modules()] == list(flags)
    for module, other in zip(model, before, strict=True):
        assert module.merged == other.merged
        torch.testing.assert_close(module.weight, other.weight)


@pytest.fixture
def levit():
    """Its attention caches biases at evaluation, and clears them on `train()` only."""
    torch.manual_seed(0)
    model = timm.create_model('levit_128s', num_classes=5)
    return model, torch.randn(1, 3, 224, 224)


def test_looking_for_layers_leaves_no_random_biases_behind(levit):
    """They start at zero, which the probe replaces by random values for its own pass."""
    model, images = levit
    with torch.no_grad():
        expected = model.eval()(images)
        model.train().eval()
        resolve_layers(model)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


def test_looking_in_the_midst_of_training_leaves_no_stale_biases(levit):
    model, images = levit
    model.train()
    resolve_layers(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'attention_biases' in name:
                p.add_(1.)
        stale = model.eval()(images)
        torch.testing.assert_close(model.train().eval()(images), stale, rtol=0, atol=0)
