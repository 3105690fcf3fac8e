"""Options that mean nothing without another one, which a file names and the command line switches off."""
import pytest
import torch
import yaml
from timm.scheduler import create_scheduler_v2

from timm_icasc import ICASCError
from timm_icasc.sweep.study import load_study
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.dependent_options import OF_SCHEDULES

RECIPE = {
    'dataset': 'digits', 'mixup': 0.2, 'cutmix': 1.0, 'mixup_prob': 0.8, 'mixup_off_epoch': 3, 'reprob': 0.25,
    'remode': 'const', 'opt': 'adamw', 'opt_betas': [0.9, 0.95], 'loss': 'bce', 'bce_sum': True, 'model_ema': True,
    'model_ema_warmup': True, 'scale': [0.3, 1.0], 'hflip': 0.3}

SWITCHED = {
    'mixing': ({'mixup': 0.0, 'cutmix': 0.0}, {'mixup_prob': 1.0, 'mixup_off_epoch': 0}, {'remode': 'const'}),
    'erasing': ({'reprob': 0.0}, {'remode': 'pixel'}, {'mixup_prob': 0.8}),
    'optimiser': ({'opt': 'sgd'}, {'opt_betas': None}, {'bce_sum': True}),
    'loss': ({'loss': 'ce'}, {'bce_sum': False}, {'opt_betas': [0.9, 0.95]}),
    'all of the images': (
        {'no_aug': True}, {'reprob': 0.0, 'remode': 'pixel', 'scale': [0.08, 1.0], 'hflip': 0.5}, {'mixup_prob': 0.8}),
    'crops': ({'crop_padding': 4}, {'scale': [0.08, 1.0]}, {'hflip': 0.3, 'reprob': 0.25})}


@pytest.fixture(params=SWITCHED)
def switched(request):
    """What is said over a file, what becomes of its options, and what stays."""
    return SWITCHED[request.param]


def words(options):
    return [word for name, value in options.items() for word in (
        f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))]


def check(args, expected):
    assert {name: getattr(args, name) for name in expected} == expected


def test_the_command_line_over_a_file(switched, tmp_path):
    """It was told to leave out what it had not said, and could not take back."""
    over, gone, kept = switched
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(RECIPE))
    check(parse_args(['-c', str(tmp_path / 'recipe.yaml'), *words(over)]), {**over, **gone, **kept})


def test_the_command_line_over_a_run(switched, tmp_path):
    over, gone, kept = switched
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'args.yaml').write_text(yaml.safe_dump(RECIPE))
    (tmp_path / 'x' / 'last.pth.tar').touch()
    resumed = parse_args(['--resume', 'auto', '--output', str(tmp_path), *words(over)])
    check(resumed, {**over, **gone, **kept, 'run_dir': str(tmp_path / 'x')})


def test_a_variant_over_what_all_have(switched, tmp_path):
    over, gone, kept = switched
    file = tmp_path / 'study.yaml'
    file.write_text(yaml.safe_dump(
        {'baseline': 'plain', 'seeds': [0], 'common': RECIPE, 'variants': {'plain': {}, 'other': over}}))
    options = {run.variant: run.options for run in load_study(file).runs}
    plain, other = options['plain'], options['other']
    assert {name: plain[name] for name in RECIPE} == RECIPE
    assert {name: other[name] for name in {**gone, **kept}} == {**gone, **kept}


@pytest.mark.parametrize('over, message', [
    ({'mixup': 0.0, 'cutmix': 0.0, 'mixup_prob': 0.5}, '--mixup-prob does nothing without --mixup'),
    ({'loss': 'ce', 'bce_sum': True}, '--bce-sum is of --loss bce'),
    ({'no_aug': True, 'reprob': 0.5}, '--reprob does nothing beside --no-aug')])
def test_what_the_command_line_itself_says_in_vain(over, message, tmp_path):
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(ICASCError, match=message):
        parse_args(['-c', str(tmp_path / 'recipe.yaml'), *words(over)])


