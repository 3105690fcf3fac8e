"""Boxes follow the evaluation transform: checked against what the transform does to the pixels themselves."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from timm_icasc import DataError
from timm_icasc.evaluation.boxes import (
    box_mask,
    energy_in_boxes,
    largest_component_box,
    localise,
    pointing_game,
    transform_geometry,
)

CASES = [(size, crop_mode, crop_pct, img_size)
         for size in [(300, 200), (201, 333), (64, 64), (37, 90), (500, 20)]
         for crop_mode in ('center', 'squash', 'border')
         for crop_pct, img_size in ((1., 64), (0.875, 64), (0.9, 63), (0.875, (48, 80)))]


def transform_of(crop_mode, crop_pct, img_size):
    return create_transform(img_size, is_training=False, crop_mode=crop_mode, crop_pct=crop_pct,
                            interpolation='bilinear', mean=(0., 0., 0.), std=(1., 1., 1.))


@pytest.mark.parametrize('size, crop_mode, crop_pct, img_size', CASES)
def test_coordinates_land_where_the_pixels_do(size, crop_mode, crop_pct, img_size):
    """An image whose red and green are its own coordinates tells where each pixel of the crop came from."""
    width, height = size
    transform = transform_of(crop_mode, crop_pct, img_size)
    geometry = transform_geometry(transform, size)
    expected = (img_size, img_size) if isinstance(img_size, int) else img_size
    assert (geometry.height, geometry.width) == expected
    for axis, (length, scale, offset) in enumerate((
            (width, geometry.scale_x, geometry.left), (height, geometry.scale_y, geometry.top))):
        ramp = np.arange(length) + 0.5  # the coordinate of each pixel
        pixels = np.broadcast_to(ramp[None, :, None] if axis == 0 else ramp[:, None, None], (height, width, 3))
        steps = [step for step in transform.transforms if not isinstance(step, transforms.Normalize)][:-1]
        out = Image.fromarray(np.ascontiguousarray(pixels[..., 0], dtype=np.float32), 'F')
        for step in steps:
            if type(step).__name__ == 'CenterCropOrPad':
                step.fill = 0
            out = step(out)
        out = np.asarray(out)
        line = out[out.shape[0] // 2] if axis == 0 else out[:, out.shape[1] // 2]
        centre = (np.arange(len(line)) + 0.5 - offset) / scale
        # Away from the edges, where the filter of the resize is cut off, and from the padding.
        reach = 2 * max(1, 1 / scale)
        inside = (centre > reach) & (centre < length - reach)
        assert inside.any() or scale * length < 5
        # In pixels of the crop; an offset rounded the other way would be off by one.
        np.testing.assert_allclose(line[inside] * scale, centre[inside] * scale, atol=0.1)


def test_boxes_are_scaled_moved_and_clipped():
    """300 x 200 at 64 px with 0.875: resized to 109 x 73, cropped from (22, 4) (torchvision rounds half to even)."""
    geometry = transform_geometry(transform_of('center', 0.875, 64), (300, 200))
    boxes = np.array([[100, 50, 200, 150], [0, 0, 300, 200], [0, 0, 50, 200]])
    mapped = geometry.boxes(boxes)
    expected = []
    for xmin, ymin, xmax, ymax in boxes.tolist():
        edges = [xmin * 109 / 300 - 22, ymin * 73 / 200 - 4, xmax * 109 / 300 - 22, ymax * 73 / 200 - 4]
        edges = [min(max(e, 0.), 64.) for e in edges]
        if edges[0] < edges[2] and edges[1] < edges[3]:
            expected.append(edges)
    assert len(expected) == 2, 'the third box is cropped away'
    np.testing.assert_allclose(mapped, expected)


def test_a_box_without_the_aspect():
    """300 x 200 to 64 x 64, by 64/300 and 64/200: the box of a white rectangle is the rectangle of the result."""
    transform = transform_of('squash', 1., 64)
    pixels = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels[50:150, 75:225] = 255
    mapped = transform_geometry(transform, (300, 200)).boxes(np.array([[75, 50, 225, 150]]))
    np.testing.assert_allclose(mapped, [[16, 16, 48, 48]])
    white = transform(Image.fromarray(pixels))[0] > 0.5
    assert white.nonzero().amin(0).tolist() == [16, 16] and white.nonzero().amax(0).tolist() == [47, 47]
    assert white.sum() == 32 * 32
    kept = transform_geometry(transform_of('center', 1., 64), (300, 200)).boxes(np.array([[75, 50, 225, 150]]))
    np.testing.assert_allclose(kept, [[8, 16, 56, 48]])  # 96 x 64, of which 16 are cut off at each side


def test_a_step_that_cannot_be_followed_is_refused():
    transform = transforms.Compose([transforms.Resize(64), transforms.RandomRotation(10), transforms.ToTensor()])
    with pytest.raises(DataError, match='RandomRotation'):
        transform_geometry(transform, (300, 200))
    assert transform(Image.new('RGB', (300, 200))).shape == torch.Size((3, 64, 96))


# Attention against boxes: every measure recomputed with loops over pixels in float64.
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


def test_the_threshold_is_a_fraction_of_the_maximum():
    """A weak plateau belongs to the region only below its height."""
    heat, boxes = np.zeros((20, 20)), np.array([[5., 5., 10., 10.]])
    heat[5:10, 5:15] = 0.5
    heat[5:10, 5:10] = 1.
    assert localise(heat, boxes, sigma=0.55)['iou'] == 1
    assert localise(heat, boxes, sigma=0.45)['iou'] == 0.5
    assert localise(heat, boxes, sigma=0.45)['iou50'] == 1
