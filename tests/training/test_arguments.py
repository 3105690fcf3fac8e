"""Options, recipes, and messages about both."""
import os
import shutil
from pathlib import Path

import pytest
import yaml

from timm_icasc import cli
from timm_icasc.errors import ICASCError
from timm_icasc.training.argument_files import RECIPES, load_config
from timm_icasc.training.arguments import build_parser, parse_args


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_without_options_it_is_the_digits_recipe():
    args = parse_args([])
    assert args.dataset == 'digits' and args.model == 'resnet20_cifar' and args.icasc
    assert parse_args(['--epochs', '3']).epochs == 3, 'the command line has the last word'


def test_a_users_data_starts_from_timms_defaults():
    args = parse_args(['--data-dir', 'somewhere'])
    assert (args.epochs, args.smoothing, args.hflip, args.sched) == (300, 0.1, 0.5, 'cosine')


@pytest.mark.parametrize('recipe', sorted(RECIPES.glob('*.yaml')), ids=lambda p: p.name)
def test_every_recipe_is_valid(recipe):
    options = load_config(recipe, build_parser())
    args = parse_args(['--data-dir', 'x', '--config', str(recipe)])
    assert all(getattr(args, name) == value for name, value in options.items())


def test_keys_may_have_dashes(tmp_path):
    file = write(tmp_path / 'a.yaml', 'batch-size: 7\nmodel: vit')
    assert load_config(file, build_parser()) == {'batch_size': 7, 'model': 'vit'}


def test_scientific_notation_without_a_dot(tmp_path):
    """YAML 1.1 reads 5e-4 as a string."""
    assert load_config(write(tmp_path / 'a.yaml', 'weight_decay: 5e-4'), build_parser())['weight_decay'] == 5e-4


@pytest.mark.parametrize('text, message', [
    ('modle: resnet18', "unknown key 'modle' .did you mean 'model'"),
    ('qqqq: 1', "unknown key 'qqqq'"),
    ('modle: resnet18\nqqqq: 1', "unknown keys 'modle' .did you mean 'model'.., 'qqqq'[.]$"),
    ('epochs: many', "'epochs' must be int, got 'many'"),
    ('icasc_order: 3', r"'icasc_order' must be one of \(1, 2\), got 3"),
    ('amp: please', "'amp' must be true or false, got 'please'"),
    ('decay_milestones: 30', "'decay_milestones' must be a list, got 30"),
    ('epochs: [1, 2]', "'epochs' must be one value"),
    ('icasc_weights: [1, 2]', "'icasc_weights' must have 3 values"),
    ('experiment: 20240501', "'experiment' must be text, got 20240501: write it in quotes"),
    ('data_dir: 2012', "'data_dir' must be text, got 2012"),
    ('train_split: no', "'train_split' must be text, got False"),  # YAML's word for false
    ('icasc_layers: [3, layer4]', r"'icasc_layers' must be text, got \[3, 'layer4'\]"),
    ('- epochs', "no 'option: value' lines"),
    ('a: [', 'not valid YAML'),
])
def test_bad_files_are_explained(text, message, tmp_path):
    with pytest.raises(ICASCError, match=message):
        load_config(write(tmp_path / 'bad.yaml', text), build_parser())


def test_missing_file_lists_the_recipes(tmp_path):
    with pytest.raises(ICASCError, match='No such file.*cifar100_resnet110, '):
        load_config(tmp_path / 'none.yaml', build_parser())


