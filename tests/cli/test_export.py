"""`timm-icasc export`: a folder that timm and eval load, whole or not there, of the epoch that was asked for."""
import json
import shutil

import pytest
import timm
import torch
from helpers.kills import changes, contents, kill_before, operations_of

from timm_icasc import ICASCError, VersionError
from timm_icasc.cli import main
from timm_icasc.publish import onnx_file
from timm_icasc.publish.export import export_run


def export(*arguments):
    return main(['export', *map(str, arguments)])


def weights(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()


def are_of(folder, checkpoint):
    """Whether an exported folder has the averaged weights of a checkpoint."""
    expected = torch.load(checkpoint, weights_only=False)['state_dict_ema']
    return all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


class TestTheFolder:

    def test_timm_and_eval_load_it(self, averaged, noise, tmp_path, capsys):
        """What eval measures of it is what it measures of the run."""
        folder = tmp_path / 'of' / 'mine'
        assert export(averaged, folder) == 0
        assert f"timm.create_model('local-dir:{folder}', pretrained=True)" in capsys.readouterr().out
        assert sorted(path.name for path in folder.iterdir()) == ['args.yaml', 'config.json', 'model.safetensors']
        assert are_of(folder, averaged / 'last.pth.tar')
        data = ['--data-dir', str(noise), '-j', '0']
        assert main(['eval', str(averaged), '--output', str(tmp_path / 'run'), *data]) == 0
        assert main(['eval', f'local-dir:{folder}', '--val-split', 'validation', '--output', str(tmp_path / 'x'),
                     *data]) == 0
        one, two = (json.loads(next((tmp_path / name).rglob('eval.json')).read_text()) for name in ('run', 'x'))
        assert one['measures']['top1'] == two['measures']['top1']
        assert one['measures']['overlap_last'] == pytest.approx(two['measures']['overlap_last'], abs=1e-6)

    def test_names_of_classes_are_those_that_push_would_publish(self, averaged, tmp_path):
        run = shutil.copytree(averaged, tmp_path / 'public')
        (run / 'args.yaml').write_text((run / 'args.yaml').read_text().replace("dataset: ''", 'dataset: digits'))
        for number, (source, options, named) in enumerate((
                (averaged, [], False), (averaged, ['--class-names'], True), (run, [], True),
                (run, ['--no-class-names'], False))):
            assert export(source, tmp_path / str(number), *options) == 0
            config = json.loads((tmp_path / str(number) / 'config.json').read_text())
            assert config.get('label_names') == (['ant', 'bat', 'cat'] if named else None)

    def test_local_paths_stay_here(self, averaged, noise, tmp_path):
        assert export(averaged, tmp_path / 'x') == 0
        assert not [path for path in (tmp_path / 'x').iterdir() if str(noise).encode() in path.read_bytes()]

    def test_of_a_comparison_it_is_the_run_with_icasc(self, compared, tmp_path):
        assert export(compared, tmp_path / 'x') == 0
        assert json.loads((tmp_path / 'x' / 'config.json').read_text())['timm_icasc']['icasc']

    def test_an_empty_folder_is_filled(self, averaged, tmp_path):
        (tmp_path / 'empty').mkdir()
        (tmp_path / 'link').symlink_to(tmp_path / 'empty')
        assert export(averaged, tmp_path / 'link') == 0 and (tmp_path / 'empty' / 'config.json').is_file()

    @pytest.mark.parametrize('kind', ['full', 'hidden', 'file', 'link'])
    def test_what_is_there_stays(self, kind, averaged, tmp_path, capsys):
        folder = tmp_path / 'x'
        if kind == 'file':
            folder.write_text('mine')
        elif kind == 'link':
            folder.symlink_to(tmp_path / 'elsewhere')
        else:
            folder.mkdir()
            (folder / ('.mine' if kind == 'hidden' else 'mine')).touch()
        assert export(averaged, folder) == 2
        assert capsys.readouterr().err == (
            f"timm-icasc export: error: `folder`: '{folder}' is there already, and not an empty folder: name a new "
            f'one.\n')
        assert sorted(path.name for path in tmp_path.rglob('*')) == sorted(
            ['x', *(['mine'] if kind == 'full' else ['.mine'] if kind == 'hidden' else [])])

    def test_a_kill_leaves_nothing_or_all(self, averaged, tmp_path):
        folder = tmp_path / 'to' / 'x'
        operations = operations_of(lambda: export(averaged, folder), tmp_path / 'log')
        expected = contents(folder)
        for number in changes(operations):
            shutil.rmtree(folder.parent)
            kill_before(lambda: export(averaged, folder), number)
            assert not folder.exists() or contents(folder) == expected
            shutil.rmtree(folder, ignore_errors=True)
            assert export(averaged, folder) == 0 and contents(folder) == expected
            assert [path.name for path in folder.parent.iterdir()] == ['x'], 'what the kill has left is gone'

    def test_an_unfinished_run(self, averaged, tmp_path, capsys):
        run = shutil.copytree(averaged, tmp_path / 'run')
        (run / 'results.json').unlink()
        assert export(run, tmp_path / 'x') == 2 and not (tmp_path / 'x').exists()
        assert 'timm-icasc train --resume auto goes on with it' in capsys.readouterr().err


class TestTheBestEpoch:

    def test_weights_and_measures_are_of_it(self, falling, tmp_path):
        for name, options in (('last', []), ('best', ['--best'])):
            assert export(falling, tmp_path / name, *options) == 0
        assert are_of(tmp_path / 'last', falling / 'last.pth.tar')
        assert are_of(tmp_path / 'best', falling / 'model_best.pth.tar')
        assert not are_of(tmp_path / 'best', falling / 'last.pth.tar')
        ours = json.loads((tmp_path / 'best' / 'config.json').read_text())['timm_icasc']
        results = json.loads((falling / 'results.json').read_text())
        assert ours['metrics']['top1'] == results['best']['top1'] != results['last']['eval_top1']
        assert ours['epochs'] == 2 and 'seconds' not in ours['metrics']
        assert ours['metrics'].keys() <= {name.removeprefix('eval_') for name in results['last']}

    @pytest.mark.parametrize('what', ['epoch', 'value', 'table', 'checkpoint', 'none'])
    def test_what_does_not_agree_is_refused(self, what, falling, tmp_path, capsys):
        run = shutil.copytree(falling, tmp_path / 'run')
        results = json.loads((run / 'results.json').read_text())
        if what == 'epoch':  # of a run that went on, and ended before its results were written
            shutil.copy(run / 'last.pth.tar', run / 'model_best.pth.tar')
        elif what == 'value':
            results['best']['top1'] += 1.
        elif what == 'table':
            lines = (run / 'summary.csv').read_text().splitlines(keepends=True)
            (run / 'summary.csv').write_text(''.join([*lines[:2], *lines[3:]]))
        elif what == 'checkpoint':
            checkpoint = torch.load(run / 'model_best.pth.tar', weights_only=False)
            torch.save({**checkpoint, 'metric': 0.5}, run / 'model_best.pth.tar')
        else:
            del results['best']
        (run / 'results.json').write_text(json.dumps(results))
        assert export(run, tmp_path / 'x', '--best') == 2 and not (tmp_path / 'x').exists()
        err = capsys.readouterr().err
        assert 'do not tell what was measured of it' in err and err.endswith('or leave out --best.\n')

    def test_no_best_checkpoint(self, falling, tmp_path, capsys):
        run = shutil.copytree(falling, tmp_path / 'run')
        (run / 'model_best.pth.tar').unlink()
        assert export(run, tmp_path / 'x', '--best') == 2
        assert 'has no model_best.pth.tar: leave out --best, for the weights' in capsys.readouterr().err

    def test_a_link_is_not_followed(self, falling, tmp_path, capsys):
        run = shutil.copytree(falling, tmp_path / 'run')
        (run / 'model_best.pth.tar').rename(tmp_path / 'elsewhere')
        (run / 'model_best.pth.tar').symlink_to(tmp_path / 'elsewhere')
        assert export(run, tmp_path / 'x', '--best') == 2 and 'is a link' in capsys.readouterr().err


class TestONNX:

    def test_without_the_packages(self, averaged, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(onnx_file, 'PACKAGES', ('no_such_package',))
        assert export(averaged, tmp_path / 'x', '--onnx') == 2 and not (tmp_path / 'x').exists()
        assert capsys.readouterr().err == (
            "timm-icasc export: error: --onnx needs other packages: pip install 'timm_icasc[onnx]'.\n")
        with pytest.raises(VersionError):
            export_run(averaged, tmp_path / 'x', onnx=True)

    def test_the_scores_are_those_of_the_model(self, averaged, tmp_path, capsys):
        for package in onnx_file.PACKAGES:
            pytest.importorskip(package)
        from onnx.reference import ReferenceEvaluator  # not what the command itself compares with
        assert export(averaged, tmp_path / 'x', '--onnx') == 0 and 'the same scores' in capsys.readouterr().out
        names = ['args.yaml', 'config.json', 'model.onnx', 'model.safetensors']
        assert sorted(path.name for path in (tmp_path / 'x').iterdir()) == names
        model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
        images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(9))
        found, = ReferenceEvaluator(str(tmp_path / 'x' / 'model.onnx')).run(None, {'images': images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), atol=1e-4, rtol=1e-4)

    def test_other_scores_leave_no_folder(self, averaged, tmp_path, monkeypatch):
        for package in onnx_file.PACKAGES:
            pytest.importorskip(package)
        right = torch.onnx.export

        def wrong(model, *arguments, **options):
            model.fc.bias[0] += 1000.
            right(model, *arguments, **options)
            model.fc.bias[0] -= 1000.

        monkeypatch.setattr(torch.onnx, 'export', wrong)
        with pytest.raises(ICASCError, match='`onnx`: the exported network gives other scores than the model'):
            export_run(averaged, tmp_path / 'x', onnx=True)
        assert not (tmp_path / 'x').exists()
