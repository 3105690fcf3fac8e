"""ICASC on multi-label targets: class choice, loss and terms against loops, finite differences, DDP."""
import math
from functools import partial

import pytest
import torch
from helpers.models import ToyNet, create
from helpers.objective import directional_derivatives, layers_of, reference_terms
from helpers.processes import in_two_processes, save_gradients_of_half, small_convnext
from timm.task import ClassificationTask

from timm_icasc import ICASCConfig, MultiLabelICASCTask, TargetError, icasc_forward
from timm_icasc.labels import MULTI
from timm_icasc.losses import MultiLabelSoftMarginLoss, multilabel_soft_margin
from timm_icasc.objective.separability import evaluate_attention

TERMS = {'loss_as_inner', 'loss_as_last', 'loss_ac'}
# Present, absent and ignored classes of four samples; the third has none present, the fourth none absent.
TARGET = [[1., 0., 1., 0.], [0., 1., -1., 0.], [0., 0., -1., 0.], [1., 1., -1., 1.]]


def make_task(model, **kwargs):
    """At order 2, which asks for more."""
    return MultiLabelICASCTask(model, **{'order': 2, 'verbose': False, **kwargs})


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.tensor(TARGET)


class TestSelectClasses:
    logits = torch.tensor([[9., 1., 8., 2.], [0., 5., 9., 3.], [1., 2., 3., 0.], [1., 2., 3., 4.]])

    def test_all_present_classes_and_the_highest_absent_one(self):
        pair = MULTI.select(self.logits, torch.tensor(TARGET))
        assert pair.target.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
        # Class 2 of the second sample has the highest score of all, but is ignored.
        assert pair.confused[:3].argmax(1).tolist() == [3, 3, 1]
        assert pair.valid.tolist() == [True, True, False, False]

    @pytest.mark.parametrize('target, message', [
        (torch.full((4, 4), 2), r'-1 \(ignored\), got 2'),
        (torch.zeros(4, dtype=torch.long), r'\[B, C\] = \(4, 4\).*torch.int64 \(4,\): .*one_hot makes it of indices'),
        (torch.zeros(4), r'got torch.float32 \(4,\)'),
        (torch.full((4, 4), 0.5), r'1 \(present\), 0 \(absent\) or -1 \(ignored\), got 0.5'),
        (torch.full((4, 4), 2.), 'got 2.0'),
    ])
    def test_bad_targets_are_named(self, target, message):
        with pytest.raises(TargetError, match=message):
            MULTI.select(self.logits, target)

    def test_one_class_is_not_enough(self):
        with pytest.raises(TargetError, match='second class'):
            MULTI.select(torch.zeros(2, 1), torch.zeros(2, 1))


class TestSoftMargin:

    def test_equals_loops(self):
        logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
        expected = []
        for row, labels in zip(logits.tolist(), TARGET, strict=True):
            losses = [-math.log(1 / (1 + math.exp(-x if y == 1 else x)))
                      for x, y in zip(row, labels, strict=True) if y >= 0]
            expected.append(sum(losses) / len(losses))
        actual = multilabel_soft_margin(logits, torch.tensor(TARGET, dtype=torch.float64))
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)

    def test_without_ignored_classes_it_is_torchs(self):
        logits, target = torch.randn(5, 7), torch.randint(2, (5, 7)).float()
        torch.testing.assert_close(
            MultiLabelSoftMarginLoss()(logits, target), torch.nn.MultiLabelSoftMarginLoss()(logits, target))

    def test_ignored_classes_get_no_gradient(self):
        logits = torch.randn(4, 4, requires_grad=True)
        multilabel_soft_margin(logits, torch.tensor(TARGET)).sum().backward()
        assert ((logits.grad == 0) == (torch.tensor(TARGET) == -1)).all()

    def test_everything_ignored_is_nothing_to_learn(self):
        logits = torch.randn(2, 3, requires_grad=True)
        losses = multilabel_soft_margin(logits, torch.full((2, 3), -1.))
        losses.sum().backward()
        assert losses.tolist() == [0, 0] and (logits.grad == 0).all()

    @pytest.mark.parametrize('value', [1e4, -1e4])
    def test_extreme_logits_stay_finite(self, value):
        logits = torch.full((1, 2), value, dtype=torch.bfloat16)
        assert multilabel_soft_margin(logits, torch.tensor([[1., 0.]])).isfinite().all()


