"""Every recipe of the paper trained on miniature data of its format, and the row that `timm-icasc paper` gives it."""
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from helpers.runs import make_cub, train_in_process
from PIL import Image

from timm_icasc.paper.rows import PAPER, paper_rows
from timm_icasc.runs.find import collect_runs
from timm_icasc.training.argument_files import RECIPES
from timm_icasc.training.arguments import parse_args

# Recipe -> what the paper has of its run, by measure.
VALUES = {
    'cifar100_resnet110': {'top-1 %': 76.11}, 'cifar100_resnet110_stochastic_depth': {'top-1 %': 75.42},
    'cifar100_preact_resnet164': {'top-1 %': 75.63}, 'caltech256_resnet18': {'top-1 %': 81.32, 'top-5 %': 94.57},
    'caltech256_vgg19': {'top-1 %': 79.80, 'top-5 %': 93.25},
    'ilsvrc2012_resnet18': {'top-1 %': 69.90, 'top-5 %': 89.71}, 'cub200_resnet50': {'top-1 %': 86.20},
    'cub200_resnet101': {'top-1 %': 86.5}, 'cub200_resnet50_ablation': {'top-1 %': 85.15},
    'voc2012_resnet18': {'mAP %': 83.17, 'AUC': 0.981},
    'voc2012_vgg19': {'mAP %': None, 'AUC': None},  # the classifier of Table 2, which has no score of its own
}
# The others of these data sets go the same way with another network; tests/paper/test_rows.py has their rows too.
QUICKEST = (
    'cifar100_resnet110', 'caltech256_resnet18', 'ilsvrc2012_resnet18', 'cub200_resnet50_ablation', 'voc2012_resnet18')
# What is changed to be quick: one epoch of small images from random weights, a narrow head for VGG-19.
QUICK = {'epochs': 1, 'img_size': 64, 'batch_size': 2}


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 255, (size[1], size[0], 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def make_voc(folder):
    base = folder / 'VOC2012'
    names = {'train': ('a', 'b'), 'val': ('c', 'd')}
    for name, label in zip('abcd', ('dog', 'cat', 'dog', 'cat'), strict=True):
        picture(base / 'JPEGImages' / f'{name}.jpg')
        root = ElementTree.Element('annotation')
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = label
        box = ElementTree.SubElement(item, 'bndbox')
        for tag, value in (('xmin', 1), ('ymin', 1), ('xmax', 20), ('ymax', 20)):
            ElementTree.SubElement(box, tag).text = str(value)
        (base / 'Annotations').mkdir(exist_ok=True)
        ElementTree.ElementTree(root).write(base / 'Annotations' / f'{name}.xml')
    (base / 'ImageSets' / 'Main').mkdir(parents=True)
    for split, members in names.items():
        (base / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(members) + '\n')


def make_data(name, folder):
    """Two or three classes, a few images, in the format of the data set."""
    folder.mkdir()
    if name == 'cub200':
        make_cub(folder, per_class=1)
    elif name == 'voc2012':
        make_voc(folder)
    elif name == 'caltech256':
        for label in ('001.ak47', '002.american-flag'):
            for i in range(26):
                picture(folder / label / f'{i:03d}.png', (12, 8))
    else:
        splits = ('train', 'test') if name == 'cifar100' else ('train', 'val')
        for split in splits:
            for label in ('n01440764', 'n01443537'):
                picture(folder / split / label / f'{label}_{split}.png')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('stem', [
    pytest.param(stem, marks=[] if stem in QUICKEST else pytest.mark.slow) for stem in VALUES])
def test_a_recipe_trains_and_has_its_row(stem, tmp_path, monkeypatch, capsys):
    recipe = RECIPES / f'{stem}.yaml'
    original = vars(parse_args(['--data-dir', 'x', '--config', str(recipe)]))
    make_data(original['dataset'], tmp_path / 'data')
    quick = {**QUICK, 'img_size': min(64, original['img_size'])}
    options = [word for name, value in quick.items() for word in (f"--{name.replace('_', '-')}", value)]
    if 'vgg' in stem:
        options += ['--model-kwargs', 'mlp_ratio=0.02']
    if stem.startswith('caltech'):
        options += ['--validation-batch-size', 25]
    code, _, error = train_in_process(
        monkeypatch, capsys, '--config', recipe, '--data-dir', tmp_path / 'data', '--no-pretrained', '--workers', 0,
        '--device', 'cpu', '--icasc-eval-images', 0, '--output', tmp_path / 'output', *options)
    assert code == 0, error

    content = yaml.safe_load(PAPER.read_text())
    row, *_ = [row for row in paper_rows(collect_runs([tmp_path / 'output']), content) if row['seeds']]
    assert row['paper'] is None and row['note'].startswith('not the paper’s settings') and 'epochs=1' in row['note']
    file, = (tmp_path / 'output').glob('*/args.yaml')
    restored = {name: original[name] for name in (*QUICK, 'pretrained', 'model_kwargs')}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **restored}))
    own = [row for row in paper_rows(collect_runs([tmp_path / 'output']), content) if row['seeds']]
    assert {row['measure']: row['paper'] for row in own} == VALUES[stem]
