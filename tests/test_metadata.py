"""What others read of the project: its citation, its types, its workflow."""
import re
import runpy
import zipfile
from pathlib import Path

import pytest
import yaml
from helpers.distributions import build_distributions

import timm_icasc
from timm_icasc import version

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / 'pyproject.toml').read_text()
PAPER = 'Sharpen Focus: Learning with Attention Separability and Consistency'


def test_citation():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= citation.keys()
    assert citation['license'] == 'Apache-2.0' and 'license = "Apache-2.0"' in PROJECT
    assert citation['version'] == timm_icasc.__version__
    paper = citation['preferred-citation']
    assert paper['title'] == PAPER and paper['year'] == 2019 and '1811.07484' in paper['url']
    readme = (ROOT / 'README.md').read_text()
    families = [author['family-names'] for author in paper['authors']]
    assert families == ['Wang', 'Wu', 'Karanam', 'Peng', 'Singh', 'Liu', 'Metaxas']
    assert all(f"{author['family-names']}, {author['given-names']}" in readme for author in paper['authors'])


def test_types_travel_with_the_package():
    assert (ROOT / 'timm_icasc' / 'py.typed').is_file() and '"py.typed"' in PROJECT


class TestDistributions:
    """What people install: built from a copy of the checkout, the wheel from the source distribution."""

    @pytest.fixture(scope='class')
    def built(self, tmp_path_factory):
        unpacked, file = build_distributions(tmp_path_factory.mktemp('built'))
        with zipfile.ZipFile(file) as wheel:
            content = {name: wheel.read(name) for name in wheel.namelist()}
        return unpacked, content

    def test_the_source_has_all_that_its_tests_need(self, built):
        unpacked, _ = built
        for folder in ('tests', 'docs', 'examples', 'hub_cards', 'timm_icasc', '.ci', '.github'):
            for file in (ROOT / folder).rglob('*'):
                if file.is_file() and '__pycache__' not in file.parts:
                    assert (unpacked / file.relative_to(ROOT)).is_file(), file
        for name in ('README.md', 'CHANGELOG.md', 'CITATION.cff', 'LICENSE', 'train_timm.py', 'timm_icasc_cli.py'):
            assert (unpacked / name).is_file(), name

    def test_the_wheel_has_the_weights_that_ship(self, built):
        """Without a link in the checkout: where a system has none, git leaves a text file."""
        assert not any(path.is_symlink() for path in (ROOT / 'timm_icasc').rglob('*'))
        for file in (ROOT / 'hub_cards').rglob('*'):
            if file.is_file():
                assert built[1][f'timm_icasc/hub_cards/{file.relative_to(ROOT / "hub_cards")}'] == file.read_bytes()
        for name in ('py.typed', 'paper/paper.yaml', 'recipes/digits_resnet20.yaml', 'cli/commands.py'):
            assert f'timm_icasc/{name}' in built[1]
        assert 'timm_icasc_cli.py' in built[1] and not any(name.startswith('tests') for name in built[1])

    def test_what_an_index_shows(self, built):
        text = next(text for name, text in built[1].items() if name.endswith('METADATA')).decode()
        assert f'Version: {timm_icasc.__version__}\n' in text and 'Description-Content-Type: text/markdown' in text
        assert 'Project-URL: Paper, https://arxiv.org/abs/1811.07484' in text
        shown = text.split('\n\n', 1)[1]
        assert shown.startswith('# timm_icasc') and '(https://arxiv.org/abs/1811.07484)' in shown
        assert not re.findall(r'\]\((?!https://|#)', shown), 'a link that leads nowhere'

    def test_with_an_address_the_links_lead_there(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr('setuptools.setup', lambda **_: None)
        describe = runpy.run_path(str(ROOT / 'setup.py'))['describe']
        readme, project = '![Maps](docs/a.png) [Text](docs/b.md#part) [c](#c) [d](https://d)', '[project.urls]\n'
        assert describe(readme, project) == ' Text [c](#c) [d](https://d)'
        assert describe('a\n\n![Maps](b.png)\n\n*Rows: c.*\n\nd *e*', project) == 'a\n\n\nd *e*'
        assert describe(readme, project + 'Source = "https://host/me/x/"\n') == (
            '![Maps](https://host/me/x/raw/main/docs/a.png) [Text](https://host/me/x/blob/main/docs/b.md#part) '
            '[c](#c) [d](https://d)')


class TestWorkflow:
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'tests.yml').read_text())

    def test_it_runs_the_projects_own_script(self):
        triggers = self.workflow[True]  # YAML 1.1 reads the key `on` as a truth value
        assert {'push', 'pull_request'} <= triggers.keys()
        steps = self.workflow['jobs']['tests']['steps']
        assert steps[-1]['run'] == 'bash ${{ matrix.script }}'
        rows = self.workflow['jobs']['tests']['strategy']['matrix']['include']
        scripts = {row['versions']: row['script'] for row in rows}
        assert scripts == {'oldest': '.ci/oldest', 'training': '.ci/run', 'newest': '.ci/run'}
        assert all((ROOT / script).is_file() for script in scripts.values())

    def test_oldest_and_newest(self):
        job = self.workflow['jobs']['tests']
        rows = {row['versions']: row['python'] for row in job['strategy']['matrix']['include']}
        assert rows['oldest'] == rows['training'] and f'requires-python = ">={rows["oldest"]}"' in PROJECT
        assert job['env']['PIP_CONSTRAINT'].endswith('/.github/${{ matrix.versions }}.txt')
        assert all((ROOT / '.github' / f'{name}.txt').is_file() for name in rows)

    @pytest.mark.parametrize('file, extras', [('oldest', ()), ('training', ('train', 'hub'))])
    def test_the_oldest_versions_are_those_that_the_package_allows(self, file, extras):
        pinned = dict(re.findall(r'^(\w+)==([\d.]+)$', (ROOT / '.github' / f'{file}.txt').read_text(), re.M))
        bounds = dict(re.findall(r'"(\w+)>=([\d.]+)"', re.search(r'\ndependencies = \[(.*?)\n\]', PROJECT, re.S)[1]))
        for extra in extras:
            bounds.update(re.findall(r'"(\w+)>=([\d.]+)"', re.search(rf'\n{extra} = \[(.*?)\]', PROJECT)[1]))
        assert {'torch', 'timm', 'huggingface_hub'} <= bounds.keys()
        for name, lowest in bounds.items():
            assert f'{pinned[name]}.0'.startswith(f'{lowest}.'), name

    def test_the_package_says_the_same_of_its_parts(self):
        assert f'train = ["timm>={version.TIMM_FOR_TRAINING}"]' in PROJECT
        assert f'hub = ["huggingface_hub>={version.HUB_FOR_TRANSFERS}"]' in PROJECT
        hub = (ROOT / 'docs' / 'hub.md').read_text()
        readme = (ROOT / 'README.md').read_text()
        oldest = re.search(r'"timm>=([\d.]+)"', PROJECT)[1]
        assert f'timm {oldest}' in readme and f'timm {version.TIMM_FOR_TRAINING}' in readme
        assert f'huggingface_hub {version.HUB_FOR_TRANSFERS}' in hub
