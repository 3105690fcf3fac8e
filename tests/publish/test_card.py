"""The cards of hub_cards/: up to date, true, complete; and the weights that ship."""
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

import timm_icasc
from timm_icasc import HubError
from timm_icasc.cli import main
from timm_icasc.data import create_dataset
from timm_icasc.errors import ICASCError
from timm_icasc.hub.model_folder import METADATA_KEY, check_folder, half_precision, tensors_sha256
from timm_icasc.publish import card, card_results
from timm_icasc.publish.export import export
from timm_icasc.runs.find import open_runs

CARDS = Path(__file__).parents[2] / 'hub_cards'
DIGITS = CARDS / 'resnet20_cifar.icasc_digits'  # three methods, three seeds each
SOURCES = sorted(CARDS.glob('*.yaml'))
SHIPPED = sorted(path.parent for path in CARDS.glob('*/model.safetensors'))
IDS = [path.stem for path in SOURCES]
WITH_TWIN = [path for path in SOURCES if yaml.safe_load(path.read_text())['twin']]


def digits_sources():
    """What people write of the digits' network, and its results."""
    return (yaml.safe_load((CARDS / f'{DIGITS.name}.yaml').read_text()),
            json.loads((CARDS / f'{DIGITS.name}.json').read_text()))


def test_there_are_cards():
    assert SOURCES and SHIPPED and WITH_TWIN
    assert {path.stem for path in SOURCES} == {p.name for p in CARDS.iterdir() if p.is_dir()}


@pytest.mark.parametrize('path', SOURCES, ids=IDS)
def test_the_card_equals_its_sources(path):
    assert (path.with_suffix('') / 'README.md').read_text(encoding='utf-8') == card.render_sources(path), \
        f'render it: timm-icasc card hub_cards/{path.name}'


@pytest.mark.parametrize('path', SOURCES, ids=IDS)
def test_the_examples_run(path):
    code = re.findall(r'```python\n(.*?)```', (path.with_suffix('') / 'README.md').read_text(), re.S)
    assert len(code) == 3
    for block in code:
        assert len(block.strip().splitlines()) <= 4
        exec(compile(block, path.name, 'exec'), {})


def test_the_examples_of_weights_that_do_not_ship_load_them(tmp_path, monkeypatch):
    """They said a name that timm does not know."""
    source = CARDS / 'resnet20_cifar.icasc_digits'
    shutil.copytree(source, tmp_path / 'mine.icasc')
    for kind in ('.yaml', '.json'):
        shutil.copy(f'{source}{kind}', tmp_path / f'mine.icasc{kind}')
    code = re.findall(r'```python\n(.*?)```', card.render_sources(tmp_path / 'mine.icasc.yaml'), re.S)
    monkeypatch.chdir(tmp_path)
    assert len(code) == 3
    for block in code:
        assert "'local-dir:mine.icasc'" in block
        exec(compile(block, 'mine', 'exec'), {})


@pytest.mark.parametrize('error, stages', [
    (None, []), (IndexError('list index out of range'), [0, 1, 2, 3]), (RuntimeError('not implemented'), None)])
def test_the_example_of_feature_maps_is_for_the_stages_of_the_model(error, stages, monkeypatch):
    def build(folder, features_only):
        if error:
            raise error

    model = timm.create_model('resnet8_cifar')
    model.feature_info = [{}] * 4
    monkeypatch.setattr(card, 'build_model', build)
    assert card._stages(DIGITS, model) == stages


@pytest.mark.parametrize('path', SOURCES, ids=IDS)
def test_metadata_for_the_hub(path):
    data = ModelCard((path.with_suffix('') / 'README.md').read_text()).data
    assert data.library_name == 'timm' and data.pipeline_tag == 'image-classification' and data.license
    result, = data.eval_results
    shipped = yaml.safe_load(path.read_text())['shipped_run']['method']
    runs = [run for run in json.loads(path.with_suffix('.json').read_text())['runs'] if run['method'] == shipped]
    measure = card.measure_of(runs[0]['metrics'])
    assert result.task_type == 'image-classification' and result.metric_type == measure.hub_type
    values = [run['metrics'][measure.key] for run in runs]
    assert result.metric_value == pytest.approx(sum(values) / len(values), abs=0.005)


