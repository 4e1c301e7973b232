"""The tree of errors and its pages; what a job says when ranks fail or stall."""

import logging
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of
from patience import SECONDS
from test_cli import RUN, command, pack_lab, with_changes, write
from test_files import largest_file

import isthmus
from isthmus import errors
from isthmus.errors import EXIT_CODES, IsthmusError, MachineError, NonFiniteError
from isthmus.folders.terms import link_rounds
from isthmus.jobs.launch import rank_environment
from isthmus.links.agreement import gather_json
from isthmus.watching.failures import (
    Place,
    failure_lines,
    failure_of,
    failures_of_all,
    last_words,
    name_ranks,
    told_by_another,
)
from isthmus.watching.links import LinkWatch
from isthmus.watching.progress import OF_STEP, PHASES, Progress, late_rows
from isthmus.watching.rank_log import RankLog
from isthmus.watching.stalls import FIRST_SECONDS, SECONDS_OF_OTHERS, Watch, deadline

HOSTS, SITES, TIERS = (
    ("n0", "n0", "n1", "n2"),
    ("here", "here", "there", "there"),
    ("cloud", "cloud", "edge", "edge"),
)


def test_every_code_of_the_tree_has_its_page_and_its_row_and_the_reverse(repository):
    tree, more = {}, [IsthmusError]
    while more:
        kind = more.pop()
        more += kind.__subclasses__()
        tree.setdefault(kind.exit_code, []).append(kind.__name__)
    assert max(map(len, tree.values())) == 1, "two kinds of error share a code"
    assert {name for (name,) in tree.values()} == {"IsthmusError", *EXIT_CODES}
    named = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert named == {"IsthmusError", *EXIT_CODES}
    codes = {*tree, 2, 130}
    readme = (repository / "README.md").read_text()
    table = readme[readme.index("| exit code |") :].split("\n\n")[0]
    assert {int(code) for code in re.findall(r"\| (\d+) \|", table)} == codes | {0}
    pages = repository / "docs/errors"
    assert {page.name for page in pages.glob("*.md")} == {"README.md", *(f"{c}.md" for c in codes)}
    index = (pages / "README.md").read_text()
    for code in codes:
        page = (pages / f"{code}.md").read_text()
        assert f"[{code}]({code}.md) | {page.splitlines()[0].partition(': ')[2]} |" in index
        assert page.startswith(f"# {code}: ")
        assert all(word in page for word in ("```\nisthmus: ", "**Cause.**", "**Cure.**"))
    assert "docs/errors" in readme


def test_ranks_are_named_with_their_site_tier_and_hosts():
    assert name_ranks([0, 1, 3], HOSTS, SITES, TIERS) == (
        "ranks 0-1 (site here, tier cloud, host n0), rank 3 (site there, tier edge, host n2)"
    )


def failed(problem, place=None):
    try:
        raise problem
    except type(problem) as caught:
        if place:
            caught.place = place
        return caught


def place(rank, checkpoint=15):
    return Place(rank, 21, "compute", HOSTS, SITES, TIERS, Path("runs/mine"), checkpoint)


def test_equal_failures_share_a_block_and_others_have_their_own():
    failures = {
        rank: failure_of(failed(ZeroDivisionError("planted"), place(rank))) for rank in (0, 1, 3)
    }
    failures[2] = failure_of(failed(MemoryError("Unable to allocate 8.00 GiB"), place(2, None)))
    lines = failure_lines(failures, place(0))
    assert [line for line in lines if line.startswith("isthmus:")] == [
        "isthmus: ranks 0-1, 3: unexpected ZeroDivisionError: planted; run again with "
        "`isthmus --debug ...` and report the traceback",
        "isthmus: rank 2: out of memory: Unable to allocate 8.00 GiB; take a smaller "
        "training.batch_size, fewer ranks a host, or more hosts",
    ]
    assert len(lines) == 14
    assert lines[1:4] == [
        "  rank   ranks 0-1 (site here, tier cloud, host n0), rank 3 (site there, tier edge, host n2)",
        "  step   21, phase compute",
        f"  cause  ZeroDivisionError at test_errors.py:{failed.__code__.co_firstlineno + 2}",
    ]
    assert lines[4].endswith("its last checkpoint, of step 15, is runs/mine/checkpoint.h5")
    assert lines[5].endswith("then go on with `isthmus train RUN.toml --resume runs/mine`")
    assert lines[6] == "  more   docs/errors/1.md, and the traceback in runs/mine/logs"
    assert lines[13] == "  more   docs/errors/15.md, and the traceback in runs/mine/logs/rank0002.log"
    assert failures[2]["code"] == MachineError.exit_code


