"""Sites that are jobs of their own go on without their hub, where they are the majority."""

import shutil

import pytest
from test_site_jobs import end, said_when
from test_surviving_sites import Sites

from isthmus.folders.reading import read_run
from isthmus.folders.status import describe_run
from isthmus.jobs.verifying import verify_steps
from isthmus.recovery.relay import Relay

pytest.importorskip("crc32c")


class Heard(Relay):
    """Somebody between the sites, who keeps all that crosses."""

    def __init__(self, to):
        super().__init__(to)
        self.kept = []

    def _as_it_comes(self, came):
        self.kept.append(bytes(came))
        return super()._as_it_comes(came)


@pytest.mark.slow
@pytest.mark.alone
def test_two_hubs_die_in_turn_and_each_sample_counts_once(tmp_path):
    """The first comes back with the same command, and is the hub again once the second is gone.

    Links are sealed. A message is changed, and the third does not know the key of the first as it comes
    back: it goes again, and comes back once more.
    """
    early, back = tmp_path / "early", tmp_path / "back"
    deaths = [
        {"rank": 2, "step": 2, "moment": "send", "kind": "flip", "bit": 9},
        {"rank": 0, "step": 4, "moment": "update"},  # while others have the sum, or have not
        {"rank": 2, "step": 6, "moment": "compute", "until": str(early)},
        {"rank": 2, "step": 8, "moment": "compute", "until": str(back)},
        {"rank": 1, "step": 10, "moment": "send", "number": 0},
    ]
    sites = Sites(tmp_path, (1, 1, 1), deaths, listen=2, sealed=True, between=Heard, buddies_every=1)
    code, _, words = end(sites.jobs[0])
    assert code == -9, words
    assert "step 1: a message from rank 2 to rank 0 does not open" in words
    shutil.copy(tmp_path / "keys1/site1.pub", tmp_path / "keys2/site0.pub")
    unknown = sites.start(0, faults=None)
    said_when(unknown, "joined site site1")
    early.touch()
    code, _, words = end(unknown)
    assert code == 17, words
    assert "site 'site0' does not sign with the key that is known as its own" in words
    sites.bring_key(0, 2)
    returned = sites.start(0, faults=None)
    said_when(returned, "joined site site1")
    back.touch()
    (code, _, second), (again, out, first), (other, _, words) = map(
        end, (sites.jobs[1], returned, sites.jobs[2])
    )
    assert (code, again, other) == (-9, 0, 0), (second, first, words)
    assert "rank 0 gone, 2 go on" in second, second
    assert "site site0: is left out: site 'site0' does not sign with the key" in second, second
    assert "rank 0 came back, 3 go on" in second, second
    assert "step 9: rank 1 gone, 2 go on" in first, first
    for relay in sites.relays:
        relay.end()
    heard = b"".join(b"".join(relay.kept) for relay in sites.relays)
    assert b'"generation"' in heard  # who goes on is no secret
    assert b"data/validation" not in heard  # what who comes back is told is one
    (folder,) = (tmp_path / "runs").glob("mine-site0-*")
    assert f"report: {folder}" in out
    run = read_run(folder)
    assert run.provenance["succeeds"].startswith(str(tmp_path / "runs/mine-site1-"))
    steps = [line["step"] for line in run.steps]  # and those that nobody had told yet
    assert steps == [*range(steps[0], 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    begun = [line.get("residual_steps") for line in run.metrics if line["kind"] == "members"]
    assert [*filter(None, begun)] == [[3, None, None]]  # the first hub's, from who led after it
    found = verify_steps(folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
@pytest.mark.alone
def test_a_late_site_is_the_next_hub_once_it_has_come(tmp_path):
    back = tmp_path / "back"
    faults = [
        {"rank": 0, "step": 4, "moment": "compute", "until": str(back)},
        {"rank": 0, "step": 8, "moment": "update"},
    ]
    late = {"late": [1], "wait_seconds": 3.0}
    sites = Sites(tmp_path, (1, 1, 1), faults, listen=2, pinned={"5": "site1"}, **late)
    said = said_when(sites.jobs[0], "while site1 is not there, nobody can read shards 5")
    assert "site site0: begins without site1" in said, said
    came = sites.start(1)
    said_when(came, "joined site site0")
    back.touch()
    (code, _, words), (other, _, _), (third, _, second) = map(end, (*sites.jobs, came))
    assert (code, other, third) == (-9, 0, 0), (said, words, second)
    assert "step 3: rank 1 came late, 3 go on" in words, words
    assert "rank 0 gone, 2 go on" in second, second
    (folder,) = (tmp_path / "runs").glob("mine-site1-*")
    run, row = read_run(folder), describe_run(folder)
    assert (row["ranks"], row["ranks_in_all"]) == (2, 3)
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    found = verify_steps(folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
@pytest.mark.alone
def test_a_minority_writes_a_checkpoint_and_stops_and_all_go_on_from_it(tmp_path):
    deaths = [
        {"rank": 0, "step": 3, "moment": "send", "number": 0},
        {"rank": 2, "step": 3, "moment": "send", "number": 0},
    ]
    sites = Sites(tmp_path, (1, 1, 1), deaths, listen=2, deadline_seconds=5.0)
    (first, _, _), (code, _, said), (third, _, _) = map(end, sites.jobs)
    assert (first, code, third) == (-9, 14, -9), said
    assert said.count("isthmus: ") == 1
    assert "1 ranks at 1 sites are left, which is no majority of the 3 of the cluster file" in said
    (folder,) = (tmp_path / "runs").glob("mine-site1-*")
    assert f"--resume {folder}" in said
    found = verify_steps(folder)
    assert (found["last"], found["epochs"]) == (2, [])
