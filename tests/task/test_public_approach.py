"""The public re-implementations' defects: none on is ICASC; each alone against explicit loops in float64."""
import math

import pytest
import torch
from helpers.models import create

from timm_icasc import ICASCTask, resolve_layers
from timm_icasc.attention import METHODS
from timm_icasc.errors import ICASCError
from timm_icasc.labels import MULTI, SINGLE
from timm_icasc.task.public_approach import DEFECTS, PublicApproachTask
from timm_icasc.training.arguments import parse_args
from timm_icasc.training.job import set_up_task


def batch(count=4, size=16, classes=10):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (count,), generator=generator)


@pytest.fixture
def model():
    return create('resnet20_cifar').double().eval()


def step(task, model, images, target):
    """Values of one step, and the gradient of every parameter."""
    for p in model.parameters():
        p.grad = None
    result = task(images, target)
    result['loss'].backward()
    values = {name: value.item() for name, value in result.items() if value.ndim == 0}
    return values, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    for name in one[0]:
        assert one[0][name] == pytest.approx(other[0][name], rel=1e-9, abs=1e-12), name
    for a, b in zip(one[1], other[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize('options', [
    {}, {'order': 1}, {'attention': 'grad_cam'}, {'attention': 'ach_signed'},
    {'mask_grad': True, 'omega': 5.}, {'mask_scale': 'raw'}, {'weight_as_inner': 0.},
    {'weight_as_last': 0.3, 'weight_ac': 0.}, {'start_steps': 1}], ids=str)
def test_without_defects_it_is_icasc(options, model):
    images, target, options = *batch(), {'order': 2, **options}
    expected = step(ICASCTask(model, verbose=False, **options), model, images, target)
    assert_same(step(PublicApproachTask(model, defects=(), verbose=False, **options), model, images, target), expected)


def test_constant_weights_are_order_1(model):
    """The first defect has a name of its own here: `order=1`."""
    images, target = batch()
    expected = step(ICASCTask(model, order=1, verbose=False), model, images, target)
    task = PublicApproachTask(model, defects=('constant-weights',), order=2, verbose=False)
    assert_same(step(task, model, images, target), expected)


@pytest.mark.parametrize('order', [1, 2])
def test_whole_backward_passes_cost_but_change_nothing(order, model):
    images, target = batch()
    expected = step(ICASCTask(model, order=order, verbose=False), model, images, target)
    task = PublicApproachTask(model, defects=('whole-backward',), order=order, verbose=False)
    assert_same(step(task, model, images, target), expected)


def test_whole_backward_passes_traverse_what_icasc_does_not(model):
    passes = []

    def watch(module, args, output):
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: passes.append(module))

    images, target = batch()
    resolve_layers(model, input_size=(3, 16, 16))  # which tries the model out, once
    model.conv1.register_forward_hook(watch)
    for task, count in (
            (ICASCTask(model, order=1, verbose=False), 0),
            (PublicApproachTask(model, defects=('whole-backward',), order=1, verbose=False), 2)):
        passes.clear()
        task(images, target)
        assert len(passes) == count


def reference_maps(model, images, target, summed_score):
    """The four maps of each image; with `summed_score` times the sum of the class scores of all images."""
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    taps = {}
    handles = [model.get_submodule(layer.path).register_forward_hook(
        lambda m, a, output, place=place: taps.__setitem__(place, output))
        for place, layer in zip(('inner', 'last'), layers, strict=True)]
    logits = model(images)
    for handle in handles:
        handle.remove()
    confused = []
    for row, true in zip(logits.tolist(), target.tolist(), strict=True):
        confused.append(max((c for c in range(len(row)) if c != true), key=lambda c: row[c]))
    maps = {}
    for which, chosen in (('target', target.tolist()), ('confused', confused)):
        scale = sum(logits[b, c].item() for b, c in enumerate(chosen)) if summed_score else 1.
        for place, feature in taps.items():
            maps[f'{which}_{place}'] = []
            for b, c in enumerate(chosen):
                gradient = torch.autograd.grad(logits[b, c], feature, retain_graph=True)[0][b]
                maps[f'{which}_{place}'].append(
                    METHODS['ach'].function(feature[b].detach(), scale * gradient).tolist())
    return maps


def pixels(*maps):
    """Runs over images, rows and columns of several lists of maps at once."""
    for images in zip(*maps, strict=True):
        for rows in zip(*images, strict=True):
            yield from zip(*rows, strict=True)


def resized(mask):
    return torch.nn.functional.interpolate(
        torch.tensor(mask, dtype=torch.float64)[:, None], scale_factor=2, mode='bilinear')[:, 0].tolist()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def reference_terms(maps, theta=0.8, sigma=0.55, omega=100.):
    """Eqs. 3 to 5 of the given images together: one maximum, one sum, one ratio."""
    maximum = max(a for a, in pixels(maps['target_last']))
    mask = {'last': [[[sigmoid(omega * (a / maximum - sigma)) for a in row] for row in rows]
                     for rows in maps['target_last']]}
    mask['inner'] = resized(mask['last'])
    terms = {}
    for place in ('inner', 'last'):
        a, c = maps[f'target_{place}'], maps[f'confused_{place}']
        terms[f'as_{place}'] = (2 * sum(min(x, y) * m for x, y, m in pixels(a, c, mask[place]))
                                / sum(x + y for x, y in pixels(a, c)))
    inner = maps['target_inner']
    terms['ac'] = theta - sum(x * m for x, m in pixels(inner, mask['inner'])) / sum(x for x, in pixels(inner))
    return terms


def assert_terms(values, expected):
    for name, value in expected.items():
        assert values[f'loss_{name}'] == pytest.approx(value, rel=1e-8, abs=1e-12), name


def test_summed_score_scales_each_map_by_the_scores_of_the_batch(model):
    images, target = batch()
    model.fc.bias.data += 1  # positive sums: a map turned over has hardly anything left to compare
    task = PublicApproachTask(model, defects=('summed-score',), verbose=False)
    values, _ = step(task, model, images, target)
    maps = reference_maps(model, images, target, summed_score=True)
    rows = [reference_terms({name: m[b:b + 1] for name, m in maps.items()}) for b in range(len(images))]
    assert_terms(values, {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]})
    plain, _ = step(ICASCTask(model, verbose=False), model, images, target)
    assert values['loss_as_last'] != pytest.approx(plain['loss_as_last'], rel=1e-2)


