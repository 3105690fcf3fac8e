"""Which layer and which kind of map explain a network best: every method at several layers, on one network's images.

    python docs/evidence/layers_and_methods.py RUN --at blocks.4 blocks.6 --at blocks.5.0.bn1 bn2 --images 200
    python docs/evidence/layers_and_methods.py RUN --data-dir DIR --layer inner --json FILE.json

Each `--at INNER LAST` is a block of rows; without one, the automatic choice. Of each image, the maps of its present
classes are measured (with one class per image, of its class and of the most confusing one) as `timm-icasc eval
--faithfulness` does: where a class's map is highest, a quarter of the image is blurred. `--curves` adds deletion,
insertion, average drop and increase (15 more forward passes a map). With boxes, localisation is measured as well.
All methods of a layer share one forward pass and its gradients. Prints a table; `--json` keeps it as a record.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from timm_icasc.attention import METHODS
from timm_icasc.data import evenly_spaced
from timm_icasc.data.geometry import transform_geometry
from timm_icasc.evaluation import collect
from timm_icasc.evaluation.batches import Numbered, SizedTransform, make_loader, transformed_by
from timm_icasc.evaluation.boxes import boxes_by_class, localise_batch
from timm_icasc.evaluation.faithfulness import Subject, map_values, random_values
from timm_icasc.evaluation.options import add_checkpoint_arguments
from timm_icasc.evaluation.side_by_side import load_checkpoints
from timm_icasc.features.outputs import scores_of
from timm_icasc.features.resolve import resolve_layers
from timm_icasc.features.tap import capture_features, check_batch
from timm_icasc.labels import MULTI
from timm_icasc.losses import SIGMA, attention_overlap
from timm_icasc.objective.maps import class_attention, score_gradients
from timm_icasc.runs.files import write_text
from timm_icasc.runs.provenance import provenance
from timm_icasc.runs.tables import markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser, nargs=1)
    parser.add_argument('--at', nargs=2, action='append', metavar=('INNER', 'LAST'), dest='pairs',
                        help='module paths of two layers; may be given several times (default: the automatic choice)')
    parser.add_argument('--layer', default='last', choices=('last', 'inner'), help='whose maps (default: %(default)s)')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS), metavar='METHOD')
    parser.add_argument('--images', type=int, default=200, metavar='N', help='evenly spaced (default: %(default)s)')
    parser.add_argument('--curves', action='store_true', help='deletion, insertion, average drop and increase as well')
    parser.add_argument('--json', metavar='FILE', help='write the table here')


# The table's columns, and what `map_values` calls them.
COLUMNS = {
    'silent_maps': 'silent', 'own_drop': 'own drop', 'class_specificity': 'specificity', 'deletion': 'deletion',
    'insertion': 'insertion', 'average_drop': 'average drop', 'average_increase': 'increase'}


def maps_of(layer, model, images, drawn, methods):
    """Maps `[B, K, h, w]` of each method from one forward pass, and the feature `[B, C, h, w]`."""
    with capture_features(model, [layer], order=1, inference=True) as features:
        logits = scores_of(model, images)
    check_batch(features, logits)
    feature, size = features[layer.path], tuple(images.shape[-2:])
    columns = {name: [] for name in methods}
    for k in range(drawn.shape[1]):
        cotangent = torch.zeros_like(logits).scatter(1, drawn[:, k:k + 1], 1.)
        gradients = {}
        for name in methods:
            score = METHODS[name].score
            if score not in gradients:
                gradients[score], = score_gradients(name, logits, cotangent, [feature], create_graph=False)
            columns[name].append(class_attention(name, layer, feature, gradients[score], size).detach())
    maps = {name: torch.stack(column, 1) for name, column in columns.items()}
    return maps, layer.to_nchw(feature.detach(), size)


class Table:
    """Means of what is measured, by row of the table."""

    def __init__(self):
        self.rows: dict[tuple[str, str], dict[str, list[float]]] = {}

    def add(self, row, name, values):
        self.rows.setdefault(row, {}).setdefault(name, []).extend(torch.as_tensor(values).flatten().tolist())

    def means(self):
        result = []
        for (place, method), columns in self.rows.items():
            arrays = {name: np.array(values) for name, values in columns.items()}
            result.append({'layer': place, 'method': method, **{
                name: float(np.nanmean(a)) if not np.isnan(a).all() else None for name, a in arrays.items()}})
        return result


def measure(table, row, subject, maps, drawn, weights, asked_for, curves):
    """One method at one layer, on a batch."""
    values = map_values(subject, maps, drawn, weights, asked_for, curves)
    for name, column in COLUMNS.items():
        if name in values:
            table.add(row, column, values[name][asked_for])
    for i, count in enumerate(asked_for.sum(1).tolist()):
        if count > 1:
            first, second = torch.triu_indices(count, count, 1)
            table.add(row, 'overlap', attention_overlap(maps[i, first], maps[i, second]))


def measure_boxes(table, row, checkpoint, maps, sizes, present, indices):
    boxes = [boxes_by_class(checkpoint.dataset, index) for index in indices]
    transform = checkpoint.dataset.transform.transform  # inside SizedTransform
    geometries = [transform_geometry(transform, size) for size in sizes]
    for pair in localise_batch(maps, present, boxes, geometries, indices, SIGMA, 0.):
        for column in ('pointing', 'energy'):
            table.add(row, column, pair[column])


def classes_of(checkpoint, target, logits):
    """The classes whose maps are measured: `[B, K]` filled up, and for each image those that count, as lists."""
    if checkpoint.labels is MULTI:
        present = checkpoint.labels.present(target)
        return collect._filled_up(present, target.device), present
    rival = checkpoint.labels.select(logits, target).confused.argmax(1)
    drawn = torch.stack([target, rival], 1)
    return drawn, drawn.tolist()


def measure_batch(table, checkpoint, choices, args, images, sizes, target, indices):
    subject = Subject.of(checkpoint.model, images, checkpoint.labels.probabilities)
    drawn, counted = classes_of(checkpoint, target, subject.logits)
    weights, asked_for = collect._told_from(counted, drawn, subject.logits), collect._asked_for(counted, drawn)
    for layers in choices:
        layer = getattr(layers, args.layer)
        maps, feature = maps_of(layer, checkpoint.model, images, drawn, args.methods)
        for name in args.methods:
            row = (layer.path, name)
            measure(table, row, subject, maps[name], drawn, weights, asked_for, args.curves)
            table.add(row, 'below 0', (feature < 0).float().mean((1, 2, 3)))
            if hasattr(checkpoint.dataset, 'boxes'):
                measure_boxes(
                    table, row, checkpoint, maps[name], sizes, checkpoint.labels.present(target), indices)
    for name, value in random_values(subject, indices, drawn, weights, asked_for).items():
        if name in COLUMNS:
            table.add(('-', 'random region'), COLUMNS[name], value[asked_for])


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.images < 1:
        raise SystemExit(f'--images must be at least 1, got {args.images}.')
    checkpoint, = load_checkpoints(args.checkpoints, args)
    dataset, size = checkpoint.dataset, checkpoint.data_config['input_size']
    choices = [resolve_layers(checkpoint.model, pair, size) for pair in args.pairs or ()] or [checkpoint.layers]
    if None in choices:
        raise SystemExit(f"no layers were found in '{checkpoint.source}': name them with --at INNER LAST.")
    # The same layer of two pairs is one block of rows.
    choices = list({getattr(layers, args.layer): layers for layers in choices}.values())
    indices = evenly_spaced(dataset, args.images).indices
    table = Table()
    with transformed_by(dataset, SizedTransform(dataset.transform)):
        loader = make_loader(checkpoint, Numbered(dataset, indices), checkpoint.batch_size)
        for (images, sizes), target, rows in tqdm(loader, desc=checkpoint.label, disable=None):
            sizes = [(int(w), int(h)) for w, h in zip(*sizes, strict=True)]
            measure_batch(
                table, checkpoint, choices, args, images.to(checkpoint.device), sizes, target.to(checkpoint.device),
                [indices[row] for row in rows])
    means = table.means()
    columns = dict.fromkeys(key for row in means for key in row)
    print(markdown([{
        key: value if isinstance(value, str) else '-' if value is None else f'{value:.3f}'
        for key, value in {**dict.fromkeys(columns), **row}.items()} for row in means]))
    if args.json:
        write_text(Path(args.json), json.dumps({
            'checkpoint': checkpoint.label, 'model': checkpoint.args.model, 'images': len(indices),
            'layer': args.layer, 'rows': means, **provenance(checkpoint.args)}, indent=1) + '\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    run(parser.parse_args())
