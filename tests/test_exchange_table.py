"""What a report tells of exchanges: what came of them, their bytes, who took part."""

from types import SimpleNamespace

import pytest
from clusters import cluster_of

import isthmus
from isthmus.pages.exchanges import exchange_table, ways_in_words


def run_of(steps, every=4, evaluate=8, of_step=lambda step: {}, others=()):
    """Return a run of two sites that exchange 1,000 bytes after every so many steps."""
    lines, sent = list(others), 0
    for step in range(1, steps + 1):
        exchanged = step % every == 0
        sent += 1000 * exchanged
        lines.append({"kind": "step", "step": step, "exchanged": exchanged} | of_step(step))
        if step % evaluate == 0:
            lines.append(
                {"kind": "evaluation", "step": step, "seconds": step / 10, "link_nbytes": sent}
                | {"loss": 1 / step, "accuracy": 0.5, "metrics": {"loss": 1 / step, "accuracy": 0.5}}
            )
    return SimpleNamespace(
        metrics=tuple(lines),
        steps=[line for line in lines if line["kind"] == "step"],
        evaluations=[line for line in lines if line["kind"] == "evaluation"],
        cluster=isthmus.Cluster(cluster_of(1, 1)),
        plan={"steps": 4},
        summary={"links": [{"source": "site0", "target": "site1", "sent_nbytes": sent}]},
    )


def test_exchanges_are_told_by_evaluation_with_the_anchors_loss_and_the_bytes():
    columns, rows = exchange_table(run_of(16))
    assert columns == ["step", "s", "loss", "accuracy", "exchanges", "MB over links", "kB an exchange"]
    assert rows == [
        ["8", "0.8", "0.1250", "50.00 %", "2", "0.00", "1.0"],
        ["16", "1.6", "0.0625", "50.00 %", "2", "0.00", "1.0"],
    ]
    assert ways_in_words(run_of(16)) == ["site0 → site1: 0.00 MB, 1.0 kB an exchange."]


def test_a_run_that_exchanges_in_every_step_has_no_table():
    assert exchange_table(run_of(16, every=1)) is None
    assert exchange_table(run_of(4)) is None  # nothing was evaluated yet


def test_a_long_run_has_a_short_table_that_leaves_out_no_exchange():
    _, rows = exchange_table(run_of(1600, evaluate=4))
    assert len(rows) <= 21
    assert sum(int(row[4]) for row in rows) == 400
    assert rows[-1][0] == "1,600"


def test_who_sent_changes_how_often_and_how_old_they_were_is_told():
    """Five changes in 8 steps of 0.1 s."""
    line = {"kind": "arrivals", "step": 8, "version": 5, "lost": 0}
    line |= {"arrivals": [[0, 0], [1, 0], [0, 1], [0, 2], [1, 3]], "staleness": [0, 1, 1, 1, 1]}
    older, _ = exchange_table(run_of(8, every=1, others=[line]))
    assert "own samples, times" not in older
    line["steps_of_site"] = [10, 6]
    columns, (row,) = exchange_table(run_of(8, every=1, others=[line]))
    assert row[-3] == "site0 2.50, site1 1.50"
    columns.remove("own samples, times")
    del row[-3]
    assert columns[-3:] == ["changes", "changes a second", "versions old"]
    assert row[-3:] == ["site0 3, site1 2", "6.25", "0.80"]


@pytest.mark.parametrize(
    ("given", "columns", "told"),
    [
        (lambda step: [step, step + 1], ["clients a round", "different ones"], ["2", "9"]),
        (lambda step: 300, ["clients a round"], ["300"]),
    ],
)
def test_clients_that_took_part_are_told(given, columns, told):
    run = run_of(8, every=1, of_step=lambda step: {"clients": given(step)})
    found, (row,) = exchange_table(run)
    assert found[-len(columns) :] == columns
    assert row[-len(told) :] == told
    dropped = {"kind": "dropped", "step": 3, "clients": [5, 6]}
    run = run_of(8, every=1, of_step=lambda step: {"clients": given(step)}, others=[dropped])
    found, (row,) = exchange_table(run)
    assert (found[-1], row[-1]) == ("dropped", "2")
