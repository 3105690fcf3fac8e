"""Table 2: cues, CRF, losses and mIoU against loops in float64; the whole command on a miniature VOC with masks."""
import copy
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import make_run
from helpers.several_outputs import tapped  # noqa: F401
from PIL import Image
from safetensors.torch import save_file

from timm_icasc import ICASCError, NonFiniteLossError, attention_maps
from timm_icasc.attention import METHODS
from timm_icasc.cli import main
from timm_icasc.data import VOC_CLASSES
from timm_icasc.paper.segmentation.crf import CRFParameters, mean_field
from timm_icasc.paper.segmentation.cues import background_saliency, make_cues, seed_cues
from timm_icasc.paper.segmentation.deeplab import create_network, score_grid
from timm_icasc.paper.segmentation.mean_iou import count_pixels, intersection_over_union
from timm_icasc.paper.segmentation.sec import boundary_loss, expansion_loss, seeding_loss
from timm_icasc.paper.segmentation.train import SegmentationConfig, sec_losses, train
from timm_icasc.paper.segmentation.voc_masks import VOCSegmentation

TINY = {'network': 'deeplabv3_mobilenet_v3_large', 'image_size': 32, 'batch_size': 2, 'lr': 0.01, 'iterations': 4}


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The CRF


@pytest.mark.parametrize('parameters', [
    CRFParameters(iterations=3),
    CRFParameters(appearance_weight=2., appearance_width=2., color_width=60., smoothness_width=1., iterations=2)])
def test_mean_field_by_loops(parameters):
    scores, images = random(1, 3, 3, 4).log_softmax(1), 255 * random(1, 3, 3, 4, seed=1)
    pixels = [(y, x) for y in range(3) for x in range(4)]

    def kernel(i, j, with_color):
        (y, x), (v, u) = pixels[i], pixels[j]
        distance = (y - v) ** 2 + (x - u) ** 2
        if not with_color:
            return math.exp(-distance / (2 * parameters.smoothness_width ** 2))
        color = sum((float(images[0, k, y, x]) - float(images[0, k, v, u])) ** 2 for k in range(3))
        return math.exp(-distance / (2 * parameters.appearance_width ** 2) - color / (2 * parameters.color_width ** 2))

    def normalised(i, j, with_color):
        sums = [sum(kernel(p, q, with_color) for q in range(12) if q != p) for p in (i, j)]
        return kernel(i, j, with_color) / math.sqrt(sums[0] * sums[1])

    weights = [
        [parameters.appearance_weight * normalised(i, j, True)
         + parameters.smoothness_weight * normalised(i, j, False) if i != j else 0. for j in range(12)]
        for i in range(12)]
    unary = [[-float(scores[0, c, y, x]) for c in range(3)] for y, x in pixels]

    def softmax(energies):
        exponentials = [math.exp(-e) for e in energies]
        return [e / sum(exponentials) for e in exponentials]
    q = [softmax(u) for u in unary]
    for _ in range(parameters.iterations):  # Algorithm 1: message passing, compatibility transform, local update
        q = [softmax([
            unary[i][c] + sum(weights[i][j] * sum(q[j][k] for k in range(3) if k != c) for j in range(12))
            for c in range(3)]) for i in range(12)]
    result = mean_field(scores, images, parameters)[0]
    expected = torch.tensor(q, dtype=torch.float64).T.reshape(3, 3, 4)
    torch.testing.assert_close(result, expected)


def test_the_crf_follows_the_image():
    """Left half red, right half blue: one uncertain pixel takes the class of its own colour."""
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0, :, :4], images[:, 2, :, 4:] = 255, 255
    probabilities = torch.full((1, 2, 8, 8), 0.1)
    probabilities[0, 0, :, :4] = probabilities[0, 1, :, 4:] = 0.9
    probabilities[0, :, 3, 3] = torch.tensor([0.4, 0.6])
    refined = mean_field(probabilities.log(), images)
    assert refined[0, 0, 3, 3] > 0.9
    torch.testing.assert_close(refined.sum(1), torch.ones(1, 8, 8))
    assert torch.equal(refined.argmax(1)[0], (torch.arange(8) >= 4).long().expand(8, 8))


# The losses


