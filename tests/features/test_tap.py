"""Taps exist inside the context only, and what they give is on the path to the logits."""
import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers.models import create
from torch.nn.attention import SDPBackend, sdpa_kernel

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    LayerResolutionError,
    attention_maps,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.double_backward import features_only, operations
from timm_icasc.double_backward import mode as capture
from timm_icasc.double_backward.mode import TwiceDifferentiable
from timm_icasc.features.tap import capture_features
from timm_icasc.task.public_approach import PublicApproachTask


def resolved(model, size=64):
    return resolve_layers(model, input_size=(3, size, size))


def test_features_are_on_the_path_to_the_logits(family):
    model, images, _ = family
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    with capture_features(model, layers) as features:
        logits = model(images)
    for gradient in torch.autograd.grad(logits.sum(), list(features.values())):
        assert gradient.isfinite().all() and gradient.any()


def test_a_forward_pass_of_another_thread_is_not_captured(toy):
    """As of a thread that measures the model meanwhile."""
    images, others = torch.randn(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    layers, logits = resolved(toy, 8), []
    with capture_features(toy, layers) as expected:
        toy(images)
    with capture_features(toy, layers) as features:
        toy(images)
        thread = threading.Thread(target=lambda: logits.append(toy(others)))
        thread.start()
        thread.join()
    assert len(logits) == 1
    for path, feature in features.items():
        torch.testing.assert_close(feature, expected[path])


def test_layers_in_the_wrong_order(toy):
    """Paths are refused when they are resolved; what is resolved is put together by hand."""
    images, target, layers = torch.randn(2, 3, 8, 8), torch.arange(2), resolved(toy, 8)
    with pytest.raises(LayerResolutionError, match="'stage' must come before 'stem'"):
        ICASCTask(toy, layers=layers[::-1])(images, target)
    assert ICASCTask(toy, layers=list(layers))(images, target)['loss'].isfinite()


@pytest.mark.parametrize('kwargs', [{}, {'run_plain': True}])
def test_layers_of_another_model(kwargs, toy):
    """As of the module around it; torch knows no attribute of that name."""
    layers = resolved(torch.nn.Sequential(toy), 8)
    with pytest.raises(LayerResolutionError, match="ToyNet has no layer '0.stem', which was found in another model"), (
            capture_features(toy, layers, **kwargs)):
        pass
    assert not any(module._forward_hooks for module in toy.modules())


def test_the_forward_values_do_not_change(family):
    model, images, _ = family
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    with torch.no_grad():
        expected = model(images)
    for order, inference in ((1, False), (2, False), (1, True)):
        with capture_features(model, layers, order=order, inference=inference):
            # The math kernel of attention rounds differently from the fused one.
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_no_hook_stays_not_even_after_an_error():
    model = create('resnet18').eval()
    layers = resolved(model)
    with capture_features(model, layers):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(RuntimeError), capture_features(model, layers):
        model(torch.zeros(1, 4, 64, 64))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_a_copy_of_the_model_made_inside_does_not_capture():
    model = create('resnet20_cifar').eval()
    with capture_features(model, resolved(model, 32)) as features:
        model(torch.zeros(1, 3, 32, 32))
    seen = dict(features)
    copy.deepcopy(model)(torch.ones(1, 3, 32, 32))
    assert {k: id(v) for k, v in features.items()} == {k: id(v) for k, v in seen.items()}


def test_leaves_stop_the_graph_and_restore_the_grad_mode():
    model = create('resnet18').eval()
    layers = resolved(model)
    with torch.no_grad():
        with capture_features(model, layers, order=1, inference=True) as features:
            logits = model(torch.randn(2, 3, 64, 64))
        assert not torch.is_grad_enabled()
    assert features['layer3'].is_leaf and not features['layer4'].is_leaf
    logits.sum().backward()
    assert model.conv1.weight.grad is None and model.fc.weight.grad is not None


def test_leaves_inside_inference_mode():
    model = create('resnet18').eval()
    layers = resolved(model)
    with torch.inference_mode():
        images = torch.randn(2, 3, 64, 64)
        with capture_features(model, layers, order=1, inference=True) as features:
            logits = model(images)
            assert torch.autograd.grad(logits.sum(), features['layer4'])[0].any()


def test_frozen_trunk_starts_the_graph_at_the_tap():
    """Also before an in-place operation, which a leaf would not survive."""
    model = create('vgg11_bn').eval()
    layers = resolve_layers(model, layers=('features.23', 'features.26'), input_size=(3, 64, 64))
    assert layers.inner.modified_in_place and layers.last.modified_in_place  # BatchNorm before ReLU(inplace=True)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    with capture_features(model, layers) as features:
        logits = model(torch.randn(1, 3, 64, 64))
    for gradient in torch.autograd.grad(logits.sum(), list(features.values())):
        assert gradient.any()


class WithoutGradients(torch.nn.Module):
    """A trunk that its user keeps as it is in training, by `torch.no_grad()`; of the trunk at most the last stage."""

    def __init__(self, tuned):
        super().__init__()
        trunk = create('resnet18')
        self.tuned = trunk.layer4 if tuned else torch.nn.Identity()
        trunk.layer4 = torch.nn.Identity() if tuned else trunk.layer4
        trunk.global_pool = trunk.fc = torch.nn.Identity()
        self.trunk, self.fc = trunk, torch.nn.Linear(512, 3)

    def forward(self, x):
        with torch.set_grad_enabled(not self.training):
            x = self.trunk(x)
        return self.fc(self.tuned(x).mean((2, 3)))


@pytest.mark.parametrize('tuned', [True, False])
def test_what_a_model_switches_off_is_not_trained(tuned):
    """It was: the tap switched gradients on, for what came behind it too."""
    model = WithoutGradients(tuned)
    layers = ('trunk.layer3', 'tuned') if tuned else ('trunk.layer3', 'trunk.layer4')
    task = ICASCTask(model, layers=layers, input_size=(3, 64, 64), verbose=False)
    images, target = torch.randn(2, 3, 64, 64), torch.arange(2)
    if tuned:
        task(images, target)['loss'].backward()
        assert all(parameter.grad is not None for parameter in model.tuned.parameters())
    else:
        with pytest.raises(ICASCError, match='used in training, and not under `torch.no_grad'):
            task(images, target)['loss'].backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())


