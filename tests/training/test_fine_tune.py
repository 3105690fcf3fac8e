"""Fine-tuning: how the classifier begins, what is frozen, and the learning rate of each part."""
import argparse
import csv
import signal

import pytest
import timm
import torch
from helpers.runs import TINY, sigterm_in_the_second_epoch, train_in_process

from timm_icasc import ICASCError
from timm_icasc.training import epoch as training_epoch
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.fine_tune import base_lr, freeze_until
from timm_icasc.training.interrupt import StopSignal
from timm_icasc.training.job import set_up, set_up_device, set_up_optimizer
from timm_icasc.training.model_factory import set_up_model


def job_of(noise, *options):
    args = parse_args(['--data-dir', str(noise), *TINY, *map(str, options)])
    return set_up(args, set_up_device(args))


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def model_of(*argv):
    args = parse_args(['--data-dir', '.', '--num-classes', '4', *argv])
    torch.manual_seed(0)
    return set_up_model(argparse.Namespace(**{**vars(args), 'in_chans': 3, 'rank': 0}))


@pytest.mark.parametrize('name', ['resnet8_cifar', 'convnext_atto', 'test_vit'])
def test_the_head_is_scaled_and_nothing_else(name):
    plain, scaled = model_of('--model', name), model_of('--model', name, '--head-init-scale', '0.5')
    head = {id(p) for p in scaled.get_classifier().parameters()}
    for before, after in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(after, before * 0.5 if id(after) in head else before)


def test_zero_gives_equal_scores():
    scores = model_of('--model', 'resnet8_cifar', '--head-init-scale', '0').eval()(torch.randn(2, 3, 32, 32))
    assert torch.equal(scores, torch.zeros(2, 4))


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
def test_a_trained_head_is_not_scaled_in_silence(option, tmp_path, recwarn):
    torch.save(model_of('--model', 'resnet8_cifar').state_dict(), tmp_path / 'trained.pth')
    options = ('--model', 'resnet8_cifar', option, str(tmp_path / 'trained.pth'))
    assert model_of(*options, '--head-init-scale', '1').get_classifier().weight.any()
    if option == '--pretrained-path':
        model_of(*options, '--num-classes', '5', '--head-init-scale', '0')  # a new head
    assert not len(recwarn)
    with pytest.warns(UserWarning, match='--head-init-scale 0 also scales the head of .*; --head-init-scale 1 keeps'):
        assert not model_of(*options, '--head-init-scale', '0').get_classifier().weight.any()


def test_nor_that_of_published_weights(recwarn):
    """They keep their head where the number of classes is theirs."""
    options = ('--model', 'resnet20_cifar.icasc_digits', '--pretrained', '--head-init-scale', '0', '--num-classes')
    model_of(*options, '5')
    assert not len(recwarn)
    with pytest.warns(UserWarning, match="also scales the head of 'resnet20_cifar.icasc_digits'; --head-init-scale 1"):
        model_of(*options, '10')


def test_the_bias():
    model = model_of('--model', 'resnet8_cifar', '--head-init-bias', '-2')
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


