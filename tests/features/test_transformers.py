"""Models of transformers and adapters of PEFT, which tell nothing of their stages: where they are installed."""
import pytest
import torch
from torch.utils._pytree import tree_flatten

from timm_icasc import attention_maps, resolve_layers

transformers = pytest.importorskip('transformers')

STAGES = {'depths': [1, 1, 2, 1], 'image_size': 64}
BLOCKS = {
    'image_size': 32, 'patch_size': 8, 'hidden_size': 16, 'num_hidden_layers': 4, 'num_attention_heads': 2,
    'intermediate_size': 32}

# Kind, options, linear layers for an adapter, path and grid of the inner and of the last layer.
MODELS = [
    ('Swin', {**STAGES, 'embed_dim': 16, 'num_heads': [1, 1, 2, 2], 'window_size': 2}, ('v_proj', 'value'), (
        'swin.encoder.layers.2.blocks.1', (4, 4), 'swin.layernorm', (2, 2))),
    ('FocalNet', {**STAGES, 'embed_dim': 16}, ('projection_out',), (
        'focalnet.encoder.stages.2.layers.1', (4, 4), 'focalnet.layernorm', (2, 2))),
    ('Hiera', {**STAGES, 'image_size': [64, 64], 'embed_dim': 8}, ('fc1',), (
        'hiera.encoder.stages.3.layers.0.layernorm_before', (4, 4), 'hiera.encoder.stages.3', (2, 2))),
    ('ViT', BLOCKS, ('q_proj', 'v_proj', 'query', 'value'), (
        'vit.layers.1', (4, 4), 'vit.layers.3.layernorm_before', (4, 4))),
    ('Dinov2', {**BLOCKS, 'mlp_ratio': 2}, ('v_proj', 'value'), (
        'dinov2.encoder.layer.2', (4, 4), 'dinov2', (4, 4))),
]


def create(kind, options):
    torch.manual_seed(0)
    config = getattr(transformers, f'{kind}Config')(num_labels=4, **options)
    return getattr(transformers, f'{kind}ForImageClassification')(config).eval()


def described(layers):
    return tuple(value for layer in layers for value in (layer.path.removeprefix('base_model.model.'), layer.grid))


@pytest.mark.parametrize('kind, options, adapted, expected', MODELS)
def test_layers_and_maps(kind, options, adapted, expected):
    """The map is that of the formula, with the gradient that autograd gives at the module's output."""
    model, size = create(kind, options), options['image_size']
    images = torch.randn(2, 3, *(size if isinstance(size, list) else (size, size)))
    layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
    assert described(layers) == expected
    seen = {}
    for layer in layers:
        model.get_submodule(layer.path).register_forward_hook(
            lambda module, args, output, layer=layer: seen.update({
                layer: tree_flatten(output)[0][layer.output_index]}))
    scores = model(images).logits
    features = [seen[layer] for layer in layers]
    gradients = torch.autograd.grad(scores[:, 1].sum(), features)
    for layer, name, feature, gradient in zip(layers, ('inner', 'last'), features, gradients, strict=True):
        feature, gradient = (layer.to_nchw(x, images.shape[-2:]) for x in (feature, gradient))
        expected_map = (feature * gradient).sum(1).relu()
        maps = attention_maps(model, images, classes=[1], method='hires_cam', layer=name)
        torch.testing.assert_close(maps[:, 0], expected_map)


@pytest.mark.parametrize('kind, options, adapted, expected', MODELS)
def test_an_adapter_changes_no_layer(kind, options, adapted, expected):
    peft = pytest.importorskip('peft')
    model, size = create(kind, options), options['image_size']
    names = [name for name, _ in model.named_modules() if name.endswith(adapted)]
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names))
    layers = resolve_layers(model, input_size=(3, *(size if isinstance(size, list) else (size, size))))
    assert described(layers) == expected