@pytest.mark.parametrize('argv, message', [
    (['--epochs', '0'], '--epochs must be at least 1'),
    (['--lr', '0'], '--lr must be at least 1e-12, got 0.0'),  # timm would take its default
    (['--lr-base', '0'], '--lr-base must be at least 1e-12'),
    (['--min-lr', '-1'], '--min-lr must be at least 0'),
    (['--warmup-epochs', '-1'], '--warmup-epochs must be at least 0'),
    (['--decay-rate', '-1'], '--decay-rate must be at least 0'),
    (['--decay-milestones', '20', '10'], '--decay-milestones must rise, got 20 10'),  # timm divided twice after 10
    (['--icasc-omega', '0'], '--icasc-omega must be at least 1e-06, got 0.0'),  # a mask of 0.5 everywhere
    (['--icasc-share', '0.5', '--icasc-rival', 'random'], 'share below 1 takes the most confused samples'),
    (['--momentum', '2'], '--momentum must be between 0 and 1'),
    (['--batch-size', '15', '--mixup', '0.2'], '--batch-size must be even'),
    (['--loss', 'asl', '--cutmix', '1'], '--loss asl'),
    (['--pretrained-path', 'a.pth', '--initial-checkpoint', 'b.pth'], '--initial-checkpoint both name the first'),
    (['--data-dir', 'x', '--clip-mode', 'agc'], '--clip-mode does nothing without --clip-grad'),
    (['--amp-dtype', 'bfloat16'], '--amp-dtype does nothing without --amp'),
    (['--model-ema-warmup'], '--model-ema-warmup does nothing without --model-ema'),
    (['--torchcompile-mode', 'default'], '--torchcompile-mode does nothing without --torchcompile'),
    (['--recount', '3'], '--recount does nothing without --reprob'),
    (['--remode', 'const'], '--remode does nothing without --reprob'),
    (['--mixup-off-epoch', '5'], '--mixup-off-epoch does nothing without --mixup or --cutmix'),
    (['--layer-decay-min-scale', '0.1'], '--layer-decay-min-scale does nothing without --layer-decay'),
    (['--layer-decay-no-opt-scale', '0.1'], '--layer-decay-no-opt-scale does nothing without --layer-decay'),
    (['--mixup-switch-prob', '0.1'], '--mixup-switch-prob does nothing without --mixup or --cutmix'),
    (['--mixup-mode', 'elem'], '--mixup-mode does nothing without --mixup or --cutmix'),
    (['--mixup-prob', '0.5'], '--mixup-prob does nothing without --mixup or --cutmix'),
    (['--no-aug', '--reprob', '0.2'], '--reprob does nothing beside --no-aug'),
    (['--no-aug', '--aa', 'rand-m9'], '--aa does nothing beside --no-aug'),
    (['--no-aug', '--vflip', '0.5'], '--vflip does nothing beside --no-aug'),
    (['--in-chans', '0'], '--in-chans must be between 1 and 3, got 0'),  # passed for 3
    (['--lr-noise', '0.5', '0.2'], '--lr-noise is the share of the epochs at which noise begins, and .* got 0.5 0.2'),
    (['--lr-noise', '0.1', '0.2', '0.3'], 'got 0.1 0.2 0.3'),
    (['--model-kwargs', 'pretrained=True'], "--model-kwargs: 'pretrained' has an option of its own, --pretrained"),
    (['--model-kwargs', 'drop_path_rate=0.1'], "'drop_path_rate' has an option of its own, --drop-path"),
    (['--model-kwargs', 'num_classes=7'], "--model-kwargs: 'num_classes' has an option of its own, --num-classes"),
    (['--dataset', 'torch/cifar100'], '--data-dir is missing'),
    (['--config', 'x.yaml', '--dataset', 'digits'], "cannot read 'x.yaml'"),
    (['--resume', 'nothing.pth.tar'], "--resume: no checkpoint 'nothing.pth.tar'"),
])
def test_options_that_do_not_fit_are_named(argv, message):
    with pytest.raises(ICASCError, match=message):
        parse_args(argv)


@pytest.mark.parametrize('argv, named', [
    (['--epochs', 'x'], '--epochs'), (['--icasc-order', '3'], '--icasc-order'), (['--nonsense'], '--nonsense'),
    (['--model-kwargs', 'drop_rate'], "--model-kwargs: 'drop_rate' is not of the form KEY=VALUE"),
    (['--opt-kwargs', 'a=b=c'], "--opt-kwargs: 'a=b=c' is not of the form KEY=VALUE")])
def test_argparse_errors_are_one_line_and_exit_code_2(argv, named, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(argv)
    assert error.value.code == 2
    said = capsys.readouterr().err.strip()
    assert named in said and len(said.splitlines()) == 1


@pytest.mark.parametrize('cores, workers', [(1, 1), (2, 2), (64, 4)])
def test_loading_processes_fit_the_cores(cores, workers, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)), raising=False)
    assert parse_args(['--data-dir', '/data']).workers == workers
    assert parse_args(['--data-dir', '/data', '-j', '9']).workers == 9, 'as given'


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(['train', '--help'])
    text = capsys.readouterr().out
    assert error.value.code == 0
    assert '\nICASC:\n' in text and 'torchrun' in text and '--icasc-compare' in text
    assert '--icasc-defects' not in text, 'only for the study of docs/evidence/cifar20.md, which names it'
    assert '--icasc-fast' in text