def test_what_all_ranks_have_is_told_by_the_one_that_speaks():
    problem = failed(NonFiniteError("step 3: a NaN; look at the data"), place(1))
    problem.everywhere, problem.ranks = True, [1, 2]
    comm = SimpleNamespace(size=4, rank=0)
    assert last_words(problem, comm, speaks=False) == []
    first, rank, *_ = last_words(problem, comm, speaks=True)
    assert first == "isthmus: step 3: a NaN; look at the data"
    assert rank.startswith("  rank   rank 1 (site here, tier cloud, host n0), rank 2 (site there")
    problem.place = replace(place(1), step=0, phase="preparation")
    assert last_words(problem, comm, speaks=True) == [first]


@pytest.mark.ranks(3)
def test_the_first_rank_that_fails_speaks_for_those_that_fail_with_it(comm):
    mine = {"kind": "ZeroDivisionError", "rank": comm.rank}
    assert not told_by_another(comm)
    comm.Barrier()
    if comm.rank != 1:  # rank 1 is busy, and asked for nothing
        failures = failures_of_all(comm, mine, comm.rank + 10, seconds=3.0)
        assert failures == (
            {10: {"kind": "ZeroDivisionError", "rank": 0}, 12: {"kind": "ZeroDivisionError", "rank": 2}}
            if comm.rank == 0
            else None
        )
    comm.Barrier()
    assert told_by_another(comm) == (comm.rank == 1)
    comm.Barrier()
    failures = failures_of_all(comm, mine, comm.rank, seconds=60)  # all fail: nobody waits for the end
    assert (failures is None) == (comm.rank > 0)
    if failures:
        assert list(failures) == [0, 1, 2]
    comm.Barrier()


@pytest.mark.parametrize("seconds", [[0.03] * 50, [0.03, 0.05, 0.04] * 20, [3.0] * 20, [3.0, 5.0] * 9])
def test_a_deadline_follows_the_runs_own_steps(seconds):
    median = np.median(seconds)
    spread = np.median(np.abs(seconds - median))
    assert deadline(seconds, 1.0, 10.0) == pytest.approx(max(1.0, median + 10 * spread))
    assert deadline(seconds[:4], 1.0, 10.0) == FIRST_SECONDS
    assert deadline([*seconds, 1000.0], 1.0, 10.0) < 100  # one stall is not taken for the usual


def row(step, phase, since=0.0, alive=100.0):
    return [step, PHASES.index(phase), since, alive]


@pytest.mark.parametrize(
    ("rows", "late"),
    [
        ([row(7, "allreduce"), row(7, "compute"), row(7, "allreduce")], [1]),
        ([row(7, "allreduce"), row(6, "checkpoint"), row(6, "report")], [2]),
        ([row(7, "allreduce"), row(7, "allreduce")], []),
        ([row(7, "allreduce"), row(7, "allreduce", alive=90.0)], [1]),
        ([row(7, "compute"), row(7, "allreduce", alive=90.0), row(7, "allreduce")], [1]),
    ],
)
def test_late_are_those_without_a_sign_of_life_or_else_those_behind(rows, late):
    assert late_rows(np.array(rows), 100.0, 5.0).tolist() == late


def watched(rows, rank, size, home=0, usual=(0.1,) * 9, abort_seconds=None, ended=None):
    progress = SimpleNamespace(
        rows=rows,
        rank=rank,
        ranks=list(range(len(rows))),
        mine=rows[rank],
        kind="step",
        step=int(rows[rank][0]),
        seconds={"step": usual},
        next_is_gone=lambda: False,
    )
    return Watch(
        progress,
        2.0,
        10.0,
        lambda ranks: f"<{','.join(map(str, ranks))}>",
        home,
        size,
        abort_seconds,
        lambda line, ranks: ended.append((rank, line, ranks)),
    )


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_stall_is_told_once_by_the_first_rank_that_waits_and_once_when_it_is_over(caplog):
    caplog.set_level(logging.INFO, "isthmus")
    rows = np.array([row(7, "compute"), row(7, "allreduce"), row(7, "allreduce")])
    watches = [watched(rows, rank, 3) for rank in range(3)]
    for now in (1.9, 2.1, 2.4, 30.0):
        for watch in watches:
            watch.look(now)
    assert warnings_of(caplog) == [
        "step 7 stalls: 2.1 s so far, 0.1 s is usual; late: <0> in compute of step 7; <1,2> in allreduce"
    ]
    assert sum(" stalls: " in record.getMessage() for record in caplog.records) == 3  # each in its log
    assert "this rank is at" in caplog.text
    assert "test_errors.py" in caplog.text  # where the main thread is
    rows[:, 2] = 30.1
    for watch in watches:
        watch.look(30.2)
    assert warnings_of(caplog)[1:] == ["step 7 went on after 30.2 s; <0> late"]


