"""The documents: links and named files exist, sentences are short, examples and commands run."""
import re
from pathlib import Path

import pytest
import yaml
from helpers.commands import training_commands, training_options

from timm_icasc.attention import METHODS
from timm_icasc.cli import COMMANDS, main
from timm_icasc.training.argument_files import RECIPES
from timm_icasc.training.arguments import parse_args

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('docs', 'docs/evidence') for path in (ROOT / folder).glob('*.md'))
DOCUMENTS = ['README.md', 'CONTRIBUTING.md', *PAGES]
# Pages that programs write, or whose prose stands between what programs write.
GENERATED = ['docs/evidence/cifar20.md', 'docs/evidence/digits.md', 'docs/paper.md', 'docs/support.md']
# Those before came with longer sentences.
PLAIN = [
    'README.md', 'CONTRIBUTING.md',
    *(f'docs/{name}.md' for name in ('behaviour', 'cluster', 'explaining', 'hub', 'measuring', 'training')),
]
MOST_WORDS = 40
MOST_LINES = 170


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding='utf-8')


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', read(document), re.S | re.M)


def without_code(text: str) -> str:
    return re.sub(r'^```.*?^```$', '', text, flags=re.S | re.M)


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = without_code(document.read_text(encoding='utf-8'))
    headings = [heading.lower() for heading in re.findall(r'^#+ (.*)$', text, re.M)]
    return {re.sub(r'[^\w\- ]', '', heading).strip().replace(' ', '-') for heading in headings}


def sentences(text: str) -> list[str]:
    """The sentences of prose, without code, tables, headings and images; a list item ends one."""
    text = re.sub(r'<!--.*?-->', '', without_code(text), flags=re.S)
    lines = ['' if re.match(r'\s*(\||#|!\[)', line) else line for line in text.splitlines()]
    found = []
    for paragraph in re.split(r'\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )', '\n'.join(lines)):
        paragraph = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', paragraph)  # a link is read by its text
        paragraph = re.sub(r'`[^`]*`', 'code', paragraph)
        paragraph = re.sub(r'[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}', '', paragraph)
        paragraph = ' '.join(paragraph.split())
        parts = re.split(r'(?<=[.!?])["\')]*\s+(?=[A-Z"\'(]|code\b|\d)|:\s*$', paragraph)
        found += [part for part in parts if part and re.search(r'\w', part)]
    return found


def number_of_words(sentence: str) -> int:
    return sum(bool(re.search(r'\w', word)) for word in sentence.split())


def test_sentences_are_told_apart():
    text = ('# A heading\n\nOne `a. b` two. Three\n[four](x.md)! (Five.)\n\n| six. | seven |\n\n'
            '```\neight. Nine\n```\n- ten\n- 1.5 x\n')
    assert sentences(text) == ['One code two.', 'Three four!', '(Five.)', '- ten', '- 1.5 x']
    assert number_of_words('- ten 1.5 x -') == 3


@pytest.mark.parametrize('document', PLAIN)
def test_sentences_are_short(document):
    assert [part for part in sentences(read(document)) if number_of_words(part) > MOST_WORDS] == []


def test_readme_is_short():
    assert len(read('README.md').splitlines()) <= MOST_LINES


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_somewhere(document):
    folder, broken = (ROOT / document).parent, []
    for target in re.findall(r'\]\(([^)\s]+)\)', without_code(read(document))):
        path, _, anchor = target.partition('#')
        if target.startswith(('http://', 'https://')):
            continue
        file = folder / path if path else ROOT / document
        if not file.exists() or anchor and anchor not in anchors(file):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('page', PAGES)
def test_pages_end_with_their_code(page):
    last = read(page).rstrip().splitlines()[-1]
    assert re.fullmatch(r'Code: `[^`]+`(, `[^`]+`)*\.', last)
    missing = [path for path in re.findall(r'`([^`]+)`', last)
               if not ((ROOT / path).is_dir() if path.endswith('/') else (ROOT / path).is_file())]
    assert not missing


def test_files_named_in_the_tables_of_contributing_exist():
    """From the root of the repository or of the package; NAME stands for a file to be made."""
    rows = ' '.join(line for line in read('CONTRIBUTING.md').splitlines() if line.startswith('|'))
    named = [path for path in re.findall(r'`([\w./-]+)`', rows) if '/' in path or '.' in path]
    missing = [path for path in named if 'NAME' not in path
               and not (ROOT / path).exists() and not (ROOT / 'timm_icasc' / path).exists()]
    assert len(named) > 30 and not missing


