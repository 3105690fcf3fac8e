"""Checks of the registered architectures, after timm's own tests of its models."""
import pytest
import timm
import torch
import torch.nn as nn
from helpers.models import made_once
from helpers.versions import recent_timm
from timm.layers import DropPath, set_scriptable
from timm.models import FeatureInfo, group_parameters

import timm_icasc.models  # noqa: F401  registers the architectures
from timm_icasc.models.preact_resnet_cifar import _create_preact_resnet_cifar
from timm_icasc.models.resnet_cifar import ZeroPadShortcut

# number of weight layers, shortcuts not counted
DEPTHS = {
    'resnet20_cifar': 20,
    'resnet32_cifar': 32,
    'resnet56_cifar': 56,
    'resnet110_cifar': 110,
    'preact_resnet164_cifar': 164,
    'resnet18_cifar': 18,
}
MODELS = list(DEPTHS)
# one architecture of each class, for the checks that do not depend on the depth
CLASS_MODELS = ['resnet20_cifar', 'preact_resnet164_cifar', 'resnet18_cifar']
# the others differ from resnet20_cifar in the number of blocks alone
MODELS_BY_CLASS = [pytest.param(m, marks=[] if m in CLASS_MODELS else pytest.mark.slow) for m in MODELS]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _shallow(model_name: str, **kwargs) -> nn.Module:
    """A model of that class with few blocks, for the checks that do not depend on the depth."""
    if model_name == 'preact_resnet164_cifar':
        return _create_preact_resnet_cifar(model_name, 20, **kwargs)
    return timm.create_model(model_name, **kwargs, **({'layers': (1,) * 4} if model_name == 'resnet18_cifar' else {}))


def _residual_blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'drop_path')]