@pytest.mark.parametrize('folder', SHIPPED, ids=lambda p: p.name)
class TestShippedWeights:

    def test_small_and_whole(self, folder):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
        check_folder(folder, folder.name)

    def test_they_are_the_evaluated_ones(self, folder):
        """The hash of their values is in the results, and where the images are those of the run, what it noted."""
        results = json.loads(folder.with_suffix(folder.suffix + '.json').read_text())
        ours = json.loads((folder / 'config.json').read_text())[METADATA_KEY]
        run, = [run for run in results['runs'] if run['tensors_sha256'] == ours['tensors_sha256']]
        assert run['seed'] == ours['seed'] and run['method'] == ours['method']
        if results['split'] == yaml.safe_load((folder / 'args.yaml').read_text())['val_split']:
            key, half = card.measure_of(run['metrics']).key, yaml.safe_load(Path(f'{folder}.yaml').read_text())['half']
            # Weights that are rounded to half precision: by 0.014 of an mAP of 73.3.
            assert run['metrics'][key] == pytest.approx(ours['metrics'][key], abs=0.03 if half else 1e-4)
        assert not run['commit'].endswith('-dirty')

    def test_attention_maps(self, folder):
        model = timm.create_model(folder.name, pretrained=True).eval()
        assert timm_icasc.attention_maps(model, torch.randn(2, *model.pretrained_cfg['input_size'])).shape[:2] == (2, 5)


@pytest.mark.parametrize('path', WITH_TWIN, ids=lambda path: path.stem)
def test_twins(path):
    """Two networks of the same options and seed, one without ICASC, each held against the other on the same images."""
    twin = yaml.safe_load(path.read_text())['twin']
    assert yaml.safe_load((CARDS / f'{twin}.yaml').read_text())['twin'] == path.stem

    def options(name):
        found = yaml.safe_load((CARDS / name / 'args.yaml').read_text())
        return {name: value for name, value in found.items() if not name.startswith('icasc')}

    def results(name):
        return json.loads((CARDS / f'{name}.json').read_text())

    assert options(twin) == options(path.stem) and results(twin) == results(path.stem)
    methods = [json.loads((CARDS / name / 'config.json').read_text())[METADATA_KEY] for name in (twin, path.stem)]
    assert sorted(ours['icasc'] is None for ours in methods) == [False, True]
    assert f'--compare {twin}' in (path.with_suffix('') / 'README.md').read_text()


def test_the_table_of_the_weights_that_ship():
    """docs/hub.md names all of them, with the accuracy of their cards."""
    table = (CARDS.parent / 'docs' / 'hub.md').read_text()
    named = dict(re.findall(r'\[([\w.]+)\]\(\.\./hub_cards/[\w.]+/README\.md\) (?:\| [^|]+)?\| ([\d.]+) \|', table))
    for folder in SHIPPED:
        ours = json.loads((folder / 'config.json').read_text())[METADATA_KEY]
        runs = json.loads((CARDS / f'{folder.name}.json').read_text())['runs']
        run, = [run for run in runs if run['tensors_sha256'] == ours['tensors_sha256']]
        assert named.pop(folder.name) == f"{run['metrics'][card.measure_of(run['metrics']).key]:.1f}", folder.name
    assert not named


