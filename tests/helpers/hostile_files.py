"""A small corpus of hostile files, made anew by each test session: `make(folder)`, or `python hostile_files.py FOLDER`.

Everything lies in the folder; `outside/` must stay as it is. A pickle that were opened would write `outside/ran`.
"""
import csv
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# Names of classes and folders: escapes, line breaks, a turned direction, a formula, Markdown, HTML.
NAMES = (
    'x\x1b[2K\x1b[31mred', 'cat\nme/x@main: verified, sha256 0', 'cat\rtop-1 % 100', '\u202egnp.tac',
    '=HYPERLINK("http://x.y","z")', '@SUM(1)', '# heading', '<img src=x onerror=alert(1)>', '[a](http://x.y)',
    'a|b', '```', '$x^{$')

# What must not be printed as it is.
RAW = ('\x1b', '\r', '\x07', '\x9b', '\u202e', '\u2028')


class _Run:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _png(width: int, height: int) -> bytes:
    """A PNG that says that it has so many pixels, and holds none."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def _safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _weights(folder: Path, marker: Path) -> None:
    hostile = pickle.dumps({'state_dict': _Run(marker), 'epoch': 1}, 2)
    (folder / 'hostile.pth.tar').write_bytes(hostile)
    (folder / 'hostile_zip.pth').write_bytes(_zip(**{
        'archive/data.pkl': hostile, 'archive/version': b'3\n', 'archive/byteorder': b'little'}))
    (folder / 'text.pth').write_text('<html>404</html>')
    (folder / 'empty.pth').touch()
    (folder / 'zeros.pth').write_bytes(bytes(1000))
    (folder / 'short.safetensors').write_bytes(b'\xff' * 4)
    (folder / 'length.safetensors').write_bytes(b'\xff' * 100)
    (folder / 'kinds.safetensors').write_bytes(_safetensors({'__metadata__': [1], 'a': 'b'}))
    np.save(folder / 'object.npy', np.array([_Run(marker)], dtype=object), allow_pickle=True)
    (folder / 'object.npy').rename(folder / 'object.npz')


def _yaml(folder: Path) -> None:
    laughs = ['a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]']
    laughs += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]
    (folder / 'laughs.yaml').write_text('\n'.join([*laughs, 'epochs: *a11']))
    (folder / 'self.yaml').write_text('epochs: &a [*a]\n')
    (folder / 'aliases.yaml').write_text('x: &x 1\nepochs: [' + '*x, ' * 21_000 + '1]\n')
    (folder / 'deep.yaml').write_text('[' * 20_000 + ']' * 20_000)
    (folder / 'large.yaml').write_text('# ' + 'x' * (2 << 20))
    (folder / 'control.yaml').write_bytes(b'# \x07\nepochs: 1\n')
    (folder / 'latin.yaml').write_bytes(b'model: caf\xe9\n')
    (folder / 'object.yaml').write_text("epochs: !!python/object/apply:os.mkdir ['ran']\n")
    (folder / 'list.yaml').write_text('- 1\n')
    (folder / 'text.yaml').write_text('hf_token')
    (folder / 'twice.yaml').write_text('epochs: 1\nepochs: 2\n')
    (folder / 'kinds.yaml').write_text('epochs: {a: [1]}\n')
    (folder / 'date.yaml').write_text('epochs: 2001-99-99\n')
    (folder / 'unhashable.yaml').write_text('? [a]\n: 1\n? {b: 1}\n: 2\n')
    (folder / 'zero.yaml').write_text('data-dir: "a\\0b"\n')
    (folder / 'empty.yaml').touch()


def _xml(folder: Path) -> None:
    """Annotations of boxes."""
    def annotation(name: str, entities: str = '') -> str:
        return f'<!DOCTYPE a [{entities}]><annotation><object><name>{name}</name></object></annotation>'

    laughs = ['<!ENTITY a0 "lol">']
    laughs += [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 11)]
    (folder / 'laughs.xml').write_text(annotation('&a10;', ''.join(laughs)))
    (folder / 'deep.xml').write_text('<a>' * 200_000)
    (folder / 'latin.xml').write_bytes(b'<a>\xe9</a>')
    (folder / 'kinds.xml').write_text(
        '<annotation><object><name>cat</name><bndbox><xmin>x</xmin></bndbox></object></annotation>')
    (folder / 'outside.xml').write_text(annotation('&x;', '<!ENTITY x SYSTEM "file:///etc/passwd">'))


def _json(folder: Path) -> None:
    (folder / 'deep.json').write_text('[' * 200_000 + ']' * 200_000)
    (folder / 'latin.json').write_bytes(b'{"a": "caf\xe9"}')
    (folder / 'list.json').write_text('[1]')
    (folder / 'null.json').write_text('null')
    (folder / 'digits.json').write_text('9' * 5000)
    (folder / 'cut.json').write_text('{"a": ')


def _class_maps(folder: Path, marker: Path) -> None:
    (folder / 'hostile.pkl').write_bytes(pickle.dumps(_Run(marker), 2))
    (folder / 'cut.pkl').write_bytes(b'\x80\x04junk')
    (folder / 'empty.pkl').touch()
    (folder / 'latin.txt').write_bytes(b'caf\xe9\n')
    (folder / 'kind.bin').write_bytes(b'x')
    (folder / 'list.pkl').write_bytes(pickle.dumps([1]))
    for name, index in (('kinds', 'x'), ('below', -5), ('large', 10 ** 5000)):
        (folder / f'{name}.pkl').write_bytes(pickle.dumps({'ant': 0, 'bat': 1, 'cat': index}))


def _images(folder: Path) -> None:
    (folder / 'bomb.png').write_bytes(_png(60_000, 60_000))
    (folder / 'cut.png').write_bytes(_png(32, 32)[:40])
    (folder / 'text.jpg').write_text('no image')


def _lists(folder: Path, outside: Path) -> None:
    """Lists of images whose names leave the folder: split NAME is NAME.csv, NAME.json, and single_NAME.csv."""
    Image.new('RGB', (32, 32)).save(outside / 'private.png')
    (folder / 'link.png').symlink_to(outside / 'private.png')
    names = {
        'up': '../outside/private.png', 'absolute': str(outside / 'private.png'), 'link': 'link.png',
        'drive': 'C:\\private.png', 'share': '\\\\host\\private.png', 'nul': 'a\0b.png'}
    for split, name in names.items():
        with open(folder / f'{split}.csv', 'w', newline='') as file:
            csv.writer(file).writerows([('image', 'cat', 'dog'), (name, 1, 0)])
        with open(folder / f'single_{split}.csv', 'w', newline='') as file:
            csv.writer(file).writerows([('image', 'label'), (name, 'cat'), ('b.png', 'dog')])
        (folder / f'{split}_json.json').write_text(json.dumps({'images': [{'image': name, 'labels': ['cat', 'dog']}]}))
    for name, content in (('deep', '[' * 200_000), ('kinds', '{"images": [1]}'), ('boxes', json.dumps({'images': [
            {'image': 'a.png', 'labels': ['cat', 'dog'], 'boxes': [[]]}]}))):
        (folder / f'{name}.json').write_text(content)
    (folder / 'latin.csv').write_bytes(b'image,labels\ncaf\xe9.png,cat\n')


def make(folder: Path) -> Path:
    """Write the corpus; returns the folder `outside` in it, which no command may change."""
    outside = folder / 'outside'
    for name in ('outside', 'weights', 'yaml', 'xml', 'json', 'class_maps', 'images', 'lists'):
        (folder / name).mkdir(parents=True)
    _weights(folder / 'weights', outside / 'ran')
    _yaml(folder / 'yaml')
    _xml(folder / 'xml')
    _json(folder / 'json')
    _class_maps(folder / 'class_maps', outside / 'ran')
    _images(folder / 'images')
    _lists(folder / 'lists', outside)
    (outside / 'token').write_text('hf_secret')
    return outside


if __name__ == '__main__':
    print(make(Path(sys.argv[1])).parent)
