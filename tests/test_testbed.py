"""The testbed: real namespaces, real packets, measured times. Root only; in CI none is left out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from patience import SECONDS, launched, until

import isthmus
from isthmus import testbed
from isthmus.errors import ClusterError, EmulationError, MachineError
from isthmus.testbed import commands, launch, namespaces, state
from isthmus.testbed.wiring import Wiring

pytestmark = pytest.mark.slow

ISTHMUS = [sys.executable, "-m", "isthmus", "testbed"]
OURS = f"test{os.getpid()}"  # beside a testbed that somebody has in use
WIRES = f"isthmus-{OURS}-wires"
SITE1 = f"isthmus-{OURS}-site-site1"
PEER = str(Path(__file__).with_name("testbed_peer.py"))


def cluster(*sites, **link):
    return isthmus.Cluster(cluster_of(*sites, **link))


def three_sites():
    """A hub and two edges; the way to the hub is one shared uplink, slower than the way back."""
    table = cluster_of(1, 1, 1)
    table["link"] = [
        *(
            {
                "from": f"site{n}",
                "to": "site0",
                "latency_seconds": 0.002 * n,
                "bytes_per_second": 4e6,
                "shared": "uplink",
            }
            for n in (1, 2)
        ),
        *(
            {"from": "site0", "to": f"site{n}", "latency_seconds": 0.005, "bytes_per_second": 1e7}
            for n in (1, 2)
        ),
    ]
    return isthmus.Cluster(table)


def obstacle():
    """Return why no testbed can be made here; in CI root is expected to be able to."""
    if os.geteuid() != 0:
        return "a testbed needs root"
    if "CI" in os.environ:
        return None
    try:
        commands.require_tools()
        probe = f"isthmus-probe-{os.getpid()}"
        commands.run("ip", "netns", "add", probe)
        commands.run("ip", "netns", "del", probe)
    except EmulationError as problem:
        return str(problem)
    return None


@pytest.fixture(scope="module")
def machine():
    """This machine, if it can have a testbed."""
    if reason := obstacle():
        pytest.skip(reason)
    yield
    state.state_path(OURS).with_suffix(".lock").unlink(missing_ok=True)


@pytest.fixture
def bed(machine):
    """A machine without the tests' own testbed, before and after."""
    testbed.down(OURS)
    yield
    testbed.down(OURS)


@contextmanager
def serving(*sites):
    """A server in each of the sites, found by the numbers that addresses are made of."""
    with ExitStack() as stack:
        for name in sites:
            server = subprocess.Popen(peer(name, "serve", name), stdout=subprocess.PIPE, text=True)
            stack.callback(server.wait)
            stack.callback(server.kill)
            assert server.stdout.readline() == "ready\n"
        yield


def peer(site, verb, other, *amount):
    sites = testbed.describe(OURS)["sites"]
    return [
        commands.program_path("ip"),
        "netns",
        "exec",
        sites[site]["namespace"],
        sys.executable,
        PEER,
        verb,
        sites[other]["address"],
        *map(str, amount),
    ]


def measure(*arguments):
    """Return what a peer finds out; its last packets have arrived."""
    done = subprocess.run(peer(*arguments), check=True, capture_output=True, timeout=SECONDS)
    time.sleep(0.05)
    return json.loads(done.stdout)


def namespaces_here():
    return {name for name in os.listdir("/run/netns") if name.startswith(f"isthmus-{OURS}-")}


# --- what a cluster becomes, without root


def test_every_rank_starts_where_the_cluster_file_puts_it():
    table = cluster_of(2, 2, 1)
    assert launch.host_of_rank(isthmus.Cluster(table)) == ["site0"] * 2 + ["site1"] * 2 + ["site2"]
    table["site"][0]["world_ranks"] = [3, 1]
    table["site"][1]["hosts"] = ["near", "far"]
    placed = isthmus.Cluster(table)
    assert launch.host_of_rank(placed) == ["near", "site0", "far", "site0", "site2"]
    assert Wiring(placed).hosts == {
        "site0": "isthmus-testbed-site-site0",
        "near": "isthmus-testbed-site-site1",
        "far": "isthmus-testbed-site-site1",
        "site2": "isthmus-testbed-site-site2",
    }
    line = launch.line_on_testbed(placed, ["program", "-x"])
    assert line.count("program") == 5
    assert line.count(":") == 4
    assert line[line.index("btl") + 1] == "tcp,self"


