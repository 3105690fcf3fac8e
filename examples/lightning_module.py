"""ICASC in a LightningModule, with checkpoints to go on from.

You learn to hold the task alone: the model is inside of it, and a module that holds both has every
weight twice in its checkpoints. The step that `start_steps` and `ramp_steps` count by is kept in
them too. A run that stopped and goes on ends with the weights of one that did not. The data are
scikit-learn's handwritten digits, nothing is downloaded. It needs `pip install lightning`.

    python examples/lightning_module.py
    python examples/lightning_module.py --until 2 && python examples/lightning_module.py --resume
"""
import argparse
from pathlib import Path

import lightning
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, random_split

from timm_icasc import ICASCTask

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--epochs', type=int, default=3)
parser.add_argument('--until', type=int, metavar='N', help='stop after the epoch N')
parser.add_argument('--resume', action='store_true', help='go on from --output')
parser.add_argument('--images', type=int, default=1000, help='number of training images')
parser.add_argument('--order', type=int, default=1, choices=(1, 2))
parser.add_argument('--output', default='lightning.ckpt', metavar='FILE')
parser.add_argument('--seed', type=int, default=0)


class Classifier(lightning.LightningModule):
    def __init__(self, order=1):
        super().__init__()
        model = timm.create_model('resnet20_cifar', num_classes=10)
        # No `self.model = model`: it would be a second name for each weight.
        self.task = ICASCTask(
            model, order=order, input_size=(3, 16, 16), start_steps=10, ramp_steps=40)

    def forward(self, images):
        return self.task.trainable_module(images)  # the plain model

    def training_step(self, batch, index):
        result = self.task(*batch)
        self.log_dict({name: value for name, value in result.items() if name.startswith('loss_')})
        return result['loss']

    def validation_step(self, batch, index):
        images, labels = batch
        self.log('accuracy', (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


class EpochSampler(RandomSampler):
    """Lightning keeps no state of random numbers: this order follows from the epoch's number."""

    def set_epoch(self, epoch):
        self.generator = torch.Generator().manual_seed(epoch)


def load_images(count):
    """Digits as normalised images [N, 3, 16, 16] with labels: `count` to train on, 400 to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode='bilinear').expand(-1, 3, -1, -1)
    dataset = TensorDataset((images - 0.305) / 0.34, torch.tensor(digits.target))
    return random_split(dataset, [count, 400, len(dataset) - count - 400])[:2]


def main():
    args = parser.parse_args()
    lightning.seed_everything(args.seed)
    train, test = load_images(args.images)
    module = Classifier(args.order)
    output = Path(args.output).absolute()
    checkpoint = ModelCheckpoint(output.parent, output.stem, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=args.until or args.epochs, accelerator='cpu', logger=False,
        callbacks=[checkpoint], enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(
        module, DataLoader(train, 50, sampler=EpochSampler(train)), DataLoader(test, 100),
        ckpt_path=args.output if args.resume else None)
    accuracy = trainer.callback_metrics['accuracy']
    print(f'accuracy {accuracy:.3f} after {module.task.step} steps')
    weights = torch.load(args.output, weights_only=True)['state_dict']
    prefix = 'task.trainable_module.'
    model = timm.create_model('resnet20_cifar', num_classes=10)  # without Lightning
    model.load_state_dict(
        {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)})
    print(
        f'{args.output}: {len(weights)} tensors; {len(model.state_dict())} of the model, a step')


if __name__ == '__main__':
    main()
