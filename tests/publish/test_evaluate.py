"""Results of cards: finished runs evaluated again."""
import json
import shutil
from pathlib import Path

import pytest
import yaml

from timm_icasc import HubError
from timm_icasc.cli import main
from timm_icasc.evaluation.measures import metrics_of
from timm_icasc.publish.evaluate import evaluate_runs
from timm_icasc.publish.export import open_runs

CARD = Path(__file__).parents[2] / 'hub_cards' / 'resnet20_cifar.icasc_digits.yaml'


def test_evaluation_repeats_what_the_runs_measured(compared):
    """Accuracy, loss and attention of the published weights, on the same images: the same numbers."""
    runs = open_runs(compared)
    results = evaluate_runs(runs)
    assert [run['method'] for run in results['runs']] == ['cross-entropy', 'ICASC ach, order 1']
    assert results['images'] == 6 and results['attention_images'] == 4 and results['split'] == 'validation'
    for run, result in zip(runs, results['runs'], strict=True):
        assert result['metrics'] == pytest.approx(metrics_of(run.results), abs=1e-5) and result['seed'] == 7
    json.dumps(results, allow_nan=False)


def test_images_of_several_classes(multilabel):
    run, = open_runs(multilabel)
    result, = evaluate_runs([run])['runs']
    measured = {name: round(value, 6) for name, value in metrics_of(run.results).items()}
    assert 'mAP' in measured and result['metrics'] == pytest.approx(measured, abs=1e-5)


def test_a_run_of_recorded_steps_is_evaluated_without_a_gpu(compared, tmp_path):
    other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
    options = yaml.safe_load((other / 'args.yaml').read_text())
    (other / 'args.yaml').write_text(yaml.safe_dump({**options, 'icasc_fast': True, 'device': 'cpu'}))
    run, same = evaluate_runs([*open_runs(compared / 'icasc'), *open_runs(other)])['runs']
    assert run['metrics'] == pytest.approx(same['metrics'])


def test_a_card_from_runs(compared, tmp_path, capsys):
    shutil.copyfile(CARD, tmp_path / 'resnet20_cifar.icasc_noise.yaml')
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
    assert main(['card', str(path), '--check']) == 0


def test_runs_of_other_images_do_not_share_a_table(compared, tmp_path):
    other = shutil.copytree(compared / 'icasc', tmp_path / 'other')
    options = yaml.safe_load((other / 'args.yaml').read_text())
    (other / 'args.yaml').write_text(yaml.safe_dump({**options, 'icasc_eval_images': 2}))
    with pytest.raises(HubError, match='one table cannot hold both'):
        evaluate_runs([*open_runs(compared / 'icasc'), *open_runs(other)])
