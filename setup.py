"""What pyproject.toml cannot say: where the weights that ship lie, and a description whose links lead somewhere."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def describe(readme: str, project: str) -> str:
    """The README as a package index shows it, where its relative links and images would lead nowhere.

    Args:
        readme: README.md.
        project: pyproject.toml. With `Source` among its addresses, links and images go there; without, of a link its
            text stays, and of an image nothing, nor its caption below.
    """
    found = re.search(r'^Source = "(https://[^"]+?)/?"$', project, re.M)
    relative = r'((?!https?:|#|mailto:)[^)]+)'
    image, link = rf'!\[([^]]*)\]\({relative}\)', rf'(?<!!)\[([^]]+)\]\({relative}\)'
    if not found:
        return re.sub(link, r'\1', re.sub(rf'{image}(\n\n\*[^*]+\*\n)?', '', readme))
    return re.sub(link, rf'[\1]({found[1]}/blob/main/\2)', re.sub(image, rf'![\1]({found[1]}/raw/main/\2)', readme))


setup(
    # A folder beside the package, and in it when it is built: no link in the checkout is needed for that.
    packages=[*find_packages(include=['timm_icasc*']), 'timm_icasc.hub_cards'],
    package_dir={'timm_icasc.hub_cards': 'hub_cards'},
    py_modules=['timm_icasc_cli'],
    long_description=describe(
        (ROOT / 'README.md').read_text(encoding='utf-8'), (ROOT / 'pyproject.toml').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
)
