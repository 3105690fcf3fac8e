"""Pixels are followed through the evaluation transform: checked against what it does to the pixels themselves."""
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from timm_icasc import DataError
from timm_icasc.data.geometry import transform_geometry

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
