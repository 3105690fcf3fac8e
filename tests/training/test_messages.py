"""What commands print of warnings and of other libraries' messages."""
import argparse
import logging
import sys
import warnings

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


@pytest.mark.parametrize('rank, said', [(None, True), ('0', True), ('1', False)])
def test_of_several_processes_the_first_warns(rank, said, monkeypatch, capsys):
    """Each of them looks at the same folders."""
    monkeypatch.delenv('RANK', raising=False)
    if rank is not None:
        monkeypatch.setenv('RANK', rank)
    with messages_of(argparse.ArgumentParser()):
        sys.stderr.write(warnings.formatwarning('a folder\n is empty', UserWarning, 'file.py', 1))
    assert capsys.readouterr().err == 'warning: a folder is empty\n' * said
