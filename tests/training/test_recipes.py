"""Every recipe builds what it names: model, layers, task, optimiser and schedule, as baseline and as ICASC."""
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from timm.task import ClassificationTask, MultiLabelClassificationTask

from timm_icasc import ICASCTask, MultiLabelICASCTask, resolve_layers
from timm_icasc.data import create_dataset
from timm_icasc.data.dataset_factory import NAMES
from timm_icasc.data.labelled_images import LabelledImages
from timm_icasc.labels import KINDS, MULTI
from timm_icasc.training.argument_files import RECIPES
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up_optimizer, set_up_task
from timm_icasc.training.loaders import set_up_data_config, set_up_loaders
from timm_icasc.training.model_factory import set_up_model

CIFAR, CALTECH, ILSVRC, CUB, VOC = 'cifar100', 'caltech256', 'imagenet', 'cub200', 'voc2012'
# Tables 1 of the paper and of its appendix. Data set -> classes, pixels, batch size, learning rate, epochs after which
# it is divided by 10 (None: one cycle of cosine annealing), weight decays (where the two tables differ: both), epochs.
TABLE_1 = {
    CIFAR: (100, 32, 128, 0.1, (81, 122), (5e-4,), 160),
    CALTECH: (256, 299, 16, 0.01, None, (1e-3,), 20),
    ILSVRC: (1000, 224, 256, 0.1, (30, 60), (1e-4,), 90),
    CUB: (200, 448, 10, 0.001, (30, 60), (5e-4, 1e-4), 90),
    VOC: (20, 299, 16, 0.01, None, (1e-3,), 20),
}
# Recipe -> data set, network, whether it trains with ICASC.
PAPER = {
    'cifar100_resnet110': (CIFAR, 'resnet110_cifar', True),
    'cifar100_resnet110_stochastic_depth': (CIFAR, 'resnet110_cifar', False),
    'cifar100_preact_resnet164': (CIFAR, 'preact_resnet164_cifar', False),
    'caltech256_resnet18': (CALTECH, 'resnet18.tv_in1k', True), 'caltech256_vgg19': (CALTECH, 'vgg19.tv_in1k', True),
    'ilsvrc2012_resnet18': (ILSVRC, 'resnet18', True),
    'cub200_resnet50': (CUB, 'resnet50.tv_in1k', True), 'cub200_resnet101': (CUB, 'resnet101.tv_in1k', True),
    'cub200_resnet50_ablation': (CUB, 'resnet50.tv_in1k', True),
    'voc2012_resnet18': (VOC, 'resnet18.tv_in1k', True), 'voc2012_vgg19': (VOC, 'vgg19.tv_in1k', False),
}
UPDATES = 10


def arguments(recipe, *options):
    args = parse_args(['--data-dir', 'x', '--config', str(recipe), *options])
    args.pretrained = False  # no network here
    args.num_classes, args.in_chans, args.world_size = args.num_classes or 20, 3, 1
    args.eval_metric = 'mAP' if args.dataset.startswith('voc') else 'top1'  # as set_up_data settles it
    return args


@lru_cache
def model_of(recipe):
    """On the meta device: shapes and names without the arithmetic of 448 pixels."""
    with torch.device('meta'):
        return set_up_model(arguments(recipe))


def built(recipe, *options):
    args, model = arguments(recipe, *options), model_of(recipe)
    size = args.img_size or 32
    labels = KINDS[args.dataset.startswith('voc')]
    task = set_up_task(args, model, torch.device('meta'), (3, size, size), UPDATES, labels)
    return args, model, task


@pytest.mark.parametrize('recipe', sorted(RECIPES.glob('*.yaml')), ids=lambda p: p.stem)
def test_recipes_build(recipe):
    args, model, task = built(recipe, '--icasc')
    labels = KINDS[args.dataset.startswith('voc')]
    assert type(task) is (MultiLabelICASCTask if labels is MULTI else ICASCTask)
    size = args.img_size or 32
    layers = resolve_layers(model, input_size=(3, size, size))
    assert abs(layers.inner.grid[0] - 2 * layers.last.grid[0]) <= 1
    optimizer, scheduler, epochs = set_up_optimizer(args, model, UPDATES)
    assert epochs == args.epochs and scheduler is not None and len(optimizer.param_groups[0]['params'])
    args.icasc = False
    plain = set_up_task(args, model, torch.device('meta'), (3, size, size), UPDATES, labels)
    assert type(plain) is (MultiLabelClassificationTask if labels is MULTI else ClassificationTask)


def test_every_recipe_of_the_paper_is_there():
    others = ('_cpu', 'digits_resnet20', 'finetune')
    assert set(PAPER) == {p.stem for p in RECIPES.glob('*.yaml') if not p.stem.endswith(others)}
    assert {name for name, *_ in PAPER.values()} == set(TABLE_1) <= set(NAMES)


