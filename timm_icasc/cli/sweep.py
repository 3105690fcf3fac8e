"""Run a study, variants x seeds of timm-icasc train, and say what it has shown.

    timm-icasc sweep FILE.yaml                          go on until every run has its record
    timm-icasc sweep FILE.yaml --jobs 2 --minutes 50    two runs at a time; stop after 50 minutes, go on next time
    timm-icasc sweep FILE.yaml --part 2/8               the second of eight shares, each a job of a cluster
    timm-icasc sweep FILE.yaml --report                 run nothing; tables and curves of the records, into the page
    timm-icasc sweep FILE.yaml --report --baseline NAME tables against another variant than the file's, page as it is
    timm-icasc sweep *.yaml --report                    of several studies

Runs that have a record are skipped, half-done ones resumed; stop with Ctrl-C or SIGTERM at any time. A run that fails
does not stop the others: the sweep shows its last lines, ends with exit code 1, and tries it again next time.

Parts may run at the same time, in the same folders, on several machines: each run is in one part of the N, whatever is
done already, and records of all parts make the page together. Neighbours stay together, seed by seed.

Exit codes: 0, no run of these has failed, though some may be left to do (--minutes); 1, a run has failed; 2, the study
or an option is at fault, or another sweep is at work there; 130 and 143, stopped by Ctrl-C and SIGTERM.

    baseline: cross-entropy           # what the variants are compared with, seed by seed
    seeds: [0, 1, 2]
    common:                           # options of timm-icasc train for all runs; 'config' is a recipe or relative to
                                      # this file, other paths are relative to the working directory
      config: recipe.yaml
      data_dir: DIR
    variants:                         # name: options of timm-icasc train
      cross-entropy: {icasc: false}
      order-1: {icasc_order: 1}
      from-trained: {initial_checkpoint: 'base-seed{seed}/last.pth.tar'}  # each seed its own; the quotes are needed
    evaluate: {val_split: test}       # options of timm-icasc eval, for the last checkpoint
    records: records/NAME             # folder of the records, relative to this file (default: records/NAME)
    report: evidence.md               # page, relative to this file, with the lines <!-- study NAME begins --> and
                                      # <!-- study NAME ends -->
"""
import argparse
import re
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import ICASCError
from ..foreign_text import printable
from ..runs.find import refuse_unwritable
from ..runs.tables import text
from ..sweep.evidence_page import accuracy_table, measure_tables, write_page
from ..sweep.run_record import check_same_images, check_unchanged, read_records
from ..sweep.runner import Outcome, carry_out
from ..sweep.study import Study, load_study
from ..sweep.summary import missing_seeds, notes, summarise
from ..training.interrupt import interruptible

MAIN = ('top1', 'mAP', 'overlap_last')  # what is told of a run as soon as it is done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE', help='the study; with --report also several')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time (default: %(default)s)')
    parser.add_argument(
        '--minutes', type=float, metavar='N',
        help='stop after this time; the next call goes on from the last whole epochs')
    parser.add_argument(
        '--part', metavar='I/N',
        help='do the I-th of N equal shares of the runs, which are fixed by their order (default: all)')
    parser.add_argument(
        '--data-dir', metavar='DIR',
        help="folder of the data set on this machine, instead of the file's")
    parser.add_argument(
        '--output', type=Path, metavar='DIR',
        help='folder for checkpoints and logs (default: output/NAME of the study)')
    parser.add_argument('--records', type=Path, metavar='DIR', help="folder of the records, instead of the file's")
    parser.add_argument(
        '--report', action='store_true',
        help='run nothing: print the tables, and write tables and curves into the page')
    parser.add_argument(
        '--baseline', metavar='NAME',
        help="with --report: print the differences to this variant instead of the file's, and write nothing")


def _part(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r'(\d+)/(\d+)', value, re.ASCII)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise ICASCError(f"--part must be I/N, the I-th of N parts, from 1/N to N/N; got '{value}'.")
    return number, count


