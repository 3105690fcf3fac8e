"""`timm-icasc paper`: every table and figure with its command, finished runs beside the paper's values."""
import argparse
import csv
import json
import shlex
import statistics
from pathlib import Path

import pytest
import yaml

from timm_icasc.cli import eval as evaluate
from timm_icasc.cli import figure, main, segment
from timm_icasc.paper.rows import PAPER, class_rows, paper_rows, segmentation_rows
from timm_icasc.runs.find import collect_runs, collect_segmentations
from timm_icasc.training.argument_files import RECIPES
from timm_icasc.training.arguments import parse_args

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load(PAPER.read_text())
PROTOCOL = vars(parse_args(['--data-dir', 'x', '--config', str(RECIPES / 'cifar100_resnet110.yaml')]))


def write_run(folder, method='cross-entropy', seed=0, top1=70., evaluated=None, world_size=1, **options):
    folder.mkdir(parents=True)
    options = {**PROTOCOL, 'icasc': method != 'cross-entropy', 'icasc_order': 1, 'seed': seed, **options}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    (folder / 'results.json').write_text(json.dumps(
        {'method': method, 'last': {'eval_top1': top1, 'time': 3.}, 'world_size': world_size}))
    if evaluated:
        (folder / 'eval').mkdir()
        (folder / 'eval' / 'eval.json').write_text(json.dumps({
            'checkpoint': 'last.pth.tar', 'dataset': options['dataset'], 'split': options['val_split'],
            'whole_split': True, 'measures': evaluated}))


def rows_of(tmp_path, **wanted):
    rows = paper_rows(collect_runs([tmp_path]), CONTENT)
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def test_mean_deviation_and_difference_over_seeds(tmp_path):
    plain, icasc = {0: 70., 1: 72., 2: 71.}, {0: 73., 1: 73.5, 5: 60.}
    for seed, top1 in plain.items():
        write_run(tmp_path / f'ce{seed}', seed=seed, top1=top1)
    for seed, top1 in icasc.items():
        write_run(tmp_path / 'deep' / f'ours{seed}', 'ICASC ach, order 1', seed, top1, icasc_order=1)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert row['ours'] == f'71.00 ± {statistics.stdev(plain.values()):.2f}' and row['paper'] == 72.78
    assert row['seeds'] == '0 1 2' and row['to the baseline'] is None
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['paper'] == 76.11 and row['seeds'] == '0 1 5'
    pairs = [73. - 70., 73.5 - 72.]  # seed 5 has no partner
    assert row['to the baseline'] == f'+{statistics.fmean(pairs):.2f} ± {statistics.stdev(pairs):.2f} (n=2)'


def test_what_was_not_run_says_what_it_needs(tmp_path):
    write_run(tmp_path / 'run', dataset='digits')
    rows = rows_of(tmp_path)
    missing = [row for row in rows if row['ours'] == 'not run' and row['needs']]
    assert {row['table'].rpartition(', ')[2] for row in missing} >= {
        'CIFAR-100', 'Caltech-256', 'ILSVRC2012', 'CUB-200-2011', 'PASCAL VOC 2012'}
    own, = [row for row in rows if row['seeds']]
    assert own['table'] == 'not in the paper, digits' and own['ours'] == '70.00'


def test_another_protocol_is_not_the_papers(tmp_path):
    write_run(tmp_path / 'short', epochs=12)
    write_run(tmp_path / 'small', model='resnet20_cifar')
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert [(row['paper'], row['note']) for row in rows] == [
        (None, 'not the paper’s settings, epochs=12'), (None, 'not the paper’s settings')]
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', paper=72.78)
    assert row['ours'] == 'not run'


@pytest.mark.parametrize('options', [
    {'num_classes': 20}, {'class_map': 'superclasses.txt'}, {'color_jitter': 0.4}], ids=str)
def test_other_classes_and_other_augmentation_are_not_the_papers(options, tmp_path):
    write_run(tmp_path / 'run', dataset='', data_dir='cifar100', **options)
    (name, value), = options.items()
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert (row['paper'], row['note']) == (None, f'not the paper’s settings, {name}={value}')