@pytest.mark.parametrize('attention', ['ach', 'grad_cam'])
@pytest.mark.parametrize('name', ['toy', 'resnet20_cifar'])
def test_terms_equal_one_image_at_a_time_loops(name, attention, toy):
    model = (toy if name == 'toy' else create(name, num_classes=4)).double().eval()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    layers = layers_of(model, images)
    output = icasc_forward(
        model, images, torch.tensor(TARGET), layers, ICASCConfig(attention=attention), multilabel=True)
    present = [[c for c in range(4) if row[c] == 1] for row in TARGET]
    absent = [[c for c in range(4) if row[c] == 0] for row in TARGET]
    expected = reference_terms(model, images[:2], present[:2], absent[:2], layers, attention)
    for term, values in expected.items():
        torch.testing.assert_close(output.terms[term][:2].detach(), values, rtol=1e-9, atol=1e-12)
        assert output.terms[term][2:].tolist() == [0, 0], 'no present class, no absent class'


@pytest.mark.parametrize('name, kwargs', [('resnet20_cifar', {}), ('convnext_atto', {'depths': (1, 1, 2, 1)})])
def test_order_2_parameter_gradient_equals_finite_differences(name, kwargs):
    """Of the whole loss of the task, with ignored classes and samples without terms."""
    model = create(name, num_classes=4, **kwargs).double().eval()
    if name == 'convnext_atto':  # LayerScale starts at 1e-6; with it, differences drown in rounding
        for module in model.modules():
            if getattr(module, 'gamma', None) is not None:
                torch.nn.init.constant_(module.gamma, 0.5)
    size = 64 if name == 'convnext_atto' else 32
    images = torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    target = torch.tensor(TARGET, dtype=torch.float64)
    task = make_task(model, mask_grad=True, omega=10.)
    for analytic, numeric in directional_derivatives(model, lambda: task(images, target)['loss']):
        assert analytic == pytest.approx(numeric, rel=2e-5, abs=1e-8)


