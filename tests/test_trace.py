"""The trace: every rank's steps on one clock, with nothing left out and nothing made up."""

import itertools
import json
import re
import signal
import time
from collections import defaultdict
from contextlib import nullcontext

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from test_report import write_run

import isthmus
from isthmus.errors import SettingsError, StoppedError
from isthmus.links import clocks
from isthmus.links.clocks import clock_offsets, ranks_elsewhere
from isthmus.links.traced import SENT, Recorder
from isthmus.models import Perceptron
from isthmus.pages import timeline as timelines
from isthmus.pages.report import write_report
from isthmus.pages.timeline import timeline
from isthmus.registry import SPANS
from isthmus.shards.batches import LocalSamples
from isthmus.training.recipe import Recipe
from isthmus.vectors import bucket_slices

MODEL = Perceptron(20, (30,), 3)
RECIPE = Recipe(epochs=2, steps=4, learning_rate=0.1, seed=7)
LATENCY_SECONDS = 0.002
WAYS = (
    ("hierarchical", isthmus.Int8(64), 1, True),
    ("hierarchical", isthmus.Int8(64), 3, True),
    ("hierarchical", None, 1, False),
    ("ring", None, 1, True),
    ("tree", None, 1, False),
    ("recursive", None, 1, False),
    ("mpi", None, 1, False),
)


def traced_run(comm, folder, sites, algorithm, compressor, buckets, paced, chunk_nbytes=200, slow=0.01):
    """Train for some steps and write their trace; return it, measured steps, and bytes, on rank 0.

    slow: seconds that rank 3 computes; the others compute for 0.004.
    """
    from isthmus.links.agreement import gather_json
    from isthmus.training.loop import MEASURED, State, Training
    from isthmus.training.strategies.strategy import Member
    from isthmus.watching.trace import (
        Trace,  # it needs MPI, which the process that starts ranks must not
    )

    cluster = isthmus.Cluster(cluster_of(*sites, latency_seconds=LATENCY_SECONDS))
    with isthmus.split_tiers(comm, cluster) as tiers:
        trace = Trace(tiers.paced() if paced else tiers)
        draw = np.random.default_rng(tiers.world.rank)
        local = LocalSamples(
            {"features": draw.normal(size=(40, 20)).astype("f4"), "targets": draw.integers(0, 3, 40)}
        )
        allreduce = isthmus.Allreduce(
            trace.tiers,
            MODEL.size,
            algorithm,
            compressor,
            chunk_nbytes=chunk_nbytes,
            buckets=bucket_slices(MODEL.tensor_slices, buckets),
        )
        training = Training(
            trace.tiers,
            MODEL,
            local,
            Member(allreduce),
            RECIPE,
            State.initial(MODEL, RECIPE),
            hold_seconds=lambda samples: slow if tiers.world.rank == 3 else 0.004,
        )
        with trace.written_to(folder):
            for _ in training.steps():
                pass
        rows = training.gather_rows()
        counted = gather_json(comm, allreduce.sent_nbytes)
    if comm.rank:
        return None
    seconds = rows[..., MEASURED.index("step")]
    return json.loads((folder / "trace.json").read_text()), seconds, counted


def spans_of(trace):
    """Return rank -> its complete events in order."""
    found = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[event["tid"] - 1].append(event)
    return {rank: sorted(events, key=lambda event: event["ts"]) for rank, events in found.items()}


@pytest.mark.ranks(4)
@pytest.mark.parametrize(("algorithm", "compressor", "buckets", "paced"), WAYS)
def test_a_trace_tells_each_step_of_each_rank_once(
    comm, shared_folder, algorithm, compressor, buckets, paced
):
    made = traced_run(comm, shared_folder, (2, 2), algorithm, compressor, buckets, paced)
    if comm.rank:
        return
    trace, seconds, counted = made
    spans, told = spans_of(trace), trace["otherData"]
    assert sorted(spans) == [0, 1, 2, 3]
    names = {event["name"] for events in spans.values() for event in events}
    assert {"compute", "update", "links" if algorithm in ("hierarchical", "mpi") else "reduce"} <= names
    assert names <= {*SPANS, "wait"}
    assert ("encode" in names) == (algorithm == "hierarchical")
    assert told["first_and_last_step"] == [1, RECIPE.total_steps]
    for rank, events in spans.items():
        for before, after in itertools.pairwise(events):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.0021  # both are rounded to 1 ns
        of_step = np.zeros(RECIPE.total_steps)
        for event in events:
            assert event["dur"] >= 0
            of_step[event["args"]["step"] - 1] += 1e-6 * event["dur"]
        assert (of_step <= seconds[rank] + 1e-6).all()
        assert np.median(of_step / seconds[rank]) > 0.8
        for kind in ("site", "link"):
            sent = sum(event["args"].get(f"{kind}_nbytes", 0) for event in events)
            assert sent == counted[rank][kind]