def test_the_number_of_classes_may_be_left_to_the_data(tmp_path):
    write_run(tmp_path / 'run', num_classes=None)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert row['paper'] == 72.78


def test_an_option_that_args_yaml_lacks_has_its_default(tmp_path):
    """It had that of the recipe of the digits, which clips gradients and lets the terms set in late."""
    write_run(tmp_path / 'run', 'ICASC ach, order 1', top1=73.)
    file = tmp_path / 'run' / 'args.yaml'
    options = yaml.safe_load(file.read_text())
    del options['clip_grad'], options['icasc_start_epoch']
    file.write_text(yaml.safe_dump(options))
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['ours'] == '73.00'


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    write_run(tmp_path / 'a', lr=0.1)
    write_run(tmp_path / 'b', lr=0.2, seed=1, top1=80.)
    write_run(tmp_path / 'c', lr=0.2, seed=2, top1=81., output='elsewhere', workers=3)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert sorted((row['ours'], row['note']) for row in rows) == [
        ('70.00', 'quoted'), ('80.50 ± 0.71', 'not the paper’s settings, lr=0.2')]


@pytest.mark.parametrize('loss', ['soft margin', 'binary cross-entropy'])
def test_every_loss_without_icasc_is_a_baseline(loss, tmp_path):
    write_run(tmp_path / 'a', loss, icasc=False)
    write_run(tmp_path / 'b', 'ICASC ach, order 1', top1=75.)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method=loss)
    assert row['to the baseline'] is None
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert row['to the baseline'] == '+5.00 (n=1)'


def test_unused_options_of_icasc_do_not_part_baselines(tmp_path):
    write_run(tmp_path / 'a', icasc_order=1)
    write_run(tmp_path / 'b', seed=1, top1=80., icasc_order=2)
    write_run(tmp_path / 'c', 'ICASC ach, order 2', 1, 90., icasc_order=2)
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert row['seeds'] == '0 1'
    row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 2')
    assert row['to the baseline'] == '+10.00 (n=1)'


def test_ten_crops_come_from_the_evaluation(tmp_path):
    write_run(tmp_path / 'run', dataset='imagenet', evaluated={'top1': 1., 'top1_ten_crop': 77.})
    rows = rows_of(tmp_path, table='Tables 6 and 9, ILSVRC2012', method='cross-entropy')
    assert {row['measure']: row['ours'] for row in rows} == {'top-1 %': '70.00', 'top-1 %, ten crops': '77.00'}
    assert {row['paper'] for row in rows} == {None}, 'of another network'


def test_the_batch_is_that_of_an_update_over_all_processes(tmp_path):
    """128 images of an update are the paper's, however many GPUs share them."""
    write_run(tmp_path / 'shared', batch_size=16, grad_accum_steps=2, world_size=4)
    write_run(tmp_path / 'larger', batch_size=128, world_size=4, top1=80.)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    assert [(row['paper'], row['ours']) for row in rows] == [(72.78, '70.00'), (None, '80.00')]
    assert rows[1]['note'] == 'not the paper’s settings, batch_size=512'


def test_what_the_paper_leaves_open_is_told_and_what_it_fixes_decides(tmp_path):
    write_run(tmp_path / 'a', 'ICASC ach, order 1', icasc_mask_scale='max', amp=True, icasc_mask_grad=True)
    write_run(tmp_path / 'b', 'ICASC ach, order 1', icasc_weights=[0.1, 0.1, 0.1], icasc_start_epoch=1., top1=60.)
    rows = rows_of(tmp_path, table='Table 4, CIFAR-100', method='ICASC ach, order 1')
    assert [(row['ours'], row['paper']) for row in rows] == [('70.00', 76.11), ('60.00', None)]
    assert rows[0]['note'] == 'amp=True, icasc_mask_grad=True, icasc_mask_scale=max'
    assert 'icasc_start_epoch=1.0, icasc_weights=[0.1, 0.1, 0.1]' in rows[1]['note']


def run_of(tmp_path, recipe, *extra, method='cross-entropy', **other):
    """A finished run with the options of a recipe, as args.yaml has them; returns the rows of the paper that it has."""
    options = vars(parse_args(['--data-dir', 'x', '--config', str(RECIPES / recipe), *extra]))
    write_run(tmp_path / 'run', method, **{**options, 'seed': 0, **other})
    return [row for row in rows_of(tmp_path) if row['seeds']]


