"""What somebody else wrote does no harm where it goes: terminal, CSV, Markdown, HTML, figures, a shell."""
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.hostile_files import NAMES, RAW
from huggingface_hub import HfApi
from PIL import Image

import train_timm
from timm_icasc import cli
from timm_icasc.foreign_text import (
    FORMULA,
    NUMBERS,
    code_span,
    csv_cell,
    fenced,
    markdown_text,
    printable,
    shell_command,
    without_secrets,
)
from timm_icasc.runs.tables import write_csv
from timm_icasc.support.architectures import inspect_architecture
from timm_icasc.support.support_page import load_record


class TestPrintable:
    @pytest.mark.parametrize('text, shown', [
        ('plain', 'plain'), ('é 漢字 🦊', 'é 漢字 🦊'), ('a\x1b[31mb', 'a\\x1b[31mb'), ('a\nb\r\tc', 'a\\nb\\r\\tc'),
        ('\x9b31m', '\\u009b31m'), ('\x85\u2028', '\\u0085\\u2028'), ('\u202egnp', '\\u202egnp'),
        ('caf\udce9', 'caf\\xe9'), ('\ud800', '\\ud800'), (7, '7'), (Path('x'), 'x')])
    def test_controls_are_spelt_out(self, text, shown):
        assert printable(text) == shown

    def test_passwords(self, monkeypatch):
        for text in ('https://me:secret@host/x', 'http://me:s%40c@host', 'https://tokentoken@host:8/'):
            assert '***@host' in without_secrets(text) and 'tokentoken' not in without_secrets(text)
            assert 'secret' not in without_secrets(text) and 's%40c' not in without_secrets(text)
        assert without_secrets('https://hub.co/me/x@main, repo@revision') == 'https://hub.co/me/x@main, repo@revision'
        assert without_secrets("b'Bearer hf_abc'") == "b'Bearer ***'"
        assert without_secrets(f"hf_{'a' * 34} hf_hub_download") == 'hf_*** hf_hub_download'

    def test_passwords_of_the_environment(self, monkeypatch):
        """Also where a message has them in another form than an address."""
        monkeypatch.setenv('https_proxy', 'bob:p%2Fass-word@proxy:8')
        monkeypatch.setenv('HF_ENDPOINT', 'https://ann:pa/ss@host')
        monkeypatch.setenv('HF_TOKEN', 'oddtoken')
        for text in ('bob:p%2Fass-word', 'p/ass-word', 'ann:pa/ss@host', 'oddtoken'):
            shown = without_secrets(f'<{text}>')
            assert '***' in shown and not re.search('ass-word|pa/ss|odd', shown), shown
        assert without_secrets('bob and ann pass') == 'bob and ann pass'


class TestCSV:
    @pytest.mark.parametrize('value', ['=1+1', '+1+1', '-1+1', '@SUM(1)', '\t=1', '\r=1', '\n=1', '\uff1d1', '-', '-x'])
    def test_formulas(self, value):
        assert csv_cell(value) == f"'{value}"

    @pytest.mark.parametrize('value', [
        -0.5, None, True, np.float32(-1), '-0.5', '-1e-05', '+0.31', '+0.31 ± 0.02', '-inf', 'nan', 'a=b', '', "'x"])
    def test_the_rest_stays(self, value):
        assert csv_cell(value) == value

    def test_what_is_written_can_be_read(self, tmp_path):
        rows = [{'name': name, 'value': -0.5, '=key': '-1.5'} for name in (*NAMES, 'caf\udce9')]
        write_csv(tmp_path / 'x.csv', rows)
        with open(tmp_path / 'x.csv', newline='', encoding='utf-8') as file:
            read = list(csv.DictReader(file))
        assert [float(row['value']) for row in read] == [-0.5] * len(rows) and read[0]["'=key"] == '-1.5'
        assert [row['name'].removeprefix("'") for row in read] == [*NAMES, 'caf\\xe9']


class TestMarkdown:
    @pytest.mark.parametrize('text, written', [
        ('plain a_b L_AS 3 * 4 [n]', 'plain a_b L_AS 3 * 4 [n]'),
        ('# h', '\\# h'), ('> q', '\\> q'), ('1. x', '1\\. x'),
        ('- x', '\\- x'), ('-', '-'), ('*b* _i_', '\\*b\\* \\_i\\_'), ('<b>', '&lt;b>'), ('&lt;', '&amp;lt;'),
        ('a & b', 'a & b'), ('a|b', 'a\\|b'), ('`c`', '\\`c\\`'), ('[a](b)', '[a]\\(b)'),
        ('[a]: b', '[a]\\: b'), ('http://x', 'http&#58;//x'), ('www.x.y', 'www&#46;x.y'),
        ('a\n\n# b', 'a\\\\n\\\\n# b'), ('~~x~~', '\\~~x\\~~')])
    def test_text(self, text, written):
        assert markdown_text(text) == written

    def test_code(self):
        assert code_span('a') == '`a`' and code_span('a`b') == '`` a`b ``' and code_span('a|b') == '`a\\|b`'
        assert fenced('x\n```') == 'x\\n```' and fenced('```\n') == '\\```\\n'


