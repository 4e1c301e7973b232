"""Residuals that other sites keep, and give back to a site that has come back."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of
from test_training import training_of

from isthmus import Int8
from isthmus.cluster.cluster import Cluster
from isthmus.errors import ReplicaError
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.recovery.buddies import Buddies, pairs_of_sites
from isthmus.training.replicas import Replicas, who_differs
from isthmus.training.residuals import ResidualSeal

COUNTS = (17, 9, 3, 8)


def joined(table, cluster, rank, succession=None):
    """Return tiers of sites that are jobs of their own, of which site0 is the hub."""
    circle = SimpleNamespace(listens="site0", succession=succession)
    return replace(tiers_in_process(table, cluster, rank), circle=circle)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_site_that_comes_back_begins_with_the_last_copy_that_counts(sealed):
    if sealed:
        pytest.importorskip("cryptography")
    cluster = Cluster(cluster_of(1, 2, 1))

    def play(table, rank):
        tiers = joined(table, cluster, rank)
        seal = ResidualSeal(tiers.site_name, bytes([tiers.site_index]) * 32) if sealed else None
        training = training_of(tiers, COUNTS, compressor=Int8(8))
        buddies, residuals = Buddies(tiers, training, seal), {}
        for _ in training.steps():
            step = training.state.step
            residuals[step] = {
                name: np.array(each)
                for name, each in training.arrays().items()
                if name.endswith("/memory")
            }
            buddies.copy()
            buddies.keep()
            if step == 4:
                break
        sends = buddies.nbytes > 0
        steps = {site: [each.step for each in copies] for site, copies in buddies.copies.items()}
        assert steps == ({"site1": [3, 4], "site2": [3, 4]} if rank == 0 else {})
        buddies.forget_after(3)  # all go back to there
        new = training_of(tiers, COUNTS, compressor=Int8(8))
        again = Buddies(tiers, new, seal)
        held = None if rank == 3 else training.arrays()
        assert again.take_up(buddies.copies, [0, 1, 2, None], held) == (3 if rank == 3 else None)
        assert [*again.copies] == (["site1"] if rank == 0 else [])
        if rank == 3:
            for name, residual in residuals[3].items():
                assert residual.any()
                np.testing.assert_array_equal(new.arrays()[name], residual)
        copies = buddies.copies["site2"][-1].contents if rank == 0 else residuals[3]
        return sends, [each.tobytes() for each in copies.values()]

    played = in_threads(4, play)
    assert [sends for sends, _ in played] == [False, True, False, True]
    assert (played[0][1] == played[3][1]) == (not sealed)


@pytest.mark.parametrize("other", [0, 1])
def test_two_at_the_top_go_on_alike_where_one_of_them_is_led_by_another_rank(other):
    """They encode one sum, each for the sites below it, with what they remember of it."""
    table = cluster_of(1, 1, 1, 1) | {"hub": ["site0", "site1"]}
    table["site"][2]["parent"], table["site"][3]["parent"] = "site0", "site1"
    table["link"].append(table["link"][0] | {"between": ["site1", "site3"]})
    cluster = Cluster(table)

    def play(at, rank):
        training = training_of(tiers_in_process(at, cluster, rank), COUNTS, compressor=Int8(8))
        for _ in training.steps():
            if training.state.step == 4:
                if rank == other:
                    training.arrays()["strategy/sums/0/memory"][:] = 0
                training.member.sums[0].begin_anew()
                assert training.member.sent_nbytes == {"site": 0, "link": 0}
        return training.state.parameters.tobytes()

    assert len({*in_threads(4, play)}) == 1


def test_no_copy_is_made_where_it_could_not_be_used():
    def pairs(table, succession=None):
        cluster = Cluster(table)
        made = in_threads(
            cluster.size, lambda at, rank: pairs_of_sites(joined(at, cluster, rank, succession))
        )
        return [tuple(each) for each in made[0]], made

    star, made = pairs(cluster_of(1, 2, 1))
    assert star == [("site1", 1, 0), ("site2", 2, 0)]
    assert made[2] == []  # no leader
    assert pairs(cluster_of(1, 1, 1), object())[0] == [("site0", 0, 1), *star]
    assert pairs(cluster_of(1, 1), object())[0] == [("site0", 0, 1), ("site1", 1, 0)]
    assert pairs(cluster_of(1))[0] == []
    two_at_the_top = cluster_of(1, 1, 1) | {"hub": ["site0", "site1"]}
    two_at_the_top["site"][2]["parent"] = "site0"
    assert pairs(two_at_the_top, object())[0] == [("site2", 2, 0)]


@pytest.mark.parametrize("wrong", ["nothing", "parameters", "kept", "other step"])
def test_who_differs_as_others_come_is_known_to_those_who_are_new(wrong):
    cluster = Cluster(cluster_of(2, 1, 1))

    def play(table, rank):
        tiers = tiers_in_process(table, cluster, rank)
        training = training_of(tiers, COUNTS)
        replicas = Replicas(training, repairs=True)
        replicas.compare_and_keep()
        if rank == 3:  # which is new
            arrays, kept = None, None
        else:
            arrays, kept = (
                {name: np.array(each) for name, each in training.arrays().items()},
                replicas.kept,
            )
        if rank == 1 and wrong != "nothing":
            arrays["parameters"][3] += 1
        if rank == 2 and wrong == "kept":
            kept.arrays["parameters"][3] += 1
        if rank == 2 and wrong == "other step":
            kept = kept._replace(step=4)
        if wrong in ("kept", "other step"):
            with pytest.raises(ReplicaError, match="step 5: as other ranks .* on rank 1 differed"):
                who_differs(tiers.world, 5, arrays, kept)
            return None
        return who_differs(tiers.world, 5, arrays, kept)

    found = in_threads(4, play)
    if wrong != "parameters":
        assert found == [None] * 4
        return
    assert [(back.ranks, back.found, step) for back, step in found] == [([1], 5, 0)] * 4
