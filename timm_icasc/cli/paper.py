"""Every table and figure of the paper: the command that makes it, the paper's figures, finished runs beside them.

    timm-icasc paper                            each table and figure with its command, and what it needs
    timm-icasc paper output                     with every run below the folder, mean and deviation over seeds
    timm-icasc paper output --output paper.md   also written to a file (.md, .json or .csv)

A run is a folder with results.json and args.yaml, as train_timm.py leaves it, or with segmentation.json (Table 2).
Runs that differ in the seed alone are averaged. A run stands in a row of the paper where its model, epochs, batch size,
image size and splits are the recipe's; the note names what else differs. The value is that of the last epoch, with what
`timm-icasc eval` has added (ten crops). The paper's figures, each with its source, are in paper.yaml.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ICASCError
from ..paper.rows import HEAD, PAPER, figure_rows, paper_rows, segmentation_rows, setting_rows
from ..runs.folder import check_folders, collect_runs, collect_segmentations
from ..runs.tables import format_table, write_csv, write_json


def _cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows as text, without the columns that are empty throughout."""
    keys = [k for k in rows[0] if k not in ('table', 'source', 'command')
            and any(row[k] not in (None, '') for row in rows)]
    return [{k: '' if row[k] is None else str(row[k]) for k in keys} for row in rows]


def _show(rows: Sequence[dict[str, Any]], content: dict[str, Any], markdown: bool) -> str:
    told = {e['title']: f"Here in its place: {e['here']}"
            for e in (content['segmentation'], *content['experiments']) if e.get('here')}
    told[content['settings']['title']] = content['settings']['note']
    parts = ['\n'.join(f'- {note}' for note in content['notes'])]
    for title in dict.fromkeys(row['table'] for row in rows):
        own = [row for row in rows if row['table'] == title]
        cells = _cells(own)
        if markdown:
            lines = [f"| {' | '.join(cells[0])} |", '|' + '---|' * len(cells[0])]
            lines += [f"| {' | '.join(row.values())} |" for row in cells]
            parts.append(f'## {title}\n\n' + '\n'.join(lines))
        else:
            parts.append(f'{title}\n{format_table(cells)}')
        note = told.get(title) or told.get(title.split(', ', 1)[-1])
        if note:
            parts.append(note)
        commands = dict.fromkeys(row['command'] for row in own if row.get('command'))
        if commands:
            parts.append('\n'.join(['```bash', *commands, '```'] if markdown else [f'  {c}' for c in commands]))
    sources = dict.fromkeys(row['source'] for row in rows if row.get('source'))
    parts.append(('## Sources\n\n' if markdown else 'Sources of the column "paper":\n')
                 + '\n'.join(f'- {source}' for source in sources))
    if markdown:
        parts.append('Code: `timm_icasc/paper/`.')
    return '\n\n'.join(parts) + '\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folders', nargs='*', type=Path, metavar='DIR', help='folders of runs, searched to any depth')
    parser.add_argument('--output', type=Path, metavar='FILE', help='also write the tables: .md, .json or .csv')


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.suffix not in ('.md', '.json', '.csv'):
        raise ICASCError(f"--output ends in .md, .json or .csv, got '{args.output}'.")
    check_folders(args.folders)
    runs, segmentations = collect_runs(args.folders), collect_segmentations(args.folders)
    if args.folders and not runs and not segmentations:
        raise ICASCError(f"no finished run (results.json) below {', '.join(map(str, args.folders))}.")
    content = yaml.safe_load(PAPER.read_text())
    rows = [*setting_rows(content), *segmentation_rows(segmentations, content['segmentation']),
            *paper_rows(runs, content), *figure_rows(content)]
    print(_show(rows, content, markdown=False), end='')
    if args.output:
        try:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            if args.output.suffix == '.md':
                folders = ''.join(f' {folder}' for folder in args.folders)
                head = HEAD.format(folders=folders, name=args.output)
                args.output.write_text(f'{head}\n{_show(rows, content, markdown=True)}', encoding='utf-8')
            else:
                (write_json if args.output.suffix == '.json' else write_csv)(args.output, rows)
        except OSError as e:
            raise ICASCError(f"--output: cannot write '{args.output}': {e.strerror}.") from e
    return 0
