"""The rows of `rows.py` as text and as a page of Markdown."""
from collections.abc import Sequence
from typing import Any

from ..foreign_text import markdown_text, printable
from ..runs import tables
from .rows import DIGITS, FIGURES, NAMES, title_of

HEAD = '''# The paper's tables and figures

Written by {command}. The paper: Wang et al., "Sharpen Focus: Learning with Attention
Separability and Consistency", ICCV 2019.
'''


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, float) and 'settings' not in row:
        digits = next((DIGITS[metric] for metric in DIGITS if NAMES[metric] == row.get('measure')), 2)
        return f"{value:{'+' if 'gain' in key else ''}.{digits}f}"
    return '' if value is None else str(value)


def _cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows as text, without the columns that are empty throughout."""
    hidden = ('table', 'command') + (() if rows[0]['table'] == FIGURES else ('needs',))
    keys = [
        k for k in dict.fromkeys(key for row in rows for key in row) if k not in hidden
        and any(row.get(k) not in (None, '') for row in rows)]
    more = [k for k in keys if k.startswith('gain over')]  # of one table alone
    if more:
        keys = [k for k in keys if k not in more]
        keys[keys.index('gain') + 1:keys.index('gain') + 1] = more
    return [{k: _cell({k: None, **row}, k) for k in keys} for row in rows]


def show(rows: Sequence[dict[str, Any]], content: dict[str, Any], markdown: bool) -> str:
    told = {
        title_of(e): f"Here in its place: {e['here']}"
        for e in (content['segmentation'], *content['experiments']) if e.get('here')}
    told[content['settings']['title']] = content['settings']['note']
    parts = ['\n'.join(f'- {note}' for note in content['notes'])]

    def add(title: str, own: Sequence[dict[str, Any]]) -> None:
        cells = _cells(own)
        parts.append(
            f'## {markdown_text(title)}\n\n{tables.markdown(cells)}' if markdown else
            f'{printable(title)}\n{tables.text(cells)}')

    for title in dict.fromkeys(row['table'] for row in rows):
        own = [row for row in rows if row['table'] == title]
        add(title, own)
        if title != FIGURES:
            parts.extend(f'Not run: needs {needs}.' for needs in dict.fromkeys(
                row['needs'] for row in own if row.get('needs')))
        if title in told:
            parts.append(told[title])
        commands = dict.fromkeys(row['command'] for row in own if row.get('command'))
        if commands:
            parts.append('\n'.join(['```bash', *commands, '```'] if markdown else [f'  {c}' for c in commands]))
    contradictions = content['contradictions']
    parts.append(
        f"{'## ' * markdown}{contradictions['title']}" + '\n\n'[:1 + markdown]
        + '\n'.join(f'- {sentence}' for sentence in contradictions['sentences']))
    add(content['open']['title'], [{'table': content['open']['title'], **row} for row in content['open']['rows']])
    if markdown:
        parts.append('Code: `timm_icasc/paper/`.')
    return '\n\n'.join(parts) + '\n'