@pytest.mark.parametrize('file', DOCUMENTS + sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'docs/evidence').iterdir() if path.suffix in ('.yaml', '.py')))
def test_files_named_from_the_root_exist(file):
    """NAME and FILE stand for one of the user's."""
    named = re.findall(
        r'(?<![\w./-])(?:docs|tests|timm_icasc|hub_cards)/[\w./-]+\.(?:py|yaml|md|json)(?!\.?\w)', read(file))
    assert not [path for path in named if not re.search('NAME|FILE', path) and not (ROOT / path).exists()]


@pytest.mark.parametrize('page', [page for page in DOCUMENTS if blocks(page, 'python')])
def test_examples_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in blocks(page, 'python'):
        if 'icasc_digits' not in code:  # those weights are here
            code = code.replace('pretrained=True', 'pretrained=False')
        exec(compile(code, page, 'exec'), {})


@pytest.mark.parametrize('page', [page for page in DOCUMENTS if page not in GENERATED])
def test_options_of_training_exist(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for line in training_commands('\n'.join(blocks(page, 'bash'))):
        parse_args(training_options(line, tmp_path))


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_exist(document):
    named = re.findall(r'^timm-icasc (\w+)', '\n'.join(blocks(document, 'bash')), re.M)
    assert set(named) <= set(COMMANDS)


def test_readme_shows_every_command():
    readme = read('README.md')
    assert all(re.search(rf'timm-icasc {name}\b|`{name}`', readme) for name in COMMANDS)


def test_every_recipe_is_in_the_table_of_training():
    """With its network's data set, and whether it is from scratch and with ICASC, as its file says."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in read('docs/training.md').splitlines()
            if line.startswith('| `') and '.yaml`' in line]
    assert sorted(row[0].strip('`') for row in rows) == sorted(path.name for path in RECIPES.glob('*.yaml'))
    for recipe, data, network, trained, _ in rows:
        text = (RECIPES / recipe.strip('`')).read_text()
        options = yaml.safe_load(text)
        if 'model' not in options:
            assert (data, network, 'data_dir' in options) == ('any', 'any', False)
            continue
        stem = recipe.strip('`').split('_')[0].replace('cub200', 'cub')
        assert ''.join(filter(str.isalnum, data.lower())).replace('pascal', '').startswith(
            {'digits': 'scikitlearn'}.get(stem, stem))
        *_, depth = re.findall(r'\d+|Lite0', network.split(',')[0])
        assert depth.lower() in options['model']
        pretrained = options.get('pretrained') or '--pretrained-path' in text
        assert trained.startswith('from ImageNet weights' if pretrained else 'from scratch')
        assert ('alone' in trained and 'L_AS' not in trained) == (not options.get('icasc', True))


def test_every_method_is_in_the_table_of_measuring():
    """With whether it may be trained with, as its row of the code says."""
    _, table = read('docs/measuring.md').split('## Kinds of maps')
    rows = [line.strip('| ').split(' | ') for line in table.splitlines() if line.startswith('| `')]
    assert {name.strip('`'): trainable for name, _, _, trainable, _ in rows} == {
        name: 'yes' if method.trainable else 'no' for name, method in METHODS.items()}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_no_reading_is_called_the_papers_letter(document):
    """The paper does not say what carries gradient."""
    assert not re.search(r"(paper's|its|the) letter\b", read(document))


def test_who_publishes_is_told_of_the_pictures(capsys):
    """attention.png shows images of the user's: in README, in the page on publishing and in --help."""
    assert 'your images and class names only if you ask' in read('README.md')
    assert 'attention.png' in read('docs/hub.md')
    with pytest.raises(SystemExit):
        main(['push', '--help'])
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'attention.png shows six of your validation images' in shown and '--figure' in shown
    with pytest.raises(SystemExit):
        parse_args(['--help'])
    assert 'with its figure of validation images only where' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize('document', DOCUMENTS)
def test_nothing_is_left_to_fill_in(document):
    assert not re.search(r'TODO|@[A-Z]+@', read(document))


def test_readme_begins_with_pretrained_weights_and_the_digits():
    assert all('pretrained=True' in code for code in blocks('README.md', 'python'))
    assert yaml.safe_load((RECIPES / 'digits_resnet20.yaml').read_text())['dataset'] == 'digits'
