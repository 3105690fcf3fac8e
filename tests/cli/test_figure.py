"""`timm-icasc figure`: read back from SVG (texts are comments there), from pixels, and from the page's HTML."""
import base64
import csv
import dataclasses
import io
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
import torch
from helpers.runs import make_cub, make_packed_voc, make_run
from PIL import Image

from timm_icasc import attention_maps
from timm_icasc.attention import METHODS
from timm_icasc.cli import main
from timm_icasc.data import DigitsDataset
from timm_icasc.figures.classes import CAPTION
from timm_icasc.losses import attention_overlap
from timm_icasc.metrics import kolmogorov_smirnov


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return [make_run(folder / name, seed=seed) for seed, name in enumerate(('baseline', 'sharpened'))]


def figure(*arguments):
    return main(['figure', *map(str, arguments)])


def texts_of(path):
    return re.findall(r'<!-- (.*?) -->', path.read_text(encoding='utf-8'))


def model_and_images(run, indices, num_classes=10):
    model = timm.create_model('resnet8_cifar', num_classes=num_classes).eval()
    model.load_state_dict(torch.load(run / 'last.pth.tar')['state_dict'])
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    dataset = DigitsDataset('validation')
    pixels = torch.stack([torch.tensor(np.array(dataset[i][0])).permute(2, 0, 1) / 255 for i in indices])
    return model, (pixels - mean) / std, [dataset[i][1] for i in indices]


@pytest.mark.parametrize('topk', [1, 3])
def test_the_caption_is_whole_on_a_narrow_page(topk, runs, tmp_path):
    """Names are shortened in the middle; of the caption, lines are broken instead."""
    assert figure('classes', runs[0], '--indices', 3, '--topk', topk, '--output', tmp_path / 'f.svg') == 0
    text = ' '.join(texts_of(tmp_path / 'f.svg'))
    assert '\u2026' not in text
    assert all(line.format(score='softmax') in text for line in CAPTION)


def test_classes_in_the_order_of_their_scores(runs, tmp_path):
    assert figure('classes', *runs, '--indices', 3, 200, '--topk', 3, '--output', tmp_path / 'f.svg') == 0
    texts = texts_of(tmp_path / 'f.svg')
    assert {'baseline', 'sharpened', 'image 3', 'image 200'} <= set(texts)
    for run in runs:
        model, images, targets = model_and_images(run, (3, 200))
        probabilities = model(images).softmax(1)
        for row, target in zip(probabilities, targets, strict=True):
            best = row.topk(3).indices.tolist()
            shown = best if target in best else best[:2] + [target]
            assert all(f'{row[c]:.1%}' in texts for c in shown)
            if target not in best:
                rank = int((row > row[target]).sum()) + 1
                assert any(text == f'#{rank}' for text in texts)
        maps = attention_maps(model, images[:1], [probabilities[0].argmax().item(), targets[0]])[0]
        overlap = attention_overlap(maps[:1], maps[1:]).item()
        assert probabilities[0].argmax() == targets[0] or f'overlap {overlap:.2f}' in texts


@pytest.mark.parametrize('options, size, corner', [
    ((), (40, 32), (4, 0)), (('--crop-mode', 'squash'), (32, 32), (0, 0))], ids=['center', 'squash'])
def test_images_without_their_aspect(options, size, corner, tmp_path):
    """What a figure shows of an image of 50 x 40 is of the pixels that --crop-mode lets the model see."""
    data = make_cub(tmp_path / 'cub')
    run = make_run(tmp_path / 'run', num_classes=3, dataset='cub200', data_dir=str(data))
    assert figure(
        'classes', run, '--indices', 1, '--topk', 3, '--attention', 'ach', *options,
        '--output', tmp_path / 'f.svg') == 0
    model, _, _ = model_and_images(run, (0,), num_classes=3)
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    image = Image.open(data / 'images' / '001.red' / '2.png').resize(size, Image.Resampling.BILINEAR)
    image = image.crop((*corner, corner[0] + 32, corner[1] + 32))
    images = ((torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - mean) / std)[None]
    row, texts = model(images).softmax(1)[0], texts_of(tmp_path / 'f.svg')
    assert all(f'{probability:.1%}' in texts for probability in row.tolist())
    for c in (1, 2):
        maps = attention_maps(model, images, [0, c], method='ach')
        overlap = attention_overlap(*maps[0][:, None]).item()
        assert f'overlap {overlap:.2f}' in texts