def test_losses_by_loops():
    f, n = random(2, 4, 3, 5).softmax(1), 15
    cues = (random(2, 4, 3, 5, seed=1) < 0.2).double()
    labels = torch.tensor([[1., 0., 1.], [0., -1., 1.]])
    q = random(2, 4, 3, 5, seed=2).softmax(1)
    for b in range(2):
        pixels = [(y, x) for y in range(3) for x in range(5)]
        chosen = [math.log(f[b, c, y, x]) for c in range(4) for y, x in pixels if cues[b, c, y, x]]
        assert seeding_loss(f, cues)[b].item() == pytest.approx(-sum(chosen) / len(chosen))

        def pooled(c, decay, b=b):
            values = sorted((float(f[b, c, y, x]) for y, x in pixels), reverse=True)  # noqa: B023
            return sum(decay ** j * v for j, v in enumerate(values)) / sum(decay ** j for j in range(n))
        present = [c + 1 for c in range(3) if labels[b, c] == 1]
        absent = [c + 1 for c in range(3) if labels[b, c] == 0]
        expected = (
            -sum(math.log(pooled(c, 0.996)) for c in present) / len(present)
            - sum(math.log(1 - max(float(f[b, c, y, x]) for y, x in pixels)) for c in absent)
            / max(len(absent), 1) - math.log(pooled(0, 0.999)))
        assert expansion_loss(f, labels)[b].item() == pytest.approx(expected)
        divergence = sum(
            float(q[b, c, y, x]) * math.log(q[b, c, y, x] / f[b, c, y, x])
            for c in range(4) for y, x in pixels) / n
        assert boundary_loss(f, q)[b].item() == pytest.approx(divergence)