@pytest.mark.parametrize('stem', PAPER)
def test_the_options_are_those_of_table_1(stem):
    data, model, icasc = PAPER[stem]
    classes, pixels, batch, lr, steps, decays, epochs = TABLE_1[data]
    recipe = RECIPES / f'{stem}.yaml'
    args = parse_args(['--data-dir', 'x', '--config', str(recipe)])
    assert (args.dataset, args.model, args.icasc) == (data, model, icasc)
    assert (args.num_classes, args.img_size, args.batch_size, args.epochs) == (classes, pixels, batch, epochs)
    assert (args.lr, args.momentum, args.opt, args.warmup_epochs) == (lr, 0.9, 'momentum', 0)
    assert args.weight_decay == decays[0]
    if decays[1:]:  # the other table's is named beside it
        line, = [line for line in recipe.read_text().splitlines() if line.startswith('weight_decay:')]
        other = parse_args(['--data-dir', 'x', '--config', str(recipe), *line.split(': ')[-1].split()])
        assert other.weight_decay == decays[1]
    if steps:
        assert (args.sched, args.decay_rate) == ('multistep', 0.1)
        assert args.decay_milestones == [epoch + 1 for epoch in steps], "timm's milestones count epochs from 1"
    else:
        assert (args.sched, args.lr_cycle_limit, args.min_lr) == ('cosine', 1, 0)
    assert args.pretrained == (data in (CALTECH, CUB, VOC))
    assert args.smoothing == 0 or data == VOC, 'which has its own loss'
    assert args.mixup == args.cutmix == args.drop == args.reprob == 0 and not args.aa and not args.model_ema
    assert args.drop_path == (0.5 if stem.endswith('stochastic_depth') else None)
    assert args.train_split == ('train60' if data == CALTECH else 'train')
    assert args.val_split == {VOC: 'val', ILSVRC: 'validation'}.get(data, 'test')
    # Eq. 6 has no weights and no later start; Eq. 4 as printed; what the paper leaves open is order 1.
    assert args.icasc_weights == ([1., 0., 0.] if stem.endswith('ablation') else [1., 1., 1.])
    assert (args.icasc_theta, args.icasc_sigma, args.icasc_omega) == (0.8, 0.55, 100.)
    assert (args.icasc_order, args.icasc_mask_grad, args.icasc_mask_scale) == (1, False, 'raw')
    assert args.icasc_start_epoch == args.icasc_ramp_epochs == 0 and args.icasc_layers is None


@pytest.mark.parametrize('stem, expected', [
    ('cifar100_resnet110', {'crop_padding': 4, 'hflip': 0.5}),
    ('ilsvrc2012_resnet18', {'crop_pct': 0.875, 'interpolation': 'bilinear'}),
    ('cub200_resnet50', {'crop_mode': 'squash', 'crop_pct': 1.0, 'crop_padding': 32, 'hflip': 0.5})])
def test_images_are_prepared_as_the_paper_says(stem, expected):
    args = vars(arguments(RECIPES / f'{stem}.yaml'))
    assert {name: args[name] for name in expected} == expected


def test_ablation_and_networks_differ_in_what_they_name_alone():
    def options(stem):
        return vars(arguments(RECIPES / f'{stem}.yaml'))

    for stem, other, names in (
            ('cub200_resnet50', 'cub200_resnet50_ablation', {'icasc_weights'}),
            ('cub200_resnet50', 'cub200_resnet101', {'model'}),
            ('caltech256_resnet18', 'caltech256_vgg19', {'model'}),
            ('voc2012_resnet18', 'voc2012_vgg19', {'model', 'icasc'}),
            ('cifar100_resnet110', 'cifar100_preact_resnet164', {'model', 'icasc'}),
            ('cifar100_resnet110', 'cifar100_resnet110_stochastic_depth', {'drop_path', 'icasc'})):
        a, b = options(stem), options(other)
        assert {k for k in a if a[k] != b[k] and k != 'config'} == names


@pytest.mark.parametrize('stem', [stem for stem, (_, _, icasc) in PAPER.items() if icasc])
def test_the_papers_variants_differ_in_the_method_alone(stem):
    recipe = RECIPES / f'{stem}.yaml'
    ach, grad_cam, plain = (vars(arguments(recipe, *options)) for options in (
        (), ('--icasc-attention', 'grad_cam'), ('--no-icasc',)))
    assert ach['icasc'] and ach['icasc_attention'] == 'ach'
    assert {k for k in ach if ach[k] != grad_cam[k]} == {'icasc_attention'}
    assert {k for k in ach if ach[k] != plain[k]} == {'icasc'}


