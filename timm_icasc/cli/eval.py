"""Evaluate trained checkpoints: accuracy, calibration, separability, consistency, KS statistic, localisation.

    timm-icasc eval output/resnet20_cifar-digits                     a run, or both runs of --icasc-compare
    timm-icasc eval --compare RUN_A RUN_B                            B - A with a paired bootstrap interval
    timm-icasc eval --compare RUN_A/eval RUN_B/eval                  the same from what earlier evaluations have left
    timm-icasc eval last.pth.tar --model resnet50 --data-dir DIR     a bare checkpoint on DIR/validation/CLASS/*.jpg
    timm-icasc eval hf-hub:NAME --data-dir DIR --val-split test --ten-crop

Prints a table and writes eval.json, classes.csv (one row per class), images.csv (per image), records.npz and, where the
data set has bounding boxes, pairs.csv (per image and class) to eval/ in the run's folder, or to --output.
The same checkpoint on the same images gives the same numbers; all checkpoints are measured with the same maps.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import fingerprint
from ..errors import DataError, ICASCError
from ..evaluation.bootstrap import check_same_maps, compare
from ..evaluation.checkpoint import Checkpoint
from ..evaluation.collect import evaluate_checkpoint
from ..evaluation.image_records import ImageRecords, load_records
from ..evaluation.measures import TITLES, class_table, summarise
from ..evaluation.options import add_evaluation_arguments as add_arguments
from ..evaluation.options import default_options
from ..evaluation.report import print_measures, write_evaluation
from ..evaluation.side_by_side import (
    check_same_data,
    expand_sources,
    load_checkpoints,
    name_apart,
    warn_of_other_layers,
)
from ..foreign_files import path_inside, refuse_links_out_of
from ..foreign_text import printable
from ..labels import SINGLE
from ..runs.files import together
from ..runs.find import find_runs, refuse_folder_of_run, refuse_unwritable
from ..runs.folder import (
    CHECKPOINT,
    CLASSES,
    COMPARISON,
    EVALUATED,
    EVALUATION,
    FINGERPRINT,
    IMAGES,
    PAIRS,
    RECORDS,
    SUMMARY,
    noted_time,
    read_checkpoint,
)
from ..runs.provenance import provenance
from ..runs.tables import text, write_csv, write_json
from ..training.option_names import check_least, flag_of

__all__ = ['add_arguments', 'run']

CLASSES_PRINTED = 30


def _check(args: argparse.Namespace) -> None:
    if not args.checkpoints and not args.compare:
        raise ICASCError('name a checkpoint or the folder of a run, or two with --compare A B.')
    for source in args.compare or ():
        if len(runs := find_runs(Path(source))) > 1:
            raise ICASCError(f"--compare: '{source}' holds {len(runs)} runs, name one: {', '.join(map(str, runs))}.")
    check_least(args, resamples=1, images=1, batch_size=1, tolerance=0)
    if not 0 <= args.sigma <= 1:
        raise ICASCError(f'--sigma is a fraction of the maximum, 0 to 1, got {args.sigma}.')
    if args.output:
        refuse_folder_of_run(Path(args.output))
        refuse_unwritable(Path(args.output), 'output')


def _folder_name(checkpoint: Checkpoint) -> str:
    """Its label; files of no run are often of one name, such as model.pth, and told apart by the folder above."""
    file = Path(checkpoint.source).absolute()
    is_bare = checkpoint.run is None and file.is_file() and checkpoint.label == file.name
    label = '-'.join(file.parts[-2:]) if is_bare else checkpoint.label
    return printable(label).replace('/', '_').replace(':', '_')


def _folders(args: argparse.Namespace, checkpoints: Sequence[Checkpoint]) -> list[Path]:
    """Where each evaluation is written to: `eval` in a run's folder, or a folder in it where several would meet there.

    What is of no run meets there sooner or later, in the working directory.
    """
    own = [_folder_name(checkpoint) for checkpoint in checkpoints]
    if args.output:
        return [Path(args.output) / name for name in own]
    runs = [checkpoint.run.folder if checkpoint.run else None for checkpoint in checkpoints]
    folders = []
    for run_folder, name in zip(runs, own, strict=True):
        if run_folder is None:
            folders.append(Path(EVALUATION) / name)
            continue
        inside = EVALUATION if runs.count(run_folder) == 1 else f'{EVALUATION}/{name}'
        folders.append(path_inside(run_folder, inside))  # the run may be somebody else's
        refuse_links_out_of(folders[-1], [EVALUATED, CLASSES, IMAGES, PAIRS, RECORDS])
    return folders


def _of_run(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells whether the numbers go with those of the run: the epochs of the weights, images prepared otherwise."""
    file = Path(checkpoint.source)
    if checkpoint.run is None or not file.name.endswith(CHECKPOINT):
        return {}
    given = [getattr(args, name, None) for name in ('img_size', 'crop_pct', 'crop_mode')]
    content = read_checkpoint(file)
    return {
        'epochs': content['epoch'] + 1, 'saved': noted_time(content),
        'other_pixels': any(value is not None for value in given)}