@pytest.mark.parametrize('look', [
    lambda model, images, layers: attention_maps(model, images, topk=1, layers=layers, create_graph=True),
    lambda model, images, layers: icasc_forward(model, images, torch.arange(2), layers, ICASCConfig()),
    lambda model, images, layers: PublicApproachTask(model, layers=layers, verbose=False)(images, torch.arange(2)),
], ids=['maps', 'terms', 'public approach'])
def test_several_passes_in_training_alone(look, toy):
    """The probe runs in evaluation mode, where this model takes one; the map was of the mirror image alone."""
    class Mirrored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = toy

        def forward(self, x):
            return (self.net(x) + self.net(x.flip(3))) / 2 if self.training else self.net(x)

    model, images = Mirrored(), torch.randn(2, 3, 16, 16)
    layers = resolved(model, 16)
    with pytest.raises(LayerResolutionError, match=r"calls 'net\.st.*' several times .* the last call alone"):
        look(model.train(), images, layers)
    assert attention_maps(model.eval(), images, topk=1, layers=layers).isfinite().all()


@pytest.mark.parametrize('share', [0.5, 0.75])
def test_patches_that_are_left_are_no_map(share):
    """A quarter of them makes a grid of its own, of patches from anywhere."""
    model = create('vit_tiny_patch16_224', global_pool='avg', class_token=False, patch_drop_rate=share)
    images, layers = torch.randn(2, 3, 64, 64), resolved(model)
    with pytest.raises(LayerResolutionError, match='VisionTransformer drops patches in training'):
        icasc_forward(model.train(), images, torch.arange(2), layers, ICASCConfig())
    assert attention_maps(model.eval(), images, topk=1, layers=layers).shape[2:] == (4, 4)


def test_a_feature_that_is_overwritten_later_keeps_its_value():
    model = create('resnet18').eval()
    layers = resolve_layers(model, layers=('layer3.1.bn2', 'layer4.1.bn2'), input_size=(3, 64, 64))
    outputs = []
    handle = model.layer4[1].bn2.register_forward_hook(lambda m, a, output: outputs.append(output.detach().clone()))
    with capture_features(model, layers) as features:
        model(torch.randn(1, 3, 64, 64))
    handle.remove()
    assert torch.equal(features['layer4.1.bn2'], outputs[0])


def test_a_feature_that_is_overwritten_in_training_alone(toy):
    """The probe runs in evaluation mode, in which dropout does nothing."""
    images, target = torch.randn(2, 3, 16, 16), torch.arange(2)
    toy.stage.append(torch.nn.Dropout(0.5, inplace=True))
    task = ICASCTask(toy.train(), layers=('stem', 'stage.1'), verbose=False)
    with pytest.raises(LayerResolutionError, match="ToyNet overwrites the output of 'stage.1' in place"):
        task(images, target)
    toy.stage[2].inplace = False
    task(images, target)


class HardSigmoidNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stage = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1)
        self.gate, self.fc = torch.nn.Hardsigmoid(), torch.nn.Linear(4, 3)
        self.feature_info = [
            {'num_chs': 4, 'reduction': 2, 'module': 'stem'},
            {'num_chs': 4, 'reduction': 4, 'module': 'stage'}]

    def forward(self, x):
        x = self.stage(self.stem(x))
        return self.fc((x * self.gate(x)).mean((2, 3)))


class MultiheadNet(torch.nn.Module):
    """torch's own attention module, whose call of the fused kernel no function mode sees."""

    def __init__(self):
        super().__init__()
        self.stem, self.stage = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1)
        self.attention, self.fc = torch.nn.MultiheadAttention(4, 2, batch_first=True), torch.nn.Linear(4, 3)
        self.feature_info = [
            {'num_chs': 4, 'reduction': 2, 'module': 'stem'},
            {'num_chs': 4, 'reduction': 4, 'module': 'stage'}]

    def forward(self, x):
        x = self.stage(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize('model, size', [
    (HardSigmoidNet(), 16), (MultiheadNet(), 16), ('vit_tiny_patch16_224', 64), ('swin_tiny_patch4_window7_224', 64)])
def test_double_backward_where_torch_has_none(model, size):
    model = (create(model) if isinstance(model, str) else model).eval()
    with capture_features(model, resolved(model, size)) as features:
        logits = model(torch.randn(2, 3, size, size))
    gradients = torch.autograd.grad(logits.square().sum(), list(features.values()), create_graph=True)
    sum(g.square().sum() for g in gradients).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_hardsigmoid_keeps_its_values():
    x = torch.linspace(-5, 5, 101)
    model = HardSigmoidNet().eval()
    with capture_features(model, resolved(model, 16)):
        model(torch.zeros(1, 3, 16, 16))
        torch.testing.assert_close(F.hardsigmoid(x), torch.clamp(x / 6 + 0.5, 0, 1))


def test_only_the_tail_runs_by_equivalents_and_only_at_order_2(monkeypatch):
    """Two of twelve blocks and the rest of a third stand behind the inner layer."""
    calls = []
    original = operations.attention
    monkeypatch.setattr(operations, 'attention', lambda *args: calls.append(args) or original(*args))
    model = create('vit_tiny_patch16_224').eval()
    layers = resolved(model)
    for order, expected in ((1, 0), (2, 3)):  # the inner layer is blocks.8: blocks 9, 10, 11 follow
        calls.clear()
        with capture_features(model, layers, order=order):
            model(torch.zeros(1, 3, 64, 64))
        assert len(calls) == expected


@pytest.mark.parametrize('operation, args, kwargs', [
    pytest.param(
        F.conv2d, [(2, 4, 6, 6), (8, 2, 3, 3), (8,)], {'stride': (2, 1), 'padding': 1, 'groups': 2},
        id='grouped convolution'),
    pytest.param(F.conv2d, [(2, 4, 6, 6), (8, 4, 3, 3)], {'padding': 'same'}, id='padding in words'),
    pytest.param(F.conv2d, [(4, 6, 6), (8, 4, 3, 3)], {}, id='an image without a batch'),
    pytest.param(
        F.batch_norm, [(4, 3, 5)], {'running_mean': None, 'running_var': None, 'training': True},
        id='batch norm'),
    pytest.param(F.layer_norm, [(4, 3, 5)], {'normalized_shape': (3, 5)}, id='layer norm'),
    pytest.param(F.gelu, [(2, 5)], {}, id='gelu'),
    pytest.param(F.gelu, [(2, 5)], {'approximate': 'tanh'}, id='gelu by tanh'),
    pytest.param(F.silu, [(2, 5)], {'inplace': True}, id='silu in place'),
    pytest.param(F.scaled_dot_product_attention, [(2, 3, 5, 4)] * 3, {'scale': 0.3}, id='attention'),
    pytest.param(F.scaled_dot_product_attention, [(2, 3, 5, 4)] * 3 + [(5, 5)], {}, id='attention with a bias'),
    pytest.param(F.scaled_dot_product_attention, [(2, 3, 5, 4)] * 3, {'is_causal': True}, id='causal attention'),
])
def test_equivalents_have_the_values_and_both_derivatives_of_the_operation(operation, args, kwargs):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in args]
    weight = torch.randn_like(operation(*[x.clone() for x in inputs], **kwargs))

    def derivatives():
        with sdpa_kernel(SDPBackend.MATH):  # the only one of torch's own that can be differentiated twice
            output = operation(*[x.clone() for x in inputs], **kwargs)
        first = torch.autograd.grad((output.square() * weight).sum(), inputs, create_graph=True)
        return output, *first, *torch.autograd.grad(sum((g ** 3).sum() for g in first), inputs)

    expected = derivatives()
    with TwiceDifferentiable(checkpointing=False):
        found = derivatives()
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs)


