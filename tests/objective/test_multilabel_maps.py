"""The two readings of images with several classes: one joint map, or one map of each class and the terms' mean."""
from functools import partial

import pytest
import torch
from helpers.models import create
from helpers.objective import directional_derivatives, layers_of, reference_terms
from helpers.processes import in_two_processes, save_gradients_of_half, small_convnext

import timm_icasc.objective.forward as forward_module
from timm_icasc import ICASCConfig, ICASCError, MultiLabelICASCTask, icasc_forward
from timm_icasc.labels import MULTI
from timm_icasc.objective.hard_samples import most_confused
from timm_icasc.objective.separability import evaluate_attention

# Present, absent and ignored classes: two, one, none present; none absent; three.
TARGET = [
    [1., 0., 1., 0., 0.], [0., 1., -1., 0., 0.], [0., 0., -1., 0., 0.], [1., 1., -1., 1., 1.], [0., 1., 0., 1., 1.]]
WITH_TERMS = [0, 1, 4]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.tensor(TARGET, dtype=torch.float64)


def forward(model, batch, **parameters):
    inference = parameters.pop('inference', False)
    config = ICASCConfig(**{'multilabel_maps': 'per_class', **parameters})
    return icasc_forward(model, *batch, layers_of(model, batch[0]), config, inference=inference, multilabel=True)


@pytest.fixture
def model():
    return create('resnet20_cifar', num_classes=5).double().eval()


@pytest.mark.parametrize('attention', ['ach', 'grad_cam'])
def test_terms_are_means_over_the_pairs_of_an_image(attention, model, batch):
    """Against loops over its classes T_i: the terms of each pair (T_i, Conf) as of an image of that class alone."""
    output = forward(model, batch, attention=attention)
    layers = layers_of(model, batch[0])
    for i, row in enumerate(TARGET):
        present, absent = ([c for c, value in enumerate(row) if value == wanted] for wanted in (1, 0))
        if i not in WITH_TERMS:
            assert all(values[i] == 0 for values in output.terms.values())
            continue
        pairs = [reference_terms(model, batch[0][i:i + 1], [[c]], [absent], layers, attention) for c in present]
        for name, values in output.terms.items():
            mean = sum(pair[name].item() for pair in pairs) / len(pairs)
            assert values[i].item() == pytest.approx(mean, rel=1e-9, abs=1e-12), (i, name)
    joint = forward(model, batch, attention=attention, multilabel_maps='joint')
    for name, values in joint.terms.items():
        assert values[1] == output.terms[name][1], 'one class is the same by both'
        assert values[0] != output.terms[name][0] and values[4] != output.terms[name][4]


def test_maps_of_each_class(model, batch):
    """`[B, P, H, W]`, P classes at most; those of an image's k-th class are of an image that has it alone."""
    output = forward(model, batch)
    for which in ('target_inner', 'target_last'):
        assert output.maps[which].shape[:2] == (5, 4) and output.maps['confused' + which[6:]].ndim == 3
    for k, c in enumerate((1, 3, 4)):
        alone = torch.zeros(5, 5, dtype=torch.float64)
        alone[:, c] = 1
        expected = forward(model, (batch[0], alone), multilabel_maps='joint')
        for which in ('target_inner', 'target_last'):
            torch.testing.assert_close(output.maps[which][4, k], expected.maps[which][4])
    assert not output.maps['target_last'][4, 3].any()


@pytest.mark.parametrize('parameters, passes', [
    ({}, 5), ({'multilabel_maps': 'joint'}, 2), ({'weight_as_inner': 0, 'weight_as_last': 0}, 4),
    ({'inference': True}, 2)], ids=str)
def test_backward_passes(parameters, passes, model, batch, monkeypatch):
    """One for each class of the image that has most, four, and one for the confused class."""
    counted = []
    gradients = forward_module.score_gradients
    monkeypatch.setattr(
        forward_module, 'score_gradients', lambda *args: counted.append(args) or gradients(*args))
    forward(model, batch, **parameters)
    assert len(counted) == passes


@pytest.mark.parametrize('mask_grad', [False, True])
def test_order_2_parameter_gradient_equals_finite_differences(mask_grad, model, batch):
    task = MultiLabelICASCTask(
        model, order=2, mask_grad=mask_grad, omega=10., multilabel_maps='per_class', verbose=False).eval()
    found = list(directional_derivatives(model, lambda: task(*batch)['loss']))
    close = [analytic == pytest.approx(numeric, rel=2e-5, abs=1e-8) for analytic, numeric in found]
    assert all(close) if mask_grad else not all(close), 'a mask without gradient is left out of the derivative'


def test_the_most_confused_samples_only(model, batch):
    whole, part = forward(model, batch), forward(model, batch, share=0.4)
    chosen = most_confused(whole.logits, whole.classes, 2)
    for name, values in part.terms.items():
        torch.testing.assert_close(values, whole.terms[name][chosen])


def test_measures_are_of_joint_maps(model, batch):
    joint, own = (evaluate_attention(model, [batch], ICASCConfig(multilabel_maps=maps), labels=MULTI)
                  for maps in ('joint', 'per_class'))
    assert joint == own


def test_one_class_per_image_has_one_map(model, batch):
    config = ICASCConfig(multilabel_maps='per_class')
    output = icasc_forward(model, batch[0], torch.arange(5), layers_of(model, batch[0]), config)
    assert all(maps.ndim == 3 for maps in output.maps.values())


def test_layers_whose_processes_wait_for_each_other_are_refused(model, batch, monkeypatch):
    assert forward(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model), batch, multilabel_maps='joint').terms
    with pytest.raises(ICASCError, match="SyncBatchNorm.*multilabel_maps='joint'"):
        forward(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model), batch)
    monkeypatch.setattr(forward_module, 'is_sharded', lambda model: True)
    with pytest.raises(ICASCError, match='another number in each process'):
        forward(create('resnet20_cifar', num_classes=5).double(), batch)


def make_task(model, **kwargs):
    return MultiLabelICASCTask(model, **{'order': 2, 'multilabel_maps': 'per_class', 'verbose': False, **kwargs})


def test_ddp_with_another_number_of_classes_in_each_process(tmp_path):
    """Two in the one, three in the other: the gradients of one process on the joined batch."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator)
    target = torch.tensor([TARGET[i][:4] for i in (0, 1, 2, 3)], dtype=torch.float64)
    target[3] = torch.tensor([1., 1., 0., 1.])
    torch.save((images, target), tmp_path / 'batch.pt')
    in_two_processes(partial(save_gradients_of_half, num_classes=4, make_task=make_task), tmp_path)
    model = small_convnext(4)
    make_task(model)(images, target)['loss'].backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for rank in range(2):
        for name, gradient in torch.load(tmp_path / f'gradients-{rank}.pt').items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)
