"""Every recipe builds what it names: model, layers, task, optimiser and schedule, as baseline and as ICASC."""
import math

import pytest
import torch
from timm.task import ClassificationTask, MultiLabelClassificationTask

from timm_icasc import ICASCTask, MultiLabelICASCTask, resolve_layers
from timm_icasc.data import create_dataset
from timm_icasc.data.dataset_factory import NAMES
from timm_icasc.training.argument_files import RECIPES
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up_model, set_up_optimizer, set_up_task

# The paper's five data sets -> number of classes and image size.
PAPER = {
    'cifar100_resnet110': ('cifar100', 100, 32), 'caltech256_resnet18': ('caltech256', 256, 224),
    'ilsvrc2012_resnet18': ('imagenet', 1000, 224), 'cub200_resnet50': ('cub200', 200, 448),
    'voc2012_resnet18': ('voc2012', 20, 224),
}
UPDATES = 10


def arguments(recipe, *options):
    args = parse_args(['--data-dir', 'x', '--config', str(recipe), *options])
    args.pretrained = False  # no network here
    args.num_classes, args.in_chans, args.world_size = args.num_classes or 20, 3, 1
    args.eval_metric = 'mAP' if args.dataset.startswith('voc') else 'top1'  # as set_up_data settles it
    return args


def built(recipe, *options):
    """On the meta device: shapes and names without the arithmetic of 448 pixels."""
    args = arguments(recipe, *options)
    with torch.device('meta'):
        model = set_up_model(args)
    size = args.img_size or 32
    task = set_up_task(args, model, torch.device('meta'), (3, size, size), UPDATES, args.dataset.startswith('voc'))
    return args, model, task


@pytest.mark.parametrize('recipe', sorted(RECIPES.glob('*.yaml')), ids=lambda p: p.stem)
def test_recipes_build(recipe):
    args, model, task = built(recipe)
    multilabel = args.dataset.startswith('voc')
    assert type(task) is (MultiLabelICASCTask if multilabel else ICASCTask)
    size = args.img_size or 32
    layers = resolve_layers(model, input_size=(3, size, size))
    assert layers.inner.grid[0] in (2 * layers.last.grid[0], 2 * layers.last.grid[0] - 1)
    optimizer, scheduler, epochs = set_up_optimizer(args, model, UPDATES)
    assert epochs == args.epochs and scheduler is not None and len(optimizer.param_groups[0]['params'])
    args.icasc = False
    plain = set_up_task(args, model, torch.device('meta'), (3, size, size), UPDATES, multilabel)
    assert type(plain) is (MultiLabelClassificationTask if multilabel else ClassificationTask)


def test_the_papers_five_data_sets_are_there():
    assert set(PAPER) <= {p.stem for p in RECIPES.glob('*.yaml')}
    assert {name for name, *_ in PAPER.values()} <= set(NAMES)


@pytest.mark.parametrize('stem, expected', PAPER.items(), ids=list(PAPER))
def test_the_papers_variants_differ_in_the_method_alone(stem, expected):
    recipe = RECIPES / f'{stem}.yaml'
    ach, grad_cam, plain = (vars(arguments(recipe, *options)) for options in (
        (), ('--icasc-attention', 'grad_cam'), ('--no-icasc',)))
    assert (ach['dataset'], ach['num_classes'], ach['img_size'] or 32) == expected
    assert ach['icasc'] and ach['icasc_attention'] == 'ach' and ach['icasc_order'] == 2
    assert ach['icasc_weights'] == [1., 1., 1.] and ach['icasc_start_epoch'] == 0 and ach['icasc_mask_scale'] == 'raw'
    assert {k for k in ach if ach[k] != grad_cam[k]} == {'icasc_attention'}
    assert {k for k in ach if ach[k] != plain[k]} == {'icasc'}
    assert ach['smoothing'] == 0 or ach['dataset'] == 'voc2012'


@pytest.mark.parametrize('stem', ['caltech256_resnet18', 'cub200_resnet50', 'voc2012_resnet18'])
def test_cyclic_cosine_annealing_with_one_cycle(stem):
    """Huang et al. (2017), Eq. 2 with M = 1: `lr0 / 2 (cos(pi t / T) + 1)` at update t of T."""
    args = arguments(RECIPES / f'{stem}.yaml')
    optimizer, scheduler, epochs = set_up_optimizer(args, torch.nn.Linear(2, 2), UPDATES)
    total = epochs * UPDATES
    for update in range(total):
        expected = args.lr / 2 * (math.cos(math.pi * update / total) + 1)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, abs=1e-12)
        scheduler.step_update(num_updates=update + 1)


@pytest.mark.parametrize('stem, milestones', [('cifar100_resnet110', (81, 122)), ('ilsvrc2012_resnet18', (30, 60))])
def test_steps(stem, milestones):
    """A tenth of the rate after so many whole epochs."""
    args = arguments(RECIPES / f'{stem}.yaml')
    optimizer, scheduler, epochs = set_up_optimizer(args, torch.nn.Linear(2, 2), UPDATES)
    for epoch in range(epochs):
        passed = sum(epoch >= milestone for milestone in milestones)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * 0.1 ** passed)
        scheduler.step(epoch + 1)


@pytest.mark.parametrize('stem', ['cifar100_resnet110', 'caltech256_resnet18', 'cub200_resnet50', 'voc2012_resnet18',
                                  'ilsvrc2012_resnet18'])
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
