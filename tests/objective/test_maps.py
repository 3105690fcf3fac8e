"""Attention maps at inference and their gradients, whatever the precision."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import FAMILIES, ToyNet, create
from helpers.objective import double_batch, layers_of

from timm_icasc import (
    ICASCConfig,
    ICASCError,
    ICASCTask,
    LayerResolutionError,
    TargetError,
    attention_maps,
    icasc_forward,
)
from timm_icasc.attention import channel_weighted, grad_cam


class TestAttentionMaps:

    def test_shape_and_order_of_the_predicted_classes(self, family):
        model, images, (_, _, _, inner_grid, last_grid) = family
        maps = attention_maps(model, images, topk=3)
        assert maps.shape == (2, 3, *last_grid) and (maps >= 0).all() and not maps.requires_grad
        assert attention_maps(model, images, topk=1, layer='inner').shape == (2, 1, *inner_grid)
        top = model(images).topk(3).indices
        assert torch.equal(attention_maps(model, images, classes=top), maps)

    def test_of_one_process_of_several(self, toy, monkeypatch):
        """DistributedDataParallel waits for the others to send it buffers: maps in the first alone never came."""
        class Waiting(torch.nn.parallel.DistributedDataParallel):
            def __init__(self, module):
                torch.nn.Module.__init__(self)
                self.module = module

            def forward(self, *inputs):
                raise AssertionError('the other processes are asked')

        images = torch.randn(2, 3, 16, 16)
        assert torch.equal(attention_maps(Waiting(toy), images, topk=2), attention_maps(toy, images, topk=2))

    def test_forms_of_classes(self, toy):
        images = torch.randn(2, 3, 16, 16)
        per_image = attention_maps(toy, images, classes=torch.tensor([[0, 2], [0, 2]]))
        assert torch.equal(attention_maps(toy, images, classes=[0, 2]), per_image)
        assert torch.equal(attention_maps(toy, images, classes=2), per_image[:, 1:])
        assert attention_maps(toy, images, topk=99).shape[1] == 4

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
    def test_classes_of_any_integer_type(self, dtype, toy):
        images = torch.randn(2, 3, 16, 16)
        classes = torch.tensor([[0, 2], [3, 1]])
        assert torch.equal(
            attention_maps(toy, images, classes=classes.to(dtype)), attention_maps(toy, images, classes=classes))
        with pytest.raises(TargetError, match='classes must lie in 0 to 3'):
            attention_maps(toy, images, classes=torch.tensor([0, 4]).to(dtype))

    @pytest.mark.parametrize('classes', [[], torch.tensor([True, False]), torch.tensor([0.])])
    def test_what_are_no_classes(self, classes, toy):
        with pytest.raises(TargetError, match='classes must be a class index'):
            attention_maps(toy, torch.randn(2, 3, 16, 16), classes=classes)

    def test_no_image(self, toy):
        patches = dict.fromkeys(('patches', 'patch_coord', 'patch_valid'), torch.zeros(0))
        for empty in (torch.zeros(0, 3, 16, 16), patches):
            with pytest.raises(ICASCError, match='images must hold at least one'):
                attention_maps(toy, empty)

    def test_checkpointing_counts_no_batch_again(self):
        model = create('resnet20_cifar').train()
        model.set_grad_checkpointing(True)
        attention_maps(model, torch.randn(2, 3, 32, 32), topk=3, layer='inner', create_graph=True)
        assert {int(x) for name, x in model.named_buffers() if name.endswith('num_batches_tracked')} == {1}

    @pytest.mark.parametrize('checkpointing', [False, True])
    @pytest.mark.parametrize('layer', ['inner', 'last'])
    def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(self, layer, checkpointing):
        """timm makes models in training mode: dropout and the batch were in the maps, and the weights' statistics
        moved."""
        model, images = create('resnet20_cifar', drop_rate=0.5).eval(), torch.randn(2, 3, 32, 32)
        expected, classes = attention_maps(model, images, topk=3, layer=layer, return_classes=True)
        assert torch.equal(classes, model(images).topk(3).indices)
        model.train().set_grad_checkpointing(checkpointing)
        model.layer1.eval()  # frozen
        flags, before = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
        found = attention_maps(model, images, topk=3, layer=layer)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert [m.training for m in model.modules()] == flags
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        trained = attention_maps(model, images, classes, layer=layer, create_graph=True)
        assert not torch.allclose(trained, expected)
        assert int(model.bn1.num_batches_tracked) == 1

    def test_cosine_scores_times_100_in_half_precision(self):
        """Their gradients are large: a factor that saves small ones must not take these beyond half precision."""
        class Cosine(ToyNet):
            def forward(self, x):
                x = F.normalize(self.stage(self.stem(x)).square().mean((2, 3)))
                return 100 * x @ F.normalize(self.fc.weight).T

        torch.manual_seed(0)
        model, images = Cosine(), torch.randn(2, 3, 16, 16)
        expected = attention_maps(model, images, classes=[0, 1], create_graph=True)
        with torch.autocast('cpu', torch.float16):
            found = attention_maps(model, images, classes=[0, 1], create_graph=True)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.max().item())

    @pytest.mark.parametrize('method, function', [('ach', channel_weighted), ('grad_cam', grad_cam)])
    def test_differentiable_with_create_graph(self, method, function, toy):
        toy.double()
        images, target = double_batch()
        maps = attention_maps(toy, images, classes=target[:, None], method=method, create_graph=True)[:, 0]
        features = toy.stage(toy.stem(images))
        scores = toy.fc(features.square().mean((2, 3))).gather(1, target[:, None]).sum()
        expected = function(features, torch.autograd.grad(scores, features, create_graph=True)[0])
        parameters = list(toy.parameters())[:-1]  # the head's bias does not enter
        for a, b in zip(
                torch.autograd.grad(maps.sum(), parameters),
                torch.autograd.grad(expected.sum(), parameters), strict=True):
            torch.testing.assert_close(a, b)

    def test_leaves_no_gradient_and_works_in_inference_mode(self, toy):
        images = torch.randn(2, 3, 16, 16)
        with torch.inference_mode():  # first, so that the layers are resolved in there as well
            maps = attention_maps(toy, images)
        torch.testing.assert_close(maps, attention_maps(toy, images))
        assert all(p.grad is None for p in toy.parameters())

    def test_grad_cam_is_drawn_unless_told_otherwise(self, toy):
        images = torch.randn(2, 3, 16, 16)
        drawn = attention_maps(toy, images, classes=1)
        assert torch.equal(drawn, attention_maps(toy, images, classes=1, method='grad_cam'))
        assert not torch.equal(drawn, attention_maps(toy, images, classes=1, method='ach'))

    def test_explicit_layers(self, toy):
        images = torch.randn(2, 3, 16, 16)
        maps = attention_maps(toy, images, layers=('stem.0', 'stem'), layer='last', topk=1)
        assert maps.shape == (2, 1, 8, 8)

    @pytest.mark.parametrize('arguments, error, message', [
        ({'method': 'gradcam'}, ICASCError, "`method` must be one of .*'gradcam'"),
        ({'method': ['ach']}, ICASCError, r"`method` must be one of .*\['ach'\]"),
        ({'layer': 'layer4'}, LayerResolutionError, "no layer 'layer4'"),
        ({'layer': 4}, LayerResolutionError, "layer must be 'inner', 'last' or the path of a module, got 4"),
        ({'classes': 4}, TargetError, '0 to 3'),
        ({'topk': 0}, ICASCError, '`topk` must be at least 1'),
        ({'topk': 2.5}, ICASCError, '`topk` must be .* a whole number, got 2.5'),
        ({'topk': None}, ICASCError, '`topk` must be .* a whole number, got None'),
        ({'topk': torch.tensor(1.5)}, ICASCError, '`topk` must be .* a whole number, got tensor'),
        ({'classes': 'cat'}, TargetError, "classes must be a class index.*'cat'"),
        ({'classes': [[0], [1, 2]]}, TargetError, 'classes must be a class index'),
        ({'images': [torch.randn(3, 16, 16)]}, ICASCError, 'images must be a tensor .* got list: torch.stack'),
        ({'images': np.zeros((2, 3, 16, 16))}, ICASCError, 'images must be a tensor .* got ndarray'),
        ({'images': {'pixel_values': torch.zeros(2, 3, 16, 16)}}, ICASCError, r"NaFlex.*got \['pixel_values'\]"),
        ({'images': {}}, ICASCError, r'NaFlex.*got \[\]'),
        ({'images': torch.randn(3, 16, 16)}, ICASCError, r'images must be \[B.*\(3, 16, 16\)'),
        ({'classes': torch.zeros(3, 1, dtype=torch.long)}, TargetError, r'\[B, K\] per image \(B = 2\)'),
        ({'classes': [0.5]}, TargetError, 'torch.float32'),
    ])
    def test_bad_arguments_are_named(self, arguments, error, message, toy):
        with pytest.raises(error, match=message):
            attention_maps(toy, **{'images': torch.randn(2, 3, 16, 16), **arguments})

    def test_a_model_that_squeezes_a_single_image(self, toy):
        """It was said to run on parts of the batch."""
        class Squeezes(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = toy

            def forward(self, x):
                return self.net(x).squeeze()

        assert attention_maps(Squeezes(), torch.randn(2, 3, 16, 16), topk=1).shape[:2] == (2, 1)
        with pytest.raises(ICASCError, match=r'`model` returned \(4,\), not one score per class.*squeeze\(\)'):
            attention_maps(Squeezes(), torch.randn(1, 3, 16, 16))

    def test_a_number_that_is_no_plain_one(self, toy):
        images = torch.randn(2, 3, 16, 16)
        for topk in (np.int64(1), torch.tensor(1), True):
            assert attention_maps(toy, images, topk=topk).shape[1] == 1

    def test_images_made_in_inference_mode(self, toy):
        """Autograd keeps none of them; maps with a graph are of copies."""
        with torch.inference_mode():
            images = torch.linspace(-1, 1, 1536).view(2, 3, 16, 16)
            maps = attention_maps(toy, images, classes=1, create_graph=True)
            layers = layers_of(toy, images)
            target = torch.arange(2)
            terms = [
                icasc_forward(toy, images, target, layers, ICASCConfig(order=2, share=share)).terms
                for share in (1., 0.5)]
        expected = attention_maps(toy, images.clone(), classes=1)
        torch.testing.assert_close(maps.detach(), expected)
        assert maps.requires_grad and all(values.requires_grad for of in terms for values in of.values())


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'resnet20_cifar'])
def test_another_default_device(name):
    """Everything is made where the model is; 'meta' stands for a GPU."""
    images, target = torch.randn(2, *FAMILIES[name][1]), torch.tensor([0, 1])

    def results(model):
        maps = [attention_maps(model, images, topk=k) for k in (1, 2)]
        return *maps, ICASCTask(model, verbose=False)(images, target)['loss']

    model = create(name).eval()
    expected, unresolved = results(model), copy.deepcopy(model)
    with torch.device('meta'):
        found = results(unresolved)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class InParts(torch.nn.Module):
    """Runs a network on parts of the batch, which takes less memory."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        return torch.cat([self.net(part) for part in x.split(self.size)])


