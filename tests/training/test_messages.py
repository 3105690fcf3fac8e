"""What commands print of warnings and of other libraries' messages."""
import argparse
import logging

import pytest

from timm_icasc.training.messages import messages_of


@pytest.fixture
def noted():
    """What the handlers of the root logger and of the Hub's print."""
    lines = []

    class Note(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    loggers, note = (logging.getLogger(), logging.getLogger('huggingface_hub')), Note()
    for logger in loggers:
        logger.addHandler(note)
    yield lines
    for logger in loggers:
        logger.removeHandler(note)


def test_messages_of_the_hub_come_once_and_in_one_line(noted):
    """Its client has a handler of its own beside the root logger's."""
    hub = logging.getLogger('huggingface_hub.utils')
    with messages_of(argparse.ArgumentParser()):
        hub.warning('a token\n  is missing')
    assert noted == ['a token is missing']
    hub.warning('as before')
    assert noted[1:] == ['as before', 'as before'], 'a program that calls a command has its own back'
