"""The whole objective against one-image-at-a-time loops and finite differences."""
import dataclasses
import math

import pytest
import torch
from conftest import ToyNet, create

import timm_icasc.objective as objective
from timm_icasc import ICASCConfig, TargetError, attention_maps, icasc_forward, resolve_layers
from timm_icasc.attention import channel_weighted, grad_cam
from timm_icasc.targets import select_classes


def double_batch(batch=3, size=16, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(num_classes, (batch,), generator=generator)


def layers_of(model, images):
    return resolve_layers(model, input_size=tuple(images.shape[1:]))


class TestSelectClasses:
    logits = torch.tensor([[3., 1., 2., 0.], [0., 5., 4., 6.]])

    def chosen(self, target):
        pair = select_classes(self.logits, target)
        assert (pair.target.sum(1) == 1).all() and (pair.confused.sum(1) == 1).all()
        return pair.target.argmax(1).tolist(), pair.confused.argmax(1).tolist()

    def test_indices(self):
        assert self.chosen(torch.tensor([0, 3])) == ([0, 3], [2, 1])
        assert self.chosen(torch.tensor([1, 2])) == ([1, 2], [0, 3])

    def test_one_hot_equals_indices(self):
        target = torch.tensor([1, 2])
        assert self.chosen(torch.nn.functional.one_hot(target, 4).float()) == self.chosen(target)

    def test_mixup_with_smoothing(self):
        """The dominant class is the target; the other mixed class is never the confused one, the floor is no mass."""
        smooth = 0.1 / 4
        target = torch.full((2, 4), smooth)
        target[0, 1], target[0, 0] = 0.6, 0.35  # class 0, of highest score, is mixed in
        target[1, 3], target[1, 1] = 0.5, 0.45
        assert self.chosen(target) == ([1, 3], [2, 2])

    def test_uniform_targets_are_not_valid(self):
        pair = select_classes(self.logits, torch.full((2, 4), 0.25))
        assert pair.valid.tolist() == [False, False]

    @pytest.mark.parametrize('target, message', [
        (torch.tensor([0, 4]), 'holds class 4, but the model has classes 0 to 3.*--num-classes'),
        (torch.tensor([-1, 0]), 'holds class -1'),
        (torch.tensor([0, 1, 2]), r'\[B\] or class probabilities \[B, C\].*torch.int64 \(3,\)'),
        (torch.tensor([0., 1.]), r'torch.float32 \(2,\)'),
        (torch.zeros(2, 3), r'torch.float32 \(2, 3\)'),
        (torch.zeros(2, 4, dtype=torch.long), r'torch.int64 \(2, 4\)'),
        (torch.tensor([True, False]), r'torch.bool \(2,\)'),
    ])
    def test_bad_targets_are_named(self, target, message):
        with pytest.raises(TargetError, match=message):
            select_classes(self.logits, target)

    def test_one_class_is_not_enough(self):
        with pytest.raises(TargetError, match='second class'):
            select_classes(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


def reference_terms(model, images, present, absent, layers, method):
    """Eqs. 1-5 with default options: one image at a time, sums as Python loops.

    `present` are the classes of each image, whose scores are summed; the confused class is one of those `absent`.
    """
    inner_path, last_path = layers.inner.path, layers.last.path
    rows = []
    for image, targets, others in zip(images, present, absent, strict=True):
        taps = {}
        handles = [
            model.get_submodule(p).register_forward_hook(lambda m, a, o, p=p, taps=taps: taps.__setitem__(p, o))
            for p in (inner_path, last_path)]
        logits = model(image[None])[0]
        for handle in handles:
            handle.remove()
        confused = max(others, key=lambda c: logits[c].item())

        def attention(path, classes, taps=taps, logits=logits):
            gradient = sum(torch.autograd.grad(logits[c], taps[path], retain_graph=True)[0][0] for c in classes)
            feature = taps[path][0].detach()
            channels, height, width = feature.shape
            result = [[0.] * width for _ in range(height)]
            for k in range(channels):
                weight = 0.
                for i in range(height):
                    for j in range(width):
                        g = gradient[k, i, j].item()
                        weight += (max(g, 0.) if method == 'ach' else g) / (height * width)
                for i in range(height):
                    for j in range(width):
                        result[i][j] += weight * feature[k, i, j].item()
            return torch.tensor([[max(v, 0.) for v in row] for row in result], dtype=torch.float64)

        a_last, c_last, a_inner, c_inner = (
            attention(p, c) for p in (last_path, inner_path) for c in (targets, [confused]))
        maximum = a_last.max().item()
        # A map without attention (the toy net's Grad-CAM has such) leaves the sigmoid at 0.
        mask = torch.tensor(
            [[1 / (1 + math.exp(-100. * (v / maximum - 0.55))) if maximum else 0.5 for v in row]
             for row in a_last.tolist()], dtype=torch.float64)
        inner_mask = torch.nn.functional.interpolate(
            mask[None, None], size=tuple(a_inner.shape), mode='bilinear', align_corners=False)[0, 0]

        def loop_sum(x):
            return sum(v for row in x.tolist() for v in row)

        def ratio(x, y):
            return x / y if y else 0.

        def separation(a, c, m):
            overlap = [[min(x, y) * z for x, y, z in zip(*r, strict=True)]
                       for r in zip(a.tolist(), c.tolist(), m.tolist(), strict=True)]
            return ratio(2 * loop_sum(torch.tensor(overlap, dtype=torch.float64)), loop_sum(a) + loop_sum(c))

        rows.append({
            'as_inner': separation(a_inner, c_inner, inner_mask), 'as_last': separation(a_last, c_last, mask),
            'ac': 0.8 - ratio(loop_sum(a_inner * inner_mask), loop_sum(a_inner))})
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


@pytest.mark.parametrize('attention', ['ach', 'grad_cam'])
@pytest.mark.parametrize('name', ['toy', 'resnet20_cifar', 'convnext_atto'])
def test_terms_equal_one_image_at_a_time_loops(name, attention, toy):
    model = (toy if name == 'toy' else create(name)).double().eval()
    images, target = double_batch(size=64 if name == 'convnext_atto' else 32)
    layers = layers_of(model, images)
    output = icasc_forward(model, images, target, layers, ICASCConfig(attention=attention, order=2))
    present = [[t] for t in target.tolist()]
    absent = [[c for c in range(output.logits.shape[1]) if c not in t] for t in present]
    expected = reference_terms(model, images, present, absent, layers, attention)
    assert set(output.terms) == set(expected)
    for term, values in expected.items():
        torch.testing.assert_close(output.terms[term].detach(), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('name', ['toy', 'resnet20_cifar'])
def test_permuting_the_batch_permutes_every_value_and_nothing_else(name, order, toy):
    model = (toy if name == 'toy' else create(name)).double().eval()
    images, target = double_batch(batch=5, size=32)
    layers, config, permutation = layers_of(model, images), ICASCConfig(order=order), torch.tensor([3, 1, 4, 0, 2])
    one = icasc_forward(model, images, target, layers, config)
    other = icasc_forward(model, images[permutation], target[permutation], layers, config)
    for ours, theirs in ((one.terms, other.terms), (one.maps, other.maps)):
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key][permutation], rtol=1e-10, atol=1e-14)
    grads = [torch.autograd.grad(o.weighted_sum(config), list(model.parameters()), allow_unused=True)
             for o in (one, other)]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def objective_value(model, images, target, layers, config):
    output = icasc_forward(model, images, target, layers, config)
    return torch.nn.functional.cross_entropy(output.logits, target) + output.weighted_sum(config)


def directional_derivatives(model, value, directions=3, step=1e-6):
    """(analytical, central difference) of `value()` along random directions in parameter space."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    generator = torch.Generator().manual_seed(7)
    for _ in range(directions):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for p in parameters]
        analytical = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(sign * step * d)
            values.append(value().item())
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(sign * step * d)
        yield analytical, (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize('attention', ['ach', 'grad_cam'])
@pytest.mark.parametrize('name', ['resnet20_cifar', 'convnext_atto', 'vit_tiny_patch16_224'])
def test_order_2_parameter_gradient_equals_finite_differences(name, attention):
    """Cross-entropy and every term at once, the mask included, on real timm architectures in float64."""
    model = create(name).double().eval()
    torch.manual_seed(3)
    for p in model.parameters():  # LayerScale and biases away from their trivial initial values
        p.data.add_(0.02 * torch.randn_like(p))
    images, target = double_batch(batch=2, size=32 if 'cifar' in name else 64)
    layers = layers_of(model, images)
    # A gentle mask: at omega = 100 its own curvature would need smaller steps than float64 allows.
    config = ICASCConfig(attention=attention, order=2, mask_grad=True, omega=5.)
    for analytical, numerical in directional_derivatives(
            model, lambda: objective_value(model, images, target, layers, config)):
        assert analytical == pytest.approx(numerical, rel=2e-5, abs=1e-7)


def test_mask_without_gradient_is_a_constant(monkeypatch, toy):
    """mask_grad=False: finite differences with the mask held where it is."""
    model = toy.double().eval()
    images, target = double_batch()
    layers, config = layers_of(model, images), ICASCConfig(order=2, omega=5.)
    fixed = []
    original = objective.target_mask
    monkeypatch.setattr(objective, 'target_mask', lambda *args: fixed[0] if fixed else original(*args).detach())
    fixed.append(original(icasc_forward(model, images, target, layers, config).maps['target_last'].detach(), omega=5.))
    held = list(directional_derivatives(model, lambda: objective_value(model, images, target, layers, config)))
    monkeypatch.setattr(objective, 'target_mask', original)
    parameters = list(model.parameters())
    free = torch.autograd.grad(objective_value(model, images, target, layers, config), parameters)
    moving = torch.autograd.grad(
        objective_value(model, images, target, layers, dataclasses.replace(config, mask_grad=True)), parameters)
    for analytical, numerical in held:
        assert analytical == pytest.approx(numerical, rel=1e-6)
    generator = torch.Generator().manual_seed(7)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for p in parameters]
    along = [sum((g * d).sum() for g, d in zip(grads, direction, strict=True)).item() for grads in (free, moving)]
    assert along[0] == pytest.approx(held[0][1], rel=1e-6)
    assert along[1] != pytest.approx(held[0][1], rel=1e-3)


def test_order_1_takes_the_channel_weights_as_constants(toy):
    model = toy.double().eval()
    images, target = double_batch()
    layers = layers_of(model, images)
    outputs = {order: icasc_forward(model, images, target, layers, ICASCConfig(order=order)) for order in (1, 2)}
    for name in outputs[1].maps:
        assert torch.equal(outputs[1].maps[name], outputs[2].maps[name])
    head = {order: torch.autograd.grad(
        output.weighted_sum(ICASCConfig()), model.fc.weight, allow_unused=True)[0]
        for order, output in outputs.items()}
    assert head[1] is None, 'the head acts on the maps through the channel weights alone'
    assert head[2].any()


@pytest.mark.parametrize('weights, maps', [
    ({'weight_as_inner': 0.}, {'target_last', 'confused_last', 'target_inner'}),
    ({'weight_as_last': 0.}, {'target_last', 'target_inner', 'confused_inner'}),
    ({'weight_ac': 0.}, {'target_last', 'confused_last', 'target_inner', 'confused_inner'}),
    ({'weight_as_inner': 0., 'weight_ac': 0.}, {'target_last', 'confused_last'}),
    ({'weight_as_inner': 0., 'weight_as_last': 0.}, {'target_last', 'target_inner'}),
    ({'weight_as_inner': 0., 'weight_as_last': 0., 'weight_ac': 0.}, set()),
])
def test_a_term_of_weight_zero_is_not_computed(weights, maps, toy):
    """Table 3's ablations: neither its maps nor the gradients behind them; the other terms keep their values."""
    images, target = (x for x in double_batch())
    model = toy.double().eval()
    layers = layers_of(model, images)
    everything = icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    output = icasc_forward(model, images, target, layers, ICASCConfig(order=2, **weights))
    assert set(output.maps) == maps
    assert {f'weight_{name}' for name in output.terms}.isdisjoint(weights)
    assert len(output.terms) == 3 - len(weights)
    for name, values in output.terms.items():
        torch.testing.assert_close(values, everything.terms[name])


def test_class_gradients_stop_at_the_inner_layer(toy):
    """Nothing before the inner layer is traversed: a stem whose backward fails does not matter to order 1's maps."""
    class Forbidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError('traversed the part before the inner layer')

    images, target = double_batch()
    model = toy.double().eval()
    layers = layers_of(model, images)
    model.stem.register_forward_pre_hook(lambda module, args: (Forbidden.apply(args[0].requires_grad_()),))
    icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    attention_maps(model, images, layer='inner')


@pytest.mark.parametrize('field, value', [
    ('weight_ac', '1'), ('theta', float('nan')), ('omega', float('inf')), ('sigma', 1.5),
    ('attention', 'grad_cam_plus_plus'), ('order', 3), ('mask_scale', 'mean'), ('weight_ac', -1.),
    ('weight_as_last', float('nan'))])
def test_bad_parameters_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        ICASCConfig(**{field: value})


def test_leaves_give_the_same_values_without_a_graph():
    model = create('resnet20_cifar').eval()
    images, target = torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    layers = layers_of(model, images)
    expected = icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    with torch.inference_mode():
        output = icasc_forward(model, images, target, layers, ICASCConfig(), leaves=True)
    for name, values in output.terms.items():
        assert not values.requires_grad
        torch.testing.assert_close(values, expected.terms[name].detach())
    assert not output.logits.requires_grad


class TestAttentionMaps:

    def test_shape_and_order_of_the_predicted_classes(self, family):
        model, images, (_, _, _, inner_grid, last_grid) = family
        maps = attention_maps(model, images, topk=3)
        assert maps.shape == (2, 3, *last_grid) and (maps >= 0).all() and not maps.requires_grad
        assert attention_maps(model, images, topk=1, layer='inner').shape == (2, 1, *inner_grid)
        top = model(images).topk(3).indices
        assert torch.equal(attention_maps(model, images, classes=top), maps)

    def test_forms_of_classes(self, toy):
        images = torch.randn(2, 3, 16, 16)
        per_image = attention_maps(toy, images, classes=torch.tensor([[0, 2], [0, 2]]))
        assert torch.equal(attention_maps(toy, images, classes=[0, 2]), per_image)
        assert torch.equal(attention_maps(toy, images, classes=2), per_image[:, 1:])
        assert attention_maps(toy, images, topk=99).shape[1] == 4

    @pytest.mark.parametrize('method, function', [('ach', channel_weighted), ('grad_cam', grad_cam)])
    def test_differentiable_with_create_graph(self, method, function, toy):
        toy.double()
        images, target = double_batch()
        maps = attention_maps(toy, images, classes=target[:, None], method=method, create_graph=True)[:, 0]
        features = toy.stage(toy.stem(images))
        scores = toy.fc(features.square().mean((2, 3))).gather(1, target[:, None]).sum()
        expected = function(features, torch.autograd.grad(scores, features, create_graph=True)[0])
        parameters = list(toy.parameters())[:-1]  # the head's bias does not enter
        for a, b in zip(torch.autograd.grad(maps.sum(), parameters),
                        torch.autograd.grad(expected.sum(), parameters), strict=True):
            torch.testing.assert_close(a, b)

    def test_leaves_no_gradient_and_works_in_inference_mode(self, toy):
        images = torch.randn(2, 3, 16, 16)
        with torch.inference_mode():  # first, so that the layers are resolved in there as well
            maps = attention_maps(toy, images)
        torch.testing.assert_close(maps, attention_maps(toy, images))
        assert all(p.grad is None for p in toy.parameters())

    def test_explicit_layers(self, toy):
        images = torch.randn(2, 3, 16, 16)
        maps = attention_maps(toy, images, layers=('stem.0', 'stem'), layer='last', topk=1)
        assert maps.shape == (2, 1, 8, 8)

    @pytest.mark.parametrize('arguments, error, message', [
        ({'method': 'gradcam'}, ValueError, "method must be one of .*'gradcam'"),
        ({'layer': 'layer4'}, ValueError, "layer must be 'inner' or 'last'"),
        ({'classes': 4}, TargetError, '0 to 3'),
        ({'topk': 0}, ValueError, 'topk must be at least 1'),
        ({'classes': torch.zeros(3, 1, dtype=torch.long)}, TargetError, r'\[B, K\] per image \(B = 2\)'),
        ({'classes': [0.5]}, TargetError, 'torch.float32'),
    ])
    def test_bad_arguments_are_named(self, arguments, error, message, toy):
        with pytest.raises(error, match=message):
            attention_maps(toy, torch.randn(2, 3, 16, 16), **arguments)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'convnext_atto', 'resnet20_cifar'])
