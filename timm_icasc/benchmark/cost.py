"""Time, peak memory and operations of a training step."""
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from tqdm import tqdm

from ..errors import ICASCError
from ..features.meta import RememberShapes
from ..training.device import PeakMemory
from .steps import BenchmarkSetting, make_step

__all__ = ['count_operations', 'interleaved_seconds', 'measure_memory', 'measure_time']


def interleaved_seconds(
        calls: dict[str, Callable[[], Any]],
        device: torch.device,
        repeats: int,
        description: str,
        warm_up: int = 1,
) -> dict[str, float]:
    """Median seconds of each call, all of them in turn, after some that warm up.

    On the CPU it is processor time (`time.process_time`), which other programs disturb least; elsewhere wall time.
    """
    clock = time.process_time if device.type == 'cpu' else time.perf_counter

    def wait() -> None:
        if device.type != 'cpu':
            torch.accelerator.synchronize()

    seconds = {name: [] for name in calls}
    for repeat in tqdm(range(-warm_up, repeats), desc=description, leave=False, disable=None):
        for name, call in calls.items():
            wait()
            started = clock()
            call()
            wait()
            if repeat >= 0:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_time(name: str, setting: BenchmarkSetting, repeats: int) -> dict[str, float]:
    """Median seconds of a training step of each variant."""
    steps = {variant: make_step(name, variant, setting) for variant in setting.variants}
    return interleaved_seconds(steps, torch.device(setting.device), repeats, f'{name}: time', setting.warm_up)


def _resident(field: str) -> float | None:
    """'VmRSS' (now) or 'VmHWM' (peak) of this process in MiB; None where the system does not tell."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def _peak_memory(name: str, variant: str, setting: BenchmarkSetting, threads: int) -> float | None:
    torch.set_num_threads(threads)
    step = make_step(name, variant, setting)
    if setting.device.startswith('cuda'):
        memory = PeakMemory(torch.device(setting.device))
        for _ in range(setting.warm_up + 1):  # a recording takes its memory while it is made
            step()
        return memory.mib()
    if setting.device != 'cpu':
        return None
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


def measure_memory(name: str, setting: BenchmarkSetting) -> dict[str, float | None]:
    """Peak memory of two training steps on top of model and data, in MiB.

    On the CPU by Linux's account of resident memory (glibc), every variant in a process of its own; None on other
    systems. On a GPU by torch's account, which one process keeps as well.

    Raises:
        ICASCError: Such a process was killed.
    """
    peaks = {}
    for variant in tqdm(setting.variants, desc=f'{name}: memory', leave=False, disable=None):
        if setting.device.startswith('cuda'):
            torch.cuda.empty_cache()
            peaks[variant] = _peak_memory(name, variant, setting, torch.get_num_threads())
        else:
            asked = name, variant, setting, torch.get_num_threads()
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
                measured = pool.submit(_peak_memory, *asked)
            try:
                peaks[variant] = measured.result()
            except BrokenProcessPool as e:
                raise ICASCError(
                    f'`batch_size={setting.batch_size}`: the process that measures the memory of '
                    f"{name}, '{variant}', was killed (out of memory?): take a smaller one.") from e
    return peaks


def _convolution_backward(gradient: Any, x: Any, weight: Any, *others: Any, **options: Any) -> int:
    """Each gradient of a convolution takes as many operations as the convolution.

    Torch's own count of the weight's gradient is too high by the number of groups.
    """
    transposed, _, _, asked = others[4:]  # behind bias, stride, padding and dilation
    return sum(asked[:2]) * conv_flop_count(
        list(x), list(weight), list(gradient), transposed=transposed)


def count_operations(name: str, setting: BenchmarkSetting) -> dict[str, int]:
    """Floating-point operations of a training step, by torch's counter: products of matrices and convolutions only.

    Counted on meta tensors. The ratio to the plain step is what the step would cost if nothing else took time.
    """
    on_meta = replace(setting, device='meta', channels_last=False, amp=False, fast=False)
    counts, shapes = {}, RememberShapes()  # the variants ask the same questions
    for variant in setting.variants:
        step = make_step(name, variant, on_meta)
        mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
        with shapes, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            step()
        counts[variant] = counter.get_total_flops()
    return counts