@pytest.mark.ranks(4)
def test_a_wire_takes_its_time_on_the_common_clock(comm, shared_folder):
    made = traced_run(comm, shared_folder, (2, 2), "hierarchical", isthmus.Int8(64), 1, True, slow=0.05)
    if comm.rank:
        return
    trace, _, counted = made
    sent = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "s"}
    received = {event["id"]: event for event in trace["traceEvents"] if event["ph"] == "f"}
    assert sent.keys() == received.keys()
    assert {(event["tid"], received[number]["tid"]) for number, event in sent.items()} == {
        (1, 3),
        (3, 1),
    }
    error_us = 2 * trace["otherData"]["clock_uncertainty_us"]
    for number, event in sent.items():
        assert received[number]["ts"] - event["ts"] >= 1e6 * LATENCY_SECONDS - error_us
        assert received[number]["args"] == event["args"]
    for tid, rank in ((1, 0), (3, 2)):
        assert (
            sum(event["args"]["nbytes"] for event in sent.values() if event["tid"] == tid)
            == counted[rank]["link"]
        )
    waited = np.zeros((4, RECIPE.total_steps))
    for rank, events in spans_of(trace).items():
        for event in events:
            waited[rank, event["args"]["step"] - 1] += event["dur"] * (event["name"] == "wait")
    # The last rank computes 46 ms longer than the others in each step, and they wait for it.
    usual = np.median(waited, axis=1)
    assert usual[0] > 0.2 * 46_000
    assert usual[:3].min() > usual[3]


@pytest.mark.ranks(4)
@pytest.mark.parametrize(("algorithm", "compressor", "buckets", "paced"), WAYS)
def test_no_message_is_received_before_it_is_sent(
    comm, shared_folder, monkeypatch, algorithm, compressor, buckets, paced
):
    """Whatever zero the clocks of four machines have: they are measured to be some seconds apart."""
    from isthmus.watching import trace, trace_events

    noted = []
    monkeypatch.setattr(trace, "write_trace", lambda *given: noted.append(given))
    monkeypatch.setattr(clocks, "machine_name", lambda: str(comm.rank))
    shift = 3.0 * comm.rank
    right = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: right() + shift)
    with pytest.raises(FileNotFoundError) if comm.rank == 0 else nullcontext():
        traced_run(
            comm,
            shared_folder,
            (1, 1, 2),
            algorithm,
            compressor,
            buckets,
            paced and algorithm != "ring",
            chunk_nbytes=700,
        )
    if comm.rank:
        return
    ((_, _, rows_of_rank, offsets),) = noted
    errors = offsets[..., 1].max(axis=0)
    np.testing.assert_allclose(offsets[..., 0], [[0, 3, 6, 9]] * 2, atol=errors.max() + 1e-6)
    received = trace_events.messages(rows_of_rank)
    assert bool(received) == (algorithm != "mpi")
    for message in received:
        error = errors[message.source] + errors[message.target]
        assert message.sent <= message.receiving[1] + error
        assert message.sent <= message.sending[1]
        assert message.expected <= message.receiving[1]
    sent = sum((rows[:, trace_events.KIND] == SENT).sum() for rows in rows_of_rank)
    assert len(received) == (sent if algorithm != "mpi" else 0)


@pytest.mark.ranks(3)
def test_ranks_on_one_machine_have_one_clock(comm):
    elsewhere = ranks_elsewhere(comm)
    assert elsewhere == []
    assert not clock_offsets(comm, lambda: time.time() + comm.rank, elsewhere).any()
    assert ranks_elsewhere(comm, machine="ab"[comm.rank % 2]) == [1]


@pytest.mark.ranks(4)
def test_clocks_of_one_machine_are_compared_to_half_a_millisecond(comm):
    offsets = clock_offsets(comm, time.perf_counter)
    assert offsets[:, 1].max() < 500e-6
    assert (np.abs(offsets[:, 0]) <= offsets[:, 1] + 1e-6).all()


@pytest.mark.ranks(3)
def test_a_clock_that_is_behind_is_found_to_half_a_round_trip(comm):
    offsets = clock_offsets(comm, lambda: time.time() - 0.25 * (comm.rank == 2))
    assert (np.abs(offsets[:, 0] - [0, 0, -0.25]) <= offsets[:, 1] + 1e-6).all()
    others = clock_offsets(comm, lambda: time.time() + comm.rank, [1])
    assert abs(others[1, 0] - 1) < 0.1
    assert not others[2].any()


