"""A kept model put to use by any number of ranks: judged on a set of shards, asked for predictions.

Rank 0 reads the model; shards, or rows, are shared out over the ranks that see the data. What comes out
has the same bits for any number of ranks: see `models.scoring`, and sums are added in the shards' order.
"""

from functools import reduce
from pathlib import Path

import numpy as np
from mpi4py import MPI

from isthmus.errors import PolicyError, SecurityError, ShardError
from isthmus.files import replacing, write_text
from isthmus.folders.model_file import model_content, was_sealed
from isthmus.folders.trained_model import trained_model
from isthmus.links.agreement import from_root, gather_json, raise_first, require, together
from isthmus.links.world import broadcast, gather_rows
from isthmus.models.scoring import ROWS
from isthmus.shards.shard_file import ShardSet
from isthmus.shards.sources import read_arrays
from isthmus.vectors import part_bounds


def shared_model(comm, run, best=False, sealed=False):
    """Return the TrainedModel of the run's folder on every rank, as rank 0 reads it. Collective.

    sealed: whether what crosses `comm` between sites is.

    SecurityError where that would send what a run with sealed links has learnt to other hosts in clear.
    """
    hosts = gather_json(comm, MPI.Get_processor_name())

    def content_at_root():
        if comm.rank != 0:
            return b""
        if len({*hosts}) > 1 and was_sealed(run) and not sealed:
            raise SecurityError(
                f"{run}: the links of this run were sealed, and here its model would go from {hosts[0]} "
                "to other hosts in clear; start this on one host"
            )
        return model_content(run)

    content = together(comm, content_at_root)
    nbytes = np.array([len(content)])
    broadcast(comm, nbytes)
    buffer = np.empty(nbytes[0], np.uint8)
    if comm.rank == 0:
        buffer[:] = np.frombuffer(content, np.uint8)
    broadcast(comm, buffer)
    return together(comm, lambda: trained_model(run, buffer.tobytes(), best))


def evaluate_run(comm, run, folder=None, *, best=False, keys=None, tell=lambda line: None):
    """Return what the model of a run says of the shards in `folder`, a table for people and programs.

    folder: None for the set that the run was tested on. keys: the folder with the key of a site that may
    read it, where it has a policy. Collective; the table is the same on every rank.
    """
    trained = shared_model(comm, run, best)
    folder = Path(folder if folder is not None else trained.table["folders"]["test"])
    shards = together(comm, lambda: ShardSet.open(folder, keys) if folder.is_dir() else None)
    readers = _readers(comm, shards is not None, folder)
    digest = from_root(comm, lambda: shards.digest, readers[0])
    if digest != trained.table["data"]["test"]["sha256"]:
        tell(f"{folder}: other samples than the run was tested on")
    own, problem = [], None
    try:
        if comm.rank in readers:
            require_same_set(shards, digest)
            trained.check_shards(shards)
            mine = range(readers.index(comm.rank), len(shards.samples), len(readers))
            own = [trained.sums_of(shards, number).tolist() for number in mine]
    except (ShardError, PolicyError, SecurityError) as caught:
        problem = caught
    raise_first(comm, problem)
    told = gather_json(comm, own)
    samples = from_root(comm, lambda: [len(shards.samples), sum(shards.samples)], readers[0])
    sums = [
        np.array(told[readers[number % len(readers)]][number // len(readers)])
        for number in range(samples[0])
    ]
    require(comm, samples[1] > 0, ShardError, f"{folder}: holds no samples; pack some")
    return {
        "run": str(run),
        "parameters": trained.which,
        "step": trained.step,
        "shards": str(folder),
        "samples": samples[1],
        "metrics": trained.loss.metrics_of(reduce(trained.loss.add, sums)),
    }


def require_same_set(shards, digest):
    """Raise ShardError unless these shards are those that the first reader sees."""
    if shards.digest != digest:
        raise ShardError(
            f"{shards.folder}: holds other samples here than on another rank; fetch the set again"
        )


def predict_run(comm, run, source, output, *, best=False, keys=None):
    """Write what the model of a run takes the samples in `source` for to the file `output`. Collective.

    source: a file of arrays, FILE or FILE:MEMBER, or a folder of shards, whose first array is taken.
    keys: as in `evaluate_run`.
    output: .npy holds predictions, .npz `predictions` and `scores`, .csv a line a sample. The table
    that is returned says how many there were.
    """
    trained = shared_model(comm, run, best)
    sees = Path(str(source)).exists() or Path(str(source).rpartition(":")[0] or "/nowhere").exists()
    readers = _readers(comm, sees, source, "mend its path")
    scores, problem = np.empty((0, trained.model.outputs), np.float32), None
    try:
        if comm.rank in readers:
            features = features_of(source, keys)
            scores = _own_scores(trained, source, features, readers.index(comm.rank), len(readers))
    except (ShardError, PolicyError, SecurityError) as caught:
        problem = caught
    raise_first(comm, problem)
    parts = gather_rows(comm, scores)

    def write():
        whole = np.concatenate(parts)
        try:
            predictions = trained.predictions_of(whole)
        except ValueError as told:
            raise ShardError(f"{source}: {told}") from None
        WRITERS[Path(output).suffix.lower()](Path(output), predictions, whole)
        return {
            "run": str(run),
            "parameters": trained.which,
            "step": trained.step,
            "predictions": str(output),
            "samples": len(whole),
        }

    return from_root(comm, write)


def features_of(source, keys=None):
    """Return the features in `source`, FILE or FILE:MEMBER, or of a folder of shards the first array.

    keys: as in `evaluate_run`.
    """
    if not Path(source).is_dir():
        return read_arrays({"features": source})["features"]
    shards = ShardSet.open(source, keys)
    name = next(iter(shards.arrays))
    return np.concatenate(
        [np.concatenate(list(shards.pieces(number, name))) for number in range(len(shards.samples))]
    )


def _own_scores(trained, source, features, place, places):
    """Return the scores of part `place` of `places` of `features`, which `source` has, by ROWS."""
    try:
        trained.check_features(features)
        blocks = part_bounds(-(-len(features) // ROWS), places)
        first, last = (min(ROWS * bound, len(features)) for bound in blocks[place : place + 2])
        return trained.scores(trained.parameters, features[first:last])
    except ValueError as problem:
        raise ShardError(f"{source}: {problem}") from None


def _readers(comm, sees, place, cure="pack the data with `isthmus pack`, or mend its path"):
    """Return the ranks that see the data; ShardError if none does."""
    found = [rank for rank, each in enumerate(gather_json(comm, bool(sees))) if each]
    require(comm, found, ShardError, f"{place}: no rank sees it; {cure}")
    return found


def _write_npy(path, predictions, scores):
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, predictions, allow_pickle=False)


def _write_npz(path, predictions, scores):
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, predictions=predictions, scores=scores)


def _write_csv(path, predictions, scores):
    names = [f"score{number}" for number in range(scores.shape[1])]
    if predictions.ndim == 1:
        lines = [",".join(["class", *names])]
        lines += [
            f"{chosen},{','.join(map(str, row))}"
            for chosen, row in zip(predictions.tolist(), scores.tolist())
        ]
    else:
        lines = [",".join(name.replace("score", "output") for name in names)]
        lines += [",".join(map(str, row)) for row in scores.tolist()]
    write_text(path, "\n".join(lines) + "\n")


WRITERS = {".npy": _write_npy, ".npz": _write_npz, ".csv": _write_csv}