def test_a_site_whose_name_no_host_can_have_gets_another():
    table = cluster_of(1, 1)
    table["site"][1]["name"] = "../Zürich; rm"
    table["link"][0]["between"] = ["site0", "../Zürich; rm"]
    assert Wiring(isthmus.Cluster(table)).names == ["site0", "site-2"]


def test_no_two_sites_are_one_host_whatever_they_are_called():
    table = cluster_of(1, 1, 1, 1)
    for site, name in zip(table["site"], ("site-2", "not a host", "far", "near")):
        site["name"] = name
    for link, site in zip(table["link"], table["site"][1:]):
        link["between"] = ["site-2", site["name"]]
    table["site"][3]["hosts"] = ["far"]
    wiring = Wiring(isthmus.Cluster(table))
    assert wiring.names == ["site-2", "site-3", "site-4", "near"]
    assert len(wiring.hosts) == 4


def test_links_that_share_are_one_queue_and_each_keeps_its_latency():
    wiring = Wiring(three_sites())
    (up,) = {link.pipe for link in wiring.cluster.links if link.target == "site0"}
    assert wiring.pipes[up].seconds_between == {
        (2, 1): 0.002,
        (3, 1): 0.004,
        (2, 3): 0.002,
        (3, 2): 0.004,
    }
    assert len(wiring.pipes) == 3
    assert sum("tbf rate 32000000bit" in line for line in wiring.queue_lines()) == 1


def test_netem_is_used_where_a_queue_has_one_latency():
    wiring = Wiring(three_sites(), netem=True)
    assert [pipe.relayed for pipe in wiring.pipes.values()].count(True) == 1
    lines = [line for line in wiring.queue_lines() if "netem" in line]
    assert len(lines) == 2
    assert all("delay 5000us" in line for line in lines)
    assert Wiring(cluster(1, 1), netem=True).latency == "netem"


def test_a_way_that_passes_a_shared_link_twice_is_refused():
    table = cluster_of(1, 1, 1)
    table["link"] = [
        {
            "between": ["site0", "site1"],
            "latency_seconds": 0.0,
            "bytes_per_second": 1e6,
            "shared": "one",
        },
        {
            "between": ["site1", "site2"],
            "latency_seconds": 0.0,
            "bytes_per_second": 1e6,
            "shared": "one",
        },
    ]
    with pytest.raises(ClusterError, match="passes the shared link 'one:down' twice"):
        Wiring(isthmus.Cluster(table))


