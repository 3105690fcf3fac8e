"""ICASC in the Trainer of Hugging Face's transformers, with checkpoints to go on from.

You learn to override `compute_loss`, so that checkpoints hold the model alone: of transformers, of
timm in transformers' wrapper, or of timm. `icasc_forward` takes it as the Trainer wraps it, and the
terms begin by the Trainer's own count of steps, which its checkpoints hold. A run that stopped and
goes on ends with the weights of one that did not. It needs `pip install 'transformers[torch]'`.

    python examples/transformers_trainer.py
    python examples/transformers_trainer.py --model wrapped    # resnet20_cifar, a model of timm
    python examples/transformers_trainer.py --until 30         # then: --resume

`Trainer(model=ICASCTask(model), ...)` needs no class of your own, and saves the task instead.
"""
import argparse

import timm
import torch
import torch.nn.functional as F
import transformers
from sklearn.datasets import load_digits

from timm_icasc import ICASCConfig, icasc_forward, resolve_layers

MODELS = ('transformers', 'wrapped', 'timm')
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--model', default=MODELS[0], choices=MODELS)
parser.add_argument('--epochs', type=int, default=3)
parser.add_argument('--until', type=int, metavar='N', help='stop after the step N')
parser.add_argument('--resume', action='store_true', help='go on from the newest checkpoint')
parser.add_argument('--order', type=int, default=1, choices=(1, 2))
parser.add_argument('--output', default='transformers_run', metavar='DIR')


class ICASCTrainer(transformers.Trainer):
    def __init__(self, *args, config, start_steps=0, ramp_steps=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.config, self.start_steps, self.ramp_steps = config, start_steps, ramp_steps
        self.model_accepts_loss_kwargs = False  # the loss is a mean: accumulation divides it

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, labels = inputs['pixel_values'], inputs['labels']
        begun = (self.state.global_step - self.start_steps + 1) / self.ramp_steps
        scale = min(1., max(0., begun)) if model.training else 0.
        config = self.config if scale else self.config.with_weights(0.)  # the model alone
        layers = resolve_layers(model, input_size=tuple(images.shape[1:]))
        result = icasc_forward(model, images, labels, layers, config)
        loss = F.cross_entropy(result.logits, labels) + scale * result.weighted_sum(config)
        return (loss, {'logits': result.logits}) if return_outputs else loss


class StopAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def create_model(kind):
    if kind == 'transformers':
        config = transformers.ConvNextConfig(
            patch_size=2, num_stages=2, hidden_sizes=[32, 64], depths=[1, 1], num_labels=10)
        return transformers.ConvNextForImageClassification(config)
    if kind == 'wrapped':
        config = transformers.TimmWrapperConfig(architecture='resnet20_cifar', num_labels=10)
        return transformers.TimmWrapperForImageClassification(config)
    return timm.create_model('resnet20_cifar', num_classes=10)


def accuracy(found):
    return {'accuracy': (found.predictions.argmax(1) == found.label_ids).mean()}


def main():
    args = parser.parse_args()
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode='bilinear').expand(-1, 3, -1, -1)
    rows = [
        {'pixel_values': image, 'labels': int(label)}
        for image, label in zip((images - 0.305) / 0.34, digits.target, strict=True)]
    arguments = transformers.TrainingArguments(
        args.output, num_train_epochs=args.epochs, per_device_train_batch_size=50, report_to=[],
        learning_rate=2e-3, save_strategy='epoch', eval_strategy='epoch', disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        label_names=['labels'], remove_unused_columns=False)  # a model of timm names no columns
    torch.manual_seed(0)
    trainer = ICASCTrainer(
        create_model(args.model), arguments, train_dataset=rows[:1000], eval_dataset=rows[1000:],
        compute_metrics=accuracy, callbacks=[StopAt(args.until)],
        config=ICASCConfig(order=args.order), start_steps=20, ramp_steps=20)
    trainer.train(resume_from_checkpoint=args.resume or None)
    trainer.save_model()  # what from_pretrained takes; of timm's own models the weights


if __name__ == '__main__':
    main()