def test_losses_are_finite_at_the_edges_and_carry_gradient():
    scores = torch.tensor([200., 0., -200.]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    cues = torch.zeros(1, 3, 4, 4)
    assert seeding_loss(scores.softmax(1), cues).item() == 0
    cues[0, 1] = 1
    losses = sec_losses(
        scores, cues, torch.tensor([[1., 0.]]), torch.rand(1, 3, 4, 4) * 255,
        SegmentationConfig(), CRFParameters())
    assert set(losses) == {'loss', 'seed', 'expand', 'boundary'}
    assert losses['loss'].item() == pytest.approx(sum(losses[k].item() for k in ('seed', 'expand', 'boundary')))
    losses['loss'].backward()
    assert scores.grad.isfinite().all()
    assert set(sec_losses(scores, cues, torch.tensor([[1., 0.]]), torch.rand(1, 3, 4, 4), SegmentationConfig(
        weight_expand=0., weight_boundary=0.), CRFParameters())) == {'loss', 'seed'}


# The cues


def test_cues_by_loops():
    """A class claims what exceeds 0.2 of its maximum, the smaller class wins, the background takes what is left."""
    maps, labels = random(2, 3, 4, 4) ** 3, torch.tensor([[1., 0., 1.], [0., -1., 1.]])
    saliency = random(2, 8, 8, seed=1)
    cues = seed_cues(maps, saliency, labels, (4, 4), 0.2, 0.25)
    low = F.avg_pool2d(saliency[:, None], 2)[:, 0]
    for b in range(2):
        present = [c for c in range(3) if labels[b, c] == 1]
        claim = {
            c: {(y, x) for y in range(4) for x in range(4) if maps[b, c, y, x] >= 0.2 * maps[b, c].max()}
            for c in present}
        least = sorted((float(low[b, y, x]), (y, x)) for y in range(4) for x in range(4))[:4]
        for y in range(4):
            for x in range(4):
                claiming = [c for c in present if (y, x) in claim[c]]
                winner = min(claiming, key=lambda c: len(claim[c])) if claiming else None
                expected = [0.] * 4
                if winner is not None:
                    expected[winner + 1] = 1.
                elif (y, x) in [place for _, place in least]:
                    expected[0] = 1.
                assert cues[b, :, y, x].tolist() == expected
    assert (cues.sum(1) <= 1).all()


def test_saliency_is_the_filtered_gradient_of_the_present_classes(toy):
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([[1., 0., 1., 0.], [0., -1., 0., 1.]])
    saliency = background_saliency(toy, images, labels)
    for b, classes in enumerate(([0, 2], [3])):
        x = images[b:b + 1].clone().requires_grad_()
        toy(x)[0, classes].sum().backward()
        strength = x.grad[0].abs().amax(0)
        for y, column in ((0, 0), (3, 4), (7, 2)):
            def reflect(i):
                return -i if i < 0 else 14 - i if i > 7 else i
            window = [float(strength[reflect(y + v), reflect(column + u)]) for v in (-1, 0, 1) for u in (-1, 0, 1)]
            assert saliency[b, y, column].item() == pytest.approx(sorted(window)[4], rel=1e-5)


@pytest.mark.parametrize('method', METHODS)
def test_cues_of_a_classifier(method, toy):
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([[1., 0., 1., 0.], [0., -1., 0., 1.]])
    cues = make_cues(toy, images, labels, (6, 6), method)
    maps = torch.stack([attention_maps(toy, images, [c], method=method)[:, 0] for c in range(4)], 1)
    expected = seed_cues(maps, background_saliency(toy, images, labels), labels, (6, 6))
    torch.testing.assert_close(cues, expected)
    assert cues.shape == (2, 5, 6, 6) and not cues[0, [2, 4]].any() and not cues[1, 1:4].any()


def test_an_image_without_any_class(toy):
    cues = make_cues(toy, torch.rand(1, 3, 16, 16), torch.zeros(1, 4), (5, 5))
    assert not cues[0, 1:].any() and cues[0, 0].sum() == 2, 'a tenth of 25 pixels, of the background'


# mIoU


def test_iou_by_counting():
    generator = np.random.default_rng(0)
    truths, predictions = generator.choice([0, 1, 2, 255], (3, 6, 7)), generator.choice([0, 1, 2, 3], (3, 6, 7))
    counts = sum(count_pixels(predicted, truth, 5) for truth, predicted in zip(truths, predictions, strict=True))
    expected = []
    for c in range(5):
        pairs = [(t, p) for t, p in zip(truths.ravel(), predictions.ravel(), strict=True) if t != 255]
        both, either = sum(t == p == c for t, p in pairs), sum(c in pair for pair in pairs)
        expected.append(both / either if either else math.nan)
        assert counts[c].sum() == sum(t == c for t, _ in pairs)
        assert counts[:, c].sum() == sum(p == c for _, p in pairs)
    np.testing.assert_allclose(intersection_over_union(counts), expected)
    assert math.isnan(expected[4])


def test_an_image_of_borders_counts_nothing():
    assert not count_pixels(np.zeros((2, 3), np.uint8), np.full((2, 3), 255, np.uint8), 5).any()


# Training, on a miniature VOC


def make_voc(folder, count=6):
    """A dark square (aeroplane) or a bright one (bicycle) on grey, with masks whose border is 255."""
    base = folder / 'VOCdevkit' / 'VOC2012'
    for part in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation'):
        (base / part).mkdir(parents=True)
    names = []
    for i in range(count):
        name, side = f'2012_{i:06d}', 28
        left, top, cls = 4 + 3 * i, 8 + 2 * (i % 3), i % 2
        pixels, mask = np.full((60, 70, 3), 128, np.uint8), np.zeros((60, 70), np.uint8)
        pixels[top:top + side, left:left + side] = 20 if cls == 0 else 240
        mask[top - 1:top + side + 1, left - 1:left + side + 1] = 255
        mask[top:top + side, left:left + side] = cls + 1
        Image.fromarray(pixels).save(base / 'JPEGImages' / f'{name}.jpg')
        image = Image.fromarray(mask, 'P')
        image.putpalette([v for c in range(256) for v in (c, c, c)])
        image.save(base / 'SegmentationClass' / f'{name}.png')
        (base / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><object><name>{VOC_CLASSES[cls]}</name><difficult>0</difficult><bndbox>'
            f'<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + side}</xmax><ymax>{top + side}</ymax>'
            f'</bndbox></object></annotation>')
        names.append(name)
    (base / 'ImageSets' / 'Segmentation' / 'train.txt').write_text('\n'.join(names[:4]) + '\n')
    (base / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('\n'.join(names[4:]) + '\n')
    return folder


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / 'data')


def mask_cues(dataset, grid):
    """Cues as good as they get: the masks themselves on the grid."""
    def cues(index):
        mask = Image.fromarray(dataset[index].mask).resize(grid[::-1], Image.Resampling.NEAREST)
        return torch.stack([torch.from_numpy(np.array(mask)) == c for c in range(21)]).float()
    return cues


@pytest.mark.parametrize('change, said', [
    (lambda mask: mask.convert('RGB'), r'is no mask of its image of 70 x 60: it holds \(60, 70, 3\)'),
    (lambda mask: mask.resize((35, 30)), r'is no mask of its image of 70 x 60: it holds \(30, 35\)'),
    (lambda mask: mask.point(lambda level: 38 if level == 2 else level), 'it holds 38, and classes are 0 to 20')])
def test_masks_that_are_none(change, said, voc):
    """Of grey levels no pixel of an object was counted: the mean IoU was that of the background."""
    file = voc / 'VOCdevkit' / 'VOC2012' / 'SegmentationClass' / '2012_000001.png'
    with Image.open(file) as mask:
        changed = change(mask)
    changed.save(file)
    with pytest.raises(ICASCError, match=f"2012_000001.png' .*{said}"):
        VOCSegmentation(voc, 'train')[1]


def test_data(voc):
    item = VOCSegmentation(voc, 'train')[1]
    assert item.name == '2012_000001' and item.image.size == (70, 60)
    assert set(np.unique(item.mask)) == {0, 2, 255} and item.labels.nonzero().flatten().tolist() == [1]
    for file, message in (
            ('SegmentationClass/2012_000000.png', 'SegmentationClass'),
            ('Annotations/2012_000000.xml', 'xml')):
        (voc / 'VOCdevkit' / 'VOC2012' / file).unlink()
        with pytest.raises(ICASCError, match=message):
            VOCSegmentation(voc, 'train')


@pytest.mark.parametrize('name, save', [
    ('w.pth', torch.save), ('w.safetensors', save_file),
    ('w.pth', lambda weights, file: torch.save({'model': weights, 'epoch': 1}, file)),
    ('w.pth', lambda weights, file: torch.save({f'module.backbone.{k}': v for k, v in weights.items()}, file))])
def test_backbone_weights_however_a_file_holds_them(name, save, tmp_path):
    weights = {f'features.{k}': v for k, v in create_network(TINY['network'], 21).backbone.state_dict().items()}
    if name == 'w.pth' and save is not torch.save:
        weights = {k.removeprefix('features.'): v for k, v in weights.items()}
    save(weights, tmp_path / name)
    own = create_network(TINY['network'], 21, tmp_path / name).backbone.state_dict()
    assert all(torch.equal(value, weights.get(k, weights.get(f'features.{k}'))) for k, value in own.items())


def test_training_resumes_exactly(voc, tmp_path):
    dataset, config = VOCSegmentation(voc, 'train'), SegmentationConfig(**TINY)

    torch.manual_seed(0)
    network = create_network(config.network, 21)

    def fresh():
        return copy.deepcopy(network)
    cues = mask_cues(dataset, score_grid(network, config.image_size))
    whole = fresh()
    first = train(whole, dataset, cues, config, tmp_path / 'whole')
    later = train(whole, dataset, cues, config, tmp_path / 'whole')
    assert later == first, 'nothing is left to do'
    halves = fresh()
    import timm_icasc.paper.segmentation.train as module
    saved, module.SAVE_EVERY = module.SAVE_EVERY, 2
    try:
        def stop(index, seen=[]):  # noqa: B006
            seen.append(index)
            if len(seen) > 4:  # in the third update
                raise KeyboardInterrupt
            return cues(index)
        with pytest.raises(KeyboardInterrupt):
            train(halves, dataset, stop, config, tmp_path / 'halves')
        resumed = fresh()
        train(resumed, dataset, cues, config, tmp_path / 'halves')
    finally:
        module.SAVE_EVERY = saved
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ICASCError, match='other options'):
        train(fresh(), dataset, cues, SegmentationConfig(**{**TINY, 'lr': 0.02}), tmp_path / 'whole')


