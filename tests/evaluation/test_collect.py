"""Evaluation measures the very maps that training trains, also where a module puts out several tensors."""
import copy
import gc
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.in_training import in_training
from helpers.runs import make_packed_voc
from helpers.several_outputs import PARAMS, load_run, tapped  # noqa: F401

from timm_icasc import ICASCLayers, ICASCTask, attention_maps, icasc_forward
from timm_icasc.evaluation.collect import _Collector, collect_records
from timm_icasc.figures.views import view_classes, view_layers
from timm_icasc.objective.separability import evaluate_attention
from timm_icasc.paper.segmentation.cues import make_cues


@pytest.fixture(scope='module', params=PARAMS)
def checkpoint(request, tmp_path_factory):
    """A run whose args.yaml names no layers, on images of several classes with boxes."""
    folder = tmp_path_factory.mktemp('several')
    make_packed_voc(folder / 'voc')
    yield load_on_voc(folder, 'run', request.param)
    shutil.rmtree(folder)


def load_on_voc(folder, run, name, **options):
    return load_run(
        folder / run, name, num_classes=3, dataset='voc2007-packed', data_dir=str(folder / 'voc'), val_split='val',
        **options)


@pytest.fixture(scope='module')
def task(checkpoint):
    """A training of it."""
    return ICASCTask(checkpoint.model, input_size=checkpoint.data_config['input_size'], verbose=False)


def test_maps_are_those_of_training(checkpoint, task):
    model, size = checkpoint.model, checkpoint.data_config['input_size']
    images = torch.stack([checkpoint.dataset[i][0] for i in (0, 1)])
    target = torch.tensor([0, 1])
    trained = icasc_forward(model, images, target, task.resolve_layers(size), task.config)
    for place in ('inner', 'last'):
        evaluated = attention_maps(
            model, images, target[:, None], method='ach', layer=place, layers=checkpoint.layers)[:, 0]
        assert evaluated.shape[1:] == getattr(checkpoint.layers, place).grid and evaluated.any()
        torch.testing.assert_close(evaluated, trained.maps[f'target_{place}'].detach())


def test_every_measure_is_taken_where_training_looks(checkpoint, task, tapped):  # noqa: F811
    images = torch.stack([checkpoint.dataset[i][0] for i in (0, 1)])
    task(images, torch.tensor([0, 1]))
    trained = set(tapped)
    tapped.clear()
    for layer in ('inner', 'last'):
        records = collect_records(checkpoint, indices=range(2), layer=layer, robustness=True)
        assert {'overlap_cooccurring', 'flip_iou'} <= set(records.images) and records.pairs
    evaluate_attention(checkpoint.model, [(images, torch.tensor([0, 1]))], layers=checkpoint.layers)
    assert set(tapped) == trained


@pytest.mark.parametrize('checkpoint', ['coat_tiny'], indirect=True)
def test_layers_that_no_path_means(checkpoint, tapped):  # noqa: F811
    """Objects are handed on as they are: the output at 8 x 8 of a module whose path means that at 2 x 2."""
    checkpoint = copy.copy(checkpoint)
    inner, last = checkpoint.layers
    checkpoint.layers = ICASCLayers(inner, replace(last, output_index=1, grid=(8, 8)))
    collect_records(checkpoint, indices=range(2), robustness=True)
    assert set(tapped) == set(checkpoint.layers)
    tapped.clear()
    images, target = torch.stack([checkpoint.dataset[i][0] for i in (0, 1)]), torch.tensor([0, 1])
    evaluate_attention(checkpoint.model, [(images, target)], layers=checkpoint.layers)
    ICASCTask(checkpoint.model, layers=checkpoint.layers, verbose=False)(images, target)
    view_classes(checkpoint, [0])
    view_layers(checkpoint, [0], 'ach')
    make_cues(checkpoint.model, images, torch.eye(3)[:2], (8, 8), layers=checkpoint.layers)
    assert set(tapped) == set(checkpoint.layers) and len(tapped) == 8


def test_a_run_that_names_its_layers_by_path(checkpoint):
    """The paths of the automatic choice mean that choice, in training and afterwards."""
    automatic, size = checkpoint.layers, checkpoint.data_config['input_size']
    paths = [layer.path for layer in automatic]
    folder = Path(checkpoint.args.data_dir).parent
    named = load_on_voc(folder, 'named', checkpoint.args.model, icasc_layers=paths)
    task = ICASCTask(named.model, layers=paths, input_size=size, verbose=False)
    assert named.layers == task.resolve_layers(size) == automatic


def test_what_is_kept_of_an_image_is_its_numbers(tmp_path, monkeypatch):
    """No image or graph outlives its batch: what lives grows by a few numbers an image, and its map's cells."""
    checkpoint, living = load_run(tmp_path / 'run', 'resnet20_cifar', num_classes=10, dataset='digits'), []
    checkpoint.batch_size, add = 1, _Collector.add

    def counted(self, *args):
        add(self, *args)
        living.append(sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor))

    monkeypatch.setattr(_Collector, 'add', counted)
    collect_records(checkpoint, indices=range(4), robustness=True, faithfulness=True)
    cells = math.prod(checkpoint.layers.last.grid)
    assert max(living[1:]) - living[1] < 200 + 2 * cells < 3 * 32 * 32  # scores, target, 20 measures of two images


@pytest.mark.parametrize('has_layers', [True, False])
def test_a_look_in_the_midst_of_training_is_one_in_evaluation_mode(has_layers, tmp_path):
    checkpoint = load_run(tmp_path / 'run', 'resnet20_cifar', num_classes=10, dataset='digits', drop=0.5)
    if not has_layers:
        checkpoint.layers = None
    measures = {'indices': range(3), 'robustness': has_layers, 'faithfulness': has_layers}
    expected = collect_records(checkpoint, **measures)
    with in_training(checkpoint.model):
        found = collect_records(checkpoint, **measures)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_equal(found.images, expected.images)