def test_the_ground_truth_is_framed(runs, tmp_path):
    assert figure('classes', *runs, '--images', 4, '--topk', 3, '--output', tmp_path / 'f.png') == 0
    pixels = np.asarray(Image.open(tmp_path / 'f.png').convert('RGB')).astype(int)
    red = (abs(pixels - (224, 16, 42)) < 30).all(2)
    rows = np.flatnonzero(red.sum(1) > 100)
    edges = rows[np.flatnonzero(np.diff(rows, prepend=-9) > 1)]
    assert len(edges) == 2 * 4, 'the upper and the lower edge in each of four rows'
    assert (red[edges].sum(1) > 2 * 128 * 0.9).all(), 'for both checkpoints'


def test_several_methods_side_by_side(runs, tmp_path, capsys):
    """Fig. 7: the classes of one image by Grad-CAM, Grad-CAM++ and channel-weighted attention, in one command."""
    methods = ('grad_cam', 'grad_cam_plus_plus', 'ach')
    command = ('classes', runs[0], '--indices', 3, '--topk', 2)
    assert figure(*command, '--attention', *methods, '--output', tmp_path / 'f.svg') == 0
    texts = texts_of(tmp_path / 'f.svg')
    assert [text for text in texts if text.startswith('baseline, ')] == [f'baseline, {method}' for method in methods]

    def pixels(name, *methods):
        assert figure(*command, '--attention', *methods, '--output', tmp_path / name) == 0
        return np.asarray(Image.open(tmp_path / name).convert('RGB')).astype(int)

    both, one = pixels('both.png', 'grad_cam', 'ach'), pixels('one.png', 'grad_cam')
    assert both.shape[1] > 1.5 * one.shape[1]
    assert figure('html', runs[0], '--attention', *methods, '--output', tmp_path / 'f.html') == 2
    assert 'the page has one method' in capsys.readouterr().err


@pytest.mark.parametrize('options, expected', [
    ((), ['Grad-CAM (Eq. 1)', 'Grad-CAM++', 'Half', 'ach (Eq. 2)']),
    (('--attention', 'ach', 'finer_cam'), ['ach (Eq. 2)', 'Finer-CAM']),
], ids=['default', 'named'])
def test_methods_of_the_layers(options, expected, runs, tmp_path, monkeypatch):
    """Those that the paper draws, its own last; or those named, in their order."""
    monkeypatch.setitem(METHODS, 'half', dataclasses.replace(METHODS['grad_cam'], title='Half'))
    assert figure('layers', runs[0], '--indices', 7, *options, '--output', tmp_path / 'f.svg') == 0
    titles = {method.title for method in METHODS.values()}
    assert [text for text in texts_of(tmp_path / 'f.svg') if text in titles] == expected


def test_layers_by_method(runs, tmp_path):
    assert figure('layers', runs[0], '--indices', 7, '--output', tmp_path / 'f.svg') == 0
    texts = texts_of(tmp_path / 'f.svg')
    model, images, targets = model_and_images(runs[0], (7,))
    assert 'image 7' in texts and f'{targets[0]}, {model(images).softmax(1)[0, targets[0]]:.1%}' in texts
    titles = {'grad_cam': 'Grad-CAM (Eq. 1)', 'grad_cam_plus_plus': 'Grad-CAM++', 'ach': 'ach (Eq. 2)'}
    for method, title in titles.items():
        inner, last = (attention_maps(model, images, targets, method=method, layer=layer)[0] for layer in
                       ('inner', 'last'))
        up = torch.nn.functional.interpolate(last[None], inner.shape[-2:], mode='bilinear')[0]
        mask = torch.nn.functional.interpolate(
            torch.sigmoid(100 * (last / last.max() - 0.55))[None], inner.shape[-2:], mode='bilinear')[0]
        inside, overlap = (inner * mask).sum() / inner.sum(), attention_overlap(inner, up).item()
        note = f'in mask {inside:.2f}, overlap {overlap:.2f}' if overlap == overlap else 'a map is zero'
        assert title in texts and note in texts
        assert overlap == overlap or method == 'grad_cam', 'the others have no negative weights'


