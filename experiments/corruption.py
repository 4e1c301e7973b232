"""Damage files in thousands of ways and read them: equal results or one line, never anything else.

    python experiments/corruption.py [CASES] [SEED] [KIND ...]

Without arguments the number of cases is each kind's own; a case depends on (SEED, its number) alone. In
each one bit is flipped, or a file is cut, or a part of it is zeroed, doubled or dropped, or a byte is
another one that the file has, or junk is put in or written over it. The reader runs in a process of
its own. It may return what it returns for the whole file (`equal`), or raise the error of that kind of
file, whose exit code the command then has, with a message of one line (`refused`). All else is a
failure: other results without a word (`silent`), any other exception (`traceback`), no end (`hang`),
or the end of the process (`crash`). Prints a sheet; exit code 1 if anything failed. To add a kind of
file, write a function like `checkpoint` and name it in KINDS.
"""

import hashlib
import os
import resource
import select
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import isthmus
from isthmus.errors import CheckpointError, SettingsError, ShardError
from isthmus.folders.model_file import Kept, write_model
from isthmus.folders.record import RunFolder
from isthmus.folders.status import describe_run
from isthmus.folders.stored_weights import StoredWeights
from isthmus.models import Perceptron
from isthmus.pages.report import write_report
from isthmus.provenance import process_provenance
from isthmus.training.checkpoint_file import CHECKPOINT

OUTCOMES = ("equal", "refused", "silent", "traceback", "hang", "crash")
FAILURES = OUTCOMES[2:]
HANG_SECONDS = 20
MEMORY_NBYTES = 8 << 30  # more than this is a traceback, not the machine's end


@dataclass(frozen=True)
class Subject:
    """Files, one of which is damaged in each case, and who reads them.

    read: returns bytes that tell all that a reader gets. error: what it raises for a damaged file.
    """

    files: list[Path]
    read: Callable[[], bytes]
    error: type[isthmus.errors.IsthmusError]


def checkpoint(folder):
    """A checkpoint of four ranks, two of them with memories."""
    path, draw = folder / "checkpoint.h5", np.random.default_rng(0)
    arrays = {
        name: draw.normal(size=size).astype("f4")
        for name, size in {
            "parameters": 500,
            "optimiser/momentum": 500,
            "memories/0": 500,
            "memories/2": 520,
        }.items()
    }
    CHECKPOINT.write(
        path,
        arrays,
        {
            "step": 40,
            "calls": 80,
            "sent": [[0, 4160], [0, 0], [4160, 0], [0, 0]],
            "identity": {"model": {"kind": "perceptron"}, "ranks": 4},
            "notes": {"plan": [1, 2, 3]},
        },
    )

    def read():
        found, table = CHECKPOINT.read(path)
        return repr(
            (sorted((name, array.dtype.str, array.tobytes()) for name, array in found.items()), table)
        ).encode()

    return Subject([path], read, CheckpointError)


def shards(folder):
    """The files of a set of three shards, each with two arrays, compressed in several chunks."""
    packed = _pack(folder)
    return Subject([folder / name for name in packed.names], lambda: _everything(folder), ShardError)


def manifest(folder):
    """The manifest of such a set."""
    _pack(folder)
    return Subject([folder / "manifest.json"], lambda: _everything(folder), ShardError)


