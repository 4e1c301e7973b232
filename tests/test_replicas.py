"""A bit that flips, in one rank's memory or between sites, is found, and costs some steps."""

import json
import os

import numpy as np
import pytest
from clusters import cluster_of
from test_resuming import go, pack, settings
from test_training import training_of

import isthmus
from isthmus.errors import ReplicaError, SealError, SettingsError
from isthmus.folders.reading import read_run
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.verifying import verify_steps
from isthmus.links.agreement import from_root
from isthmus.links.checksummed import checksummed
from isthmus.pages.report import events
from isthmus.recovery.faults import Faults, flip
from isthmus.recovery.moments import HAPPENED, PLAN
from isthmus.training.replicas import MOST_RETURNS, Replicas, WentBackError

FLIPS = [
    {"kind": "flip", "rank": 2, "step": 3, "moment": "compute", "bit": 21},
    {"kind": "flip", "rank": 0, "step": 8, "moment": "update", "bit": 30},  # it writes the folder
]
REPAIR = {"epochs": 2, "batch_size": 24, "compare_replicas_every": 4, "on_replica": "repair"}


def lines_of(run, kind):
    return [line for line in run.metrics if line["kind"] == kind]


@pytest.mark.ranks(3)
def test_a_flipped_bit_is_repaired_and_the_run_ends_with_the_bits_of_one_without(comm, shared_folder):
    folder, int8 = shared_folder, {"compressor": {"kind": "int8", "block": 8}}

    def prepare():
        for name in ("train", "test"):
            pack(folder, name)
        for name, how in (("mended.toml", "repair"), ("ends.toml", "stop")):
            wanted = REPAIR | {"on_replica": how}
            settings(folder, name=name, cluster=cluster_of(1, 2), training=wanted, allreduce=int8)
        (folder / "faults.json").write_text(json.dumps(FLIPS))

    from_root(comm, prepare)
    plain = go(comm, folder / "mended.toml", name="plain")
    os.environ[PLAN] = str(folder / "faults.json")
    try:
        mended = go(comm, folder / "mended.toml", name="mended")
        ended = go(comm, folder / "ends.toml", name="ended")
    finally:
        del os.environ[PLAN]
    assert mended["parameter_hash"] == plain["parameter_hash"]
    assert isinstance(ended, ReplicaError)
    assert "step 4: parameters on rank 2 differ from those of the others" in str(ended)
    if comm.rank:
        return
    run = read_run(folder / "runs/mended")
    repaired = lines_of(run, "repaired")
    assert [(each["ranks"], each["found"], each["step"]) for each in repaired] == [
        ([2], 4, 0),
        ([0], 8, 5),
    ]
    assert events(run)[0] == (
        "step 4: parameters on rank 2 differ from the others': all go back to step 0, where they were "
        "equal, and make 4 steps again"
    )
    assert [line["step"] for line in lines_of(run, "step")] == [*range(1, 11)]
    assert [line["once"] for line in lines_of(run, "samples")] == [120, 120]
    assert verify_steps(run.folder)["parameter_hash"] == plain["parameter_hash"]
    told = [json.loads(line) for line in (folder / HAPPENED).read_text().splitlines()]
    assert [(each["rank"], each["step"]) for each in told[:2]] == [(2, 3), (0, 8)]


@pytest.mark.ranks(3)
def test_who_has_kept_another_bit_takes_that_of_most_and_nobody_goes_back_for_ever(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:
        training = training_of(tiers, (5, 5, 5))
        replicas = Replicas(training, repairs=True)
        replicas.compare_and_keep()
        before = training.state.parameters.copy()
        steps = training.steps()
        next(steps)
        for _ in range(MOST_RETURNS):
            if comm.rank == 1:
                flip(training.state.parameters, 3)
                flip(replicas.kept[1]["parameters"], 77)
            with pytest.raises(WentBackError) as back:
                replicas.compare_and_keep()
            assert back.value.ranks == [1]
            assert training.state.step == 0
            np.testing.assert_array_equal(training.state.parameters, before)
        if comm.rank == 1:
            flip(training.state.parameters, 3)
        with pytest.raises(ReplicaError, match="on rank 1 differ"):
            replicas.compare_and_keep()
        if comm.rank == 1:
            flip(training.state.parameters, 3)
        next(training.steps())
        replicas.compare_and_keep()
        if comm.rank == 1:
            flip(training.state.parameters, 3)
            flip(replicas.kept[1]["strategy/step"], 1)  # of which no other rank has a copy
        with pytest.raises(ReplicaError, match="what rank 1 kept to go back to has changed as well"):
            replicas.compare_and_keep()


@pytest.mark.ranks(2)
def test_two_ranks_go_back_though_neither_knows_whose_bits_are_right(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (5, 5))
        replicas = Replicas(training, repairs=True)
        replicas.compare_and_keep()
        if comm.rank:
            flip(training.state.parameters, 3)
        with pytest.raises(ReplicaError, match="no majority"):
            replicas.compare()
        with pytest.raises(WentBackError) as back:
            replicas.compare_and_keep()
        assert back.value.ranks == []
        replicas.compare()


def test_what_cannot_make_steps_again_is_refused(tmp_path):
    path = settings(tmp_path, training=REPAIR, strategy={"kind": "local_steps", "every": 2})
    with pytest.raises(SettingsError, match='on_replica = "repair" needs strategy = "synchronous"'):
        RunSettings.from_toml(path)


@pytest.mark.ranks(3)
def test_checked_links_carry_four_bytes_more_a_message_and_the_same_sums(comm, shared_folder):
    pytest.importorskip("crc32c")
    folder, int8 = shared_folder, {"compressor": {"kind": "int8", "block": 8}}

    def prepare():
        for name in ("train", "test"):
            pack(folder, name)
        for name in ("clear", "checked"):
            checksums = {"checksums": name == "checked"}
            settings(
                folder, name=f"{name}.toml", cluster=cluster_of(2, 1), allreduce=int8, recovery=checksums
            )

    from_root(comm, prepare)
    made = {name: go(comm, folder / f"{name}.toml", name=name) for name in ("clear", "checked")}
    assert made["clear"]["parameter_hash"] == made["checked"]["parameter_hash"]
    for ours, other in zip(made["checked"]["links"], made["clear"]["links"]):
        assert ours["sent_nbytes"] == ours["predicted_nbytes"]
        assert ours["sent_nbytes"] == other["sent_nbytes"] + 10 * 4  # one message each way a step


@pytest.mark.ranks(2)
def test_a_message_that_was_changed_is_refused(comm):
    pytest.importorskip("crc32c")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        faults = Faults([{"kind": "flip", "rank": 0, "step": 1, "moment": "send", "bit": 70}], comm.rank)
        leaders = checksummed(faults.watching(tiers)).leaders
        faults.meet("compute", 1)
        if comm.rank == 0:
            leaders.Send(np.arange(9.0), 1)
            leaders.Send(np.arange(9.0), 1)
            return
        with pytest.raises(SealError, match="from rank 0 to rank 1 was changed on its way"):
            leaders.Recv(np.empty(9), 0)
        came = np.empty(9)
        leaders.Recv(came, 0)
        np.testing.assert_array_equal(came, np.arange(9.0))
