"""ICASC in a training loop of your own.

You learn what replaces `loss = criterion(model(images), target)` in a plain PyTorch loop:
`ICASCTask` takes images and target, and returns the loss, the logits and the single terms. Model,
optimiser and evaluation stay what they were. The data are scikit-learn's handwritten digits,
nothing is downloaded.

    python examples/own_loop.py
    python examples/own_loop.py --order 2 --epochs 10     # the channel weights carry gradient
    python examples/own_loop.py --baseline                # the same loop with cross-entropy alone
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from timm_icasc import ICASCTask

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--epochs', type=int, default=6)
parser.add_argument('--images', type=int, default=1000, help='number of training images')
parser.add_argument('--order', type=int, default=1, choices=(1, 2))
parser.add_argument('--baseline', action='store_true', help='without the terms of ICASC')
parser.add_argument('--seed', type=int, default=0)

TERMS = ('loss_cls', 'loss_as_inner', 'loss_as_last', 'loss_ac')


def load_images(count):
    """Digits as normalised images [N, 3, 16, 16]: training images and labels, then the test's."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode='bilinear').expand(-1, 3, -1, -1)
    images, labels = (images - 0.305) / 0.34, torch.tensor(digits.target)
    train, test = train_test_split(
        torch.arange(len(labels)), train_size=count, test_size=400, random_state=0, stratify=labels)
    return images[train], labels[train], images[test], labels[test]


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(100)])
    return (predicted == labels).float().mean().item()


def main():
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images, labels, test_images, test_labels = load_images(args.images)
    model = timm.create_model('resnet20_cifar', num_classes=10)
    names = ('weight_as_inner', 'weight_as_last', 'weight_ac')
    weights = dict.fromkeys(names, 0.) if args.baseline else {}
    task = ICASCTask(model, order=args.order, input_size=(3, 16, 16), **weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    for epoch in range(args.epochs):
        task.train()
        sums = dict.fromkeys(TERMS, 0.)
        for batch in torch.randperm(len(images)).split(50):
            result = task(images[batch], labels[batch])  # result['output'] are the logits
            optimizer.zero_grad()
            result['loss'].backward()
            optimizer.step()
            for name in sums.keys() & result.keys():  # a term of weight 0 is absent
                sums[name] += result[name].item() * len(batch)
        scheduler.step()
        means = '  '.join(f'{name} {value / len(images):.3f}' for name, value in sums.items())
        top1 = accuracy(model, test_images, test_labels)  # the plain model, at no extra cost
        print(f'epoch {epoch + 1}  accuracy {top1:.3f}  {means}', flush=True)


if __name__ == '__main__':
    main()
