"""The folder of a run: what made it, what was planned, what was measured. Rank 0 alone writes it."""

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from isthmus.cures import explained
from isthmus.errors import CheckpointError, OutputError, ranks_in_words
from isthmus.files import check_folder, remove_leftovers, replacing, write_text
from isthmus.folders.chain import BEGINNING, last_hash, linked
from isthmus.folders.contents import Provenance
from isthmus.folders.lock import FolderLock
from isthmus.folders.reading import read_lines, read_table
from isthmus.folders.seals import sealed
from isthmus.links.agreement import from_root
from isthmus.provenance import process_provenance
from isthmus.testbed import on_testbed

DAMAGED = "damaged-lines"
"""The file of a run's folder for lines of metrics.jsonl that could not be read when it was resumed."""


class RunFolder:
    """One run's files, each whole or not at all; `metrics.jsonl` alone grows, line by line."""

    def __init__(self, path, chained=False):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self._lines = None
        self.chain = BEGINNING if chained else None  # the hash of the last line
        self.written = 0  # lines

    @classmethod
    def create(cls, parent, stem, name=None):
        """Make a new folder `parent`/`stem`-DATE; OutputError if that is not possible.

        With a `name` it is called so, and what an earlier start measured there is forgotten.
        """
        if name is not None:
            folder = cls(Path(parent, name))
            write_text(folder.metrics, "")
            return folder
        stem = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            path = Path(parent, stem + suffix)
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                continue
            except OSError as problem:
                elsewhere = "set run.folder to a folder that you may write in"
                raise OutputError(
                    f"{path}: cannot be made: {explained(problem, elsewhere=elsewhere)}"
                ) from None
        raise OutputError(f"{parent}: holds 99 runs called {stem}; set run.folder to another folder")

    @staticmethod
    def begun(parent, name):
        """Return the path of the run called `name` if it has a checkpoint to go on with, else None."""
        if name in ("", ".", "..") or Path(name).name != name:
            raise OutputError(f"--name {name!r}: cannot be the name of a folder; give one word")
        path = Path(parent, name)
        return str(path) if (path / "checkpoint.h5").is_file() else None

    @staticmethod
    def reserve(parent, resume, name, lock):
        """Take the folder that `resume` or `name` means; return it if it has a run to go on with.

        None: a new one is to be made. Raises OutputError or CheckpointError now for what would fail
        later, and where another job has the folder.
        """
        elsewhere = "set run.folder to a folder that you may write in"
        named = name is not None and (RunFolder.begun(parent, name) is not None or resume is None)
        if named:
            check_folder(parent, elsewhere)
            lock.take(Path(parent, name))
            resume = RunFolder.begun(parent, name)  # what it has now that nobody else can change it
            if resume is None and Path(parent, name, "summary.json").exists():
                raise OutputError(
                    f"{Path(parent, name)}: holds a finished run; give another --name, or "
                    "remove the folder"
                )
        elif resume is not None:
            if not Path(resume, "checkpoint.h5").is_file():
                raise CheckpointError(
                    f"{Path(resume, 'checkpoint.h5')}: no such checkpoint; set "
                    "run.checkpoint_every, or start without --resume"
                )
            lock.take(resume)
        else:
            check_folder(parent, elsewhere)
        return resume and str(resume)

    def write_documents(self, table, cluster, plan, step=None):
        """Write what made the run, its cluster and its plan: run.json, cluster.toml and plan.json.

        step: of the checkpoint that the run goes on from. run.json then keeps when it was first started,
        and what was started earlier.
        """
        if step is not None and (self.path / "run.json").exists():
            before = read_table(self.path / "run.json", Provenance)
            start = {
                "started": before.get("resumed", before["started"]),
                "command": before.get("command", []),
                "until_step": step,
            }
            table = table | {
                "started": before["started"],
                "resumed": table["started"],
                "earlier": [*before.get("earlier", []), start],
            }
        self.write_json("run.json", table)
        cluster.to_toml(self.path / "cluster.toml")
        self.write_json("plan.json", plan.to_dict())

    def write_json(self, name, table):
        write_text(self.path / name, sealed(table, indent=1))

    def note(self, kind, **values):
        """Add a line to metrics.jsonl."""
        with self._writing():
            if self._lines is None:
                self._lines = open(self.metrics, "a", encoding="utf-8")  # noqa: SIM115
            line = sealed({"kind": kind, **values})
            if self.chain is not None:
                line, self.chain = linked({"kind": kind, **values}, self.chain)
            self._lines.write(line)
            self.written += 1

    def flush(self):
        if self._lines is not None:
            with self._writing():
                self._lines.flush()

    @contextmanager
    def _writing(self):
        try:
            yield
        except OSError as problem:
            raise OutputError(
                f"{self.metrics}: cannot be written: "
                f"{explained(problem, 'check the folder and its disk')}"
            ) from None

    def cut_back(self, step, keeps=None):
        """Drop what metrics.jsonl tells of steps after `step`: they will be made again.

        keeps(line): whether to keep a line, in the place of that.

        Returns the lines that are kept, as dicts, and the numbers of those that were damaged, which go
        to a file of their own.
        """
        if not self.metrics.exists():
            raise CheckpointError(
                f"{self.metrics}: no such file; resume in the folder that the run has made"
            )
        kept, lines, damaged = [], [], {}
        for number, line, table, wrong in read_lines(self.metrics):
            if wrong:
                damaged[number] = line + b"\n"
            elif table["step"] <= step if keeps is None else keeps(table):
                kept.append(table)
                lines.append(line + b"\n")
        if damaged:
            with self._writing(), open(self.path / DAMAGED, "ab") as file:
                file.writelines(damaged.values())
        with replacing(self.metrics) as partial:
            partial.write_bytes(b"".join(lines))
        self.written = len(lines)
        if self.chain is not None:
            self.chain = last_hash(lines)
        return kept, list(damaged)

    def close(self):
        if self._lines is not None:
            lines, self._lines = self._lines, None
            with self._writing():
                lines.close()