def test_maps_of_other_layers_are_told_apart(runs, tmp_path):
    """Both commands draw and measure each run at its own layers; of one architecture, that alone makes a difference."""
    other, drawn = make_run(tmp_path / 'other', icasc_layers=['layer1', 'layer2']), ('--output', tmp_path / 'f.svg')
    note = "'baseline' are from layer2 and layer3, those of 'other' from layer1 and layer2: they do not compare"
    with pytest.warns(UserWarning, match=note):
        assert figure('classes', runs[0], other, '--indices', 3, *drawn) == 0
    with pytest.warns(UserWarning, match=note):
        assert main(['eval', str(runs[0]), str(other), '--images', '4', '--output', str(tmp_path / 'eval')]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert figure('classes', runs[0], other, '--indices', 3, '--layers', 'layer1', 'layer2', *drawn) == 0
        assert figure('classes', *runs, '--indices', 3, *drawn) == 0
        assert figure('ks', runs[0], other, '--images', 4, *drawn) == 0


def test_ks_chart(runs, tmp_path, capsys):
    assert figure('ks', *runs, '--images', 40, '--output', tmp_path / 'f.svg') == 0
    model, images, targets = model_and_images(runs[0], [i * 450 // 40 for i in range(40)])
    scores = model(images).softmax(1).detach()
    own = scores[range(40), targets].numpy()
    others = scores.scatter(1, torch.tensor(targets)[:, None], -1).amax(1).numpy()
    chart = kolmogorov_smirnov(own, others)
    assert f'baseline: KS margin {chart.margin:.4f} at probability {chart.probability:.4f}' in capsys.readouterr().out
    texts = texts_of(tmp_path / 'f.svg')
    assert f'margin {chart.margin:.3f}' in ' '.join(texts)


def test_ks_chart_of_chosen_images(runs, tmp_path, capsys):
    said = []
    for options in (['--indices', 3, 100, 101, 5], ['--choose', 'wrong', '--images', 30]):
        assert figure('ks', runs[0], *options, '--output', tmp_path / 'f.svg') == 0
        said.append(capsys.readouterr().out)
        chosen = list(map(int, re.search('images: (.*)', said[-1])[1].split()))
        model, images, targets = model_and_images(runs[0], chosen)
        scores = model(images).softmax(1).detach()
        own = scores[range(len(chosen)), targets].numpy()
        others = scores.scatter(1, torch.tensor(targets)[:, None], -1).amax(1).numpy()
        assert f'KS margin {kolmogorov_smirnov(own, others).margin:.4f} at' in said[-1]
        assert len(chosen) == 4 or (own < others).all()
    assert 'images: 3 100 101 5\n' in said[0]


def test_ks_charts_are_of_the_same_images(runs, tmp_path, capsys):
    other = make_run(tmp_path / 'other', num_classes=3, dataset='voc2007-packed', data_dir=str(
        make_packed_voc(tmp_path / 'voc')), val_split='val')
    assert figure('ks', runs[0], other, '--output', tmp_path / 'f.svg') == 2
    assert 'have different data sets' in capsys.readouterr().err


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_browsing_page_is_whole_and_self_contained(tmp_path):
    data = make_packed_voc(tmp_path / 'voc')
    content = json.loads((data / 'annotations.json').read_text())
    content['classes'][0] = '<b>red</b> & "more"'
    for entry in content['images']:
        for box in entry['boxes']:
            box[0] = content['classes'][0] if box[0] == 'red' else box[0]
    (data / 'annotations.json').write_text(json.dumps(content))
    runs = [make_run(tmp_path / f'run{i}', num_classes=3, dataset='voc2007-packed', data_dir=str(data),
                     val_split='val', seed=i) for i in range(2)]
    assert figure('html', *runs, '--output', tmp_path / 'f.html', '--topk', 2) == 0
    text = (tmp_path / 'f.html').read_text()
    page = Page()
    page.feed(text)
    sections = [attrs for tag, attrs in page.tags if tag == 'section']
    scale, *pictures = [attrs['src'] for tag, attrs in page.tags if tag == 'img']
    assert scale.startswith('data:image/webp')
    assert [s['data-name'] for s in sections] == [f'{i:06d}.webp' for i in (1, 2, 3, 5, 6, 7)]
    assert len(pictures) == 6 * (1 + 2 * 2)
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix('data:image/webp;base64,'))))
        assert image.size == (32, 32)
    names = [json.loads(s['data-classes']) for s in sections]
    assert '<b>red</b> & "more"' in sum(names, []) and not any(tag == 'b' for tag, _ in page.tags)
    assert all(len(json.loads(s['data-correct'])) == 2 for s in sections)
    assert 'http' not in text and not any(tag == 'link' or attrs.get('src', 'data:')[:5] != 'data:'
                                          for tag, attrs in page.tags)
    framed = [attrs for tag, attrs in page.tags if tag == 'figure' and 'truth' in (attrs.get('class') or '').split()]
    assert len(framed) == 2 * sum(map(len, names))


