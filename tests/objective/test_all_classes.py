"""Maps of many classes at once are those of a loop over the classes."""
import pytest
import torch
import torch.nn.functional as F
from helpers.models import ToyNet, create

from timm_icasc import attention_maps
from timm_icasc.attention import METHODS
from timm_icasc.objective import maps

POOLED = {  # name: arguments of the last layer's network, and the input size
    'resnet20_cifar': 32, 'tf_efficientnet_lite0': 64, 'resnetv2_18d': 64, 'swin_tiny_patch4_window7_224': 64}

MEANS = [name for name, row in METHODS.items() if row.area_normalised]


@pytest.fixture
def used(monkeypatch):
    """What `pooled_gradients` has answered, one entry a call."""
    answers, original = [], maps.pooled_gradients
    monkeypatch.setattr(maps, 'pooled_gradients', lambda *args: answers.append(original(*args)) or answers[-1])
    return answers


def one_by_one(model, images, classes, **kwargs):
    return torch.cat([attention_maps(model, images, classes=[c], **kwargs) for c in classes], 1)


@pytest.mark.parametrize('name, method', [
    # Every method of one network, every network by two of them.
    pytest.param(name, method, marks=(
        () if name == 'resnet20_cifar' or method in ('ach', 'grad_cam') else pytest.mark.slow))
    for name in POOLED for method in MEANS])
def test_they_are_the_maps_of_each_class_alone(name, method, used):
    model = create(name).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    images = torch.randn(2, 3, POOLED[name], POOLED[name])
    found = attention_maps(model, images, classes=list(range(10)), method=method)
    expected = one_by_one(model, images, range(10), method=method)
    assert len(used) == 1 and used[0].shape[:2] == (2, 10)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.max().item())


def test_by_explicit_loops():
    """Grad-CAM and `ach` of a pooled feature: `ReLU(sum_k w_k F_k)`, `w_k = W_ck / Z` or the positive part of it."""
    model = create('resnet20_cifar').double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    features = model.forward_features(images)[0].detach()
    weight = model.get_classifier().weight.detach()
    for method, part in (('grad_cam', lambda w: w), ('ach', lambda w: max(w, 0.))):
        found = attention_maps(model, images, classes=[3, 8], method=method)[0]
        for n, c in enumerate((3, 8)):
            for i, j in ((0, 0), (2, 5), (7, 7)):
                total = sum(part(weight[c, k].item()) / 64 * features[k, i, j].item() for k in range(64))
                assert found[n, i, j].item() == pytest.approx(max(total, 0.), abs=1e-12)


def test_classes_of_each_image(used):
    model = create('resnet20_cifar').eval()
    images = torch.randn(3, 3, 32, 32)
    classes = torch.tensor([[1, 2], [3, 4], [0, 9]])
    found = attention_maps(model, images, classes=classes)
    for n, own in enumerate(classes.tolist()):
        torch.testing.assert_close(found[n:n + 1], one_by_one(model, images[n:n + 1], own), rtol=1e-5, atol=1e-7)
    assert used[0] is not None


@pytest.mark.parametrize('change', ['squared', 'dropout', 'inner', 'half', 'every pixel', 'head of two layers'])
def test_elsewhere_the_loop_remains(change, used):
    """Where the scores are not linear in the pool, or the method reads every pixel, there is no answer."""
    torch.manual_seed(0)
    model = create('resnet20_cifar').eval()
    images, kwargs = torch.randn(2, 3, 32, 32), {}
    if change == 'squared':
        model, images = ToyNet().eval(), torch.randn(2, 3, 16, 16)
    elif change == 'dropout':
        model.global_pool.register_forward_hook(lambda module, inputs, pooled: F.dropout(pooled))  # in any mode
    elif change == 'inner':
        kwargs['layer'] = 'inner'
    elif change == 'half':
        model, images = model.bfloat16(), images.bfloat16()
    elif change == 'every pixel':
        kwargs['method'] = 'layer_cam'
    else:
        model.fc = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    found = attention_maps(model, images, classes=[0, 2], **kwargs)
    assert used == [None]
    if change != 'dropout':
        torch.testing.assert_close(found, one_by_one(model, images, [0, 2], **kwargs))


def test_a_wrapped_model(used):
    model = torch.nn.Sequential(torch.nn.Identity(), create('resnet20_cifar')).eval()
    images = torch.randn(2, 3, 32, 32)
    found = attention_maps(model, images, topk=3)
    assert used[0] is not None
    torch.testing.assert_close(found, attention_maps(model[1], images, topk=3))


def test_a_model_that_names_no_classifier_and_has_norms(used):
    """The head is looked for among all modules, and the weight of a norm has one axis."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 6, 3), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()
    images, layers = torch.randn(2, 3, 16, 16), ('1', '2')
    found = attention_maps(model, images, classes=[0, 2], layers=layers)
    assert used == [None]
    torch.testing.assert_close(found, one_by_one(model, images, [0, 2], layers=layers))


def test_the_trunk_runs_once_and_nothing_runs_for_a_class():
    model, calls = create('resnet20_cifar').eval(), []
    attention_maps(model, torch.randn(2, 3, 32, 32))  # finds the layers
    model.layer3.register_forward_hook(lambda *args: calls.append('forward'))
    model.fc.register_full_backward_hook(lambda *args: calls.append('backward'))
    attention_maps(model, torch.randn(2, 3, 32, 32), classes=list(range(10)))
    assert calls == ['forward', 'backward']  # the backward pass that looks whether the scores are linear
