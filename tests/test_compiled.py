"""Kernels run where nothing that is compiled can be kept, and say so once."""

import errno
import os
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from patience import launched

from isthmus.kernels import compiled as module
from isthmus.kernels.compiled import compiled

NO_FOLDER = """\
import tempfile
make = tempfile.TemporaryFile
def refuse(*arguments, dir=None, **more):
    if any(word in str(dir) for word in ("cache", "kernels")):
        raise OSError(30, "Read-only file system")
    return make(*arguments, dir=dir, **more)
tempfile.TemporaryFile = refuse
"""
PROGRAM = """\
import numpy as np
from isthmus import kernels
from isthmus.kernels import cpu
from isthmus.timing.flows import max_min_rates
total = np.ones(3, "f4")
cpu.add(np.ones(3, "f4"), total)
assert total.tolist() == [2, 2, 2]
assert max_min_rates([(0,), (0,)], [4.0]).tolist() == [2, 2]
"""


def doubled(vector):
    return 2 * vector


@pytest.mark.slow
def test_kernels_are_compiled_where_no_folder_can_be_written_and_that_is_one_warning(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_FOLDER)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = launched([sys.executable, "-c", PROGRAM], env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled kernels cannot be kept") == 1, done.stderr
    assert "set NUMBA_CACHE_DIR" in done.stderr


@pytest.mark.parametrize(("number", "cure"), [(errno.ENOSPC, "free space"), (errno.EACCES, "rights")])
def test_a_cache_that_cannot_be_written_in_is_done_without(tmp_path, monkeypatch, number, cure):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    kernel = compiled(doubled)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel._cache._cache_file, "_save_data", fail)
    module._told.clear()
    with pytest.warns(RuntimeWarning, match=cure):
        assert kernel(np.float32(2)) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel(np.float64(2)) == 4  # the cache is not asked again


def test_a_damaged_cache_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    compiled(doubled)(np.float32(2))
    kept = list(tmp_path.rglob("*.nbc"))
    assert kept
    for path in kept:
        path.write_bytes(b"x")
    assert compiled(doubled)(np.float32(2)) == 4
    again = compiled(doubled)
    assert again(np.float32(2)) == 4
    assert sum(again.stats.cache_hits.values()) == 1


def test_ranks_that_compile_at_once_read_what_they_asked_for_or_nothing(tmp_path, monkeypatch):
    """Whatever the order in which their files are written: never another signature's or source's."""
    files = partial(module._Files, str(tmp_path), "loop-1.py311")
    files(("old", 9)).save("one", "old one")
    (tmp_path / "loop-10.py311.0123456789abcdef.0123456789abcdef.nbc").write_text("another loop's")
    first, second = files(("new", 9)), files(("new", 9))
    assert [first.load("one"), second.load("two")] == [None, None]
    write = first._save_data

    def write_after_the_other(name, data):
        second.save("two", "new two")
        assert second.load("one") is None
        write(name, data)

    monkeypatch.setattr(first, "_save_data", write_after_the_other)
    first.save("one", "new one")
    for each in (first, second):
        assert [each.load("one"), each.load("two")] == ["new one", "new two"]
    assert len(list(tmp_path.glob("*.nbc"))) == 3  # of the old source nothing is left


def test_every_loop_is_compiled_in_one_way(repository):
    """A loop that kept to itself would end a run where its cache cannot be written."""
    for path in [*(repository / "src").rglob("*.py"), *(repository / "kernels").rglob("*.py")]:
        if path != repository / "kernels/compiled.py":
            assert "njit" not in path.read_text(), path
    assert module.UNKEPT
