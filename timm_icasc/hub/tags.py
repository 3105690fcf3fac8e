"""Weight tags: `timm.create_model('ARCHITECTURE.TAG', pretrained=True)` for the models of hub_cards/.

A model whose folder holds its weights is loaded from there; one that is published is fetched at its pinned commit.
Either way its sha256 is compared first, and what goes wrong is said as `repo@revision: cause; remedy`. To that end the
architecture's entry point in timm's registry is wrapped; every other tag, and every other call, goes through unchanged.
"""
import dataclasses
import functools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.models import register_model

from ..errors import HubError
from .model_folder import CONFIG, METADATA_KEY, WEIGHTS, file_sha256

if TYPE_CHECKING:
    from .download import Download

__all__ = [
    'CARDS', 'WEIGHT_TAGS', 'TEMPLATE', 'WeightTag', 'find_cards', 'find_tags', 'record_path',
    'register_tags',
]

TEMPLATE = 'card.md.j2'

MARK = '_timm_icasc_original'


def find_cards(package: Path) -> Path:
    """The folder hub_cards: inside the package where it is installed, beside it in a checkout."""
    inside, package = package / 'hub_cards', package.resolve()
    return next((path for path in (inside, package.parent / 'hub_cards') if (path / TEMPLATE).is_file()), inside)


CARDS = find_cards(Path(__file__).parent.parent)


@dataclasses.dataclass(frozen=True)
class WeightTag:
    """One set of weights.

    Attributes:
        name: 'ARCHITECTURE.TAG'.
        sha256: Of model.safetensors.
        config: Entries of timm's `PretrainedCfg`, with its tuples; sources left out.
        model_args: What the architecture is built with, as in its folder's config.json.
        shipped: Folder that holds the weights, or None.
        hub: 'repo_id' and 'revision' (a commit) where they are published, or None.
        noted: What its config.json notes down of the run.
    """
    name: str
    sha256: str
    config: dict[str, Any]
    shipped: Path | None = None
    hub: dict[str, str] | None = None
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    noted: dict[str, Any] = dataclasses.field(default_factory=dict)

    def fetch(self, cache_dir: Path | None = None) -> 'Download':
        """The weights that are published, as of `download.fetch`."""
        # Not at the top: what it needs of huggingface_hub must not stand in the way of `import timm_icasc`.
        from .download import fetch
        return fetch(self.hub['repo_id'], self.hub['revision'], self.sha256, cache_dir)

    def folder(self, cache_dir: Path | None = None) -> Path:
        """Folder with the verified weights; fetched where they are not shipped.

        Raises:
            HubError: As of `download.fetch`.
        """
        if self.shipped is None:
            return self.fetch(cache_dir).folder
        if file_sha256(self.shipped / WEIGHTS) != self.sha256:
            raise HubError(
                f"{self.name}: '{self.shipped / WEIGHTS}' is damaged (its sha256 is not that of its {CONFIG}); install "
                f'timm_icasc again.')
        return self.shipped

    def pretrained_cfg(self) -> Any:
        """As timm's registry takes it."""
        kind = type(timm.get_pretrained_cfg('resnet18'))
        known = {field.name for field in dataclasses.fields(kind)}
        source = {'file': str(self.shipped / WEIGHTS)} if self.shipped is not None else \
            {'hf_hub_id': f"{self.hub['repo_id']}@{self.hub['revision']}", 'hf_hub_filename': WEIGHTS}
        entries = {name: value for name, value in self.config.items() if name in known and 'hub' not in name}
        return kind(**entries, **source)


WEIGHT_TAGS: dict[str, WeightTag] = {}


def record_path(folder: Path) -> Path:
    """The file that says where the model of a hub_cards/ folder is published, and at which commit."""
    return folder.parent / f'{folder.name}.hub.json'


def _with_tuples(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries of a JSON file, which knows lists alone, as timm writes them in Python."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entries.items()}


def find_tags(cards: Path = CARDS) -> dict[str, WeightTag]:
    """The models of a hub_cards folder that are shipped or published.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not cards.is_dir():
        raise FileNotFoundError(f"no folder '{cards}'; install timm_icasc again")
    found = {}
    for path in sorted(cards.glob(f'*/{CONFIG}')):
        folder, config = path.parent, json.loads(path.read_text(encoding='utf-8'))
        record = record_path(folder)
        hub = json.loads(record.read_text()) if record.is_file() else None
        shipped = folder if (folder / WEIGHTS).is_file() else None
        if shipped is None and hub is None:
            continue
        entries = _with_tuples({**config['pretrained_cfg'], 'label_names': config.get('label_names')})
        noted = config[METADATA_KEY]
        sha256 = noted['sha256'] if shipped else hub['sha256']
        found[folder.name] = WeightTag(
            folder.name, sha256, entries, shipped, hub, _with_tuples(config.get('model_args') or {}), noted)
    return found


def _checked(original: Callable) -> Callable:
    """The entry point of an architecture, with the weights of our tags verified before timm loads them.

    Of a tag of ours it builds what its weights fit: timm takes the arguments of the model from a config.json alone, and
    not from a tag. What the caller says goes first.
    """
    @functools.wraps(original)
    def entrypoint(pretrained: bool = False, **kwargs):
        tag, overlay = kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay') or {}
        ours = WEIGHT_TAGS.get(f'{original.__name__}.{tag}') if isinstance(tag, str) else None
        for name, value in (ours.model_args if ours is not None else {}).items():
            kwargs.setdefault(name, value)
        if pretrained and ours is not None and not {'file', 'url', 'state_dict', 'hf_hub_id'} & set(overlay):
            folder = ours.folder(kwargs.get('cache_dir'))
            kwargs['pretrained_cfg_overlay'] = {**overlay, 'file': str(folder / WEIGHTS)}
        return original(pretrained=pretrained, **kwargs)
    setattr(entrypoint, MARK, original)
    return entrypoint


def _register(tagged: WeightTag) -> None:
    architecture, _, tag = tagged.name.partition('.')
    current = timm.models.model_entrypoint(architecture)
    original = getattr(current, MARK, current)
    default_cfg = sys.modules[original.__module__].default_cfgs[architecture]
    if tag not in default_cfg.tags:
        default_cfg.tags.append(tag)  # last: the first tag is what `pretrained=True` means without a tag
    default_cfg.cfgs[tag] = tagged.pretrained_cfg()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=f'Overwriting {architecture} in registry')
        register_model(_checked(original))


def register_tags(tags: dict[str, WeightTag] | None = None) -> None:
    """Register weight tags with timm, again and again if need be; where timm has changed, warn and go without."""
    try:
        tags = find_tags() if tags is None else tags
        WEIGHT_TAGS.update(tags)
        for tagged in tags.values():
            _register(tagged)
    except Exception as e:  # timm's internals are no interface: whatever they have become, the import must go on
        remedy = '; `timm-icasc pull TAG` gets their weights' if WEIGHT_TAGS else ''
        warnings.warn(
            f'timm_icasc: its weight tags are not registered with timm {timm.__version__} '
            f'({type(e).__name__}: {e}){remedy}.', stacklevel=2)
