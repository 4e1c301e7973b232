"""Requests, played: known answers, and what holds for all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from isthmus.inference.dispatch import LeastPending, Weighted
from isthmus.timing.requests import NOTHING, Asker, Seconds
from isthmus.timing.requests import play_requests as played


def play_requests(askers, servers, batch, window, rule=LeastPending, rates=None):
    return played(askers, servers, batch, window, lambda: rule(rates or [1.0] * len(servers)))


def asker(arrivals, kept=None, part=NOTHING, **changes):
    arrivals = np.array(arrivals, float)
    kept = np.zeros(len(arrivals), bool) if kept is None else np.array(kept)
    values = {"up": (0.01, 1000.0), "down": (0.02, 1000.0), "heads": (0.0, 0.0)}
    values |= {"request_nbytes": 10.0, "answer_nbytes": 1.0} | changes
    return Asker(arrivals, kept, part, **values)


def test_one_request_takes_what_its_parts_take():
    (terms,) = play_requests([asker([0.5], part=Seconds(0.1, 0.05))], [Seconds(0.2, 0.1)], 4, 2)
    found = {name: float(value[0]) for name, value in terms.items()}
    assert found == pytest.approx(
        {"edge": 0.15, "wait": 0.0, "send": 0.01 + 0.01, "compute": 0.3, "back": 0.001 + 0.02}
    )


def test_a_full_link_makes_requests_wait_and_a_window_makes_them_wait_before_it():
    many = asker(np.zeros(20), up=(0.0, 100.0), down=(0.0, 1e9))
    (terms,) = play_requests([many], [NOTHING], 1, 1000)
    np.testing.assert_allclose(terms["send"], 0.1 * np.arange(1, 21))  # a wire of 10 bytes takes 0.1 s
    (narrow,) = play_requests([many], [NOTHING], 1, 1)
    np.testing.assert_allclose(narrow["send"], 0.1)
    np.testing.assert_allclose(narrow["wait"], 0.1 * np.arange(20), atol=1e-9)


def test_cloud_ranks_share_the_work_and_edge_ranks_share_a_cloud_rank():
    fast = {"up": (0.0, 1e12), "down": (0.0, 1e12)}
    one = asker(np.zeros(8), **fast)
    (alone,) = play_requests([one], [Seconds(1.0, 0.0)], 1, 8)
    (two,) = play_requests([one], [Seconds(1.0, 0.0)] * 2, 1, 8)
    assert [alone["compute"].max(), two["compute"].max()] == pytest.approx([8, 4])
    (uneven,) = play_requests([one], [Seconds(1.0, 0.0)] * 2, 1, 8, Weighted, [1.0, 3.0])
    assert uneven["compute"].max() == pytest.approx(6)  # six of eight go to the second
    both = play_requests([one, one], [Seconds(1.0, 0.0)], 1, 8)
    assert max(terms["compute"].max() for terms in both) == pytest.approx(16)


@given(
    some.lists(some.floats(0, 1), min_size=1, max_size=40),
    some.integers(1, 5),
    some.integers(1, 4),
    some.integers(0, 2**20),
)
def test_every_request_is_answered_once_and_none_before_it_can_be(gaps, batch, window, seed):
    random = np.random.default_rng(seed)
    arrivals, kept = np.cumsum(gaps), random.random(len(gaps)) < 0.5
    one = asker(arrivals, kept, Seconds(0.01, 0.002))
    (terms,) = play_requests([one], [Seconds(0.003, 0.001)] * 2, batch, window)
    assert (terms["edge"] >= 0.012 - 1e-9).all()
    for name, least in (("wait", 0), ("send", 0.02), ("compute", 0.004), ("back", 0.021)):
        assert np.isnan(terms[name][kept]).all()
        assert (terms[name][~kept] >= least - 1e-9).all()