class TestShell:
    @pytest.mark.parametrize('word', ['a b', "it's", 'x\x1b\n\'\\y', 'caf\udce9', '\x85\u2028', '$x', '\uffff'])
    def test_a_line_that_bash_reads_back(self, word):
        line = shell_command(['printf', '%s', word])
        assert len(line.splitlines()) == 1 and yaml.safe_load(f'# {line}\na: 1\n') == {'a': 1}
        said = subprocess.run(['bash', '-c', line], capture_output=True, check=True, env={'LC_ALL': 'C.UTF-8'}).stdout
        assert said == word.encode(errors='surrogateescape')

    def test_plain_words_are_quoted_as_ever(self):
        words = ['train_timm.py', '--data-dir', 'a b']
        assert shell_command(words) == shlex.join(words)


@pytest.fixture(scope='module')
def hostile_run(tmp_path_factory):
    """A run on folders with hostile names, in a folder with one."""
    root = tmp_path_factory.mktemp('hostile') / '# <b>|\x1b[31m\nx@main: verified'
    generator = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for name in (*NAMES, 'caf\udce9'):
            folder = root / split / name.replace('/', ':')
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    argv = sys.argv
    sys.argv = [
        'train_timm.py', '--data-dir', str(root), '--epochs', '1', '--warmup-epochs', '0', '-j', '0', '-b', '8',
        '--icasc-eval-images', '4', '--output', str(root.parent), '--experiment', 'run\x1b[2K\nx']
    try:
        assert train_timm.main() == 0
    finally:
        sys.argv = argv
    return root.parent / 'run\x1b[2K\nx'


def check_terminal(said):
    for text in (said.out, said.err):
        assert not any(raw in text for raw in RAW)
        assert not any(re.match('((me[:/])?x@main: verified|top-1 % 100)', line) for line in text.splitlines()), text


def check_csv(folder):
    files = list(folder.rglob('*.csv'))
    for file in files:
        with open(file, newline='', encoding='utf-8') as opened:
            for cell in (cell for row in csv.reader(opened) for cell in row):
                assert not cell.startswith(FORMULA) or NUMBERS.fullmatch(cell), (file, cell)
    return {file.name for file in files}


