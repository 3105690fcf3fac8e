"""The derivative of Eq. 6 as printed, and the three readings of it that `ICASCConfig` offers."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.models import ToyNet

from timm_icasc import ICASCConfig, icasc_forward, resolve_layers

READINGS = {'order 1': (1, False), 'order 2': (2, False), 'order 2 with mask gradient': (2, True)}


def printed_loss(model, images, target):
    """Eqs. 2 to 6 as printed, with weights of 1, from the values alone: nothing here is differentiated.

    Args:
        model: ToyNet, whose layers `stem` (inner) and `stage` (last) are rerun from their own output on.
    """
    total = 0.
    for image, truth in zip(images, target.tolist(), strict=True):
        inner = model.stem(image[None]).detach()
        last = model.stage(inner).detach()
        rest = {
            'inner': lambda x: model.fc(model.stage(x).square().mean((2, 3)))[0],
            'last': lambda x: model.fc(x.square().mean((2, 3)))[0]}
        scores = rest['last'](last).detach()
        others = [c for c in range(len(scores)) if c != truth]
        confused = max(others, key=lambda c: scores[c].item())

        def attention(place, feature, c, rest=rest):
            gradient = torch.autograd.functional.jacobian(rest[place], feature)[c, 0]  # dY^c / dF^k_ij
            weights = gradient.clamp(min=0).sum((1, 2))
            return (weights[:, None, None] * feature[0]).sum(0).clamp(min=0) / gradient[0].numel()

        a_last, c_last = attention('last', last, truth), attention('last', last, confused)
        a_inner, c_inner = attention('inner', inner, truth), attention('inner', inner, confused)
        mask = 1 / (1 + (-100. * (a_last - 0.55 * a_last.max())).exp())
        inner_mask = F.interpolate(mask[None, None], size=a_inner.shape, mode='bilinear')[0, 0]
        separation = [
            2 * (torch.minimum(a, c) * m).sum() / (a + c).sum()
            for a, c, m in ((a_inner, c_inner, inner_mask), (a_last, c_last, mask))]
        consistency = 0.8 - (a_inner * inner_mask).sum() / a_inner.sum()
        total += (F.cross_entropy(scores[None], torch.tensor([truth])) + sum(separation) + consistency).item()
    return total / len(images)


@pytest.fixture(scope='module')
def example():
    torch.manual_seed(0)
    model = ToyNet().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # maps large enough for the raw mask to be steep
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    return model, images, torch.tensor([0, 3, 1])


def derivative(example, reading, name, index):
    model, images, target = example
    order, mask_grad = READINGS[reading]
    config = ICASCConfig(order=order, mask_grad=mask_grad, mask_scale='raw')
    output = icasc_forward(model, images, target, resolve_layers(model, input_size=(3, 16, 16)), config)
    loss = F.cross_entropy(output.logits, target) + output.weighted_sum(config)
    gradient, = torch.autograd.grad(loss, [model.get_parameter(name)])
    return loss.item(), gradient.flatten()[index].item()


def central_difference(example, name, index, step=1e-6):
    model, images, target = example
    values, original = [], model.get_parameter(name).data.clone()
    for sign in (1, -1):
        model.get_parameter(name).data.view(-1)[index] += sign * step
        values.append(printed_loss(model, images, target))
        model.get_parameter(name).data.copy_(original)
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize('name, index', [('stem.0.weight', 3), ('stage.0.weight', 100), ('fc.weight', 7)])
def test_the_derivative_of_the_printed_formula(name, index, example):
    """It is order 2 with mask gradient. The other two readings have the same value, and other derivatives."""
    expected = central_difference(example, name, index)
    found = {reading: derivative(example, reading, name, index) for reading in READINGS}
    value = printed_loss(*example)
    assert all(math.isclose(loss, value, rel_tol=1e-10) for loss, _ in found.values())
    assert found['order 2 with mask gradient'][1] == pytest.approx(expected, rel=1e-6, abs=1e-8)
    for reading in ('order 1', 'order 2'):
        assert abs(found[reading][1] - expected) > 0.01 * abs(expected), reading
    assert found['order 1'][1] != pytest.approx(found['order 2'][1], rel=0.01)
