"""Where the time of a training step goes, by kind of operation, with ICASC and without."""
import os
import re
import statistics
from collections import defaultdict

import torch
from tqdm import tqdm

from .steps import PLAIN, STEPS, BenchmarkSetting, make_step

__all__ = ['kind_of', 'profile_rows', 'profile_steps']

# Kind -> what the names of its operations contain; the first that fits.
KINDS = {
    'convolutions': 'conv',
    'attention': 'attention|softmax',
    'matrix products': 'linear|mm|matmul|einsum|addmm',
    'normalisation': 'norm',
    'activations': 'gelu|silu|relu|threshold|hard|sigmoid|tanh|activation',
}

OTHER = 'everything else'

SECOND = ', second derivatives'

def kind_of(name: str) -> str:
    """The kind of an operation, by the name that torch's profiler gives it."""
    name = name.removeprefix('autograd::engine::evaluate_function: ')
    kind = next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)
    # Torch's second derivatives, and our own: a node of a backward pass that is a backward pass itself.
    second = re.search('BackwardBackward|InputBackward|GradientBackward', name)
    return kind + SECOND * bool(second and kind != OTHER)


def profile_steps(
        name: str,
        setting: BenchmarkSetting,
        repeats: int,
) -> dict[str, dict[str, float]]:
    """Median seconds of a step by kind of operation; the steps take turns.

    What is counted are the outermost calls, of the forward pass or of a node of a backward pass, each with all that it
    calls. On a GPU it is the time of their kernels.

    Returns:
        Step -> kind -> seconds.
    """
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # each start and stop would be a line
    on_gpu = setting.device.startswith('cuda')
    activities = [
        torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * on_gpu]
    steps = {variant: make_step(name, variant, setting) for variant in STEPS}
    rounds = {variant: [] for variant in STEPS}
    for repeat in tqdm(range(-setting.warm_up, repeats), desc=f'{name}: profile', leave=False, disable=None):
        for variant, step in steps.items():
            with torch.profiler.profile(activities=activities) as recorded:
                step()
            seconds = defaultdict(float)
            for event in recorded.events():
                if event.cpu_parent is None and event.device_type == torch.autograd.DeviceType.CPU:
                    microseconds = event.device_time_total if on_gpu else event.cpu_time_total
                    seconds[kind_of(event.name)] += microseconds / 1e6
            if repeat >= 0:
                rounds[variant].append(seconds)
    return {
        variant: {
            kind: statistics.median(seconds[kind] for seconds in own)
            for kind in sorted({kind for seconds in own for kind in seconds})}
        for variant, own in rounds.items()}


def profile_rows(name: str, results: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """The table of one model: milliseconds by kind, and what ICASC adds in percent of the whole plain step."""
    whole = sum(results[PLAIN].values())
    kinds = [kind + second for kind in [*KINDS, OTHER] for second in ('', SECOND)]
    groups = {kind: [kind] for kind in kinds if any(kind in own for own in results.values())}
    groups['all'] = list(groups)
    rows = []
    for title, members in groups.items():
        plain, *others = (sum(results[step].get(kind, 0.) for kind in members) for step in STEPS)
        row = {'model': name, 'operations': title, 'plain ms': f'{1e3 * plain:.1f}'}
        for order, seconds in enumerate(others, 1):
            row[f'order {order} ms'] = f'{1e3 * seconds:.1f}'
            row[f'added by {order}'] = f'{(seconds - plain) / whole:+.1%}'
        rows.append(row)
    return rows
