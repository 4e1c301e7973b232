"""A run goes on without ranks that are killed: each sample once, and the bits that a replay gives."""

import json
import sys
from contextlib import suppress

import pytest
from clusters import cluster_of
from mpi4py import MPI
from patience import launched
from test_resuming import pack, settings

from isthmus.cluster.cluster import Cluster
from isthmus.errors import ClusterError, SettingsError
from isthmus.folders.reading import read_run
from isthmus.jobs.duties import at_ends
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.verifying import verify_steps
from isthmus.mpirun import mpirun
from isthmus.recovery.faults import PLAN
from isthmus.recovery.membership import (
    MOST_FAILURES,
    AnotherFailsError,
    Borne,
    LostRanksError,
    Membership,
)
from isthmus.recovery.site_membership import SiteMembership

INT8 = {"compressor": {"kind": "int8", "block": 8}}
DEATHS = [
    {"rank": 2, "step": 3, "moment": "send", "kind": "flip", "bit": 9},  # nobody dies, a message does
    {"rank": 2, "step": 4, "moment": "send", "number": 0},
    {"rank": 0, "step": 6, "moment": "agree"},  # which leads the hub, and writes the run's folder
    {"rank": 3, "step": 10, "moment": "evaluation"},  # within what is done after an epoch
]


DEATHS_IN_ROUNDS = [  # of steps 1 to 3, 4 to 6, 7 to 9, and 10
    {"rank": 2, "step": 2, "moment": "allreduce"},
    {"rank": 4, "moment": "rebuild"},  # all of its site, while the others do without the first
    {"rank": 0, "step": 5, "moment": "evaluation"},  # an epoch ends within a round
    {"rank": 3, "step": 9, "moment": "agree"},  # all of what was exchanged is there
]


def launch(folder, ranks, deaths, *options):
    """Train in `folder` while ranks die; return what mpirun has ended with."""
    (folder / "faults.json").write_text(json.dumps(deaths))
    return launched(
        [mpirun(), *options, "-n", str(ranks), sys.executable, "-m", "isthmus", "train", "run.toml"]
        + ["--name", "mine"],
        env=rank_environment(**{PLAN: str(folder / "faults.json")}),
        cwd=folder,
    )