@contextmanager
def reserved(tiers, parent, resume, name):
    """Give (folder to go on with or None, the lock on it), and free it at the end. Collective.

    resume: the folder of a run, or its checkpoint.h5.
    """
    if resume and Path(resume).name == "checkpoint.h5":
        resume = Path(resume).parent
    with FolderLock() as lock:
        reserve = partial(RunFolder.reserve, parent, resume, name, lock)
        yield from_root(tiers.world, reserve, tiers.home), lock


def open_folder(tiers, settings, stem, resume, name, lock):
    """Return the path of the run's folder, made anew or gone on with, on every rank. Collective."""

    def make():
        folder = RunFolder(resume) if resume else RunFolder.create(settings.run.folder, stem, name)
        if not resume and name is None:
            lock.take(folder.path)
        let_in(folder.path, settings.run.mode)
        remove_leftovers(folder.path)
        return str(folder.path)

    return Path(from_root(tiers.world, make, tiers.home))


def let_in(folder, mode):
    """Let those into `folder` whom `mode`, as in 0o700, lets in; None: those whom the umask does."""
    if mode is not None:
        try:
            Path(folder).chmod(mode)
        except OSError as problem:
            raise OutputError(
                f"{folder}: its mode cannot be set to {mode:#o}: {problem.strerror}; set "
                "run.folder to a folder of yours, or leave out run.mode"
            ) from None


def provenance(settings, hosts, mpi_library, model_size, data):
    """Return what made a run, for its run.json; data: what `Manifest.told` says of each set."""
    return process_provenance() | {
        "mpi_library": mpi_library,
        "hosts": hosts,
        "settings": settings.to_json(),
        "emulated": ["links"] if on_testbed() else [],
        "model_size": model_size,
        "data": data,
    }


def left_out_sentence(sums, names):
    """Return what the sums of a line of kind "left_out" tell. names: of the sites."""
    number, sites = sums[0]
    more = f", and {len(sums) - 1} sums more went on without some" if len(sums) > 1 else ""
    return f"sum {number} went on without {', '.join(names[site] for site in sites)}: not finite{more}"


def repaired_sentence(line):
    """Return what a line of kind "repaired" tells: who had other parameters, and what is done again."""
    who = f"on {ranks_in_words(line['ranks'])} differ from the others'"
    return (
        f"parameters {who if line['ranks'] else 'differ between ranks'}: all go back to step "
        f"{line['step']}, where they were equal, and make {line['found'] - line['step']} steps again"
    )


def replanned_sentence(line):
    """Return what a line of kind "replanned" tells: who changed, what moved, what that saves."""
    why = "; ".join(
        f"rank {each['rank']} computes {each['after']:.4g} samples/s, not {each['before']:.4g}"
        for each in line["changed"]
    )
    if not line["shards"]:
        return f"{why}; moving shards would not pay"
    saved = line["staying_seconds"] - line["predicted_seconds"]
    return (
        f"{why}; {line['shards']} shards ({line['nbytes'] / 1e6:.2f} MB) moved in "
        f"{line['moving_seconds']:.3f} s ({line['predicted_moving_seconds']:.3f} s predicted), "
        f"to save {saved:.3g} s of the {line['staying_seconds']:.3g} s that are left; "
        f"samples a rank now {', '.join(map(str, line['samples_of_rank']))}"
    )
