"""Damaged files: equal results or one line, in a sample of what experiments/corruption.py does."""

import importlib
import os
import signal
import time
import zlib

import pytest

CASES = {"checkpoint": 200, "model": 200, "shards": 60, "manifest": 150, "run": 40}


@pytest.fixture
def corruption(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    return importlib.import_module("corruption")


@pytest.mark.slow
def test_a_damaged_file_gives_equal_results_or_one_line(corruption):
    for kind in corruption.KINDS:
        counted, failures = corruption.campaign(kind, CASES[kind], seed=1)
        assert failures == []
        assert counted.total() == CASES[kind]
        assert counted["refused"] > 0.9 * CASES[kind]


def test_the_campaign_sees_what_must_not_be(corruption, tmp_path, monkeypatch, capsys):
    """A reader that believes, hangs, crashes or raises something else than its error."""
    path = tmp_path / "file"
    path.write_bytes(b"good" * 50)

    def two_lines():
        raise corruption.ShardError("one\ntwo")

    acts = [
        lambda: b"other",
        two_lines,
        lambda: time.sleep(60),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
    ]
    subject = corruption.Subject(
        [path],
        lambda: b"" if path.read_bytes() == b"good" * 50 else acts[zlib.crc32(path.read_bytes()) % 4](),
        corruption.ShardError,
    )
    monkeypatch.setattr(corruption, "KINDS", {"careless": (lambda _: subject, 0)})
    monkeypatch.setattr(corruption, "HANG_SECONDS", 0.5)
    assert corruption.main(30, 3) == 30
    printed = capsys.readouterr().out
    for name in ("silent", "traceback", "hang", "crash"):
        assert f": {name}: file: " in printed
