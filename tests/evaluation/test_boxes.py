"""Attention against boxes: every measure recomputed with loops over pixels in float64."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timm_icasc.evaluation.boxes import (
    box_mask,
    energy_in_boxes,
    largest_component_box,
    localise,
    pointing_game,
)

GENERATOR = np.random.default_rng(0)


def inside(x, y, box, margin=0.):
    return box[0] - margin <= x < box[2] + margin and box[1] - margin <= y < box[3] + margin


@pytest.mark.parametrize('seed', range(5))
def test_masks_energy_and_pointing(seed):
    generator = np.random.default_rng(seed)
    heat = generator.random((9, 13)).astype(np.float32) ** 3
    low, high = generator.random((2, 3, 2)) * (13, 9)
    boxes = np.concatenate([np.minimum(low, high), np.maximum(low, high)], 1)
    in_box = total = 0.
    area = 0
    best, place = -1., None
    for y in range(9):
        for x in range(13):
            hit = any(inside(x + 0.5, y + 0.5, box) for box in boxes)
            area += hit
            total += float(heat[y, x])
            in_box += float(heat[y, x]) * hit
            if heat[y, x] > best:
                best, place = heat[y, x], (x + 0.5, y + 0.5)
    mask = box_mask(boxes, 9, 13)
    assert mask.sum() == area
    assert energy_in_boxes(heat, mask) == pytest.approx(in_box / total)
    for margin in (0., 0.7, 3.):
        assert pointing_game(heat, boxes, margin) == any(inside(*place, box, margin) for box in boxes)
    result = localise(heat, boxes)
    assert result['box_area'] == pytest.approx(area / (9 * 13))
    assert result['energy'] == pytest.approx(in_box / total)


def test_pixels_that_share_the_maximum_count_by_their_share():
    """A maximum in a corner cell is flat over a quarter of it when enlarged, up to rounding in either direction."""
    grid = torch.tensor([[0.7, 0.1, 0.2], [0., 0.3, 0.1], [0.1, 0., 0.]])
    heat = F.interpolate(grid[None, None], (24, 24), mode='bilinear', align_corners=False)[0, 0].numpy()
    boxes = np.array([[0., 0., 2., 24.]])
    assert (heat >= 0.7 - 1e-6).sum() == 16
    expected = sum(x < 2 for x in range(4) for _ in range(4)) / 16
    for noise in (heat * 0, GENERATOR.normal(0, 1e-7, heat.shape), -GENERATOR.normal(0, 1e-7, heat.shape)):
        assert pointing_game(heat + noise, boxes) == expected == 0.5
    assert pointing_game(np.ones((4, 6)), np.array([[0., 0., 3., 2.]])) == 0.25, 'a flat map points by chance'


def flood(region, start):
    seen, stack = set(), [start]
    while stack:
        y, x = stack.pop()
        if (y, x) in seen or not (0 <= y < len(region) and 0 <= x < len(region[0])) or not region[y][x]:
            continue
        seen.add((y, x))
        stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return seen


@pytest.mark.parametrize('seed', range(5))
def test_box_of_the_largest_region(seed):
    region = np.random.default_rng(seed).random((8, 11)) < 0.35
    components = [flood(region, (y, x)) for y in range(8) for x in range(11) if region[y, x]]
    size = max(map(len, components))
    candidates = [[min(x for _, x in c), min(y for y, _ in c), max(x for _, x in c) + 1, max(y for y, _ in c) + 1]
                  for c in components if len(c) == size]
    assert largest_component_box(region).tolist() in candidates


def test_iou_by_counting_pixels():
    box, others = np.array([2., 1., 7., 6.]), np.array([[4., 3., 9., 8.], [8., 8., 9., 9.], [2., 1., 7., 6.]])
    expected = []
    for other in others:
        both = either = 0
        for y in range(10):
            for x in range(10):
                a, b = inside(x + 0.5, y + 0.5, box), inside(x + 0.5, y + 0.5, other)
                both, either = both + (a and b), either + (a or b)
        expected.append(both / either)
    heat = np.zeros((10, 10), np.float32)
    heat[1:6, 2:7] = 1  # `box`
    assert [localise(heat, other[None])['iou'] for other in others] == pytest.approx(expected)
    assert localise(heat, others[:2])['iou'] == pytest.approx(expected[0]), 'the nearest box counts'
    assert expected[1] == 0 and expected[2] == 1


def test_a_perfect_map_and_a_map_of_zeros():
    heat, boxes = np.zeros((20, 20)), np.array([[5., 6., 15., 12.]])
    nothing = {'pointing': 0., 'energy': 0., 'iou': 0., 'iou50': 0., 'no_map': 1., 'box_area': 60 / 400}
    assert localise(heat, boxes) == nothing
    heat[6:12, 5:15] = 1
    everything = {'pointing': 1., 'energy': 1., 'iou': 1., 'iou50': 1., 'no_map': 0., 'box_area': 60 / 400}
    assert localise(heat, boxes) == everything


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_none(value):
    heat, boxes = np.ones((20, 20)), np.array([[5., 6., 15., 12.]])
    heat[8, 8] = value
    assert localise(heat, boxes) == localise(np.zeros((20, 20)), boxes)


def test_the_threshold_is_a_fraction_of_the_maximum():
    """A weak plateau belongs to the region only below its height."""
    heat, boxes = np.zeros((20, 20)), np.array([[5., 5., 10., 10.]])
    heat[5:10, 5:15] = 0.5
    heat[5:10, 5:10] = 1.
    assert localise(heat, boxes, sigma=0.55)['iou'] == 1
    assert localise(heat, boxes, sigma=0.45)['iou'] == 0.5
    assert localise(heat, boxes, sigma=0.45)['iou50'] == 1