class TestFreezing:

    @pytest.mark.parametrize('order', [1, 2])
    def test_what_stands_before_keeps_parameters_and_statistics(self, order, noise):
        job = job_of(noise, '--freeze-until', 'layer3', '--icasc-order', order)
        before = state_of(job.model)
        training_epoch.train_one_epoch(0, job, StopSignal())
        for name, value in job.model.state_dict().items():
            frozen = name.startswith(('conv1', 'bn1', 'layer1', 'layer2'))
            assert torch.equal(value, before[name]) == frozen, name
        assert {'bn1.num_batches_tracked', 'layer3.0.bn1.running_mean', 'fc.weight'} <= before.keys()

    def test_without_it_everything_moves(self, noise):
        job = job_of(noise)
        before = state_of(job.model)
        training_epoch.train_one_epoch(0, job, StopSignal())
        assert job.frozen == []
        assert not any(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())

    def test_the_head_alone(self, noise):
        job = job_of(noise, '--freeze-until', 'fc')
        before = state_of(job.model)
        training_epoch.train_one_epoch(0, job, StopSignal())
        changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {'fc.weight', 'fc.bias'}

    def test_an_average_of_the_weights_has_the_frozen_ones(self, noise):
        job = job_of(noise, '--freeze-until', 'layer3', '--model-ema')
        job.task.setup_ema(decay=0.5)
        before = state_of(job.model)
        training_epoch.train_one_epoch(0, job, StopSignal())
        averaged = job.task.get_trainable_module(ema=True).module.state_dict()
        assert torch.equal(averaged['layer2.0.conv1.weight'], before['layer2.0.conv1.weight'])
        assert not torch.equal(averaged['layer3.0.conv1.weight'], before['layer3.0.conv1.weight'])

    @pytest.mark.parametrize('name, path, frozen, trained', [
        ('resnet18', 'layer2', 'bn1.weight', 'layer2.0.conv1.weight'),
        ('resnet18', 'layer4.1.conv2', 'layer4.1.bn1.weight', 'layer4.1.conv2.weight'),
        ('test_vit', 'blocks.2', 'pos_embed', 'blocks.2.norm1.weight'),
        ('test_vit', 'blocks.2', 'blocks.1.mlp.fc2.weight', 'norm.weight'),
        ('tf_efficientnet_lite0', 'blocks.6', 'blocks.5.3.bn3.bias', 'conv_head.weight'),
        # Patch embeddings of all stages are defined first; timm knows to which stage each belongs.
        ('coat_tiny', 'serial_blocks2', 'serial_blocks1.0.norm1.weight', 'patch_embed3.proj.weight')])
    def test_what_comes_before(self, name, path, frozen, trained):
        model = timm.create_model(name)
        freeze_until(argparse.Namespace(model=name, freeze_until=path), model)
        parameters = dict(model.named_parameters())
        assert not parameters[frozen].requires_grad and parameters[trained].requires_grad

    def test_every_kind_of_batch_norm(self):
        """Also those of one dimension, and those without parameters."""
        model = timm.create_model('levit_128s')
        model.stages[0].add_module('plain', torch.nn.BatchNorm1d(3, affine=False))
        kept = freeze_until(argparse.Namespace(model='x', freeze_until='stages.1'), model)
        norms = [m for m in kept if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert {type(m) for m in norms} == {torch.nn.BatchNorm1d, torch.nn.BatchNorm2d}
        assert model.stages[0].plain in kept and not any(m in kept for m in model.stages[1].modules())

    def test_dropout_before_the_head_belongs_to_the_head(self):
        """It has no parameters, and stands behind the last frozen ones; what stands between frozen ones is kept."""
        model = timm.create_model('test_vit', drop_rate=0.5)
        kept = freeze_until(argparse.Namespace(model='test_vit', freeze_until='head'), model)
        assert model.head_drop not in kept and model.pos_drop in kept and model.blocks[-1].mlp.drop2 in kept

    @pytest.mark.parametrize('path, said', [
        ('layer9', "has no module 'layer9'; it has layer"),
        ('maxpool', "module 'maxpool' of resnet18 has no parameters"),
        ('conv1', "nothing stands before 'conv1'"), ('nothing-like-it', 'it has conv1, bn1, ')])
    def test_a_wrong_path(self, path, said):
        with pytest.raises(ICASCError, match=f'^--freeze-until: .*{said}'):
            freeze_until(argparse.Namespace(model='resnet18', freeze_until=path), timm.create_model('resnet18'))


def rates_of(*options):
    """Learning rate of each parameter of a resnet20_cifar in the first epoch, and the optimiser."""
    args = parse_args(['--dataset', 'digits', *TINY, '--model', 'resnet20_cifar', '--eval-metric', 'top1', *options])
    args.num_classes, args.world_size = 10, 1
    model = timm.create_model('resnet20_cifar')
    optimizer, scheduler, _ = set_up_optimizer(args, model, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group['lr'] for group in optimizer.param_groups for p in group['params']}
    return rates, optimizer, scheduler


@pytest.mark.parametrize('given, option', [('lr=5', '--lr'), ('eps=1e-3', '--opt-eps')])
def test_an_argument_of_the_optimiser_that_has_an_option(given, option):
    with pytest.raises(ICASCError, match=f"--opt-kwargs: '.*' has an option of its own, {option}"):
        rates_of('--opt', 'adamw', '--opt-eps', '1e-6', '--opt-kwargs', given)


def test_too_few_betas():
    with pytest.raises(ICASCError, match='--opt-betas 0.9: --opt adamw needs more of them'):
        rates_of('--opt', 'adamw', '--opt-betas', '0.9')


@pytest.mark.parametrize('options, said', [
    (['--opt', 'sgd', '--opt-betas', '0.9', '0.99'], '--opt-betas does nothing with --opt sgd: leave it out'),
    (['--opt', 'lion', '--opt-eps', '1e-6'], '--opt-eps does nothing with --opt lion'),
    (['--opt', 'lookahead_adamw', '--momentum', '0.8'], '--momentum 0.8 does nothing with --opt lookahead_adamw')])
def test_what_the_optimiser_does_not_have(options, said):
    with pytest.raises(ICASCError, match=said):
        rates_of(*options)


@pytest.mark.parametrize('options, name, value', [
    (['--opt', 'sgd', '--momentum', '0.8'], 'momentum', 0.8), (['--opt', 'adamw', '--opt-eps', '1e-6'], 'eps', 1e-6),
    (['--opt', 'adafactor', '--opt-betas', '0.8', '0.9'], 'beta1', 0.8),
    (['--opt', 'lookahead_rmsprop', '--momentum', '0.8'], 'momentum', 0.8)])
def test_what_the_optimiser_has(options, name, value):
    assert rates_of(*options)[1].defaults[name] == value


class TestRates:

    @pytest.mark.parametrize('schedule', ['cosine', 'none'])
    def test_of_the_head(self, schedule):
        rates, optimizer, scheduler = rates_of('--head-lr-scale', '10', '--sched', schedule, '--weight-decay', '0.01')
        assert (scheduler is None) == (schedule == 'none')
        for name, rate in rates.items():
            assert rate == pytest.approx(0.5 if name.startswith('fc.') else 0.05), name
        assert len(rates) == len(list(timm.create_model('resnet20_cifar').parameters()))
        decays = sorted((group['lr'], group['weight_decay']) for group in optimizer.param_groups)
        assert decays == [(0.05, 0.), (0.05, 0.01), (0.5, 0.), (0.5, 0.01)]
        assert base_lr(optimizer) == pytest.approx(0.05)

    def test_the_schedule_keeps_the_factor(self):
        _, optimizer, scheduler = rates_of('--head-lr-scale', '10', '--epochs', '10')
        scheduler.step(5)
        low, high = sorted({group['lr'] for group in optimizer.param_groups})
        assert 0 < low < 0.05 and high == pytest.approx(10 * low) and base_lr(optimizer) == pytest.approx(low)

    def test_of_the_layers(self):
        """Each block of the three stages, the stem before them and the head behind: 9 + 2 layers."""
        rates, optimizer, _ = rates_of('--layer-decay', '0.5')
        blocks = {f'layer{i + 1}.{j}': 1 + 3 * i + j for i in range(3) for j in range(3)}
        depths = {'conv1': 0, 'bn1': 0, **blocks, 'fc': 10}
        for name, rate in rates.items():
            depth = next(depth for start, depth in depths.items() if name.startswith(f'{start}.'))
            assert rate == pytest.approx(0.05 * 0.5 ** (10 - depth)), name
        assert base_lr(optimizer) == pytest.approx(0.05)

    def test_of_both(self):
        rates, *_ = rates_of('--layer-decay', '0.5', '--head-lr-scale', '3', '--layer-decay-min-scale', '0.25')
        assert rates['fc.weight'] == pytest.approx(0.15) and rates['conv1.weight'] == pytest.approx(0.05 / 4)

    @pytest.mark.parametrize('options', [(), ('--layer-decay', '0.5'), ('--head-lr-scale', '10')])
    def test_a_decay_of_all_parameters_stays_one(self, options):
        """--head-lr-scale took biases and norms out of it."""
        _, optimizer, _ = rates_of('--weight-decay', '0.01', '--opt-kwargs', 'filter_bias_and_bn=False', *options)
        assert {group['weight_decay'] for group in optimizer.param_groups} == {0.01}

    def test_layers_that_would_hardly_learn(self):
        rates, *_ = rates_of('--layer-decay', '0.5', '--layer-decay-no-opt-scale', '0.2')
        assert set(rates.values()) == {0.05, 0.025, 0.0125}

    def test_a_model_without_a_head(self, monkeypatch):
        monkeypatch.setattr(timm.models.ResNet, 'get_classifier', lambda self: torch.nn.Identity())
        args = parse_args(['--dataset', 'digits', '--model', 'resnet18', '--head-lr-scale', '2'])
        args.world_size = 1
        with pytest.raises(ICASCError, match='^--head-lr-scale: resnet18 has no classifier'):
            set_up_optimizer(args, timm.create_model('resnet18'), 1)

    @pytest.mark.parametrize('options', [
        ('--layer-decay', '0'), ('--layer-decay', '1.5'), ('--head-lr-scale', '-1'),
        ('--layer-decay', '0.5', '--layer-decay-min-scale', '2')])
    def test_values_that_make_no_sense(self, options):
        with pytest.raises(ICASCError, match=f'^{options[-2]} must be'):
            parse_args(['--dataset', 'digits', *options])


def test_a_run_that_was_interrupted_goes_on_with_all_of_it(noise, tmp_path, monkeypatch, capsys):
    options = ['--data-dir', noise, '--output', tmp_path, *TINY, '--epochs', 2, '--freeze-until', 'layer2',
               '--head-lr-scale', 5, '--layer-decay', 0.8, '--head-init-scale', 0]
    assert train_in_process(monkeypatch, capsys, *options, '--experiment', 'whole')[0] == 0
    with sigterm_in_the_second_epoch(monkeypatch):
        assert train_in_process(monkeypatch, capsys, *options, '--experiment', 'cut')[0] == 128 + signal.SIGTERM
    code, out, err = train_in_process(
        monkeypatch, capsys, '--output', tmp_path, '--experiment', 'cut', '--resume', 'auto')
    assert code == 0 and 'resumed after epoch 1' in out, err
    whole, cut = (torch.load(tmp_path / name / 'last.pth.tar', weights_only=False) for name in ('whole', 'cut'))
    assert all(torch.equal(value, cut['state_dict'][name]) for name, value in whole['state_dict'].items())
    groups = [group['lr_scale'] for group in cut['optimizer']['param_groups']]
    assert len(groups) > 3 and max(groups) == 5 and min(groups) < 0.8
    with open(tmp_path / 'cut' / 'summary.csv') as file:
        assert [float(row['lr']) for row in csv.DictReader(file)] == pytest.approx([0.05, 0.025])
