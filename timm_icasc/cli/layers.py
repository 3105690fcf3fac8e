"""Which two layers ICASC looks at, and whether it trains, for any timm architecture.

    timm-icasc layers resnet50                   one architecture
    timm-icasc layers 'vit_*' --img-size 224     every one that matches
    timm-icasc layers --all --json FILE          all of them, as a record; interrupted, it goes on where it stopped

No weights are needed: shapes and gradient paths are followed on meta tensors. What stands behind the last layer is run
with random values, to see that the class scores depend on its grid and that maps find where. Not for trained
models: `timm_icasc.resolve_layers(model)` tells the layers of the model at hand.
"""
import argparse
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import timm
import torch
from tqdm import tqdm

from ..errors import ICASCError, with_type
from ..foreign_text import printable
from ..runs.files import write_text
from ..runs.tables import around_marks, replace_between
from ..support.architectures import inspect_architecture
from ..support.support_page import (
    MARKS,
    load_record,
    row,
    summary,
    support_page,
    timms,
    write_record,
)
from ..training.model_factory import check_model_name
from ..training.option_names import check_least

SAVE_SECONDS = 20


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which waits for what is under way
    torch.set_num_threads(1)


def _inspect(name: str, img_size: int | None) -> tuple[str, dict[str, Any], float]:
    """Name, record and processor time of one architecture, in a process of the pool."""
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            result = inspect_architecture(name, img_size)
    except Exception as e:  # one architecture that cannot be made must not end the sweep
        result = {'error': with_type(e)}
    return name, result, time.process_time() - started


def _select(patterns: Sequence[str], everything: bool) -> list[str]:
    if everything == bool(patterns):
        raise ICASCError('name architectures or filters (resnet50, \'vit_*\'), or pass --all.')
    names = timm.list_models() if everything else []
    for pattern in patterns:
        found = [pattern] if timm.is_model(pattern) else timm.list_models(
            pattern) if pattern else []
        if not found:
            raise ICASCError(f"no architecture matches '{pattern}'; timm.list_models() lists them.")
        if found == [pattern]:
            check_model_name(pattern)
        names += [name for name in found if name not in names]
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='*', metavar='MODEL|FILTER', help="architectures, or filters such as 'vit_*'")
    parser.add_argument('--all', action='store_true', help='every architecture that timm knows')
    parser.add_argument('--img-size', type=int, metavar='N', help="default: each architecture's own")
    parser.add_argument('--json', metavar='FILE', help='write the record here, and the table beside it (.md); what the '
                                                       'file already holds is not done again')
    parser.add_argument('--summary', metavar='FILE', help='write the summary of the record into this file, between its '
                                                          'lines "<!-- support begins -->" and "<!-- support ends -->"')
    parser.add_argument(
        '--jobs', type=int, default=os.cpu_count() or 1, metavar='N',
        help='processes (default: %(default)s)')


def _keep(record: dict[str, Any], name: str, result: dict[str, Any], seconds: float) -> None:
    record['models'][name] = result
    record['processor_seconds'] = round(record.get('processor_seconds', 0) + seconds, 1)


def _inspect_all(record: dict[str, Any], todo: Sequence[str], args: argparse.Namespace) -> None:
    """Inspect architectures in processes and put them into the record, which is saved on the way, at `args.json`."""
    saved = begun = time.monotonic()
    seconds_before = record.get('seconds', 0)

    def save() -> None:
        nonlocal saved
        saved = time.monotonic()
        record.update(seconds=round(seconds_before + saved - begun), jobs=args.jobs)
        if args.json is not None:
            write_record(Path(args.json), record)

    jobs = min(args.jobs, len(todo))
    if len(todo) == 1:  # a process of its own would load torch once more
        _keep(record, *_inspect(todo[0], args.img_size))
        save()
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), _begin_process) as pool:
        futures = [pool.submit(_inspect, name, args.img_size) for name in todo]
        try:
            for future in tqdm(as_completed(futures), total=len(todo), desc='architectures', disable=None):
                _keep(record, *future.result())
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
        except BrokenProcessPool as e:
            raise ICASCError(
                '--jobs: a process was killed (out of memory?); with --json, the same command goes on '
                'from here.') from e
        finally:
            save()
            pool.shutdown(cancel_futures=True)


def _print(record: dict[str, Any], names: Sequence[str], args: argparse.Namespace) -> None:
    chosen = {**record, 'models': {name: record['models'][name] for name in names}}
    if not args.all:
        for name, result in chosen['models'].items():
            print(printable(row(name, result)))
    if args.all or len(timms(chosen)) > 1:
        print(summary(chosen))


def run(args: argparse.Namespace) -> int:
    check_least(args, jobs=1, img_size=1)
    names = _select(args.models, args.all)
    path = Path(args.json) if args.json is not None else None
    record = load_record(path, args.img_size)
    if args.all:
        record['total'] = len(names)
    # What cannot be written is better known before the work than after it.
    if args.summary is not None:
        around_marks(Path(args.summary), MARKS)
    if path:
        write_record(path, record)
    todo = [name for name in names if name not in record['models']]
    if todo:
        _inspect_all(record, todo, args)
    _print(record, names, args)
    if path:
        write_text(path.with_suffix('.md'), support_page(record))
        print(f"{len(record['models'])} architectures in {printable(path)} and {printable(path.with_suffix('.md'))}")
    if args.summary is not None:
        replace_between(Path(args.summary), MARKS, summary(record))
    return 0