@pytest.mark.parametrize('number', [3, 4])
def test_a_network_that_runs_on_parts_of_the_batch(number, toy):
    """The maps of the last part were taken for those of all images; of one image, they were repeated."""
    model, images = InParts(toy, 2), torch.randn(number, 3, 16, 16)
    target, message = torch.zeros(number, dtype=torch.long), f'features of {number - 2} images.* scores of {number}'
    layers = layers_of(model, images)
    assert torch.equal(attention_maps(model, images[:2]), attention_maps(toy, images[:2]))
    for classes in (1, [0, 1]):
        with pytest.raises(LayerResolutionError, match=message):
            attention_maps(model, images, classes=classes)
    for kwargs in ({}, {'inference': True}):
        with pytest.raises(LayerResolutionError, match=message):
            icasc_forward(model, images, target, layers, ICASCConfig(), **kwargs)
    with pytest.raises(LayerResolutionError, match=message):
        icasc_forward(model, images, target, layers, ICASCConfig(share=0.5))


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'convnext_atto', 'resnet20_cifar'])
def test_the_score_scale_of_float16_is_divided_out(name):
    """Also where features stay float32 behind half-precision layers: residual streams, LayerNorm."""
    model = create(name).eval()
    images = torch.randn(2, 3, 32 if 'cifar' in name else 64, 32 if 'cifar' in name else 64)
    expected = attention_maps(model, images, classes=1)
    with torch.autocast('cpu', dtype=torch.float16), torch.backends.mkldnn.flags(enabled=False):
        maps = attention_maps(model, images, classes=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0.1 * expected.max().item())


