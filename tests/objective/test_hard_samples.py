"""The terms on the most confused samples only: which ones, and that they are the terms and gradients of those."""
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.objective import double_batch, layers_of
from helpers.processes import in_two_processes, save_gradients_of_half, small_convnext
from timm.layers import EvoNorm2dB0

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    MultiLabelICASCTask,
    icasc_forward,
    resolve_layers,
)
from timm_icasc.labels import MULTI, SINGLE
from timm_icasc.objective.hard_samples import forward_most_confused, most_confused


def test_the_most_confused_have_the_smallest_lead():
    logits = torch.tensor([[5., 1., 0.], [0., 3., 2.5], [0., 1., 4.], [2., 1., 1.]])
    classes = SINGLE.select(logits, torch.tensor([0, 1, 1, 0]))
    leads = [5 - 1, 3 - 2.5, 1 - 4, 2 - 1]
    expected = sorted(range(4), key=leads.__getitem__)
    assert [most_confused(logits, classes, n).tolist() for n in range(1, 5)] == [expected[:n] for n in range(1, 5)]


def test_samples_without_a_pair_come_last_and_several_present_classes_count_by_their_mean():
    logits = torch.tensor([[0., 9., 0.], [4., 2., 1.], [3., 0., 0.5]])
    classes = MULTI.select(logits, torch.tensor([[0., 0., 0.], [1., 1., 0.], [1., 0., 0.]]))
    assert most_confused(logits, classes, 3).tolist() == [1, 2, 0]  # leads 3 - 1 and 3 - 0.5


def test_a_class_that_is_switched_off():
    """By a score of -inf, which times zero is NaN."""
    logits = torch.tensor([[.1, 0., -9., -torch.inf], [5., 0., -9., -torch.inf], [.2, 0., -9., -torch.inf]])
    classes = SINGLE.select(logits, torch.tensor([0, 0, 0]))
    assert most_confused(logits, classes, 3).tolist() == [0, 2, 1]


def test_standardised_weights_are_no_batch():
    """Of all samples, the gradients are those of the whole batch: a weight's mean is no constant."""
    torch.manual_seed(0)
    model = timm.create_model('test_nfnet', num_classes=5).double().eval()
    images, target = torch.randn(3, 3, 64, 64).double(), torch.arange(3)
    layers, parameters = layers_of(model, images), [p for p in model.parameters() if p.requires_grad]
    for share in (1., 0.99):
        output = icasc_forward(model, images, target, layers, ICASCConfig(order=2, share=share))
        total = sum(values.sum() for values in output.terms.values())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        if share == 1:
            expected = gradients
    for ours, whole in zip(gradients, expected, strict=True):
        assert (ours is None) == (whole is None)
        if ours is not None:
            torch.testing.assert_close(ours, whole)


def test_what_a_second_run_would_count_twice_is_refused(toy):
    images, target = double_batch()
    toy.double().train().stage.append(EvoNorm2dB0(6).double())
    with pytest.raises(ICASCError, match="'stage.2.running_var' changes with every run"):
        ICASCTask(toy, share=0.5, verbose=False)(images, target)
    ICASCTask(toy.eval(), share=0.5, verbose=False)(images, target)


@pytest.mark.parametrize('multilabel', [False, True])
@pytest.mark.parametrize('order', [1, 2])
def test_terms_and_gradients_are_those_of_the_chosen_samples(order, multilabel, toy):
    """Without BatchNorm and dropout the samples do not touch each other, and the second run repeats the first."""
    images, target = double_batch(batch=5)
    target = F.one_hot(target, 4).double() if multilabel else target
    model, layers = toy.double(), layers_of(toy, images)
    whole = icasc_forward(model, images, target, layers, ICASCConfig(order=order), multilabel=multilabel)
    part = icasc_forward(model, images, target, layers, ICASCConfig(order=order, share=0.4), multilabel=multilabel)
    torch.testing.assert_close(part.logits, whole.logits)
    chosen = most_confused(whole.logits, whole.classes, 2)
    parameters = dict(model.named_parameters())
    for name, values in part.terms.items():
        torch.testing.assert_close(values, whole.terms[name][chosen])
        expected, gradients = (torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
                               for loss in (whole.terms[name][chosen].mean(), values.mean()))
        for key, a, b in zip(parameters, gradients, expected, strict=True):
            assert (a is None) == (b is None), key
            if a is not None:
                torch.testing.assert_close(a, b)
    assert part.maps['target_inner'].shape[0] == 2 and part.classes.valid.shape == (2,)


@pytest.mark.parametrize('name, kwargs, size', [
    ('resnet20_cifar', {}, 32), ('efficientnet_b0', {}, 64), ('resnetv2_18d', {}, 64),  # the last ends in in-place ReLU
    ('vit_tiny_patch16_224', {'img_size': 64}, 64),
])
def test_the_second_run_repeats_the_scores_of_the_first(name, kwargs, size):
    """In training mode: BatchNorm normalises the chosen samples by the whole batch, whose statistics count once."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).double().train()
    images, target = torch.randn(6, 3, size, size).double(), torch.arange(6)
    layers = layers_of(model, images)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model(images)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    share = forward_most_confused(model, images, target, list(layers), 2, 0.5, SINGLE)
    chosen = most_confused(share.all_logits, SINGLE.select(share.all_logits, target), 3)
    torch.testing.assert_close(share.images, images[chosen])
    torch.testing.assert_close(share.logits, share.all_logits[chosen])
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key])


class Branches(torch.nn.Module):
    """A branch with BatchNorm beside the inner layer, as in HRNet; one ReLU, called three times."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.Conv2d(6, 6, 3, 2, 1)
        self.beside = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.BatchNorm2d(6))
        self.act, self.fc = torch.nn.ReLU(), torch.nn.Linear(6, 4)

    def forward(self, x):
        beside = self.act(self.beside(x))
        x = self.act(self.inner(x))
        return self.fc(self.act(self.last(x + beside)).mean((2, 3)))


