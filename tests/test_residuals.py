"""Residuals in a checkpoint: their site alone can open them, and a run goes on as if they were clear."""

import numpy as np
import pytest
from clusters import cluster_of
from test_training import run, training_of

import isthmus
from isthmus.errors import CheckpointError, SecurityError
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.recovery.handover import adapted, source
from isthmus.security.key_files import make_keys
from isthmus.training.checkpoint import read_checkpoint, write_checkpoint
from isthmus.training.checkpoint_file import CHECKPOINT
from isthmus.training.residuals import ResidualSeal, is_residual

pytest.importorskip("cryptography")

COUNTS = (17, 9, 3, 0)


def played(act, ranks=(2, 2)):
    cluster = isthmus.Cluster(cluster_of(*ranks))
    return in_threads(cluster.size, lambda table, rank: act(tiers_in_process(table, cluster, rank)))


def of_job(tiers, steps=None):
    """Return a training with a residual after some steps; None: at its beginning."""
    training = training_of(tiers, COUNTS, compressor=isthmus.TopK(0.2))
    for _ in training.steps() if steps else ():
        if training.state.step == steps:
            break
    return training


def test_what_an_optimiser_calls_memory_is_no_residual():
    sizes = [5, 5]
    assert source("strategy/sums/0/memory", None, 5, sizes, 1) is None
    for name in ("optimiser/memory", "strategy/outer/memory", "optimiser/sent_to_sites"):
        assert not is_residual(name)
        assert source(name, None, 5, sizes, 1) == 1


@pytest.mark.slow
def test_a_sealed_residual_is_for_its_site_alone_and_a_run_ends_with_the_same_bits(tmp_path):
    keys, path = tmp_path / "keys", tmp_path / "checkpoint.h5"
    for site in ("site0", "site1"):
        make_keys(keys, site)

    def writes(tiers):
        half = of_job(tiers, 4)
        write_checkpoint(path, half, {"run": 1}, seal=ResidualSeal.of(tiers, keys))
        write_checkpoint(tmp_path / "clear.h5", half, {"run": 1})
        return half.member.gradients.memory.copy(), run(of_job(tiers))

    found = played(writes)
    whole, memories = found[0][1], [memory for memory, _ in found if memory.size]
    assert len(memories) == 2
    assert all(memory.any() for memory in memories)
    clear, table = CHECKPOINT.read(tmp_path / "clear.h5")
    assert "sealed" not in table
    arrays, table = CHECKPOINT.read(path)
    assert sorted(table["sealed"]) == sorted(
        name for name in clear if is_residual(name.rpartition("/")[0]) and clear[name].size
    )
    content = b"".join(array.tobytes() for array in arrays.values())
    piece = [memory[memory != 0][:4].tobytes() for memory in memories]
    assert all(each in b"".join(array.tobytes() for array in clear.values()) for each in piece)
    assert not any(each in content for each in piece)

    def goes_on(tiers, keys=keys, seals=True):
        again = of_job(tiers)
        seal = ResidualSeal.of(tiers, keys) if seals else None
        read_checkpoint(path, again, {"run": 1}, seal=seal)
        return again.member.gradients.memory.tobytes(), run(again)

    again = played(goes_on)
    assert [memory for memory, _ in again] == [memory.tobytes() for memory, _ in found]
    assert {digest for _, digest in again} == {whole}
    with pytest.raises(CheckpointError, match='go on with link = "sealed"'):
        played(lambda tiers: goes_on(tiers, seals=False))
    other = tmp_path / "other"
    for site in ("site0", "site1"):
        make_keys(other, site)
    (other / "site0.key").write_bytes((keys / "site0.key").read_bytes())
    with pytest.raises(CheckpointError, match=r"residual of site 'site1' does not open .*on rank 2"):
        played(lambda tiers: goes_on(tiers, other))
    (other / "site1.key").unlink()
    with pytest.raises(SecurityError, match=r"site1.key"):
        played(lambda tiers: goes_on(tiers, other))
    names = list(table["sealed"])
    swapped = {**arrays, names[0]: arrays[names[1]], names[1]: arrays[names[0]]}
    CHECKPOINT.write(path, swapped, table)
    with pytest.raises(CheckpointError, match="does not open"):
        played(goes_on)
    CHECKPOINT.write(path, arrays, table | {"step": 5})  # an older residual, told to be a newer one
    with pytest.raises(CheckpointError, match="does not open"):
        played(goes_on)


def test_ranks_that_go_on_without_a_site_take_their_own_sealed_residuals_along(tmp_path):
    keys, path = tmp_path / "keys", tmp_path / "checkpoint.h5"
    for site in ("site0", "site1", "site2"):
        make_keys(keys, site)

    def identity(*ranks):
        sites = [[f"site{number}", "edge" if number else "cloud", n] for number, n in enumerate(ranks)]
        return {
            "ranks": sum(ranks),
            "sites": [0, sites],
            "plan": {},
            "strategy": {"kind": "synchronous"},
        }

    def writes(tiers):
        half = of_job(tiers, 4)
        write_checkpoint(path, half, identity(2, 1, 1), seal=ResidualSeal.of(tiers, keys))
        return half.member.gradients.memory.copy()

    memories = played(writes, (2, 1, 1))

    def goes_on(tiers):
        again = of_job(tiers)
        seal, now = ResidualSeal.of(tiers, keys), identity(2, 1)

        def adapt(arrays, table, wanted):
            return adapted(arrays, table, wanted, now)

        notes = read_checkpoint(path, again, now, adapt=adapt, seal=seal)
        return again.member.gradients.memory, notes

    found = played(goes_on, (2, 1))
    assert found[0][1]["came_from"] == [0, 1, 2]
    assert found[0][1]["lost"] == ["site2"]
    for (memory, _), before in zip(found, memories):
        kept = before if memory.size == before.size else np.zeros_like(memory)
        np.testing.assert_array_equal(memory, kept)
    assert found[2][0].any()
