"""`timm-icasc explain`: what is written of images without labels, by which models, and what becomes of broken files."""
import argparse
import csv
import gc
import html
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from helpers.bright import BrightNet, count_passes, peak_of, square_image
from helpers.runs import make_run
from PIL import Image

import timm_icasc
from timm_icasc.cli import main
from timm_icasc.data.image_files import find_images
from timm_icasc.errors import ICASCError
from timm_icasc.evaluation.explainers import load_explainer, load_explainers
from timm_icasc.explanation import Explainer
from timm_icasc.figures import explained_files
from timm_icasc.figures.explained_files import Outputs, explain_files
from timm_icasc.hub.tags import CARDS


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return [make_run(folder / name, seed=seed) for seed, name in enumerate(('baseline', 'sharpened'))]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    for n, name in enumerate(('a/x.png', 'b/x.png', 'wide.png')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        square_image((40 + 30 * n, 40), (10, 10, 25, 25)).save(folder / name)
    return folder


def command(*arguments):
    return main(['explain', *map(str, arguments)])


def rows_of(folder):
    with open(folder / 'predictions.csv', newline='') as file:
        return list(csv.DictReader(file))


def explain_bright(photos, output, *models, **kwargs):
    outputs = Outputs(output, **{name: kwargs.pop(name) for name in ('sheets', 'raw', 'page') if name in kwargs})
    explainers = [Explainer(model, ['bright', 'dark'], label=f'm{n}') for n, model in enumerate(models)]
    return explain_files(explainers, find_images([photos]), outputs, **kwargs)


def test_predictions_are_those_of_the_model(runs, photos, tmp_path, capsys):
    assert command(photos, '--model', runs[0], '--output', tmp_path / 'out', '--topk', 2) == 0
    assert '3 images explained: ' in capsys.readouterr().out
    rows, entries = rows_of(tmp_path / 'out'), json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [row['file'] for row in rows[::2]] == ['wide.png', 'a/x.png', 'b/x.png'] == [e['file'] for e in entries]
    given = load_options()
    explainer = load_explainer(str(runs[0]), given)
    for entry, (first, second) in zip(entries, zip(rows[::2], rows[1::2], strict=True), strict=True):
        with Image.open(photos / entry['file']) as image:
            item = explainer.prepare(image)
            assert [entry['width'], entry['height']] == list(image.size)
        probabilities = explainer.model(item.tensor[None]).softmax(1)[0]
        best = probabilities.topk(2)
        assert [int(row['index']) for row in (first, second)] == best.indices.tolist()
        assert [float(row['score']) for row in (first, second)] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert [c['index'] for c in entry['classes']] == best.indices.tolist()
        assert [c['rank'] for c in entry['classes']] == [1, 2]
    assert sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*')) == [
        'index.html', 'overlays/a/x.png.png', 'overlays/b/x.png.png', 'overlays/wide.png.png', 'predictions.csv',
        'predictions.json']


def load_options(**given):
    import argparse

    from timm_icasc.evaluation.options import add_running_arguments
    parser = argparse.ArgumentParser()
    add_running_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), 'model': None, 'data_dir': None, **given})


def test_two_models_classes_maps_and_pictures(runs, photos, tmp_path):
    out = tmp_path / 'out'
    assert command(
        photos / 'wide.png', '--model', runs[0], '--compare', runs[1], '--classes', 3, 7, '--raw', 'full', '--overlays',
        'both', '--layer', 'inner', '--method', 'ach', '--output', out) == 0
    rows = rows_of(out)
    assert [(row['model'], row['index']) for row in rows] == [
        ('baseline', '3'), ('baseline', '7'), ('sharpened', '3'), ('sharpened', '7')]
    assert {path.name for path in (out / 'overlays').iterdir()} == {'wide.png.png', *(
        f'wide.png.{label}.{c}.png' for label in ('1-baseline', '2-sharpened') for c in (3, 7))}
    maps = {path.name: np.load(path) for path in (out / 'maps').iterdir()}
    assert {name: array.shape for name, array in maps.items()} == {
        'wide.png.1-baseline.npy': (2, 40, 100), 'wide.png.2-sharpened.npy': (2, 40, 100)}
    explainer = load_explainer(str(runs[1]), load_options())
    item = explainer.prepare(photos / 'wide.png')
    expected = timm_icasc.attention_maps(
        explainer.model, item.tensor[None], [3, 7], method='ach', layer='inner')[0]
    found = explainer.explain_items([item], [3, 7], method='ach', layer='inner')[0]
    torch.testing.assert_close(found.grid_maps, expected)
    np.testing.assert_allclose(maps['wide.png.2-sharpened.npy'], found.maps.numpy(), rtol=1e-5)
    single = np.asarray(Image.open(out / 'overlays' / 'wide.png.2-sharpened.3.png')).astype(int)
    assert np.abs(single - np.asarray(found.overlay(0)).astype(int)).max() <= 1
    page = (out / 'index.html').read_text()
    assert page.count('<section') == 1 and page.count('<figure') == 5 and 'models see different classes' in page


