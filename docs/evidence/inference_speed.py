#!/usr/bin/env python3
"""How fast are the commands that measure and draw maps, beside a plain validation loop? A table, a command a row.

    inference_speed.py RUN DATA_DIR PHOTOS

RUN is the folder of a finished single-label run on the image folder DATA_DIR, PHOTOS a folder of images for `explain`.
Each command runs with N and with 2 N images, in one thread and one process; what the second takes longer, in processor
time, is the cost of N images, so that starts count nowhere. Medians over the rounds, each of which goes through all
commands. The plain loop has timm's data set, transform and network, and top-1.
"""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

COMMAND = [sys.executable, '-m', 'timm_icasc_cli']

LOOP = """
import sys, timm, timm.data, torch, timm_icasc  # which registers the networks of its own
from timm.data import create_dataset
torch.set_num_threads(1)
architecture, data_dir, split, size, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
dataset = create_dataset('torch/image_folder', root=data_dir, split=split)
model = timm.create_model(architecture, num_classes=len(dataset.classes)).eval()
step = len(dataset) / count
dataset.transform = timm.data.create_transform((3, size, size), crop_pct=1.)
dataset = torch.utils.data.Subset(dataset, [int(i * step) for i in range(count)])
right = 0
with torch.inference_mode():
    for images, target in torch.utils.data.DataLoader(dataset, batch_size=16):
        right += (model(images).argmax(1) == target).sum()
"""


def seconds(command: list[str], folder: str) -> float:
    """Processor time of one command, run to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{result.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(args: argparse.Namespace, photos: list[str], count: int) -> dict[str, list[str]]:
    run, data = [str(args.run)], ['--data-dir', str(args.data_dir), '--val-split', args.split]
    few = ['--workers', '0', '-b', '16']
    explain = [*COMMAND, 'explain', *photos[:count], '--model', *run, '--topk', '2', '--page', '0', *few]
    return {
        'plain loop, scores alone': [
            sys.executable, '-c', LOOP, args.model, str(args.data_dir), args.split, str(args.size), str(count)],
        '`eval`': [*COMMAND, 'eval', *run, *data, '--images', str(count), '--resamples', '2', '--output', 'e', *few],
        '`explain --topk 2 --raw --overlays none`': [*explain, '--raw', '--overlays', 'none', '--output', f'm{count}'],
        '`explain --topk 2`': [*explain, '--output', f's{count}'],
        '`figure html --topk 2`': [
            *COMMAND, 'figure', 'html', *run, *data, '--topk', '2', '--images', str(count), '--output', 'f.html', *few],
        '`figure ks`': [*COMMAND, 'figure', 'ks', *run, *data, '--images', str(count), '--output', 'k.png', *few],
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
    parser.add_argument('-n', '--images', type=int, default=200, help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=3, help='default: %(default)s')
    args = parser.parse_args()
    for name in ('run', 'data_dir', 'photos'):
        setattr(args, name, getattr(args, name).resolve())
    photos = sorted(str(path) for path in args.photos.rglob('*') if path.is_file())[:2 * args.images]
    if len(photos) < 2 * args.images:
        raise SystemExit(f'{args.photos}: {2 * args.images} images are needed')
    few, many = (commands(args, photos, count) for count in (args.images, 2 * args.images))
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=args.rounds * len(few)) as bar:
        for _ in range(args.rounds):
            for name in few:
                taken.setdefault(name, []).append(seconds(many[name], folder) - seconds(few[name], folder))
                bar.update()
    plain = statistics.median(taken['plain loop, scores alone'])
    print('| command | ms an image | images a second | of the plain loop |\n|---|---|---|---|')
    for name, values in taken.items():
        cost = statistics.median(values) / args.images
        print(f'| {name} | {cost * 1e3:.1f} | {1 / cost:.0f} | {plain / args.images / cost:.2f} |')


if __name__ == '__main__':
    main()
