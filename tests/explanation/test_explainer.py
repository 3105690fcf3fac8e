"""`timm_icasc.explain`: where the maps lie in the image as it is, and what it takes for an image."""
import gc
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from helpers.bright import BrightNet, count_passes, peak_of, square_image
from helpers.models import create
from PIL import Image
from timm.data import create_transform, resolve_data_config

import timm_icasc
from timm_icasc import (
    DataError,
    ICASCError,
    LayerResolutionError,
    TargetError,
    attention_maps,
    explain,
)
from timm_icasc.explanation import Explainer
from timm_icasc.explanation.overlay import UNSEEN, overlay, spread

ORIENTATIONS = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def turned(path, image, orientation):
    """Write an image so that it is upright once its EXIF orientation is followed."""
    stored = image if ORIENTATIONS[orientation] is None else image.transpose(ORIENTATIONS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, quality=95)
    return path


class TestWhereMapsLie:
    @pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
    @pytest.mark.parametrize('size', [(300, 200), (150, 400), (64, 64), (500, 480)])
    @pytest.mark.parametrize('input_size', [(64, 64), (48, 80)])
    def test_the_peak_is_on_the_square(self, crop_mode, size, input_size):
        width, height = size
        model = BrightNet(crop_mode, size=input_size)
        left, top, right, bottom = explain(model, Image.new('RGB', size)).seen
        side = round(min(right - left, bottom - top) / 4)
        for x, y in ((0.5, 0.5), (0.5, 0.3), (0.7, 0.55), (0.3, 0.62)):
            x0, y0 = round(left + x * (right - left) - side / 2), round(top + y * (bottom - top) - side / 2)
            box = (x0, y0, x0 + side, y0 + side)
            found = explain(model, square_image(size, box), classes=0)
            assert found.maps.shape == (1, height, width)
            column, row = peak_of(found.maps[0])
            assert box[0] < column < box[2] and box[1] < row < box[3]

    @pytest.mark.parametrize('orientation', ORIENTATIONS)
    @pytest.mark.parametrize('kind', ['path', 'text', 'opened'])
    def test_exif(self, orientation, kind, tmp_path):
        image = square_image((200, 300), (60, 150, 100, 190))
        path = turned(tmp_path / 'turned.jpg', image, orientation)
        found = explain(BrightNet(), {
            'path': path, 'text': str(path), 'opened': Image.open(path)}[kind], classes=0)
        assert found.image.size == (200, 300) and found.name == str(path)
        column, row = peak_of(found.maps[0])
        assert 60 < column < 100 and 150 < row < 190
        assert np.abs(np.asarray(found.image, dtype=int) - np.asarray(image, dtype=int)).mean() < 2

    def test_what_was_cropped_away_is_zero_and_dark(self):
        found = explain(BrightNet(), square_image((300, 200), (130, 80, 170, 120)), classes=1)  # dark everywhere
        left, top, right, bottom = found.seen  # 109 x 73 from (22, 4)
        np.testing.assert_allclose(found.seen, (
            22 * 300 / 109, 4 * 200 / 73, (22 + 64) * 300 / 109, (4 + 64) * 200 / 73))
        heat, shown = found.maps[0], np.asarray(found.overlay(0))
        outside = torch.ones_like(heat, dtype=torch.bool)
        outside[round(top):round(bottom), round(left):round(right)] = False
        assert not heat[outside].any() and (heat[~outside] > 0).any()
        assert (shown[outside.numpy()] == 0).all()  # black, darker than black it does not get
        lit = explain(BrightNet(), Image.new('RGB', (300, 200), 'white'), classes=1)
        assert not lit.maps.any()
        assert (np.asarray(lit.overlay(0))[outside.numpy()] == round(255 * UNSEEN)).all()
        assert (np.asarray(lit.overlay(0))[~outside.numpy()] == 255).all()

    def test_maps_are_those_of_attention_maps(self):
        """Of an image that is the input already, enlarged as everywhere else; of a crop, put in its place."""
        model = create('resnet18').eval()
        pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
        found = explain(model, pixels, topk=4, data_config={'input_size': (3, 64, 64), 'crop_pct': 1.})
        config = resolve_data_config(model=model)
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ('mean', 'std'))
        images = ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
        maps, classes = attention_maps(model, images, topk=4, return_classes=True)
        assert found.classes == classes[0].tolist()
        torch.testing.assert_close(found.grid_maps, maps[0])
        torch.testing.assert_close(found.maps, torch.nn.functional.interpolate(maps, (64, 64), mode='bilinear')[0])
        torch.testing.assert_close(found.probabilities, model(images).softmax(1)[0].detach())
        assert found.scores == found.probabilities[found.classes].tolist()

    @pytest.mark.parametrize('shown', [None, (37, 90), (600, 400)])
    def test_spread_pixel_by_pixel(self, shown):
        found = explain(BrightNet(), square_image((300, 200), (130, 80, 170, 120)), classes=0)
        width, height = shown or (300, 200)
        grid, geometry = found.grid_maps[0].double(), found.geometry
        values = spread(found.grid_maps, geometry, (300, 200), shown)[0]
        assert values.shape == (height, width)
        for i in range(0, height, 7):
            for j in range(0, width, 5):
                x = (j + 0.5) * 300 / width * geometry.scale_x + geometry.left
                y = (i + 0.5) * 200 / height * geometry.scale_y + geometry.top
                expected = 0.
                if 0 <= x <= 64 and 0 <= y <= 64:
                    v, u = (min(max(c / 64 * 16 - 0.5, 0.), 15.) for c in (x, y))
                    rows, columns = (
                        [(cell, 1 - abs(at - cell)) for cell in range(16) if abs(at - cell) < 1] for at in (u, v))
                    for a, down in rows:
                        for b, across in columns:
                            expected += down * across * grid[a, b].item()
                assert values[i, j].item() == pytest.approx(expected, abs=1e-6)


