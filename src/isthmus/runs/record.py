"""The folder of a run: what made it, what was planned, what was measured. Rank 0 alone writes it."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

from isthmus.errors import CheckpointError, OutputError
from isthmus.files import check_folder, write_text
from isthmus.provenance import process_provenance
from isthmus.testbed import on_testbed


class RunFolder:
    """One run's files, each whole or not at all; `metrics.jsonl` alone grows, line by line."""

    def __init__(self, path):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self._lines = None

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
                raise OutputError(f"{path}: cannot be made: {problem.strerror}; set run.folder to a "
                                  "folder that you may write in") from None
        raise OutputError(f"{parent}: holds 99 runs called {stem}; set run.folder to another folder")

    @staticmethod
    def begun(parent, name):
        """Return the path of the run called `name` if it has a checkpoint to go on with, else None."""
        if name in ("", ".", "..") or Path(name).name != name:
            raise OutputError(f"--name {name!r}: cannot be the name of a folder; give one word")
        path = Path(parent, name)
        return str(path) if (path / "checkpoint.h5").is_file() else None

    @staticmethod
    def check(parent, resume):
        """Raise OutputError or CheckpointError now for what would fail later."""
        if resume is not None:
            if not Path(resume, "checkpoint.h5").is_file():
                raise CheckpointError(f"{Path(resume, 'checkpoint.h5')}: no such checkpoint; set "
                                      "run.checkpoint_every, or start without --resume")
            return
        check_folder(parent, "set run.folder to a folder that you may write in")

    def write_json(self, name, table):
        write_text(self.path / name, json.dumps(table, indent=1) + "\n")

    def note(self, kind, **values):
        """Add a line to metrics.jsonl."""
        with self._writing():
            if self._lines is None:
                self._lines = open(self.metrics, "a", encoding="utf-8")  # noqa: SIM115
            self._lines.write(json.dumps({"kind": kind, **values}) + "\n")

    def flush(self):
        if self._lines is not None:
            with self._writing():
                self._lines.flush()

    @contextmanager
    def _writing(self):
        try:
            yield
        except OSError as problem:
            raise OutputError(f"{self.metrics}: cannot be written: {problem.strerror}; check the "
                              "folder's rights and free space") from None

    def cut_back(self, step):
        """Drop what metrics.jsonl tells of steps after `step`: they will be made again.

        Returns the lines that are kept, as dicts.
        """
        kept = []
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
        except OSError as problem:
            raise CheckpointError(f"{self.metrics}: cannot be read: {problem.strerror}; resume in the "
                                  "folder that the run has made") from None
        for line in lines:
            try:
                table = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                break
            if table["step"] <= step:
                kept.append(table)
        write_text(self.metrics, "".join(json.dumps(table) + "\n" for table in kept))
        return kept

    def close(self):
        if self._lines is not None:
            lines, self._lines = self._lines, None
            with self._writing():
                lines.close()


def provenance(settings, hosts, mpi_library, model_size):
    """Return what made a run, for its run.json."""
    return process_provenance() | {
        "mpi_library": mpi_library,
        "hosts": hosts,
        "settings": settings.to_json(),
        "emulated": ["links"] if on_testbed() else [],
        "model_size": model_size,
    }


def replanned_sentence(line):
    """Return what a line of kind "replanned" tells: who changed, what moved, what that saves."""
    why = "; ".join(f"rank {each['rank']} computes {each['after']:.4g} samples/s, not "
                    f"{each['before']:.4g}" for each in line["changed"])
    if not line["shards"]:
        return f"{why}; moving shards would not pay"
    saved = line["staying_seconds"] - line["predicted_seconds"]
    return (f"{why}; {line['shards']} shards ({line['nbytes'] / 1e6:.2f} MB) moved in "
            f"{line['moving_seconds']:.3f} s ({line['predicted_moving_seconds']:.3f} s predicted), "
            f"to save {saved:.3g} s of the {line['staying_seconds']:.3g} s that are left; "
            f"samples a rank now {', '.join(map(str, line['samples_of_rank']))}")
