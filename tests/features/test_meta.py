"""Meta tensors: remembered shapes are torch's own, and values appear where they are asked for."""
import pytest
import torch
import torch.nn.functional as F
from helpers.models import create

from timm_icasc.features.meta import Materialize, RememberShapes

SHALLOW = {'resnet18': {'layers': (1, 1, 1, 1)}, 'convnext_atto': {'depths': (1, 1, 1, 1)}}


def shapes(tensors):
    return [x if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in tensors]


def outputs_and_gradients(name):
    """Of every module, and of every parameter twice over, in training mode."""
    with torch.device('meta'):
        model = create(name, **SHALLOW[name]).train()
        outputs = []
        for module in model.modules():
            module.register_forward_hook(lambda module, args, output: outputs.append(output))
        score = model(torch.empty(2, 3, 64, 64)).square().sum()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(score, parameters, create_graph=True, allow_unused=True)
    second = torch.autograd.grad(
        sum(g.square().sum() for g in gradients if g is not None), parameters,
        allow_unused=True)
    return shapes([*outputs, *gradients, *second])


@pytest.mark.parametrize('name', SHALLOW)
def test_remembered_shapes_are_the_true_ones(name):
    expected = outputs_and_gradients(name)
    with RememberShapes():
        assert outputs_and_gradients(name) == expected
        assert outputs_and_gradients(name) == expected


def test_torch_is_asked_once_for_each_question():
    x = torch.empty(3, 4, device='meta')
    with RememberShapes() as mode:
        for _ in range(3):
            x.exp()
        x.t().exp()
        x.double().exp()
    assert len([key for key in mode._answers if key[0] is torch.ops.aten.exp.default]) == 3


def test_numbers_of_other_types_are_other_questions():
    """1 == 1. == True for a dictionary."""
    x = torch.empty(3, dtype=torch.int64, device='meta')
    with RememberShapes():
        assert [(x * factor).dtype for factor in (1, 1., True)] == [torch.int64, torch.float32, torch.int64]


def test_in_place_operations_count_and_errors_remain():
    x, y = torch.empty(3, device='meta'), torch.empty(4, device='meta')
    with RememberShapes():
        for _ in range(2):
            assert x.add_(1) is x
        assert x._version == 2
        for _ in range(2):
            with pytest.raises(RuntimeError):
                x + y


def test_values_pass():
    x = torch.arange(3.)
    with RememberShapes():
        assert torch.equal(x + 1, torch.tensor([1., 2., 3.])) and torch.equal(x + 2, torch.tensor([2., 3., 4.]))


def test_values_where_real_and_meta_tensors_meet():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.empty(4, 3, device='meta')
    with Materialize():
        output = F.linear(x, weight)
        assert F.linear(torch.empty(2, 3, device='meta'), weight).is_meta
        query = torch.empty(1, 1, 5, 8, device='meta')
        attended = F.scaled_dot_product_attention(query, torch.randn(1, 1, 7, 8), torch.randn(1, 1, 7, 8))
        gradient, = torch.autograd.grad(output.sum(), x)  # here: outside, an operation leaves its result unwritten
    assert output.device.type == 'cpu' and output.any()
    assert gradient.any()
    assert attended.shape == (1, 1, 5, 8) and attended.any()


def test_a_meta_tensor_has_the_same_values_in_a_view_and_in_the_backward_pass():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.empty(4, 3, device='meta')
    with Materialize():
        value = F.linear(torch.eye(3), weight).T
        assert torch.equal(torch.eye(4) @ weight, value)
        assert torch.equal(weight.T[1:, 2] + torch.zeros(2), value[2, 1:])
        gradient, = torch.autograd.grad(F.linear(x, weight).sum(), x)
    torch.testing.assert_close(gradient, value.sum(0).expand(2, 3))


def test_values_that_an_operation_overwrites_are_a_copy():
    weight = torch.empty(3, device='meta')
    with Materialize():
        before = weight * torch.ones(3)
        torch.ops.aten.add_(weight, torch.ones(3))
        assert torch.equal(weight * torch.ones(3), before)


def test_a_real_tensor_is_overwritten_itself():
    """What an operation in place does to a feature must not be lost, nor what it gives to the backward pass."""
    x, scale = torch.randn(2, 3, requires_grad=True), torch.empty(3, device='meta')
    with Materialize():
        value = scale * torch.ones(3)
        output = x.clone()
        output.mul_(scale)
        gradient, = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(output, x * value)
    torch.testing.assert_close(gradient, value.expand(2, 3))


def test_every_image_gets_the_same_values():
    beside, weight = torch.empty(17, 3, device='meta'), torch.empty(5, 3, device='meta')
    with Materialize(images=17):
        value = torch.zeros(17, 3) + beside
        rows = torch.eye(3) @ weight.T
    assert value[0].any() and torch.equal(value, value[:1].expand(17, 3))
    assert not torch.equal(rows[:, 0], rows[:, 1])