@pytest.mark.parametrize('recipe, extra, method, value', [
    ('cifar100_resnet110.yaml', ['--no-icasc'], 'cross-entropy', 72.78),
    ('cifar100_resnet110.yaml', ['--no-icasc', '--drop-path', '0.5'], 'cross-entropy', 75.42),
    ('cifar100_resnet110_stochastic_depth.yaml', [], 'cross-entropy', 75.42),
    ('cifar100_preact_resnet164.yaml', [], 'cross-entropy', 75.63),
    ('cifar100_resnet110.yaml', ['--icasc-attention', 'grad_cam'], 'ICASC grad_cam, order 1', 74.02),
    ('cifar100_resnet110.yaml', [], 'ICASC ach, order 1', 76.11),
    ('cifar100_resnet110.yaml', ['--icasc-order', '2', '--icasc-mask-grad'], 'ICASC ach, order 2', 76.11),
    ('cifar100_resnet110.yaml', ['--icasc-layers', 'layer2.17.conv2', 'layer3'], 'ICASC ach, order 1', 76.11),
    ('caltech256_resnet18.yaml', ['--train-split', 'train30'], 'ICASC ach, order 1', 78.01),
    ('caltech256_resnet18.yaml', [], 'ICASC ach, order 1', 81.32),
    ('caltech256_vgg19.yaml', ['--train-split', 'train30', '--no-icasc'], 'cross-entropy', 74.52),
    ('caltech256_vgg19.yaml', [], 'ICASC ach, order 1', 79.80),
    ('ilsvrc2012_resnet18.yaml', [], 'ICASC ach, order 1', 69.90),
    ('cub200_resnet50.yaml', ['--no-icasc'], 'cross-entropy', 81.70),
    ('cub200_resnet50.yaml', ['--weight-decay', '1e-4'], 'ICASC ach, order 1', 86.20),
    ('cub200_resnet50.yaml', [], 'ICASC ach, order 1', 86.20),
    ('cub200_resnet50_ablation.yaml', [], 'ICASC ach, order 1', 85.15),
    ('cub200_resnet50_ablation.yaml', ['--icasc-weights', '1', '0', '1'], 'ICASC ach, order 1', 85.77),
    ('cub200_resnet50_ablation.yaml', ['--no-icasc'], 'cross-entropy', 81.70),
    ('cub200_resnet101.yaml', [], 'ICASC ach, order 1', 86.5),
    ('cub200_resnet101.yaml', ['--no-icasc'], 'cross-entropy', 82.5),
])
def test_the_papers_settings_give_a_run_its_row(recipe, extra, method, value, tmp_path):
    row, = run_of(tmp_path, recipe, *extra, method=method)
    assert row['paper'] == value and row['ours'] == '70.00' and 'not the paper' not in row['note']


@pytest.mark.parametrize('method, extra, values', [
    ('multi-label soft margin', ['--no-icasc'], (77.44, 0.976)),
    ('multi-label soft margin', ['--no-icasc', '--smoothing', '0'], (77.44, 0.976)),  # which does nothing there
    ('ICASC ach, order 1, multi-label soft margin', [], (83.17, 0.981)),
    ('ICASC ach, order 1, multi-label soft margin', ['--icasc-multilabel-maps', 'per_class'], (83.17, 0.981))])
def test_average_precision_and_auc_of_voc(method, extra, values, tmp_path):
    run_of(tmp_path, 'voc2012_resnet18.yaml', *extra, method=method)
    result = {'method': method, 'last': {'eval_mAP': 70.126, 'eval_AUC': 91.24, 'eval_AP_cow': 50., 'eval_AP_dog': 60.}}
    (tmp_path / 'run' / 'results.json').write_text(json.dumps(result))
    rows = [row for row in rows_of(tmp_path) if row['seeds']]
    assert [(row['paper'], row['ours']) for row in rows] == [(values[0], '70.13'), (values[1], '0.912')]
    classes = {row['class']: row for row in class_rows(collect_runs([tmp_path]), CONTENT)}
    own, = {key for key in classes['cow'] if key.endswith('ours') and classes['cow'][key]}
    assert own == ('ICASC ach, ours' if 'ICASC' in method else 'baseline, ours')
    assert (classes['cow'][own], classes['dog'][own], classes['cat'][own]) == ('50.00', '60.00', None)


