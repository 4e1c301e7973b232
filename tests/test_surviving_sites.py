"""Sites that are jobs of their own: the others go on where one is gone, and it may come back."""

import json
import shutil
import signal
import subprocess
import sys
from itertools import combinations

import pytest
from clusters import cluster_of
from test_resuming import pack, settings
from test_site_jobs import end, free_port, said_when
from test_training import MODEL, RECIPE, samples_of, training_of

from isthmus import Int8, LocalSteps
from isthmus.cluster.cluster import Cluster
from isthmus.folders.reading import read_run
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.verifying import verify_steps
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.links.socket_comm import LostSitesError
from isthmus.mpirun import mpirun
from isthmus.pages.membership import member_rows
from isthmus.recovery.faults import PLAN, flip
from isthmus.security.key_files import make_keys
from isthmus.training.loop import State, Training
from isthmus.training.replicas import Replicas, WentBackError
from isthmus.training.strategies.sums import Sums
from isthmus.training.validation import Validation

pytest.importorskip("crc32c")
INT8 = {"compressor": {"kind": "int8", "block": 8}}


class Sites:
    """Sites of so many ranks each, in a folder; the first listens, or the first few.

    sealed: whether links are, and each site has a folder of keys. between: a kind of Relay, through
    which all call; None: there is none. late: sites that are not started, and for which the hub alone
    waits no longer than `wait_seconds`.
    """

    def __init__(
        self,
        folder,
        ranks,
        faults,
        pinned=(),
        listen=1,
        training=None,
        copies=1,
        sealed=False,
        between=None,
        strategy="synchronous",
        late=(),
        **recovery,
    ):
        self.folder, self.ranks, self.files = folder, ranks, ["run.toml"] * len(ranks)
        places = [("127.0.0.1", free_port()) for _ in range(listen)]
        self.relays = [between(place) for place in places] if between else []
        for relay in self.relays:
            relay.open()
        calls = [relay.address for relay in self.relays] or places
        self.where, self.calls = ([f"{host}:{port}" for host, port in each] for each in (places, calls))
        for name in ("train", "test", "validation"):
            pack(folder, name)
        cluster = cluster_of(*ranks)
        for one, other in combinations(range(1, len(ranks)), 2):  # who may be the hub has links to all
            if one < listen:
                link = {"latency_seconds": 0.001, "bytes_per_second": 1e8}
                cluster["link"].append({"between": [f"site{one}", f"site{other}"]} | link)
        sections = {
            "allreduce": INT8,
            "strategy": {"kind": strategy} if isinstance(strategy, str) else strategy,
            "data": {"validation": "data/validation", "copies": copies},
            "training": training or {},
            "plan": {"pinned": dict(pinned)},
            "recovery": {"survive": True, "wait_seconds": 120.0} | recovery,
        }
        if sealed:
            self.files = [f"run{number}.toml" for number in range(len(ranks))]
            for number in range(len(ranks)):
                self.make_keys(number)
        if late:
            self.files[1:] = ["others.toml"] * (len(ranks) - 1)
        for number, name in enumerate(self.files):
            security = {"security": {"link": "sealed", "keys": f"keys{number}"}} if sealed else {}
            settings(folder, name=name, cluster=cluster, **sections, **security)
            sections["recovery"] = sections["recovery"] | {"wait_seconds": 120.0}
        (folder / "faults.json").write_text(json.dumps(faults))
        if late:
            self.jobs = self.begin([number for number in range(len(ranks)) if number not in late])
        else:
            self.jobs = [self.start(number) for number in range(len(ranks))]

    def make_keys(self, number, replace=False):
        """Make the key of a site, and bring it to all others."""
        make_keys(self.folder / f"keys{number}", f"site{number}", replace)
        for other in range(len(self.ranks)):
            self.bring_key(number, other)

    def bring_key(self, number, other):
        """Bring the public key of a site to another one's folder."""
        if other != number:
            folder = self.folder / f"keys{other}"
            folder.mkdir(mode=0o700, exist_ok=True)
            shutil.copy(self.folder / f"keys{number}/site{number}.pub", folder)

    def begin(self, numbers, faults="faults.json"):
        """Start some of the sites, and the hub once the others call it; return their jobs, its first."""
        jobs = [self.start(number, faults) for number in numbers if number]
        for job in jobs:
            said_when(job, "waiting for")
        return [self.start(0, faults), *jobs]

    def start(self, number, faults="faults.json"):
        ranks = self.ranks[number]
        how = [] if number else ["--name", "mine"]
        for each in range(len(self.where)):
            listens = each == number
            how += ["--listen", self.where[each]] if listens else ["--join", self.calls[each]]
        return subprocess.Popen(
            ([mpirun(), "--with-ft", "ulfm", "-n", str(ranks)] if ranks > 1 else [])
            + [sys.executable, "-m", "isthmus", "train", self.files[number]]
            + ["--site", f"site{number}", *how],
            env=rank_environment(**({PLAN: str(self.folder / faults)} if faults else {})),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.mark.parametrize(("back", "whole"), [(5, True), (6, True), (6, False)])
def test_who_is_ahead_goes_back_to_the_bits_of_a_step_before(back, whole):
    """In the middle of step 7: to where it began, or one more, where others have not made step 6.

    That takes copies of whole steps; without them it goes back to where its step began alone.
    """
    cluster = Cluster(cluster_of(2, 1))

    def bits(training):
        return {name: array.tobytes() for name, array in training.arrays().items()}

    def play(table, rank):
        training = training_of(tiers_in_process(table, cluster, rank), (17, 9, 3), compressor=Int8(8))
        training.undoing.whole_steps, after = whole, {}

        def agree():
            if training.state.step == 6 and 7 not in after:
                after[7] = None
                raise LostSitesError("gone")

        training.agree = agree
        with pytest.raises(LostSitesError):
            for _ in training.steps():
                after[training.state.step] = bits(training)
        training.undoing.go_back(back, redo=False)
        assert bits(training) == after[back]
        assert len(training.rows) == back
        for _ in training.steps():
            if training.state.step == 6:
                assert bits(training) == after[6]
        return len(training.rows)

    assert in_threads(3, play) == [12, 12, 12]


def test_who_had_not_gone_back_to_equal_bits_as_a_site_was_lost_goes_back_to_them():
    """Where rank 1 differs after step 5, and the others have gone back to step 2 already."""
    cluster = Cluster(cluster_of(2, 1))

    def bits(training):
        return {name: array.tobytes() for name, array in training.arrays().items()}

    def play(table, rank):
        training = training_of(tiers_in_process(table, cluster, rank), (17, 9, 3), compressor=Int8(8))
        training.undoing.whole_steps, after, replicas = True, {}, Replicas(training, repairs=True)
        goes_back = False

        def agree():
            if goes_back and rank == 2:
                raise LostSitesError("gone")

        training.agree = agree
        for _ in training.steps():
            step = training.state.step
            after[step] = bits(training)
            if step == 2:
                replicas.compare_and_keep()
            if step == 5:
                break
        if rank == 1:
            flip(training.state.parameters, 21)
        goes_back = True
        with pytest.raises(LostSitesError if rank == 2 else WentBackError):
            replicas.compare_and_keep()
        assert training.state.step == (5 if rank == 2 else 2)
        assert (replicas.untold.ranks, replicas.untold.found) == ([1], 5)
        goes_back, kept = False, replicas.kept_before(2)
        assert (kept is not None) == (rank == 2)
        training.undoing.go_back(2, False, kept)
        assert bits(training) == after[2]
        assert len(training.rows) == 2
        for _ in training.steps():
            if training.state.step in (3, 5):
                assert bits(training) == after[training.state.step]
        return len(training.rows)

    assert in_threads(3, play) == [12, 12, 12]


@pytest.mark.slow
@pytest.mark.alone
def test_copies_residuals_and_equal_bits_outlast_sites_that_go_and_come_back(tmp_path):
    """Nobody sees the samples' folder any more; a site goes while all go back, and comes back."""
    hidden, back = tmp_path / "hidden", tmp_path / "back"
    sites = Sites(
        tmp_path,
        (1, 1, 1),
        [
            {"rank": 0, "step": 2, "moment": "compute", "until": str(hidden)},
            {"rank": 1, "step": 5, "moment": "compute", "kind": "flip", "bit": 21},
            {"rank": 2, "step": 6, "moment": "agree"},  # before it goes back from step 5 to step 3
            {"rank": 0, "step": 7, "moment": "compute", "until": str(back)},
            {"rank": 1, "step": 10, "moment": "send", "number": 0},
        ],
        training={"compare_replicas_every": 3, "on_replica": "repair"},
        copies=2,
        buddies_every=1,
    )
    flips = [{"rank": 2, "step": 7, "moment": "compute", "kind": "flip", "bit": 21}]
    (tmp_path / "later.json").write_text(json.dumps(flips))
    said = said_when(sites.jobs[0], "run folder")
    (tmp_path / "data/train").rename(tmp_path / "data/away")
    hidden.touch()
    assert end(sites.jobs[2])[0] == -9
    returned = sites.start(2, "later.json")
    said_when(returned, "joined site site0")
    back.touch()
    ends = [end(job) for job in (sites.jobs[0], sites.jobs[1], returned)]
    assert [code for code, _, _ in ends] == [0, -9, 0], ends
    said += ends[0][2]
    (tmp_path / "data/away").rename(tmp_path / "data/train")
    of_copy = 4 * 51  # a residual is as long as the model
    for words in (
        f"buddies: {2 * of_copy} bytes of residuals from 2 sites to another one, every 1 steps",
        "copies: 6 of 6 shards on a second rank, 3,960 bytes, 6 of them at another site",
        "all go back to step 3, where they were equal, and make 2 steps again",
        "step 3: rank 2 gone, 2 go on",
        "step 6: rank 2 came back, 3 go on",
        "step 9: parameters on rank 2 differ from the others': all go back to step 6",
        "step 9: rank 1 gone, 2 go on",
    ):
        assert words in said, said
    assert said.count("copies: 6 of 6 shards on a second rank") == 2, said
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    members = [line for line in run.metrics if line["kind"] == "members"]
    assert [line.get("residual_steps") for line in members] == [None, None, [None, None, 3], None]
    placed = [line["shards_of_rank"] for line in members]
    assert placed[2] == placed[0]
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.parametrize(("back", "whole"), [(6, True), (3, True), (6, False)])
def test_who_is_ahead_goes_back_to_where_a_round_began(back, whole):
    """In the midst of steps 7 to 9: to where that round began, or the one before."""
    cluster = Cluster(cluster_of(2, 1))
    judged = {"validation": {"accuracy": 0.5}}

    def bits(training):
        return {name: array.tobytes() for name, array in training.arrays().items()}

    def play(table, rank):
        tiers = tiers_in_process(table, cluster, rank)
        after, asked, harm = {}, [], {("compute", 8)}

        def enter(*point):
            if point in harm:
                harm.remove(point)
                raise LostSitesError("gone")

        def made():
            local = samples_of(rank, (17, 9, 3)[rank])
            sums = Sums(tiers, MODEL.size, local.samples, compressor=Int8(8))
            member = LocalSteps(3, outer="nesterov").join(sums, RECIPE.total_steps)
            state = State.initial(MODEL, RECIPE)
            return Training(tiers, MODEL, local, member, RECIPE, state, enter=enter)

        training, judge = made(), Validation(MODEL, True)
        training.undoing.whole_steps, training.undoing.rounds = whole, True
        training.undoing.judge = judge
        training.agree = lambda: asked.append(training.state.step + 1)
        after[0] = bits(training)
        with pytest.raises(LostSitesError):
            for _ in training.steps():
                after[training.state.step] = bits(training)
                if training.state.step == 5:  # what is told, and judged, within a round
                    training.gather_rows()
                    judge.take(5, 1, judged, training.anchor, {})
        assert training.undoing.step == 6
        assert len(training.undoing._kept) == 1 + whole  # copies of all that a round changes
        training.undoing.go_back(back, redo=False)
        assert bits(training) == after[back]
        assert (training.told_step, len(training.rows)) == ((5, 1) if back == 6 else (0, 3))
        assert (judge.best is None) == (back == 3)
        assert judge.parameters.any() == (back == 6)
        training.agree = None
        for _ in training.steps():
            assert training.state.step not in after or bits(training) == after[training.state.step]
        plain = made()
        for _ in plain.steps():
            pass
        assert bits(plain) == bits(training)
        return asked

    assert in_threads(3, play) == [[3, 6]] * 3


@pytest.mark.slow
@pytest.mark.alone
def test_sites_make_a_round_again_and_come_back_where_one_begins(tmp_path):
    back = tmp_path / "back"
    sites = Sites(
        tmp_path,
        (1, 1, 1),
        [
            {"rank": 2, "step": 2, "moment": "update"},
            {"rank": 1, "step": 5, "moment": "allreduce"},
            {"rank": 0, "step": 7, "moment": "compute", "until": str(back)},
        ],
        strategy={"kind": "local_steps", "every": 3},
        deadline_seconds=10.0,
    )
    (tmp_path / "later.json").write_text('[{"rank": 1, "step": 9, "moment": "agree"}]')
    assert end(sites.jobs[1])[0] == -9
    returned = sites.start(1, "later.json")
    said_when(returned, "joined site site0")
    back.touch()
    code, _, said = end(sites.jobs[0])
    assert code == 0, said
    for words in (
        "step 0: rank 2 gone, 2 go on",
        "step 3: rank 1 gone, 1 go on",
        "what the optimizer of site1 remembered is lost",
        "step 6: rank 1 came back, 2 go on",
    ):
        assert words in said, said
    assert end(returned)[0] == end(sites.jobs[2])[0] == -9
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    lost = [(line["step"], line["ranks"]) for line in run.metrics if line["kind"] == "lost"]
    assert lost[:2] == [(0, [2]), (3, [1])]
    assert lost[2] in [(6, [1]), (9, [1])]  # whether the hub has what it had sent
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
@pytest.mark.alone
def test_sites_go_and_come_back_and_each_sample_counts_once(tmp_path):
    back, thaw = tmp_path / "back", tmp_path / "thaw"
    sites = Sites(
        tmp_path,
        (1, 1, 1, 1),
        [
            {"rank": 2, "step": 2, "moment": "send", "number": 0},
            {"rank": 1, "step": 4, "moment": "update"},  # while others have the sum, or have not
            {"rank": 0, "step": 8, "moment": "compute", "until": str(back)},
            {"rank": 3, "step": 9, "moment": "compute", "until": str(thaw)},
        ],
        pinned={"5": "site2"},  # whose samples nobody else may have
        deadline_seconds=6.0,
    )
    (tmp_path / "later.json").write_text('[{"rank": 1, "step": 10, "moment": "evaluation"}]')
    assert end(sites.jobs[1])[0] == -9
    returned = sites.start(1, "later.json")
    said_when(returned, "joined site site0")
    back.touch()
    said = said_when(sites.jobs[0], "step 7: rank 1 came back, 3 go on")
    sites.jobs[3].send_signal(signal.SIGSTOP)  # which does not come past step 9
    said += said_when(sites.jobs[0], "rank 3 gone, 2 go on")
    thaw.touch()
    sites.jobs[3].send_signal(signal.SIGCONT)
    code, _, words = end(sites.jobs[3])
    assert code == 20, words
    assert words.count("isthmus: ") == 1
    assert "start this site again with the same command" in words
    ends = [end(job) for job in (sites.jobs[0], returned, sites.jobs[2])]
    assert [code for code, _, _ in ends] == [0, -9, -9], ends
    said += ends[0][2]
    for words in (
        "step 1: rank 2 gone, 3 go on",
        "rank 1 gone, 2 go on",
        "step 10: rank 1 gone, 1 go on",
    ):
        assert words in said, said
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"]) for line in counted] == [(104, 0), (100, 0)]
    assert [line["lost"] for line in counted] == [{"5": 16}, {"5": 20}]
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])
    assert found["lost"] == 36