class TestImages:
    def test_every_kind_of_image_gives_the_same(self, tmp_path):
        image = square_image((120, 90), (40, 30, 60, 50))
        image.save(tmp_path / 'a.png')
        pixels = np.asarray(image)
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        several = [
            image, tmp_path / 'a.png', pixels, pixels / 255, (pixels / 255).astype(np.float32), tensor,
            image.convert('RGBA'), image.convert('L'), pixels[..., 0], pixels[..., :1]]
        model = BrightNet()
        expected = explain(model, image)
        for other in [*explain(model, several), explain(model, tensor / 255, normalised=False)]:
            assert other.classes == expected.classes and other.scores == expected.scores
            torch.testing.assert_close(other.maps, expected.maps)
            assert np.array_equal(np.asarray(other.image), pixels)

    def test_sixteen_bits(self, tmp_path):
        """Scaled, not cut off at 255."""
        levels = np.zeros((64, 64), dtype=np.uint16)
        levels[16:32, 16:32] = 65535
        levels[40:56, 40:56] = 20000
        Image.fromarray(levels).save(tmp_path / 'deep.png')
        column, row = peak_of(explain(BrightNet(), tmp_path / 'deep.png', classes=0).maps[0])
        assert 16 < column < 32 and 16 < row < 32

    def test_a_normalised_tensor_goes_to_the_model_as_it_is(self):
        model, image = BrightNet(), square_image((64, 64), (8, 40, 24, 56))
        transform = create_transform((3, 64, 64), is_training=False, crop_pct=1., mean=(0.5,) * 3, std=(0.5,) * 3)
        batch = torch.stack([transform(image)] * 2)
        for found in explain(model, batch):
            torch.testing.assert_close(found.grid_maps, attention_maps(model, batch, topk=2)[0])
            assert found.seen == (0, 0, 64, 64) and np.array_equal(np.asarray(found.image), np.asarray(image))
        assert explain(model, batch[0]).scores == found.scores

    def test_a_tensor_whose_scale_is_not_clear_is_refused(self):
        model, unit = BrightNet(), torch.rand(3, 64, 64)
        with pytest.raises(ICASCError, match='say `normalised=False` or `normalised=True`'):
            explain(model, unit)
        with pytest.raises(ICASCError, match='neither 0 to 1 nor what the model takes, -1 to 1'):
            explain(model, 255 * unit)
        with pytest.raises(ICASCError, match='pixels lie in 0 to 1, the tensor in'):
            explain(model, 2 * unit, normalised=False)
        with pytest.raises(ICASCError, match='not finite'):
            explain(model, unit / 0)
        assert explain(model, unit, normalised=True).scores != explain(model, unit, normalised=False).scores
        assert explain(BrightNet(mean=(0.,) * 3, std=(1.,) * 3), unit).scores  # there both are the same

    @pytest.mark.parametrize('image, said', [
        (np.zeros((3, 8, 8), dtype=np.uint8), r'transpose\(1, 2, 0\)'),
        (np.zeros((8, 8, 3), dtype=np.int64), 'uint8, or floating point'),
        (np.zeros((8, 8), dtype=np.uint16), 'uint8, or floating point'),
        (np.full((8, 8, 3), 200.), 'must lie in 0 to 1, got 200 to 200'),
        (np.full((8, 8, 3), np.nan), 'must lie in 0 to 1'),
        (np.zeros((0, 8, 3), dtype=np.uint8), r'got \(0, 8, 3\)'),
        (torch.zeros(8, 8, 3), r'\[channels, height, width\]'),
        (torch.zeros(3, 8, 8, dtype=torch.int64), 'uint8 or floating point'),
        (torch.full((1, 8, 8), -1.), 'takes 3 channels, the tensor has 1'),
        (Image.new('RGB', (0, 8)), 'no pixels: it is of 0 x 8'),
        ({'a.jpg': 0}, 'a list of these, got dict'), (io.BytesIO(b'a'), 'got BytesIO'), (b'a.jpg', 'got bytes'),
        (7, 'a path, a PIL image'), (None, 'a path, a PIL image')])
    def test_what_is_no_image(self, image, said):
        with pytest.raises(ICASCError, match=said):
            explain(BrightNet(), image)

    def test_files_that_cannot_be_read(self, tmp_path):
        (tmp_path / 'no.jpg').write_bytes(b'no image')
        for name in ('no.jpg', 'none.jpg'):
            with pytest.raises(DataError, match=f"Cannot read the image '.*{name}'"):
                explain(BrightNet(), tmp_path / name)
        whole = tmp_path / 'half.jpg'
        square_image((300, 200), (0, 0, 90, 90)).save(whole)
        whole.write_bytes(whole.read_bytes()[:700])
        with pytest.raises(DataError, match='half.jpg'):
            explain(BrightNet(), Image.open(whole))

    def test_a_model_of_grey_images(self):
        torch.manual_seed(0)
        model = timm.create_model('resnet18', in_chans=1, num_classes=4)
        found = explain(model, square_image((64, 64), (8, 8, 30, 30)), data_config={'input_size': (1, 64, 64)})
        assert found.image.mode == 'RGB' and len(found) == 3
        again = explain(model, square_image((64, 64), (8, 8, 30, 30)), data_config={'img_size': 64, 'in_chans': 1})
        assert torch.equal(again.probabilities, found.probabilities)

    def test_lists_and_batches(self, tmp_path):
        model = BrightNet()
        images = [square_image((40 + 9 * n, 64), (4, 4, 20, 20)) for n in range(7)]
        passes = count_passes(model)
        found = explain(model, images, batch_size=3)
        assert passes[-3:] == [3, 3, 1] and [one.image.size for one in found] == [image.size for image in images]
        tensors = [torch.randn(3, side, 64).clamp(-1, 1) for side in (64, 64, 96, 64)]
        assert [one.grid_maps.shape[1] for one in explain(model, tensors)] == [16, 16, 24, 16]
        one_by_one = explain(model, (image for image in images))
        assert [one.scores for one in one_by_one] == [one.scores for one in found]
        images[0].save(tmp_path / 'a.png')
        several, = explain(model, tmp_path.glob('*.png'))
        assert several.scores == found[0].scores and explain(model, iter([])) == []
        assert explain(model, []) == [] and len(explain(model, images[:1])) == 1


