#!/usr/bin/env python3
"""How fast are the commands that measure and draw maps, beside a plain validation loop? A table, a command a row.

    inference_speed.py RUN DATA_DIR PHOTOS

RUN is the folder of a finished single-label run on the image folder DATA_DIR, PHOTOS a folder of images for `explain`.
Each command runs in this process, in one thread, with N and with 2 N images; what the second takes longer, in processor
time, is the cost of N images, so that loading the network counts nowhere. Medians over the rounds, each of which goes
through all commands, after one that is not counted. The plain loop: timm's data set, transform and network, top-1.
"""
import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_transform
from tqdm import tqdm

from timm_icasc.cli import main as timm_icasc


@torch.inference_mode()
def plain_loop(args: argparse.Namespace, count: int) -> None:
    dataset = create_dataset('torch/image_folder', root=str(args.data_dir), split=args.split)
    dataset.transform = create_transform((3, args.size, args.size), crop_pct=1.)
    model = timm.create_model(args.model, num_classes=len(dataset.classes)).eval()
    chosen = [int(i * len(dataset) / count) for i in range(count)]
    right = 0
    for images, target in torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, chosen), batch_size=16):
        right += (model(images).argmax(1) == target).sum().item()


def command(*words: object) -> Callable[[], None]:
    def call() -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = timm_icasc([*map(str, words), '--workers', '0', '-b', '16'])
        if code:
            raise SystemExit(f"{' '.join(map(str, words))}:\n{out.getvalue()}")
    return call


def calls(args: argparse.Namespace, photos: list[str], count: int) -> dict[str, Callable[[], None]]:
    data = ['--data-dir', args.data_dir, '--val-split', args.split, '--images', count]
    explain = ['explain', *photos[:count], '--model', args.run, '--topk', '2', '--page', '0']
    return {
        'plain loop, scores alone': lambda: plain_loop(args, count),
        '`explain --topk 2 --raw --overlays none`': command(
            *explain, '--raw', '--overlays', 'none', '--output', f'm{count}'),
        '`eval`': command('eval', args.run, *data, '--resamples', '2', '--output', 'e'),
        '`figure ks`': command('figure', 'ks', args.run, *data, '--output', 'k.png'),
        '`figure html --topk 2`': command('figure', 'html', args.run, *data, '--topk', '2', '--output', 'f.html'),
        '`explain --topk 2`': command(*explain, '--output', f's{count}'),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, metavar='RUN')
    parser.add_argument('data_dir', type=Path, metavar='DATA_DIR')
    parser.add_argument('photos', type=Path, metavar='PHOTOS')
    parser.add_argument(
        '--model', default='tf_efficientnet_lite0', help="the run's architecture (default: %(default)s)")
    parser.add_argument('--size', type=int, default=112, help='side of its images (default: %(default)s)')
    parser.add_argument('--split', default='test', help='default: %(default)s')
    parser.add_argument('-n', '--images', type=int, default=96, help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    args = parser.parse_args()
    for name in ('run', 'data_dir', 'photos'):
        setattr(args, name, getattr(args, name).resolve())
    photos = sorted(str(path) for path in args.photos.rglob('*') if path.is_file())[:2 * args.images]
    if len(photos) < 2 * args.images:
        raise SystemExit(f'{args.photos}: {2 * args.images} images are needed')
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=args.rounds + 1) as bar:
        os.chdir(folder)
        for number in range(args.rounds + 1):
            seconds: dict[str, float] = {}
            for sign, count in ((-1, args.images), (1, 2 * args.images)):
                for name, call in calls(args, photos, count).items():
                    started = time.process_time()
                    call()
                    seconds[name] = seconds.get(name, 0.) + sign * (time.process_time() - started)
            if number:
                for name, value in seconds.items():
                    taken.setdefault(name, []).append(value / args.images)
            bar.update()
        os.chdir('/')
    plain = statistics.median(taken['plain loop, scores alone'])
    print('| command | ms an image | images a second | of the plain loop |\n|---|---|---|---|')
    for name, values in taken.items():
        cost = statistics.median(values)
        print(f'| {name} | {cost * 1e3:.1f} | {1 / cost:.0f} | {plain / cost:.2f} |')


if __name__ == '__main__':
    main()
