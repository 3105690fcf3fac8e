"""What ICASC costs on this machine: time and peak memory of a training step against plain cross-entropy.

    timm-icasc bench resnet18 --img-size 224 --batch-size 8
"""
import argparse
import ctypes
import gc
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, Optional

import timm
import torch
from timm.task import ClassificationTask
from tqdm import tqdm

from .errors import ICASCError
from .task import ICASCTask

__all__ = ['measure_memory', 'measure_time']

VARIANTS = ('cross-entropy', 'ICASC order 1', 'ICASC order 2')


def _make_step(
        name: str,
        variant: str,
        batch_size: int,
        img_size: Optional[int],
        device: torch.device,
) -> Callable[[], None]:
    torch.manual_seed(0)
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    model = timm.create_model(name, **({'img_size': img_size} if img_size and fixed else {})).to(device).train()
    channels, height, width = model.pretrained_cfg['input_size']
    images = torch.randn(batch_size, channels, img_size or height, img_size or width, device=device)
    target = torch.randint(model.num_classes, (batch_size,), device=device)
    if variant == 'cross-entropy':
        task = ClassificationTask(model, device=device, verbose=False)
    else:
        task = ICASCTask(
            model, order=int(variant[-1]), input_size=tuple(images.shape[1:]), device=device, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        task(images, target)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def measure_time(
        name: str,
        batch_size: int,
        img_size: Optional[int],
        device: torch.device,
        repeats: int,
) -> Dict[str, float]:
    """Median seconds of a training step (forward, backward, SGD), the variants interleaved in one process.

    On the CPU it is processor time (`time.process_time`), which other programs disturb least; elsewhere wall time.
    """
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    steps = {variant: _make_step(name, variant, batch_size, img_size, device) for variant in VARIANTS}
    seconds = {variant: [] for variant in VARIANTS}
    for repeat in tqdm(range(repeats + 1), desc=name, leave=False, disable=None):
        for variant, step in steps.items():
            if device.type == 'cuda':
                torch.cuda.synchronize()
            started = clock()
            step()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                seconds[variant].append(clock() - started)
    return {variant: statistics.median(values) for variant, values in seconds.items()}


def _resident(field: str) -> Optional[float]:
    """'VmRSS' (now) or 'VmHWM' (peak) of this process in MiB; None where the system does not tell."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def _peak_memory(
        name: str,
        variant: str,
        batch_size: int,
        img_size: Optional[int],
        device: str,
        threads: int,
) -> Optional[float]:
    torch.set_num_threads(threads)
    step = _make_step(name, variant, batch_size, img_size, torch.device(device))
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(2):
            step()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    step()  # what is allocated once, by the layer probe or by the kernels, does not count
    gc.collect()
    try:
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # else the steps fill, unseen, what making the model has freed
    except (OSError, AttributeError):
        return None
    before = _resident('VmRSS')
    if before is None:
        return None
    Path('/proc/self/clear_refs').write_text('5')  # the peak of making the model does not count
    for _ in range(2):
        step()
    return _resident('VmHWM') - before


def measure_memory(
        name: str,
        batch_size: int,
        img_size: Optional[int],
        device: torch.device,
) -> Dict[str, Optional[float]]:
    """Peak memory of two training steps on top of model and data, in MiB; every variant in a process of its own.

    On the CPU by Linux's account of resident memory (glibc); None on other systems.
    """
    peaks = {}
    for variant in VARIANTS:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            peaks[variant] = pool.apply(
                _peak_memory, (name, variant, batch_size, img_size, str(device), torch.get_num_threads()))
    return peaks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', metavar='MODEL', help='timm architectures')
    parser.add_argument('-b', '--batch-size', type=int, default=8, metavar='N', help='default: %(default)s')
    parser.add_argument('--img-size', type=int, metavar='N', help='default: the model\'s')
    parser.add_argument('--repeats', type=int, default=7, metavar='N', help='timed steps (default: %(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', metavar='NAME',
                        help='default: %(default)s')
    parser.add_argument('--threads', type=int, default=1, metavar='N', help='CPU threads (default: %(default)s)')


def run(args: argparse.Namespace) -> int:
    for name in args.models:
        if not timm.is_model(name):
            raise ICASCError(f"unknown architecture '{name}'; timm.list_models() lists them.")
    for option in ('batch_size', 'repeats', 'threads'):
        if getattr(args, option) < 1:
            raise ICASCError(f"--{option.replace('_', '-')} must be at least 1.")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{'model':<32} {'variant':<16} {'s/step':>9} {'ratio':>6} {'peak MiB':>9} {'ratio':>6}")
    for name in args.models:
        seconds = measure_time(name, args.batch_size, args.img_size, device, args.repeats)
        memory = measure_memory(name, args.batch_size, args.img_size, device)
        for variant in VARIANTS:
            peak, plain = memory[variant], memory[VARIANTS[0]]
            print(f'{name:<32} {variant:<16} {seconds[variant]:>9.4f} {seconds[variant] / seconds[VARIANTS[0]]:>6.2f} '
                  + (f'{peak:>9.0f} {peak / plain:>6.2f}' if peak and plain else f"{'-':>9} {'-':>6}"))
    return 0
