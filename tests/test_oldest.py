"""What works with the oldest versions that the package allows, and what says in one sentence that it needs later ones.

`.ci/oldest` runs this with those versions; with later ones, timm's and the Hub client's numbers are turned back.
"""
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from helpers.forked import Forked

import timm_icasc
import train_timm
from timm_icasc import cli, version
from timm_icasc.errors import VersionError, check_version

ROOT = Path(__file__).parent.parent
TASKS = [timm_icasc.ICASCTask, timm_icasc.MultiLabelICASCTask]
SAID = 'needs timm 1.0.31 or later, this is timm 1.0.23: pip install '


@pytest.fixture
def old_timm(monkeypatch):
    monkeypatch.setattr(timm, '__version__', '1.0.23')


class TestTheLibrary:

    @pytest.mark.parametrize('name', ['resnet18', 'vit_tiny_patch16_224', 'resnet20_cifar'])
    def test_maps_and_terms(self, name, old_timm):
        size = 224 if name.startswith('vit') else 64
        model = timm.create_model(name, num_classes=5)
        images, target = torch.randn(2, 3, size, size), torch.tensor([1, 2])
        maps = timm_icasc.attention_maps(model, images, topk=3)
        assert maps.shape[:2] == (2, 3) and maps.isfinite().all()
        layers = timm_icasc.resolve_layers(model, input_size=(3, size, size))
        config = timm_icasc.ICASCConfig(order=2)
        result = timm_icasc.icasc_forward(model, images, target, layers, config)
        result.weighted_sum(config).backward()
        assert result.terms.keys() == {'as_inner', 'as_last', 'ac'}
        assert next(model.parameters()).grad.abs().sum() > 0

    def test_weights_that_ship(self, old_timm):
        model = timm.create_model('resnet20_cifar.icasc_digits', pretrained=True).eval()
        assert 'resnet20_cifar.icasc_digits' in timm.list_pretrained('*icasc*')
        model.reset_classifier(3)
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3) and model.fc.weight.dtype == torch.float32


class TestWhatNeedsMore:

    @pytest.mark.parametrize('task', TASKS)
    def test_the_task(self, task, old_timm):
        with pytest.raises(VersionError, match=f'^{task.__name__} {SAID}') as e:
            task(timm.create_model('resnet20_cifar'))
        assert isinstance(e.value, ImportError) and isinstance(e.value, timm_icasc.ICASCError)

    def test_the_script(self, old_timm, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(sys, 'argv', ['train_timm.py', '--output', str(tmp_path / 'output')])
        assert train_timm.main() == 2
        assert capsys.readouterr().err == f"train_timm.py: error: this command {SAID}'timm>=1.0.31'.\n"
        assert not (tmp_path / 'output').exists()

    @pytest.mark.parametrize('command', cli.NEED_TRAINING)
    def test_the_commands_that_set_up_a_run(self, command, old_timm, capsys):
        assert cli.main([command, 'x']) == 2
        assert capsys.readouterr().err == f"timm-icasc {command}: error: this command {SAID}'timm>=1.0.31'.\n"

    @pytest.mark.parametrize('command', [['pull', 'me/x'], ['push', 'hub_cards/resnet20_cifar.icasc_digits', 'me/x']])
    def test_exchanges_with_the_hub(self, command, monkeypatch, capsys):
        if command[0] in cli.NEED_TRAINING:
            check_version('timm', timm.__version__, version.TIMM_FOR_TRAINING, 'this command')  # or the test is skipped
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(huggingface_hub, '__version__', '0.36.2')
        assert cli.main(command) == 2
        assert capsys.readouterr().err == (
            f'timm-icasc {command[0]}: error: exchanging weights with the Hub needs huggingface_hub 1.33 or later, '
            "this is huggingface_hub 0.36.2: pip install 'huggingface_hub>=1.33'.\n")

    def test_weights_in_a_folder_need_no_client(self, monkeypatch, capsys):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(huggingface_hub, '__version__', '0.36.2')
        assert cli.main(['pull', 'local-dir:hub_cards/resnet20_cifar.icasc_digits']) == 0
        assert cli.main(['pull', 'resnet20_cifar.icasc_digits']) == 0


@pytest.mark.parametrize('installed, enough', [
    ('1.0.31', True), ('1.0.32.dev0', True), ('1.1', True), ('2.0.0', True), ('1.0.31.post1', True), ('1.0.9', False),
    ('1.0.30', False), ('0.9.16', False), ('1.0', False)])
def test_versions_are_compared_as_numbers(installed, enough):
    if enough:
        check_version('timm', installed, '1.0.31', 'this')
    else:
        with pytest.raises(VersionError, match='^this needs timm 1.0.31 or later'):
            check_version('timm', installed, '1.0.31', 'this')


def test_nothing_asks_for_a_later_name_when_it_is_imported():
    """Names that timm has since 1.0.24 or later are looked up where they are used."""
    later = ('get_device_dtype', 'evaluation_sample_limit', 'MultiLabelClassificationTask', 'trim_summary',
             'load_task_ema_checkpoint', 'resume_task_checkpoint', 'create_classification_loss')
    code = f"""
import sys
import timm.layers, timm.loss, timm.task, timm.utils.summary
for module in (timm.layers, timm.loss, timm.task, timm.utils.summary):
    for name in {later!r}:
        vars(module).pop(name, None)
for name in [name for name in sys.modules if name.split('.')[0] in ('timm_icasc', 'train_timm')]:
    del sys.modules[name]
import timm_icasc, train_timm, timm_icasc.cli.eval, timm_icasc.cli.push, timm_icasc.cli.sweep"""
    process = Forked([sys.executable, '-c', code])
    _, err = process.communicate(60)
    assert process.returncode == 0, err
