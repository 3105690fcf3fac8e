"""Attention maps in a loss of your own.

You learn two things. `icasc_forward` is the whole objective of one batch without a trainer: one
forward pass gives logits, terms and differentiable maps of the true class and of the most
confusing one. And the functions of `timm_icasc.losses` are formulas of maps and masks, to be put
together as you like.

Here the place of each object is known, which ICASC itself does not need: a digit stands in one half
of the image, a digit with its pixels shuffled in the other. The loss keeps the true class's map in
the digit's half, and the confused class's map away from it. The share of the map on the
digit, of images not seen in training, says whether that worked; 0.5 is what chance would give.

    python examples/maps_in_a_loss.py
    python examples/maps_in_a_loss.py --weight 0      # the same network with cross-entropy alone
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from timm_icasc import ICASCConfig, attention_maps, icasc_forward, resolve_layers
from timm_icasc.losses import attention_consistency, attention_separation, resize_mask

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--epochs', type=int, default=5)
parser.add_argument('--images', type=int, default=800, help='number of training images')
parser.add_argument('--weight', type=float, default=1., help='of the two terms on the maps')
parser.add_argument('--seed', type=int, default=0)


def make_images(digits):
    """Digits beside shuffled ones: images [N, 3, 16, 32], and masks [N, 16, 32] of their halves."""
    shuffled = digits[torch.randperm(len(digits))].flatten(1)[:, torch.randperm(64)].view(-1, 8, 8)
    on_the_left = torch.rand(len(digits)) < 0.5
    images = torch.where(
        on_the_left[:, None, None],
        torch.cat([digits, shuffled], dim=2),
        torch.cat([shuffled, digits], dim=2),
    )[:, None]
    images = F.interpolate(images, scale_factor=2, mode='bilinear')
    mask = torch.zeros(len(digits), 16, 32)
    mask[on_the_left, :, :16], mask[~on_the_left, :, 16:] = 1., 1.
    return (images.expand(-1, 3, -1, -1) - 0.305) / 0.34, mask


def evaluate(model, images, labels, masks):
    """Accuracy, and the share of the true class's map `[N, 8, 16]` in the digit's half."""
    model.eval()
    with torch.no_grad():
        correct = (model(images).argmax(1) == labels).float().mean().item()
    maps = attention_maps(model, images, classes=labels[:, None], method='ach', layer='inner')[:, 0]
    shares = 1 - attention_consistency(maps, resize_mask(masks, maps.shape[-2:]), theta=1.)
    return correct, shares.mean().item()


def main():
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = load_digits()
    images, masks = make_images(torch.tensor(data.images, dtype=torch.float32) / 16)
    labels = torch.tensor(data.target)
    test = images[1300:], labels[1300:], masks[1300:]

    model = timm.create_model('resnet20_cifar', num_classes=10)
    layers = resolve_layers(model, input_size=(3, 16, 32))
    config = ICASCConfig(order=2)  # the channel weights carry gradient too
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        model.train()
        for batch in torch.randperm(args.images).split(50):
            result = icasc_forward(model, images[batch], labels[batch], layers, config)
            true, confused = result.maps['target_inner'], result.maps['confused_inner']
            mask = resize_mask(masks[batch], true.shape[-2:])
            outside = attention_consistency(true, mask, theta=1.)  # share in the wrong half
            shared = attention_separation(true, confused, mask)  # overlap on the digit
            loss = F.cross_entropy(result.logits, labels[batch])
            loss = loss + args.weight * (outside + shared).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        correct, share = evaluate(model, *test)
        print(
            f'epoch {epoch + 1}  accuracy {correct:.3f}  '
            f'share of the map on the digit {share:.3f}', flush=True)


if __name__ == '__main__':
    main()