def _hooked_features(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the model with a forward hook on each feature_info module."""
    features = []
    handles = [
        model.get_submodule(info['module']).register_forward_hook(lambda m, args, out: features.append(out))
        for info in model.feature_info
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, features


def _params_resnet_cifar(depth: int, num_classes: int) -> int:
    """Sum of the layers of arXiv 1512.03385, section 4.2: 3x3 convolutions with a BN each and a linear classifier."""
    n = (depth - 2) // 6
    chs = [3, 16] + [width for width in (16, 32, 64) for _ in range(2 * n)]
    conv = sum(9 * in_chs * out_chs for in_chs, out_chs in zip(chs, chs[1:], strict=False))
    return conv + 2 * sum(chs[1:]) + (chs[-1] + 1) * num_classes


def _params_preact_resnet_cifar(depth: int, num_classes: int) -> int:
    """Sum of the layers of arXiv 1603.05027, appendix: a BN before each layer but the stem and the shortcuts."""
    n = (depth - 2) // 9
    total, in_chs = 9 * 3 * 16, 16
    for out_chs in (64, 128, 256):
        mid_chs = out_chs // 4
        total += in_chs * out_chs  # projection shortcut
        for _ in range(n):
            total += in_chs * mid_chs + 9 * mid_chs * mid_chs + mid_chs * out_chs
            total += 2 * (in_chs + mid_chs + mid_chs)
            in_chs = out_chs
    return total + 2 * in_chs + (in_chs + 1) * num_classes


# Registry and construction

def test_registered():
    assert set(MODELS) <= set(timm.list_models())
    assert set(timm.list_models(module='resnet_cifar')) == set(MODELS[:4])
    assert not set(MODELS) & set(timm.list_models(pretrained=True))


@recent_timm
@pytest.mark.parametrize('model_name', MODELS)
def test_default_cfg_values(model_name):
    model = made_once(model_name)
    cfg = model.pretrained_cfg
    assert model.default_cfg == cfg
    assert (cfg['architecture'], cfg['url'], cfg['license']) == (model_name, '', 'apache-2.0')
    assert (cfg['num_classes'], cfg['input_size']) == (100, (3, 32, 32))
    assert (cfg['crop_pct'], cfg['interpolation']) == (1.0, 'bilinear')
    assert (cfg['mean'], cfg['std']) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert (model.num_classes, model.in_chans) == (100, 3)


@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_pretrained_fails(model_name):
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):
        timm.create_model(model_name, pretrained=True)


@pytest.mark.parametrize('model_name', MODELS)
def test_depth(model_name):
    model = made_once(model_name)
    convs = [
        n for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and 'downsample' not in n and m is not model.get_classifier()
    ]
    assert len(convs) + 1 == DEPTHS[model_name]  # 1 for the classifier


@pytest.mark.parametrize('num_classes', [10, 100])
@pytest.mark.parametrize('model_name', MODELS[:5])
def test_num_params(model_name, num_classes):
    model = made_once(model_name, num_classes=num_classes)
    formula = _params_preact_resnet_cifar if model_name.startswith('preact') else _params_resnet_cifar
    assert sum(p.numel() for p in model.parameters()) == formula(DEPTHS[model_name], num_classes)


def test_num_params_formula():
    # millions of parameters in table 6 of arXiv 1512.03385, and of ResNet-164
    for depth, millions in {20: 0.27, 32: 0.46, 56: 0.85, 110: 1.7}.items():
        assert _params_resnet_cifar(depth, 10) / 1e6 == pytest.approx(millions, abs=0.03)
    assert _params_preact_resnet_cifar(164, 10) / 1e6 == pytest.approx(1.7, abs=0.03)
    # option B, a 1x1 convolution and a BN in place of each of the two zero-padded shortcuts, has more
    option_b = _params_resnet_cifar(110, 10) + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert option_b == 1_730_714


def test_resnet18_cifar_state_dict():
    ours = made_once('resnet18_cifar', num_classes=10).state_dict()
    theirs = made_once('resnet18', num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ['conv1.weight']


def test_resnet18_cifar_rejects_stem_options():
    with pytest.raises(TypeError):
        made_once('resnet18_cifar', stem_type='deep')


@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_conv_init(model_name):
    # Kaiming fan out, the tolerance allows for the convolutions with the fewest weights, 256
    model = made_once(model_name)
    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m is not model.get_classifier():
            fan_out = m.out_channels * m.kernel_size[0] * m.kernel_size[1]
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_dtype(model_name):
    model = _shallow(model_name, dtype=torch.float64).eval()
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


# Option A shortcut

@pytest.mark.parametrize('size', [(4, 6), (5, 7)])
@pytest.mark.parametrize('in_chs, out_chs, stride', [(3, 3, 2), (2, 5, 1), (2, 4, 2)])
def test_zero_pad_shortcut(in_chs, out_chs, stride, size):
    x = torch.randn(2, in_chs, *size)
    out = ZeroPadShortcut(in_chs, out_chs, stride)(x)
    expected = torch.zeros(2, out_chs, -(-size[0] // stride), -(-size[1] // stride))
    for b in range(2):
        for c in range(in_chs):
            for i in range(expected.shape[2]):
                for j in range(expected.shape[3]):
                    expected[b, c, i, j] = x[b, c, i * stride, j * stride]
    assert torch.equal(out, expected)


def test_zero_pad_shortcut_only_widens():
    with pytest.raises(AssertionError):
        ZeroPadShortcut(4, 2)


def test_shortcuts_have_no_params():
    model = made_once('resnet56_cifar')
    shortcuts = {n: m for n, m in model.named_modules() if isinstance(m, ZeroPadShortcut)}
    assert set(shortcuts) == {'layer2.0.downsample', 'layer3.0.downsample'}
    assert not any(m.state_dict() for m in shortcuts.values())


# Regularization

@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_drop_path_rates(model_name):
    model = made_once(model_name, drop_path_rate=0.3)
    rates = [m.drop_path.drop_prob if isinstance(m.drop_path, DropPath) else 0. for m in _residual_blocks(model)]
    num_blocks = {'resnet20_cifar': 9, 'preact_resnet164_cifar': 54, 'resnet18_cifar': 8}[model_name]
    assert rates == pytest.approx([0.3 * i / (num_blocks - 1) for i in range(num_blocks)])


@pytest.mark.parametrize('option', ['drop_rate', 'drop_path_rate'])
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_drop_is_random_in_training(model_name, option):
    x = torch.randn(8, 3, 16, 16)
    # zero-init of the last BN would make the residual branches, and dropping them, void
    zero_init_args = dict(zero_init_last=False) if model_name == 'resnet18_cifar' else {}
    model = _shallow(model_name, **{option: 0.5}, **zero_init_args).train()
    assert not torch.allclose(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# Forward, backward and head

@pytest.mark.parametrize('model_name', MODELS)
def test_forward(model_name):
    model = made_once(model_name).eval()
    out = model(torch.randn(1, 3, 32, 32))
    assert out.shape == (1, 100)
    assert torch.isfinite(out).all()
    assert model(torch.randn(1, 3, 33, 30)).shape == (1, 100)  # sizes that strides do not divide


@pytest.mark.parametrize('model_name', MODELS_BY_CLASS)
def test_backward(model_name):
    model = made_once(model_name, num_classes=42).train()
    out = model(torch.randn(2, 3, 32, 32))
    out.mean().backward()
    assert out.shape == (2, 42)
    for n, p in model.named_parameters():
        assert p.grad is not None, f'No gradient for {n}'
        assert torch.isfinite(p.grad).all(), f'Gradient of {n} is not finite'


@recent_timm
@pytest.mark.parametrize('model_name', MODELS_BY_CLASS)
def test_default_cfgs(model_name):
    model = made_once(model_name).eval()
    state_dict = model.state_dict()
    cfg = model.default_cfg
    x = torch.randn(1, *cfg['input_size'])

    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg['pool_size'])
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)

    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, '')
    assert model(x).shape == features.shape
    model.reset_classifier(7, 'catavgmax')
    assert model(x).shape == (1, model.num_classes) == (1, 7)
    assert model.head_hidden_size == 2 * model.num_features

    for key in (cfg['classifier'], cfg['first_conv']):
        assert f'{key}.weight' in state_dict
    assert model.get_submodule(cfg['classifier']) is model.get_classifier()


@recent_timm
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_in_chans(model_name):
    model = _shallow(model_name, in_chans=1).eval()
    assert model.in_chans == 1
    assert model.get_submodule(model.default_cfg['first_conv']).in_channels == 1
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 100)


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning', 'ignore:.*torch.jit:FutureWarning')
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_torchscript(model_name):
    with set_scriptable(True):
        model = _shallow(model_name, drop_rate=0.1, drop_path_rate=0.1).eval()
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_grad_checkpointing(model_name):
    x = torch.randn(2, 3, 32, 32)
    model = _shallow(model_name).train()
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        # the intermediates have their own pass over the stages
        features, _ = model.forward_intermediates(x)
        out = model(x)
        (out.square().sum() + features.square().mean()).backward()
        results.append([out.detach(), features.detach()] + [p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('model_name, num_blocks', [
    ('resnet20_cifar', 9), ('preact_resnet164_cifar', 54), ('resnet18_cifar', 8)])
def test_group_matcher(model_name, num_blocks):
    model = made_once(model_name)
    names = {n for n, _ in model.named_parameters()}
    num_stages = len(model.feature_info) - 1
    for coarse, num_groups in ((False, num_blocks), (True, num_stages)):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert len(groups) == num_groups + 2  # stem and head
        assert {n for group in groups.values() for n in group} == names
        assert f"{model.default_cfg['first_conv']}.weight" in groups[0]
        assert f"{model.default_cfg['classifier']}.weight" in groups[num_groups + 1]


# Features

@pytest.mark.parametrize('model_name', MODELS_BY_CLASS)
def test_feature_info(model_name):
    model = made_once(model_name).train()
    x = torch.randn(2, 3, 32, 32)
    logits, features = _hooked_features(model, x)
    assert len(features) == len(model.feature_info)
    for info, feature in zip(model.feature_info, features, strict=True):
        size = 32 // info['reduction']
        assert feature.shape == (2, info['num_chs'], size, size)
    # on the path to the logits
    for grad in torch.autograd.grad(logits.square().sum(), features):
        assert grad.abs().sum() > 0
    reductions = [1, 1, 2, 4, 8] if model_name == 'resnet18_cifar' else [1, 1, 2, 4]
    assert [info['reduction'] for info in model.feature_info] == reductions
    assert (features[-1] >= 0).all()


@pytest.mark.parametrize('model_name', MODELS_BY_CLASS)
def test_forward_intermediates(model_name):
    model = made_once(model_name).eval()
    x = torch.randn(1, 3, 32, 32)
    output, intermediates = model.forward_intermediates(x)
    _, hooked = _hooked_features(model, x)
    assert len(intermediates) == len(hooked) == len(model.feature_info)
    for intermediate, feature in zip(intermediates, hooked, strict=True):
        assert torch.equal(intermediate, feature)
    assert torch.equal(output, model.forward_features(x))
    assert torch.equal(output, intermediates[-1])


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_forward_intermediates_args(model_name, norm):
    model = _shallow(model_name).eval()
    x = torch.randn(1, 3, 32, 32)
    full = model.forward_intermediates(x, intermediates_only=True)
    for indices, expected in ((2, full[-2:]), ([0, 2], [full[0], full[2]]), ([-1], full[-1:]), ([0], full[:1])):
        taken = model.forward_intermediates(x, indices, norm=norm, stop_early=True, intermediates_only=True)
        assert len(taken) == len(expected)
        assert all(torch.equal(t, e) for t, e in zip(taken, expected, strict=True))
    output, _ = model.forward_intermediates(x, [1], stop_early=True)
    assert torch.equal(output, full[1])
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt='NLC')


@recent_timm
@pytest.mark.parametrize('index', [0, 1, -1])
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_prune_intermediate_layers(model_name, index):
    model = _shallow(model_name).eval()
    num_params = sum(p.numel() for p in model.parameters())
    num_features = len(model.feature_info)
    x = torch.randn(1, 3, 32, 32)
    expected = model.forward_intermediates(x, [index], intermediates_only=True)[0]
    kept = model.prune_intermediate_layers([index], prune_norm=True)
    assert kept == [index % num_features]
    assert torch.equal(model.forward_intermediates(x, kept, intermediates_only=True)[0], expected)
    assert torch.equal(model(x), expected)
    assert model.num_features == expected.shape[1]
    assert sum(p.numel() for p in model.parameters()) < num_params
    model.set_grad_checkpointing()
    assert torch.equal(model.forward_features(x), expected)


@pytest.mark.parametrize('feature_cls', [None, 'getter', 'hook'])
@pytest.mark.parametrize('model_name', CLASS_MODELS)
def test_features_only(model_name, feature_cls):
    kwargs = dict(feature_cls=feature_cls) if feature_cls else {}
    x = torch.randn(1, 3, 32, 32)
    model = _shallow(model_name).eval()
    info = FeatureInfo(model.feature_info, tuple(range(len(model.feature_info))))
    _, expected = _hooked_features(model, x)

    extractor = _shallow(model_name, features_only=True, **kwargs).eval()
    assert extractor.feature_info.channels() == info.channels()
    assert extractor.feature_info.reduction() == info.reduction()
    assert [o.shape for o in extractor(x)] == [e.shape for e in expected]

    # the weights are those of the whole model under flattened or prefixed names, in the same order
    weights = model.state_dict()
    extractor.load_state_dict(dict(zip(extractor.state_dict(), weights.values(), strict=False)))
    for out, feature in zip(extractor(x), expected, strict=True):
        assert torch.equal(out, feature)

    extractor = _shallow(model_name, features_only=True, out_indices=(1, -1), **kwargs).eval()
    outs = extractor(x)
    assert [o.shape[1] for o in outs] == extractor.feature_info.channels()
    assert [32 // o.shape[2] for o in outs] == extractor.feature_info.reduction()
    assert [o.shape for o in outs] == [expected[1].shape, expected[-1].shape]


def test_preact_features_before_the_norm_are_signed():
    model = made_once('preact_resnet164_cifar').eval()
    intermediates = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [bool((x < 0).any()) for x in intermediates] == [True, True, True, False]