def run(folder):
    """The files of a finished run that are text: its report is read from them, and its row in a list."""
    ends = {"latency_seconds": 0.01, "bytes_per_second": 1e7}
    cluster = isthmus.Cluster(
        {
            "site": [
                {"name": name, "tier": tier, "ranks": 2, "samples_per_second": 1000.0, "network": ends}
                for name, tier in (("site0", "cloud"), ("site1", "edge"))
            ],
            "link": [{"between": ["site0", "site1"], **ends}],
        }
    )
    plan = isthmus.plan_shards(cluster, [10] * 6, isthmus.Workload(1000, 20))
    steps, writer = 3 * plan.steps, RunFolder(folder)
    writer.write_documents(
        process_provenance()
        | {
            "settings": {
                "cluster": {"links": "paced", "compute": "real"},
                "model": {"kind": "perceptron"},
                "allreduce": {"algorithm": "ring", "compressor": None},
                "training": {"epochs": 3},
            },
            "hosts": ["here"] * 4,
            "model_size": 1000,
            "mpi_library": "MPI",
            "emulated": [],
        },
        cluster,
        plan,
    )
    for step in range(1, steps + 1):
        writer.note(
            "step",
            step=step,
            epoch=(step - 1) // plan.steps,
            seconds=0.1 * step,
            loss=1 / step,
            step_seconds=0.1,
            terms=plan.terms,
            sent_nbytes={"site": step, "link": 100 * step},
        )
    writer.note(
        "evaluation",
        step=steps,
        epoch=2,
        seconds=0.1 * steps,
        link_nbytes=100 * steps,
        loss=0.3,
        accuracy=0.9,
    )
    writer.note("replicas", step=steps, epoch=2, hash="5f" * 32)
    writer.close()
    writer.write_json(
        "summary.json",
        {
            "outcome": "finished",
            "steps": steps,
            "seconds": 0.1 * steps,
            "loss": 0.3,
            "accuracy": 0.9,
            "parameter_hash": "5f" * 32,
            "dense_link_nbytes": 100 * steps,
            "links": [
                {
                    "source": "site0",
                    "target": "site1",
                    "sent_nbytes": 100 * steps,
                    "predicted_nbytes": 100 * steps,
                }
            ],
            "terms": [
                {"name": name, "predicted_seconds": seconds, "measured_seconds": seconds}
                for name, seconds in plan.terms.items()
            ],
            "step": {"predicted_seconds": plan.step_seconds, "measured_seconds": plan.step_seconds},
        },
    )

    def read():
        row = _without_end(lambda: describe_run(folder))
        page = write_report(folder).read_text()
        if row["problem"]:
            raise SettingsError(row["problem"])
        RunFolder(folder).cut_back(steps)
        return repr([row, page]).encode()

    names = ("run.json", "plan.json", "summary.json", "metrics.jsonl")
    return Subject([folder / name for name in names], read, SettingsError)


def model(folder):
    """The model that a run has kept, the last in float32 and the best compressed."""
    path, made = folder / "model.h5", Perceptron(6, (5,), 3)
    best = made.views(made.initial(20))
    stored = {
        name: StoredWeights.of("int8", best[f"{name}.weight"], True) for name in ("layer0", "layer1")
    }
    metrics = {"test": {"loss": 0.5, "accuracy": 0.75}}
    sample = {"shape": [6], "dtype": "float32"}
    write_model(
        path,
        {
            "version": isthmus.__version__,
            "model": {"kind": "perceptron", "arguments": {"inputs": 6, "hidden": [5], "classes": 3}},
            "features": sample,
            "targets": {"shape": [], "dtype": "uint8"},
            "settings_sha256": "5f" * 32,
            "data": {"test": {"samples": 60, "sha256": "5f" * 32}},
            "folders": {"test": "data/test"},
            "threads": 1,
        },
        {
            "last": Kept(40, 4, metrics, made.views(made.initial(40))),
            "best": Kept(20, 2, metrics, best, {}, {f"{name}.weight": stored[name] for name in stored}),
        },
    )

    def read():
        told = []
        for best in (False, True):
            trained, parameters = isthmus.load_model(folder, best)
            told += [trained.table, trained.step, trained.metrics, parameters.tobytes()]
        return repr(told).encode()

    return Subject([path], read, SettingsError)


KINDS = {
    "checkpoint": (checkpoint, 2745),
    "model": (model, 2745),
    "shards": (shards, 2745),
    "manifest": (manifest, 1362),
    "run": (run, 412),
}


def _without_end(read):
    """Return what `read` does; it may tell of damage and must not end for it."""
    try:
        return read()
    except isthmus.errors.IsthmusError as problem:
        raise RuntimeError(f"{problem}") from problem


def _pack(folder):
    draw = np.random.default_rng(1)
    return isthmus.pack_shards(
        {
            "features": draw.integers(0, 9, (60, 400, 50), dtype="u1"),
            "targets": draw.integers(0, 9, 60, dtype="i8"),
        },
        folder,
        3,
    )


def _everything(folder):
    """Return a digest of all that a set of shards gives."""
    opened, digest = isthmus.ShardSet.open(folder), hashlib.sha256()
    opened.verify()
    digest.update(repr([opened.samples, opened.nbytes, opened.arrays]).encode())
    for number in range(len(opened.samples)):
        for name, values in opened.read(number).items():
            digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
    return digest.digest()


