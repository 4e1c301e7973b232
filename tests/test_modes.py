"""Who may read what a run leaves: the umask decides, and `[run] mode` of the folder."""

import os
import stat
from contextlib import contextmanager

import pytest
from clusters import cluster_of
from test_cli import RUN, pack_lab, with_changes, write

from isthmus.jobs.train import train
from isthmus.pages.report import write_report


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("mask", "mode", "folder", "file"),
    [(0o027, None, 0o750, 0o640), (0o077, None, 0o700, 0o600), (0o022, 0o700, 0o700, 0o644)],
)
def test_a_run_s_folder_is_for_whom_umask_and_mode_say(comm, shared_folder, mask, mode, folder, file):
    with umask(mask):
        if comm.rank == 0:
            pack_lab(shared_folder)
            changes = {"run.checkpoint_every": 5} | ({"run.mode": mode} if mode else {})
            write(shared_folder, cluster=cluster_of(1, 1), run=with_changes(RUN, changes))
        comm.Barrier()
        summary = train(comm, shared_folder / "run.toml", lambda *_, **__: None)
        if comm.rank == 0:
            write_report(shared_folder / "runs" / os.path.basename(summary["folder"]))
            (run,) = (shared_folder / "runs").iterdir()
            assert mode_of(run) == folder
            files = [path for path in run.rglob("*") if path.is_file()]
            assert {path.name for path in files} >= {
                "checkpoint.h5",
                "metrics.jsonl",
                "report.html",
                "rank0001.log",
                "run.json",
                "summary.json",
            }
            assert {path.name: mode_of(path) for path in files} == {path.name: file for path in files}
            packed = [path for path in (shared_folder / "data").rglob("*") if path.is_file()]
            assert {mode_of(path) for path in packed} == {0o666 & ~mask}
    comm.Barrier()