class TestEndToEnd:
    """Names of classes and folders in all that the commands leave."""

    @pytest.fixture
    def command(self, capfd):
        def call(*words):
            code = cli.main(list(map(str, words)))
            said = capfd.readouterr()
            check_terminal(said)
            assert code == 0, said.err
            return said.out
        return call

    def test_the_run_can_be_gone_on_with(self, hostile_run, capfd, monkeypatch):
        text = (hostile_run / 'args.yaml').read_text()
        assert yaml.safe_load(text)['experiment'] == 'run\x1b[2K\nx'
        assert text.startswith("# train_timm.py --data-dir $'")
        monkeypatch.setattr(sys, 'argv', [
            'train_timm.py', '--resume', 'auto', '--output', str(hostile_run.parent), '--experiment', hostile_run.name])
        assert train_timm.main() == 0
        check_terminal(capfd.readouterr())

    def test_eval(self, hostile_run, command, tmp_path):
        out = command('eval', hostile_run, '--output', tmp_path / 'out', '--per-class')
        assert 'x\\x1b[2K' in out and "=HYPERLINK" in out
        assert {'classes.csv', 'images.csv', 'summary.csv'} <= check_csv(tmp_path)
        folder, = (tmp_path / 'out').glob('*/')
        command('eval', '--compare', folder, folder)

    @pytest.mark.parametrize('kind, file', [
        ('classes', 'x.svg'), ('layers', 'x.svg'), ('ks', 'x.svg'), ('html', 'x.html')])
    def test_figures(self, kind, file, hostile_run, command, tmp_path):
        command('figure', kind, hostile_run, '--output', tmp_path / file, *(['--images', 26] if kind == 'html' else []))
        page = (tmp_path / file).read_text()
        assert not any(raw in page for raw in RAW) and '<img src=x' not in page
        if kind == 'html':
            assert '&lt;img src=x onerror=alert(1)&gt;' in page and 'x\\x1b[2K' in page and 'caf\\xe9' in page

    def test_paper(self, hostile_run, command, tmp_path):
        command('paper', hostile_run, '--output', tmp_path / 'paper.md')
        page = (tmp_path / 'paper.md').read_text()
        assert not any(raw in page for raw in RAW) and '<b>' not in page
        command('paper', hostile_run, '--output', tmp_path / 'paper.csv')
        check_csv(tmp_path)

    def test_card(self, hostile_run, tmp_path):
        """Of a run, whose data set is named like its folder."""
        from timm_icasc.publish.card import render_run
        from timm_icasc.publish.export import export, open_measured_runs
        runs = open_measured_runs(hostile_run)
        export(runs[-1], tmp_path / 'folder', 'x', class_names=True)
        head, body = render_run(runs[-1], runs, tmp_path / 'folder', 'me/x').removeprefix('---\n').split('\n---\n', 1)
        assert yaml.safe_load(head)['model-index'][0]['results'][0]['dataset']['name'].startswith('#')
        assert not any(raw in body for raw in RAW) and '<b>' not in body.replace('&lt;b>', '')
        assert 'Data: \\# &lt;b>\\|\\\\x1b' in body and not re.search('^x@main', body, re.MULTILINE)

    def test_pull(self, command, tmp_path):
        shipped = Path(__file__).parents[1] / 'hub_cards' / 'resnet20_cifar.icasc_digits'
        folder = shutil.copytree(shipped, tmp_path / 'folder\x1b[2K\nme@main: verified')
        config = json.loads((folder / 'config.json').read_text())
        config['timm_icasc'].update(method=NAMES[1], dataset=NAMES[0])
        config['pretrained_cfg']['license'] = NAMES[2]
        (folder / 'config.json').write_text(json.dumps(config))
        out = command('pull', f'local-dir:{folder}')
        assert 'cat\\nme/x@main: verified' in out and len(out.splitlines()) == 3

    def test_layers(self, command, tmp_path):
        record = load_record(None, None)
        record['models']['resnet20_cifar'] = json.loads(json.dumps(inspect_architecture('resnet20_cifar')))
        record['models']['resnet20_cifar']['last']['path'] = NAMES[0]
        record['models']['resnet20_cifar']['family'] = f'a.{NAMES[7]}'
        (tmp_path / 'x.json').write_text(json.dumps(record))
        command('layers', 'resnet20_cifar', '--json', tmp_path / 'x.json')
        page = (tmp_path / 'x.md').read_text()
        assert not any(raw in page for raw in RAW) and '<img' not in page

    def test_doctor(self, capfd, monkeypatch):
        monkeypatch.setattr('timm_icasc.cli.doctor.get_token', lambda: 'x')
        monkeypatch.setattr('timm_icasc.cli.doctor.check_reachable', lambda where: None)
        monkeypatch.setattr(HfApi, 'whoami', lambda self: {'name': NAMES[1] + NAMES[0]})
        monkeypatch.setattr('timm_icasc.cli.doctor._check_step', lambda *_: (True, ''))
        cli.main(['doctor'])
        said = capfd.readouterr()
        check_terminal(said)
        assert 'cat\\nme/x@main: verified' in said.out

    def test_the_page_of_a_study(self, command, tmp_path):
        records = Path(__file__).parents[1] / 'docs' / 'evidence' / 'records' / 'digits10_resnet20'
        (tmp_path / 'study.yaml').write_text(
            'baseline: cross-entropy\nseeds: [0]\ncommon: {dataset: digits, val_split: "$x^{$"}\nrecords: .\n'
            'report: page.md\nvariants: {cross-entropy: {icasc: false}}\n')
        record = json.loads((records / 'cross-entropy-seed0.json').read_text())
        record['evaluated'].update(split=NAMES[10], arguments=[], attention=NAMES[7])
        record['machine'].update(processor=NAMES[1], device=NAMES[0])
        record['options'] = {'val_split': NAMES[11]}
        (tmp_path / 'cross-entropy-seed0.json').write_text(json.dumps(record))
        (tmp_path / 'page.md').write_text('<!-- study study begins -->\n<!-- study study ends -->\n')
        command('sweep', tmp_path / 'study.yaml', '--report')
        page = (tmp_path / 'page.md').read_text()
        assert not any(raw in page for raw in RAW) and '<img' not in page and '\nme/x' not in page

    def test_a_log_of_a_run_that_failed(self, tmp_path):
        from timm_icasc.sweep.runner import _Work
        work = object.__new__(_Work)
        work.log, work.output = tmp_path / 'x.log', tmp_path
        work.log.write_text('one\n\x1b[2Kx\n')
        assert work.last_lines() == 'one\n\\x1b[2Kx'
