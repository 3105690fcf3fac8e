"""Which layer and which kind of map explain a network best: every method at several layers, on one network's images.

    python docs/evidence/layers_and_methods.py RUN --at blocks.4 blocks.6 --at blocks.5.0.bn1 bn2 --images 200
    python docs/evidence/layers_and_methods.py RUN --data-dir DIR --layer inner --json FILE.json

Each `--at INNER LAST` is a block of rows; without one, the automatic choice. Of each image, the maps of its present
classes are measured (with one class per image, of its class and of the most confusing one) as `timm-icasc eval
--faithfulness` does: where a class's map is highest, a quarter of the image is blurred. `--curves` adds deletion,
insertion, average drop and increase (20 more forward passes a map). With boxes, localisation is measured as well.
All methods of a layer share one forward pass and its gradients. Prints a table; `--json` keeps it as a record.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from timm_icasc.attention import METHODS
from timm_icasc.data import evenly_spaced
from timm_icasc.evaluation import collect
from timm_icasc.evaluation.boxes import localise, transform_geometry
from timm_icasc.evaluation.checkpoint import load_checkpoints
from timm_icasc.evaluation.faithfulness import (
    average_drop,
    deletion_insertion,
    highest,
    own_and_other,
    random_maps,
    region_drops,
)
from timm_icasc.evaluation.options import add_checkpoint_arguments
from timm_icasc.features.outputs import class_scores
from timm_icasc.features.resolve import resolve_layers
from timm_icasc.features.tap import capture_features
from timm_icasc.labels import MULTI
from timm_icasc.losses import attention_overlap
from timm_icasc.objective.maps import score_gradients
from timm_icasc.runs.provenance import provenance
from timm_icasc.runs.tables import markdown

SIGMA = 0.55


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_arguments(parser, nargs=1)
    parser.add_argument('--at', nargs=2, action='append', metavar=('INNER', 'LAST'), dest='pairs',
                        help='module paths of two layers; may be given several times (default: the automatic choice)')
    parser.add_argument('--layer', default='last', choices=('last', 'inner'), help='whose maps (default: %(default)s)')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS), metavar='METHOD')
    parser.add_argument('--images', type=int, default=200, metavar='N', help='evenly spaced (default: %(default)s)')
    parser.add_argument('--curves', action='store_true', help='deletion, insertion, average drop and increase as well')
    parser.add_argument('--json', metavar='FILE', help='write the table here')


def maps_of(layer, model, images, drawn, methods):
    """Maps `[B, K, h, w]` of each method from one forward pass, the scores, and the feature `[B, C, h, w]`."""
    with capture_features(model, [layer], order=1, inference=True) as features:
        logits = class_scores(model(images))
    feature, size = features[layer.path], tuple(images.shape[-2:])
    columns = {name: [] for name in methods}
    for k in range(drawn.shape[1]):
        cotangent = torch.zeros_like(logits).scatter(1, drawn[:, k:k + 1], 1.)
        gradients = {}
        for name in methods:
            score = METHODS[name].score
            if score not in gradients:
                gradient, = score_gradients(name, logits, cotangent, [feature], create_graph=False)
                gradients[score] = layer.to_nchw(gradient, size)
            columns[name].append(METHODS[name].function(layer.to_nchw(feature, size), gradients[score]).detach())
    return {name: torch.stack(maps, 1) for name, maps in columns.items()}, logits.detach(), layer.to_nchw(
        feature.detach(), size)


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


def measure(table, place, name, checkpoint, images, maps, drawn, weights, counts, logits, curves):
    """One method at one layer, on a batch."""
    model, size = checkpoint.model, images.shape[-2:]
    for k in range(drawn.shape[1]):
        real = torch.tensor([k < count for count in counts])
        silent = maps[:, k].amax((-2, -1)) == 0
        table.add((place, name), 'silent', silent[real].float())
        drops = region_drops(model, images, highest(maps[:, k], size), logits)
        own, specificity = own_and_other(drops, drawn[:, k], weights[:, k])
        kept = real & ~silent
        table.add((place, name), 'own drop', own[kept])
        table.add((place, name), 'specificity', specificity[kept])
        if curves:
            probabilities = checkpoint.labels.probabilities
            deletion, insertion = deletion_insertion(model, images, maps[:, k], drawn[:, k], probabilities)
            fall, rise = average_drop(
                model, images, maps[:, k], drawn[:, k], probabilities(logits), probabilities)
            for column, values in (
                    ('deletion', deletion), ('insertion', insertion), ('average drop', fall), ('increase', rise)):
                table.add((place, name), column, values[kept])
    for i, count in enumerate(counts):
        if count > 1:
            first, second = torch.triu_indices(count, count, 1)
            table.add((place, name), 'overlap', attention_overlap(maps[i, first], maps[i, second]))


def measure_boxes(table, place, name, checkpoint, maps, sizes, present, indices):
    for i, classes in enumerate(present):
        boxes = collect._boxes_by_class(checkpoint.dataset, indices[i])
        geometry = transform_geometry(checkpoint.dataset.transform, sizes[i])
        heats = F.interpolate(
            maps[i][None], size=(geometry.height, geometry.width), mode='bilinear', align_corners=False)[0].numpy()
        for k, index in enumerate(classes):
            mapped = geometry.boxes(boxes[index]) if index in boxes else ()
            if len(mapped):
                values = localise(heats[k], mapped, SIGMA, 0.)
                for column in ('pointing', 'energy'):
                    table.add((place, name), column, values[column])


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    checkpoint, = load_checkpoints(args.checkpoints, args)
    dataset, several = checkpoint.dataset, checkpoint.labels is MULTI
    indices = evenly_spaced(dataset, args.images).indices
    size = checkpoint.data_config['input_size']
    pairs = {f'{inner}, {last}': (inner, last) for inner, last in args.pairs or ()}
    choices = {name: resolve_layers(checkpoint.model, pair, size) for name, pair in pairs.items()} or {
        'automatic': checkpoint.layers}
    table, batch = Table(), checkpoint.batch_size
    with collect._transformed_by(dataset, collect._Sized(dataset.transform)):
        loader = collect._loader(checkpoint, collect._Numbered(dataset, indices), batch)
        for (images, sizes), target, rows in tqdm(loader, desc=checkpoint.label, disable=None):
            sizes = [(int(w), int(h)) for w, h in zip(*sizes, strict=True)]
            for layers in choices.values():
                layer = getattr(layers, args.layer)
                with torch.no_grad():
                    logits = class_scores(checkpoint.model(images))
                if several:
                    present = checkpoint.labels.present(target)
                    drawn = collect._filled_up(present, images.device)
                else:
                    rival = logits.scatter(1, target[:, None], -torch.inf).argmax(1)
                    drawn = torch.stack([target, rival], 1)
                    present = drawn.tolist()
                weights = collect._told_from(present, drawn, logits)
                maps, logits, feature = maps_of(layer, checkpoint.model, images, drawn, args.methods)
                counts = [len(classes) for classes in present]
                with torch.no_grad():
                    for name in args.methods:
                        measure(
                            table, layer.path, name, checkpoint, images, maps[name], drawn, weights, counts, logits,
                            args.curves)
                        table.add((layer.path, name), 'below 0', (feature < 0).float().mean())
                        if hasattr(dataset, 'boxes'):
                            measure_boxes(
                                table, layer.path, name, checkpoint, maps[name], sizes,
                                checkpoint.labels.present(target), [indices[row] for row in rows])
            with torch.no_grad():
                drops = region_drops(
                    checkpoint.model, images,
                    highest(random_maps([indices[r] for r in rows], images), images.shape[-2:]), logits)
                for k in range(drawn.shape[1]):
                    real = torch.tensor([k < count for count in counts])
                    own, specificity = own_and_other(drops, drawn[:, k], weights[:, k])
                    table.add(('-', 'random region'), 'own drop', own[real])
                    table.add(('-', 'random region'), 'specificity', specificity[real])
    means = table.means()
    print(markdown([{
        key: value if isinstance(value, str) else '-' if value is None else f'{value:.3f}'
        for key, value in {**dict.fromkeys({k: None for row in means for k in row}), **row}.items()} for row in means]))
    if args.json:
        Path(args.json).write_text(json.dumps({
            'checkpoint': checkpoint.label, 'model': checkpoint.args.model, 'images': len(indices),
            'layer': args.layer, 'rows': means, **provenance(checkpoint.args)}, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))