@pytest.mark.parametrize('names, warned', [
    (['bright', 'dark'], False), (['DARK, night', 'dark'], True), (['bright, light', 'dark'], False)])
def test_a_number_that_is_another_class_of_the_other_model(names, warned, photos, tmp_path):
    explainers = [
        Explainer(BrightNet(), names, label=label)
        for names, label in ((['bright', 'dark'], 'one'), (names, 'two'))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        explain_files(explainers, find_images([photos / 'wide.png']), Outputs(tmp_path, page=0), classes=[0])
    said = [str(one.message) for one in caught if 'classes' in str(one.message)]
    assert said == ["`classes`: one of them is 'bright' of one, 'DARK, night' of two."] * warned


def test_the_page_files_an_image_under_the_class_of_highest_score(runs, photos, tmp_path):
    """Whatever classes are shown."""
    found = []
    for name, options in (('best', ['--topk', 1]), ('asked', ['--classes', 0, 7]), ('back', ['--classes', 7, 0])):
        assert command(photos, '--model', runs[0], '--output', tmp_path / name, '--overlays', 'none', *options) == 0
        page = (tmp_path / name / 'index.html').read_text()
        found.append([json.loads(html.unescape(text)) for text in re.findall('data-classes="([^"]*)"', page)])
    best = [[row['class']] for row in rows_of(tmp_path / 'best')]
    assert found == [best, best, best] and best != [['0']] * 3 and best != [['7']] * 3


@pytest.mark.parametrize('names, same', [
    ((['light', 'dark'], ['dark', 'light']), True), ((['light', 'dark'], ['light', 'dark']), False),
    ((['crane', 'crane'], ['crane', 'crane']), False)])
def test_models_see_different_classes_by_their_names(names, same, photos, tmp_path):
    """Two models, the classes of the second in the other order; among classes that are alike, by number."""
    models = [BrightNet(), BrightNet()]
    models[1].fc.weight.data = models[1].fc.weight.data.flip(0)
    explainers = [Explainer(model, own, label=str(n)) for n, (model, own) in enumerate(zip(models, names, strict=True))]
    explain_files(explainers, find_images([photos]), Outputs(tmp_path / 'out', sheets=False), topk=1)
    page = (tmp_path / 'out' / 'index.html').read_text()
    found = [json.loads(html.unescape(text)) for text in re.findall('data-correct="([^"]*)"', page)]
    assert found == [[True, same]] * 3


def test_maps_lie_in_the_image_as_it_is(photos, tmp_path):
    """Also where the picture that is kept is smaller than the image, which was turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    square_image((900, 600), (300, 200, 420, 320)).save(photos / 'turned.jpg', exif=exif)  # upright: 600 x 900
    explain_bright(photos, tmp_path / 'out', BrightNet(), classes='bright', raw='full', side=100, page=0, sheets=False)
    heat = np.load(tmp_path / 'out' / 'maps' / 'turned.jpg.npy')
    assert heat.shape == (1, 900, 600)
    column, row = peak_of(torch.from_numpy(heat[0]))
    assert 600 - 320 < column < 600 - 200 and 300 < row < 420
    entries = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    entry = next(entry for entry in entries if entry['file'] == 'turned.jpg')
    assert entry['seen'] == pytest.approx(timm_icasc.explain(BrightNet(), photos / 'turned.jpg').seen, abs=0.01)


def test_one_forward_pass_a_batch(photos, tmp_path):
    model = BrightNet()
    explain_bright(photos, tmp_path / 'before', model)
    passes = count_passes(model)
    explain_bright(photos, tmp_path / 'out', model, classes=[0, 1], batch_size=2)
    assert passes == [1, 2, 1], 'first an empty image, which tells the number of classes'


@pytest.mark.parametrize('workers', [0, 1])
def test_broken_files_are_named_skipped_and_counted(workers, photos, runs, tmp_path, capsys):
    (photos / 'text.jpg').write_text('no image')
    whole = (photos / 'wide.png').read_bytes()
    (photos / 'a' / 'half.png').write_bytes(whole[:len(whole) // 2])
    assert command(photos, '--model', runs[0], '--output', tmp_path / 'out', '-j', workers, '-b', 2) == 1
    said = capsys.readouterr()
    assert '3 images explained, 2 skipped' in said.out
    assert said.err.count('skipped: Cannot read the image') == 2 and 'half.png' in said.err and 'text.jpg' in said.err
    assert len({row['file'] for row in rows_of(tmp_path / 'out')}) == 3


def test_nothing_but_broken_files(photos, runs, tmp_path, capsys):
    (photos / 'text.jpg').write_text('no image')
    assert command(photos / 'text.jpg', '--model', runs[0], '--output', tmp_path / 'out') == 1
    assert '0 images explained, 1 skipped' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == [] == rows_of(tmp_path / 'out')


def test_memory_does_not_grow_with_the_number_of_images(photos, tmp_path, monkeypatch):
    alive = []
    draw = explained_files._write_pictures

    def counting(*args):
        gc.collect()
        alive.append(sum(isinstance(o, Image.Image) for o in gc.get_objects()))
        return draw(*args)
    monkeypatch.setattr(explained_files, '_write_pictures', counting)
    for n in range(17):
        shutil.copy(photos / 'wide.png', photos / f'{n}.png')
    summary = explain_bright(photos, tmp_path / 'out', BrightNet(), batch_size=4, page=5, sheets=False)
    assert summary.explained == 20 == len(alive) and max(alive[8:]) <= max(alive[:8]) < 20
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert page.count('<section') == 5 and 'The first 5 of 20 images.' in page


def test_an_earlier_result_is_replaced(photos, tmp_path):
    """Pictures of another model stayed beside the new ones."""
    def left():
        return sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())

    out, predictions = tmp_path / 'out', ['predictions.csv', 'predictions.json']
    explain_bright(photos, out, BrightNet(), raw='grid')
    explain_bright(photos / 'a', out, BrightNet())
    assert left() == ['index.html', 'overlays/x.png.png', *predictions]
    explain_bright(photos / 'a', out, BrightNet(), sheets=False, page=0)
    assert left() == predictions == sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize('name, told', [('overlays/mine.png', False), ('maps/mine.txt', True)])
def test_what_is_no_earlier_result_stays(name, told, photos, tmp_path):
    file = tmp_path / 'out' / name
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    if told:
        (tmp_path / 'out' / 'predictions.json').write_text('[]')
    with pytest.raises(ICASCError, match=f"`output`: '{file.parent}' holds other files .*: name another folder"):
        explain_bright(photos, tmp_path / 'out', BrightNet())
    assert file.read_text() == 'mine'


def test_an_interruption_leaves_what_is_done(photos, tmp_path, monkeypatch):
    done = []

    def interrupt(*args):
        done.append(args)
        if len(done) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(explained_files, '_write_pictures', interrupt)
    with pytest.raises(KeyboardInterrupt):
        explain_bright(photos, tmp_path / 'out', BrightNet())
    assert len(json.loads((tmp_path / 'out' / 'predictions.json').read_text())) == 2
    assert len(rows_of(tmp_path / 'out')) == 4
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'predictions.csv', 'predictions.json', 'index.html'}


def test_an_error_leaves_nothing_half_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(explained_files, '_write_pictures', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain_bright(photos, tmp_path / 'out', BrightNet())
    assert not list((tmp_path / 'out').iterdir())


def test_an_error_leaves_an_earlier_result(photos, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    explain_bright(photos, out, BrightNet())
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    monkeypatch.setattr(explained_files, '_write_pictures', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain_bright(photos, out, BrightNet(), page=0)
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


class TestModels:
    @pytest.mark.parametrize('measures, dataset, kind', [
        ({'eval_mAP': 50.}, 'digits', 'sigmoid'), ({'eval_top1': 50.}, 'multilabel', 'softmax'),
        (None, 'multilabel', 'sigmoid'), (None, 'digits', 'softmax')])
    def test_scores_are_of_the_runs_kind(self, measures, dataset, kind, tmp_path):
        run = make_run(tmp_path / 'run', dataset=dataset, data_dir='not/there/any/more')
        if measures is None:  # not finished
            (run / 'results.json').unlink()
        else:
            (run / 'results.json').write_text(json.dumps({'method': 'cross-entropy', 'last': measures}))
        assert load_explainer(str(run), load_options()).labels.score == kind
        assert load_explainer(str(run), load_options(), multilabel=True).labels.score == 'sigmoid'

    @pytest.mark.parametrize('tag, kind', [
        ('tf_efficientnet_lite0.icasc_voc2007', 'sigmoid'), ('resnet20_cifar.icasc_digits', 'softmax')])
    def test_a_weight_tag_and_its_folder_are_of_one_kind(self, tag, kind):
        for source in (tag, f'local-dir:{CARDS / tag}'):
            assert load_explainer(source, load_options()).labels.score == kind

    def test_runs_of_one_name_are_told_apart(self, tmp_path):
        """By the folder above; where that has the same name too, by a number."""
        runs = [str(make_run(tmp_path / folder / 'ach')) for folder in ('x/digits', 'y/digits', 'y/flowers')]
        given = {'architecture': None, 'multilabel': None, 'pretrained_path': None}
        options = argparse.Namespace(**vars(load_options()), **given)
        labels = [explainer.label for explainer in load_explainers(runs, options)]
        assert labels == ['digits-ach', 'digits-ach-2', 'flowers-ach']

    def test_class_names_of_the_run(self, photos, tmp_path):
        run = make_run(tmp_path / 'run', num_classes=3)
        names = ['=cat', 'a dog', 'eel']
        (run / 'results.json').write_text(json.dumps(
            {'method': 'cross-entropy', 'last': {'eval_top1': 5.}, 'model': {'label_names': names}}))
        out = tmp_path / 'out'
        assert command(photos / 'wide.png', '--model', run, '--classes', '=cat', 'A DOG', '--output', out) == 0
        assert [row['class'] for row in rows_of(out)] == ["'=cat", 'a dog']  # no formula

    def test_a_head_of_more_outputs_than_the_run_has_names(self, photos, tmp_path):
        """Those besides are called by their numbers, as the evaluation calls them."""
        run = make_run(tmp_path / 'run', num_classes=5)
        names = ['ape', 'bee', 'cow']
        results = {'method': 'cross-entropy', 'last': {'eval_top1': 5.}, 'model': {'label_names': names}}
        (run / 'results.json').write_text(json.dumps(results))
        assert load_explainer(str(run), load_options()).class_names == ['ape', 'bee', 'cow', '3', '4']
        out = tmp_path / 'out'
        assert command(photos / 'wide.png', '--model', run, '--classes', 'bee', '4', '--output', out) == 0
        assert [(row['class'], row['index']) for row in rows_of(out)] == [('bee', '1'), ('4', '4')]
        results['model']['label_names'] = list('abcdef')
        (run / 'results.json').write_text(json.dumps(results))
        with pytest.raises(ICASCError, match='has 6 class names, its weights 5 classes'):
            load_explainer(str(run), load_options())

    def test_a_run_prepares_images_as_it_did(self, tmp_path):
        run = make_run(tmp_path / 'run', mean=[0.1, 0.2, 0.3], std=[1.], crop_pct=0.5)
        config = load_explainer(str(run), load_options()).data_config
        assert (config['mean'], config['std'], config['crop_pct']) == ((0.1, 0.2, 0.3), (1., 1., 1.), 0.5)

    def test_a_name_of_timms_prepares_images_as_timm_does(self, tmp_path):
        """Nothing of the recipe that trains without arguments gets in."""
        name = 'resnet20_cifar.icasc_digits'
        explainer = load_explainer(name, load_options())
        assert explainer.label == name and explainer.class_names[3] == '3'
        import timm
        assert explainer.data_config == timm.data.resolve_data_config(model=timm.create_model(name))
        shipped = timm_icasc.hub.tags.CARDS / name
        local = load_explainer(f'local-dir:{shipped}', load_options())
        assert local.data_config == explainer.data_config and local.labels.score == 'softmax'

    def test_a_published_model_of_several_labels(self, tmp_path):
        shipped = timm_icasc.hub.tags.CARDS / 'resnet20_cifar.icasc_digits'
        folder = shutil.copytree(shipped, tmp_path / 'model')
        config = json.loads((folder / 'config.json').read_text())
        config['timm_icasc']['metrics'] = {'mAP': 3.}
        (folder / 'config.json').write_text(json.dumps(config))
        assert load_explainer(f'local-dir:{folder}', load_options()).labels.score == 'sigmoid'

    def test_a_checkpoint_file(self, photos, tmp_path, capsys):
        run = make_run(tmp_path / 'run')
        file = shutil.move(run / 'last.pth.tar', tmp_path / 'alone.pth.tar')
        assert command(photos, '--model', file, '--output', tmp_path / 'out') == 2
        assert 'name its --architecture' in capsys.readouterr().err
        own = ('--architecture', 'resnet8_cifar', '--output', tmp_path / 'out')
        assert command(photos, '--model', file, *own) == 0
        assert command(photos, '--model', make_run(tmp_path / 'other'), '--compare', file, *own) == 0
        assert command(photos, '--model', tmp_path / 'other', *own) == 2
        assert "--architecture is for a checkpoint file outside a run's folder" in capsys.readouterr().err

    def test_a_folder_of_timms_own_script(self, photos, tmp_path, capsys):
        folder = make_run(tmp_path / 'timms')
        (folder / 'args.yaml').write_text('model: resnet8_cifar\njsd_loss: false\n')
        assert command(photos, '--model', folder) == 2
        assert f"'{folder}' is of no run of timm-icasc train: name its --architecture" in capsys.readouterr().err
        assert command(photos, '--model', folder, '--architecture', 'resnet8_cifar', '--output', tmp_path / 'out') == 0

    @pytest.mark.parametrize('saved', [
        lambda weights: weights, lambda weights: {'net': weights},
        lambda weights: {'epoch': 1, 'model_state_dict': {f'module.backbone.{k}': v for k, v in weights.items()}},
        lambda weights: {**{f'model.{k}': v for k, v in weights.items()}, 'projector.weight': torch.zeros(2, 2)}])
    def test_weights_of_a_timm_name_from_a_file(self, saved, photos, tmp_path):
        """Its classes, 10 and not the name's 100, are those of the file, however it holds the weights."""
        run = make_run(tmp_path / 'run')
        weights = tmp_path / 'weights.pth'
        torch.save(saved(torch.load(run / 'last.pth.tar')['state_dict']), weights)
        explainer = load_explainer('resnet8_cifar', load_options(pretrained_path=str(weights)))
        expected = load_explainer(str(run), load_options()).model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in explainer.model.state_dict().items())

    @pytest.mark.parametrize('saved', [
        lambda weights: {'net': weights, 'epoch': 1}, lambda weights: {**weights, 'classes': ['a', 'b']},
        lambda weights: {'model_state_dict': {f'module.{k}': v for k, v in weights.items()}}])
    def test_a_checkpoint_of_another_script(self, saved, photos, tmp_path):
        """Read as `--pretrained-path` is, however it holds the weights."""
        weights = torch.load(make_run(tmp_path / 'run') / 'last.pth.tar')['state_dict']
        torch.save(saved(weights), tmp_path / 'weights.pth')
        own = load_explainer(str(tmp_path / 'weights.pth'), load_options(model='resnet8_cifar')).model.state_dict()
        assert own.keys() == weights.keys() and all(torch.equal(own[name], value) for name, value in weights.items())

    def test_a_file_of_weights_is_for_one_name(self, runs, photos, tmp_path, capsys):
        """Beside a run, or two names, whose weights it is could be told by nothing but the numbers."""
        file = tmp_path / 'weights.pth'
        torch.save(torch.load(runs[1] / 'last.pth.tar')['state_dict'], file)
        options = ['--pretrained-path', file, '--output', tmp_path / 'out']
        assert command(photos, '--model', runs[0], *options) == 2
        assert f"--pretrained-path holds the weights of one name of timm, not of '{runs[0]}'" in capsys.readouterr().err
        assert command(photos, '--model', 'resnet8_cifar', '--compare', 'resnet20_cifar', *options) == 2
        assert "not of 'resnet8_cifar' and 'resnet20_cifar': leave it out" in capsys.readouterr().err
        assert command(photos, '--model', runs[0], '--compare', 'resnet8_cifar', *options) == 0
        assert 'weights of' in capsys.readouterr().out


@pytest.mark.parametrize('options, said', [
    (['--topk', 0], '--topk must be at least 1'), (['--classes', 'cat'], "--classes: no class 'cat'"),
    (['--classes', 12], '--classes must lie in 0 to 9, got 12'), (['--side', -1], '--side must be at least 0'),
    (['--layer', 'layer9'], "no layer 'layer9'"), (['--model', 'resnet20_cifr'], "'resnet20_cifr'"),
    (['--img-size', 0], '--img-size must be at least 1')])
def test_mistakes_are_one_line(options, said, runs, photos, tmp_path, capsys):
    model = [] if '--model' in options else ['--model', runs[0]]
    assert command(photos, *model, *options, '--output', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_a_run_s_folder_is_not_written_to(runs, photos, capsys):
    assert command(photos, '--model', runs[0], '--output', runs[0]) == 2
    assert "' is the folder of a run, whose files could be written over: name another" in capsys.readouterr().err


def test_a_folder_that_is_not_there(runs, tmp_path, capsys):
    assert command(tmp_path / 'none', '--model', runs[0]) == 2
    assert "no file or folder '" in capsys.readouterr().err