@pytest.mark.slow
@pytest.mark.alone
def test_too_few_sites_write_a_checkpoint_and_all_go_on_from_it(tmp_path):
    """A rank of a site may die, and the site goes on; with one site left, it stops."""
    deaths = [
        {"rank": 1, "step": 2, "moment": "send", "number": 0},
        {"rank": 2, "step": 3, "moment": "agree"},
    ]
    sites = Sites(tmp_path, (2, 1), deaths, least_sites=2)
    (_, _, said), (code, _, _) = map(end, sites.jobs)
    assert code == -9
    assert "step 1: rank 1 gone, 2 go on" in said, said
    assert said.count("1 ranks at 1 sites are left, and [recovery] asks for 1 at 2") == 1, said
    ends = [end(job) for job in [sites.start(number, faults=None) for number in range(2)]]
    assert [code for code, _, _ in ends] == [0, 0], ends
    run = read_run(tmp_path / "runs/mine")
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
def test_the_majority_begins_without_a_late_site_and_another_time_without_another(tmp_path):
    """First one that alone may have a shard is late, and the hub dies; then another is, and comes."""
    back = tmp_path / "back"
    deaths = [{"rank": 0, "step": 7, "moment": "compute"}]
    late = {"late": [2], "wait_seconds": 3.0}
    sites = Sites(tmp_path, (1, 2, 1), deaths, pinned={"5": "site2"}, **late)
    (code, _, said), (_, _, words) = map(end, sites.jobs)
    assert code == -9, said
    without = "begins without site2, which did not join in time"
    assert f"site site0: {without}" in said, said
    assert f"site site1: {without}" in words, words
    assert "while site2 is not there, nobody can read shards 5" in said, said
    hold = [{"rank": 0, "step": 8, "moment": "compute", "until": str(back)}]
    (tmp_path / "later.json").write_text(json.dumps(hold))
    jobs = sites.begin([0, 2], "later.json")
    said = said_when(jobs[0], "resumed at step 5")
    returned = sites.start(1, faults=None)
    said_when(returned, "joined site site0")
    back.touch()
    ends = [end(job) for job in (*jobs, returned)]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    said += ends[0][2]
    assert "site site0: begins without site1" in said, said
    assert "step 7: ranks 1-2 came back, 4 go on" in said, said
    run = read_run(tmp_path / "runs/mine")
    assert [line["step"] for line in run.steps] == [*range(1, 11)]
    told = [line for line in run.metrics if line["kind"] == "late"]
    assert [(line["step"], line["sites"], line["never"]) for line in told] == [
        (0, ["site2"], [5]),
        (5, ["site1"], []),
    ]
    members = [line for line in run.metrics if line["kind"] == "members"]
    assert [(line["step"], line.get("came_from")) for line in members] == [
        (0, None),
        (5, [0, None]),
        (7, [0, None, None, 1]),
    ]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["lost"]) for line in counted] == [(100, {"5": 20}), (120, {})]
    rows = member_rows(run)
    assert [row[:3] for row in rows] == [
        ("1 to 5", "site0 1, site1 2", 5),
        ("6 to 7", "site0 1, site2 1", 6),
        ("8 to 10", "site0 1, site1 2, site2 1", 6),
    ]
    assert rows[0][3] == "site2 absent from the start: not there after 3 s; nobody could read shards 5"
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])
    assert found["lost"] == 20