def test_local_dir_reaches_the_accuracy_of_the_card(monkeypatch):
    """Of the digits, whose images are at hand without a download."""
    monkeypatch.chdir(CARDS.parent)
    model = timm.create_model(f'local-dir:hub_cards/{DIGITS.name}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    config = json.loads((DIGITS / 'config.json').read_text())
    dataset = create_dataset(config[METADATA_KEY]['dataset'], None, 'validation', transform=transform)
    dataset.transform = transform
    images, targets = zip(*dataset, strict=True)
    with torch.no_grad():
        top1 = 100 * (model(torch.stack(images)).argmax(1) == torch.tensor(targets)).double().mean().item()
    assert top1 == pytest.approx(config[METADATA_KEY]['metrics']['top1'], abs=0.23), 'an image of 450 at most'


class TestTable:
    RUNS = [{'method': method, 'seed': seed, 'metrics': {'top1': top1, 'ac': 0.25}}
            for method, values in (('cross-entropy', (90., 92., 97.)), ('ICASC', (91., 92., 95.)))
            for seed, top1 in enumerate(values)]

    def test_mean_and_sample_deviation(self):
        mean = (90 + 92 + 97) / 3
        deviation = (sum((x - mean) ** 2 for x in (90, 92, 97)) / 2) ** 0.5
        row = card._rows(self.RUNS)[0]
        attention = dict(zip(card.ATTENTION, row['attention'], strict=True))
        assert row['measure'] == f'{mean:.2f} ± {deviation:.2f}' and attention['L_AC'] == '0.250 ± 0.000'
        assert attention['overlap last'] == '-' and row['each'] == ['90.00', '92.00', '97.00']

    def test_overlaps_have_the_share_of_lost_maps_beside_them(self):
        """Overlaps are without maps of zeros, and L_AS counts them as 0: both look the better the more are lost."""
        name = 'vit_tiny_patch16_224.icasc_cifar20'
        runs = json.loads((CARDS / f'{name}.json').read_text())['runs']
        text = (CARDS / name / 'README.md').read_text()
        header, *rows = [
            [cell.strip() for cell in line.split('|')] for line in text.splitlines()
            if line.startswith(('| method |', '| cross-entropy', '| ICASC'))]
        lost = [row[header.index('zero maps')] for row in rows]
        assert lost == [f"{run['metrics']['zero_maps']:.3f}" for run in runs] and float(lost[1]) > 0.3
        assert 'Zero maps is the share of images' in text


    def test_differences_are_paired_by_seed(self):
        row, = card._differences(self.RUNS)
        deltas = [1., 0., -2.]
        mean = sum(deltas) / 3
        deviation = (sum((d - mean) ** 2 for d in deltas) / 2) ** 0.5
        assert row['measure'] == f'{mean:+.2f} ± {deviation:.2f}'
        assert row['verdict'] == ' (higher in 1, equal in 1, lower in 1 of 3 runs)'

    def test_the_baseline_is_what_is_not_icasc(self):
        runs = [{**run, 'method': run['method'].replace('cross-entropy', 'PolyLoss')} for run in self.RUNS]
        assert card._differences(runs)[0]['baseline'] == 'PolyLoss'
        assert card._differences([run for run in self.RUNS if run['method'] == 'ICASC']) == []

    def test_one_run_has_no_deviation(self):
        assert card._rows(self.RUNS[:1])[0]['measure'] == '90.00' and card._differences(self.RUNS[:1]) == []


class TestCommand:

    @pytest.fixture
    def copy(self, tmp_path):
        shutil.copytree(CARDS, tmp_path / 'cards')
        return tmp_path / 'cards' / f'{DIGITS.name}.yaml'

    def test_check(self, copy, capsys):
        assert main(['card', str(copy), '--check']) == 0
        copy.write_text(copy.read_text().replace('title: ', 'title: Another '))
        assert main(['card', str(copy), '--check']) == 1
        assert 'differs from its sources; render it: timm-icasc card' in capsys.readouterr().out
        assert main(['card', str(copy)]) == 0
        assert main(['card', str(copy), '--check']) == 0

    @pytest.mark.parametrize('change, message', [
        (lambda d: d.pop('paper'), "lacks 'paper'"),
        (lambda d: d.update(licence='mit'), "has the unknown key 'licence'"),
        (lambda d: d.update(dataset='digits'), "no 'name: value' lines below 'dataset'"),
        (lambda d: d.update(half='yes, please'), "'half' in the card's YAML is 'yes, please', and must be"),
        (lambda d: d['dataset'].pop('description'), 'the card lacks a value'),
    ])
    def test_a_missing_value_is_an_error(self, change, message, copy, capsys):
        written = yaml.safe_load(copy.read_text())
        change(written)
        copy.write_text(yaml.safe_dump(written))
        assert main(['card', str(copy)]) == 2
        assert message in capsys.readouterr().err

    def test_missing_results(self, copy, capsys):
        copy.with_suffix('.json').unlink()
        assert main(['card', str(copy)]) == 2
        assert '--runs ... makes the results' in capsys.readouterr().err

    def test_missing_text(self, copy, capsys):
        copy.unlink()
        assert main(['card', str(copy)]) == 2
        assert f"error: no file '{copy}': people write it, with the keys " in capsys.readouterr().err


class TestResultsFromRuns:
    """`timm-icasc card --runs`: what `timm-icasc eval` measures of the runs, of the weights that ship."""

    @staticmethod
    def evaluated(run, folder):
        """What `timm-icasc eval` says of a run."""
        assert main(['eval', str(run), '--output', str(folder)]) == 0
        return json.loads((folder / run.name / 'eval.json').read_text())['measures']

    def test_the_numbers_are_those_of_eval(self, compared, tmp_path):
        runs = open_runs(compared)
        results = card_results.evaluate_runs(runs)
        assert [run['method'] for run in results['runs']] == ['cross-entropy', 'ICASC ach, order 1']
        assert results['images'] == results['attention_images'] == 6 and results['split'] == 'validation'
        for run, result in zip(runs, results['runs'], strict=True):
            measured = {name: round(value, 6) for name, value in self.evaluated(run.folder, tmp_path).items()
                        if value is not None}
            assert result['metrics'] == measured and result['seed'] == 7
            assert {'top1', 'as_inner', 'as_last', 'ac', 'overlap_inner', 'overlap_last'} <= set(measured)
        json.dumps(results, allow_nan=False)

    def test_the_run_itself_measured_the_same(self, train_on_noise):
        """Where its options asked for all images."""
        run, = open_runs(train_on_noise('--icasc-eval-images', 6))
        result, = card_results.evaluate_runs([run])['runs']
        metrics = {name: value for name, value in run.metrics.items() if name not in ('loss', 'top5')}
        assert {name: result['metrics'][name] for name in metrics} == pytest.approx(metrics, abs=1e-5)

    def test_images_of_several_classes(self, multilabel, tmp_path):
        run, = open_runs(multilabel)
        result, = card_results.evaluate_runs([run])['runs']
        measured = self.evaluated(run.folder, tmp_path)
        assert result['metrics'] == {name: round(value, 6) for name, value in measured.items() if value is not None}
        assert {'mAP', 'AUC', 'as_inner', 'overlap_cooccurring'} <= set(result['metrics'])

    def test_the_measured_weights_are_the_exported_ones(self, averaged, tmp_path):
        """The averaged ones, whose numbers are others than those of the last step's."""
        run, = open_runs(averaged)
        result, = card_results.evaluate_runs([run])['runs']
        config = export(run, tmp_path / 'exported', 'icasc_noise')
        assert result['tensors_sha256'] == config[METADATA_KEY]['tensors_sha256']
        assert result['metrics']['top1'] == pytest.approx(run.metrics['top1'])
        plain = shutil.copytree(averaged, tmp_path / 'plain')
        checkpoint = torch.load(plain / 'last.pth.tar', weights_only=False)
        del checkpoint['state_dict_ema']
        torch.save(checkpoint, plain / 'last.pth.tar')
        with pytest.raises(ICASCError, match='lacks the averaged weights'):
            card_results.evaluate_runs(open_runs(plain))
        results = json.loads((plain / 'results.json').read_text())
        results['model']['ema'] = False
        (plain / 'results.json').write_text(json.dumps(results))
        other, = card_results.evaluate_runs(open_runs(plain))['runs']
        assert other['tensors_sha256'] == tensors_sha256(checkpoint['state_dict']) != result['tensors_sha256']
        assert other['metrics']['ac'] != result['metrics']['ac']

    def test_half_precision(self, compared, tmp_path):
        """The weights are rounded before they are measured, and ship in half the bytes."""
        run, = open_runs(compared / 'icasc')
        config = export(run, tmp_path / 'half', 'icasc_noise', half=True)
        result, = card_results.evaluate_runs([run], half=True)['runs']
        assert result['tensors_sha256'] == config[METADATA_KEY]['tensors_sha256']
        full, = card_results.evaluate_runs([run])['runs']
        assert result['metrics']['ac'] != full['metrics']['ac']
        assert result['metrics']['ac'] == pytest.approx(full['metrics']['ac'], abs=0.02)
        model = timm.create_model(f'local-dir:{tmp_path / "half"}', pretrained=True)
        for name, value in run.load_weights().items():
            loaded = model.state_dict()[name]
            assert loaded.dtype == value.dtype and torch.equal(loaded, value.half().to(value.dtype)), name
        size = sum(value.nbytes for value in run.load_weights().values())
        assert (tmp_path / 'half' / 'model.safetensors').stat().st_size < 0.6 * size

    def test_half_precision_cannot_hold_large_values(self):
        with pytest.raises(HubError, match="'a' has values above 65504"):
            half_precision({'a': torch.tensor([1., 1e5]), 'b': torch.tensor(10 ** 6)})

    def test_another_split(self, compared, tmp_path):
        """That which no epoch and no option was chosen by."""
        run, = open_runs(compared / 'icasc')
        results = card_results.evaluate_runs([run], split='train')
        assert results['split'] == 'train' and results['images'] != card_results.evaluate_runs([run])['images']

    def test_a_run_of_recorded_steps_is_evaluated_without_a_gpu(self, compared, tmp_path):
        other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
        options = yaml.safe_load((other / 'args.yaml').read_text())
        (other / 'args.yaml').write_text(yaml.safe_dump({**options, 'icasc_fast': True, 'device': 'cpu'}))
        run, same = (
            card_results.evaluate_runs(open_runs(folder))['runs'][0] for folder in (compared / 'icasc', other))
        assert run['metrics'] == pytest.approx(same['metrics'])

    def test_a_card_from_runs(self, compared, tmp_path, capsys):
        shutil.copyfile(CARDS / f'{DIGITS.name}.yaml', tmp_path / 'resnet20_cifar.icasc_noise.yaml')
        path = tmp_path / 'resnet20_cifar.icasc_noise.yaml'
        written = yaml.safe_load(path.read_text())
        assert main(['card', str(path), '--runs', str(compared)]) == 2
        assert "shipped_run {'method': 'ICASC ach, order 1', 'seed': 42} is 0 of these runs" in capsys.readouterr().err
        written['shipped_run']['seed'] = 7
        path.write_text(yaml.safe_dump(written))
        assert main(['card', str(path), '--runs', str(compared)]) == 0
        folder = tmp_path / 'resnet20_cifar.icasc_noise'
        assert {p.name for p in folder.iterdir()} == {
            'README.md', 'args.yaml', 'attention.png', 'config.json', 'model.safetensors'}
        assert json.loads((folder / 'config.json').read_text())['pretrained_cfg']['tag'] == 'icasc_noise'
        assert '6 images of' in (folder / 'README.md').read_text()
        assert main(['card', str(path), '--check']) == 0

    def test_cards_of_a_network_and_its_twin(self, compared, tmp_path, monkeypatch, capsys):
        """Evaluated once, for both."""
        calls, evaluate = [], card_results.evaluate_runs
        monkeypatch.setattr(card_results, 'evaluate_runs', lambda *args: calls.append(args) or evaluate(*args))
        written, _ = digits_sources()
        paths = [tmp_path / f'resnet20_cifar.{kind}_noise.yaml' for kind in ('icasc', 'baseline')]
        for path, method in zip(paths, ('ICASC ach, order 1', 'cross-entropy'), strict=True):
            path.write_text(yaml.safe_dump({**written, 'shipped_run': {'method': method, 'seed': 7}, 'half': True}))
        arguments = ['card', *map(str, paths), '--runs', str(compared)]
        assert main([*arguments, '--check']) == 2
        assert '--check holds one against its sources' in capsys.readouterr().err
        assert main(arguments) == 0 and len(calls) == 1
        first, second = (json.loads(path.with_suffix('.json').read_text()) for path in paths)
        assert first == second
        ours = [json.loads((path.with_suffix('') / 'config.json').read_text())[METADATA_KEY] for path in paths]
        assert [found['tensors_sha256'] for found in ours] == [run['tensors_sha256'] for run in first['runs'][::-1]]

    @pytest.mark.parametrize('change, said', [
        ({'seed': 8, 'icasc_weights': [0.1, 0.1, 0.1]}, r'with other options \(icasc_weights\)'), ({}, 'of seed 7')])
    def test_a_row_is_of_seeds_alone(self, change, said, compared, tmp_path):
        """Another weight of the terms was averaged as another seed, and a run that comes twice counted twice."""
        other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
        options = yaml.safe_load((other / 'args.yaml').read_text())
        (other / 'args.yaml').write_text(yaml.safe_dump({**options, **change}))
        with pytest.raises(HubError, match=f'are both ICASC ach, order 1, {said}; one table cannot hold both'):
            card_results.evaluate_runs([*open_runs(compared), *open_runs(other)])

    def test_runs_of_other_layers_do_not_share_a_table(self, compared, tmp_path):
        """A run whose options name its layers, and a baseline that names none, were held against each other."""
        other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
        options = yaml.safe_load((other / 'args.yaml').read_text())
        (other / 'args.yaml').write_text(yaml.safe_dump({**options, 'icasc_layers': ['layer1', 'layer2']}))
        with pytest.raises(HubError, match=r'different maps \(.*layer2 layer3 and .*layer1 layer2\); one table cannot'):
            card_results.evaluate_runs([*open_runs(compared / 'baseline'), *open_runs(other)])

    def test_runs_of_other_images_do_not_share_a_table(self, compared, tmp_path):
        other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
        options = yaml.safe_load((other / 'args.yaml').read_text())
        (other / 'args.yaml').write_text(yaml.safe_dump({**options, 'val_split': 'train'}))
        with pytest.raises(HubError, match='one table cannot hold both'):
            card_results.evaluate_runs([*open_runs(compared / 'icasc'), *open_runs(other)])


def test_images_with_several_classes_are_judged_by_average_precision():
    written, results = digits_sources()
    for run in results['runs']:
        run['metrics'] = {'mAP': 61.25, 'ac': run['metrics']['ac']}
    text = card.render(DIGITS, written, results, 'x', 'x')
    assert '| method | seeds | Mean average precision |' in text and '| 42, 43, 44 | 61.25 ± 0.00 |' in text
    assert '.sigmoid()  # [1, 10]' in text and 'softmax' not in text and 'top-1' not in text.lower()
    result, = ModelCard(text).data.eval_results
    assert result.metric_type == 'mean_average_precision' and result.metric_value == 61.25


class TestThePapersRow:
    """Where the paper has the data set; of the others, its card says in words that there is none."""

    def render(self, tmp_path, dataset, architecture='resnet110_cifar'):
        written, results = digits_sources()
        shutil.copytree(DIGITS, tmp_path / 'x')
        config = json.loads((tmp_path / 'x' / 'config.json').read_text())
        (tmp_path / 'x' / 'config.json').write_text(json.dumps({**config, 'architecture': architecture}))
        return card.render(
            tmp_path / 'x', written, {**results, 'dataset': dataset}, 'x', 'x')

    def test_beside_our_own(self, tmp_path):
        lines = self.render(tmp_path, 'cifar100').splitlines()
        at = lines.index('| cross-entropy in the paper, Table 4 (quoted) | not told | 72.78 | - | - | - | - | - | - |')
        assert lines[at - 1].startswith('| ICASC ach, order 2 | 42, 43, 44 |')
        assert lines[at + 1].startswith('| cross-entropy, stochastic depth in the paper, Table 4 (quoted) | not told |')
        assert lines[at + 2].startswith('| ICASC grad_cam in the paper, Table 4 | not told | 74.02 |')
        assert lines[at + 3] == '| ICASC ach in the paper, Table 4 | not told | 76.11 | - | - | - | - | - | - |'
        assert sum(line.startswith('Its rows in the table have no deviation') for line in lines) == 1
        assert 'The gain in its abstract is +3.33 on CIFAR-100: ResNet-110 with ICASC ach against ResNet-110 with ' \
            'cross-entropy.' in lines

    @pytest.mark.parametrize('model', ['resnet50', 'resnet50.tv_in1k', 'resnet50.a1_in1k'])
    def test_the_tag_of_the_weights_does_not_part_architectures(self, model):
        """config.json has the architecture; the recipe names it with the tag of its weights."""
        published = card._paper(model, 'cub200', card.measure_of({'top1': 1.}))
        assert [row['measure'] for row in published['rows']] == ['81.70', '85.15', '85.77', '85.45', '86.20']
        assert published['gain'] == ('+4.80 on CUB-200-2011: ResNet-101 with ICASC ach against ResNet-50 with '
                                     'cross-entropy')

    @pytest.mark.parametrize('dataset, architecture, gain', [
        ('cifar100', 'resnet20_cifar', True), ('digits', 'resnet110_cifar', False)])
    def test_no_row(self, dataset, architecture, gain, tmp_path):
        text = self.render(tmp_path, dataset, architecture)
        assert 'in the paper' not in text and ('The gain in its abstract' in text) == gain


@pytest.mark.parametrize('name', ['images', 'runs'])
def test_a_value_that_the_template_does_not_get(name):
    written, results = digits_sources()
    del results[name]
    with pytest.raises(HubError, match=f"lacks a value: .*'{name}'"):
        card.render(DIGITS, written, results, 'x', 'x')
