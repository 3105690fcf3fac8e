"""The record of what ICASC supports (`timm-icasc layers --json`): file, table and summary."""
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import ICASCError
from ..foreign_files import read_json
from ..foreign_text import code_span, markdown_text
from ..runs.files import write_text
from ..runs.provenance import installed_versions
from ..runs.tables import markdown

__all__ = ['MARKS', 'load_record', 'row', 'summary', 'support_page', 'timms', 'write_record']

TITLE = '# Supported architectures'

MARKS = 'support'  # the name of the two lines around the summary

LEVELS = ('order 2', 'order 1 only', 'unsupported')


def load_record(path: Path | None, img_size: int | None = None) -> dict[str, Any]:
    """The record in the file, if it is of the versions installed here and of this image size; else an empty one.

    Args:
        path: The file; None for a record that is not kept.
        img_size: Height and width of the images; None for each architecture's own.

    Raises:
        ICASCError: The file holds something else, or records of other versions or another size.
    """
    if path is not None and (path.is_dir() or path.suffix == '.md'):
        raise ICASCError(f"`path`: '{path}' must be a file such as support.json; the table goes beside it, as .md.")
    table = None if path is None else path.with_suffix('.md')
    if table and table.is_file() and not table.read_text(encoding='utf-8', errors='replace').startswith(TITLE):
        raise ICASCError(f"`path`: the table would go to '{table}', which holds something else: name another file.")
    if path is None or not path.exists():
        return {'versions': installed_versions(), 'img_size': img_size, 'models': {}}
    try:
        record = read_json(path)
        versions = record['versions']
        support_page(record), [row(name, result) for name, result in record['models'].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as e:
        raise ICASCError(f"`path`: '{path}' is not a record of layers; name another file.") from e
    if versions != installed_versions():
        raise ICASCError(
            f"`path`: '{path}' was made with {versions}, here are {installed_versions()}; remove it to begin anew.")
    if record.get('img_size') != img_size:
        size = record.get('img_size') or 'the default'
        raise ICASCError(f"`img_size`: '{path}' was made with {size}; name another file.")
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record, one architecture a line, so that an interrupt leaves the old file or the new one."""
    head = {**record, 'models': None}
    models = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(r)}' for name, r in sorted(record['models'].items()))
    text = json.dumps(head, indent=1, sort_keys=True).replace('"models": null', f'"models": {{\n{models}\n }}')
    write_text(path, text + '\n')


def level(result: dict[str, Any]) -> str:
    """One of `LEVELS`."""
    orders = [isinstance(result.get(f'order{order}'), float) and result[f'order{order}'] > 0 for order in (1, 2)]
    return LEVELS[0] if all(orders) else LEVELS[1] if orders[0] else LEVELS[2]


def _reason(result: dict[str, Any]) -> str:
    return next(str(result[key]) for key in ('error', 'order1', 'order2') if isinstance(result.get(key), str))


def _cell(layer: dict[str, Any]) -> str:
    prefix = f" {layer['prefix_tokens']}+" if layer.get('prefix_tokens') else ' '
    output = f"[{layer['output_index']}]" if layer.get('output_index') else ''
    return f"{layer['path']}{output} {layer['layout']}{prefix}{'x'.join(map(str, layer['grid']))}"


def row(name: str, result: dict[str, Any]) -> str:
    """One architecture: inner layer, last layer (path, layout, prefix tokens + grid), and what works."""
    if 'inner' not in result:
        return f"{name}: {_reason(result)}"
    text = f"{name}: inner {_cell(result['inner'])}, last {_cell(result['last'])}, {level(result)}"
    if result['nonzero'] < 1:
        text += f", gradient on {result['nonzero']:.0%} of the last grid"
    return text if level(result) == LEVELS[0] else f'{text} ({_reason(result)})'


def _is_hierarchical(result: dict[str, Any]) -> bool:
    return 'inner' in result and math.prod(result['inner']['grid']) > math.prod(result['last']['grid'])


def _is_never_negative(result: dict[str, Any]) -> bool:
    return (result.get('negative') or [1., 1.])[1] == 0


def _mean_of_maps(results: list[dict[str, Any]], method: str, number: int) -> str:
    """Mean over architectures of one of the shares of `map_check`; '-' where no map was heard."""
    found = [maps[method][number] for maps in (r.get('maps') for r in results) if maps and maps[method]]
    return f'{sum(found) / len(found):.0%}' if found else '-'


def _count(results: list[dict[str, Any]]) -> str:
    counts = Counter(map(level, results))
    return ', '.join(f'{counts[name]:,} {name}' for name in LEVELS if counts[name])


def _family(result: dict[str, Any]) -> str:
    return result.get('family', 'unknown').rpartition('.')[2]


def timms(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The architectures without those that this package adds."""
    return {name: r for name, r in record['models'].items() if not r.get('family', '').startswith('timm_icasc')}


def _totals(record: dict[str, Any]) -> list[str]:
    results = list(timms(record).values())
    if not results:
        return ["No architecture of timm's own is among them."]
    reached = [r for r in results if 'inner' in r]
    hierarchical = sum(map(_is_hierarchical, reached))
    lines = [
        f"Of {len(results):,} architectures of timm {markdown_text(record['versions']['timm'])} "
        f'({len(set(map(_family, results)))} modules): **{_count(results)}**.']
    if reached:
        lines += [
            f'{hierarchical:,} have an inner layer of about twice the resolution of the last, '
            f'{len(reached) - hierarchical:,} are isotropic (3/4 of the depth). The class scores depend on the '
            f"whole grid of the last layer in {sum(r['nonzero'] == 1 for r in reached):,}, and its values are never "
            f'below 0 in {sum(map(_is_never_negative, reached)):,}.',
            '', 'Do the maps find what the scores depend on, with random weights? The last feature is flattened where '
            'a map is highest, a quarter of it: Grad-CAM takes more of its own class than '
            f"{_mean_of_maps(reached, 'grad_cam', 0)} of random quarters, and more of it than of "
            f"{_mean_of_maps(reached, 'grad_cam', 1)} of the other classes; `ach` {_mean_of_maps(reached, 'ach', 0)} "
            f"and {_mean_of_maps(reached, 'ach', 1)}. Chance is 50%."]
    if 'seconds' in record:
        lines[-1] += (
            f" The sweep took {record.get('processor_seconds', 0) / 60:.0f} minutes of processor time, "
            f"{record['seconds'] / 60:.0f} by the clock in {record['jobs']} processes.")
    missing = record.get('total', 0) - len(record['models'])
    if missing > 0:
        lines += ['', f'**The sweep is not finished**: {missing:,} architectures have not been looked at.']
    return lines


def _falling_short(record: dict[str, Any]) -> list[str]:
    """Table of every architecture that does not reach order 2, with its reason; nothing if there is none."""
    rows = [
        {'falls short': code_span(name), 'level': level(r), 'reason': _reason(r)}
        for name, r in sorted(timms(record).items()) if level(r) != LEVELS[0]]
    return ['', markdown(rows)] if rows else []


def summary(record: dict[str, Any]) -> str:
    """Markdown: totals, the sweep's time, architectures per module, and each that falls short, with its reason."""
    families = Counter(map(_family, timms(record).values()))
    by_number = sorted(families.items(), key=lambda item: (-item[1], item[0]))
    named = ', '.join(f'{markdown_text(family)} {number}' for family, number in by_number)
    lines = ['', f'By module: {named}.'] if named else []
    return '\n'.join([*_totals(record), *lines, *_falling_short(record)])


def support_page(record: dict[str, Any]) -> str:
    """Markdown: totals, what falls short, a table of families, and every architecture with its layers."""
    families: dict[str, list[dict[str, Any]]] = {}
    for result in record['models'].values():
        families.setdefault(_family(result), []).append(result)
    versions = markdown_text(', '.join(f'{name} {version}' for name, version in sorted(record['versions'].items())))
    lines = [
        TITLE, '', f'Made by `timm-icasc layers` with {versions}; not to be edited.',
        '', *_totals(record), *_falling_short(record), '',
        "By module. Non-zero: share of the last layer's grid that the class scores depend on, the least of all. Never",
        "negative: architectures whose last layer has no value below 0. `ach`, Grad-CAM: share of random quarters of",
        "the last feature that take less of a class's score than the quarter where its map is highest (chance: 50%),",
        'with random weights. A class token or a second branch knows of a score what no map of one feature shows.', '']
    rows = []
    for family, results in sorted(families.items()):
        counts = Counter(map(level, results))
        least = min((r['nonzero'] for r in results if 'inner' in r), default=0)
        rows.append({
            'module': family, 'architectures': len(results), **{name: counts[name] for name in LEVELS},
            'hierarchical': sum(map(_is_hierarchical, results)), 'non-zero': f'{least:.0%}',
            'never negative': sum(map(_is_never_negative, results)),
            '`ach`': _mean_of_maps(results, 'ach', 0), 'Grad-CAM': _mean_of_maps(results, 'grad_cam', 0)})
    lines += [
        markdown(rows), '',
        'Layers: module path, `[n]` the n-th of several outputs, layout, prefix tokens + grid. Below 0: share of the',
        'values of the inner and the last layer, with random weights.', '']
    rows = []
    for name, result in sorted(record['models'].items()):
        size = result.get('input_size', [0, 0, 0])
        rows.append({'architecture': name, 'input': f'{size[1]}x{size[2]}', **{
            place: _cell(result[place]) if place in result else '-' for place in ('inner', 'last')},
            'below 0': ', '.join(f'{share:.0%}' for share in result.get('negative') or ()) or '-'})
    lines += [markdown(rows), '', 'Code: `timm_icasc/support/`.']
    return '\n'.join(lines) + '\n'
