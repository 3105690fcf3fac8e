"""What the processes of a distributed run decide alike."""
from types import SimpleNamespace

import pytest
from helpers.processes import in_two_processes

from timm_icasc.errors import ICASCError
from timm_icasc.training.processes import check_alike, said_by_first

TWO = SimpleNamespace(distributed=True, world_size=2)
ALONE = SimpleNamespace(distributed=False)


def decide(rank, folder):
    said = said_by_first(TWO, {'epoch': rank + 3})
    check_alike(TWO, 'x', 'epoch')
    try:
        check_alike(TWO, rank + 3, 'epoch to go on from')
    except ICASCError as e:
        (folder / f'{rank}').write_text(f'{said} {e}')


def test_two_processes(tmp_path):
    in_two_processes(decide, tmp_path)
    told = {(tmp_path / f'{rank}').read_text() for rank in range(2)}
    assert told == {
        "{'epoch': 3} the processes do not see the same epoch to go on from: 3, 4. --output must be a folder that all "
        'machines share.'}


def test_one_process_asks_nobody():
    assert said_by_first(ALONE, 5) == 5
    check_alike(ALONE, 5, 'epoch')


@pytest.mark.parametrize('value', [None, False, {'eval_top1': 1.}])
def test_any_value(value):
    assert said_by_first(ALONE, value) is value
