"""Uses in two ranks what CONTRIBUTING.md adds to a copy of the sources; started by test_contributing."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from mpi4py import MPI
from test_rebalancing import lab

import isthmus
from isthmus.collectives.allreduce import Allreduce
from isthmus.errors import MachineError
from isthmus.jobs.train import train
from isthmus.links.checked import DIGEST_NBYTES, CheckedComm
from isthmus.links.comm import Wrapped

SIZE = 50_000


class Watched(Wrapped):
    """A link on which somebody notes every message, and may change its last byte."""

    def __init__(self, comm, left):
        super().__init__(comm)
        self.left, self.spoil = left, False

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        message = np.array(buffer).reshape(-1).view(np.uint8)
        message[-1:] ^= self.spoil
        self.left.append(message.tobytes())
        return super().Isend(message, dest, tag)


def links_are_checked(tiers):
    """Equal bits; counted = predicted = what left."""
    left = []
    watched = tiers.through(lambda comm, ranks: Watched(comm, left))
    checked = watched.through(CheckedComm)
    given = np.random.default_rng(tiers.world.rank).normal(size=SIZE).astype("f4")
    for name, compressor in (("ring", None), ("star", None), ("hierarchical", isthmus.Int8(64))):
        means, seen, seconds = [], [], []
        for each in (watched, checked):
            allreduce = Allreduce(each, SIZE, name, compressor, chunk_nbytes=6000)
            left.clear()
            means.append(allreduce(given).tobytes())
            seen.append(list(left))
            counted, predicted = allreduce.sent_to_sites, allreduce.predicted_to_sites()
            assert counted.tolist() == predicted.tolist(), name
            assert counted.sum() == sum(map(len, left)) > 0, name
            seconds.append(
                isthmus.predict_allreduce(
                    each.cluster, SIZE, algorithm=name, compressor=compressor, chunk_nbytes=6000
                ).seconds
            )
        (plain, same), (in_clear, messages) = means, seen
        assert plain == same, name
        assert len(messages) == len(in_clear)
        assert sum(map(len, messages)) == sum(map(len, in_clear)) + DIGEST_NBYTES * len(messages)
        assert seconds[0] < seconds[1] < 1.1 * seconds[0], name


def a_changed_message_is_refused(comm):
    """By the rank that receives it, before anything of it is taken."""
    link = Watched(comm, [])
    checked, message = CheckedComm(link, range(2)), np.arange(4, dtype="f4")
    for link.spoil in (False, True):
        received = np.zeros_like(message)
        if comm.rank == 0:
            checked.Send(message, 1)
        elif not link.spoil:
            checked.Recv(received, 0)
            assert received.tolist() == message.tolist()
        else:
            with pytest.raises(MachineError, match="from rank 0 was changed on its way; look at"):
                checked.Recv(received, 0)
            assert not received.any()


def a_run_has_them(comm, folder):
    """A run with the strategy and the objective exchanges in every third step, and resumes the same."""
    path = lab(
        comm,
        folder,
        sites=(1, 1),
        plan={"replan": False, "objective": "wages"},
        cluster={"compute": "real"},
        training={"epochs": 2},
        run={"checkpoint_every": 10},
    )
    if comm.rank == 0:
        path.write_text('strategy = { kind = "every_nth", steps = 3 }\n' + path.read_text())
    comm.Barrier()

    def quiet(line, passing=False):
        pass

    summary = train(comm, path, quiet)
    again = train(comm, path, quiet, resume=summary["folder"])
    assert again["parameter_hash"] == summary["parameter_hash"]
    wire = isthmus.Int8(16).wire_nbytes(16 * 8 + 8 + 8 * 3 + 3)
    assert {link["sent_nbytes"] for link in summary["links"]} == {7 * wire}  # steps 3 to 18, and 20
    assert {link["predicted_nbytes"] for link in summary["links"]} == {7 * wire}
    if comm.rank == 0:
        lines = map(json.loads, Path(summary["folder"], "metrics.jsonl").read_text().splitlines())
        assert [line["step"] for line in lines if line.get("exchanged")] == [3, 6, 9, 12, 15, 18, 20]


def main(folder):
    comm = MPI.COMM_WORLD
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        links_are_checked(tiers)
    a_changed_message_is_refused(comm)
    importlib.import_module("example").test_the_mean_of_two_sites_is_that_of_their_ranks(comm)
    a_run_has_them(comm, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
