"""Folders as a training run leaves them, and small data sets with boxes, for the commands that read them."""
import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext

import helpers.resnet8  # noqa: F401  registers the architecture
import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import train_timm
from timm_icasc.figures import validation
from timm_icasc.runs.files import replacing
from timm_icasc.training import epoch as training_epoch
from timm_icasc.training import run as training_run

COLOURS = {'red': (230, 40, 40), 'green': (40, 200, 40), 'blue': (50, 60, 230)}

# Of a training on a few images: steps of a second in all.
TINY = ['--model', 'resnet8_cifar', '--batch-size', '6', '--warmup-epochs', '0', '--lr', '0.05', '-j', '0',
        '--icasc-eval-images', '3', '--img-size', '16']


def _blank_figure(models, images, targets, names, mean, std, path, **options):
    with replacing(path) as partial:
        Image.new('RGB', (8, 8)).save(partial, 'PNG')
    return path


@contextmanager
def blank_figures():
    """Trainings inside the block leave a blank picture: the drawing takes a third of a small training's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, 'attention_figure', _blank_figure)
        yield


def train_in_process(monkeypatch, capsys, *options, drawn=False):
    """main() of train_timm.py with these options; returns (exit code, stdout, stderr).

    The figure at the end is blank unless it is asked for by `drawn`.
    """
    monkeypatch.setattr(sys, 'argv', ['train_timm.py', *map(str, options)])
    with nullcontext() if drawn else blank_figures():
        code = train_timm.main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def train_with_accuracies(monkeypatch, capsys, accuracies, *options):
    """Train with the accuracies of a list, which are taken from it, in place of measured ones; returns stdout."""
    monkeypatch.setattr(training_run, 'evaluate', lambda job, flag: {'top1': accuracies.pop(0), 'loss': 1.})
    code, out, err = train_in_process(monkeypatch, capsys, *options)
    assert code == 0, err
    return out


@contextmanager
def sigterm_in_the_second_epoch(monkeypatch):
    """A training inside the block gets SIGTERM in the first step of its second epoch."""
    original = training_epoch.check_finite

    def terminate(means, epoch, step):
        original(means, epoch, step)
        if (epoch, step) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_epoch, 'check_finite', terminate)
        yield


def make_run(folder, model='resnet8_cifar', num_classes=10, seed=0, **options):
    """args.yaml, last.pth.tar and results.json of a model with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    fixed_size = 'img_size' in options and timm.get_pretrained_cfg(model).fixed_input_size
    kwargs = {'img_size': options['img_size']} if fixed_size else {}
    network = timm.create_model(model, num_classes=num_classes, **kwargs)
    options = {
        'dataset': 'digits', 'val_split': 'validation', 'model': model, 'workers': 0, 'batch_size': 16, 'seed': seed,
        **options}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    torch.save({'epoch': 0, 'arch': model, 'state_dict': network.state_dict()}, folder / 'last.pth.tar')
    measure = 'eval_mAP' if options['dataset'].startswith(('voc', 'multilabel')) else 'eval_top1'
    results = {'method': 'cross-entropy', 'epochs': 1, 'last': {measure: 10. + seed}}
    (folder / 'results.json').write_text(json.dumps(results))
    return folder


def _scene(size, squares):
    """A grey image with coloured squares, `(colour, left, top, side)`."""
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    for colour, left, top, side in squares:
        pixels[top:top + side, left:left + side] = COLOURS[colour]
    return Image.fromarray(pixels)


def make_packed_voc(folder, count=8):
    """Coloured squares on grey, one or two an image, in the format of the packed VOC 2007; boxes fit the squares."""
    generator = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True)
    entries = []
    for i in range(count):
        size = (60, 40) if i % 2 else (36, 48)
        colours = list(COLOURS)[i % 3:i % 3 + 1 + i % 2]
        squares = [
            (c, int(generator.integers(0, size[0] - 14)), int(generator.integers(0, size[1] - 14)), 14)
            for c in colours]
        _scene(size, squares).save(folder / 'images' / f'{i:06d}.webp', lossless=True)
        entries.append({
            'id': f'{i:06d}', 'split': 'val' if i % 4 else 'train', 'width': 2 * size[0], 'height': 2 * size[1],
            'labels': [1 if c in colours else 0 if i == 5 and c == 'red' else -1 for c in COLOURS],
            'boxes': [[c, 2 * x + 1, 2 * y + 1, 2 * (x + s), 2 * (y + s)] for c, x, y, s in squares],
            'scale': [0.5, 0.5], 'packed_size': list(size)})
    (folder / 'annotations.json').write_text(json.dumps({'classes': list(COLOURS), 'images': entries}))
    return folder


def make_cub(folder, per_class=2):
    """Coloured squares as birds, one an image, in the format of CUB-200-2011."""
    lists = {name: [] for name in ('images', 'image_class_labels', 'train_test_split', 'bounding_boxes')}
    for c, colour in enumerate(COLOURS):
        directory = folder / 'images' / f'{c + 1:03d}.{colour}'
        directory.mkdir(parents=True)
        for i in range(per_class * 2):
            number = len(lists['images']) + 1
            left, top = 5 + 3 * i, 10 + c
            _scene((50, 40), [(colour, left, top, 16)]).save(directory / f'{i}.png')
            lists['images'].append(f'{number} {c + 1:03d}.{colour}/{i}.png')
            lists['image_class_labels'].append(f'{number} {c + 1}')
            lists['train_test_split'].append(f'{number} {i % 2}')
            lists['bounding_boxes'].append(f'{number} {left}.0 {top}.0 16.0 16.0')
    lists['classes'] = [f'{c + 1} {c + 1:03d}.{colour}' for c, colour in enumerate(COLOURS)]
    for name, lines in lists.items():
        (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')
    return folder