@pytest.mark.parametrize('stem', PAPER)
def test_the_other_readings_are_named(stem):
    """As commands in the recipe's comments, and its layers are ones that the network has."""
    text = (RECIPES / f'{stem}.yaml').read_text()
    assert '--icasc-order 2, or 2 with --icasc-mask-grad' in text and '--icasc-mask-scale max' in text
    assert 'letter' not in text
    if '--icasc-layers' not in text:
        assert 'vgg19' in stem
        return
    inner, last = text.split('--icasc-layers ')[1].split()[:2]
    size = TABLE_1[PAPER[stem][0]][1]
    _, model, _ = built(RECIPES / f'{stem}.yaml')
    layers = resolve_layers(model, (inner, last.rstrip('.')), (3, size, size))
    assert isinstance(model.get_submodule(inner), torch.nn.Conv2d)
    assert layers.inner.grid == resolve_layers(model, input_size=(3, size, size)).inner.grid


def test_squash_resizes_without_keeping_the_aspect(tmp_path):
    """CUB's images, `resized to 448 x 448 for both training and testing`: both ends of a long image are seen."""
    args = arguments(RECIPES / 'cub200_resnet50.yaml', '--img-size', '64', '--workers', '0', '--batch-size', '2',
                     '--no-prefetcher', '--hflip', '0', '--crop-padding', '0', '--icasc-eval-images', '0')
    args.distributed = False
    image = np.zeros((64, 256, 3), dtype=np.uint8)
    image[:, :64], image[:, 192:] = (255, 0, 0), (0, 0, 255)
    sets = [LabelledImages([image] * 2, [0, 1], ['a', 'b']) for _ in range(2)]
    with torch.device('meta'):
        config = set_up_data_config(args, set_up_model(args))
    assert (config['crop_mode'], config['crop_pct'], config['interpolation']) == ('squash', 1.0, 'bilinear')
    for loader in set_up_loaders(args, {**config, 'mean': (0.,) * 3, 'std': (1.,) * 3}, *sets,
                                 torch.device('cpu'))[:2]:
        pixels = next(iter(loader))[0][0]
        assert pixels.shape == (3, 64, 64)
        assert pixels[:, 32, 2].tolist() == [1., 0., 0.] and pixels[:, 32, 61].tolist() == [0., 0., 1.]


@pytest.mark.parametrize('stem', ['caltech256_resnet18', 'caltech256_vgg19', 'voc2012_resnet18', 'voc2012_vgg19'])
def test_cyclic_cosine_annealing_with_one_cycle(stem):
    """Huang et al. (2017), Eq. 2 with M = 1: `lr0 / 2 (cos(pi t / T) + 1)` at update t of T."""
    args = arguments(RECIPES / f'{stem}.yaml')
    optimizer, scheduler, epochs = set_up_optimizer(args, torch.nn.Linear(2, 2), UPDATES)
    total = epochs * UPDATES
    for update in range(total):
        expected = args.lr / 2 * (math.cos(math.pi * update / total) + 1)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, abs=1e-12)
        scheduler.step_update(num_updates=update + 1)


@pytest.mark.parametrize('stem, milestones', [
    ('cifar100_resnet110', (81, 122)), ('ilsvrc2012_resnet18', (30, 60)), ('cub200_resnet50', (30, 60))])
def test_steps(stem, milestones):
    """A tenth of the rate after so many whole epochs."""
    args = arguments(RECIPES / f'{stem}.yaml')
    optimizer, scheduler, epochs = set_up_optimizer(args, torch.nn.Linear(2, 2), UPDATES)
    for epoch in range(epochs):
        passed = sum(epoch >= milestone for milestone in milestones)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(args.lr * 0.1 ** passed)
        scheduler.step(epoch + 1)


@pytest.mark.parametrize('stem', PAPER)
def test_weights_decay_on_every_parameter_once(stem):
    args = arguments(RECIPES / f'{stem}.yaml')
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer, *_ = set_up_optimizer(args, model, UPDATES)
    assert sum(len(group['params']) for group in optimizer.param_groups) == 4
    assert all(group['weight_decay'] == args.weight_decay for group in optimizer.param_groups)
    assert not optimizer.param_groups[0]['nesterov'] and optimizer.param_groups[0]['momentum'] == 0.9


def test_the_recipes_name_splits_that_their_data_sets_have(tmp_path):
    """An unknown split is refused before a missing folder, and in other words."""
    from timm_icasc import DataError
    for stem, (name, *_) in PAPER.items():
        args = arguments(RECIPES / f'{stem}.yaml')
        for split in (args.train_split, args.val_split):
            with pytest.raises(DataError) as error:
                create_dataset(name, str(tmp_path), split)
            assert 'has no split' not in str(error.value)