@pytest.mark.ranks(3)
def test_a_run_leaves_a_trace_where_that_is_asked_for(comm, shared_folder):
    from isthmus.jobs.train import train

    write_lab(comm, shared_folder)
    for wanted in (False, True):
        summary = train(comm, shared_folder / f"{wanted}.toml", lambda *_, **__: None)
        folder = shared_folder / "runs" / summary["folder"]
        assert (folder / "trace.json").exists() == wanted
        assert not list(folder.glob("*.partial"))
        assert bool(timeline(folder, isthmus.Cluster.from_toml(folder / "cluster.toml"))) == wanted


@pytest.mark.ranks(3)
def test_a_run_that_is_stopped_leaves_the_trace_of_its_steps(comm, shared_folder):
    from isthmus.jobs.train import train

    write_lab(comm, shared_folder)

    def tell(line, passing=False):
        if line.startswith("step 7/"):
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(StoppedError) as caught:
        train(comm, shared_folder / "True.toml", tell)
    (path,) = (shared_folder / "runs").glob("*/trace.json")
    last = int(re.search(r"after step (\d+)", str(caught.value))[1])
    assert json.loads(path.read_text())["otherData"]["first_and_last_step"] == [1, last]


def write_lab(comm, folder):
    """Write data, a cluster of three ranks, and settings with and without a trace, on rank 0."""
    if comm.rank == 0:
        draw = np.random.default_rng(0)
        for part in ("train", "test"):
            isthmus.pack_shards(
                {
                    "features": draw.normal(size=(90, 16)).astype("f4"),
                    "targets": draw.integers(0, 3, 90),
                },
                folder / "data" / part,
                9,
            )
        (folder / "cluster.toml").write_text(tomli_w.dumps(cluster_of(1, 2)))
        for trace in (False, True):
            (folder / f"{trace}.toml").write_text(
                tomli_w.dumps(
                    {
                        "cluster": {"file": "cluster.toml"},
                        "data": {"train": "data/train", "test": "data/test"},
                        "model": {"kind": "perceptron", "inputs": 16, "hidden": [8], "classes": 3},
                        "training": {"epochs": 7, "batch_size": 30},
                        "run": {"report_every": 7, "trace": trace},
                    }
                )
            )
    comm.Barrier()


def test_a_recorder_keeps_whole_steps_the_last_ones_and_at_least_one():
    recorder = Recorder(rows=10)
    for number, spans in enumerate((4, 4, 4, 9, 3000, 2), 1):
        recorder.span("update", 0, 0)  # between steps: forgotten
        recorder.begin_step()
        for place in range(spans - 1):
            recorder.span("reduce", place, place + 1)
        recorder.waited(recorder.message(SENT, 3, 100, 1), 7, 8)
        recorder.end_step(number)
        assert len(recorder.steps[-1][1]) == spans
        assert [kept for kept, _ in recorder.steps] == {
            1: [1],
            2: [1, 2],
            3: [2, 3],
            4: [4],
            5: [5],
            6: [6],
        }[number]
    (span, message) = recorder.steps[-1][1]
    assert span.tolist() == [1, 0, 0, 1, -1, 0, 0]
    assert message[[0, 2, 3, 4, 5, 6]].tolist() == [SENT, 7, 8, 3, 100, 1]


def row(kind, at, start, end, peer=-1, nbytes=0, step=1):
    return [step, (*SPANS, "sent", "received").index(kind), at, start, end, peer, nbytes, 0]


