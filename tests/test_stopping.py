"""Stopping by a signal: every rank after the same step."""

import signal

import pytest

from isthmus.jobs.stopping import stopping_on
from isthmus.links.agreement import gather_json


@pytest.mark.ranks(3)
def test_all_ranks_stop_after_the_same_step_though_one_was_told(comm):
    with stopping_on(signal.SIGUSR1, comm, 1) as stop:
        for step in range(1, 1000):
            if comm.rank == 2 and step == 50:  # any may be, not only the job's rank 0
                signal.raise_signal(signal.SIGUSR1)
            if stop.told(step):
                break
        assert 50 <= step < 999
        assert gather_json(comm, step) == [step] * 3
    signal.raise_signal(signal.SIGUSR1)  # too late: it is ignored


@pytest.mark.ranks(3)
def test_ranks_that_are_not_told_go_on_and_seldom_ask(comm):
    asked = []
    with stopping_on(signal.SIGUSR1, comm, 0) as stop:
        for step in range(7, 1007):
            before = stop.next_step
            assert not stop.told(step)
            asked += [step] if stop.next_step != before else []
    assert len(asked) <= 12
    assert gather_json(comm, asked) == [asked] * 3


@pytest.mark.ranks(3)
def test_a_signal_that_comes_while_others_go_is_not_lost(comm):
    with stopping_on(signal.SIGUSR1, comm, 0) as stop:
        assert not stop.told(1)
        if comm.rank == 2:
            signal.raise_signal(signal.SIGUSR1)
        stop.ask_among(comm, 0)  # in the job of those who are left
        stop.ask_among(comm, 1)  # and of fewer still, as one has gone meanwhile
        assert stop.told(2)
    with stopping_on(signal.SIGUSR1, comm, 0) as stop:
        stop.ask_among(comm, 1)
        if comm.rank == 2:
            signal.raise_signal(signal.SIGUSR1)
        assert stop.told(2)
