#!/usr/bin/env python3
"""Do the terms of ICASC pull with the classifier or against it? Length and angle of their gradients, as a table.

    gradients.py cifar20 --model resnet20_cifar                                   weights as they are initialised
    gradients.py cifar20 --model resnet20_cifar --checkpoint RUN/last.pth.tar     and at the end of a run

In training mode, on batches of the training images without augmentation. A term's gradient is taken at weight 1, of all
samples, of those that the network has right, and of those that it has wrong (the others count as 0, so that the two
parts add up); its length is given as a share of that of the cross-entropy's gradient, its angle as the cosine between
the two: below 0, a step that lowers the term raises the cross-entropy. The last line is the share of the classifier's
weights that are positive: without them no class has evidence, and its map at the last layer is zero.
"""
import argparse
import statistics

import timm
import torch
import torch.nn.functional as F
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.models import load_checkpoint

from timm_icasc import ICASCConfig, icasc_forward, resolve_layers
from timm_icasc.objective.config import TERMS


def flat_gradient(value, parameters):
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for p, g in zip(parameters, gradients, strict=True)])


def measure(model, batches, layers, config):
    """(term, which samples) -> lengths and cosines, one of each batch."""
    parameters, found = list(model.parameters()), {}
    for images, target in batches:
        output = icasc_forward(model, images, target, layers, config)
        reference = flat_gradient(F.cross_entropy(output.logits, target), parameters)
        right = output.logits.argmax(1) == target
        for term, values in output.terms.items():
            for which, chosen in (('all', torch.ones_like(right)), ('right', right), ('wrong', ~right)):
                gradient = flat_gradient((values * chosen).mean(), parameters)
                length = (gradient.norm() / reference.norm()).item()
                if length:
                    cosine = F.cosine_similarity(gradient, reference, 0).item()
                    found.setdefault((term, which), []).append((length, cosine))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir', help='image folder, DIR/train/CLASS/IMAGE')
    parser.add_argument('--model', required=True, help='timm architecture')
    parser.add_argument('--checkpoint', help='weights (default: as initialised, seed 0)')
    parser.add_argument('--batches', type=int, default=4)
    parser.add_argument('--batch-size', type=int, default=128)
    args = parser.parse_args()

    dataset = create_dataset('', root=args.data_dir, split='train')
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=len(dataset.reader.class_to_idx)).train()
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint)
    dataset.transform = create_transform(**resolve_data_config({'crop_pct': 1.}, model=model))
    loader = torch.utils.data.DataLoader(dataset, args.batch_size, shuffle=True)
    batches = [batch for batch, _ in zip(loader, range(args.batches), strict=False)]
    layers = resolve_layers(model)
    print('| attention | order | term | ' + ' | '.join(f'length, {w} | cosine, {w}' for w in ('all', 'right', 'wrong'))
          + ' |\n' + '|---' * 9 + '|')
    for attention, order in (('ach', 1), ('ach', 2), ('grad_cam', 1), ('grad_cam', 2)):
        found = measure(model, batches, layers, ICASCConfig(attention=attention, order=order))
        for term in TERMS:
            cells = []
            for which in ('all', 'right', 'wrong'):
                lengths, cosines = zip(*found.get((term.name, which), [(0., float('nan'))]), strict=True)
                cells += [f'{statistics.fmean(lengths):.2f}', f'{statistics.fmean(cosines):+.2f}']
            print(f"| {attention} | {order} | {term.title} | {' | '.join(cells)} |")
    print(f'\npositive weights of the classifier: {(model.get_classifier().weight > 0).float().mean():.0%}')


if __name__ == '__main__':
    main()
