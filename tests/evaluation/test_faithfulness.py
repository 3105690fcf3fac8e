"""What blurring, bringing in and masking by a map does to the scores: against loops, torchcam, and models that look at
one place only."""
import math

import pytest
import torch
from torch import nn

from timm_icasc import attention_maps
from timm_icasc.evaluation.faithfulness import (
    average_drop,
    blurred,
    deletion_insertion,
    highest,
    map_faithfulness,
    own_and_other,
    random_maps,
    region_drops,
)

SIZE = (24, 32)


class LooksAt(nn.Module):
    """Class `k`'s score is the contrast of the image inside the `k`-th rectangle (rows and columns)."""

    def __init__(self, *places):
        super().__init__()
        self.places = places

    def forward(self, x):
        return torch.stack([x[:, :, rows, columns].square().mean((1, 2, 3)) for rows, columns in self.places], 1)


LEFT, RIGHT = (slice(0, 12), slice(0, 16)), (slice(12, 24), slice(16, 32))  # a quarter of the image each
TWO = LooksAt(LEFT, RIGHT)


def map_of(place):
    maps = torch.zeros(1, *SIZE)
    maps[0][place] = 1.
    return maps


@pytest.fixture
def images():
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def softmax(logits):
    return logits.softmax(1)


@pytest.mark.parametrize('share', [0.25, 0.1, 1.])
def test_the_highest_pixels_are_counted_and_ties_go_row_by_row(share):
    maps = torch.randint(0, 4, (2, *SIZE), generator=torch.Generator().manual_seed(0)).double()
    mask = highest(maps, SIZE, share)
    for b in range(2):
        pixels = [(-float(maps[b, i, j]), i, j) for i in range(SIZE[0]) for j in range(SIZE[1])]
        chosen = {(i, j) for _, i, j in sorted(pixels)[:int(share * len(pixels))]}
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                assert mask[b, 0, i, j] == float((i, j) in chosen)


def test_drops_are_those_of_the_blurred_region(images):
    mask = highest(map_of(LEFT), SIZE).expand(3, -1, -1, -1)
    blur, changed = blurred(images), images.clone()
    for b in range(3):
        for i in range(12):
            for j in range(16):
                changed[b, :, i, j] = blur[b, :, i, j]
    torch.testing.assert_close(region_drops(TWO, images, mask, TWO(images)), TWO(images) - TWO(changed))


def test_the_blur_keeps_the_mean_and_takes_the_detail(images):
    assert torch.allclose(blurred(torch.ones(1, 3, *SIZE)), torch.ones(1, 3, *SIZE))
    assert blurred(images).std() < 0.4 * images.std()
    assert blurred(torch.randn(1, 3, 2, 2)).isfinite().all()  # smaller than any kernel


def test_own_and_other_by_loops():
    generator = torch.Generator().manual_seed(0)
    drops = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    own, others = torch.tensor([0, 2, 1, 1]), torch.tensor([[0, .5, .5], [1, 0, 0], [0, 0, 0], [0, 0, 1.]]).double()
    own_drop, specificity = own_and_other(drops, own, others)
    for b in range(4):
        expected = float(drops[b, own[b]])
        assert own_drop[b] == expected
        other = sum(float(drops[b, c] * others[b, c]) for c in range(3))
        if others[b].any():
            assert specificity[b] == pytest.approx(expected - other)
        else:
            assert specificity[b].isnan()


def test_a_right_map_tells_the_classes_apart_and_a_wrong_one_does_not(images):
    classes = torch.tensor([[0, 1]]).expand(3, 2)
    others = torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    right = torch.stack([map_of(LEFT), map_of(RIGHT)], 1).expand(3, -1, -1, -1)
    values = map_faithfulness(TWO, images, right, classes, others, [0, 1, 2], softmax)
    assert (values['own_drop'] > 0.6).all() and (values['class_specificity'] > 0.6).all()
    assert values['own_drop'].mean() > 2 * values['own_drop_random'].mean()
    wrong = map_faithfulness(TWO, images, right.flip(1), classes, others, [0, 1, 2], softmax)
    assert (wrong['own_drop'].abs() < 1e-6).all() and (wrong['class_specificity'] < -0.6).all()
    assert (wrong['deletion'] > values['deletion']).all() and (wrong['insertion'] < values['insertion']).all()
    assert not values['silent_maps'].any()


def test_a_silent_map_is_counted_and_measured_nowhere(images):
    maps = torch.stack([map_of(LEFT).expand(3, -1, -1), torch.zeros(3, *SIZE)], 1)
    classes, others = torch.tensor([[0, 1]]).expand(3, 2), torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    values = map_faithfulness(TWO, images, maps, classes, others, [0, 1, 2], softmax)
    assert values.pop('silent_maps').tolist() == [[0, 1]] * 3
    for value in values.values():
        assert value[:, 0].isfinite().all() and value[:, 1].isnan().all()


