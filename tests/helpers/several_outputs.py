"""The architectures whose layers are one of several tensors that a module puts out, as runs with random weights."""
import argparse
import json
from pathlib import Path

import pytest
from helpers.runs import make_run

from timm_icasc.evaluation.checkpoint import load_checkpoint
from timm_icasc.evaluation.options import add_checkpoint_arguments
from timm_icasc.objective import forward, maps

RECORDS = json.loads((Path(__file__).parents[2] / 'docs' / 'support.json').read_text())['models']
NAMES = [
    name for name, record in RECORDS.items()
    if any(record.get(place, {}).get('output_index') for place in ('inner', 'last'))]

# One of each kind, at a small input size that it takes; the others are large.
SMALL = {'coat_tiny': 64, 'crossvit_tiny_240': 120, 'efficientvim_m1': 96, 'tnt_s_legacy_patch16_224': 64}
PARAMS = [pytest.param(name, marks=() if name in SMALL else pytest.mark.architectures) for name in NAMES]


def load_run(folder, name, **options):
    """A run of the architecture with random weights, as `timm-icasc` loads it; options as of train_timm.py."""
    make_run(folder, name, img_size=SMALL.get(name) or RECORDS[name]['input_size'][1], **options)
    parser = argparse.ArgumentParser()
    add_checkpoint_arguments(parser)
    return load_checkpoint(str(folder), parser.parse_args([]))


@pytest.fixture
def tapped(monkeypatch):
    """The layers that attention was taken at, in the order of the passes."""
    found = []
    for module in (maps, forward):
        def recording(model, layers, *args, original=module.capture_features, **kwargs):
            found.extend(layers)
            return original(model, layers, *args, **kwargs)
        monkeypatch.setattr(module, 'capture_features', recording)
    return found