def damaged(content, draw):
    """Return (what was done, other bytes than `content`)."""
    place, length = int(draw.integers(len(content))), int(draw.integers(1, 1 + min(len(content), 600)))
    part, junk = content[place : place + length], draw.bytes(int(draw.integers(1, 40)))
    kind = draw.choice(
        ["flip", "flip", "flip", "cut", "zero", "double", "drop", "exchange", "insert", "write over"]
    )
    other = bytearray(content)
    if kind == "flip":
        length = int(draw.integers(8))
        other[place] ^= 1 << length
    elif kind == "cut":
        del other[place:]
    elif kind == "zero":
        other[place : place + length] = bytes(len(part))
    elif kind == "double":
        other[place:place] = part
    elif kind == "drop":
        del other[place : place + length]
    elif kind == "exchange":
        other[place] = content[int(draw.integers(len(content)))]
    elif kind == "insert":
        other[place:place] = junk
    else:
        other[place : place + len(junk)] = junk
    if other == content:
        return damaged(content, draw)
    return f"{kind} at {place} ({length})", bytes(other)


def case(subject, contents, seed, number):
    """Return (file, what was done to it, its bytes) of case `number`."""
    draw = np.random.default_rng([seed, number])
    path = subject.files[int(draw.integers(len(subject.files)))]
    return path, *damaged(contents[path], draw)


def outcome(subject, expected):
    """Return what becomes of reading `subject` as it is now."""
    try:
        return "equal" if subject.read() == expected else "silent"
    except subject.error as problem:
        return "refused" if len(str(problem).splitlines()) == 1 else "traceback"
    except Exception:
        return "traceback"


def read_cases(subject, contents, expected, seed, numbers, answers):
    """In a process of its own: damage, read, and write each outcome's number to `answers`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_NBYTES, MEMORY_NBYTES))
    for number in numbers:
        path, _, content = case(subject, contents, seed, number)
        path.write_bytes(content)
        try:
            found = outcome(subject, expected)
        finally:
            path.write_bytes(contents[path])
        os.write(answers, bytes([OUTCOMES.index(found)]))


def outcomes_of(subject, cases, seed):
    """Return the outcome of each case; a process that crashes or hangs is followed by another one."""
    contents = {path: path.read_bytes() for path in subject.files}
    expected, found = subject.read(), []
    while len(found) < cases:
        receiver, answers = os.pipe()
        if not (process := os.fork()):
            try:
                os.close(receiver)
                read_cases(subject, contents, expected, seed, range(len(found), cases), answers)
            except BaseException:
                os._exit(1)
            os._exit(0)
        os.close(answers)
        while told := _next_byte(receiver):
            found.append(OUTCOMES[told[0]])
        os.close(receiver)
        if told is None:
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if len(found) < cases:
            found.append("hang" if told is None else "crash")
        for path, content in contents.items():
            path.write_bytes(content)
    return found


def _next_byte(receiver):
    """Return the byte that comes, none where the other end is closed, None where nothing comes."""
    return os.read(receiver, 1) if select.select([receiver], [], [], HANG_SECONDS)[0] else None


def campaign(kind, cases, seed):
    """Return (Counter of outcomes, lines about the failures) of one kind of file."""
    with tempfile.TemporaryDirectory() as folder:
        subject = KINDS[kind][0](Path(folder))
        contents = {path: path.read_bytes() for path in subject.files}
        found = outcomes_of(subject, cases, seed)
        lines = []
        for number, name in enumerate(found):
            if name in FAILURES:
                path, what, _ = case(subject, contents, seed, number)
                lines.append(f"{kind} {number}: {name}: {path.name}: {what}")
    return Counter(found), lines


def main(cases=None, seed=0, *kinds):
    """Print a sheet of all kinds; return how many cases failed."""
    failed = 0
    print(f"{'':12}{'cases':>10}" + "".join(f"{name:>10}" for name in OUTCOMES))
    for kind in kinds or KINDS:
        counted, lines = campaign(kind, int(cases or KINDS[kind][1]), int(seed))
        print(
            f"{kind:12}{counted.total():>10}" + "".join(f"{counted[name]:>10}" for name in OUTCOMES),
            *lines,
            sep="\n",
            flush=True,
        )
        failed += len(lines)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
