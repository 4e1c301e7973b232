"""Slurm: what a job's allocation is as a cluster, the scripts, and real jobs on a one-machine Slurm.

The real jobs need root, slurm-wlm and munge; in CI none of them is left out.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from clusters import cluster_of
from patience import SECONDS, launched, until
from test_cli import ISTHMUS, RUN, call, command, lab, with_changes, write

import isthmus
from isthmus.cluster.slurm import Node, cluster_table, read_allocation, tasks_of_nodes
from isthmus.errors import ClusterError, OutputError, SchedulerError, SettingsError
from isthmus.folders.record import RunFolder
from isthmus.folders.status import describe_run, list_runs, status_table
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.slurm.agent import IN_SCRATCH
from isthmus.jobs.slurm.in_allocation import line_in_allocation
from isthmus.jobs.slurm.settings import SlurmSettings
from isthmus.jobs.slurm.submit import script_of_run
from isthmus.toml_files import check_table


def test_tasks_of_nodes_are_read_from_the_short_form():
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1]
    assert tasks_of_nodes("16") == [16]


ALLOCATED = {
    "SLURM_JOB_NODELIST": "n[0-1]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_PARTITION": "batch",
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SLURM_TASKS_PER_NODE": None}, "SLURM_TASKS_PER_NODE is not set.*--ntasks"),
        ({"SLURM_JOB_PARTITION": None}, "SLURM_JOB_PARTITION is not set"),
        ({"SLURM_TASKS_PER_NODE": "two"}, "SLURM_TASKS_PER_NODE holds 'two'"),
        ({"SLURM_TASKS_PER_NODE": "2(x"}, "SLURM_TASKS_PER_NODE holds ''"),
        ({"SLURM_TASKS_PER_NODE": "2"}, "tells of 1 nodes, SLURM_JOB_NODELIST of 2"),
        ({"SLURM_HET_SIZE": "some"}, "SLURM_HET_SIZE holds 'some'"),
        ({"SLURM_HET_SIZE": "2"}, "SLURM_JOB_NODELIST_HET_GROUP_0 is not set"),
    ],
)
def test_what_slurm_has_not_told_is_named(monkeypatch, change, words):
    monkeypatch.setattr("isthmus.cluster.slurm.ask", lambda *command, **_: "n0\nn1\n")
    environment = {key: value for key, value in (ALLOCATED | change).items() if value is not None}
    with pytest.raises(SchedulerError, match=words):
        read_allocation(environment)


ALLOCATIONS = {
    "groups in partitions that say their tier": (
        [Node("n0", 2, 0, "cloud-fast"), Node("n1", 2, 0, "cloud-fast"), Node("e0", 1, 1, "edge")],
        [("cloud-fast", "cloud", [0, 1, 2, 3]), ("edge", "edge", [4])],
    ),
    "one partition, nodes that say their tier": (
        [
            Node("n0", 2, None, "all", ("cloud", "avx512")),
            Node("e0", 1, None, "all", ("edge",)),
            Node("n1", 1, None, "all", ("cloud",)),
        ],
        [("cloud", "cloud", [0, 1, 3]), ("edge", "edge", [2])],
    ),
    "sites that are named, two in one group": (
        [
            Node("n0", 1, 0, "main", ("cloud", "site-lab")),
            Node("e0", 1, 1, "edge", ("edge", "site-east")),
            Node("w0", 2, 1, "edge", ("edge", "site-west")),
        ],
        [("lab", "cloud", [0]), ("east", "edge", [1]), ("west", "edge", [2, 3])],
    ),
    "two groups of one partition": (
        [Node("n0", 1, 0, "cloud"), Node("n1", 1, 1, "cloud")],
        [("cloud-0", "cloud", [0]), ("cloud-1", "cloud", [1])],
    ),
    "a partition that is called like a named site": (
        [Node("n0", 1, 0, "cloud", ("cloud", "site-edge")), Node("e0", 2, 1, "edge")],
        [("edge", "cloud", [0]), ("edge+", "edge", [1, 2])],
    ),
    "one site that says nothing": ([Node("n0", 4, None, "batch")], [("batch", "cloud", [0, 1, 2, 3])]),
}


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_sites_and_tiers_come_from_groups_partitions_and_features(name):
    nodes, expected = ALLOCATIONS[name]
    cluster = isthmus.Cluster(cluster_table(nodes))
    assert [(site.name, site.tier, list(site.world_ranks)) for site in cluster.sites] == expected
    assert cluster.size == sum(node.ranks for node in nodes)


def test_nodes_without_a_tier_and_sites_of_two_are_refused():
    with pytest.raises(ClusterError, match="node n1 is neither cloud nor edge; give it the feature"):
        cluster_table([Node("n0", 1, 0, "cloud"), Node("n1", 1, 1, "batch")])
    with pytest.raises(ClusterError, match="node n1 is edge, its site 'x' is cloud"):
        cluster_table([Node("n0", 1, 0, "cloud", ("site-x",)), Node("n1", 1, 1, "edge", ("site-x",))])


def test_outside_a_job_there_is_no_cluster_of_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(SchedulerError, match="no Slurm job"):
        isthmus.Cluster.from_slurm()


def test_ranks_are_started_in_the_order_of_groups_and_nodes():
    line = line_in_allocation(
        [Node("n0", 2, 0, "cloud"), Node("e0", 1, 1, "edge")], ["isthmus", "train", "r"]
    )
    start = line.index("-n")
    assert line[start:] == [
        "-n",
        "2",
        "--host",
        "n0:2",
        "isthmus",
        "train",
        "r",
        ":",
        "-n",
        "1",
        "--host",
        "e0:1",
        "isthmus",
        "train",
        "r",
    ]


def test_scratch_on_a_node_is_a_new_folder_of_ours_alone(tmp_path):
    """Whatever somebody else has put where it might be expected; nothing is left of it."""
    (tmp_path / "isthmus-7").mkdir(mode=0o777)
    (tmp_path / "isthmus-7" / "theirs").write_text("")
    said = f'stat -c "%a %n" "$TMPDIR"; touch "$TMPDIR/x"; echo "$TMPDIR" > {tmp_path}/place; exit 3'
    for environment in (
        {"ISTHMUS_SCRATCH": str(tmp_path)},
        {"TMPDIR": str(tmp_path)},
        {"ISTHMUS_SCRATCH": str(tmp_path), "TMPDIR": str(tmp_path / "of another node")},
    ):
        done = subprocess.run(
            ["sh", "-c", IN_SCRATCH, "isthmus", said],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", **environment},
        )
        assert done.returncode == 3, done.stderr
        assert done.stdout.startswith(f"700 {tmp_path}/isthmus-7-")
        assert not Path((tmp_path / "place").read_text().strip()).exists()
    assert (tmp_path / "isthmus-7" / "theirs").exists()
    done = subprocess.run(
        ["sh", "-c", IN_SCRATCH, "isthmus", said],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "ISTHMUS_SCRATCH": str(tmp_path / "nowhere")},
    )
    assert done.returncode == 8
    assert "nowhere" in done.stderr


@pytest.mark.parametrize("name", ["one_site", "two_sites"])
def test_the_scripts_are_what_submit_writes(repository, monkeypatch, name):
    monkeypatch.chdir(repository)
    script = (repository / f"slurm/{name}.sbatch").read_text()
    assert script == script_of_run(Path(f"slurm/{name}.toml"))
    assert script.count("#SBATCH hetjob") == (name == "two_sites")
    for line in ("#SBATCH --signal=B:USR1@120", "#SBATCH --requeue"):
        assert line in script
    assert not re.findall(r"(?<![\w.$}{\"-])/(?!bin/bash|dev/null|tmp\})\w+", script), "a machine's path"
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_names_of_files_are_quoted_in_a_script(lab, monkeypatch):
    monkeypatch.chdir(lab)
    shutil.copy("run.toml", "a $(touch x) run.toml")
    script = script_of_run(Path("a $(touch x) run.toml"))
    assert "\nrun_file='a $(touch x) run.toml'\n" in script
    assert "#SBATCH --job-name=a___touch_x__run\n" in script


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"site": {"cloud": {"partition": "a\n#SBATCH --uid=0"}}}, "slurm.site.cloud.partition"),
        ({"account": "a b"}, "account"),
        ({"time": "soon"}, "time"),
        ({"warning_seconds": 0}, "warning_seconds"),
        ({"site": {"cloud": {"queue": "x"}}}, "no key is called 'queue'"),
    ],
)
def test_what_slurm_would_misread_is_refused(table, words):
    with pytest.raises(SettingsError, match=words.removeprefix("slurm.")):
        check_table(SlurmSettings, table, "run.toml", SettingsError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slurm.site.moon.nodes": 1}, "run.toml: slurm.site.moon: no site is called 'moon'"),
        ({"slurm.site.site0.nodes": 2}, "slurm.site.site0.nodes: 2 nodes for 1 ranks"),
    ],
)
def test_a_job_that_does_not_fit_the_cluster_is_refused(lab, monkeypatch, changes, words):
    monkeypatch.chdir(lab)
    write(lab, run=with_changes(RUN, changes))
    with pytest.raises(SettingsError, match=re.escape(words)):
        script_of_run(Path("run.toml"))


def obstacle():
    """Return why no Slurm can be started here; None in CI, where it has to be possible."""
    if "CI" in os.environ:
        return None
    if os.geteuid() != 0:
        return "a one-machine Slurm needs root"
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    return f"{', '.join(missing)} not found: apt-get install slurm-wlm" if missing else None


def free_ports(count):
    """Return the first of `count` neighbouring ports that nobody listens on."""
    for first in range(16817 + os.getpid() % 1000 * 10, 60000, 10):
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            try:
                for number, probe in enumerate((one, two, three)[:count]):
                    probe.bind(("127.0.0.1", first + number))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def slurm(repository):
    """A Slurm on this machine, and the environment in which its commands and jobs find it."""
    why = obstacle()
    if why:
        pytest.skip(why)
    recipe = repository / "slurm/one_machine"
    with tempfile.TemporaryDirectory(prefix="isthmus-slurm-") as folder:
        started = subprocess.run(
            [recipe / "up.sh", folder, str(free_ports(3))],
            text=True,
            capture_output=True,
            timeout=SECONDS,
        )
        try:
            assert started.returncode == 0, started.stderr
            environment = {
                name: value for name, value in os.environ.items() if not name.startswith("SLURM_")
            }
            lines = Path(folder, "environment").read_text().splitlines()
            here = dict(line.split("=", 1) for line in lines)
            yield (
                environment
                | here
                | {
                    "COLUMNS": "200",
                    "TMPDIR": tempfile.gettempdir(),
                    "NUMBA_CACHE_DIR": f"{tempfile.gettempdir()}/isthmus-tests-numba-{os.getuid()}",
                    "NUMBA_CACHE_LOCATOR_CLASSES": "InTreeCacheLocator",  # what is compiled already
                }
            )
        finally:
            subprocess.run([recipe / "down.sh", folder], timeout=SECONDS)


SITES = {"slurm.site.site0.partition": "cloud", "slurm.site.site1.partition": "edge"}
TRAINING = {"training.epochs": 30, "run.checkpoint_every": None, "run.report_every": 5}
TABLE = with_changes(RUN, SITES | TRAINING)


class Desk:
    """A folder to submit from."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def ask(self, *line):
        done = launched(line, cwd=self.folder, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, name, changes, **link):
        """Submit TABLE with changes over links as they are given, paced; return the job's number."""
        sites = changes.pop("sites", (1, 1))
        table = with_changes(TABLE, {"cluster.file": f"{name}_cluster.toml", **changes})
        write(self.folder, **{f"{name}_cluster": cluster_of(*sites, **link), name: table})
        return json.loads(self.ask(*ISTHMUS, "submit", f"{name}.toml", "--json"))["job"]

    def run(self, name, job):
        runs = json.loads(self.ask(*ISTHMUS, "status", "--json"))["runs"]
        return next(run for run in runs if run["name"] == f"{name}-{job}")

    def log(self, name, job):
        path = self.folder / "runs" / f"{name}-{job}.log"
        return path.read_text() if path.exists() else ""

    def finish(self, name, job):
        """Wait for the end of a job, also of its cleaning up, and return its run's summary."""
        try:
            until(lambda: not self.ask("squeue", "--noheader", f"--jobs={job}"), pause=0.2)
            return json.loads((self.folder / f"runs/{name}-{job}/summary.json").read_text())
        except (AssertionError, OSError):
            pytest.fail(
                f"{self.run(name, job)}\n{self.log(name, job)}"
                f"{self.ask('scontrol', 'show', 'job', job)}",
                pytrace=False,
            )


