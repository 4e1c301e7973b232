"""Deaths that are planned: from a file or at random, and the sheet that says what came of them."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path

import pytest
from clusters import cluster_of
from test_resuming import pack, settings

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SettingsError
from isthmus.jobs.chaos import chaos_words, play_faults
from isthmus.jobs.fault_plans import check_faults, planned_faults, random_faults
from isthmus.jobs.site_fault_plans import random_site_faults
from isthmus.recovery.moments import KINDS, LINK_KINDS
from isthmus.recovery.relay import Relay

ROOT = Path(__file__).parents[1]
SITE0 = ("site0",)


def test_deaths_are_planned_by_run(tmp_path):
    path = tmp_path / "faults.toml"
    path.write_text(
        '[[fault]]\nrank = 1\nstep = 3\nmoment = "send"\nnumber = 2\n'
        '[[fault]]\nrank = 0\nstep = 4\nmoment = "agree"\nrun = 5\n'
    )
    first, second = planned_faults(path)
    assert [*map(str, first)] == ["rank 1 in send 2 of step 3"]
    assert [*map(str, second)] == ["rank 0 in agree of step 4"]
    path.write_text('[[fault]]\nrank = 1\nstep = 0\nmoment = "send"\n')
    with pytest.raises(SettingsError, match="step"):
        planned_faults(path)
    path.write_text('[[fault]]\nrank = 1\nstep = 1\nmoment = "lunch"\n')
    with pytest.raises(SettingsError, match="moment"):
        planned_faults(path)


def test_deaths_at_random_depend_on_the_seed_alone_and_can_happen(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    path = settings(tmp_path, cluster=cluster_of(2, 1))
    made = random_faults(path, 60, seed=1)
    assert made == random_faults(path, 60, seed=1) != random_faults(path, 60, seed=2)
    faults = [fault for each in made for fault in each]
    assert {len(each) for each in made} == {1, 2}
    assert {fault.rank for fault in faults} == {0, 1, 2}
    assert all(1 <= fault.step <= 10 for fault in faults)
    assert all(fault.step % 5 == 0 for fault in faults if fault.moment in ("evaluation", "checkpoint"))
    with pytest.raises(SettingsError, match="has ranks 0 to 0"):
        play_faults(settings(tmp_path, cluster=cluster_of(1)), made, 1.0, print)


WRONG = {
    'rank = 1\nmoment = "send"': "step is of all moments but settle and join",
    'rank = 1\nstep = 2\nmoment = "join"': "step is of all moments but settle and join",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "melt"': "kind",
    'rank = 1\nstep = 2\nmoment = "send"\nbetween = ["site0", "site1"]': "between is of cut or close or",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "cut"': "between is missing, of cut",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "slow"\nbetween = ["site0", "site1"]': "bytes_per_sec",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "wait"\nback_after = 1': "back_after is of",
    'rank = 1\nstep = 2\nmoment = "send"\nback_after = -1': "back_after",
    'rank = 9\nstep = 2\nmoment = "send"': "has ranks 0 to 3",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "cut"\nbetween = ["site0", "egde"]': "no site 'egde'",
    'rank = 1\nstep = 2\nmoment = "send"\nkind = "cut"\nbetween = ["site1", "site2"]': (
        "site1 and site2 have no connection; each site has one to site0"
    ),
    'rank = 0\nstep = 2\nmoment = "send"\nback_after = 1': "with site0, which the others call",
    'rank = 2\nstep = 2\nmoment = "send"\nback_after = 1': "site1 goes on without that rank; rank 1 is",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_faults_that_sites_cannot_have_are_refused(tmp_path, wrong):
    path, cluster = tmp_path / "faults.toml", Cluster(cluster_of(1, 2, 1))
    path.write_text(f"[[fault]]\n{wrong}\n")
    with pytest.raises(SettingsError, match=WRONG[wrong]) as caught:
        for faults in planned_faults(path):
            check_faults(faults, cluster, SITE0)
    assert "\n" not in str(caught.value)


def test_what_only_sites_know_is_refused_of_one_job(tmp_path):
    path, cluster = tmp_path / "faults.toml", Cluster(cluster_of(1, 1))
    for only in (
        'step = 2\nmoment = "send"\nkind = "cut"\nbetween = ["site0", "site1"]',
        'step = 2\nmoment = "send"\nback_after = 1',
        'moment = "join"',
    ):
        path.write_text(f"[[fault]]\nrank = 1\n{only}\n")
        (faults,) = planned_faults(path)
        check_faults(faults, cluster, SITE0)
        with pytest.raises(SettingsError, match="jobs of their own know that; add --sites"):
            check_faults(faults, cluster)


def test_faults_of_sites_at_random_can_happen(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    path, cluster = settings(tmp_path, cluster=cluster_of(1, 2, 1)), Cluster(cluster_of(1, 2, 1))
    made = random_site_faults(path, 60, 1, (*KINDS, *LINK_KINDS))
    assert made == random_site_faults(path, 60, 1, (*KINDS, *LINK_KINDS))
    for faults in made:
        check_faults(faults, cluster, SITE0)
    faults = [fault for each in made for fault in each]
    assert {fault.kind for fault in faults} == {*KINDS, *LINK_KINDS, "wait"}
    assert {fault.site(cluster, SITE0) for fault in faults} == {"site0", "site1", "site2"}
    assert {fault.moment for fault in faults} >= {"join", "send", "agree", "evaluation"}
    assert any(fault.back_after is not None for fault in faults)
    listen = ("site0", "site2")
    made = random_site_faults(path, 60, 1, (*KINDS, *LINK_KINDS), listen)
    for each in made:
        check_faults(each, cluster, listen)
    faults = [fault for each in made for fault in each]
    assert {fault.moment for fault in faults} >= {"join", "settle", "compute"}
    assert {fault.between for fault in faults} >= {("site0", "site2"), ("site2", "site1"), None}
    back = {fault.site(cluster, listen) for fault in faults if fault.back_after is not None}
    assert back == {"site0", "site1", "site2"}


def test_a_link_is_cut_closed_and_slowed_and_whole_again():
    with socket.create_server(("127.0.0.1", 0)) as far:
        relay = Relay(far.getsockname())
        with pytest.raises(ConnectionRefusedError):  # before anybody listens there
            socket.create_connection(relay.address)
        relay.open()
        near = socket.create_connection(relay.address)
        there, _ = far.accept()
        near.sendall(b"a")
        assert there.recv(1) == b"a"
        relay.cut(None)
        near.sendall(b"b")
        there.settimeout(0.1)
        with pytest.raises(TimeoutError):
            there.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(relay.address)
        relay.open()
        there.settimeout(None)
        assert there.recv(1) == b"b"
        relay.flip(9)
        near.sendall(b"ab")
        assert there.recv(2) == b"a`"
        relay.slow(1e4, None)
        sending = threading.Thread(target=near.sendall, args=(bytes(3000),))
        began = time.monotonic()
        sending.start()
        left = 3000
        while left:
            left -= len(there.recv(left))
        sending.join()
        assert time.monotonic() - began >= 0.25
        relay.close(0.01)
        assert near.recv(1) == there.recv(1) == b""
        while True:  # it answers again
            try:
                socket.create_connection(relay.address).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        relay.end()


@pytest.mark.slow
def test_a_run_is_held_against_what_is_promised(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    survive = {"recovery": {"survive": True}, "run": {"folder": str(tmp_path / "runs")}}
    path = settings(tmp_path, cluster=cluster_of(1, 1), **survive)
    (tmp_path / "faults.toml").write_text('[[fault]]\nrank = 0\nstep = 7\nmoment = "allreduce"\n')
    made = play_faults(path, planned_faults(tmp_path / "faults.toml"), 300.0, lambda line: None)
    (row,) = made["runs"]
    assert (made["wrong"], row["outcome"], row["lost"]) == (0, "went on", [0]), row
    assert row["verified"] == "bits equal, each sample once in 2 epochs"
    assert "rank 0 gone, 1 go on" in row["said"]
    assert json.dumps(made)
    assert chaos_words(made)[1] == "1 runs: 0 wrong, 0 started once more"


SITES = """
[[fault]]          # is killed once more while it comes back
rank = 2
step = 2
moment = "send"
back_after = 0
[[fault]]
rank = 2
moment = "join"
number = 2
back_after = 0
[[fault]]
kind = "wait"
rank = 0
step = 4
moment = "compute"
seconds = 90
[[fault]]
kind = "wait"
rank = 0
step = 5
moment = "compute"
seconds = 90
[[fault]]          # in the step after a checkpoint
kind = "cut"
between = ["site0", "site1"]
rank = 1
step = 7
moment = "compute"
[[fault]]
rank = 0
step = 7
moment = "rebuild"
"""


@pytest.mark.slow
@pytest.mark.alone
def test_sites_that_are_killed_cut_off_and_come_back_keep_what_is_promised(tmp_path):
    """And all go on from the checkpoint, where the site that listens is gone."""
    pytest.importorskip("crc32c")
    for name in ("train", "test"):
        pack(tmp_path, name)
    path = settings(
        tmp_path,
        cluster=cluster_of(1, 1, 1),
        recovery={"survive": True, "deadline_seconds": 5.0},
        run={"folder": str(tmp_path / "runs"), "checkpoint_every": 3},
    )
    (tmp_path / "faults.toml").write_text(SITES)
    faults = planned_faults(tmp_path / "faults.toml")
    made = play_faults(path, faults, 600.0, lambda line: None, listen=SITE0)
    (row,) = made["runs"]
    assert (made["wrong"], row["outcome"]) == (0, "restarted from its checkpoint"), row
    assert row["verified"] == "bits equal, each sample once in 2 epochs"
    assert row["happened"] == 6, row
    assert 2 in row["lost"], row
    assert 2 in row["came_back"], row
    assert sorted(each.split()[0] for each in row["ended"]) == ["site0", "site1", *["site2"] * 3]
    assert {"site0 -9", "site1 20", "site2 20"} <= {*row["ended"]}
    assert "site2: site 'site0' has gone: it closed the connection" in row["said"]


HUBS = """
[[fault]]
rank = 0
step = 3
moment = "update"
[[fault]]          # as it votes for the next hub, which it would have been
rank = 1
moment = "settle"
back_after = 0
[[fault]]
kind = "wait"      # for the one that comes back, to the third hub
rank = 3
step = 6
moment = "compute"
seconds = 90
[[fault]]          # of two that have met under this hub alone
kind = "cut"
between = ["site2", "site4"]
rank = 6
step = 8
moment = "compute"
"""


def test_a_link_keeps_nothing_of_connections_that_have_ended_and_outlasts_a_want_of_descriptors():
    with socket.create_server(("127.0.0.1", 0)) as far:
        far.settimeout(10)
        relay = Relay(far.getsockname())
        relay.open()

        def crosses():
            with socket.create_connection(relay.address, timeout=10) as near:
                near.sendall(b"a")
                with far.accept()[0] as there:
                    assert there.recv(1) == b"a"
                    assert relay.carries

        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            crosses()
        left_after(lambda: len(os.listdir("/proc/self/fd")) - before or relay.carries)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as first, socket.socket() as second:
            free = os.dup(first.fileno())
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
            try:  # the relay has room for one more connection, and then none to wait for the next
                first.connect(relay.address)
                left_after(lambda: not relay.carries)
                second.connect(relay.address)
                time.sleep(0.2)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for _ in range(2):
                far.accept()[0].close()
        left_after(lambda: relay.carries)
        crosses()
        relay.end()


def left_after(count, seconds=10.0):
    """Wait until nothing is left."""
    end = time.monotonic() + seconds
    while count():
        assert time.monotonic() < end, count()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.alone
def test_hubs_that_die_as_they_vote_and_links_of_the_next_that_are_cut(tmp_path):
    pytest.importorskip("crc32c")
    for name in ("train", "test"):
        pack(tmp_path, name)
    cluster = cluster_of(1, 2, 2, 1, 1)
    for one, other in combinations(range(1, 5), 2):
        link = {"latency_seconds": 0.001, "bytes_per_second": 1e8}
        cluster["link"].append({"between": [f"site{one}", f"site{other}"]} | link)
    path = settings(
        tmp_path,
        cluster=cluster,
        recovery={"survive": True, "deadline_seconds": 5.0},
        run={"folder": str(tmp_path / "runs"), "checkpoint_every": 3},
    )
    (tmp_path / "faults.toml").write_text(HUBS)
    faults, listen = planned_faults(tmp_path / "faults.toml"), ("site0", "site1", "site2")
    made = play_faults(path, faults, 600.0, lambda line: None, listen=listen)
    (row,) = made["runs"]
    assert (made["wrong"], row["outcome"], row["happened"]) == (0, "went on", 4), row
    assert row["verified"] == "bits equal, each sample once in 2 epochs"
    assert (row["lost"], row["came_back"]) == ([0, 1, 2, 6], [1, 2]), row
    assert "-site2-" in Path(row["folder"]).name
    assert {"site0 -9", "site1 20", "site1 0", "site2 0", "site3 0"} <= {*row["ended"]}, row


LATER_HUBS = """
[[fault]]
kind = "flip"      # on the one of two relays that both have
between = ["site2", "site1"]
rank = 2
step = 2
moment = "compute"
bit = 900
[[fault]]
rank = 1
step = 4
moment = "update"
"""


@pytest.mark.slow
def test_the_first_hub_is_the_first_that_listens_where_others_come_before_it(tmp_path):
    pytest.importorskip("crc32c")
    for name in ("train", "test"):
        pack(tmp_path, name)
    cluster = cluster_of(1, 1, 1)
    link = {"latency_seconds": 0.001, "bytes_per_second": 1e8}
    cluster["link"].append({"between": ["site1", "site2"]} | link)
    path = settings(
        tmp_path,
        cluster=cluster,
        recovery={"survive": True, "deadline_seconds": 5.0},
        run={"folder": str(tmp_path / "runs"), "checkpoint_every": 3},
    )
    (tmp_path / "faults.toml").write_text(LATER_HUBS)
    faults, listen = planned_faults(tmp_path / "faults.toml"), ("site1", "site2")
    made = play_faults(path, faults, 200.0, lambda line: None, listen=listen)
    (row,) = made["runs"]
    assert (made["wrong"], row["outcome"], row["happened"]) == (0, "went on", 2), row
    assert row["verified"] == "bits equal, each sample once in 2 epochs"
    assert "-site2-" in Path(row["folder"]).name
    assert {"site0 0", "site1 -9", "site2 0"} == {*row["ended"]}, row


@pytest.mark.slow
def test_a_small_campaign_of_kills_finds_nothing_wrong_and_goes_on_where_it_was(tmp_path):
    for _ in range(2):  # the second finds nothing left to do
        done = subprocess.run(
            [sys.executable, "experiments/chaos_campaign.py", "--seed", "3", "--kills", "3"]
            + ["-o", str(tmp_path / "rows.jsonl")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == [*range(len(rows))]
    assert sum(row["happened"] for row in rows) in (3, 4)
    assert all(row["verified"].startswith("bits equal, each sample once") for row in rows)


def test_what_was_started_ends_where_chaos_is_interrupted(tmp_path, monkeypatch):
    for name in ("train", "test"):
        pack(tmp_path, name)
    path = settings(tmp_path, cluster=cluster_of(1), run={"folder": str(tmp_path / "runs")})
    fault = tmp_path / "faults.toml"
    fault.write_text('[[fault]]\nrank = 0\nstep = 7\nmoment = "allreduce"\n')
    started, wait = [], subprocess.Popen.communicate

    def interrupted(process, *arguments, **named):
        started.append(process)
        if len(started) == 1:
            raise KeyboardInterrupt
        return wait(process, *arguments, **named)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    forever = tmp_path / "mpirun"
    forever.write_text("#!/bin/sh\nexec sleep 60\n")
    forever.chmod(0o700)
    monkeypatch.setattr("isthmus.jobs.chaos.mpirun", lambda: str(forever))
    with pytest.raises(KeyboardInterrupt):
        play_faults(path, planned_faults(fault), 60.0, print)
    assert started[0].returncode == -signal.SIGTERM