def test_the_losses_fall(voc, tmp_path):
    dataset, config = VOCSegmentation(voc, 'train'), SegmentationConfig(**{**TINY, 'iterations': 12})
    torch.manual_seed(0)
    network = create_network(config.network, 21)
    cues = mask_cues(dataset, score_grid(network, config.image_size))
    first = train(network, dataset, cues, SegmentationConfig(**{**TINY, 'iterations': 1}), tmp_path / 'one')
    mean = train(network, dataset, cues, config, tmp_path / 'all')
    assert mean['seed'] < 0.7 * first['seed'] and mean['loss'] < 0.7 * first['loss']


@pytest.mark.parametrize('iterations, message', [
    (1, 'scores became NaN or infinite at update 1: train anew with a lower `lr`'), (2, 'loss became nan at update 2')])
def test_a_network_that_breaks_is_not_saved(iterations, message, voc, tmp_path):
    """The loss of an update is that of the network before it."""
    dataset = VOCSegmentation(voc, 'train')
    config = SegmentationConfig(**{**TINY, 'lr': 1e30, 'iterations': iterations})
    network = create_network(config.network, 21)
    cues = mask_cues(dataset, score_grid(network, config.image_size))
    with pytest.raises(NonFiniteLossError, match=message):
        train(network, dataset, cues, config, tmp_path / 'checkpoint')
    assert not (tmp_path / 'checkpoint').exists()


