"""What blurring, bringing in and masking by a map does to the scores: against loops, torchcam, and models that look at
one place only."""
import math

import pytest
import torch
from helpers.in_training import in_training
from helpers.models import create
from torch import nn

from timm_icasc import ICASCError, attention_maps
from timm_icasc.evaluation.faithfulness import (
    Subject,
    average_drop,
    blurred,
    deletion_insertion,
    highest,
    map_faithfulness,
    map_values,
    own_and_other,
    random_maps,
    random_values,
    region_drops,
    silent,
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
    torch.testing.assert_close(region_drops(Subject.of(TWO, images, softmax), mask), TWO(images) - TWO(changed))


def test_the_blur_by_loops():
    """Products with a Gaussian of 1/12 of the shorter side, cut off at two deviations, the border reflected."""
    image = torch.randn(1, 1, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = {d: math.exp(-d ** 2 / 2) for d in (-2, -1, 0, 1, 2)}  # a side of 12: a deviation of 1

    def at(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i
    found = blurred(image)
    for i in range(12):
        for j in range(20):
            value = sum(
                a * b * float(image[0, 0, at(i + d, 12), at(j + e, 20)])
                for d, a in kernel.items() for e, b in kernel.items()) / sum(kernel.values()) ** 2
            assert float(found[0, 0, i, j]) == pytest.approx(value, abs=1e-7)


def test_the_blur_keeps_the_mean_and_takes_the_detail(images):
    assert torch.allclose(blurred(torch.ones(1, 3, *SIZE)), torch.ones(1, 3, *SIZE))
    assert blurred(images).std() < 0.4 * images.std()
    assert blurred(torch.randn(1, 3, 2, 2)).isfinite().all()  # smaller than any kernel


def test_own_and_other_by_loops():
    generator = torch.Generator().manual_seed(0)
    drops = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    own, others = torch.tensor([0, 2, 1, 1]), torch.tensor([[0, .5, .5], [1, 0, 0], [0, 0, 0], [0, 0, 1.]]).double()
    drops[3, 0] = torch.nan  # a class that counts for nothing here
    values = own_and_other(drops, own, others)
    for b in range(4):
        expected = float(drops[b, own[b]])
        assert values['own_drop'][b] == expected
        other = sum(float(drops[b, c] * others[b, c]) for c in range(3) if others[b, c])
        if others[b].any():
            assert values['other_drop'][b] == pytest.approx(other)
            assert values['class_specificity'][b] == pytest.approx(expected - other)
        else:
            assert values['other_drop'][b].isnan() and values['class_specificity'][b].isnan()


def test_a_right_map_tells_the_classes_apart_and_a_wrong_one_does_not(images):
    classes = torch.tensor([[0, 1]]).expand(3, 2)
    others = torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    right = torch.stack([map_of(LEFT), map_of(RIGHT)], 1).expand(3, -1, -1, -1)
    values = map_faithfulness(TWO, images, right, classes, others, [0, 1, 2], softmax)
    assert (values['own_drop'] > 0.6).all() and (values['class_specificity'] > 0.6).all()
    assert (values['other_drop'].abs() < 1e-6).all()
    assert values['own_drop'].mean() > 2 * values['own_drop_random'].mean()
    wrong = map_faithfulness(TWO, images, right.flip(1), classes, others, [0, 1, 2], softmax)
    assert (wrong['own_drop'].abs() < 1e-6).all() and (wrong['class_specificity'] < -0.6).all()
    assert (wrong['deletion'] > values['deletion']).all() and (wrong['insertion'] < values['insertion']).all()
    assert not values['silent_maps'].any()


@pytest.mark.parametrize('nothing', [0., 3., torch.nan, torch.inf])
def test_a_map_that_ranks_no_pixel_is_counted_and_measured_nowhere(images, nothing):
    """Zero everywhere, flat, or not finite: the region of such a map would be one of the sort's making."""
    maps = torch.stack([map_of(LEFT).expand(3, -1, -1), torch.full((3, *SIZE), nothing)], 1)
    classes, others = torch.tensor([[0, 1]]).expand(3, 2), torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    assert silent(maps).tolist() == [[False, True]] * 3
    values = map_faithfulness(TWO, images, maps, classes, others, [0, 1, 2], softmax)
    assert values.pop('silent_maps').tolist() == [[0, 1]] * 3
    for value in values.values():
        assert value[:, 0].isfinite().all() and value[:, 1].isnan().all()


def test_only_maps_that_are_all_silent(images):
    values = map_faithfulness(
        TWO, images, torch.zeros(3, 1, *SIZE), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1, 2), [0, 1, 2],
        softmax)
    assert values.pop('silent_maps').all() and all(value.isnan().all() for value in values.values())


def test_one_pixel_that_is_not_a_number_spoils_its_map(images):
    maps = map_of(LEFT)
    maps[0, 3, 3] = torch.nan
    assert silent(maps).item()


def test_a_class_without_another_has_no_specificity(images):
    values = map_faithfulness(
        TWO, images, map_of(LEFT).expand(3, -1, -1)[:, None], torch.zeros(3, 1, dtype=torch.long),
        torch.zeros(3, 1, 2), [0, 1, 2], softmax)
    assert values['class_specificity'].isnan().all() and values['own_drop'].isfinite().all()


def test_classes_that_are_not_asked_for_cost_nothing_and_have_no_values(images):
    """Images with fewer classes than others of their batch: no value, and no forward pass."""
    class Counted(LooksAt):
        images = 0

        def forward(self, x):
            self.images += len(x)
            return super().forward(x)

    classes, others = torch.tensor([[0, 1]]).expand(3, 2), torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    maps = torch.stack([map_of(LEFT), map_of(RIGHT)], 1).expand(3, -1, -1, -1)
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    model = Counted(LEFT, RIGHT).eval()
    some = map_faithfulness(model, images, maps, classes, others, [0, 1, 2], softmax, valid)
    all_of_them = map_faithfulness(TWO, images, maps, classes, others, [0, 1, 2], softmax)
    for name, value in some.items():
        torch.testing.assert_close(value[valid], all_of_them[name][valid])
        assert value[~valid].isnan().all()
    # The image, the blurred one, a random region; of each map its region, seven steps of two curves, the masked image.
    assert model.images == 3 * 3 + 4 * (1 + 14 + 1)
    alone = map_values(Subject.of(TWO, images, softmax), maps, classes, others, valid, curves=False)
    assert set(alone) == {'own_drop', 'other_drop', 'class_specificity', 'silent_maps'}
    for name, value in alone.items():
        torch.testing.assert_close(value, some[name], equal_nan=True)


def test_other_classes_are_weights(images):
    classes = torch.tensor([[0, 1]]).expand(3, 2)
    with pytest.raises(ICASCError, match=r'`others` must be weights of each class score, \(3, 2, 2\), got \(3, 2\)'):
        map_faithfulness(TWO, images, torch.ones(3, 2, 4, 4), classes, 1 - classes, [0, 1, 2], softmax)


def test_random_regions_by_loops(images):
    """One region an image, of its own seed: a quarter of the pixels, where a random 4 x 4 map is highest."""
    classes, others = torch.tensor([[0, 1]]).expand(3, 2), torch.tensor([[0., 1.], [1., 0.]]).expand(3, 2, 2)
    values = random_values(Subject.of(TWO, images, softmax), [7, 8, 7], classes, others)
    for b, seed in enumerate((7, 8, 7)):
        grid = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed))
        smooth = nn.functional.interpolate(grid[None, None], SIZE, mode='bilinear')[0, 0]
        changed, chosen = images[b:b + 1].clone(), smooth.flatten().argsort(descending=True)[:SIZE[0] * SIZE[1] // 4]
        for p in chosen.tolist():
            changed[0, :, p // SIZE[1], p % SIZE[1]] = blurred(images[b:b + 1])[0, :, p // SIZE[1], p % SIZE[1]]
        drops = (TWO(images[b:b + 1]) - TWO(changed))[0]
        torch.testing.assert_close(values['own_drop'][b], drops)
        torch.testing.assert_close(values['class_specificity'][b], drops - drops.flip(0))


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
    subject = Subject.of(model, images, softmax)
    drop, rise = average_drop(subject, maps, classes).values()
    deletion, insertion = deletion_insertion(subject, maps, classes, steps=8).values()
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


@pytest.mark.parametrize('probabilities', [softmax, torch.sigmoid])
def test_the_area_under_a_curve_by_hand(images, probabilities):
    """A step more of the ranking at a time, and trapezoids between the steps."""
    maps, classes, steps = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 0]), 4
    areas = deletion_insertion(Subject.of(TWO, images, probabilities), maps, classes, steps)
    for name, whole, other in (('deletion', images, blurred(images)), ('insertion', blurred(images), images)):
        for b in range(3):
            order = sorted(range(maps[b].numel()), key=lambda p, b=b: -float(maps[b].flatten()[p]))
            values = []
            for step in range(steps + 1):
                changed = whole[b].clone().flatten(1)
                for p in order[:math.ceil(len(order) / steps) * step]:
                    changed[:, p] = other[b].flatten(1)[:, p]
                values.append(float(probabilities(TWO(changed.view(1, 3, *SIZE)))[0, classes[b]]))
            area = sum((values[i] + values[i + 1]) / 2 / steps for i in range(steps))
            assert float(areas[name][b]) == pytest.approx(area, abs=1e-5)