class TestResume:

    def run(self, folder, **options):
        folder.mkdir(parents=True)
        (folder / 'args.yaml').write_text(yaml.safe_dump({'dataset': 'digits', **options}))
        (folder / 'last.pth.tar').write_bytes(b'')
        return folder

    def test_a_checkpoint_brings_the_arguments_of_its_run(self, tmp_path):
        folder = self.run(tmp_path / 'a', model='resnet32_cifar', epochs=9)
        args = parse_args(['--resume', str(folder / 'last.pth.tar'), '--epochs', '10'])
        assert (args.model, args.epochs, args.run_dir) == ('resnet32_cifar', 10, str(folder))

    def test_the_folder_of_a_run_is_no_checkpoint(self, tmp_path):
        folder = self.run(tmp_path / 'a')
        with pytest.raises(ICASCError, match=f"'{folder}' is a folder: .*--output '{tmp_path}' --experiment 'a'"):
            parse_args(['--resume', str(folder)])

    def test_one_run_does_not_become_two(self, tmp_path):
        """A comparison was begun in its folder, and its args.yaml was that of the comparison."""
        folder = self.run(tmp_path / 'a')
        with pytest.raises(ICASCError, match=f"--icasc-compare: '{folder}' is one run"):
            parse_args(['--resume', 'auto', '--output', str(tmp_path), '--icasc-compare'])
        (folder / 'icasc').mkdir()
        (folder / 'last.pth.tar').rename(folder / 'icasc' / 'last.pth.tar')
        assert parse_args(['--resume', 'auto', '--output', str(tmp_path), '--icasc-compare']).run_dir == str(folder)

    def test_auto_takes_the_newest_run(self, tmp_path):
        old, new = self.run(tmp_path / 'old', epochs=1), self.run(tmp_path / 'new', epochs=2)
        os.utime(old / 'last.pth.tar', (1, 1))
        assert parse_args(['--resume', 'auto', '--output', str(tmp_path)]).run_dir == str(new)
        chosen = parse_args(['--resume', 'auto', '--output', str(tmp_path), '--experiment', 'old'])
        assert chosen.run_dir == str(old) and chosen.epochs == 1

    @pytest.mark.parametrize('options', [[], ['--dataset', 'digits'], ['--data-dir', 'x'], ['-c', 'finetune']])
    def test_auto_that_finds_nothing_stops(self, options, tmp_path):
        """Also where it is said what to train: a name that is mistyped would train it anew."""
        with pytest.raises(ICASCError) as e:
            parse_args(['--resume', 'auto', '--output', str(tmp_path), *options])
        assert str(e.value) == (
            f"--resume auto: '{tmp_path}' has no run to go on with: leave --resume out to begin a new run.")
        self.run(tmp_path / 'a')
        with pytest.raises(ICASCError, match="has no run 'b' to go on with; it has a: leave --resume out to begin"):
            parse_args(['--resume', 'auto', '--output', str(tmp_path), '--experiment', 'b', *options])

    def test_auto_without_the_last_checkpoint_names_the_newest(self, tmp_path):
        """It said that the run is not there, and to begin anew."""
        folder = self.run(tmp_path / 'a')
        (folder / 'last.pth.tar').rename(folder / 'checkpoint-10.pth.tar')
        for name in ('checkpoint-9.pth.tar', 'model_best.pth.tar'):  # copies, which are younger files
            shutil.copy(folder / 'checkpoint-10.pth.tar', folder / name)
        with pytest.raises(ICASCError, match=f"has no last.pth.tar: say --resume '{folder / 'checkpoint-10.pth.tar'}'"):
            parse_args(['--resume', 'auto', '--output', str(tmp_path), '--experiment', 'a'])

    def test_auto_in_the_folder_of_a_run_names_the_run(self, tmp_path):
        """The remedy was to begin anew."""
        folder = self.run(tmp_path / 'a')
        with pytest.raises(ICASCError, match=f"a run itself: say --resume auto --output '{tmp_path}' --experiment 'a'"):
            parse_args(['--resume', 'auto', '--output', str(folder)])

    def test_a_run_of_timms_own_script_begins_one_from_its_weights(self, tmp_path):
        folder = self.run(tmp_path / 'a')
        write(folder / 'args.yaml', 'model: resnet18\njsd_loss: false\namp_impl: native\n')
        with pytest.raises(ICASCError, match=r"a run of timm's train.py, .* its weights with --initial-checkpoint"):
            parse_args(['--resume', str(folder / 'last.pth.tar')])

    def test_auto_looks_where_a_file_of_options_says(self, tmp_path):
        """It went on with another run, or found none."""
        folder = self.run(tmp_path / 'of_file' / 'a', epochs=4)
        self.run(tmp_path / 'of_file' / 'b')
        file = write(tmp_path / 'c.yaml', f'dataset: digits\nlr: 0.5\noutput: {tmp_path / "of_file"}\nexperiment: a\n')
        args = parse_args(['-c', file, '--resume', 'auto'])
        assert (args.run_dir, args.epochs, args.lr) == (str(folder), 4, 0.5)
        with pytest.raises(ICASCError, match=f"'{tmp_path}' has no run 'a' to go on with"):
            parse_args(['-c', file, '--resume', 'auto', '--output', str(tmp_path)])

    def test_a_file_of_options_may_resume(self, tmp_path):
        """It said that 'None' goes on, and began anew each time."""
        file = write(tmp_path / 'c.yaml', f'dataset: digits\nresume: auto\noutput: {tmp_path / "runs"}\n')
        with pytest.raises(ICASCError, match=f"'{tmp_path / 'runs'}' has no run to go on with"):
            parse_args(['-c', file])
        folder = self.run(tmp_path / 'runs' / 'a')
        args = parse_args(['-c', file])
        assert (args.resume, args.run_dir) == ('auto', str(folder))

    @pytest.mark.parametrize('options, place', [
        (['--experiment', 'b'], 'b'), (['--output', 'new'], 'new/a'),
        (['--output', 'new', '--experiment', 'b'], 'new/b'),
        (['--output', '.', '--experiment', 'a'], None), (['--output', '../here'], None)])
    def test_a_checkpoint_goes_on_in_the_folder_that_is_named(self, options, place, tmp_path, monkeypatch):
        """The finished run was written over, whatever folder was named."""
        (tmp_path / 'here').mkdir()
        monkeypatch.chdir(tmp_path / 'here')
        self.run(Path('a'), epochs=9, output='elsewhere')
        args = parse_args(['--resume', 'a/last.pth.tar', *options])
        assert args.epochs == 9
        if place is None:
            assert args.run_dir == 'a'
        else:
            assert args.run_dir is None and Path(args.output) / args.experiment == Path(place)

    def test_a_file_of_options_names_no_folder_to_go_on_in(self, tmp_path):
        folder, file = self.run(tmp_path / 'a'), write(tmp_path / 'c.yaml', 'dataset: digits\noutput: of_new_runs\n')
        assert parse_args(['--resume', str(folder / 'last.pth.tar'), '-c', file]).run_dir == str(folder)

    def test_a_run_in_the_current_folder_has_a_name(self, tmp_path, monkeypatch):
        """How to go on after Ctrl-C was told without one."""
        folder = self.run(tmp_path / 'a')
        monkeypatch.chdir(folder)
        assert parse_args(['--resume', 'last.pth.tar']).run_dir == str(folder)


