"""ICASC for a model that is not timm's.

You learn that any `nn.Module` from images to class scores will do, here torchvision's: its two
layers are found by shapes and gradients, or named by you with `--layers`. A few training steps on
scikit-learn's digits (random weights, so nothing is downloaded), then the true classes' attention
maps as a picture: above the images, below them the maps, dark to bright.

    python examples/torchvision_model.py
    python examples/torchvision_model.py --model vgg11 --layers features.14 features.19
"""
import argparse

import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torchvision.utils import save_image

from timm_icasc import ICASCError, ICASCTask, attention_maps, resolve_layers

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--model', default='resnet18', help='name of a torchvision classifier')
parser.add_argument(
    '--layers', nargs=2, metavar=('INNER', 'LAST'), help='module paths, as in named_modules()')
parser.add_argument('--steps', type=int, default=20, help='training steps, of 32 images each')
parser.add_argument('--output', default='torchvision_maps.png', metavar='FILE')
parser.add_argument('--seed', type=int, default=0)

SIZE = 64


def main():
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(pixels, size=(SIZE, SIZE), mode='bilinear').expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)

    model = torchvision.models.get_model(args.model, weights=None, num_classes=10)
    try:
        layers = resolve_layers(model, args.layers, input_size=(3, SIZE, SIZE))
    except ICASCError as e:  # says which path is wrong, or why there are no such layers
        parser.error(str(e))
    for name, layer in zip(('inner', 'last'), layers, strict=True):
        print(f'{name} layer: {layer.path}, {layer.channels} channels, grid {layer.grid}')

    task = ICASCTask(model, layers=args.layers, input_size=(3, SIZE, SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    task.train()
    for step in range(args.steps):
        batch = torch.randint(len(images), (32,))
        result = task(images[batch], labels[batch])
        optimizer.zero_grad()
        result['loss'].backward()
        optimizer.step()
        if step in (0, args.steps - 1):
            print('step', step + 1, *(
                f'{name} {value.item():.3f}' for name, value in result.items() if name != 'output'))

    model.eval()
    shown, target = images[:8], labels[:8]
    maps = attention_maps(
        model, shown, classes=target[:, None], layer='inner', layers=args.layers)  # [8, 1, h, w]
    maps = maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-12)  # each to its own maximum
    maps = F.interpolate(maps, size=(SIZE, SIZE), mode='bilinear').expand(-1, 3, -1, -1)
    save_image(torch.cat([shown, maps]), args.output, nrow=8)
    print(f'attention maps of the digits 0 to 7: {args.output}')


if __name__ == '__main__':
    main()
