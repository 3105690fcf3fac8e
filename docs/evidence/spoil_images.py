#!/usr/bin/env python3
"""Does attention where it should be help? Images with a cue that lies, occluded ones, and another background.

    spoil_images.py caltech101 cifar100/train caltech101_spoiled

Reads caltech101/{train,holdout,test}/CLASS/IMAGE, and writes, each with the same classes and names:

    train, holdout      with the cue of their class in the lower right corner (that of the image's largest central
                        square, which is what a network is tested on)
    test                as it is (a link)
    test_own_cue        with the cue of its class
    test_other_cue      with the cue of another class
    test_occluded       a grey square over a quarter of the image, at a place drawn at random
    test_background     the outer 15 % of each side are those of an image of another class

A cue is a picture, one for each class, that takes two fifths of the image's shorter side. The second argument is a
folder of folders of pictures: of the first folder the first one is the cue of the first class, and so on; behind the
last folder, the second one of the first. What is drawn depends on names alone, so that every call writes the same.
"""
import argparse
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from timm_icasc.runs.files import replacing_folder

CUE_SHARE = 0.4  # of the shorter side of the image, in its lower right corner
FRAME_SHARE = 0.15


def drawn(text: str) -> np.random.RandomState:
    """What is random of an image or a class."""
    return np.random.RandomState(zlib.crc32(text.encode()))


def images_of(folder: Path) -> dict[str, list[Path]]:
    return {c.name: sorted(c.iterdir()) for c in sorted(folder.iterdir()) if c.is_dir()}


def cues_of(folder: Path, classes: list[str]) -> dict[str, Image.Image]:
    """The picture that goes with each class: the first ones of all folders, then the second ones."""
    pictures = list(images_of(folder).values())
    return {
        label: Image.open(pictures[k % len(pictures)][k // len(pictures)]).convert('RGB')
        for k, label in enumerate(classes)}


def with_cue(image: Image.Image, cue: Image.Image) -> Image.Image:
    shorter = min(image.size)
    side = round(CUE_SHARE * shorter)
    image = image.copy()
    image.paste(
        cue.resize((side, side), Image.Resampling.BICUBIC),
        ((image.width + shorter) // 2 - side, (image.height + shorter) // 2 - side))
    return image


def occluded(image: Image.Image, name: str) -> Image.Image:
    size = image.width // 2, image.height // 2
    generator = drawn(f'occlusion of {name}')
    place = tuple(generator.randint(whole - part + 1) for whole, part in zip(image.size, size, strict=True))
    image = image.copy()
    image.paste((124, 116, 104), (*place, place[0] + size[0], place[1] + size[1]))  # the mean of ImageNet
    return image


def with_background(image: Image.Image, other: Image.Image) -> Image.Image:
    background = other.resize(image.size, Image.Resampling.BICUBIC)
    left, top = (round(FRAME_SHARE * length) for length in image.size)
    background.paste(image.crop((left, top, image.width - left, image.height - top)), (left, top))
    return background


def other_class(classes: list[str], label: str, name: str) -> str:
    rest = [c for c in classes if c != label]
    return rest[drawn(f'other of {name}').randint(len(rest))]


def write(folder: Path, images: dict[str, list[Path]], change: Callable[[Image.Image, str, Path], Image.Image]) -> None:
    with replacing_folder(folder) as partial:
        for label, paths in tqdm(images.items(), desc=folder.name):
            (partial / label).mkdir()
            for path in paths:
                change(Image.open(path).convert('RGB'), label, path).save(partial / label / f'{path.stem}.png')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path)
    parser.add_argument('pictures', type=Path)
    parser.add_argument('target', type=Path)
    args = parser.parse_args()
    images = images_of(args.source / 'test')
    classes = list(images)
    cues = cues_of(args.pictures, classes)
    for split in ('train', 'holdout'):
        write(args.target / split, images_of(args.source / split), lambda image, label, path: with_cue(
            image, cues[label]))

    def before_another(image: Image.Image, label: str, path: Path) -> Image.Image:
        name = f'{label}/{path.name}'
        others = images[other_class(classes, label, name)]
        other = others[drawn(f'background of {name}').randint(len(others))]
        return with_background(image, Image.open(other).convert('RGB'))

    write(args.target / 'test_own_cue', images, lambda image, label, path: with_cue(image, cues[label]))
    write(args.target / 'test_other_cue', images, lambda image, label, path: with_cue(
        image, cues[other_class(classes, label, f'{label}/{path.name}')]))
    write(args.target / 'test_occluded', images, lambda image, label, path: occluded(image, f'{label}/{path.name}'))
    write(args.target / 'test_background', images, before_another)
    if not (args.target / 'test').exists():
        os.symlink((args.source / 'test').resolve(), args.target / 'test', target_is_directory=True)


if __name__ == '__main__':
    main()
