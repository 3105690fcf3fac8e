"""Batches of NaFlex patches give the maps that the images give."""
import pytest
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

from timm_icasc import ICASCTask, attention_maps, resolve_layers
from timm_icasc.attention import METHODS
from timm_icasc.features.images import PatchGrid, image_size_of, input_size
from timm_icasc.objective.separability import evaluate_attention

PATCH = 8


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    config = NaFlexVitCfg(
        patch_size=PATCH, embed_dim=32, depth=4, num_heads=2, pos_embed='factorized', pos_embed_grid_size=(4, 4),
        global_pool='avg', reg_tokens=2)
    return NaFlexVit(cfg=config, img_size=32, num_classes=5).eval()


def as_patches(images, padding=0):
    """What timm's NaFlex loader makes of images `[B, 3, height, width]`, padded by so many patches."""
    rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
    patches = images.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH)).permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
    coordinates = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).expand(len(images), -1, -1)
    valid = torch.ones(len(images), rows * columns, dtype=torch.bool)
    return {
        'patches': torch.cat([patches.flatten(2), torch.zeros(len(images), padding, 3 * PATCH ** 2)], 1),
        'patch_coord': torch.cat([coordinates, torch.zeros(len(images), padding, 2, dtype=torch.int64)], 1),
        'patch_valid': torch.cat([valid, torch.zeros(len(images), padding, dtype=torch.bool)], 1),
    }


def test_size_and_plane_of_a_tensor():
    images = torch.zeros(2, 3, 16, 24)
    assert input_size(images) == (3, 16, 24) and image_size_of(images) == (16, 24)


def test_scatter_puts_each_token_at_its_coordinates():
    tokens = torch.arange(1., 13.).view(1, 4, 3)
    coordinates = torch.tensor([[[1, 0], [0, 2], [0, 0], [7, 7]]])
    grid = PatchGrid(coordinates, torch.tensor([[True, True, True, False]])).scatter(tokens)
    expected = torch.zeros(1, 3, 2, 3)
    for token, (y, x) in enumerate(coordinates[0, :3].tolist()):
        expected[0, :, y, x] = tokens[0, token]
    assert torch.equal(grid, expected)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('layer', ['inner', 'last'])
def test_patches_give_the_maps_of_the_images(model, layer, method):
    images = torch.randn(2, 3, 32, 32)
    expected = attention_maps(model, images, classes=[0, 3], method=method, layer=layer)
    for padding in (0, 3):
        maps = attention_maps(model, as_patches(images, padding), classes=[0, 3], method=method, layer=layer)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('method', METHODS)
def test_images_of_different_aspect_in_one_batch(model, method):
    """Each map is that of the image alone, and zero where another image reaches further."""
    wide, tall = torch.randn(1, 3, 16, 32), torch.randn(1, 3, 32, 16)
    batch = {name: torch.cat([as_patches(wide)[name], as_patches(tall)[name]]) for name in as_patches(wide)}
    maps = attention_maps(model, batch, classes=1, method=method)
    assert maps.shape == (2, 1, 4, 4)
    torch.testing.assert_close(maps[:1, :, :2, :], attention_maps(model, as_patches(wide), classes=1, method=method))
    torch.testing.assert_close(maps[1:, :, :, :2], attention_maps(model, as_patches(tall), classes=1, method=method))
    assert not maps[0, :, 2:].any() and not maps[1, :, :, 2:].any()


def test_training_on_patches(model):
    layers = resolve_layers(model)
    task = ICASCTask(model.train(), order=2, verbose=False)
    result = task(as_patches(torch.randn(2, 3, 32, 16), padding=2), torch.tensor([0, 1]))
    result['loss'].backward()
    assert result['loss'].isfinite() and {'loss_as_inner', 'loss_as_last', 'loss_ac'} < set(result)
    assert model.get_submodule(layers.inner.path).attn.qkv.weight.grad.any()


def test_measuring_on_patches(model):
    """Of the dictionary each tensor is brought to the model; what else timm's loader puts in stays as it is."""
    class Elsewhere:
        def __init__(self, tensor):
            self.tensor = tensor

        def to(self, device):
            assert device == next(model.parameters()).device
            return self.tensor

    images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    patches = {**{name: Elsewhere(x) for name, x in as_patches(images).items()}, 'seq_len': 16}
    model.eval()
    assert evaluate_attention(model, [(patches, target)]) == pytest.approx(
        evaluate_attention(model, [(images, target)]), rel=1e-4)