@pytest.mark.parametrize('options, message', [
    ('--no-aug --hflip 0.3', '--hflip does nothing beside --no-aug: leave one of them out'),
    ('--no-aug --color-jitter 0.2', '--color-jitter does nothing beside --no-aug'),
    ('--no-aug --color-jitter-prob 0.5', '--color-jitter-prob does nothing beside --no-aug'),
    ('--no-aug --scale 0.5 1', '--scale does nothing beside --no-aug'),
    ('--no-aug --ratio 0.5 2', '--ratio does nothing beside --no-aug'),
    ('--no-aug --crop-padding 4', '--crop-padding does nothing beside --no-aug'),
    ('--no-aug --train-interpolation bicubic', '--train-interpolation does nothing beside --no-aug'),
    ('--crop-padding 4 --train-interpolation bicubic', '--train-interpolation does nothing beside --crop-padding'),
    ('--crop-padding 4 --scale 0.5 1', '--scale does nothing beside --crop-padding'),
    ('--crop-padding 4 --ratio 0.5 2', '--ratio does nothing beside --crop-padding'),
    ('--crop-padding 4 --train-crop-mode rkrc', '--train-crop-mode does nothing beside --crop-padding'),
    ('--decay-epochs 2', '--decay-epochs is of --sched step or wsd or rsqrt, this is --sched cosine: leave it out'),
    ('--decay-milestones 2 4', '--decay-milestones is of --sched multistep'),
    ('--decay-rate 0.5', '--decay-rate is of --sched step or multistep or plateau or poly'),
    ('--patience-epochs 3', '--patience-epochs is of --sched plateau'),
    ('--sched step --lr-cycle-limit 2', '--lr-cycle-limit is of --sched cosine or tanh or poly'),
    ('--sched step --min-lr 0.001', '--min-lr is of --sched cosine'),
    ('--sched tanh --lr-k-decay 2', '--lr-k-decay is of --sched cosine or poly'),
    ('--sched multistep --cooldown-epochs 3', '--cooldown-epochs is of --sched cosine'),
    ('--model-ema-decay 0.9', '--model-ema-decay does nothing without --model-ema')])
def test_what_another_option_replaces_or_the_schedule_has_not(options, message):
    """timm takes them in silence."""
    with pytest.raises(ICASCError, match=message):
        parse_args(['--dataset', 'digits', *options.split()])


CHANGES = {'decay_epochs': 1., 'decay_milestones': [3], 'decay_rate': 0.4, 'patience_epochs': 1, 'lr_cycle_mul': 2.,
           'lr_cycle_decay': 0.2, 'lr_cycle_limit': 3, 'cooldown_epochs': 2, 'lr_k_decay': 2., 'min_lr': 0.01}


def rates_of(sched, **options):
    """timm's learning rates of 14 epochs, and how many epochs it says that there are."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler, epochs = create_scheduler_v2(optimizer, sched, num_epochs=6, warmup_epochs=1, **{
        'decay_epochs': 3., 'decay_milestones': [2, 4], 'patience_epochs': 2, 'cycle_limit': 2,
        **{name.removeprefix('lr_'): value for name, value in options.items()}})
    rates = []
    for epoch in range(14):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1, 0.5)
    return rates, epochs


@pytest.mark.parametrize('name', CHANGES)
@pytest.mark.parametrize('sched', [
    'cosine', 'tanh', 'poly', 'step', 'multistep', 'plateau', 'wsd', 'rsqrt', 'constant'])
def test_the_options_of_a_schedule_are_those_that_change_it(sched, name):
    changed = rates_of(sched, **{name: CHANGES[name]}) != rates_of(sched)
    assert changed == (sched in OF_SCHEDULES[name][1])
    assert set(CHANGES) == set(OF_SCHEDULES)


def test_what_is_off_contradicts_nothing():
    parse_args(
        '--dataset digits --no-aug --hflip 0 --color-jitter 0 --scale 1 1 --ratio 1 1 --crop-padding 0'.split())
    parse_args('--dataset digits --crop-padding 4 --hflip 0.3 --scale 0.08 1 --color-jitter 0.2'.split())


def test_what_a_file_itself_says_in_vain(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('dataset: digits\nremode: const\n')
    with pytest.raises(ICASCError, match='--remode does nothing without --reprob: give that too, or leave it out'):
        parse_args(['-c', str(tmp_path / 'recipe.yaml'), '--lr', '0.1'])