def test_classes_of_one_setting_alone(tmp_path):
    """Two readings of the paper are no seeds of one run."""
    for maps in ('per_class', 'joint'):
        run_of(
            tmp_path / maps, 'voc2012_resnet18.yaml', '--icasc-multilabel-maps', maps,
            method='ICASC ach, order 1, multi-label soft margin')
    with pytest.warns(UserWarning, match=f"'{tmp_path}/joint/run' and '{tmp_path}/per_class/run' are"):
        class_rows(collect_runs([tmp_path]), CONTENT)


def test_the_ks_chart_comes_from_the_evaluation(tmp_path):
    rows = run_of(
        tmp_path, 'cub200_resnet50.yaml', method='ICASC ach, order 1',
        evaluated={'ks': 0.7, 'ks_probability': 0.5})
    assert [(row['measure'], row['paper'], row['ours'], row['in']) for row in rows] == [
        ('top-1 %', 86.20, '70.00', '3, 7, 9'), ('KS margin', 0.74, '0.70', 'Fig. 9'),
        ('KS margin at probability', 0.55, '0.50', 'Fig. 9')]


@pytest.mark.parametrize('extra, told', [
    (['--drop-path', '0.2'], 'drop_path=0.2'), (['--icasc-weights', '0', '1', '0'], 'icasc_weights=[0.0, 1.0, 0.0]'),
    (['--icasc-layers', 'layer1', 'layer2'], "icasc_layers=['layer1', 'layer2']"), (['--mixup', '0.2'], 'mixup=0.2'),
    (['--crop-padding', '2'], 'crop_padding=2'), (['--icasc-share', '0.5'], 'icasc_share=0.5'),
    (['--pretrained-path', 'x.pth'], ''), (['--icasc-theta', '0.5'], 'icasc_theta=0.5'),
    (['--weight-decay', '1e-4'], 'weight_decay=0.0001'), (['--model-ema'], 'model_ema=True')])
def test_every_option_that_changes_a_row_keeps_a_run_out_of_it(extra, told, tmp_path):
    row, = run_of(tmp_path, 'cifar100_resnet110.yaml', *extra, method='ICASC ach, order 1')
    assert row['paper'] is None and row['note'].startswith('not the paper’s settings') and told in row['note']


@pytest.mark.parametrize('other, placed', [
    ({}, True), ({'model': 'resnet50.a1_in1k'}, False), ({'pretrained': False}, False),
    ({'model': 'resnet50', 'pretrained': False, 'pretrained_path': 'resnet50.pth'}, True)])
def test_the_weights_that_a_run_starts_from_decide(other, placed, tmp_path):
    row, = run_of(tmp_path, 'cub200_resnet50.yaml', '--no-icasc', **other)
    assert (row['paper'] is not None) == placed


@pytest.mark.parametrize('other, told', [
    ({'classifier_model': 'resnet18'}, 'classifier_model=resnet18'),
    ({'train_split': 'train', 'train_images': 1464}, 'train_images=1464')])