class TestModels:
    def test_one_forward_pass_for_scores_and_maps(self):
        model = BrightNet()
        image = square_image((64, 64), (8, 8, 30, 30))
        explain(model, image)  # finds the layers
        passes = count_passes(model)
        explain(model, [image] * 4, classes=[1, 0])
        assert passes == [4]

    def test_the_model_stays_as_it_is(self):
        model = create('resnet18').train()
        model.layer1.eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        explain(model, square_image((64, 64), (8, 8, 30, 30)), data_config={'input_size': (3, 64, 64)})
        assert model.training and not model.layer1.training and model.layer2.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
    def test_a_model_made_for_another_size(self, name):
        found = explain(create(name), square_image((90, 70), (8, 8, 30, 30)))
        assert found.geometry.width == found.geometry.height == 64 and found.maps.shape[1:] == (70, 90)

    def test_layers(self):
        model, image = create('resnet18'), square_image((64, 64), (8, 8, 30, 30))
        config = {'input_size': (3, 64, 64)}
        shapes = {layer: explain(model, image, layer=layer, data_config=config).grid_maps.shape[1]
                  for layer in ('inner', 'last', 'layer2', 'layer3.0')}
        assert shapes == {'inner': 4, 'last': 2, 'layer2': 8, 'layer3.0': 4}
        with pytest.raises(LayerResolutionError, match="no layer 'layer9'"):
            explain(model, image, layer='layer9', data_config=config)
        assert explain(model, image, layers=('layer1', 'layer2'), data_config=config).grid_maps.shape[1] == 8

    def test_one_layer_is_read_as_the_pair_is(self):
        model = create('vit_tiny_patch16_224').eval()
        images = torch.randn(1, 3, 64, 64)
        layers = timm_icasc.resolve_layers(model, input_size=(3, 64, 64))
        for place in layers:
            assert torch.equal(
                attention_maps(model, images, layer=place.path), attention_maps(model, images, layer=place))

    def test_a_model_that_tells_nothing(self, toy):
        image = square_image((64, 64), (8, 8, 30, 30))
        with pytest.warns(UserWarning, match='does not tell how its images are prepared'):
            assert explain(toy, image).class_names[0] in '0123'
        found = explain(toy, image, class_names='abcd', data_config={'input_size': (3, 32, 32)})
        assert found.class_names[0] in 'abcd' and found.geometry.width == 32

    def test_sigmoid_scores(self):
        model, image = create('resnet18').eval(), square_image((64, 64), (8, 8, 30, 30))
        config = {'input_size': (3, 64, 64)}
        single, several = (explain(model, image, multilabel=kind, data_config=config) for kind in (False, True))
        assert single.probabilities.sum() == pytest.approx(1, abs=1e-5) and several.probabilities.sum() > 2
        torch.testing.assert_close(
            several.probabilities.logit().softmax(0), single.probabilities, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize('changes, score', [({}, 'sigmoid'), ({'num_classes': 7}, 'softmax')])
    def test_weights_of_several_classes_an_image_say_so(self, changes, score):
        """As the command took them; a head put in the place of theirs says nothing."""
        model = timm.create_model('tf_efficientnet_lite0.icasc_voc2007', pretrained=True, **changes)
        assert Explainer(model).labels.score == score == Explainer(torch.nn.Sequential(model)).labels.score
        assert Explainer(model, multilabel=False).labels.score == 'softmax'

    def test_transformers_says_what_kind_of_problem_it_is(self):
        model = BrightNet()
        for problem, score in ((None, 'softmax'), ('multi_label_classification', 'sigmoid')):
            model.config = SimpleNamespace(problem_type=problem)
            assert Explainer(model).labels.score == score

    @pytest.mark.parametrize('kind', ['layer', 'several', 'beside', 'on top'])
    def test_a_head_put_in_by_hand(self, kind):
        """It leaves the model's `num_classes` as it was; a backbone tells that of its own head, or of none."""
        model, image = create('resnet18').eval(), square_image((64, 64), (8, 8, 30, 30))
        if kind in ('layer', 'several'):
            head = torch.nn.Linear(512, 2)
            model.fc = head if kind == 'layer' else torch.nn.Sequential(torch.nn.Dropout(0.5), head)
        else:
            if kind == 'beside':
                model.fc = torch.nn.Identity()
            model = torch.nn.Sequential(model, torch.nn.Linear(512 if kind == 'beside' else 10, 2))
        config = {'input_size': (3, 64, 64)}
        explainer = Explainer(model, ['cat', 'dog'], data_config=config)
        assert explainer.num_classes() == 2
        found = explain(model, image, classes='dog', class_names=['cat', 'dog'], data_config=config)
        assert found.classes == [1] and found.probabilities.sum() == pytest.approx(1)
        assert explain(model, image, classes=[1], data_config=config).class_names == ['1']
        with pytest.raises(TargetError, match='`classes` must lie in 0 to 1, got 2'):
            explain(model, image, classes=2, data_config=config)

    def test_the_number_of_classes_is_found_once(self):
        explainer = Explainer(BrightNet())
        passes = count_passes(explainer.model)
        assert explainer.num_classes() == explainer.num_classes() == 2 and passes == [1]

    def test_scores_near_one_keep_their_order(self):
        """Sigmoids of scores above 17 are all 1 in single precision."""
        model = create('resnet18').eval()
        with torch.no_grad():
            model.fc.weight.zero_()
            model.fc.bias.copy_(20. + torch.arange(len(model.fc.bias)))
            model.fc.bias[3:] = 0.
        found = explain(
            model, square_image((64, 64), (8, 8, 30, 30)), multilabel=True, data_config={'input_size': (3, 64, 64)})
        assert found.classes == found.ranking[:3] == [2, 1, 0] and found.scores == [1., 1., 1.]

    def test_one_class_score_has_no_softmax(self):
        """It was 1 of every image."""
        model, image = create('resnet18'), square_image((64, 64), (8, 8, 30, 30))
        model.fc, config = torch.nn.Linear(512, 1), {'input_size': (3, 64, 64)}
        with pytest.raises(ICASCError, match='one class score.*`multilabel=True` takes its sigmoid'):
            explain(model, image, data_config=config)
        found = explain(model, image, multilabel=True, data_config=config)
        assert found.classes == [0] and 0 < found.scores[0] < 1

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    def test_a_softmax_inside_of_the_model_is_told(self, dtype):
        """The probabilities were taken for scores, and a softmax of them is nearly the same for every class."""
        model, image = create('resnet18').to(dtype), square_image((64, 64), (8, 8, 30, 30))
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            explain(model, image, data_config={'input_size': (3, 64, 64)})
        model.fc = torch.nn.Sequential(model.fc, torch.nn.Softmax(1))
        with pytest.warns(UserWarning, match='`model` returns probabilities.*scores before softmax are expected'):
            explain(model, image, data_config={'input_size': (3, 64, 64)})
        with pytest.warns(UserWarning, match='`model` returns probabilities') as told:
            attention_maps(model, torch.zeros(2, 3, 64, 64, dtype=dtype))
        assert told[0].filename == __file__

    def test_half_precision(self):
        model = create('resnet18').to(torch.bfloat16)
        found = explain(
            model, square_image((64, 64), (8, 8, 30, 30)), data_config={'input_size': (3, 64, 64)})
        assert found.maps.dtype == torch.float32 and found.maps.isfinite().all()

    @pytest.mark.parametrize('arguments, error, said', [
        ({'method': 'cam'}, ICASCError, '`method` must be one of ach'), ({'topk': 0}, ICASCError, '`topk`'),
        ({'classes': 2}, TargetError, '0 to 1, got 2'), ({'classes': []}, TargetError, '`classes` is empty'),
        ({'class_names': ['one']}, ICASCError, '`class_names` has 1 names, the model 2 classes'),
        ({'class_names': {0: 'cat', 1: 'dog'}}, ICASCError, '`class_names` must be a list, .* got dict'),
        ({'method': ['ach']}, ICASCError, '`method` must be one of ach'),
        ({'topk': '3'}, ICASCError, "`topk`.*got '3'"), ({'batch_size': None}, ICASCError, '`batch_size` .* got None'),
        ({'multilabel': 'no'}, ICASCError, "`multilabel` must be True or False, got 'no'"),
        ({'normalised': 'no'}, ICASCError, "`normalised` must be .* got 'no'")])
    def test_bad_arguments_are_named(self, arguments, error, said):
        with pytest.raises(error, match=said):
            explain(BrightNet(), square_image((64, 64), (8, 8, 30, 30)), **arguments)

    def test_a_name_is_no_model(self):
        with pytest.raises(ICASCError, match="`model` must be a torch.nn.Module, got 'resnet18'"):
            explain('resnet18', square_image((64, 64), (8, 8, 30, 30)))

    def test_nothing_is_kept(self):
        model = BrightNet()
        image = square_image((64, 64), (8, 8, 30, 30))
        explain(model, image)
        gc.collect()
        before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
        explain(model, [image] * 5)
        gc.collect()
        assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before


def test_weights_that_training_has_broken_explain_nothing(toy):
    """A class of score NaN came first, with a map of NaN."""
    image = torch.rand(3, 16, 16)
    assert explain(toy, image, normalised=True)
    toy.fc.bias.data[2] = torch.nan
    with pytest.raises(ICASCError, match='the model gives class scores that are NaN or infinite'):
        explain(toy, image, normalised=True)


class TestOverlay:
    def test_pixel_by_pixel(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
        heat = torch.rand(5, 7)
        shown = np.asarray(overlay(image, heat))
        from matplotlib import colormaps
        pixels = np.asarray(image) / 255
        for i in range(5):
            for j in range(7):
                value = (heat[i, j] / heat.max()).item()
                light = 0.299 * pixels[i, j, 0] + 0.587 * pixels[i, j, 1] + 0.114 * pixels[i, j, 2]
                for c in range(3):
                    expected = (1 - 0.9 * value) * light + 0.9 * value * colormaps['viridis'](value)[c]
                    assert abs(int(shown[i, j, c]) - 255 * expected) <= 1

    def test_is_public_and_takes_coarse_maps(self):
        image = np.zeros((64, 64, 3), dtype=np.uint8)
        heat = np.zeros((8, 8), dtype=np.float32)
        heat[2, 5] = 7.
        shown = np.asarray(timm_icasc.overlay(image, heat)).astype(int).sum(2)
        assert np.unravel_index(shown.argmax(), shown.shape)[0] // 8 == 2
        assert np.unravel_index(shown.argmax(), shown.shape)[1] // 8 == 5
        assert (np.asarray(timm_icasc.overlay(image, np.zeros((8, 8)))) == 0).all()

    @pytest.mark.parametrize('heat, said', [
        (torch.zeros(2, 4, 4), r'one map, \[h, w\], got \(2, 4, 4\)'), (torch.full((4, 4), -1.), 'finite and >= 0'),
        (torch.full((4, 4), torch.nan), 'finite and >= 0'), (torch.full((4, 4), torch.inf), 'finite and >= 0')])
    def test_what_is_no_map(self, heat, said):
        with pytest.raises(ICASCError, match=said):
            overlay(Image.new('RGB', (4, 4)), heat)
