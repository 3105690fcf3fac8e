#!/usr/bin/env python3
"""Measure the finished runs of a study on further images, or by further measures: a table by variant, seeds paired.

    measures_of_runs.py output/caltech101_few caltech101 --splits test --images 500 --robustness --faithfulness
    measures_of_runs.py output/caltech101_cue caltech101_spoiled --cue \\
        --splits test test_own_cue test_other_cue test_occluded test_background

The first argument is the folder with the runs of `timm-icasc sweep`, VARIANT-seedN; the second the image folder. Each
run is evaluated on each split as `timm-icasc eval` does, with its options. A difference is to --baseline, seed by seed,
with Student's interval (95 %); maps of other layers than the baseline's have none. --cue also tells how much of the map
of the true class lies where spoil_images.py puts its cue. --json keeps what was measured of every run; runs that are in
it already are not evaluated again. It is of one study, one image folder and the same options.
"""
import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from spoil_images import CUE_SHARE

from timm_icasc.attention import METHODS
from timm_icasc.data import evenly_spaced
from timm_icasc.evaluation.checkpoint import load_checkpoint
from timm_icasc.evaluation.collect import evaluate_checkpoint
from timm_icasc.evaluation.measures import OF_MAPS, TITLES, summarise
from timm_icasc.evaluation.options import add_evaluation_arguments
from timm_icasc.objective.maps import attention_maps
from timm_icasc.runs.tables import (
    markdown,
    mean_and_deviation,
    mean_sd,
    paired_difference,
    write_json,
)
from timm_icasc.sweep.summary import interval_over_seeds


@torch.no_grad()
def share_of_cue(checkpoint, method: str, count: int | None) -> float:
    """Mean share of the maps of the true classes, at the last layer, in the cue's corner; 0.16 if spread evenly."""
    shares, dataset = [], evenly_spaced(checkpoint.dataset, count or len(checkpoint.dataset))
    for images, target in torch.utils.data.DataLoader(dataset, checkpoint.batch_size):
        maps = attention_maps(
            checkpoint.model, images.to(checkpoint.device), target.to(checkpoint.device)[:, None], method=method,
            layers=checkpoint.layers)
        maps = torch.nn.functional.interpolate(maps, size=images.shape[-2:], mode='bilinear', align_corners=False)[:, 0]
        height, width = (round(length * (1 - CUE_SHARE)) for length in maps.shape[-2:])
        total = maps.sum((1, 2))
        shares.append((maps[:, height:, width:].sum((1, 2)) / total)[total > 0].cpu())
    return torch.cat(shares).mean().item()


def measure(run: Path, split: str, args: argparse.Namespace) -> tuple[dict[str, float], str]:
    """What was measured, and the layers of the maps."""
    given = argparse.Namespace(**{**vars(args), 'val_split': split})
    checkpoint = load_checkpoint(str(run), given)
    found = summarise(evaluate_checkpoint(checkpoint, given))
    if args.cue:
        found.update({
            f'cue_{method}': share_of_cue(checkpoint, method, args.images)
            for method in METHODS if METHODS[method].in_paper})
    return found, checkpoint.map_settings.get('layers', '')


def variant_and_seed(name: str) -> tuple[str, int]:
    """What a sweep's folder VARIANT-seedN is named after."""
    variant, _, seed = name.rpartition('-seed')
    return variant, int(seed)


def is_of_maps(measure: str) -> bool:
    return measure in OF_MAPS or measure.startswith('cue_')


