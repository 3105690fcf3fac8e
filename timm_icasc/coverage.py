"""Which two layers ICASC looks at, and whether it trains, for any timm architecture.

    timm-icasc layers resnet50                   one architecture
    timm-icasc layers 'vit_*' --img-size 224     every one that matches
    timm-icasc layers --all --json FILE          all of them, as a record; interrupted, it goes on where it stopped

No weights are needed and no values computed: shapes and gradient paths are followed on meta tensors, and what stands
behind the last layer is run with random values, to see that the class scores depend on its grid. Not for trained
models: `timm_icasc.resolve_layers(model)` tells the layers of the model at hand.
"""
import argparse
import multiprocessing
import os
import signal
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import timm
import torch
import torch.nn as nn
from tqdm import tqdm

from .errors import ICASCError, LayerResolutionError
from .features import FeatureLayer, ICASCLayers
from .layers import inspect_layers
from .meta import RememberShapes
from .objective import ICASCConfig, icasc_forward
from .probe import graph_nodes
from .support import around_summary, load_record, row, summary, support_page, write_record, write_summary

__all__ = ['inspect_architecture']

SAVE_SECONDS = 20


def _describe(layer: FeatureLayer) -> Dict[str, Any]:
    """What is not the default of the layer's attributes; the order of a few thousand tokens is left out."""
    values = {**asdict(layer), 'grid': list(layer.grid), 'token_order': layer.token_order and 'reroll'}
    return {name: value for name, value in values.items() if name in ('path', 'layout', 'channels', 'grid') or value}


def _reached_share(model: nn.Module, layers: ICASCLayers, input_size: Tuple[int, int, int], order: int) -> float:
    """Share of the parameter tensors that the gradient of the ICASC terms reaches in a training step.

    The backward pass runs down to the inner layer; what lies before it is an ordinary backward pass, whose graph is
    followed but not computed.
    """
    images = torch.empty(2, *input_size, device='meta')
    target = torch.empty(2, dtype=torch.int64, device='meta')
    config = ICASCConfig(order=order)
    parameters = [p for p in model.parameters() if p.requires_grad]
    features = []
    handle = model.get_submodule(layers.inner.path).register_forward_hook(
        lambda module, args, output: features.append(layers.inner.get(output)))
    try:
        loss = icasc_forward(model, images, target, layers, config).weighted_sum(config)
    finally:
        handle.remove()
    before = {node.variable for node in graph_nodes(features[-1]) if hasattr(node, 'variable')}
    behind = [p for p in parameters if p not in before]
    inner, *gradients = torch.autograd.grad(loss, [features[-1], *behind], allow_unused=True)
    reached = sum(g is not None for g in gradients) + (len(before) if inner is not None else 0)
    return reached / len(parameters)


def inspect_architecture(name: str, img_size: Optional[int] = None) -> Dict[str, Any]:
    """Layers and twice-differentiability of one architecture, on meta tensors.

    Args:
        name: timm architecture.
        img_size: Height and width of the images; the architecture's own when None.

    Returns:
        'family' (the module that defines it), 'input_size', and either 'error' or: 'inner' and 'last' (path, layout,
        channels, grid and what else is not the default of `FeatureLayer`), 'nonzero' (share of the last layer's grid
        that the class scores depend on), 'order1' and 'order2' (share of the parameter tensors that the gradient of
        the terms reaches, or the reason why there is none).
    """
    with RememberShapes():
        with torch.device('meta'):
            fixed = timm.get_pretrained_cfg(name).fixed_input_size
            model = timm.create_model(name, num_classes=10, **({'img_size': img_size} if img_size and fixed else {}))
        channels, height, width = model.pretrained_cfg['input_size']
        input_size = (channels, img_size or height, img_size or width)
        record: Dict[str, Any] = {'family': timm.model_entrypoint(name).__module__, 'input_size': list(input_size)}
        try:
            layers, nonzero = inspect_layers(model, input_size)
        except LayerResolutionError as e:
            return {**record, 'error': str(e)}
        record.update(inner=_describe(layers.inner), last=_describe(layers.last), nonzero=round(nonzero, 4))
        model.train()
        for order in (1, 2):
            try:
                record[f'order{order}'] = round(_reached_share(model, layers, input_size, order), 4)
            except Exception as e:  # whatever an operation without a derivative says
                record[f'order{order}'] = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
        return record


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which waits for what is under way
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)


def _inspect(name: str, img_size: Optional[int]) -> Tuple[str, Dict[str, Any], float]:
    """Name, record and processor time of one architecture, in a process of the pool."""
    started = time.process_time()
    try:
        result = inspect_architecture(name, img_size)
    except Exception as e:  # one architecture that cannot be made must not end the sweep
        result = {'error': f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'}
    return name, result, time.process_time() - started


def _select(patterns: Sequence[str], everything: bool) -> List[str]:
    if everything == bool(patterns):
        raise ICASCError('name architectures or filters (resnet50, \'vit_*\'), or pass --all.')
    names = timm.list_models() if everything else []
    for pattern in patterns:
        found = [pattern] if timm.is_model(pattern) else timm.list_models(pattern) if pattern else []
        if not found:
            raise ICASCError(f"no architecture matches '{pattern}'; timm.list_models() lists them.")
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
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, metavar='N',
                        help='processes (default: %(default)s)')


def run(args: argparse.Namespace) -> int:
    if args.jobs < 1 or (args.img_size is not None and args.img_size < 1):
        raise ICASCError('--jobs and --img-size must be at least 1.')
    names = _select(args.models, args.all)
    path = Path(args.json) if args.json is not None else None
    record = load_record(path, args.img_size)
    if args.all:
        record['total'] = len(names)
    # What cannot be written is better known before the work than after it.
    if args.summary is not None:
        around_summary(Path(args.summary))
    if path:
        write_record(path, record)
    todo = [name for name in names if name not in record['models']]
    jobs = min(args.jobs, len(todo))
    saved = begun = time.monotonic()

    def save() -> None:
        nonlocal saved
        now = time.monotonic()
        record.update(seconds=round(seconds_before + now - begun), jobs=args.jobs)
        saved = now
        if path:
            write_record(path, record)

    seconds_before = record.get('seconds', 0)
    if todo:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), _begin_process) as pool:
            futures = [pool.submit(_inspect, name, args.img_size) for name in todo]
            try:
                for future in tqdm(as_completed(futures), total=len(todo), desc='architectures', disable=None):
                    name, result, seconds = future.result()
                    record['models'][name] = result
                    record['processor_seconds'] = round(record.get('processor_seconds', 0) + seconds, 1)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        save()
            except BrokenProcessPool as e:
                raise ICASCError('--jobs: a process was killed (out of memory?); with --json, the same command goes on '
                                 'from here.') from e
            finally:
                save()
                pool.shutdown(cancel_futures=True)
    chosen = {name: record['models'][name] for name in names}
    if not args.all:
        for name, result in chosen.items():
            print(row(name, result))
    if args.all or len(names) > 1:
        print(summary({**record, 'models': chosen}))
    if path:
        path.with_suffix('.md').write_text(support_page(record))
        print(f"{len(record['models'])} architectures in {path} and {path.with_suffix('.md')}")
    if args.summary is not None:
        write_summary(Path(args.summary), record)
    return 0