def segment(*arguments):
    return main(['segment', *map(str, arguments)])


def make_classifier(folder, names=VOC_CLASSES, **options):
    """A run of twenty classes, of which it has noted down the names."""
    run = make_run(folder, num_classes=20, **options)
    results = json.loads((run / 'results.json').read_text())
    (run / 'results.json').write_text(json.dumps({**results, 'model': {'label_names': list(names)}}))
    return run


def test_the_whole_command(voc, tmp_path, capsys):
    """With a classifier of random weights: it runs through, and its figures are those of its files."""
    run = make_classifier(tmp_path / 'run', seed=1)
    for method in ('ach', 'grad_cam_plus_plus'):
        output = tmp_path / 'table2' / method
        assert segment(
            run, '--data-dir', voc, '--attention', method, '--network', TINY['network'],
            '--image-size', TINY['image_size'], '--iterations', 3, '--train-batch-size', 2, '--output', output) == 0
        result = json.loads((output / 'segmentation.json').read_text())
        assert 0 <= result['mIoU'] <= 100 and result['attention'] == method and result['test_images'] == 2
        assert f"mIoU {result['mIoU']:.2f} %" in capsys.readouterr().out
        assert result['mIoU'] == pytest.approx(np.mean(list(result['iou'].values())))
        cue = np.array(Image.open(output / 'cues' / '2012_000000.png'))
        assert set(np.unique(cue)) <= {0, 1, 255} and cue.shape == tuple(result['grid'])
        assert 0 <= result['cue_precision'] <= 1 and result['cue_images'] == 4
        assert result['classifier_model'] == 'resnet8_cifar' and result['classifier_icasc']
        assert len(result['layers']) == 2 and result['backbone_weights'] is None
        assert result['classifier'].endswith('.pth.tar') and result['train_split'] == 'train'
    assert main(['paper', str(tmp_path / 'table2')]) == 0
    text = capsys.readouterr().out
    assert 'not the paper’s settings: classifier_model=resnet8_cifar, classifier_icasc=True' in text
    assert 'Table 2' in text and 'grad_cam_plus_plus' in text and f"{result['mIoU']:.2f}" in text


def test_the_folder_of_a_run_is_no_place_for_its_files(voc, tmp_path, capsys):
    run = make_classifier(tmp_path / 'run', seed=1)
    assert segment(run, '--data-dir', voc, '--cues-only', '--output', run) == 2
    assert f"--output: '{run}' is the folder of a run" in capsys.readouterr().err and not (run / 'cues').exists()


OTHER_CUES = (
    (['--attention', 'grad_cam'], "attention was 'ach', is 'grad_cam'"),
    (['--foreground', '0.5'], 'foreground was 0.2, is 0.5'),
    (['--train-split', 'val'], "train_split was 'train', is 'val'"),
    (['--cues-only'], 'name another --output'),
    (['--img-size', '40'], 'classifier_input_size was [3, 32, 32], is [3, 40, 40]'),
    ([], 'classifier was '))


def test_a_network_of_other_cues_keeps_its_folder(voc, tmp_path, capsys):
    """Another classifier at the same place is another one, too."""
    run, output = make_classifier(tmp_path / 'run', seed=1), tmp_path / 'out'
    options = ['--data-dir', voc, '--network', TINY['network'], '--image-size', TINY['image_size'], '--iterations', 1,
               '--train-batch-size', 2, '--output', output]
    assert segment(run, *options) == 0
    before = {path: path.read_bytes() for path in output.rglob('*') if path.is_file()}
    capsys.readouterr()
    for changes, message in OTHER_CUES:
        if not changes:
            shutil.rmtree(run)
            make_classifier(run, seed=2)
        assert segment(run, *options, *changes) == 2, changes
        err = capsys.readouterr().err
        assert message in err and len(err.strip().splitlines()) == 1
        assert {path: path.read_bytes() for path in output.rglob('*') if path.is_file()} == before