def test_the_score_scale_of_float16_is_divided_out(name):
    """Also where features stay float32 behind half-precision layers: residual streams, LayerNorm."""
    model = create(name).eval()
    images = torch.randn(2, 3, 32 if 'cifar' in name else 64, 32 if 'cifar' in name else 64)
    expected = attention_maps(model, images, classes=1)
    with torch.autocast('cpu', dtype=torch.float16), torch.backends.mkldnn.flags(enabled=False):
        maps = attention_maps(model, images, classes=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0.1 * expected.max().item())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_maps_stay_close_to_float32(dtype):
    """The score is scaled in fp16, so that gradients of 1e-6 survive; the scale is divided out."""
    torch.manual_seed(0)
    model = ToyNet().eval()
    model.fc.weight.data.mul_(1e-4)
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    layers, config = layers_of(model, images), ICASCConfig(order=1)
    expected = icasc_forward(model, images, target, layers, config)
    # Not every CPU can run the half-precision convolutions of oneDNN; torch's own run everywhere.
    with torch.autocast('cpu', dtype=dtype), torch.backends.mkldnn.flags(enabled=False):
        output = icasc_forward(model, images, target, layers, config)
    for name, values in expected.maps.items():
        assert output.maps[name].dtype == torch.float32
        scale = values.max().item()
        torch.testing.assert_close(output.maps[name], values, rtol=0, atol=0.03 * scale)
