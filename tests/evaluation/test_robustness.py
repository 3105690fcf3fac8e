"""Maps of flipped and cropped images against the images' own."""
import numpy as np
import pytest
import torch
from helpers.in_training import in_training
from helpers.models import create

from timm_icasc import attention_maps, resolve_layers
from timm_icasc.evaluation.boxes import localise
from timm_icasc.evaluation.robustness import (
    across_images,
    central_crop,
    map_robustness,
    region_iou,
    transformed_maps,
)


def test_region_iou_equals_a_loop():
    a, b = torch.rand(3, 5, 4), torch.rand(3, 5, 4)
    for iou, first, second in zip(region_iou(a, b, 0.6), a, b, strict=True):
        regions = [{(i, j) for i in range(5) for j in range(4) if m[i, j] > 0.6 * m.max()} for m in (first, second)]
        assert iou == pytest.approx(len(regions[0] & regions[1]) / len(regions[0] | regions[1]))


def test_region_iou_of_equal_disjoint_and_missing_maps():
    left, right = torch.zeros(2, 4), torch.zeros(2, 4)
    left[:, :2], right[:, 2:] = 1., 3.
    assert region_iou(left, 5 * left) == 1 and region_iou(left, right) == 0
    assert region_iou(left, torch.zeros(2, 4)).isnan()
    assert region_iou(left, right / torch.zeros(2, 4)).isnan() and region_iou(left, left.log().abs()).isnan()


@pytest.mark.parametrize('sigma', [0.5, 1.])
def test_pixels_at_the_threshold_are_in_the_region_as_in_that_of_the_box(sigma):
    """At 1 nothing is above it, and the region would be empty."""
    whole, weak = torch.zeros(2, 6, 6)
    whole[1:3, 1:4], weak[1:3, 1:4] = 2., 2 * sigma
    weak[2, 2] = 2.
    assert region_iou(whole, weak, sigma) == region_iou(whole, whole, sigma) == 1
    assert localise(weak.numpy(), np.array([[1., 1., 4., 3.]]), sigma)['iou'] == 1


def test_central_crop_enlarges_the_middle():
    """On a ramp, bilinear interpolation is exact: pixel centres are where geometry says."""
    ramp = torch.arange(8.).expand(1, 1, 8, 8)
    middle = central_crop(ramp, 0.5)[0, 0, 3]
    assert middle.tolist() == pytest.approx([3.5 + 0.5 * (j - 3.5) for j in range(8)], abs=1e-5)
    assert torch.equal(central_crop(ramp.mT, 0.5), central_crop(ramp, 0.5).mT)


class TestAcrossImages:

    def test_it_equals_a_loop(self):
        maps, images = torch.rand(6, 3, 4), [5, 2, 5, 9, 2, 7]
        expected = []
        for i in range(6):
            others = []
            for j in range(6):
                if images[i] != images[j]:
                    a, b = maps[i].double().flatten().tolist(), maps[j].double().flatten().tolist()
                    mean_a, mean_b = sum(a) / 12, sum(b) / 12
                    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
                    variances = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
                    others.append(covariance / variances ** 0.5)
            expected.append(sum(others) / len(others))
        values = across_images(maps, torch.tensor(images))
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))

    def test_one_place_and_places_of_their_own(self):
        assert across_images(torch.tensor([1., 3.])[:, None, None] * torch.rand(5, 5), torch.arange(2)).tolist() \
            == pytest.approx([1., 1.])
        alone = torch.eye(16).view(16, 4, 4)  # each elsewhere: as far below 0 as all together can be
        assert across_images(alone, torch.arange(16)).tolist() == pytest.approx([-1 / 15] * 16)

    def test_maps_without_a_place(self):
        flat = [torch.full((3, 3), value) for value in (0., 0.1, torch.nan)]
        maps = torch.stack([torch.rand(3, 3), *flat])
        assert across_images(maps, torch.arange(4)).isnan().all()
        assert across_images(torch.rand(2, 3, 3), torch.tensor([4, 4])).isnan().all(), 'two classes of one image'
        both = across_images(torch.cat([maps, maps[:1]]), torch.arange(5))
        assert both[[0, 4]].tolist() == pytest.approx([1., 1.]) and both[1:4].isnan().all()


def robustness_of(model, images, classes, layers, layer='last'):
    maps = attention_maps(model, images, classes, method='ach', layer=layer, layers=layers)
    return map_robustness(model, images, maps, classes, layers, layer=layer)


class Blobs(torch.nn.Module):
    """Sees brightness, pixel by pixel: its maps move with the image."""
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.Conv2d(2, 2, 1, bias=False)
        for conv in (self.first, self.second):
            torch.nn.init.ones_(conv.weight)

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


def test_a_model_that_sees_pixel_by_pixel_is_robust():
    model = Blobs().eval()
    images = torch.rand(2, 3, 16, 16)
    layers = resolve_layers(model, ('first', 'second'), (3, 16, 16))
    values = robustness_of(model, images, torch.tensor([[0, 1], [1, 0]]), layers)
    for name in ('flip_overlap', 'flip_iou', 'crop_overlap', 'crop_iou'):
        torch.testing.assert_close(values[name], torch.ones(2, 2))


def test_a_map_that_stays_where_it_is_is_not():
    """The features lie on the left, whatever the image shows."""
    model = Blobs().eval()
    fixed = torch.zeros(1, 1, 16, 16)
    fixed[..., :8] = 1.
    model.first.register_forward_hook(lambda module, args, output: output * 0 + fixed)
    layers = resolve_layers(model, ('first', 'second'), (3, 16, 16))
    values = robustness_of(model, torch.rand(2, 3, 16, 16), torch.tensor([[0], [1]]), layers, layer='inner')
    assert values['flip_overlap'].tolist() == values['flip_iou'].tolist() == [[0.], [0.]]


def test_of_a_real_network():
    model = create('resnet20_cifar').eval()
    layers = resolve_layers(model, input_size=(3, 32, 32))
    values = robustness_of(model, torch.randn(3, 3, 32, 32), torch.tensor([[1], [2], [3]]), layers)
    for value in values.values():
        assert value.shape == (3, 1) and ((value >= 0) & (value <= 1) | value.isnan()).all()
    assert (values['flip_overlap'] < 1).all()


@pytest.mark.parametrize('measure', [map_robustness, transformed_maps])
def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(measure):
    model, images, classes = create('resnet20_cifar').eval(), torch.randn(3, 3, 32, 32), torch.tensor([[1], [2], [3]])
    layers = resolve_layers(model, input_size=(3, 32, 32))
    maps = attention_maps(model, images, classes, method='ach', layers=layers)
    expected = measure(model, images, maps, classes, layers)
    with in_training(model):
        found = measure(model, images, maps, classes, layers)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
