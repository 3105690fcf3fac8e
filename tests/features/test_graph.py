"""What the autograd graph tells of a feature: which paths lead through it, and what made it."""
import pytest
import torch
import torch.nn.functional as F

from timm_icasc.features.graph import graph_nodes, is_computed_from, made_by, nodes_on_every_path


def all_paths(root, source):
    """Every way back from `root` to `source`, one by one."""
    if root == source:
        return [[root]]
    parents = [parent for parent, _ in root.next_functions if parent is not None]
    return [[root, *path] for parent in parents for path in all_paths(parent, source)]


@pytest.mark.parametrize('forward', [
    lambda x: x.relu().tanh(),
    lambda x: (x.relu() + x).tanh(),  # a shortcut goes by the activation
    lambda x: (x.relu() * x.relu().sigmoid()).exp(),
    lambda x: torch.cat([x.relu(), x.tanh() * x], 1).relu().square() + 1,
    lambda x: x * x + x.exp().log() * x.sin(),
], ids=['a chain', 'a shortcut', 'a gate', 'branches that meet', 'no passage'])
def test_a_node_is_on_every_path_when_each_path_has_it(forward):
    x = torch.randn(2, 3, requires_grad=True).clone()
    root = forward(x).sum().grad_fn
    paths = [set(path) for path in all_paths(root, x.grad_fn)]
    assert len(paths) >= 1
    assert nodes_on_every_path(root, x.grad_fn) == set.intersection(*paths)


def test_no_path_has_no_passage():
    x, y = (torch.randn(2, requires_grad=True).clone() for _ in range(2))
    assert nodes_on_every_path(x.exp().grad_fn, y.grad_fn) == set()


def test_more_paths_than_a_float_can_count():
    """2 ** 2,000 ways lead through a stack of shortcuts, and all of them through its end."""
    x = torch.randn(2, requires_grad=True).clone()
    end = x
    for _ in range(2000):
        end = end + end
    score = end.relu()
    passages = nodes_on_every_path(score.grad_fn, x.grad_fn)
    assert {score.grad_fn, end.grad_fn, x.grad_fn} <= passages


def test_what_a_tensor_was_made_by():
    x = torch.randn(2, requires_grad=True).clone()
    y, aside = x.exp(), x.sin()
    nodes = graph_nodes(y.relu())
    assert {x.grad_fn, y.grad_fn} <= nodes and aside.grad_fn not in nodes


def test_whether_one_tensor_goes_into_another():
    x = torch.randn(2, 3, requires_grad=True).clone()
    features, aside = x.exp(), x.sin()
    scores = features @ torch.randn(3, 4)
    assert is_computed_from(scores, features) and is_computed_from(scores, features.view(3, 2))
    assert not is_computed_from(features, scores) and not is_computed_from(scores, aside)
    assert not is_computed_from(scores.flatten(), scores), 'another view of the same values'
    assert not is_computed_from(scores, torch.ones(2)) and not is_computed_from(torch.ones(2), scores)


@pytest.mark.parametrize('function, expected', [
    (F.relu, 'activation'), (F.silu, 'activation'), (F.gelu, 'activation'), (F.hardswish, 'activation'),
    (F.relu6, 'activation'), (F.leaky_relu, 'activation'), (F.elu, 'activation'), (F.mish, 'activation'),
    (lambda x: F.layer_norm(x, (4,)), 'norm'), (lambda x: F.group_norm(x, 3), 'norm'),
    (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), 'norm'),
    (lambda x: F.relu(x).permute(0, 2, 3, 1).reshape(2, -1, 3), 'activation'),  # read differently, the same values
    (lambda x: F.relu(x) + x, None), (torch.sin, None), (lambda x: F.relu(x) * 2, None),
])
def test_what_made_a_tensor(function, expected):
    x = torch.randn(2, 3, 4, 4, requires_grad=True).clone()
    assert made_by(function(x).grad_fn) == expected