@pytest.mark.slow
def test_who_is_left_ends_the_run_with_each_sample_once(tmp_path):
    for name in ("train", "test", "validation"):
        pack(tmp_path, name)
    settings(
        tmp_path,
        cluster=cluster_of(2, 2),
        allreduce=INT8,
        data={"validation": "data/validation", "copies": 2},
        recovery={"survive": True, "checksums": True, "buddies_every": 1},
    )
    done = launch(tmp_path, 4, DEATHS, "--with-ft", "ulfm")
    assert "Traceback" not in done.stderr
    for words in (
        "step 2: a message from rank 2 to rank 0 was changed on its way",
        "rank 2 gone, 3 go on",
        "rank 0 gone, 2 go on",
        "rank 3 gone, 1 go on",
    ):
        assert words in done.stderr, done.stderr
    assert "MPI fails" not in done.stderr  # what it says of those who are gone, or is woken by
    assert "after 10 steps" in done.stdout
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    assert sum(line["kind"] == "evaluation" for line in run.metrics) == 2
    assert [line["ranks"] for line in run.metrics if line["kind"] == "lost"] == [[], [2], [0], [3]]
    taken = [line.get("residual_steps") for line in run.metrics if line["kind"] == "members"]
    assert taken == [None, None, [None, None, 3], [4, None], None]  # 0 dies before its copy of 5 counts
    assert "copies: 6 of 6 shards on a second rank" in done.stderr
    assert "bytes of residuals to a second rank inside 2 sites, every 1 steps" in done.stderr
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
def test_those_who_are_left_make_a_round_again(tmp_path):
    for name in ("train", "test", "validation"):
        pack(tmp_path, name)
    settings(
        tmp_path,
        cluster=cluster_of(2, 2, 1),
        strategy={"kind": "local_steps", "every": 3, "outer": "nesterov"},
        allreduce=INT8,
        data={"validation": "data/validation", "copies": 2},
        recovery={"survive": True, "buddies_every": 1},
    )
    done = launch(tmp_path, 5, DEATHS_IN_ROUNDS, "--with-ft", "ulfm")
    assert "Traceback" not in done.stderr
    for words in (
        "step 0: ranks 2, 4 gone, 3 go on",
        "what the optimizer of site2 remembered is lost",
        "step 3: rank 0 gone, 2 go on",
        "step 6: rank 3 gone, 1 go on",
        "; 2 steps are made again; what the optimizer of site1 remembered is lost",
        "step 6: checkpoint written",  # of every 5 steps: at the end of the round
    ):
        assert words in done.stderr, done.stderr
    assert "step 5: checkpoint" not in done.stderr
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    for kind in ("evaluation", "validation"):
        assert [line["step"] for line in run.metrics if line["kind"] == kind] == [5, 10]
    lost = [line for line in run.metrics if line["kind"] == "lost"]
    assert [(line["step"], line["ranks"]) for line in lost] == [(0, [2, 4]), (3, [0]), (6, [3])]
    assert [line["undone"] for line in lost[1:]] == [2, 2]
    members = [line for line in run.metrics if line["kind"] == "members"]
    assert [line.get("residual_steps") for line in members] == [None, None, [3, None], None]
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
@pytest.mark.alone
def test_those_who_are_left_end_in_words_where_one_of_them_does_not_come_on(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    settings(
        tmp_path,
        cluster=cluster_of(1, 2),
        recovery={"survive": True},
        run={"checkpoint_every": 2, "abort_seconds": 15.0},
    )
    deaths = [
        {"rank": 2, "step": 4, "moment": "allreduce"},
        {"rank": 1, "step": 4, "moment": "rebuild", "kind": "stop", "seconds": 20.0},
    ]
    done = launch(tmp_path, 3, deaths, "--with-ft", "ulfm")
    told = done.stderr.partition("isthmus: ")[2]
    assert told.startswith("rank 2: those who are left have not made another job within 15 s of a loss")
    assert "last checkpoint, of step 2" in told
    assert done.returncode == 15 or "1 go on" in told  # who stood still, where it finds itself alone


class Left:
    """A communicator of which so many are left whenever it is asked, and one says that it fails."""

    def __init__(self, sizes, fails):
        self.size, *self.sizes = sizes
        self.fails = fails

    def Shrink(self):  # noqa: N802
        return Left(self.sizes, self.fails)

    def Set_errhandler(self, handler):  # noqa: N802
        pass

    def Agree(self, well):  # noqa: N802
        if self.fails == "dies" and len(self.sizes) == 1:
            raise MPI.Exception(MPI.ERR_OTHER)
        return int(well and self.fails is not True)


@pytest.mark.parametrize("own", [KeyError("x"), SettingsError("x"), MPI.Exception(MPI.ERR_OTHER)])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 4), (4, 4, 3)])
@pytest.mark.parametrize("others", ["well", "dies", "fails"])
def test_what_a_rank_raises_is_its_own_where_nobody_is_gone(own, sizes, others):
    if (len(sizes) == 3) != (others == "dies"):
        return
    left = Left(sizes, others if others == "dies" else others == "fails")
    membership = Membership(left, lambda: 0)
    raised = None
    try:
        membership.leave_out_the_gone(own, [])
    except Exception as problem:
        raised = problem
    nobody_is_gone = sizes[-1] == 4
    if nobody_is_gone and not isinstance(own, MPI.Exception):
        assert raised is own
    else:
        assert isinstance(raised, AnotherFailsError) == (nobody_is_gone and others == "fails")
    assert membership.comm.size == sizes[-1]


FAILURE = MPI.Exception(MPI.ERR_TRUNCATE)
REVOKED = MPI.Exception(MPI.ERR_REVOKED)


def test_an_error_of_mpi_that_comes_again_with_nobody_gone_ends_the_job():
    step = 4
    borne = Borne(lambda: step)
    for _ in range(3 * MOST_FAILURES):  # each after a step more
        step += 1
        assert not borne.too_many(FAILURE)
    assert borne.words.startswith("MPI fails: MPI_ERR_TRUNCATE")
    borne.told()
    for _ in range(3 * MOST_FAILURES):  # another rank has them
        assert not any(map(borne.too_many, (REVOKED, LostRanksError(), None)))
    assert borne.words == ""
    membership = Membership(Left([4] * (3 + MOST_FAILURES) + [3, 3, 3], False), lambda: 4)
    for _ in range(MOST_FAILURES):
        membership.leave_out_the_gone(FAILURE, [])
    with pytest.raises(MPI.Exception):
        membership.leave_out_the_gone(FAILURE, [])
    while membership.comm.size == 4:
        with suppress(MPI.Exception):
            membership.leave_out_the_gone(FAILURE, [])
    assert (membership.borne.failures, membership.borne.words) == (0, "")  # it came of that


