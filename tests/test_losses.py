"""Loss terms against explicit loops, their ranges, derivatives, and degenerate maps."""
import math

import pytest
import torch
import torch.nn.functional as F

from timm_icasc import ICASCError
from timm_icasc.losses import (
    ClassWeightedLoss,
    MultiLabelSoftMarginLoss,
    attention_consistency,
    attention_overlap,
    attention_separation,
    resize_mask,
    target_mask,
)

B, H, W = 3, 4, 5


def random_maps(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(B, H, W, generator=generator, dtype=dtype) + 0.01 for _ in range(count)]


def loop_mask(target_map, sigma, omega, scale):
    result = torch.zeros(B, H, W, dtype=torch.float64)
    for b in range(B):
        maximum = max(target_map[b, i, j].item() for i in range(H) for j in range(W))
        unit = maximum if scale == 'max' else 1.
        for i in range(H):
            for j in range(W):
                a = target_map[b, i, j].item() / unit
                result[b, i, j] = 1 / (1 + math.exp(-omega * (a - sigma * maximum / unit)))
    return result


@pytest.mark.parametrize('scale', ['max', 'raw'])
@pytest.mark.parametrize('sigma, omega', [(0.55, 100.), (0.3, 10.)])
def test_target_mask_equals_explicit_loops(scale, sigma, omega):
    target_map, = random_maps(1)
    torch.testing.assert_close(
        target_mask(target_map, sigma, omega, scale), loop_mask(target_map, sigma, omega, scale),
        rtol=1e-12, atol=1e-14)


def test_attention_separation_equals_explicit_loops():
    target_map, confused_map, mask = random_maps(3)
    for b, value in enumerate(attention_separation(target_map, confused_map, mask)):
        numerator = denominator = 0.
        for i in range(H):
            for j in range(W):
                t, c = target_map[b, i, j].item(), confused_map[b, i, j].item()
                numerator += 2 * min(t, c) * mask[b, i, j].item()
                denominator += t + c
        assert value.item() == pytest.approx(numerator / denominator, rel=1e-12)


@pytest.mark.parametrize('theta', [0.8, 0.5])
def test_attention_consistency_equals_explicit_loops(theta):
    inner_map, mask = random_maps(2)
    for b, value in enumerate(attention_consistency(inner_map, mask, theta)):
        inside = total = 0.
        for i in range(H):
            for j in range(W):
                inside += inner_map[b, i, j].item() * mask[b, i, j].item()
                total += inner_map[b, i, j].item()
        assert value.item() == pytest.approx(theta - inside / total, rel=1e-12)


def test_attention_overlap_equals_explicit_loops():
    target_map, confused_map = random_maps(2)
    for b, value in enumerate(attention_overlap(target_map, confused_map)):
        pixels = [(target_map[b, i, j].item(), confused_map[b, i, j].item()) for i in range(H) for j in range(W)]
        t_sum, c_sum = sum(t for t, _ in pixels), sum(c for _, c in pixels)
        assert value.item() == pytest.approx(sum(min(t / t_sum, c / c_sum) for t, c in pixels), rel=1e-12)


def test_attention_overlap_ignores_the_scale_of_a_map():
    target_map, confused_map = random_maps(2)
    torch.testing.assert_close(
        attention_overlap(target_map, confused_map), attention_overlap(target_map, 1e-3 * confused_map))


def test_resized_mask_is_bilinear_and_keeps_its_range():
    mask = torch.zeros(1, 2, 2, dtype=torch.float64)
    mask[0, 0, 0] = 1.
    resized = resize_mask(mask, (4, 4))
    # Half-pixel centres: the output's rows lie at -0.25 (clamped to 0), 0.25, 0.75, 1.25 (clamped to 1).
    weight = torch.tensor([1., 0.75, 0.25, 0.], dtype=torch.float64)
    torch.testing.assert_close(resized[0], weight[:, None] * weight[None, :])
    assert resize_mask(mask, (2, 2)) is mask


def test_maps_of_several_classes_are_each_as_one_alone():
    """`[B, K, h, w]`, as `attention_maps` makes them; one map alone too."""
    maps, others = torch.rand(2, B, 3, H, W, dtype=torch.float64)
    mask = resize_mask(target_mask(maps), (8, 10))
    assert mask.shape == (B, 3, 8, 10)
    masks = [target_mask(maps), target_mask(others)]
    for k in range(3):
        torch.testing.assert_close(mask[:, k], resize_mask(target_mask(maps[:, k]), (8, 10)))
        for function, arguments in (
                (attention_separation, [maps, others, masks[0]]), (attention_consistency, [maps, masks[1]]),
                (attention_overlap, [maps, others])):
            torch.testing.assert_close(
                function(*arguments)[:, k], function(*(argument[:, k] for argument in arguments)))
    torch.testing.assert_close(resize_mask(maps[0, 0], (8, 10)), resize_mask(maps, (8, 10))[0, 0])
    assert resize_mask(maps[:0], (8, 10)).shape == (0, 3, 8, 10)