@pytest.mark.parametrize(
    ("home", "words"),
    [
        (
            0,
            [
                "step 7 stalls: 3.0 s so far, 0.1 s is usual; <0,1> in allreduce; none of these is "
                "behind: look at <2,3>, or at the network between"
            ],
        ),
        (2, []),
    ],
)
def test_where_all_ranks_of_a_host_wait_the_one_with_rank_0_says_so(caplog, home, words):
    rows = np.array([row(7, "allreduce"), row(7, "allreduce")])
    for rank in range(2):
        watched(rows, rank, 4, home).look(3.0)
    assert warnings_of(caplog) == words


def test_a_stall_that_ends_with_the_run_is_told_to_be_over(caplog):
    caplog.set_level(logging.INFO, "isthmus")
    rows = np.array([row(7, "allreduce"), row(7, "compute")])
    watch = watched(rows, 0, 2)
    watch.look(3.0)
    rows[:, 2] = 3.1
    watch.closed.set()
    watch.start()
    watch.close()  # before the thread has looked again
    stalls, went_on = warnings_of(caplog)
    assert stalls.startswith("step 7 stalls")
    assert re.match("step 7 went on after .* s; <1> late", went_on)


def test_before_the_first_step_a_minute_is_usual_and_after_the_last_nothing_stalls(caplog):
    caplog.set_level(logging.INFO, "isthmus")
    rows = np.array([row(0, "preparation", alive=5.0), row(0, "preparation")])
    watch = watched(rows, 1, 2)
    watch.progress.kind = "preparation"
    watch.look(FIRST_SECONDS - 0.1)
    assert not caplog.records
    watch.look(FIRST_SECONDS + 0.1)
    assert warnings_of(caplog) == [
        "preparation before the first step stalls: 60.1 s so far; late: <0> in preparation of step 0, "
        "no sign of life for 55.1 s; <1> in preparation"
    ]
    watch = watched(np.array([row(7, "end"), row(7, "end")]), 0, 2, abort_seconds=1.0)
    watch.progress.kind = "end"
    watch.look(1000.0)
    assert len(warnings_of(caplog)) == 1


def test_after_abort_seconds_the_rank_that_tells_a_stall_ends_the_job_and_else_another():
    rows, ended = np.array([row(7, "allreduce"), row(7, "compute"), row(7, "allreduce")]), []
    watches = [watched(rows, rank, 3, abort_seconds=5.0, ended=ended) for rank in range(3)]
    for watch in watches:
        watch.look(4.9)
    assert not ended
    for watch in watches:
        watch.look(5.1)
    assert ended == [
        (
            0,
            "step 7 stalls: 5.1 s, run.abort_seconds are over; late: <1> in compute of "
            "step 7; <0,2> in allreduce; look at these hosts, or allow for more with run.abort_seconds",
            [1],
        )
    ]
    watches[2].look(5.2 + SECONDS_OF_OTHERS)
    assert [rank for rank, *_ in ended] == [0, 2]


def test_a_rank_that_is_gone_ends_the_job_where_nobody_else_does():
    ended = []
    watch = watched(np.array([row(7, "allreduce"), row(7, "compute")]), 0, 2, ended=ended)
    watch.progress.next_is_gone = lambda: True
    for now in (1.0, 1.0 + SECONDS_OF_OTHERS):
        watch.look(now)
        assert not ended
    watch.look(1.1 + SECONDS_OF_OTHERS)
    assert ended == [(0, None, ())]


AFTER = PHASES[PHASES.index("replicas") :][:3]


@pytest.mark.ranks(3)
def test_ranks_of_a_host_see_where_each_other_is(comm):
    progress = Progress(comm)
    assert progress.ranks == [0, 1, 2]
    for step in range(1, 4):
        for phase in OF_STEP:
            progress.enter(phase, step)
    progress.enter(AFTER[comm.rank], 3)
    comm.Barrier()
    assert progress.rows[:, 0].tolist() == [3, 3, 3]
    assert [PHASES[int(number)] for number in progress.rows[:, 1]] == list(AFTER)
    assert progress.phase == AFTER[comm.rank]
    assert len(progress.seconds["step"]) == 3
    assert gather_json(comm, progress.rank) == [0, 1, 2]
    comm.Barrier()


