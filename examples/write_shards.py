"""An image folder, SPLIT/CLASS/IMAGE, as shards of webdataset, which `timm-icasc train` reads.

You learn what a shard holds (an image and the number of its class under one key), what timm's
reader asks for beside the shards (_info.json), and that images must be shuffled when shards are
written: in training only parts of a shard are.

    python examples/write_shards.py DIR SHARDS --splits train val --shards 8
    timm-icasc train --dataset wds/NAME --data-dir SHARDS --val-split val --num-classes N

It needs `pip install webdataset`.
"""
import argparse
import json
import random
from pathlib import Path

import webdataset

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('root', type=Path)
parser.add_argument('output', type=Path)
parser.add_argument('--splits', nargs='+', default=['train', 'val'])
parser.add_argument('--shards', type=int, default=8, help='of each split (default: %(default)s)')
parser.add_argument('--endings', nargs='+', default=['.jpg', '.jpeg', '.png'])
args = parser.parse_args()

args.output.mkdir(parents=True, exist_ok=True)
names = sorted(path.name for path in (args.root / args.splits[0]).iterdir() if path.is_dir())
splits = {}
for split in args.splits:
    folder = args.root / split
    files = [path for path in sorted(folder.rglob('*')) if path.suffix.lower() in args.endings]
    random.Random(0).shuffle(files)
    shards = {f'{split}-{i:05d}.tar': files[i::args.shards] for i in range(args.shards)}
    for shard, own in shards.items():
        with webdataset.TarWriter(str(args.output / shard)) as writer:
            for number, file in enumerate(own):
                path = file.relative_to(folder)
                writer.write({
                    '__key__': f"{number:06d}-{path.as_posix().replace('.', '_')}",
                    file.suffix[1:].lower(): file.read_bytes(),
                    'cls': names.index(path.parts[0])})
    splits[split] = {
        'name': split, 'num_samples': len(files), 'filenames': list(shards),
        'shard_lengths': [len(own) for own in shards.values()]}
(args.output / '_info.json').write_text(json.dumps({'splits': splits}))
(args.output / 'classes.txt').write_text('\n'.join(names) + '\n')
counts = ', '.join(f"{info['num_samples']} of {name}" for name, info in splits.items())
print(f'{len(names)} classes; images: {counts}')