def test_images_that_one_model_gets_wrong(tmp_path, capsys):
    """The highest-scoring class decides, for a model with random weights as for any other."""
    data = make_cub(tmp_path / 'cub', per_class=4)
    runs = [make_run(tmp_path / name, num_classes=3, dataset='cub200', data_dir=str(data), seed=seed)
            for seed, name in enumerate(('baseline', 'sharpened'))]
    assert main(['eval', *map(str, runs)]) == 0
    first, last = ([row['predicted'] == row['target'] for row in csv.DictReader(open(run / 'eval' / 'images.csv'))]
                   for run in runs)
    for choice, shown in (('wrong', runs[:1]), ('corrected', runs)):
        expected = [i for i in range(12) if not first[i] and (choice == 'wrong' or last[i])]
        assert 0 < len(expected) < 12
        capsys.readouterr()
        assert figure('classes', *shown, '--choose', choice, '--images', 12, '--output', tmp_path / 'f.png') == 0
        assert f"images: {' '.join(map(str, expected))}\n" in capsys.readouterr().out


@pytest.mark.parametrize('arguments, message', [
    (['classes', 'RUN', '--output', 'f.docx'], '--output must end in one of .png'),
    (['html', 'RUN', '--output', 'f.png'], 'the page is an .html file'),
    (['classes', 'RUN', '--indices', '450'], '--indices lie in 0 to 449'),
    (['classes', 'RUN', '--choose', 'corrected'], 'name two'),
    (['classes', 'RUN', '--topk', '0'], '--topk must be at least 1'),
    (['classes', 'RUN', '--labels', 'a', 'b'], '--labels must be 1'),
    (['ks', 'nowhere', '--topk', '2'], '--topk has no part in ks: leave it out'),
    (['ks', 'nowhere', '--attention', 'ach'], '--attention has no part in ks'),
    (['ks', 'nowhere', '--layer', 'last'], '--layer has no part in ks'),
    (['layers', 'nowhere', '--layer', 'inner'], '--layer has no part in layers'),
    (['layers', 'nowhere', '--topk', '2'], '--topk has no part in layers'),
    (['classes', 'nowhere', '--indices', '1', '--images', '2'], '--indices names the images: leave --images out'),
    (['html', 'nowhere', '--indices', '1', '--choose', 'wrong'], '--indices names the images: leave --choose out'),
    (['ks', 'nowhere', 'nowhere', '--labels', 'a', 'a'], '--labels are to tell checkpoints apart'),
    (['ks', 'nowhere', '--output', 'RUN/attention.png'], 'was left by a run'),  # the run's own picture
    (['ks', 'nowhere', '--output', 'FILE/f.png'], 'cannot write'),  # known before the checkpoint is looked for
])
def test_bad_input_is_one_line(arguments, message, runs, tmp_path, capsys):
    (tmp_path / 'file').touch()
    own = runs[0] / 'attention.png'
    own.touch()
    places = {
        'RUN': runs[0], 'RUN/attention.png': own, 'FILE/f.png': tmp_path / 'file' / 'f.png',
        'f.docx': tmp_path / 'f.docx'}
    assert figure(*[places.get(a, a) for a in arguments]) == 2
    assert message in capsys.readouterr().err