def test_the_current_folder_is_data_with_a_name(tmp_path, monkeypatch):
    (tmp_path / 'birds').mkdir()
    monkeypatch.chdir(tmp_path / 'birds')
    assert parse_args(['--data-dir', '.']).data_dir == str(tmp_path / 'birds')
    assert parse_args(['--data-dir', '../birds']).data_dir == '../birds'


@pytest.mark.parametrize('name', ['mixup', 'hflip', 'seed', 'opt', 'epochs', 'model-kwargs', 'output'])
def test_a_key_without_a_value_is_named(name, tmp_path):
    """It was compared with numbers deep in the training; where an option may be without a value, it stays so."""
    file = write(tmp_path / 'a.yaml', f'dataset: digits\nclip_grad:\n{name}:\n')
    with pytest.raises(ICASCError, match=f"'{name.replace('-', '_')}' has no value: write one, or leave the line out"):
        parse_args(['-c', file])


class TestPublishing:
    """Only the command line publishes: a file may be somebody else's, that of a run to go on with too."""

    def test_no_run_asks_for_it_when_it_goes_on(self, tmp_path):
        run = tmp_path / 'run'
        run.mkdir()
        (run / 'last.pth.tar').touch()
        (run / 'args.yaml').write_text('dataset: digits\npush_to_hub: somebody/else\nlicense: mit\n')
        with pytest.warns(UserWarning, match=f"'{run / 'args.yaml'}' asks to publish as 'somebody/else'"):
            args = parse_args(['--output', str(tmp_path), '--resume', 'auto'])
        assert args.run_dir == str(run) and args.push_to_hub == '' and args.license is None
        with pytest.warns(UserWarning):
            args = parse_args(['--output', str(tmp_path), '--resume', 'auto', '--push-to-hub', 'me/x'])
        assert args.push_to_hub == 'me/x'

    def test_nor_does_a_file_of_options(self, tmp_path):
        file = write(tmp_path / 'args.yaml', 'dataset: digits\npush-to-hub: somebody/else\n')
        with pytest.warns(UserWarning, match='add --push-to-hub somebody/else'):
            assert parse_args(['--config', file]).push_to_hub == ''