class TestTask:

    def test_result_carries_all_components(self, toy, batch):
        result = make_task(toy, weight_as_inner=0.5, weight_as_last=2., weight_ac=3.)(*batch)
        assert set(result) == {'loss', 'output', 'loss_cls'} | TERMS
        total = result['loss_cls'] + 0.5 * result['loss_as_inner'] + 2 * result['loss_as_last'] + 3 * result['loss_ac']
        torch.testing.assert_close(result['loss'].detach(), total)
        torch.testing.assert_close(
            result['loss_cls'], multilabel_soft_margin(toy(batch[0]), batch[1]).mean().detach())

    def test_samples_without_terms_leave_the_classification_gradient_alone(self, toy, batch):
        images, target = batch[0][2:], batch[1][2:]
        make_task(toy)(images, target)['loss'].backward()
        with_terms = [p.grad.clone() for p in toy.parameters()]
        toy.zero_grad()
        ClassificationTask(toy, MultiLabelSoftMarginLoss(), verbose=False)(images, target)['loss'].backward()
        for a, b in zip(with_terms, toy.parameters(), strict=True):
            torch.testing.assert_close(a, b.grad)

    def test_one_present_class_is_the_single_label_task(self, toy):
        images, classes = torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 3])
        layers, config = layers_of(toy, images), ICASCConfig(order=2)
        one_hot = torch.nn.functional.one_hot(classes, 4).float()
        single = icasc_forward(toy, images, classes, layers, config)
        multi = icasc_forward(toy, images, one_hot, layers, config, multilabel=True)
        for name, values in single.terms.items():
            torch.testing.assert_close(multi.terms[name], values)

    @pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int8, torch.int64])
    @pytest.mark.parametrize('loss_type', [None, 'bce', 'asl'])
    @pytest.mark.parametrize('multilabel_maps', ['joint', 'per_class'])
    def test_targets_of_any_type(self, multilabel_maps, loss_type, dtype, toy, batch):
        """0 and 1 are clear whatever their type, and so is -1 where the type has it."""
        ignored = loss_type is None and dtype.is_signed
        images, target = batch[0], batch[1] if ignored else batch[1].clamp(min=0)
        given = {} if loss_type is None else {'criterion_kwargs': {'loss_type': loss_type}}
        task = make_task(toy, multilabel_maps=multilabel_maps, **given)
        expected, found = task(images, target), task(images, target.to(dtype))
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        assert evaluate_attention(toy, [(images, target.to(dtype))], labels=MULTI) == evaluate_attention(
            toy, [(images, target)], labels=MULTI)
        assert torch.equal(
            multilabel_soft_margin(toy(images), target.to(dtype)), multilabel_soft_margin(toy(images), target))

    @pytest.mark.parametrize('loss_type', ['bce', 'asl'])
    def test_timms_multi_label_losses(self, loss_type, toy, batch):
        target = batch[1].clamp(min=0)
        result = make_task(toy, criterion_kwargs={'loss_type': loss_type})(batch[0], target)
        assert result['loss'].isfinite() and result.keys() >= TERMS
        with pytest.raises(TargetError, match=r'0 \(absent\), got -1.0'):
            make_task(toy, criterion_kwargs={'loss_type': loss_type})(*batch)

    def test_the_schedule_and_the_state_are_those_of_the_single_label_task(self, toy, batch):
        task = make_task(toy, start_steps=1, ramp_steps=2)
        assert TERMS.isdisjoint(task(*batch)) and TERMS <= set(task(*batch))
        assert task.get_task_state() == {'step': 2}

    @pytest.mark.parametrize('start_steps', [0, 5])
    def test_class_indices_are_refused(self, start_steps, toy, batch):
        with pytest.raises(TargetError, match=r'multi-label target must be \[B, C\] .* got torch.int64 \(4,\)'):
            make_task(toy, start_steps=start_steps)(batch[0], torch.tensor([0, 1, 2, 3]))

    def test_evaluation_is_the_plain_model(self, toy, batch):
        with torch.no_grad():
            assert set(make_task(toy)(*batch)) == {'loss', 'output', 'loss_cls'}
        evaluator = make_task(toy).create_evaluator(class_names=list('abcd'))
        evaluator.update(toy(batch[0]), batch[1])
        assert evaluator.compute()['AP_d'] <= 100

    def test_unknown_parameter(self, toy):
        with pytest.raises(TypeError, match='MultiLabelICASCTask has no parameter'):
            make_task(toy, omgea=10.)


def test_attention_is_measured_on_samples_that_have_both_sides(toy, batch):
    whole = evaluate_attention(toy, [batch], labels=MULTI)
    both = evaluate_attention(toy, [(batch[0][:2], batch[1][:2])], labels=MULTI)
    assert whole == pytest.approx(both, rel=1e-5)


def test_two_process_ddp_equals_one_process_on_the_joined_batch(tmp_path):
    """One process has the samples without terms, the other those with."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator)
    target = torch.tensor(TARGET, dtype=torch.float64)
    torch.save((images, target), tmp_path / 'batch.pt')
    in_two_processes(partial(
        save_gradients_of_half, num_classes=4, make_task=make_task), tmp_path)
    model = small_convnext(4)
    make_task(model)(images, target)['loss'].backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for rank in range(2):
        for name, gradient in torch.load(tmp_path / f'gradients-{rank}.pt').items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


def test_permuting_the_batch_permutes_every_value(batch):
    torch.manual_seed(0)
    model = ToyNet().double()
    images, target = batch[0].double(), batch[1]
    order = torch.tensor([2, 0, 3, 1])
    layers = layers_of(model, images)
    one = icasc_forward(model, images, target, layers, ICASCConfig(order=2), multilabel=True)
    other = icasc_forward(model, images[order], target[order], layers, ICASCConfig(order=2), multilabel=True)
    for name, values in one.terms.items():
        torch.testing.assert_close(other.terms[name], values[order], rtol=1e-10, atol=1e-14)