def overwritten(operation, part=slice(None)):
    """What `x` is after an operation in place whose answer nobody takes, beside what `x` was called before."""
    def function(x):
        x = before = x * 2
        operation(x if part == slice(None) else x[:, part], inplace=True)
        return x * before
    return function


@pytest.mark.parametrize('operation, order', [
    pytest.param(overwritten(F.silu), 2, id='silu'),
    pytest.param(overwritten(F.silu, slice(0, 2)), 2, id='silu of a view'),
    pytest.param(overwritten(F.hardsigmoid), 1, id='hardsigmoid'),  # torch's has no second derivative
])
def test_in_place_means_in_place(operation, order):
    def derivatives():
        x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4).requires_grad_()
        results = [operation(x)]
        for _ in range(order):
            results += torch.autograd.grad(results[-1].pow(3).sum(), x, create_graph=True)
        return results

    expected = derivatives()
    with TwiceDifferentiable(checkpointing=False):
        found = derivatives()
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize('operation', [
    lambda x: F.conv2d(x, x.mean((0, 2, 3)).reshape(1, -1, 1, 1)),
    lambda x: F.batch_norm(x, None, None, x.mean((0, 2, 3)), None, True),
    lambda x: F.layer_norm(x, (3,), x.mean((0, 1, 2)), None),
], ids=['convolution', 'batch norm', 'layer norm'])
def test_a_weight_made_from_features_passes_their_gradient_on(operation):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    expected, = torch.autograd.grad(operation(x).pow(3).sum(), x)
    with TwiceDifferentiable(checkpointing=False):
        score = operation(x).pow(3).sum()
    with features_only(score):
        found, = torch.autograd.grad(score, x)
    torch.testing.assert_close(found, expected)


def test_batch_norm_of_one_value_a_channel_is_refused_as_torch_does():
    with TwiceDifferentiable(checkpointing=False), pytest.raises(ValueError, match='more than 1 value per channel'):
        F.batch_norm(torch.zeros(1, 3, 1, 1), None, None, training=True)


def test_equivalents_follow_autocast():
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    convolution, norm = torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.BatchNorm2d(4)
    with torch.autocast('cpu', torch.bfloat16), TwiceDifferentiable(checkpointing=False):
        assert convolution(x).dtype == norm(convolution(x)).dtype == torch.bfloat16
        first, = torch.autograd.grad(F.layer_norm(x, (6,)).pow(2).sum(), x, create_graph=True)
        first.pow(2).sum().backward()  # some call backward inside
        assert F.layer_norm(x, (6,)).dtype == x.grad.dtype == torch.float32
        assert F.scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16
        assert F.gelu(x).dtype == torch.float32


@pytest.mark.parametrize('name', ['resnet20_cifar', 'vit_tiny_patch16_224', 'convnext_atto'])
def test_a_step_with_norms_of_our_own_has_the_gradients_of_one_with_torchs(name, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    size = 32 if name == 'resnet20_cifar' else 64
    images, target = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64), torch.arange(2)

    def gradients():
        model = create(name).double().train()
        ICASCTask(model, input_size=(3, size, size), verbose=False)(images, target)['loss'].backward()
        return [p.grad for p in model.parameters()]
    found = gradients()
    for norm in (F.batch_norm, F.layer_norm):
        monkeypatch.delitem(capture.EQUIVALENTS, norm)
    for ours, torchs in zip(found, gradients(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)


def test_checkpointed_attention_at_order_2_is_refused():
    model = create('vit_tiny_patch16_224').eval()
    model.set_grad_checkpointing(True)
    with pytest.raises(ICASCError, match='order=2 does not work with gradient checkpointing'):
        with capture_features(model, resolved(model), order=2):
            model(torch.zeros(1, 3, 64, 64))
