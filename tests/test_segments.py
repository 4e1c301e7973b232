"""What killed ranks leave in shared memory goes away with the next start, and nothing else does."""

import mmap
import os
import socket
import subprocess
import sys

import pytest

from isthmus import segments
from isthmus.segments import remove_segments

HOST = socket.gethostname().partition(".")[0]
HOLD = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0) if sys.argv[2] == "mapped" else file
    if sys.argv[2] == "mapped":
        file.close()
    print("ready", flush=True)
    sys.stdin.read()
"""


def segment(folder, name):
    path = folder / name
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


def test_segments_that_nobody_has_are_removed_and_all_else_stays(tmp_path, monkeypatch):
    user = os.geteuid()
    left = [segment(tmp_path, f"sm_segment.{HOST}.{user}.1f2e0000.{rank}") for rank in range(2)]
    others = [
        segment(tmp_path, name)
        for name in (
            f"sm_segment.{HOST}x.{user}.1f2e0000.0",
            f"sm_segment.{HOST}.{user + 1}.1f2e0000.0",
            f"sm_segment.{HOST}.{user}.1f2e0000.0.txt",
            "sem.something",
        )
    ]
    (tmp_path / f"sm_segment.{HOST}.{user}.2.0").symlink_to(others[0])
    assert remove_segments(tmp_path) == []  # a job may just be starting
    monkeypatch.setattr(segments, "YOUNG_SECONDS", -1.0)
    assert sorted(remove_segments(tmp_path)) == left
    assert all(path.exists() for path in others)
    assert (tmp_path / f"sm_segment.{HOST}.{user}.2.0").is_symlink()
    assert remove_segments(tmp_path / "nowhere") == []


@pytest.mark.parametrize("how", ["mapped", "open"])
def test_a_segment_that_a_process_has_stays_until_it_ends(tmp_path, monkeypatch, how):
    monkeypatch.setattr(segments, "YOUNG_SECONDS", -1.0)
    path = segment(tmp_path, f"sm_segment.{HOST}.{os.geteuid()}.1f2e0000.0")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"ready\n"
        assert remove_segments(tmp_path) == []
        assert path.exists()
        holder.stdin.close()
        holder.wait(60)
    assert remove_segments(tmp_path) == [path]