def test_waiting_is_cut_out_of_spans_and_bytes_are_where_they_were_sent():
    """Rank 0 waits for what rank 1 sends late, then for rank 1 to take what it sends itself."""
    from isthmus.watching.trace_events import messages, spans, trace_events

    rows = np.array(
        [
            row("compute", 0, 1, 10),
            row("received", 11, 12, 20, 1, 8),
            row("sent", 14, np.nan, np.nan, 2, 5),
            row("reduce", 0, 10, 21),
            row("sent", 22, 24, 29, 1, 7),
            row("links", 0, 23, 30),
        ]
    )
    theirs = np.array(
        [row("sent", 18, 18, 19, 0, 8), row("received", 27, 27, 28, 0, 7), row("compute", 0, 1, 30)]
    )
    assert [message[1:] for message in messages([rows, theirs])] == [
        (1, 0, 8, 18, 11, (18, 19), (12, 20)),
        (0, 1, 7, 22, 27, (24, 29), (27, 28)),
    ]
    assert [span[1:] for span in spans(rows, [(12, 18), (24, 27)], 0, (0, 0, 1))] == [
        ("compute", 1, 10, 0, 0),
        ("reduce", 10, 12, 0, 0),
        ("wait", 12, 18, 0, 5),
        ("reduce", 18, 21, 0, 0),
        ("links", 23, 24, 7, 0),
        ("wait", 24, 27, 0, 0),
        ("links", 27, 30, 0, 0),
    ]
    cluster = isthmus.Cluster(cluster_of(2, 1))
    for error, expected in ((0, [(12, 6), (24, 3)]), (5, [(12, 6)])):  # as far as the clocks can tell
        assert [
            (event["ts"] / 1e6 + 1, event["dur"] / 1e6)
            for event in trace_events(cluster, [rows, theirs, theirs[2:]], [0, error, 0])
            if event["name"] == "wait"
        ] == expected


def write_long_trace(folder, steps=30, ranks=(2, 2), pieces=400, name="site0"):
    """Write the trace of long steps, each a little longer than the one before; return its cluster."""
    from isthmus.watching.trace_events import write_trace

    table = cluster_of(*ranks)
    table["site"][0]["name"] = name
    for link in table["link"]:
        link["between"][0] = name
    rows_of_rank, clock = [[] for _ in range(sum(ranks))], 0.0
    for step in range(1, steps + 1):
        each = (1 + 0.01 * step) * 0.01 / pieces
        for rank, rows in enumerate(rows_of_rank):
            for number in range(pieces):
                first = clock + number * each
                rows.append(row(SPANS[number % len(SPANS)], 0, first, first + each, step=step))
                if rank in (0, ranks[0]):
                    peer = ranks[0] - rank
                    end = first + 0.9 * each
                    rows.append(row("sent", first, 0, 0, peer, 1000, step))
                    rows.append(row("received", first, first, end, peer, 1000, step))
        clock += pieces * each
    cluster = isthmus.Cluster(table)
    write_trace(
        folder / "trace.json",
        cluster,
        [np.array(rows).reshape(-1, 8) for rows in rows_of_rank],
        np.full((2, sum(ranks), 2), 3e-6),
    )
    return cluster


def test_a_timeline_shows_steps_that_are_as_long_as_most(tmp_path):
    text = timeline(tmp_path, write_long_trace(tmp_path, pieces=14))
    assert re.search(r"Steps 15\s+to 17", text)
    assert "11.6 ms" in text
    for name in SPANS:
        assert f"#look-{name}" in text
    assert text.count("14 kB") >= 2  # down and up
    places = [
        int(re.search(rf'y="(\d+)">{name}', text)[1])
        for name in ("site0 · rank 1", "site0 · rank 0", "↓", "site1 · rank 2", "site1 · rank 3")
    ]
    assert places == sorted(places)


def test_the_report_shows_the_timeline_where_there_is_one(tmp_path):
    folder = write_run(tmp_path)
    assert "timeline" not in write_report(folder).read_text()
    write_long_trace(folder, ranks=(2, 1), pieces=7)
    assert write_report(folder).read_text().count('<section id="timeline">') == 1


def test_a_timeline_of_many_pieces_and_ranks_stays_small(tmp_path):
    cluster = write_long_trace(tmp_path, steps=1, ranks=(14, 2, 1), pieces=1000)
    text = timeline(tmp_path, cluster)
    assert len(text) < 1_000_000
    assert text.count("· rank") <= timelines.RANKS
    assert "more ranks are in trace.json" in text


def test_names_cannot_break_a_timeline(tmp_path):
    text = timeline(tmp_path, write_long_trace(tmp_path, pieces=7, name="<b>"))
    assert "<b>" not in text


def test_a_run_of_one_step_and_one_of_none_have_their_timeline(tmp_path):
    assert "Step 1, which" in re.sub(
        r"\s+", " ", timeline(tmp_path, write_long_trace(tmp_path, steps=1, pieces=7))
    )
    cluster = write_long_trace(tmp_path, steps=0)
    assert timeline(tmp_path, cluster) == ""
    (tmp_path / "trace.json").unlink()
    assert timeline(tmp_path, cluster) == ""


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"traceEvents": [{}]}'])
def test_a_damaged_trace_is_named(tmp_path, text):
    cluster = write_long_trace(tmp_path, steps=1, pieces=7)
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(SettingsError, match="trace.json: cannot be read") as caught:
        timeline(tmp_path, cluster)
    assert "\n" not in str(caught.value)