def test_segmentations_of_another_classifier_or_of_fewer_images_are_not_the_papers(other, told, tmp_path):
    result = {
        'attention': 'ach', 'seed': 0, 'mIoU': 50., 'year': '2012', 'train_split': 'trainaug', 'train_images': 10582,
        'test_split': 'val', 'network': 'deeplabv3', 'classifier_icasc': False, 'classifier_model': 'vgg19.tv_in1k'}
    for name, own in (('paper', {}), ('other', other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'segmentation.json').write_text(json.dumps({**result, **own}))
    rows = segmentation_rows(collect_segmentations([tmp_path]), CONTENT['segmentation'])
    found = {row['paper']: row for row in rows if row['method'] == 'ach'}
    assert {paper: row['ours'] for paper, row in found.items()} == {None: '50.00', 57.97: '50.00'}
    assert told in found[None]['note']


def write_segmentations(folder, *results):
    """Of one classifier with ach, but for what is given of each; the rows that they make."""
    for n, result in enumerate(results):
        (folder / f'seg{n}').mkdir()
        (folder / f'seg{n}' / 'segmentation.json').write_text(json.dumps({
            'attention': 'ach', 'seed': n, 'mIoU': 50., 'year': '2012', 'train_images': 10582, 'test_split': 'val',
            'classifier_icasc': False, 'classifier_model': 'vgg19', **result}))
    rows = segmentation_rows(collect_segmentations([folder]), CONTENT['segmentation'])
    return {row['ours']: row for row in rows if row['method'] == 'ach'}


def test_segmentations_of_other_weights_or_layers_are_not_averaged(tmp_path):
    layers, trained = ['features.30', 'features.35'], 'ab' * 32
    found = write_segmentations(
        tmp_path, {'mIoU': 10., 'layers': layers, 'backbone_weights': None},
        {'mIoU': 60., 'layers': layers, 'backbone_weights': trained},
        {'mIoU': 70., 'layers': layers, 'backbone_weights': trained},
        {'mIoU': 30., 'layers': ['features.20', 'features.35'], 'backbone_weights': trained})
    assert {ours: row['seeds'] for ours, row in found.items()} == {'10.00': '0', '65.00 ± 7.07': '1 2', '30.00': '3'}
    note = found['30.00']['note']
    assert "layers=['features.20', 'features.35'], backbone_weights=abababababab" in note and trained not in note
    assert 'backbone' not in found['10.00']['note']


def test_a_repeated_seed_of_a_segmentation_is_named(tmp_path):
    with pytest.warns(UserWarning, match="seg0' and '.*seg1' are the same segmentation with the same seed"):
        found = write_segmentations(tmp_path, {'seed': 3, 'mIoU': 10.}, {'seed': 3, 'mIoU': 20.})
    assert list(found) == ['20.00']


def test_a_repeated_seed_and_a_broken_run_are_named(tmp_path):
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', top1=80.)
    write_run(tmp_path / 'c', seed=1)
    (tmp_path / 'c' / 'results.json').write_text('{')
    with pytest.warns(UserWarning) as caught:
        row, = rows_of(tmp_path, table='Table 4, CIFAR-100', method='cross-entropy')
    messages = [str(w.message) for w in caught]
    assert row['ours'] == '80.00'
    assert any('same seed' in m for m in messages) and any('is left out' in m and '/c' in m for m in messages)


@pytest.mark.parametrize('file, text', [
    ('args.yaml', ''), ('args.yaml', '- a list'), ('results.json', '[]'), ('results.json', '{"last": 3}'),
    ('segmentation.json', '{"mIoU": 3}'), ('segmentation.json', '[]'), ('segmentation.json', '{"mIoU": "a"}'),
])
def test_damaged_files_are_left_out(file, text, tmp_path, capsys):
    write_run(tmp_path / 'whole')
    write_run(tmp_path / 'damaged', seed=1, top1=10.)
    (tmp_path / 'damaged' / file).write_text(text)
    with pytest.warns(UserWarning, match='damaged.* is left out'):
        assert main(['paper', str(tmp_path)]) == 0
    assert '70.00' in capsys.readouterr().out or file == 'segmentation.json'


def test_paper_yaml_is_whole():
    """Every row has values and tables; no difference is typed; a row that can be run has a recipe."""
    for experiment in CONTENT['experiments']:
        ids = [row['id'] for row in experiment['rows']]
        assert len(set(ids)) == len(ids)
        for row in experiment['rows']:
            assert row['values'] and row['tables'] and row.get('baseline', ids[0]) in ids
            assert row.keys() <= {
                'id', 'network', 'label', 'method', 'tables', 'values', 'options', 'recipe',
                'baseline', 'quoted', 'remark'}
            assert row['method'] in CONTENT['methods'] or row.get('quoted')
        assert {row.get('recipe', experiment['recipe']) for row in experiment['rows']} <= set(experiment['recipes'])
    assert {name for experiment in CONTENT['experiments'] for name in experiment['recipes']} == {
        path.name for path in RECIPES.glob('*.yaml') if not path.stem.endswith(('_cpu', 'digits_resnet20', 'finetune'))}


@pytest.mark.parametrize('suffix', ['.md', '.json', '.csv'])
def test_files(suffix, tmp_path, capsys):
    write_run(tmp_path / 'run')
    output = tmp_path / 'new' / f'paper{suffix}'
    assert main(['paper', str(tmp_path / 'run'), '--output', str(output)]) == 0
    printed = capsys.readouterr().out
    assert 'Table 4, CIFAR-100' in printed and 'not run' in printed and 'contradicts itself' in printed
    if suffix == '.md':
        assert '| resnet110_cifar | cross-entropy | 4 | top-1 % | 72.78 |  | 70.00 | 0 |' in output.read_text()
        assert f"timm-icasc paper {tmp_path / 'run'} --output {output}" in output.read_text()
    else:
        rows = json.loads(output.read_text()) if suffix == '.json' else list(csv.DictReader(open(output)))
        row, = [row for row in rows if row.get('ours') == '70.00']
        assert float(row['paper']) == 72.78 and row['table'] == 'Table 4, CIFAR-100'


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], "no folder 'nowhere'"),
    (['EMPTY'], 'no finished run'),
    (['EMPTY', '--output', 'x.txt'], '.md, .json'),
])
def test_bad_input(arguments, message, tmp_path, capsys):
    assert main(['paper', *[str(tmp_path) if a == 'EMPTY' else a for a in arguments]]) == 2
    assert message in capsys.readouterr().err


