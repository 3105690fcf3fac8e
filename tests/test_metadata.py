"""What others read of the project: its citation, its types, its workflow."""
import re
from pathlib import Path

import yaml

import timm_icasc

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


def test_the_source_distribution_has_the_examples():
    manifest = (ROOT / 'MANIFEST.in').read_text()
    assert 'recursive-include examples *.py *.sh' in manifest and 'CITATION.cff' in manifest


class TestWorkflow:
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'tests.yml').read_text())

    def test_it_runs_the_projects_own_script(self):
        triggers = self.workflow[True]  # YAML 1.1 reads the key `on` as a truth value
        assert {'push', 'pull_request'} <= triggers.keys()
        steps = self.workflow['jobs']['tests']['steps']
        assert steps[-1]['run'] == 'bash .ci/run' and (ROOT / '.ci' / 'run').is_file()

    def test_oldest_and_newest(self):
        job = self.workflow['jobs']['tests']
        rows = {row['versions']: row['python'] for row in job['strategy']['matrix']['include']}
        assert rows.keys() == {'oldest', 'newest'} and f'requires-python = ">={rows["oldest"]}"' in PROJECT
        assert job['env']['PIP_CONSTRAINT'].endswith('/.github/${{ matrix.versions }}.txt')
        assert all((ROOT / '.github' / f'{name}.txt').is_file() for name in rows)

    def test_the_oldest_versions_are_those_that_the_package_allows(self):
        pinned = dict(re.findall(r'^(\w+)==([\d.]+)$', (ROOT / '.github' / 'oldest.txt').read_text(), re.M))
        for name, lowest in re.findall(r'"(\w+)>=([\d.]+)"', PROJECT.split('[project.optional')[0]):
            if name != 'setuptools':
                assert f'{pinned[name]}.0'.startswith(f'{lowest}.'), name
