"""ICASC where an image shows several classes.

You learn how `MultiLabelICASCTask` is used: the target is a row of 1 (present), 0 (absent) and -1
(not known, ignored); the attention of all present classes together is held apart from that of the
absent class of highest score. Each image here is two of scikit-learn's digits side by side, with
both labels. Quality is mean average precision (mAP), from the task's own evaluator.

    python examples/multilabel.py
    python examples/multilabel.py --weight 0      # the soft-margin loss alone
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from timm_icasc import MultiLabelICASCTask

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--epochs', type=int, default=6)
parser.add_argument('--images', type=int, default=800, help='number of training images')
parser.add_argument('--weight', type=float, default=0.03, help='of each term of ICASC')
parser.add_argument('--seed', type=int, default=0)


def make_pairs(digits, labels, count):
    """Two random digits side by side: images [N, 3, 16, 32] and labels [N, 10], 1 or 0."""
    left, right = torch.randint(len(digits), (2, count))
    images = torch.cat([digits[left], digits[right]], dim=3)
    present = torch.stack([labels[left], labels[right]], dim=1)
    target = torch.zeros(count, 10).scatter(1, present, 1.)  # one label where both are alike
    return images, target


def main():
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = load_digits()
    digits = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    digits = F.interpolate(digits, size=(16, 16), mode='bilinear').expand(-1, 3, -1, -1)
    digits, labels = (digits - 0.305) / 0.34, torch.tensor(data.target)
    images, target = make_pairs(digits[:1300], labels[:1300], args.images)
    test_images, test_target = make_pairs(digits[1300:], labels[1300:], 400)

    model = timm.create_model('resnet20_cifar', num_classes=10)
    task = MultiLabelICASCTask(
        model, input_size=(3, 16, 32),
        weight_as_inner=args.weight, weight_as_last=args.weight, weight_ac=args.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    for epoch in range(args.epochs):
        task.train()
        total = 0.
        for batch in torch.randperm(len(images)).split(50):
            result = task(images[batch], target[batch])
            optimizer.zero_grad()
            result['loss'].backward()
            optimizer.step()
            total += result['loss_cls'].item() * len(batch)
        scheduler.step()

        model.eval()
        evaluator = task.create_evaluator()
        with torch.no_grad():
            for batch in torch.arange(len(test_images)).split(100):
                evaluator.update(model(test_images[batch]), test_target[batch])
        measures = evaluator.compute()  # 'mAP', 'AUC', 'AP_0', ... in percent
        print(
            f"epoch {epoch + 1}  loss_cls {total / len(images):.3f}  "
            f"mAP {measures['mAP']:.1f} %  AUC {measures['AUC']:.1f} %", flush=True)


if __name__ == '__main__':
    main()