def run(args: argparse.Namespace) -> int:
    for name in ('jobs', 'minutes'):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ICASCError(f'--{name} must be more than 0, got {value}.')
    own = (args.data_dir, args.output, args.records, args.part, args.baseline)
    if len(args.files) > 1 and (not args.report or any(value is not None for value in own)):
        raise ICASCError('several studies take --report and no other option: their data and folders differ.')
    part = _part(args.part)
    if part and args.report:
        raise ICASCError('--report is of the whole study: leave out --part.')
    if args.baseline is not None and not args.report:
        raise ICASCError('--baseline is of the tables: add --report.')
    for file in args.files:
        study = load_study(file, args.data_dir, args.records, args.baseline)
        output = args.output or Path('output') / study.name
        records = read_records(study)
        check_unchanged(study, records, None if args.report else output)
        if args.report:
            _report(study, records, alone=len(args.files) == 1, written=args.baseline is None)
    return 0 if args.report else _carry_out(args, study, part, records, output)


def _report(study: Study, records: dict[str, dict[str, Any]], alone: bool, written: bool) -> None:
    """Tables of one study; where it is not `alone`, what it lacks does not keep the others from theirs."""
    if not records:
        if not alone:
            print(f'\n{printable(study.name)}: no record yet')
            return
        raise ICASCError(f"no record in '{study.records}': run the study first, without --report.")
    _print_tables(study, records)
    if not written:
        return
    if study.report is None:
        print(f"\n'{printable(study.file)}' names no page ('report: FILE.md'): its tables are not written")
        return
    print(f'\nwritten to {printable(write_page(study, records, summarise(study, records)))}')


def _carry_out(
        args: argparse.Namespace,
        study: Study,
        part: tuple[int, int] | None,
        records: dict[str, dict[str, Any]],
        output: Path,
) -> int:
    runs = study.part(*part) if part else study.runs
    todo = [run for run in runs if run.name not in records]
    for run in todo:
        check_same_images(run, output / run.name)
    if todo:
        refuse_unwritable(study.records, 'records')
    done, which = len(runs) - len(todo), f'part {part[0]} of {part[1]}, ' if part else ''
    print(f'{printable(study.name)}: {which}{len(runs)} runs, {done} done; logs in {printable(output)}')
    with interruptible() as flag, tqdm(total=len(runs), initial=done, disable=None) as bar:
        told: list[str] = []
        warned: set[str] = set()

        def on_change(under_way: list[str], outcome: Outcome) -> None:
            bar.set_postfix_str(', '.join(under_way))
            bar.update(done + len(outcome.finished) - bar.n)
            for name in [n for n in (*outcome.finished, *outcome.failed) if n not in told]:
                told.append(name)
                for line in outcome.warned.get(name, ()):
                    if line not in warned:  # most are of all runs alike
                        warned.add(line)
                        tqdm.write(f'{name}: {line}', file=sys.stderr)
                if name in outcome.failed:
                    place = printable(output / f'{name}.log')
                    tqdm.write(f'{name} FAILED, see {place}:\n{outcome.failed[name]}', file=sys.stderr)
                else:
                    final = read_records(study)[name]['final']
                    measures = [f'{m} {final[m]:.2f}' for m in MAIN if final.get(m) is not None]
                    tqdm.write(f"{name} done: {', '.join(measures)}")

        outcome = carry_out(
            study, todo, output, args.jobs, 60 * (args.minutes or float('inf')),
            lambda: bool(flag.signal_number), on_change, part is not None)
        signal_number = flag.signal_number
    records = read_records(study)
    if records:
        _print_tables(study, records)
    if outcome.elsewhere:
        print(f"\nleft to another sweep: {', '.join(outcome.elsewhere)}")
    if outcome.stopped:
        done = sum(run.name in records for run in runs)
        own = ' of this part' if part else ''
        print(f'\nstopped, {outcome.stopped}: {done} of {len(runs)} runs{own} are done; the same command goes on.')
    if outcome.failed:
        print(f"\n{len(outcome.failed)} runs failed: {', '.join(outcome.failed)}", file=sys.stderr)
    return 128 + signal_number if signal_number else 1 if outcome.failed else 0


def _print_tables(study: Study, records: dict[str, dict[str, Any]]) -> None:
    summaries = summarise(study, records)
    for rows in (accuracy_table(summaries, records), *measure_tables(summaries)):
        print(f'\n{text(rows)}')
    for note in notes(study, records, summaries):
        print(f'\n{note}')
    if missing := missing_seeds(study, records):
        print(f'\nno record yet, with these seeds: {missing}')