class HalfPrecisionHead(ToyNet):
    """Features and scores of float32, as a prepared model of Accelerate has; float16 between the two."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 4))
        self.is_half = False
        for linear in self.fc:
            torch.nn.init.uniform_(linear.weight, 2e-4, 4e-4)

    def forward(self, x):
        pooled = self.stage(self.stem(x)).square().mean((2, 3))
        with torch.autocast('cpu', dtype=torch.float16, enabled=self.is_half):
            return self.fc(pooled).float()


@pytest.mark.parametrize('method', ['ach', 'grad_cam'])
def test_small_gradients_survive_float16_that_neither_features_nor_scores_show(method):
    """Between the linear layers they are 5e-7, and float16 has steps of 6e-8 there."""
    torch.manual_seed(0)
    model, images = HalfPrecisionHead(), torch.randn(2, 3, 16, 16)
    maps = []
    for model.is_half in (False, True):
        maps.append(attention_maps(model, images, classes=1, method=method))
    torch.testing.assert_close(maps[1], maps[0], rtol=0.005, atol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_maps_stay_close_to_float32(dtype):
    """The score is scaled in fp16, so that gradients of 1e-6 survive; the scale is divided out."""
    torch.manual_seed(0)
    model = ToyNet().eval()
    model.fc.weight.data.mul_(1e-4)
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    layers, config = layers_of(model, images), ICASCConfig(order=1)
    expected = icasc_forward(model, images, target, layers, config)
    # Not every CPU can run the half-precision convolutions of oneDNN; torch's own run everywhere.
    with torch.autocast('cpu', dtype=dtype), torch.backends.mkldnn.flags(enabled=False):
        output = icasc_forward(model, images, target, layers, config)
    for name, values in expected.maps.items():
        assert output.maps[name].dtype == torch.float32
        scale = values.max().item()
        torch.testing.assert_close(output.maps[name], values, rtol=0, atol=0.03 * scale)

