"""What ICASC costs on this machine: time, peak memory and operations of a training step against plain cross-entropy.

    timm-icasc bench resnet18 --batch-size 8          orders 1 and 2, and how public re-implementations go about it
    timm-icasc bench resnet50 --amp --channels-last   as it would be trained
    timm-icasc bench resnet110_cifar --fast           the steps recorded as CUDA graphs (timm-icasc train --icasc-fast)
    timm-icasc bench resnet50 --compile               steps by torch.compile, each beside the plain one of its kind
    timm-icasc bench resnet50 --maps                  attention maps at inference, against other packages
    timm-icasc bench resnet18 -b 4 --scaling cost.png time over the batch size and over the area of the images
    timm-icasc bench resnet18 --profile               where the time goes, by kind of operation

The steps take turns in one process; seconds are medians, on a CPU of processor time. "operations" counts the matrix
products and convolutions alone: the ratio to which the time would fall if nothing else took any.
"""
import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from ..benchmark.cost import count_operations, measure_memory, measure_time
from ..benchmark.map_speed import FORWARD, measure_maps
from ..benchmark.profile import profile_rows, profile_steps
from ..benchmark.scaling import measure_scaling, scaling_figure, scaling_lines, scaling_rows
from ..benchmark.steps import PLAIN, BenchmarkSetting, plain_of
from ..errors import ICASCError
from ..explanation.canvas import check_format, save
from ..runs.find import check_file_to_write
from ..runs.provenance import installed_versions
from ..runs.tables import cell_of, text, write_json
from ..training.device import device_fault
from ..training.model_factory import UNREGISTERED, check_model_name
from ..training.option_names import check_least