class Circling:
    """A circle whose ranks may change whenever they settle."""

    came, endpoint, is_hub = (), None, False

    def __init__(self, *changes):
        self.changes, self.ranks = [*changes], [0, 1, 2]

    def survive(self):
        pass

    def wake(self):
        pass

    def settle(self, step, done):
        self.ranks = self.changes.pop(0) if self.changes else self.ranks

    def part_from(self, sites, seconds=0.0):
        return False


@pytest.mark.parametrize("gone", [False, True])
def test_an_error_of_mpi_that_comes_again_ends_a_site_where_no_site_is_gone(gone):
    changes = [[0, 1], [0], [0, 2]] * MOST_FAILURES if gone else []
    membership, asked = SiteMembership(Circling(*changes), lambda: 4), []

    def build(change, made):
        asked.append(change)
        if len(asked) > 2 * MOST_FAILURES:
            return "built"
        raise FAILURE

    if gone:
        assert membership.rebuild(lambda: (4, True), build) == "built"
        return
    with pytest.raises(MPI.Exception):
        membership.rebuild(lambda: (4, True), build)
    assert len(asked) == 1 + MOST_FAILURES


@pytest.mark.slow
def test_mpi_without_fault_tolerance_is_named_with_what_to_start(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    settings(tmp_path, recovery={"survive": True})
    done = launch(tmp_path, 2, [])
    assert done.returncode == 15
    assert done.stderr.count("start with `mpirun --with-ft ulfm") == 1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"strategy": {"kind": "local_steps", "late": 2}}, 'strategy "local_steps" does not say what'),
        ({"strategy": "streaming"}, 'strategy "streaming" does not say what'),
        ({"allreduce": {"algorithm": "mpi"}}, "an algorithm of isthmus' own"),
        ({"plan": {"replan": True}}, "plan.replan = false"),
    ],
)
def test_what_cannot_go_on_without_ranks_is_refused(tmp_path, section, words):
    path = settings(tmp_path, recovery={"survive": True}, **section)
    with pytest.raises(SettingsError, match=words):
        RunSettings.from_toml(path)


def test_what_is_due_every_so_many_steps_waits_for_the_end_of_a_round():
    rounds = at_ends(5, {3, 6, 9, 12, 30, 31})
    assert [step for step in range(40) if rounds(step)] == [6, 12, 30]
    assert [step for step in range(12) if at_ends(5, range(1, 12))(step)] == [5, 10]
    assert not any(map(at_ends(None, {3, 6}), range(12)))


def test_a_cluster_without_some_of_its_ranks_is_one():
    table = cluster_of(2, 1, 1)
    table["site"][0]["samples_per_second"] = [10.0, 20.0]
    cluster = Cluster(table)
    fewer = cluster.without([0, 3])
    assert [(site.name, site.ranks, site.samples_per_second) for site in fewer.sites] == [
        ("site0", 1, (20.0,)),
        ("site1", 1, (500.0,)),
    ]
    assert fewer.size == 2
    with pytest.raises(ClusterError, match="no link leads"):
        cluster.without([0, 1])  # the site that the others reach each other by
    assert cluster.without([0, 1, 2]).names == ("site2",)


@pytest.mark.slow
def test_last_words_after_a_loss_are_those_of_the_job_that_goes_on(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    settings(
        tmp_path,
        cluster=cluster_of(1, 2),
        training={"compare_replicas_every": 1},
        recovery={"survive": True},
        run={"checkpoint_every": 5},
    )
    harm = [
        {"rank": 2, "step": 3, "moment": "allreduce"},
        {"rank": 1, "step": 7, "moment": "compute", "kind": "flip", "bit": 21},
    ]
    done = launch(tmp_path, 3, harm, "--with-ft", "ulfm")
    assert "step 5: checkpoint written" in done.stderr, done.stderr
    told = done.stderr.partition("isthmus: ")[2]
    assert "step   7, phase replicas" in told, done.stderr
    assert "its last checkpoint, of step 5, is" in told
    assert "--resume" in told
    log = (tmp_path / "runs/mine/logs/rank0000.log").read_text()
    assert [line for line in log.splitlines() if " ERROR step 7, phase replicas: " in line], log
    assert log.count(" go on after ") == 1
