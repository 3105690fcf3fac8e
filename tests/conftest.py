"""Loads the tests' plugin where tests are run."""
import os

# Before torch starts its thread pools: small tensors gain nothing from threads, and lose much on a busy machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_configure(config):
    """Hide a GPU from the tests that are not its own, and load the plugin."""
    if (config.getoption('markexpr') or '').strip() != 'gpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    _load_plugin(config)


def _load_plugin(config):
    """The process that only hands out the tests (pytest-xdist) loads no torch: the others wait for it to begin."""
    hands_out = config.getoption('dist', 'no') != 'no' and not hasattr(config, 'workerinput')
    if not hands_out or config.getoption('collectonly'):
        config.pluginmanager.import_plugin('helpers.fixtures')