def test_what_is_missing_is_said_exactly(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(commands, "program_path", lambda name: None if name == "tc" else name)
    with pytest.raises(EmulationError) as raised:
        testbed.up(cluster(1, 1), OURS)
    assert str(raised.value) == (
        "testbed: missing on this machine: root (start it with sudo), the "
        "program `tc` (apt-get install iproute2)"
    )
    monkeypatch.setattr(commands, "TUN", Path("/dev/net/nothing"))
    with pytest.raises(EmulationError, match="/dev/net/nothing, and netem"):
        commands.require_tun()


# --- what it does, as root


@pytest.mark.alone
def test_latency_and_rate_of_each_direction_are_those_of_the_file(bed):
    """Never faster; a busy machine may be late."""
    table = cluster_of(1, 1)
    table["link"] = [
        {"from": "site0", "to": "site1", "latency_seconds": 0.008, "bytes_per_second": 5e6},
        {"from": "site1", "to": "site0", "latency_seconds": 0.004, "bytes_per_second": 2.5e6},
    ]
    testbed.up(isthmus.Cluster(table), OURS)
    with serving("site0", "site1"):
        round_trip = measure("site0", "ping", "site1", 20)
        assert 0.012 <= round_trip["least_seconds"] <= 0.024
        before = testbed.counters(OURS)
        for source, target, rate in (("site0", "site1", 5e6), ("site1", "site0", 2.5e6)):
            found = measure(source, "send", target, 3_000_000)["bytes_per_second"]
            assert 0.2 * rate <= found <= 1.01 * rate
        after = testbed.counters(OURS)
        nbytes = {
            site: {key: after[site][key] - before[site][key] for key in after[site]} for site in after
        }
        for source, target in (("site0", "site1"), ("site1", "site0")):
            assert nbytes[source]["sent_nbytes"] == nbytes[target]["received_nbytes"]
            assert 3.0e6 <= nbytes[source]["sent_nbytes"] <= 3.3e6
        measure("site1", "send", "site1", 3_000_000)
        assert testbed.counters(OURS) == after, "what ranks of a site say passes no link"


@pytest.mark.alone
def test_links_that_share_share_their_rate_and_hops_add_up(bed):
    testbed.up(three_sites(), OURS)
    with serving("site0", "site2"):
        assert 0.011 <= measure("site1", "ping", "site2", 10)["least_seconds"] - 0.005 <= 0.025
        both = [
            subprocess.Popen(peer(site, "send", "site0", 2_000_000), stdout=subprocess.PIPE)
            for site in ("site1", "site2")
        ]
        found = [json.loads(sender.communicate(timeout=SECONDS)[0]) for sender in both]
        seconds = max(one["end"] for one in found) - min(one["start"] for one in found)
        assert 1.0 <= seconds <= 8, "4 MB in all, at 4 MB/s"


@pytest.mark.slow
@pytest.mark.alone
def test_one_stream_fills_a_long_link(bed):
    """1 Gbit/s and 100 ms there and back; with Linux's usual 4 MB for a sender it is 40 MB/s at most."""
    testbed.up(cluster(1, 1, latency_seconds=0.05, bytes_per_second=1.25e8), OURS)
    with serving("site1"):
        rates = []
        while len(rates) < 5 and max(rates, default=0) < 4.5e7:  # a machine has slow moments
            rates.append(measure("site0", "send", "site1", 150_000_000)["bytes_per_second"])
        assert max(rates) >= 4.5e7


@pytest.mark.alone
def test_a_link_without_latency_needs_no_relay(bed):
    assert testbed.up(cluster(1, 1, latency_seconds=0.0, bytes_per_second=5e6), OURS)
    assert testbed.describe(OURS)["latency"] == "none"
    with serving("site1"):
        assert measure("site0", "ping", "site1", 20)["least_seconds"] < 0.002
        assert 1e6 <= measure("site0", "send", "site1", 2_000_000)["bytes_per_second"] <= 5.05e6


def test_up_twice_and_down_twice(bed):
    assert testbed.up(cluster(1, 1), OURS)
    there = [state.identity(name) for name in sorted(namespaces_here())]
    assert not testbed.up(cluster(1, 1), OURS)
    assert [state.identity(name) for name in sorted(namespaces_here())] == there
    with pytest.raises(EmulationError, match="is up, not that of"):
        testbed.up(cluster(1, 1, latency_seconds=0.5), OURS)
    with pytest.raises(EmulationError, match="TCP set otherwise"):
        testbed.up(cluster(1, 1), OURS, tuned=False)
    assert testbed.down(OURS)
    assert not testbed.down(OURS)
    assert testbed.up(cluster(1, 1), OURS, tuned=False)
    site = testbed.describe(OURS)["sites"]["site0"]["namespace"]
    assert "window" not in commands.run("ip", "-n", site, "route")
    assert not testbed.up(cluster(1, 1), OURS), "any testbed of the cluster will do"
    assert testbed.down(OURS)
    assert not namespaces_here()
    with pytest.raises(EmulationError, match="none is up"):
        testbed.counters(OURS)


def test_what_a_crash_leaves_is_cleaned_up(bed):
    testbed.up(cluster(1, 1), OURS)
    relay = state.read_state(OURS)["relay"]
    if relay:
        os.kill(relay["pid"], signal.SIGKILL)
        until(lambda: state.process_started(relay["pid"]) is None)
        with pytest.raises(EmulationError, match="not all of it"):
            testbed.counters(OURS)
        assert testbed.up(cluster(1, 1), OURS)
    testbed.down(OURS)
    crash = (
        "import os, isthmus\nfrom isthmus.testbed import namespaces\n"
        "from clusters import cluster_of\n"
        "namespaces._has_netem = lambda wires: os.kill(os.getpid(), 9)\n"
        f"namespaces.up(isthmus.Cluster(cluster_of(1, 1)), {OURS!r})"
    )
    done = subprocess.run([sys.executable, "-c", crash], cwd=Path(__file__).parent)
    assert done.returncode == -signal.SIGKILL
    assert namespaces_here()
    assert testbed.up(cluster(1, 1), OURS)
    with serving("site1"):
        assert measure("site0", "ping", "site1", 3)["least_seconds"] >= 0.002


def test_the_relay_ends_with_its_namespace(bed):
    testbed.up(cluster(1, 1), OURS)
    relay = state.read_state(OURS)["relay"]
    if relay is None:
        return  # this kernel has netem
    commands.run("ip", "netns", "del", WIRES)
    until(lambda: state.process_started(relay["pid"]) is None)


def test_a_namespace_of_somebody_else_is_left_alone(bed):
    commands.run("ip", "netns", "add", SITE1)
    try:
        theirs = state.identity(SITE1)
        with pytest.raises(EmulationError, match=f"{SITE1}' was not made by this testbed"):
            testbed.up(cluster(1, 1), OURS)
        assert namespaces_here() == {SITE1}
        assert state.identity(SITE1) == theirs
        assert not testbed.down(OURS)
    finally:
        commands.run("ip", "netns", "del", SITE1)
    testbed.up(cluster(1, 1), OURS)
    commands.run("ip", "netns", "del", SITE1)
    commands.run("ip", "netns", "add", SITE1)
    with pytest.raises(EmulationError, match="left alone"):
        testbed.down(OURS)
    assert SITE1 in namespaces_here()
    commands.run("ip", "netns", "del", SITE1)


def test_a_failure_while_it_is_made_leaves_nothing(bed, monkeypatch):
    def refuse(wires):
        raise EmulationError("refused")

    monkeypatch.setattr(namespaces, "_has_netem", refuse)
    with pytest.raises(EmulationError, match="refused"):
        testbed.up(cluster(1, 1), OURS)
    assert not namespaces_here()
    assert state.read_state(OURS) is None


def call(folder, *arguments):
    verb, *rest = map(str, arguments)
    return launched([*ISTHMUS, verb, "--name", OURS, *rest], cwd=folder)


@pytest.fixture
def lab(tmp_path):
    """A folder with a cluster of three ranks, 60 samples, and settings that pace the links."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        isthmus.pack_shards(
            {
                "features": draw.normal(size=(60, 4)).astype("f4"),
                "targets": draw.integers(0, 2, 60, dtype="u1"),
            },
            tmp_path / part,
            6,
        )
    (tmp_path / "cluster.toml").write_text(tomli_w.dumps(cluster_of(1, 2)))
    (tmp_path / "run.toml").write_text(
        tomli_w.dumps(
            {
                "cluster": {"file": "cluster.toml", "links": "paced"},
                "data": {"train": "train", "test": "test"},
                "model": {"kind": "perceptron", "inputs": 4, "hidden": [4], "classes": 2},
                "training": {"epochs": 2, "batch_size": 12},
            }
        )
    )
    return tmp_path


@pytest.mark.slow
def test_a_job_runs_on_the_testbed_and_says_that_its_links_are_emulated(bed, lab):
    done = call(
        lab,
        "run",
        "--json",
        "cluster.toml",
        "--",
        sys.executable,
        "-m",
        "isthmus",
        "train",
        "run.toml",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["emulated"]
    assert answer["exit_code"] == 0
    (folder,) = lab.glob("runs/*")
    run, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("run", "summary"))
    assert run["hosts"] == ["site0", "site1", "site1"]
    assert run["emulated"] == summary["emulated"] == ["links"]
    assert run["settings"]["cluster"]["links"] == "real"
    assert "Emulated: links" in (folder / "report.html").read_text()
    for link in summary["links"]:
        assert answer["sites"][link["source"]]["sent_nbytes"] > link["sent_nbytes"]
    assert not namespaces_here(), "it was not up before"


def results_in(folder):
    return [json.loads(line) for line in (folder / "out/bench_collectives.jsonl").open()]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("ranks", "interleaved"), [(1, False), (2, False), (2, True)])
def test_interfaces_see_the_bytes_that_are_counted(bed, tmp_path, ranks, interleaved):
    """Over the cut, whatever the ranks and their order: the wire, and headers of a few per cent."""
    table = cluster_of(ranks, ranks, bytes_per_second=1.25e7)
    if interleaved:
        for number, site in enumerate(table["site"]):
            site["world_ranks"] = list(range(number, 2 * ranks, 2))
    (tmp_path / "cluster.toml").write_text(tomli_w.dumps(table))
    done = call(
        tmp_path,
        "run",
        "cluster.toml",
        "--",
        sys.executable,
        "-m",
        "isthmus",
        "bench",
        "collectives",
        "cluster.toml",
        "--algorithm",
        "hierarchical",
        "--smallest",
        "1000000",
        "--largest",
        "1000000",
        "--repetitions",
        "3",
        "-o",
        "out",
    )
    assert done.returncode == 0, done.stderr
    results = results_in(tmp_path)
    assert [result["compressor"] for result in results] == ["none", "int8"]
    for result, wire in zip(results, (isthmus.Dense(), isthmus.Int8())):
        for way in result["cut"]:
            assert way["counted_nbytes"] == wire.wire_nbytes(250_000)
            for seen in (
                result["interface_nbytes"][way["source"]]["sent_nbytes"],
                result["interface_nbytes"][way["target"]]["received_nbytes"],
            ):
                assert 1.0 < seen / way["counted_nbytes"] < 1.06


@pytest.mark.slow
@pytest.mark.alone
def test_a_region_sends_one_wire_over_its_uplink(bed, tmp_path, repository):
    """Of itself and three edges, as it is counted and as the cloud's interface sees it."""
    study, size = repository / "experiments/region.py", 250_000
    done = call(
        tmp_path,
        "run",
        study.with_suffix(".toml"),
        "--",
        sys.executable,
        "-m",
        "mpi4py",
        study,
        str(size),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.replace(",", "").split()[-5:] for line in done.stdout.splitlines()]
    found = [(kind, *map(float, numbers)) for kind, *numbers in lines if kind in ("none", "int8")]
    wires = {"none": 4 * size, "int8": isthmus.Int8().wire_nbytes(size)}
    for number, (kind, measured, _, interface, counted) in enumerate(found):
        assert counted == wires[kind] * (1 if number % 3 else 4)
        assert 1.0 < interface / counted < 1.08
        assert number % 3 or measured > max(each[1] for each in found[number + 1 : number + 3])
    assert len(found) == 6


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("sites", [2, 3])
def test_up_to_64_kib_cross_once_each_way(bed, tmp_path, sites):
    """Sites that exchange directly cross once, a star twice; no wait for a window or an answer."""
    latency, rate = 0.05, 1.25e7
    table = cluster_of(*[1] * sites, latency_seconds=latency, bytes_per_second=rate)
    (tmp_path / "cluster.toml").write_text(tomli_w.dumps(table))
    done = call(
        tmp_path,
        "run",
        "cluster.toml",
        "--",
        sys.executable,
        "-m",
        "isthmus",
        "bench",
        "collectives",
        "cluster.toml",
        "--algorithm",
        "hierarchical",
        "--compressor",
        "none",
        "--smallest",
        "32768",
        "--largest",
        "65536",
        "--repetitions",
        "5",
        "-o",
        "out",
    )
    assert done.returncode == 0, done.stderr
    crossings = sites - 1
    for result in results_in(tmp_path):
        most = 1.4 * crossings * latency + 0.001 + crossings * result["nbytes"] / rate
        assert crossings * latency < result["seconds_spread"]["least"] <= most


@pytest.mark.slow
@pytest.mark.alone
def test_the_trees_of_a_link_do_not_wait_for_each_other(bed, tmp_path):
    """Two ranks that are each other's parents: in turns, a chunk took a round trip, twice the time."""
    table = cluster_of(2, 2, latency_seconds=0.01, bytes_per_second=1.25e7)
    (tmp_path / "cluster.toml").write_text(tomli_w.dumps(table))
    done = call(
        tmp_path,
        "run",
        "cluster.toml",
        "--",
        sys.executable,
        "-m",
        "isthmus",
        "bench",
        "collectives",
        "cluster.toml",
        "--algorithm",
        "tree",
        "--compressor",
        "none",
        "--smallest",
        "2000000",
        "--largest",
        "2000000",
        "--repetitions",
        "8",
        "-o",
        "out",
    )
    assert done.returncode == 0, done.stderr
    [result] = results_in(tmp_path)
    assert result["seconds_spread"]["least"] < 1.5 * result["predicted_seconds"]


@pytest.mark.slow
def test_the_exit_code_is_passed_on_and_what_was_up_stays_up(bed, lab):
    assert call(lab, "up", "cluster.toml").returncode == 0
    done = call(lab, "run", "cluster.toml", "--", sys.executable, "-c", "raise SystemExit(7)")
    assert done.returncode == 7, done.stderr
    assert testbed.describe(OURS)["sites"].keys() == {"site0", "site1"}
    job = subprocess.Popen(
        [
            *ISTHMUS,
            "run",
            "--name",
            OURS,
            "cluster.toml",
            "--",
            sys.executable,
            "-c",
            "import time; open('started', 'w'); time.sleep(1000)",
        ],
        cwd=lab,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until((lab / "started").exists)
    job.send_signal(signal.SIGINT)
    assert job.wait(timeout=SECONDS) == 130
    for name in namespaces_here() - {WIRES}:
        assert not commands.run("ip", "netns", "pids", name).split()
    assert json.loads(call(lab, "down", "--json").stdout) == {"was_up": True}


def test_no_code_0_where_ranks_have_not_begun(bed, monkeypatch):
    """As where the launch agent has died."""
    monkeypatch.setattr(launch, "line_on_testbed", lambda *_: ["true"])
    with pytest.raises(EmulationError, match="0 of 2 ranks began, and mpirun ended with code 0"):
        testbed.run(cluster(1, 1), ["true"], name=OURS)


@pytest.mark.slow
def test_a_daemon_that_is_lost_leaves_a_line_with_the_way_on(bed, lab):
    run = (lab / "run.toml").read_text().replace("epochs = 2", "epochs = 4000")
    (lab / "run.toml").write_text(run + "\n[run]\ncheckpoint_every = 5\n")
    job = subprocess.Popen(
        [
            *ISTHMUS,
            "run",
            "--name",
            OURS,
            "cluster.toml",
            "--",
            sys.executable,
            "-m",
            "isthmus",
            "train",
            "run.toml",
        ],
        cwd=lab,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: list(lab.glob("runs/*/checkpoint.h5")))
    (folder,) = lab.glob("runs/*")
    for process in commands.run("ip", "netns", "pids", SITE1).split():
        if Path(f"/proc/{process}/comm").read_text() == "prted\n":
            os.kill(int(process), signal.SIGKILL)
    told = job.communicate(timeout=SECONDS)[1]
    assert job.returncode not in (0, None), told
    (line,) = (line for line in told.splitlines() if " the run has no summary" in line)
    line = line.lstrip("\0")  # what a lost daemon leaves in mpirun's output
    told = re.match(
        re.escape(f"isthmus: {folder}: mpirun has ended with code ") + r"(\d+) and the run", line
    )
    assert job.returncode == (int(told[1]) or MachineError.exit_code)
    assert line.endswith(f"go on from its checkpoint with `isthmus train RUN.toml --resume {folder}`")
    assert not (folder / "summary.json").exists()


def test_mistakes_are_told_in_one_line(machine, lab):
    (lab / "other.toml").write_text("[[site]]")
    for arguments, code, words in (
        (("up", "other.toml"), 4, "other.toml: site"),
        (("up", "none.toml"), 4, "no such file"),
        (("run", "cluster.toml", "--", "no-such-program"), 12, "no program is called"),
    ):
        done = call(lab, *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("isthmus:") == 1
        assert words in done.stderr