def test_batch_sums_are_one_ratio_of_maps_divided_by_the_maximum_of_the_batch(model):
    images, target = batch()
    values, _ = step(PublicApproachTask(model, defects=('batch-sums',), verbose=False), model, images, target)
    divided = {}
    for name, m in reference_maps(model, images, target, summed_score=False).items():
        maximum = max(a for a, in pixels(m))
        divided[name] = [[[a / maximum for a in row] for row in rows] for rows in m]
    assert_terms(values, reference_terms(divided))
    plain, _ = step(ICASCTask(model, verbose=False), model, images, target)
    assert values['loss_as_last'] != pytest.approx(plain['loss_as_last'], rel=1e-2)


def test_with_batch_sums_an_image_changes_the_terms_of_the_others(model):
    """What the defect is about: in ICASC a batch's term is the mean of its halves' terms, here it is not."""
    images, target = batch()
    for defects, additive in (((), True), (('batch-sums',), False)):
        task = PublicApproachTask(model, defects=defects, verbose=False)
        whole, first, second = (
            task(images[part], target[part])['loss_as_last'].item()
            for part in (slice(None), slice(2), slice(2, None)))
        assert (whole == pytest.approx((first + second) / 2, rel=1e-9)) == additive


def test_all_defects_train_by_default():
    model = create('resnet20_cifar').train()
    task = PublicApproachTask(model, attention='grad_cam', input_size=(3, 32, 32), device=torch.device('cpu'),
                              verbose=False)
    assert task.defects == tuple(DEFECTS)
    images, target = (x.float() if x.is_floating_point() else x for x in batch())
    values, gradients = step(task, model, images, target)
    assert set(values) == {'loss', 'loss_cls', 'loss_as_inner', 'loss_as_last', 'loss_ac'}
    assert all(torch.isfinite(g).all() for g in gradients)


def test_gradients_accumulate_as_with_any_task(model):
    """The parameter gradients of the class scores are dropped, those of earlier steps are not."""
    images, target = batch()
    task = PublicApproachTask(model, verbose=False)
    _, once = step(task, model, images, target)
    task(images, target)['loss'].backward()
    for p, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)


def test_unknown_defects_are_named(model):
    with pytest.raises(ValueError, match="'batch-sum'"):
        PublicApproachTask(model, defects=('batch-sum',))


@pytest.mark.parametrize('option, value', [('share', 0.5), ('rival', 'random')])
def test_an_option_that_it_does_not_follow_is_refused(option, value, model):
    with pytest.raises(ICASCError, match=f'leave `{option}` out'):
        PublicApproachTask(model, verbose=False, **{option: value})


def test_the_option_of_the_training_script(model):
    args = parse_args(['--icasc-defects', 'batch-sums', 'constant-weights', '--icasc-weights', '1', '0', '1'])
    task = set_up_task(args, model, torch.device('cpu'), (3, 32, 32), 10, SINGLE)
    assert type(task) is PublicApproachTask and task.defects == ('batch-sums', 'constant-weights')
    assert task.config.weight_as_last == 0
    assert type(set_up_task(parse_args([]), model, torch.device('cpu'), (3, 32, 32), 10, SINGLE)) is ICASCTask
    with pytest.raises(ICASCError, match='--icasc-defects is for single-label data'):
        set_up_task(args, model, torch.device('cpu'), (3, 32, 32), 10, MULTI)
