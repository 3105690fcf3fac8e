"""What the processes of a distributed run decide alike."""
import re
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from helpers.processes import in_two_processes

from timm_icasc.errors import ICASCError, explain
from timm_icasc.training.processes import check_alike, check_same_options, said_by_first

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
        "{'epoch': 3} the processes do not see the same epoch to go on from: 3, 4: --output must be a folder that all "
        'machines share.'}


def compare_options(rank, folder):
    check_same_options(TWO, {'lr': 0.1, 'device': f'cuda:{rank}', 'data_dir': f'/scratch/{rank}'})
    try:
        check_same_options(TWO, {'lr': 0.1, 'seed': rank})
    except ICASCError as e:
        (folder / f'{rank}').write_text(str(e))


def test_processes_with_different_options_do_not_train_together(tmp_path):
    """They did, and saved what is of neither; what differs between machines may differ."""
    in_two_processes(compare_options, tmp_path)
    assert {(tmp_path / f'{rank}').read_text() for rank in range(2)} == {
        'the processes were started with different options, --seed 0, 1: start all with the same.'}


def wait_for_one_that_has_ended(rank, folder):
    dist.barrier()
    if rank == 1:
        return
    try:
        dist.barrier()
    except RuntimeError as e:
        (folder / 'said').write_text(explain(e))


def test_an_exchange_with_a_process_that_has_ended_is_one_line(tmp_path):
    """It was a traceback of torch from each of the others, in which the one line that says why was lost."""
    in_two_processes(wait_for_one_that_has_ended, tmp_path)
    said = (tmp_path / 'said').read_text()
    assert re.fullmatch(
        r'the exchange with the other processes failed \(.*Connection (closed|reset) by peer.*\); '
        r'where one of them has ended, it has said why\.', said), said


def test_what_nccl_says_is_one_line():
    class DistBackendError(RuntimeError):
        """As torch's, by name."""

    assert 'failed (NCCL error in: x.cpp, remote process exited);' in explain(
        DistBackendError('NCCL error in: x.cpp,\nremote process exited'))
    assert explain(RuntimeError('shapes do not fit')) is None


def test_one_process_asks_nobody():
    assert said_by_first(ALONE, 5) == 5
    check_alike(ALONE, 5, 'epoch')
    check_same_options(ALONE, {'seed': 1})


@pytest.mark.parametrize('value', [None, False, {'eval_top1': 1.}])
def test_any_value(value):
    assert said_by_first(ALONE, value) is value
