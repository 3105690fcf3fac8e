"""Every table and figure of the paper: its values, the command that makes each, finished runs beside them.

    timm-icasc paper                            each table and figure with its command, and what it needs
    timm-icasc paper output                     with every run below the folder, mean and deviation over seeds
    timm-icasc paper output --output paper.md   also written to a file (.md, .json or .csv)

A run is a folder with results.json and args.yaml, as timm-icasc train leaves it, or with segmentation.json (Table 2).
Runs that differ in the seed alone are averaged. A run stands in a row of the paper where its options are those of the
row, or another reading of them; the note names what differs among those that the paper leaves open. The value is that
of the last epoch, with what `timm-icasc eval` has added (ten crops, the KS chart). The paper's values are in
paper.yaml.
"""
import argparse
from pathlib import Path

from ..errors import ICASCError
from ..foreign_files import read_yaml
from ..foreign_text import code_span
from ..paper.paper_page import HEAD, show
from ..paper.rows import PAPER, class_rows, figure_rows, paper_rows, segmentation_rows, setting_rows
from ..runs.files import write_text
from ..runs.find import check_file_to_write, check_folders, collect_runs, collect_segmentations
from ..runs.folder import RESULTS
from ..runs.tables import write_csv, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folders', nargs='*', type=Path, metavar='DIR', help='folders of runs, searched to any depth')
    parser.add_argument('--output', type=Path, metavar='FILE', help='also write the tables: .md, .json or .csv')


def run(args: argparse.Namespace) -> int:
    if args.output and args.output.suffix not in ('.md', '.json', '.csv'):
        raise ICASCError(f"--output ends in .md, .json or .csv, got '{args.output}'.")
    if args.output:
        check_file_to_write(args.output, 'output')
    check_folders(args.folders)
    runs, segmentations = collect_runs(args.folders), collect_segmentations(args.folders)
    if args.folders and not runs and not segmentations:
        raise ICASCError(f"no finished run ({RESULTS}) below {', '.join(map(str, args.folders))}.")
    content = read_yaml(PAPER)
    rows = [
        *setting_rows(content), *segmentation_rows(segmentations, content['segmentation']),
        *paper_rows(runs, content), *class_rows(runs, content), *figure_rows(content)]
    print(show(rows, content, markdown=False), end='')
    if args.output:
        if args.output.suffix == '.md':
            folders = ''.join(f' {folder}' for folder in args.folders)
            head = HEAD.format(command=code_span(f'timm-icasc paper{folders} --output {args.output}'))
            write_text(args.output, f'{head}\n{show(rows, content, markdown=True)}')
        else:
            (write_json if args.output.suffix == '.json' else write_csv)(args.output, rows)
    return 0
