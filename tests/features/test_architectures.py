"""A real training step of the smallest architecture of every module of timm: `pytest -m architectures`.

What shapes on meta tensors cannot tell: the maps are there and tell classes apart, they lie on the image as the pixels
do, and the parameter gradient is the derivative of the loss.
"""
import warnings

import pytest
import timm
import torch
from helpers.architectures import DEPTH, SIGNED_ATTENTION, SMALLEST
from helpers.versions import recent_timm
from timm.layers import DropPath

from timm_icasc import ICASCConfig, ICASCTask, attention_maps, icasc_forward, resolve_layers
from timm_icasc.features.tap import capture_features

NUM_CLASSES = 6


@recent_timm
def test_every_module_of_timm_is_represented():
    """Models without class scores (encoders) aside."""
    modules = {timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    represented = {timm.model_entrypoint(name).__module__ for name in SMALLEST}
    assert {m for m in modules if m.startswith('timm.')} == represented


def create(name, size):
    torch.manual_seed(0)
    kwargs = {'img_size': size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    if name in DEPTH:
        kwargs['depth'] = DEPTH[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return timm.create_model(name, num_classes=NUM_CLASSES, **kwargs)


def deterministic(model):
    """Training mode without what depends on the batch or on chance; at evaluation some modules cache parameters."""
    model.train()
    for module in model.modules():
        if isinstance(module, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.Dropout, DropPath)):
            module.eval()
        if hasattr(module, 'drop_rate'):
            module.drop_rate = 0.  # dropout as a function (GhostNet)


@pytest.fixture(scope='module', params=SMALLEST)
def case(request):
    """Model in float64, parameters at a generic point; images [2, 3, size, size], classes [2], layers, attention."""
    model, size = create(request.param, SMALLEST[request.param]).double(), SMALLEST[request.param]
    deterministic(model)
    layers = resolve_layers(model, input_size=(3, size, size))
    attention = 'grad_cam' if request.param in SIGNED_ATTENTION else 'ach'
    for _ in range(8):
        with torch.no_grad():
            for p in model.parameters():
                # Zero-initialised heads and scales of 1e-5 are special points, and would hide half of the network.
                p.add_(torch.randn_like(p) * 0.02)
        images, target = with_maps(model, size, attention)
        if len(images) == 2:
            return model, images, target, layers, attention
    raise AssertionError('some map of every class is zero')


def with_maps(model, size, attention):
    """Up to two images, and a class of each, such that no map of it or of its most confusing class is zero.

    Far from any training, the evidence for all classes may be negative everywhere, so there must be some choice.
    """
    candidates = torch.randn(12, 3, size, size, dtype=torch.float64) * torch.logspace(-1, 1, 12)[:, None, None, None]
    images, targets = [], []
    for image in candidates.split(2):
        if len(images) >= 2:
            break
        visible = torch.stack([
            attention_maps(model, image, range(NUM_CLASSES), 1, attention, layer).sum((2, 3)) > 0
            for layer in ('inner', 'last')]).all(0)
        for x, seen, scores in zip(image, visible, model(image).detach(), strict=True):
            confused = [scores.index_fill(0, torch.tensor(c), -torch.inf).argmax() for c in range(NUM_CLASSES)]
            target = next((c for c in range(NUM_CLASSES) if seen[c] and seen[confused[c]]), None)
            if target is not None:
                images.append(x)
                targets.append(target)
    return (torch.stack(images[:2]), torch.tensor(targets[:2])) if images else (candidates[:0], None)


def relative_error(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-300)


@pytest.mark.architectures
def test_a_real_step(case):
    model, images, target, layers, attention = case
    # The mask takes part, so that the gradient is that of the whole expression.
    config = ICASCConfig(attention, order=2, mask_grad=True)
    parameters = dict(model.named_parameters())

    def objective():
        output = icasc_forward(model, images, target, layers, config)
        return output, output.weighted_sum(config)

    output, loss = objective()
    assert loss.isfinite() and all(values.isfinite().all() for values in output.terms.values())
    assert set(output.maps) == {'target_inner', 'confused_inner', 'target_last', 'confused_last'}
    for name, values in output.maps.items():
        assert values.shape[1:] == getattr(layers, name.split('_')[1]).grid
        assert (values.sum((1, 2)) > 0).all(), name
    for place in ('inner', 'last'):
        target_map, confused_map = output.maps[f'target_{place}'], output.maps[f'confused_{place}']
        shares = [m / m.sum((1, 2), keepdim=True) for m in (target_map, confused_map)]
        # Of one image: the maps of the other may have their one cell of 2 x 2 in common.
        assert ((shares[0] - shares[1]).abs().sum((1, 2)) > 1e-10).any(), f'{place} map independent of the class'

    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    gradients = dict(zip(parameters, gradients, strict=True))
    reached = {name for name, g in gradients.items() if g is not None and g.any()}
    with capture_features(model, [layers.inner], order=1) as features:
        model(images)
    inner = torch.autograd.grad(features[layers.inner.path].sum(), list(parameters.values()), allow_unused=True)
    before = {name for name, g in zip(parameters, inner, strict=True) if g is not None}
    assert reached & before and reached - before, 'the terms reach parameters before and behind the inner layer'

    directions = {name: torch.randn_like(p) * p.detach().abs().mean() for name, p in parameters.items()}

    def move(step):
        for name, p in parameters.items():
            p.data.add_(directions[name], alpha=step)

    def difference(step):
        move(step)
        above = objective()[1].item()
        move(-2 * step)
        below = objective()[1].item()
        move(step)
        return (above - below) / (2 * step)

    slope = sum((gradients[name] * directions[name]).sum() for name in reached).item()
    # Piecewise linear networks have a kink within any long step; rounding drowns the short ones, the more so where the
    # model computes in float32 inside (RMSNorm, rotary embeddings): one step must fit.
    errors = {}
    for step in (1e-7, 1e-8, 1e-6, 1e-5, 1e-4, 1e-9):
        errors[step] = relative_error(difference(step), slope)
        if errors[step] < 1e-3:
            break
    assert min(errors.values()) < 1e-3, (errors, slope)


@pytest.mark.architectures
def test_a_training_step_in_float32(case):
    model, images, target, _, _ = case
    task = ICASCTask(model.float().train(), order=2, verbose=False)
    result = task(images.float(), target)
    result['loss'].backward()
    assert all(value.isfinite().all() for value in result.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.architectures
@pytest.mark.parametrize('name', SMALLEST)
def test_the_grid_lies_on_the_image_as_the_pixels_do(name):
    """Noise in one quarter of the image changes that quarter of the inner feature more than noise elsewhere does."""
    size = SMALLEST[name] if SMALLEST[name] > 200 else 2 * SMALLEST[name]
    model = create(name, size).eval()
    layer = resolve_layers(model, input_size=(3, size, size)).inner
    images = torch.randn(4, 3, size, size)

    def feature(x):
        with torch.no_grad(), capture_features(model, [layer], order=1) as features:
            model(x)
        return layer.to_nchw(features[layer.path], x.shape[-2:]).detach().double()

    def change(row, column):
        """Of the four quarters of the feature, `[4]`."""
        rows, columns = (slice(i * size // 2, (i + 1) * size // 2) for i in (row, column))
        changed = images.clone()
        changed[:, :, rows, columns] = torch.randn_like(changed[:, :, rows, columns])
        difference = (feature(changed) - original).square().mean(1, keepdim=True)
        return torch.nn.functional.adaptive_avg_pool2d(difference, 2).mean(0).flatten()

    if name.startswith('levit'):
        pytest.skip('attends globally, without a residual, before it has learned where; see test_layers.py')
    original = feature(images)
    changes = torch.stack([change(row, column) for row in (0, 1) for column in (0, 1)])
    # Some quarters react more than others to anything (borders, padding), some noise is stronger: only the rest tells.
    for _ in range(20):
        changes = changes / changes.mean(0, keepdim=True)
        changes = changes / changes.mean(1, keepdim=True)
    assert changes.argmax(1).tolist() == [0, 1, 2, 3], changes