def test_batch_norm_in_a_branch_beside_the_inner_layer():
    """The second run would normalise it by the chosen samples: other scores than those of the batch."""
    torch.manual_seed(0)
    images, target, model = torch.randn(4, 3, 16, 16), torch.arange(4), Branches()
    task = ICASCTask(model, layers=('inner', 'last'), share=0.5, verbose=False)
    with pytest.raises(ICASCError, match='share < 1 does not work .* branches beside the inner layer'):
        task(images, target)
    model.eval()
    task(images, target)


def test_a_layer_that_is_called_several_times():
    """The last call is read, and is what the second run takes from the first, whatever the shape of the others."""
    torch.manual_seed(0)
    images, target, model = torch.randn(4, 3, 16, 16), torch.arange(4), Branches().eval()
    layers = list(resolve_layers(model, ('inner', 'act'), (3, 16, 16)))
    for chosen in (layers, layers[1:]):
        share = forward_most_confused(model, images, target, chosen, 1, 0.5, SINGLE)
        torch.testing.assert_close(share.logits, share.all_logits[most_confused(
            share.all_logits, SINGLE.select(share.all_logits, target), 2)])


def test_patches_of_images_that_differ_in_size():
    torch.manual_seed(0)
    model = timm.create_model('naflexvit_base_patch16_gap', num_classes=10, embed_dim=24, depth=4, num_heads=2).eval()
    coordinates = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing='ij'), -1).reshape(1, 16, 2)
    images = {'patches': torch.randn(4, 16, 768), 'patch_coord': coordinates.repeat(4, 1, 1),
              'patch_valid': torch.arange(16)[None] < torch.tensor([[16], [12], [8], [16]])}
    task = ICASCTask(model, order=2, share=0.5, verbose=False)
    layers, target = task.resolve_layers(), torch.arange(4)
    whole = icasc_forward(model, images, target, layers, ICASCConfig(order=2))
    part = icasc_forward(model, images, target, layers, ICASCConfig(order=2, share=0.5))
    chosen = most_confused(whole.logits, whole.classes, 2)
    for name, values in part.terms.items():
        torch.testing.assert_close(values, whole.terms[name][chosen])


def test_at_least_one_sample_and_the_layout_of_the_images(toy):
    images, target = double_batch(batch=3)
    images = images.contiguous(memory_format=torch.channels_last)
    share = forward_most_confused(
        toy.double(), images, target, list(layers_of(toy, images)), 1, 0.01, SINGLE)
    assert share.images.shape[0] == 1 and share.images.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_takes_every_image(toy):
    images, target = double_batch()
    output = icasc_forward(
        toy.double(), images, target, layers_of(toy, images), ICASCConfig(share=0.3), inference=True)
    assert output.terms['ac'].shape == (3,)


def test_a_frozen_trunk_stays_without_gradient(toy):
    images, target = double_batch()
    toy.double().stem.requires_grad_(False)
    ICASCTask(toy, order=2, share=0.5, verbose=False)(images, target)['loss'].backward()
    assert all(p.grad is None for p in toy.stem.parameters()) and all(p.grad is not None for p in toy.fc.parameters())


def test_multi_label_task_takes_a_share(toy):
    images, target = double_batch()
    result = MultiLabelICASCTask(toy.double(), order=2, share=0.5, verbose=False)(images, F.one_hot(target, 4).double())
    assert result['output'].shape == (3, 4) and torch.isfinite(result['loss'])


def test_each_process_of_ddp_takes_its_own_share(tmp_path):
    torch.manual_seed(2)
    images, target = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4)
    torch.save((images, target), tmp_path / 'batch.pt')
    make_task = partial(ICASCTask, order=2, share=0.5, verbose=False)
    in_two_processes(partial(save_gradients_of_half, num_classes=10, make_task=make_task), tmp_path)
    model = small_convnext(10)
    task = make_task(model)
    for rank in range(2):
        half = slice(2 * rank, 2 * rank + 2)
        (task(images[half], target[half])['loss'] / 2).backward()
    for rank in range(2):
        actual = torch.load(tmp_path / f'gradients-{rank}.pt')
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(actual[name], parameter.grad, rtol=1e-6, atol=1e-10)


def test_checkpointing_is_refused():
    model = timm.create_model('resnet18', num_classes=4)
    model.set_grad_checkpointing(True)
    with pytest.raises(ICASCError, match='share < 1 does not work with gradient checkpointing'):
        ICASCTask(model, order=2, share=0.5, verbose=False)(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))


@pytest.mark.parametrize('share', [0, -0.1, 1.5])
def test_a_share_lies_in_the_unit_interval(share):
    with pytest.raises(ValueError, match='share'):
        ICASCConfig(share=share)