@pytest.mark.parametrize('scale', ['max', 'raw'])
def test_derivatives_of_the_mask(scale):
    target_map = random_maps(1)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda a: target_mask(a, omega=5., scale=scale), target_map)
    assert torch.autograd.gradgradcheck(lambda a: target_mask(a, omega=5., scale=scale), target_map)


def test_derivatives_of_the_terms():
    target_map, confused_map, mask = (x.requires_grad_() for x in random_maps(3))
    for function, inputs in (
            (attention_separation, (target_map, confused_map, mask)),
            (attention_consistency, (target_map, mask)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_separation_lies_in_the_unit_interval():
    target_map, confused_map, mask = random_maps(3)
    ones = torch.ones_like(mask)
    torch.testing.assert_close(attention_separation(target_map, target_map, ones), torch.ones(B, dtype=torch.float64))
    left, right = torch.zeros(B, H, W), torch.zeros(B, H, W)
    left[..., :2], right[..., 2:] = 1., 1.
    torch.testing.assert_close(attention_separation(left, right, torch.ones(B, H, W)), torch.zeros(B))
    values = attention_separation(target_map, 100 * confused_map, mask)
    assert ((0 <= values) & (values <= 1)).all()


def test_masked_scale_does_not_depend_on_the_weights_and_the_raw_one_does():
    target_map, = random_maps(1)
    torch.testing.assert_close(target_mask(1e-6 * target_map), target_mask(target_map))
    assert (target_mask(1e-6 * target_map, scale='raw') - 0.5).abs().max() < 1e-3


DEGENERATE = {
    'zero': torch.zeros(2, 3, 3),
    'constant': torch.full((2, 3, 3), 0.7),
    'one pixel set': F.one_hot(torch.tensor([4, 0]), 9).view(2, 3, 3).float(),
    'one-pixel grid': torch.full((2, 1, 1), 0.3),
    'zero one-pixel grid': torch.zeros(2, 1, 1),
    'below the normal numbers': torch.full((2, 3, 3), 1e-42),
    'tiny': torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) * 1e-18,
    'huge': torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)) * 1e18,
}


PAIRS = [(t, c) for t in DEGENERATE for c in DEGENERATE if DEGENERATE[t].shape == DEGENERATE[c].shape]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('target, confused', PAIRS)
def test_degenerate_maps_give_finite_values_and_gradients(target, confused, dtype):
    # What float16 cannot represent it may at least not turn into NaN: 1e18 is clamped as a model's features would be.
    limit = torch.finfo(dtype).max
    target_map, confused_map = (
        DEGENERATE[name].clamp(max=min(limit, 1e30)).to(dtype).clone().requires_grad_() for name in (target, confused))
    for scale in ('max', 'raw'):
        mask = target_mask(target_map, scale=scale)
        separation = attention_separation(target_map, confused_map, mask)
        consistency = attention_consistency(target_map, mask)
        assert mask.isfinite().all() and consistency.isfinite().all()
        assert ((0 <= separation) & (separation <= 1 + 1e-5)).all()
        assert (consistency <= 0.8 + 1e-5).all()
        gradients = torch.autograd.grad(
            separation.sum() + consistency.sum(), (target_map, confused_map), retain_graph=True, allow_unused=True)
        assert all(g is None or not g.isnan().any() for g in gradients)
        if dtype != torch.float16:
            assert all(g is None or g.isfinite().all() for g in gradients)


def test_nan_is_not_hidden():
    broken = torch.rand(2, 3, 3)
    broken[0, 0, 0] = torch.nan
    for values in (
            target_mask(broken).sum((1, 2)), attention_consistency(broken, torch.ones(2, 3, 3)),
            attention_separation(broken, torch.rand(2, 3, 3), torch.ones(2, 3, 3))):
        assert values[0].isnan() and values[1].isfinite()


def test_what_degenerate_maps_mean():
    zero, one_pixel = DEGENERATE['zero'], DEGENERATE['one pixel set']
    assert (target_mask(zero) == 0.5).all(), 'no attention: the sigmoid of 0'
    assert (target_mask(DEGENERATE['constant']) == 1).all(), 'attention everywhere'
    torch.testing.assert_close(target_mask(one_pixel), one_pixel, atol=1e-6, rtol=0)
    assert (attention_separation(zero, zero, zero) == 0).all()
    assert (attention_consistency(zero, torch.ones(2, 3, 3)) == 0.8).all()
    # A last map of zeros leaves the inner terms alive, with a mask of 0.5.
    torch.testing.assert_close(attention_consistency(one_pixel, target_mask(zero)), torch.full((2,), 0.3))
    torch.testing.assert_close(
        attention_separation(one_pixel, one_pixel, target_mask(zero)), torch.full((2,), 0.5))
    assert attention_overlap(zero, one_pixel).isnan().all()
    # Equal maps whose sum is no number of their type had an overlap of 0, as disjoint ones.
    assert attention_overlap(zero + 2e38, zero + 2e38).isnan().all()
    assert (attention_overlap(zero + 1e37, zero + 1e37) == 1).all()


