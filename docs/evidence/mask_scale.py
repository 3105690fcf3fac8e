#!/usr/bin/env python3
"""How sharp is the mask of Eq. 4 on the raw map, and on the map divided by its maximum? A table, a network a row.

    mask_scale.py cifar20 resnet20_cifar resnet50 tf_efficientnet_lite0=WEIGHTS

A network is as training begins: in training mode, as initialised (seed 0), or with a file's weights below a new
classifier. The `ach` map of the true class at the last layer, on one batch of training images without augmentation at
the network's own input size. Medians over the images whose map exists: the map's maximum, and the smallest and the
largest value of the mask. A mask that reaches from 0 to 1 marks a region; one around 0.5 everywhere marks none.
"""
import argparse
from functools import partial

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_data_config

from timm_icasc import ICASCConfig, icasc_forward, resolve_layers
from timm_icasc.losses import MASK_SCALES, target_mask
from timm_icasc.training.pretrained import create_from_file

LAST_LAYER_ONLY = ICASCConfig(order=1, weight_as_inner=0., weight_ac=0.)


def target_maps(name: str, weights: str, dataset, batch_size: int) -> torch.Tensor:
    torch.manual_seed(0)
    num_classes = len(dataset.reader.class_to_idx)
    create = partial(timm.create_model, name, num_classes=num_classes)
    if weights:
        model, *_ = create_from_file(
            weights, lambda overlay: create(pretrained=True, pretrained_cfg_overlay=overlay), num_classes)
    else:
        model = create()
    model.train()
    dataset.transform = create_transform(**resolve_data_config({'crop_pct': 1.}, model=model))
    images, target = next(iter(torch.utils.data.DataLoader(dataset, batch_size, shuffle=True)))
    return icasc_forward(model, images, target, resolve_layers(model), LAST_LAYER_ONLY).maps['target_last'].detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', help='image folder, DIR/train/CLASS/IMAGE')
    parser.add_argument(
        'models', nargs='+', metavar='MODEL[=FILE]',
        help='timm architecture, and a file of its weights')
    parser.add_argument('--batch-size', type=int, default=32)
    args = parser.parse_args()

    dataset = create_dataset('', root=args.data_dir, split='train')
    print('| network | maps | maximum of the map | ' + ' | '.join(f'mask, {scale}' for scale in MASK_SCALES) + ' |')
    print('|---' * (3 + len(MASK_SCALES)) + '|')
    for name, _, weights in (text.partition('=') for text in args.models):
        maps = target_maps(name, weights, dataset, args.batch_size)
        maxima = maps.flatten(1).amax(1)
        maps, maxima = maps[maxima > 0], maxima[maxima > 0]
        masks = [target_mask(maps, scale=scale).flatten(1) for scale in MASK_SCALES]
        ranges = [f'{mask.amin(1).median():.2f} to {mask.amax(1).median():.2f}' for mask in masks]
        title = f'{name}, trained' if weights else name
        print(f"| {title} | {len(maps)} | {maxima.median():.3g} | {' | '.join(ranges)} |")


if __name__ == '__main__':
    main()