def test_cues_are_made_where_training_looks(voc, tapped, tmp_path):  # noqa: F811
    """Also where a module puts out several tensors."""
    run = make_classifier(tmp_path / 'run', model='coat_tiny', img_size=64)
    assert segment(
        run, '--data-dir', voc, '--network', TINY['network'], '--image-size', TINY['image_size'], '--cues-only',
        '--output', tmp_path / 'cues') == 0
    assert {(layer.path, layer.output_index) for layer in tapped} == {('parallel_blocks.5.norm14', 0)}


def test_cues_only_needs_no_masks_of_the_test_split(voc, tmp_path, capsys):
    (voc / 'VOCdevkit' / 'VOC2012' / 'ImageSets' / 'Segmentation' / 'val.txt').unlink()
    run = make_classifier(tmp_path / 'run')
    assert segment(
        run, '--data-dir', voc, '--network', TINY['network'], '--image-size', TINY['image_size'], '--cues-only',
        '--output', tmp_path / 'cues') == 0
    assert 'cues of ach: precision' in capsys.readouterr().out
    assert not (tmp_path / 'cues' / 'segmentation.pth.tar').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--data-dir', 'nowhere'], "no folder 'VOCdevkit/VOC2012/JPEGImages'"),
    (['--network', 'resnet18'], "torchvision has no 'resnet18'"),
    (['--train-split', 'nowhere'], "No split 'nowhere'"),
    (['--train-batch-size', '1'], 'at least 2'),
    (['--foreground', '0'], '--foreground lies between'),
    (['--seed', '-1'], '--seed must be at least 0, got -1'),
    (['--batch-size', '-1'], '--batch-size must be at least 1, got -1'),
    (['--lr', 'inf'], '--lr must be above 0, and all finite'),
    (['--weights', '1', 'nan', '1'], '--weights must not be negative'),
    (['--backbone-weights', 'nowhere.pth'], "--backbone-weights: the checkpoint 'nowhere.pth' cannot be read: No such"),
    (['--weights', '0', '0', '0', '--iterations', '1', '--network', TINY['network'], '--image-size', '32'],
     'nothing to train'),
])
def test_bad_input_is_one_line(arguments, message, voc, tmp_path, capsys):
    run = make_classifier(tmp_path / 'run')
    base = ['--data-dir', voc] if '--data-dir' not in arguments else []
    assert segment(run, *base, *arguments, '--output', tmp_path / 'out') == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_other_files_is_not_replaced(voc, tmp_path, capsys):
    own = tmp_path / 'out' / 'cues' / 'notes.txt'
    own.parent.mkdir(parents=True)
    own.write_text('mine')
    assert segment(make_classifier(tmp_path / 'run'), '--data-dir', voc, '--output', tmp_path / 'out') == 2
    assert 'holds other files than cues' in capsys.readouterr().err and own.read_text() == 'mine'


def test_a_classifier_of_other_classes_is_refused(voc, tmp_path, capsys):
    run = make_run(tmp_path / 'both' / 'run', num_classes=10)
    assert segment(run, '--data-dir', voc, '--output', tmp_path / 'out') == 2
    assert 'the classifier has 10 classes, VOC 20' in capsys.readouterr().err
    assert segment(tmp_path / 'both', '--data-dir', voc, '--output', tmp_path / 'out') == 2
    assert f"both' holds 1 runs, name one: {run}" in capsys.readouterr().err


@pytest.mark.parametrize('names, message', [
    (map(str, range(10)), "class 0 is '0' in the classifier 'run', and 'aeroplane' in VOC"),
    (['bicycle', 'aeroplane', *VOC_CLASSES[2:]], "'bicycle' in the classifier 'run', and 'aeroplane' in VOC"),
    (VOC_CLASSES[:19], "the classifier 'run' has 19 classes, VOC 20"),
])
def test_as_many_other_classes_are_refused(names, message, voc, tmp_path, capsys):
    """Or the same in another order: the cues of each would be those of another one."""
    run = make_classifier(tmp_path / 'run', names)
    assert segment(run, '--data-dir', voc, '--cues-only', '--output', tmp_path / 'out') == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_classifier_that_does_not_tell_its_classes(voc, tmp_path, capsys):
    run = make_run(tmp_path / 'run', num_classes=20)
    with pytest.warns(UserWarning, match="does not tell the names of its classes: they are taken for VOC's"):
        assert segment(
            run, '--data-dir', voc, '--network', TINY['network'], '--image-size', TINY['image_size'], '--cues-only',
            '--output', tmp_path / 'out') == 0