def _by_seed(measured: dict[str, dict], split: str) -> dict[str, dict[int, dict[str, float]]]:
    """Variant -> seed -> measures."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for run, splits in measured.items():
        variant, seed = variant_and_seed(run)
        own = found.setdefault(variant, {})
        if split in splits:
            own[seed] = splits[split]
    return found


def _cell(own: dict[int, dict], baseline: dict[int, dict], measure: str) -> str:
    """Mean of the seeds; the mean difference to the baseline, and its interval."""
    values, others = ({seed: found.get(measure) for seed, found in runs.items()} for runs in (own, baseline))
    present = [value for value in values.values() if value is not None]
    if not present:
        return '-'
    mean = mean_sd(*mean_and_deviation(present), 3)
    differences = list(paired_difference(values, others).values())
    if own is baseline or not differences:
        return mean
    low, high = interval_over_seeds(differences)
    interval = '' if low is None else f' ({low:+.3f} to {high:+.3f})'
    return f'{mean}; {mean_and_deviation(differences)[0]:+.3f}{interval}'


def table(
        measured: dict[str, dict[str, dict[str, float]]],
        layers: dict[str, str],
        split: str,
        baseline: str,
        measures: Sequence[str] | None,
) -> list[dict[str, str]]:
    """A row for each variant: mean ± deviation of each measure, and its difference to the baseline.

    Maps of other layers than the baseline's have no difference; what was measured before layers were noted counts as
    of the same.
    """
    by_variant = _by_seed(measured, split)
    found = dict.fromkeys(name for runs in by_variant.values() for own in runs.values() for name in own)
    if unknown := set(measures or ()) - set(found):
        raise SystemExit(f"--measures: {', '.join(sorted(unknown))} not measured, but {', '.join(found)}")
    places = {variant_and_seed(run)[0]: paths for run, paths in layers.items()}
    rows = []
    for variant in sorted(by_variant, key=lambda name: name != baseline):
        row = {'variant': variant}
        own, other = places.get(variant), places.get(baseline)
        same = own == other or None in (own, other)
        for name in measures or found:
            others = by_variant[baseline] if same or not is_of_maps(name) else {}
            row[TITLES.get(name, name)] = _cell(by_variant[variant], others, name)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path, metavar='RUNS')
    parser.add_argument('folder', metavar='DATA_DIR')
    parser.add_argument('--splits', nargs='+', required=True)
    parser.add_argument('--variants', nargs='+', help='default: all')
    parser.add_argument('--baseline', default='cross-entropy')
    parser.add_argument('--cue', action='store_true')
    parser.add_argument('--measures', nargs='+', metavar='NAME', help='columns of the table; default: all')
    parser.add_argument('--json', type=Path, metavar='FILE')
    evaluation = argparse.ArgumentParser()
    add_evaluation_arguments(evaluation)
    args, rest = parser.parse_known_args()
    args = argparse.Namespace(**{**vars(evaluation.parse_args(rest)), **vars(args), 'data_dir': args.folder})
    measured, layers, options = {}, {}, ['--cue'] * args.cue + rest
    study, data = (Path(os.path.abspath(place)).name for place in (args.runs, args.folder))  # wherever they lie
    if args.json and args.json.is_file():
        content = json.loads(args.json.read_text())
        if content['options'] != options:
            raise SystemExit(
                f"{args.json} was made with the options '{' '.join(content['options'])}': name another file")
        for kind, name in (('runs of', study), ('images of', data)):
            if content.get(kind, name) != name:  # older records do not tell
                raise SystemExit(f"{args.json} has the {kind} '{content[kind]}', not of '{name}': name another file")
        measured, layers = content['runs'], content.get('layers', {})
    finished = [results.parent for results in args.runs.glob('*-seed*/results.json')]
    for run in sorted(finished, key=lambda run: variant_and_seed(run.name)):
        if args.variants and variant_and_seed(run.name)[0] not in args.variants:
            continue
        for split in args.splits:
            if split not in measured.setdefault(run.name, {}):
                measured[run.name][split], layers[run.name] = measure(run, split, args)
                if args.json:
                    write_json(args.json, {
                        'runs of': study, 'images of': data, 'options': options, 'layers': layers, 'runs': measured})
    if measured and all(variant_and_seed(run)[0] != args.baseline for run in measured):
        raise SystemExit(f"there is no run of the --baseline '{args.baseline}': {', '.join(sorted(measured))}")
    for split in args.splits:
        print(f'\n{split}\n\n{markdown(table(measured, layers, split, args.baseline, args.measures))}')


if __name__ == '__main__':
    main()
