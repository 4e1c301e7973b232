"""A run played again by one process ends with the bits that its ranks had, or is refused in words."""

import json

import pytest
from clusters import cluster_of
from test_resuming import go, pack, settings

from isthmus.errors import RecordError, SettingsError
from isthmus.folders.seals import sealed
from isthmus.jobs.verifying import replay_words, verify_steps
from isthmus.links.agreement import from_root

INT8 = {"compressor": {"kind": "int8", "block": 8}}
RUNS = {
    "int8": {
        "allreduce": INT8,
        "training": {"compare_replicas_every": 5},
        "run": {"checkpoint_every": 4},
    },
    "top_k": {
        "allreduce": {"compressor": {"kind": "top_k", "ratio": 0.2}},
        "training": {"momentum": 0.9},
    },
    "local": {"strategy": {"kind": "local_steps", "every": 3}, "allreduce": INT8},
    "buffered": {"strategy": {"kind": "buffered", "arrivals": 1, "busy": 2}},
}


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_a_run_is_played_again_by_one_process(comm, shared_folder):
    folder = shared_folder
    from_root(comm, lambda: [pack(folder, name) for name in ("train", "test")] and None)
    for name, sections in RUNS.items():
        from_root(
            comm,
            lambda name=name, sections=sections: str(
                settings(folder, name=f"{name}.toml", cluster=cluster_of(2, 1, 1), **sections)
            ),
        )
    made = {name: go(comm, folder / f"{name}.toml", name=name) for name in RUNS}
    mpi = from_root(
        comm, lambda: str(settings(folder, cluster=cluster_of(2, 1, 1), allreduce={"algorithm": "mpi"}))
    )
    go(comm, mpi, name="mpi")
    if comm.rank:
        return
    for name, summary in made.items():
        found = verify_steps(summary["folder"])
        assert found["parameter_hash"] == summary["parameter_hash"], name
        assert (found["first"], found["last"], found["lost"]) == (0, 10, 0)
        if name != "buffered":  # whose fast sites make more steps
            assert found["epochs"] == [1, 2]
            assert "each taken once" in replay_words("runs/mine", found)
    run = folder / "runs/int8"
    assert verify_steps(run, (0, 9))["compared"] == [5, 8]  # the latter by the checkpoint
    part = verify_steps(run, (8, None))
    assert (part["compared"], part["epochs"]) == ([10], [])
    assert part["parameter_hash"] == made["int8"]["parameter_hash"]
    with pytest.raises(RecordError, match="tells no hash of parameters after the steps 1 to 4"):
        verify_steps(run, (0, 4))
    with pytest.raises(SettingsError, match="is of step 8; begin there"):
        verify_steps(run, (5, 10))
    with pytest.raises(RecordError, match='algorithm = "mpi"'):
        verify_steps(folder / "runs/mpi")
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for kind, key, value, words in (
        ("replicas", "hash", "0" * 64, "the run tells 000000000000"),
        ("members", "shards_of_rank", [[0, 1, 2], [3], [4], []], "takes 100 samples once"),
    ):
        changed = [{**line, key: value} if line["kind"] == kind else line for line in lines]
        metrics.write_text("".join(sealed({**line, "crc32": None}) for line in changed))
        with pytest.raises(RecordError, match=words):
            verify_steps(run)
