"""Tests that need a GPU. All others are run without one: what they expect to the last bit, a GPU rounds differently."""
import pytest
import torch

__all__ = ['GPU', 'on_a_gpu']

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')]


def on_a_gpu(test):
    """Run the test by `pytest -m gpu` alone."""
    for mark in GPU:
        test = mark(test)
    return test
