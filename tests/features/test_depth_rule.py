"""Where the inner layer of isotropic models lies: what their maps show at each depth once they have learned.

`pytest -n 0 -s -m slow tests/features/test_depth_rule.py` prints the table of docs/layers.md.
"""
import pytest
import torch
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

from timm_icasc import attention_maps, resolve_layers
from timm_icasc.data import DigitsDataset
from timm_icasc.features.rules import ISOTROPIC_INNER_DEPTH
from timm_icasc.losses import attention_overlap

DEPTH = 12
VIT = dict(img_size=32, patch_size=8, embed_dim=64, depth=DEPTH, num_heads=2, num_classes=10)
MODELS = {
    'ViT, class token': lambda: VisionTransformer(**VIT),
    'ViT, average pooling': lambda: VisionTransformer(**VIT, global_pool='avg', class_token=False),
    'MLP-Mixer': lambda: MlpMixer(img_size=32, patch_size=4, num_blocks=DEPTH, embed_dim=64, num_classes=10),
    'ConvMixer': lambda: ConvMixer(dim=64, depth=DEPTH, kernel_size=5, patch_size=4, num_classes=10),
}


def to_tensor(image):
    return TF.to_tensor(image) * 2 - 1


def train(model):
    epochs = 40 if isinstance(model, VisionTransformer) else 12
    loader = DataLoader(DigitsDataset('train', to_tensor), batch_size=64, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, target in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), target).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def measure(model, depth, last, images, classes):
    """Share of maps that exist at `depth`, overlap of target and confused, energy on ink, overlap with the last."""
    asked = {'classes': classes, 'method': 'ach', 'layers': (f'blocks.{depth - 1}', last)}
    maps = attention_maps(model, images, layer='inner', **asked)
    last_maps = attention_maps(model, images, layer='last', **asked)
    ink = torch.nn.functional.adaptive_avg_pool2d((images.mean(1) > 0).float()[:, None], maps.shape[-2:])[:, 0]
    target, confused = maps.unbind(1)
    energy = (target * (ink > 0)).sum((1, 2)) / target.sum((1, 2))
    return [
        (maps.sum((2, 3)) > 0).all(1).float().mean().item(), attention_overlap(target, confused).nanmean().item(),
        energy.nanmean().item(), attention_overlap(target, last_maps[:, 0]).nanmean().item()]


@pytest.mark.slow
@pytest.mark.parametrize('name', list(MODELS))
def test_maps_by_depth(name):
    torch.manual_seed(0)
    model = train(MODELS[name]())
    layers = resolve_layers(model, input_size=(3, 32, 32))
    assert layers.inner.path == f'blocks.{round(DEPTH * ISOTROPIC_INNER_DEPTH) - 1}'
    images, target = next(iter(DataLoader(DigitsDataset('validation', to_tensor), batch_size=450)))
    with torch.no_grad():
        logits = model(images)
    accuracy = (logits.argmax(1) == target).float().mean().item()
    assert accuracy > 0.8
    confused = logits.scatter(1, target[:, None], -torch.inf).argmax(1)
    classes = torch.stack([target, confused], 1)
    rows = {
        depth: measure(model, depth, layers.last.path, images, classes)
        for depth in range(2, DEPTH) if f'blocks.{depth - 1}' != layers.last.path}
    print(
        f'\n\n{name}, {accuracy:.1%} of 450 test images right, last layer {layers.last.path}\n'
        '| depth | maps exist | overlap of target and confused | energy on ink | overlap with the last map |\n'
        '|---|---|---|---|---|')
    for depth, values in rows.items():
        print(f'| {depth}/{DEPTH} | ' + ' | '.join(f'{value:.3f}' for value in values) + ' |')
    chosen, half = rows[round(DEPTH * ISOTROPIC_INNER_DEPTH)], rows[DEPTH // 2]
    assert chosen[0] > 0.9, 'the maps exist'
    assert chosen[1] < half[1] + 0.02, 'they tell classes apart no worse than those of half the depth'
