#!/usr/bin/env python3
"""Do maps follow the image, or are their regions only larger? IoU with a transformed copy, beside that of other images.

    robustness_chance.py cifar20 --model resnet20_cifar RUN_A/last.pth.tar RUN_B/last.pth.tar

Large regions overlap whatever the image shows. So the map of an image's crop (and of its mirror image) is held against
the map of that image, as `timm-icasc eval --robustness` does, and against the maps of other images, which is what the
measure is by chance. `ach` maps of the true class at the last layer, of every fourth test image; the region is where a
map lies above 0.55 of its maximum, its size the share of the map.
"""
import argparse

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.models import load_checkpoint

from timm_icasc import attention_maps, resolve_layers
from timm_icasc.evaluation.robustness import region, region_iou, transformed_maps

SHIFTS = (37, 101, 211, 333)  # the images are sorted by class: these are mostly of other classes


def pairs_of(model, dataset, chosen):
    """`transformed_maps` of the images and their true classes: 'flip' and 'crop', two `[N, 1, h, w]` each."""
    layers, found = resolve_layers(model), []
    for batch in chosen.split(100):
        images, targets = zip(*(dataset[i] for i in batch.tolist()), strict=True)
        images, classes = torch.stack(images), torch.tensor(targets)[:, None]
        maps = attention_maps(model, images, classes, method='ach', layers=layers)
        found.append(transformed_maps(model, images, maps, classes, layers))
    return {
        name: [torch.cat(maps).detach() for maps in zip(*(pairs[name] for pairs in found), strict=True)]
        for name in found[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', help='image folder, DIR/test/CLASS/IMAGE')
    parser.add_argument('checkpoints', nargs='+', help='checkpoints of the model')
    parser.add_argument('--model', required=True, help='timm architecture')
    args = parser.parse_args()

    dataset = create_dataset('', root=args.data_dir, split='test')
    print('| network | region | crop, IoU | by chance | mirrored, IoU | by chance |\n' + '|---' * 6 + '|')
    for path in args.checkpoints:
        model = timm.create_model(args.model, num_classes=len(dataset.reader.class_to_idx)).eval()
        load_checkpoint(model, path)
        dataset.transform = create_transform(**resolve_data_config({'crop_pct': 1.}, model=model))
        pairs = pairs_of(model, dataset, torch.arange(0, len(dataset), 4))
        cells = [f"{region(pairs['flip'][1]).float().mean():.0%}"]
        for copies, maps in (pairs['crop'], pairs['flip']):
            others = torch.stack([region_iou(copies, maps.roll(shift, 0)).nanmean() for shift in SHIFTS])
            cells += [f'{region_iou(copies, maps).nanmean():.2f}', f'{others.mean():.2f}']
        print(f"| {path} | {' | '.join(cells)} |")


if __name__ == '__main__':
    main()