TOPK = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', metavar='MODEL', help='timm architectures')
    parser.add_argument('-b', '--batch-size', type=int, default=8, metavar='N', help='default: %(default)s')
    parser.add_argument('--img-size', type=int, metavar='N', help='default: the model\'s')
    parser.add_argument('--repeats', type=int, default=7, metavar='N', help='timed steps (default: %(default)s)')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu', metavar='NAME',
        help='cpu, cuda, mps (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, metavar='N', help='CPU threads (default: %(default)s)')
    parser.add_argument('--channels-last', action='store_true', help='channels last memory layout')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--fast', action='store_true', help='training steps recorded as CUDA graphs; CUDA only')
    parser.add_argument(
        '--share', type=float, default=1., metavar='P',
        help="ICASC's terms of this share of the batch only (timm-icasc train --icasc-share)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--maps', action='store_true', help='measure attention maps at inference, not training steps')
    what.add_argument(
        '--compile', action='store_true',
        help='time eager and compiled steps (torch.compile, inductor); of ICASC what comes before the inner layer')
    what.add_argument(
        '--scaling', metavar='FILE',
        help='measure steps over a series of batch sizes and one of image areas, both around the given '
             'ones, and draw them with lines through them')
    what.add_argument(
        '--profile', action='store_true',
        help='on which operations a step with ICASC spends more than a plain one: milliseconds, and '
             'percent of the whole plain step')
    parser.add_argument(
        '--topk', type=int, nargs='+', metavar='N',
        help='with --maps: maps of this many classes an image; several numbers, one after the other '
             f'(default: {TOPK})')
    parser.add_argument('--json', metavar='FILE', help='write the measurements here too')


def _measure_steps(name: str, setting: BenchmarkSetting, repeats: int) -> dict[str, dict[str, Any]]:
    seconds, memory = measure_time(name, setting, repeats), measure_memory(name, setting)
    operations = count_operations(name, setting)
    results = {}
    for variant in setting.variants:
        peak, plain = memory[variant], memory[PLAIN]
        results[variant] = {
            'seconds': seconds[variant], 'seconds_ratio': seconds[variant] / seconds[PLAIN],
            'operations': operations[variant], 'operations_ratio': operations[variant] / operations[PLAIN],
            'peak_mib': peak, 'peak_ratio': peak / plain if peak and plain else None}
    return results


def _measure_compiled(
        name: str,
        setting: BenchmarkSetting,
        repeats: int,
) -> dict[str, dict[str, Any]]:
    """Eager and compiled steps, each beside the plain one of its kind; time alone."""
    seconds = measure_time(name, setting, repeats)
    return {
        variant: {
            'seconds': value, 'seconds_ratio': value / seconds[plain_of(variant)], 'operations_ratio': None,
            'peak_mib': None, 'peak_ratio': None} for variant, value in seconds.items()}


def _rows(name: str, results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {'model': name, 'step': variant, 's/step': cell_of(r['seconds'], 4), 'ratio': cell_of(r['seconds_ratio'], 2),
         'operations': cell_of(r['operations_ratio'], 2), 'peak MiB': cell_of(r['peak_mib'], 0),
         'peak ratio': cell_of(r['peak_ratio'], 2)} for variant, r in results.items()]


def _map_rows(name: str, seconds: dict[str, float]) -> list[dict[str, str]]:
    return [
        {'model': name, 'maps': what, 's/batch': cell_of(value, 4), 'ratio': cell_of(value / seconds[FORWARD], 2)}
        for what, value in seconds.items()]


def _check(args: argparse.Namespace) -> BenchmarkSetting:
    for name in args.models:
        check_model_name(name)
        if name.startswith(UNREGISTERED):
            raise ICASCError(f"MODEL: name an architecture of timm, not '{name}': its weights do not change the cost.")
    check_least(args, batch_size=1, repeats=1, threads=1, topk=1, img_size=1)
    if not 0 < args.share <= 1:
        raise ICASCError(f'--share must be above 0 and at most 1, got {args.share:g}.')
    if fault := device_fault(args.device):
        raise ICASCError(f"--device: cannot use '{args.device}': {fault}")
    other = '--maps' if args.maps else '--compile' if args.compile else None
    if args.fast and (not args.device.startswith('cuda') or other):
        remedy = f'leave it out, or {other}' if other else 'use --device cuda, or leave it out'
        raise ICASCError(f'--fast records training steps as CUDA graphs: {remedy}.')
    if args.scaling:
        check_format(Path(args.scaling), 'scaling')
    if args.topk and not args.maps:
        raise ICASCError('--topk is of --maps: leave it out.')
    if args.maps and args.share < 1:
        raise ICASCError('--share is of training steps, and --maps makes none: leave it out.')
    for name, file in (('json', args.json), ('scaling', args.scaling)):
        if file:
            check_file_to_write(Path(file), name)
    return BenchmarkSetting(
        args.batch_size, args.img_size, args.device, args.channels_last, args.amp, args.fast,
        args.share, args.compile)


def run(args: argparse.Namespace) -> int:
    setting = _check(args)
    torch.set_num_threads(args.threads)
    print(f'{setting}; {args.threads} CPU thread(s), torch {torch.__version__}')
    measured = next((what for what in ('maps', 'scaling', 'profile') if getattr(args, what)), 'steps')
    models: dict[str, Any] = {}
    for name in args.models:
        if args.maps:
            models[name] = measure_maps(name, setting, args.topk or [TOPK], args.repeats)
            table = text(_map_rows(name, models[name]), left=2)
        elif args.scaling:
            models[name] = measure_scaling(name, setting, args.repeats)
            lines = scaling_lines(name, models[name])
            table = '\n'.join([text(scaling_rows(name, models[name]), left=2), *lines])
            save(scaling_figure(models), Path(args.scaling))
        elif args.profile:
            models[name] = profile_steps(name, setting, args.repeats)
            table = text(profile_rows(name, models[name]), left=2)
        else:
            measure = _measure_compiled if args.compile else _measure_steps
            models[name] = measure(name, setting, args.repeats)
            table = text(_rows(name, models[name]), left=2)
        print(table, flush=True)  # one of each model: the next may take an hour
        if args.json:  # after each model: a long table that is interrupted is not lost
            device = torch.cuda.get_device_name(setting.device) if setting.device.startswith('cuda') else args.device
            record = {
                'command': sys.argv[1:], 'device': device, 'setting': vars(setting), 'threads': args.threads,
                'repeats': args.repeats, 'versions': installed_versions(), measured: models}
            write_json(Path(args.json), record)
    return 0
