#!/usr/bin/env python3
"""How long does training wait for its images? A table: kinds of files, and options of the trainer, a row each.

    data_path.py PHOTOS CIFAR

PHOTOS is a folder of photographs (any size; made to the sizes of the table, by enlarging where need be), CIFAR an image
folder of 32 x 32 images, CIFAR/train/CLASS/IMAGE. Each row trains one epoch by `timm-icasc train`, with ICASC, and says
what share of it went by waiting for images (results.json), and how long the loader alone takes for an image, in one
process, without the network. Two cores: what one process loads, the other computes.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from timm.data import create_dataset, create_transform
from tqdm import tqdm

IMAGES = 192  # of each kind
CLASSES = 4
ENDINGS = ('.jpg', '.jpeg', '.png', '.webp')

# Kind of file -> longer side in pixels, ending, options of Pillow's save.
KINDS = {
    'JPEG, 2,000 pixels (a camera)': (2000, 'jpg', {'quality': 90}),
    'JPEG, 500 pixels (ImageNet)': (500, 'jpg', {'quality': 90}),
    'WebP, 500 pixels': (500, 'webp', {'quality': 80}),
    'JPEG, resized to 300 pixels': (300, 'jpg', {'quality': 90}),
}


def make_folder(photos: list[Path], folder: Path, side: int, ending: str, options: dict) -> None:
    for number, photo in enumerate(photos):
        image = Image.open(photo).convert('RGB')
        scale = side / max(image.size)
        image = image.resize([round(length * scale) for length in image.size], Image.Resampling.BICUBIC)
        for split in ('train', 'val') if number < 2 * CLASSES else ('train',):
            target = folder / split / str(number % CLASSES)
            target.mkdir(parents=True, exist_ok=True)
            image.save(target / f'{number}.{ending}', **options)


def milliseconds_of_loading(folder: Path, size: int, images: int) -> float:
    dataset = create_dataset('torch/image_folder', root=str(folder), split='train')
    dataset.transform = create_transform((3, size, size), is_training=True, color_jitter=0.)
    indices = range(0, len(dataset), max(1, len(dataset) // images))
    dataset[0]
    started = time.process_time()
    for index in indices:
        dataset[index]
    return (time.process_time() - started) / len(indices) * 1e3


def one_epoch(folder: Path, model: str, options: list[str], output: Path) -> tuple[float, float]:
    """Share of the epoch that waited, and its seconds of training and validation."""
    split = 'test' if (folder / 'test').is_dir() else 'val'
    subprocess.run(
        [sys.executable, '-m', 'timm_icasc_cli', 'train', '--dataset', 'torch/image_folder', '--data-dir', folder,
         '--val-split', split, '--model', model, '--epochs', '1', '--color-jitter', '0', '--icasc-eval-images', '0',
         '--output', output.parent, '--experiment', output.name, *options],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = json.loads((output / 'results.json').read_text())['last']
    return last['waiting'], last['time']


def rows_of(args: argparse.Namespace, work: Path):
    """Images, options and folder of each row, with the size that the network gets."""
    photos = sorted(path for path in args.photos.rglob('*') if path.suffix.lower() in ENDINGS)
    for kind, (side, ending, options) in KINDS.items():
        folder = work / f'{side}{ending}'
        make_folder(photos[:IMAGES], folder, side, ending, options)
        for model in args.models:
            for workers in (0, 2):
                yield kind, model, folder, 224, ['-b', '16', '--img-size', '224', '--workers', str(workers)]
    for workers, resident in ((0, []), (2, []), (0, ['--resident-data'])):
        yield 'PNG, 32 pixels (CIFAR)', 'resnet20_cifar', args.cifar, 32, [
            '-b', '128', '--limit-train', '100', '--crop-padding', '4', '--workers', str(workers), *resident]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photos', type=Path, metavar='PHOTOS')
    parser.add_argument('cifar', type=Path, metavar='CIFAR')
    parser.add_argument('--models', nargs='+', default=['tf_efficientnet_lite0'])
    args = parser.parse_args()
    print('| images | network | options | loading, ms an image | share of the epoch that waits | seconds |')
    print('|---|---|---|---|---|---|')
    loading: dict[Path, float] = {}
    with tempfile.TemporaryDirectory() as work:
        for number, (kind, model, folder, size, options) in enumerate(tqdm(list(rows_of(args, Path(work))))):
            if folder not in loading:
                loading[folder] = milliseconds_of_loading(folder, size, IMAGES)
            waiting, seconds = one_epoch(folder, model, options, Path(work, f'run{number}'))
            shown = ' '.join(options[options.index('--workers'):])
            row = f'| {kind} | {model} | `{shown}` | {loading[folder]:.1f} | {waiting:.0%} | {seconds:.0f} |'
            tqdm.write(row, file=sys.stdout)


if __name__ == '__main__':
    main()
