"""What losses will cost, by formula, against failures that are drawn; and who took part in a run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from isthmus.jobs.failing import Failing, failure_words
from isthmus.pages.membership import lost_sentence, member_rows
from isthmus.timing.losses import daly_seconds, failure_seconds, with_checkpoints, young_seconds


def played(interval, checkpoint, restart, mtbf, segments=200_000):
    """Return the goodput of segments that are computed one after another, with failures by chance."""
    draw, left, seconds = np.random.default_rng(1), np.full(segments, interval + checkpoint), 0.0
    while left.size:
        until = draw.exponential(mtbf, left.size)
        done = until >= left
        seconds += np.where(done, left, until).sum()
        left = np.full((~done).sum(), restart + interval + checkpoint)
    return segments * interval / seconds


@pytest.mark.parametrize(("checkpoint", "restart", "mtbf"), [(2, 60, 3600), (10, 100, 300)])
def test_goodput_is_that_of_failures_that_are_drawn_and_dalys_interval_is_best(
    checkpoint, restart, mtbf
):
    best = daly_seconds(checkpoint, mtbf)
    by_formula = with_checkpoints(best, checkpoint, restart, mtbf).goodput
    assert by_formula == pytest.approx(played(best, checkpoint, restart, mtbf), rel=3e-3)
    for factor in (0.8, 1.25):
        assert with_checkpoints(factor * best, checkpoint, restart, mtbf).goodput < by_formula
    young = young_seconds(checkpoint, mtbf)
    assert with_checkpoints(young, checkpoint, restart, mtbf).goodput <= by_formula
    assert young == pytest.approx(math.sqrt(2 * checkpoint * mtbf))


def test_failures_of_ranks_and_sites_add_up_and_are_told():
    assert failure_seconds(10, 2, 1000.0, 400.0) == pytest.approx(1 / (10 / 1000 + 2 / 400))
    assert failure_seconds(10, 2, None, None) == math.inf
    told = Failing(1000.0, 500.0, 2.0, 60.0, 1.0).told(64, 3, 0.05)
    assert told["mtbf_seconds"] == pytest.approx(3600 / (64 / 1000 + 3 / 500))
    assert told["young"]["goodput"] <= told["daly"]["goodput"] < told["survive"]["goodput"] < 1
    assert failure_words(told)[0].startswith("a rank or a site fails every 14 h 17 min;")
    assert with_checkpoints(1.0, 1.0, 1e6, 1e-3).goodput == 0.0


def test_a_report_tells_who_took_part_and_what_a_loss_has_cost():
    cluster = {"site": [{"name": "a", "ranks": 2}, {"name": "b", "ranks": 1}]}
    fewer = {"site": [{"name": "a", "ranks": 1}, {"name": "b", "ranks": 1}]}

    run = SimpleNamespace(
        steps=[{"step": step, "step_seconds": 0.004 if step <= 3 else 0.006} for step in range(1, 11)],
        metrics=[
            {"kind": "members", "step": 0, "cluster": cluster, "shards_of_rank": [[0], [1], [2]]},
            {"kind": "lost", "step": 3, "ranks": [1], "seconds": 0.25, "never": [1]},
            {"kind": "members", "step": 3, "cluster": fewer, "shards_of_rank": [[0], [2]]},
        ],
    )
    assert member_rows(run) == [
        ("1 to 3", "a 2, b 1", 3, ""),
        (
            "4 to 10",
            "a 1, b 1",
            2,
            "rank 1 gone, the others went on after 0.25 s; nobody could read shards 1; a step 6.0 ms, "
            "4.0 ms before",
        ),
    ]
    assert (
        lost_sentence(run.metrics[1] | {"never": []}) == "rank 1 gone, the others went on after 0.25 s"
    )
    assert "after 0.25 s; 2 steps were made again; nobody" in lost_sentence(
        run.metrics[1] | {"undone": 2}
    )
    run.metrics = run.metrics[:1]
    assert member_rows(run) == []