def _evaluate(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> ImageRecords:
    records, layers = evaluate_checkpoint(checkpoint, args), checkpoint.layers
    write_evaluation(folder, records, {
        'label': checkpoint.label, 'checkpoint': checkpoint.source, 'model': checkpoint.args.model,
        'dataset': checkpoint.args.dataset or checkpoint.args.data_dir, 'split': checkpoint.args.val_split,
        'images': len(records.indices), 'whole_split': len(records.indices) == len(checkpoint.dataset),
        FINGERPRINT: fingerprint(checkpoint.dataset),
        **_of_run(args, checkpoint),
        'measures': summarise(records), 'attention': args.attention, 'sigma': args.sigma, 'tolerance': args.tolerance,
        'layers': layers and [layers.inner.path, layers.last.path], 'localised': args.layer,
        **{name: checkpoint.data_config[name] for name in ('input_size', 'crop_pct')},
        **provenance(checkpoint.args)})
    print(
        f'{checkpoint.label}: {printable(checkpoint.args.model)}, {len(records.indices)} images of '
        f"{checkpoint.data_config['input_size'][1]} x {checkpoint.data_config['input_size'][2]}; written to "
        f'{printable(folder)}')
    return records


def _print_classes(records: ImageRecords, everything: bool) -> None:
    table = class_table(records)
    if everything or len(table) <= CLASSES_PRINTED:
        print(f'\n{records.label}, by class:\n{text(table)}')
    else:
        print(f'\n{records.label}: the table of its {len(table)} classes is in classes.csv (--per-class prints it)')


def _print_comparison(
        a: ImageRecords,
        b: ImageRecords,
        result: dict[str, dict[str, float]],
        resamples: int,
) -> None:
    print(f'\n{b.label} - {a.label}: {len(a.indices)} images, {resamples} paired bootstrap resamples')
    print(text([
        {'measure': TITLES[name], a.label: row['a'], b.label: row['b'], 'difference': row['difference'],
         '95 % low': row['low'], 'high': row['high'], 'images': row['images'],
         '': '*' if row['low'] < row['high'] and not row['low'] <= 0 <= row['high'] else ''}
        for name, row in result.items()]))
    print('* the interval leaves 0 out; the chance of another training seed is not in it')


def _compare(
        args: argparse.Namespace,
        a: ImageRecords,
        b: ImageRecords,
        folder: Path,
        sources: Sequence[str],
) -> None:
    result = compare(a, b, args.resamples)
    _print_comparison(a, b, result, args.resamples)
    table, content = (folder / f'{COMPARISON}{ending}' for ending in ('.csv', '.json'))
    with together(table, content):
        write_csv(table, [{'measure': name, **row} for name, row in result.items()])
        write_json(content, {
            'a': sources[0], 'b': sources[1], 'resamples': args.resamples, 'measures': result})


def _compare_earlier(args: argparse.Namespace) -> None:
    """Compare what earlier evaluations have left; options that say what is measured come too late."""
    own = ('checkpoints', 'compare', 'resamples', 'output')
    late = [
        flag_of(name) for name, default in vars(default_options()).items()
        if name not in own and getattr(args, name) != default]
    if late:
        raise ICASCError(
            f"--compare of earlier evaluations measures nothing anew: leave out {', '.join(late)}, or name the runs "
            f'in place of their {EVALUATION}/.')
    a, b = (load_records(Path(path) / RECORDS) for path in args.compare)
    folders = [Path(path).absolute() for path in args.compare]
    name_apart((a, b), [str(path.parent if path.name == EVALUATION else path) for path in folders])
    print_measures({r.label: summarise(r) for r in (a, b)})
    _compare(args, a, b, Path(args.output or args.compare[1]), args.compare)


def _sources(args: argparse.Namespace) -> list[str]:
    """All that are evaluated; the two that are compared come last, in their order."""
    compared = args.compare or []
    if compared and len(expand_sources(compared)) < 2:
        raise ICASCError('--compare needs two different checkpoints.')
    everything = expand_sources([*compared, *args.checkpoints])
    return [*everything[len(compared):], *everything[:len(compared)]]


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.compare and not args.checkpoints and all(
        (Path(path) / RECORDS).is_file() for path in args.compare):
        _compare_earlier(args)
        return 0
    checkpoints = load_checkpoints(_sources(args), args)
    if args.compare:
        check_same_data(checkpoints[-2:])
        a, b = checkpoints[-2:]
        if a.num_classes != b.num_classes and a.labels is SINGLE:
            raise DataError(
                f"'{a.label}' has {a.num_classes} class scores, '{b.label}' {b.num_classes}, and probabilities of one "
                f'among more do not compare: evaluate each without `compare`.')
        check_same_maps(a.map_settings, b.map_settings, a.label, b.label)
    warn_of_other_layers(checkpoints)
    records, folders = [], _folders(args, checkpoints)
    for folder in folders:  # another's, or on a disk that is read only
        refuse_unwritable(folder, 'output')
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        records.append(_evaluate(args, checkpoint, folder))
        checkpoint.model.cpu()  # one model on the device at a time
    print()
    values = {r.label: summarise(r) for r in records}
    print_measures(values)
    for r in records:
        _print_classes(r, args.per_class)
    if args.output:
        write_csv(Path(args.output) / SUMMARY, [{'checkpoint': label, **v} for label, v in values.items()])
    if args.compare:
        folder = Path(args.output) if args.output else folders[-1]
        _compare(
            args, *records[-2:], folder, [checkpoint.source for checkpoint in checkpoints[-2:]])
    return 0