def test_steps_that_do_not_divide_the_pixels(images):
    """The last step is a shorter one, and counts for less."""
    maps = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    flat = Subject.of(LooksAt(LEFT, LEFT), images, softmax)
    areas = deletion_insertion(flat, maps, torch.tensor([0, 1, 0]), steps=7)
    for area in areas.values():
        torch.testing.assert_close(area, torch.full((3,), 0.5))


def test_average_drop_by_loops():
    model, generator = small_network(), torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, *SIZE, generator=generator, dtype=torch.float64)
    maps, classes = torch.rand(4, *SIZE, generator=generator, dtype=torch.float64), torch.tensor([1, 0, 4, 2])
    values = average_drop(Subject.of(model, images, softmax), maps, classes)
    for b in range(4):
        masked, low, high = images[b].clone(), float(maps[b].min()), float(maps[b].max())
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                masked[:, i, j] *= (float(maps[b, i, j]) - low) / (high - low)
        with torch.no_grad():
            before, after = (float(softmax(model(x[None]))[0, classes[b]]) for x in (images[b], masked))
        assert float(values['average_drop'][b]) == pytest.approx(max(0, before - after) / before, abs=1e-9)
        assert float(values['average_increase'][b]) == float(after > before)


def test_own_drop_is_road_with_another_filling():
    """pytorch-grad-cam's ROAD, most relevant first, at its percentile 75: there the score after less the one before."""
    metric = pytest.importorskip('pytorch_grad_cam.metrics.perturbation_confidence')
    targets = pytest.importorskip('pytorch_grad_cam.utils.model_targets')
    model, generator = small_network().float(), torch.Generator().manual_seed(4)
    images, maps = torch.randn(4, 3, *SIZE, generator=generator), torch.rand(4, *SIZE, generator=generator)
    classes = torch.tensor([0, 3, 2, 4])
    road = metric.PerturbationConfidenceMetric(metric.RemoveMostRelevantFirst(
        75, lambda image, kept: torch.where(kept > 0, image, blurred(image[None])[0])))
    changes = road(images, maps.numpy(), [targets.ClassifierOutputTarget(int(c)) for c in classes], model)
    values = map_values(
        Subject.of(model, images, softmax), maps[:, None], classes[:, None], torch.zeros(4, 1, 5), curves=False)
    torch.testing.assert_close(values['own_drop'][:, 0], -torch.from_numpy(changes))


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


@pytest.mark.parametrize('measure', [
    lambda subject, maps, classes, others: map_values(subject, maps, classes, others),
    lambda subject, maps, classes, others: random_values(subject, [0, 1], classes, others),
    lambda subject, maps, classes, others: deletion_insertion(subject, maps[:, 0], classes[:, 0]),
    lambda subject, maps, classes, others: average_drop(subject, maps[:, 0], classes[:, 0]),
    lambda subject, maps, classes, others: {'drops': region_drops(subject, highest(maps[:, 0], subject.size))},
    lambda subject, maps, classes, others: map_faithfulness(
        subject.model, subject.images, maps, classes, others, [0, 1], softmax)])
def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(measure):
    """Dropout and the batch were in the numbers, and BatchNorm's statistics moved."""
    model, images = create('resnet20_cifar', drop_rate=0.5).eval(), torch.randn(2, 3, 32, 32)
    arguments = torch.rand(2, 1, 8, 8), torch.tensor([[1], [2]]), torch.eye(10)[[3, 4], None]
    expected = measure(Subject.of(model, images, softmax), *arguments)
    with in_training(model):
        found = measure(Subject.of(model, images, softmax), *arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