def run_of(folder, name):
    return describe_run(Path(folder, "runs", name))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with packed data."""
    return lab.__wrapped__(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def whole(data):
    """The summary of a run that nothing interrupts."""
    write(data, cluster=cluster_of(1, 1), run=TABLE)
    done = call(data, 2, "train", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def desk(slurm, data):
    return Desk(data, slurm)


@pytest.fixture(scope="module")
def limited(desk):
    """A job that will hit its time limit: Slurm looks every 30 s, other tests go on meanwhile."""
    return desk.submit(
        "limited",
        {"cluster.links": "paced", "slurm.time": "00:01:00", "slurm.warning_seconds": 30},
        latency_seconds=0.11,
    )


def same_bits(one, other):
    return all(one[key] == other[key] for key in ("parameter_hash", "steps", "links", "accuracy"))


@pytest.mark.slow
@pytest.mark.alone
def test_a_heterogeneous_job_from_sbatch_to_its_result(desk, limited, whole):
    job = desk.submit("plain", {"cluster.links": "real"})
    summary = desk.finish("plain", job)
    assert same_bits(summary, whole)
    assert desk.run("plain", job)["state"] == "finished"
    assert "report.html" in os.listdir(desk.folder / f"runs/plain-{job}")
    assert not list(Path(desk.environment["TMPDIR"]).glob(f"isthmus-{job}*"))


@pytest.mark.slow
@pytest.mark.alone
def test_a_job_that_is_told_to_stop_comes_back_with_the_same_bits(desk, whole):
    job = desk.submit("told", {"cluster.links": "paced"}, latency_seconds=0.03)
    until(lambda: run_of(desk.folder, f"told-{job}")["step"] > 0)
    desk.ask("scancel", "--signal=TERM", "--batch", job)
    summary = desk.finish("told", job)
    assert same_bits(summary, whole)
    log = desk.log("told", job)
    assert "TERM: told to stop" in log
    assert "resumed at step" in log


@pytest.mark.slow
@pytest.mark.alone
def test_a_job_that_is_cancelled_stays_cancelled(desk):
    job = desk.submit(
        "cancelled", {"cluster.links": "paced", "run.checkpoint_every": 5}, latency_seconds=0.1
    )
    until((desk.folder / f"runs/cancelled-{job}/checkpoint.h5").exists)
    desk.ask("scancel", job)
    until(lambda: desk.run("cancelled", job)["state"] == "cancelled", pause=0.5)
    until(lambda: f"cancelled-{job}" not in desk.ask("ps", "-eo", "args"), "its processes end")
    assert "back into the queue" not in desk.log("cancelled", job)


@pytest.mark.slow
@pytest.mark.alone
def test_a_job_sees_its_cluster_and_one_site_needs_no_groups(desk):
    job = desk.submit("alone", {"cluster.links": "real", "sites": (1,), "slurm.site.site1": None})
    script = (
        "#!/bin/bash\n#SBATCH --partition=cloud --output=seen.log\n"
        "#SBATCH hetjob\n#SBATCH --partition=edge\n"
        f"{sys.executable} -c 'import isthmus; isthmus.Cluster.from_slurm().to_toml(\"seen.toml\")'\n"
    )
    (desk.folder / "see.sbatch").write_text(script)
    desk.ask("sbatch", "see.sbatch")
    until((desk.folder / "seen.toml").exists)
    cluster = isthmus.Cluster.from_toml(desk.folder / "seen.toml")
    assert [(site.name, site.tier, site.ranks) for site in cluster.sites] == [
        ("cloud", "cloud", 1),
        ("edge", "edge", 1),
    ]
    assert desk.finish("alone", job)["steps"] == 300


def test_without_slurm_submit_says_so_in_one_line(lab):
    done = launched([*ISTHMUS, "submit", "run.toml"], cwd=lab, env=rank_environment(PATH="/nowhere"))
    assert done.returncode == 13
    assert done.stderr == "isthmus: sbatch is not found; run this where Slurm's commands are\n"


def test_status_lists_runs_also_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no runs yet" in status_table(list_runs(tmp_path), tmp_path)
    with pytest.raises(SettingsError, match="no such folder"):
        list_runs(tmp_path / "nowhere")
    run = {"settings": {"training": {"epochs": 2}}, "slurm_job": None}
    files = {
        "submitted-7": {"slurm.json": {"job": "7"}},
        "under way": {"run.json": run, "plan.json": {"steps": 5}},
        "stopped": {"run.json": run, "plan.json": {"steps": 5}},
        "torn": {"run.json": run, "summary.json": {"steps": 10}},
    }
    for name, tables in files.items():
        (tmp_path / name).mkdir()
        for file, table in tables.items():
            (tmp_path / name / file).write_text(json.dumps(table))
    lines = [{"kind": "step", "step": 3, "loss": 0.5}, {"kind": "stopped", "step": 3}]
    (tmp_path / "stopped/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "under way/metrics.jsonl").write_text('{"kind": "step", "step": 2, "loss": 1.5}\n{"ki')
    found = {
        run["name"]: (run["state"], run["job"], run["step"], run["steps"], run["loss"])
        for run in list_runs(tmp_path)
    }
    assert found == {
        "submitted-7": ("submitted", "7", 0, None, None),
        "under way": ("unfinished", None, 2, 10, 1.5),
        "stopped": ("stopped", None, 3, 10, 0.5),
        "torn": ("finished", None, 0, None, None),
    }


@pytest.mark.parametrize("name", ["../mine", "..", "", "a/b"])
def test_the_name_of_a_run_is_one_word(tmp_path, name):
    with pytest.raises(OutputError, match="one word"):
        RunFolder.begun(tmp_path, name)


@pytest.mark.slow
def test_a_signal_has_a_run_write_its_checkpoint_and_its_name_goes_on(data, whole, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "1")
    write(
        data,
        cluster=cluster_of(1, 1, latency_seconds=0.05),
        run=with_changes(TABLE, {"cluster.links": "paced"}),
    )
    process = subprocess.Popen(
        command(2, "train", "run.toml", "--name", "again"),
        cwd=data,
        text=True,
        env=rank_environment(),
        stderr=subprocess.PIPE,
    )
    until(lambda: run_of(data, "again")["step"] > 0)
    process.send_signal(signal.SIGUSR1)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 14, told
    assert told.count("stopped by a signal after step") == 1
    stopped = run_of(data, "again")
    assert stopped["state"] == "stopped"
    assert 0 < stopped["step"] < stopped["steps"] == 300
    write(data, cluster=cluster_of(1, 1), run=TABLE)
    done = call(data, 2, "train", "run.toml", "--name", "again", "--json")
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {stopped['step']}" in done.stderr
    assert same_bits(json.loads(done.stdout), whole)
    assert run_of(data, "again")["state"] == "finished"


@pytest.mark.slow
@pytest.mark.alone
def test_a_job_that_hits_its_time_limit_comes_back_with_the_same_bits(desk, limited, whole):
    summary = desk.finish("limited", limited)
    log = desk.log("limited", limited)
    assert "USR1: the time is nearly over" in log
    assert "back into the queue" in log
    assert "resumed at step" in log
    assert same_bits(summary, whole)