def test_without_runs_every_table_and_figure_has_its_command_and_what_it_needs(tmp_path, monkeypatch, capsys):
    """This is docs/paper.md: write it anew with `timm-icasc paper --output docs/paper.md` where it differs."""
    monkeypatch.chdir(tmp_path)
    assert main(['paper', '--output', 'docs/paper.md']) == 0
    assert (tmp_path / 'docs' / 'paper.md').read_text() == (ROOT / 'docs' / 'paper.md').read_text()
    assert main(['paper', '--output', 'paper.json']) == 0
    rows = json.loads((tmp_path / 'paper.json').read_text())
    printed = capsys.readouterr().out
    assert all(row['command'] in printed for row in rows if row.get('command'))
    for experiment in CONTENT['experiments']:
        own = [row for row in rows if row['table'] == f"{experiment['tables']}, {experiment['title']}"]
        assert {row['method'].split(',')[0] for row in own} >= set(CONTENT['methods'])
        assert all(row['ours'] == 'not run' and row['needs'] and row['command'] for row in own if row['model'])
    figures = {row['figure']: row['command'] for row in rows if row['table'] == 'Figures'}
    assert list(figures) == [*(f'Fig. {i}' for i in range(1, 11)), *(f'Fig. {i} of the appendix' for i in (1, 2))]
    assert [name for name, command in figures.items() if command is None] == ['Fig. 3', 'Fig. 6', 'Fig. 8']
    assert {row['method'] for row in rows if row['table'].startswith('Table 2,')} == {
        'grad_cam', 'grad_cam_plus_plus', 'ach'}
    settings = [row for row in rows if row['table'].startswith('Table 1 ')]
    assert [row['settings'] for row in settings].count('the paper’s') == 5 and len(settings) == 5 + 11


def commands():
    text = (ROOT / 'docs' / 'paper.md').read_text()
    return [
        shlex.split(part) for block in text.split('```bash')[1:]
        for line in block.split('```')[0].strip().splitlines() for part in line.split(' && ')]


def test_the_commands_are_ones_that_the_programs_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = set()
    for words in commands():
        seen.add(tuple(words[:2]))
        if words[1] == 'train':
            assert parse_args(words[2:]).run_dir is None
        else:
            module = {'segment': segment, 'figure': figure, 'eval': evaluate}[words[1]]
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_args(words[2:])
    assert {words[1] for words in seen} == {'train', 'segment', 'figure', 'eval'}


def test_the_figures_of_this_repository_exist():
    here = [entry['here'] for entry in CONTENT['figures'] if entry['here']]
    here += [
        word for entry in (CONTENT['segmentation'], *CONTENT['experiments'])
        for word in entry.get('here', '').strip(')').split() if word.startswith('docs/')]
    assert len(here) > 3 and all((ROOT / path).is_file() for path in here)