@pytest.mark.parametrize('function', [
    lambda maps: target_mask(maps[0]),
    lambda maps: attention_separation(*maps),
    lambda maps: attention_consistency(*maps[:2]),
    lambda maps: attention_overlap(*maps[:2]),
])
def test_samples_do_not_mix(function):
    maps, order = random_maps(3), torch.tensor([2, 0, 1])
    assert torch.equal(function([m[order] for m in maps]), function(maps)[order])


def test_weights_of_other_classes_are_refused():
    """One weight for each class was read as two: that of the second class for all that are present."""
    logits, target = torch.randn(2, 3), torch.tensor([[1., 0., 1.], [0., 0., 1.]])
    for weights in (torch.tensor([1., 2., 3.]), torch.ones(2, 4), torch.ones(2)):
        with pytest.raises(ICASCError, match=r'`weights` must be \[2, C\].* C = 3, got'):
            MultiLabelSoftMarginLoss(weights)(logits, target)
    for weights in (torch.ones(4), torch.ones(2), torch.ones(1, 3)):
        with pytest.raises(ICASCError, match=r'`weights` must be \[C\], C = 3, got'):
            ClassWeightedLoss(torch.nn.CrossEntropyLoss(), weights)(logits, torch.tensor([0, 1]))


def test_unknown_mask_scale_is_named():
    with pytest.raises(ValueError, match="scale must be one of .*'mean'"):
        target_mask(torch.rand(1, 2, 2), scale='mean')


MAPS = torch.ones(2, 3, 3)


@pytest.mark.parametrize('call, name', [
    (lambda whole: target_mask(whole), 'target_map'),
    (lambda whole: resize_mask(whole, (6, 6)), 'mask'),
    (lambda whole: attention_overlap(whole, MAPS), 'target_map'),
    (lambda whole: attention_overlap(MAPS, whole), 'confused_map'),
    (lambda whole: attention_separation(MAPS, whole, MAPS), 'confused_map'),
    (lambda whole: attention_consistency(whole, MAPS), 'inner_map')])
def test_maps_of_whole_numbers_are_refused(call, name):
    """As of a picture, 0 to 255."""
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ICASCError, match=rf'`{name}` must be floating point, got {dtype}: `{name}\.float\(\)`'):
            call(MAPS.to(dtype))


def test_a_mask_can_be_hard():
    hard = DEGENERATE['one pixel set'].bool()
    assert torch.equal(attention_separation(MAPS, MAPS, hard), attention_separation(MAPS, MAPS, hard.float()))
    assert torch.equal(attention_consistency(MAPS, hard), attention_consistency(MAPS, hard.float()))


@pytest.mark.parametrize('grid', [(1, 1), (3, 1), (6, 6)])
@pytest.mark.parametrize('call, name, first', [
    (lambda other: attention_separation(MAPS, MAPS, other), 'mask', 'target_map'),
    (lambda other: attention_separation(MAPS, other, MAPS), 'confused_map', 'target_map'),
    (lambda other: attention_consistency(MAPS, other), 'mask', 'inner_map'),
    (lambda other: attention_overlap(MAPS, other), 'confused_map', 'target_map')])
def test_maps_of_different_grids_are_refused(call, name, first, grid):
    """One of a single cell was stretched over all cells in silence."""
    other = torch.ones(2, *grid)
    with pytest.raises(ICASCError, match=rf'`{name}` must lie on the grid of `{first}`, \(2, 3, 3\), got \(2, '):
        call(other)
    assert call(resize_mask(other, (3, 3))).isfinite().all()


@pytest.mark.parametrize('call', [attention_separation, lambda maps, others, mask: attention_consistency(maps, mask)])
def test_a_mask_of_each_image_beside_maps_of_several_classes(call):
    """With as many classes as images it was taken for that of another image."""
    maps, mask = torch.rand(2, 3, 3, 4, 4), torch.rand(3, 4, 4)
    with pytest.raises(ICASCError, match=r'`mask` must have the 4 axes of `\w+`, \(3, 3, 4, 4\), got \(3, 4, 4\)'):
        call(*maps, mask)
    expected = torch.stack([call(*maps[:, image], mask[image].expand(3, 4, 4)) for image in range(3)])
    torch.testing.assert_close(call(*maps, mask[:, None]), expected)
