"""Sites that are jobs of their own go on without their hub, where they are the majority."""

import pytest
from test_site_jobs import end, said_when
from test_surviving_sites import Sites

from isthmus.folders.reading import read_run
from isthmus.jobs.verifying import verify_steps

pytest.importorskip("crc32c")


@pytest.mark.slow
def test_two_hubs_die_in_turn_and_each_sample_counts_once(tmp_path):
    """The first comes back with the same command, and is the hub again once the second is gone."""
    back = tmp_path / "back"
    deaths = [
        {"rank": 0, "step": 4, "moment": "update"},  # while others have the sum, or have not
        {"rank": 2, "step": 8, "moment": "compute", "until": str(back)},
        {"rank": 1, "step": 10, "moment": "send", "number": 0},
    ]
    sites = Sites(tmp_path, (1, 1, 1), deaths, listen=2, buddies_every=1)
    assert end(sites.jobs[0])[0] == -9
    returned = sites.start(0, faults=None)
    said_when(returned, "joined site site1")
    back.touch()
    (code, _, second), (again, out, first), (other, _, words) = map(
        end, (sites.jobs[1], returned, sites.jobs[2])
    )
    assert (code, again, other) == (-9, 0, 0), (second, first, words)
    assert "rank 0 gone, 2 go on" in second, second
    assert "rank 0 came back, 3 go on" in second, second
    assert "step 9: rank 1 gone, 2 go on" in first, first
    (folder,) = (tmp_path / "runs").glob("mine-site0-*")
    assert f"report: {folder}" in out
    run = read_run(folder)
    assert run.provenance["succeeds"].startswith(str(tmp_path / "runs/mine-site1-"))
    steps = [line["step"] for line in run.steps]  # and those that nobody had told yet
    assert steps == [*range(steps[0], 11)]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    begun = [line.get("residual_steps") for line in run.metrics if line["kind"] == "members"]
    assert begun == [None, None, [3, None, None], None]  # the first hub's, from who led after it
    found = verify_steps(folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
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