@pytest.fixture
def lab(tmp_path):
    pack_lab(tmp_path)
    return tmp_path


PLANTED = """
import os, signal, time
import isthmus.models as models
rank, gradient, calls = int(os.environ.get("OMPI_COMM_WORLD_RANK", -1)), models.Perceptron.gradient, 0
def planted(*given):
    global calls
    calls += 1
    {}
    return gradient(*given)
models.Perceptron.gradient = planted
"""


def start(lab, plant, at_once=""):
    """Start a job of three ranks in which `plant` runs before each gradient, and `at_once` first."""
    (lab / "sitecustomize.py").write_text(PLANTED.format(plant) + at_once)
    paths = [str(lab), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        command(3, "train", "run.toml"),
        cwd=lab,
        text=True,
        stdout=subprocess.PIPE,
        env=rank_environment(PYTHONPATH=os.pathsep.join(paths), COLUMNS="200"),
        stderr=subprocess.PIPE,
    )


SLOW_TOGETHER = "from isthmus.watching import failures\nfailures.failures_of_all.__defaults__ = (8.0,)\n"
"""Ranks that fail in one step may do so some seconds apart."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("culprits", "who", "logs"),
    [
        ("1", ["rank 1: ", "rank 1 (site site1, tier edge, host "], "logs/rank0001.log"),
        ("0, 1, 2", ["ranks 0-2: ", "ranks 0 (site site0"], "logs"),
    ],
)
def test_ranks_that_fail_are_told_in_one_block(lab, culprits, who, logs):
    """The others do not wait for ever; tracebacks are in the logs of those that failed."""
    planted = f"if calls == 21 and rank in ({culprits},): raise ZeroDivisionError('planted')"
    job = start(lab, planted, SLOW_TOGETHER if "," in culprits else "")
    told = job.communicate(timeout=SECONDS)[1].replace("\0", "")  # mpirun's
    assert job.returncode == 1, told
    assert "Traceback" not in told
    lines = told.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("isthmus:"))
    (folder,) = lab.glob("runs/*")
    first, rank, step, cause, became, cure, more = lines[at : at + 7]
    assert first == (
        f"isthmus: {who[0]}unexpected ZeroDivisionError: planted; run again with "
        "`isthmus --debug ...` and report the traceback"
    )
    assert rank.startswith(f"  rank   {who[1].replace('ranks 0 ', 'rank 0 ')}")
    assert step == "  step   21, phase compute"
    assert cause.startswith("  cause  ZeroDivisionError at sitecustomize.py:")
    assert became == (
        f"  job    ended on all ranks; its last checkpoint, of step 15, is {folder / 'checkpoint.h5'}"
    )
    assert cure.endswith(f"; then go on with `isthmus train RUN.toml --resume {folder}`")
    assert more == f"  more   docs/errors/1.md, and the traceback in {folder / logs}"
    for number in range(3):
        log = (folder / f"logs/rank{number:04}.log").read_text()
        assert "checkpoint written" in log
        assert ("Traceback" in log) == (str(number) in culprits)


def test_links_ten_times_as_slow_as_predicted_are_named_once_and_once_when_they_are_not(caplog):
    caplog.set_level(logging.INFO, "isthmus")
    watch = LinkWatch(isthmus.Cluster(cluster_of(1, 1)), 0.004)
    for step, milliseconds in ((10, 39), (20, 41), (30, 500), (40, 5)):
        watch.look(
            step, [(milliseconds / 1e3, 1)] * 4 + [(9.0, 1)]
        )  # a step that stalls is not the link
    slow, well = warnings_of(caplog)
    assert slow.startswith(
        "step 20: a step takes 41.0 ms on links, 10 times the predicted 4.0 ms: the "
        "link between site1 and site0 is slower than the cluster file says"
    )
    assert well == "step 40: links are as fast as before: a step takes 5.0 ms"
    three = LinkWatch(isthmus.Cluster(cluster_of(1, 1, 1)), 0.0001)
    assert three.links == "one of the links between site1 and site0, site2 and site0"
    three.look(1, [(0.004, 1)])  # forty times as long, and less than a machine's unrest
    LinkWatch(isthmus.Cluster(cluster_of(2)), 0.0).look(1, [(1.0, 1)])
    assert len(warnings_of(caplog)) == 2


def test_links_are_watched_by_the_round_where_most_steps_use_none(caplog):
    """Sixteen steps of which the last uses the link for 16 x 4 ms, as predicted, then 16 times that."""
    caplog.set_level(logging.INFO, "isthmus")
    watch = LinkWatch(isthmus.Cluster(cluster_of(1, 1)), 0.004)
    for step, seconds in ((160, 0.064), (320, 1.024)):
        quiet, busy = ({"links": 0.0}, False), ({"links": seconds}, True)
        watch.look(step, link_rounds(10 * [*[quiet] * 15, busy]))
    (slow,) = warnings_of(caplog)
    assert slow.startswith(
        "step 320: an exchange takes 1024.0 ms on links, 16 times the predicted 64.0 ms"
    )


@pytest.mark.slow
@pytest.mark.alone
def test_a_link_that_is_slower_than_predicted_is_named_while_the_run_goes_on(lab):
    job = start(
        lab,
        "pass",
        "import isthmus.collectives.hierarchical as module\n"
        "wait = module.wait_for\n"
        "def slow(*given):\n    time.sleep(0.05)\n    return wait(*given)\n"
        "module.wait_for = slow\n"
        "from isthmus.links import native_mpi\n"
        "native_mpi.why_not = lambda: 'compiled code does not ask Python to wait'\n",
    )
    told = job.communicate(timeout=SECONDS)[1]
    assert job.returncode == 0, told
    lines = [line for line in told.splitlines() if " ms on links, " in line]
    assert len(lines) == 1, told
    assert re.match(r"step 7: a step takes .* the link between site1 and site0 is slower", lines[0])


@pytest.mark.slow
@pytest.mark.alone
def test_a_freeze_before_the_first_step_is_ended_with_who_was_late(lab):
    write(lab, run=with_changes(RUN, {"run.abort_seconds": 20}))
    job = start(
        lab,
        "pass",
        "initial = models.Perceptron.initial\ndef frozen(*given):\n"
        "    rank == 1 and os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return initial(*given)\nmodels.Perceptron.initial = frozen\n",
    )
    told = job.communicate(timeout=SECONDS)[1].replace("\0", "")
    assert job.returncode == MachineError.exit_code, told
    first, rank, step, *_ = (line for line in told.splitlines() if line.startswith(("isthmus:", "  ")))
    assert first.startswith("isthmus: rank 1: beginning before the first step stalls: ")
    assert "late: rank 1 (site site1, tier edge, host " in first
    assert rank.startswith("  rank   rank 1 (site site1, tier edge, host ")
    assert step == "  step   0, phase beginning"


@pytest.mark.slow
@pytest.mark.alone
def test_a_rank_that_is_late_is_named_with_its_phase_while_it_is(lab):
    """One stops itself, as a debugger or a scheduler would; later another one computes for long."""
    write(lab, run=with_changes(RUN, {"run.stall_seconds": 1.5}))
    job = start(
        lab,
        "if calls == 21 and rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    if calls == 31 and rank == 2: time.sleep(5)",
    )
    told = [""]
    while not told[-1].startswith("step 21 stalls"):
        told.append(job.stderr.readline())
        assert told[-1], f"the run has ended without a word about the stall: {told}"
    (folder,) = lab.glob("runs/*")
    process = re.search(r"process (\d+)", (folder / "logs/rank0001.log").read_text())
    os.kill(int(process[1]), signal.SIGCONT)
    told += job.communicate(timeout=SECONDS)[1].splitlines()
    assert job.returncode == 0, told
    stopped, went_on = (line for line in told if re.match("step 21 (stalls|went on)", line))
    assert re.match(
        r".*; late: rank 1 \(site site1, tier edge, host \S+\) in compute of step 21, no "
        "sign of life for .* s; rank 0 .* in allreduce",
        stopped,
    )
    assert re.match(r"step 21 went on after .*; rank 1 .* late", went_on)
    slow, went_on = (line for line in told if re.match("step 31 (stalls|went on)", line))
    assert re.match(r".*; late: rank 2 .* in compute of step 31; ", slow)
    assert "no sign of life" not in slow
    assert re.match(r"step 31 went on after .*; rank 2 .* late", went_on)
    log = (folder / "logs/rank0002.log").read_text()
    assert "this rank is at" in log
    assert "sitecustomize.py" in log


def test_a_log_on_a_full_disk_costs_lines_and_nothing_else(tmp_path):
    kept = RankLog()
    kept.open(tmp_path, 0)
    with largest_file(50):
        logging.getLogger("isthmus").info("a line that is longer than what may be written")
        kept.close()
    assert 0 < kept.path.stat().st_size <= 50
