"""The plugin of the tests: fixtures that several rooms use, and what is done around each test."""
import gc
import os

import pytest
import torch
from helpers.hub_fixtures import (  # noqa: F401
    averaged,
    client,
    compared,
    falling,
    hub,
    hub_of_the_session,
    multilabel,
    noise,
    noise_options,
    nowhere,
    train_on_noise,
)
from helpers.models import FAMILIES, ToyNet, create
from helpers.versions import too_old


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """With the oldest versions that the package allows, a test of what needs later ones is skipped."""
    try:
        return (yield)
    except Exception as e:
        if line := too_old(e):
            pytest.skip(line)
        raise


def pytest_collection_finish(session):
    """What is imported stays: the garbage collector need not look through a million objects of torch each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def no_wait_for_the_disk():
    """What the tests write need not last through a loss of power: a small training waits 34 times for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: None)
        yield


@pytest.fixture(params=list(FAMILIES), scope='session')
def family(request):
    """(model in evaluation mode, images [2, 3, height, width], expected layers) of one model family."""
    _, input_size, *expected = FAMILIES[request.param]
    generator = torch.Generator().manual_seed(1)
    return create(request.param).eval(), torch.randn(2, *input_size, generator=generator), expected


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return ToyNet()
