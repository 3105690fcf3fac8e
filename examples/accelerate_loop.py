"""ICASC in a loop with Hugging Face Accelerate, with checkpoints to go on from.

You learn to hand `prepare` the task, not the model: the processes then share its gradients, mixed
precision reaches the model, and `save_state` keeps the step that `start_steps` and `ramp_steps`
count by. The model is inside of it. A run that stopped and goes on ends with the weights of one
that did not. The data are scikit-learn's handwritten digits. It needs `pip install accelerate`.

    python examples/accelerate_loop.py
    python examples/accelerate_loop.py --until 2 && python examples/accelerate_loop.py --resume
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py
"""
import argparse

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from timm_icasc import ICASCTask

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--epochs', type=int, default=4)
parser.add_argument('--until', type=int, metavar='N', help='stop after the epoch N')
parser.add_argument('--resume', action='store_true', help='go on from the checkpoint in --output')
parser.add_argument('--images', type=int, default=1000, help='number of training images')
parser.add_argument('--order', type=int, default=1, choices=(1, 2))
parser.add_argument('--mixed-precision', default='no', choices=('no', 'bf16', 'fp16'))
parser.add_argument('--output', default='accelerate_run', metavar='DIR')
parser.add_argument('--seed', type=int, default=0)


def load_images(count):
    """Digits as normalised images [N, 3, 16, 16] with labels: `count` to train on, 400 to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode='bilinear').expand(-1, 3, -1, -1)
    dataset = TensorDataset((images - 0.305) / 0.34, torch.tensor(digits.target))
    return random_split(dataset, [count, 400, len(dataset) - count - 400])[:2]


def accuracy(accelerator, model, loader):
    model.eval()
    correct = []
    for images, labels in loader:
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        correct.append(accelerator.gather_for_metrics(right))
    return torch.cat(correct).float().mean().item()


def main():
    args = parser.parse_args()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=args.mixed_precision,
        # Each epoch's order follows from its number, in every process and after a resume too.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)
    train, test = load_images(args.images)
    steps = args.images // 50 // accelerator.num_processes  # of an epoch
    model = timm.create_model('resnet20_cifar', num_classes=10)
    task = ICASCTask(  # no terms in the first epoch, then they grow for two
        model, order=args.order, input_size=(3, 16, 16), start_steps=steps, ramp_steps=2 * steps,
        verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    task, optimizer, train_loader, test_loader = accelerator.prepare(
        task, optimizer, DataLoader(train, 50, shuffle=True), DataLoader(test, 100))
    accelerator.register_for_checkpointing(scheduler)  # one step an epoch, however many processes
    if args.resume:
        accelerator.load_state(args.output)

    for epoch in range(scheduler.last_epoch, args.until or args.epochs):
        task.train()
        train_loader.set_epoch(epoch)
        for images, labels in train_loader:
            result = task(images, labels)
            optimizer.zero_grad()
            accelerator.backward(result['loss'])
            optimizer.step()
        scheduler.step()
        top1 = accuracy(accelerator, model, test_loader)  # the model, which is inside of the task
        terms = {name: x.item() for name, x in result.items() if name.startswith('loss_')}
        accelerator.print(
            f'epoch {epoch + 1}  accuracy {top1:.3f}  '
            f'terms x {accelerator.unwrap_model(task).term_scale:.2f}  '
            + '  '.join(f'{name} {value:.3f}' for name, value in terms.items()))
        accelerator.save_state(args.output)
    if accelerator.is_main_process:
        torch.save(model.state_dict(), f'{args.output}/model.pth')  # for timm, without the task
    accelerator.end_training()


if __name__ == '__main__':
    main()