def test_a_class_without_another_has_no_specificity(images):
    values = map_faithfulness(
        TWO, images, map_of(LEFT).expand(3, -1, -1)[:, None], torch.zeros(3, 1, dtype=torch.long),
        torch.zeros(3, 1, 2), [0, 1, 2], softmax)
    assert values['class_specificity'].isnan().all() and values['own_drop'].isfinite().all()


def test_batches_do_not_change_values_and_images_are_the_seeds(images):
    def measure(part, rows):
        maps = map_of(LEFT).expand(len(rows), -1, -1)[:, None]
        return map_faithfulness(
            TWO, images[part], maps, torch.zeros(len(rows), 1, dtype=torch.long),
            torch.tensor([[[0., 1.]]]).expand(len(rows), -1, -1), rows, softmax)
    together = measure([0, 1, 2], [5, 6, 7])
    for i in range(3):
        for name, value in measure([i], [5 + i]).items():
            torch.testing.assert_close(value[0], together[name][i])
    assert not torch.equal(random_maps([5], images), random_maps([6], images))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5)).double().eval()


class _Maps:
    """Stands in for torchcam's extractor: hands out maps that are there."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx, scores=None, normalized=True, **kwargs):
        low, high = self.maps.amin((1, 2), keepdim=True), self.maps.amax((1, 2), keepdim=True)
        return [(self.maps - low) / (high - low)]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return torch.no_grad()


def test_average_drop_and_the_curves_are_torchcams():
    metrics = pytest.importorskip('torchcam.metrics')
    if not hasattr(metrics, 'DeletionInsertionMetric'):
        pytest.skip('torchcam has the curves since 0.5')
    model, generator = small_network(), torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, *SIZE, generator=generator, dtype=torch.float64)
    maps = torch.rand(4, 6, 8, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 3, 2, 4])
    with torch.no_grad():
        drop, rise = average_drop(model, images, maps, classes, softmax(model(images)), softmax)
        deletion, insertion = deletion_insertion(model, images, maps, classes, softmax, steps=8)
    reference = metrics.ClassificationMetric(_Maps(model, maps), softmax)
    reference.update(images, classes.tolist())
    assert drop.mean().item() == pytest.approx(reference.summary()['avg_drop'], abs=1e-6)
    assert rise.mean().item() == pytest.approx(reference.summary()['conf_increase'], abs=1e-6)
    reference = metrics.DeletionInsertionMetric(_Maps(model, maps), softmax, steps=8, baseline=blurred)
    reference.update(images, classes.tolist())
    summary = list(reference.summary().values())
    # It ranks the map after scaling it to 0 to 1, which changes the order of values that differ by rounding.
    assert deletion.mean().item() == pytest.approx(summary[0], abs=5e-5)
    assert insertion.mean().item() == pytest.approx(summary[1], abs=5e-5)


def test_the_area_under_a_curve_by_hand(images):
    """A step more of the ranking at a time, and trapezoids between the steps."""
    maps, classes, steps = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 0]), 4
    deletion, _ = deletion_insertion(TWO, images, maps, classes, softmax, steps)
    blur = blurred(images)
    for b in range(3):
        order = sorted(range(maps[b].numel()), key=lambda p, b=b: -float(maps[b].flatten()[p]))
        values = []
        for step in range(steps + 1):
            changed = images[b].clone().flatten(1)
            for p in order[:math.ceil(len(order) / steps) * step]:
                changed[:, p] = blur[b].flatten(1)[:, p]
            values.append(float(softmax(TWO(changed.view(1, 3, *SIZE)))[0, classes[b]]))
        area = sum((values[i] + values[i + 1]) / 2 / steps for i in range(steps))
        assert float(deletion[b]) == pytest.approx(area, abs=1e-5)


def test_a_trained_networks_maps_are_better_than_chance_where_it_looks_at_one_place():
    """Real maps of a network whose score is the contrast of one corner."""
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_classes = 2
            self.early = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.late = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

        def forward(self, x):
            x = self.late(self.early(x))
            half = x[:, :, :x.shape[2] // 2, :x.shape[3] // 2].mean((1, 2, 3))
            return torch.stack([half, -half], 1)

    torch.manual_seed(0)
    model = Corner().eval()
    images = torch.randn(8, 3, 32, 32)
    classes = torch.zeros(8, 1, dtype=torch.long)
    maps = attention_maps(model, images, classes, method='layer_cam', layers=('early', 'late'))
    values = map_faithfulness(
        model, images, maps, classes, torch.tensor([[[0., 1.]]]).expand(8, -1, -1), range(8), softmax)
    assert values['own_drop'].mean() > 2 * values['own_drop_random'].mean() > 0
