"""asv on commits: a regression ends with an error, an equal commit does not, and the page is made."""

import json
import os
import shutil
import subprocess
import sys

import pytest

COMMIT = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "commit", "--quiet", "--all")
ADD = "        total[i] += vector[i]\n"


@pytest.fixture
def clone(repository, tmp_path):
    """The working tree as a repository of its own, with two equal commits."""
    folder = tmp_path / "clone"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (repository / name).is_file() or (repository / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    for number in (1, 2):
        git(folder, *COMMIT, "--allow-empty", f"--message={number}")
    return folder


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def make(folder, target, *settings):
    """Run make with this Python's environment as it is, in which nothing is installed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", target, f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed", *settings],
        cwd=folder,
        env=environment | {"HOME": str(folder.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1200,
    )


@pytest.mark.slow
@pytest.mark.alone
def test_a_kernel_that_is_twice_as_slow_is_a_regression(clone):
    settings = "BASE=HEAD~1", "BENCH=InCache.*'add'"
    equal = make(clone, "bench-compare", *settings, "ROUNDS=2")
    assert equal.returncode == 0, equal.stdout
    assert "BENCHMARKS NOT SIGNIFICANTLY CHANGED" in equal.stdout
    (path, *_) = (clone / ".asv/results").glob("*/*-on_top_of_this_python*.json")
    table = json.loads(path.read_text())
    figure = dict(zip(table["result_columns"], table["results"]["kernels.InCache.track_triads"]))
    low, median, high, count = (
        figure[name][0] for name in ("stats_ci_99_a", "result", "stats_ci_99_b", "stats_repeat")
    )
    assert 0 < low < median < high  # that asv makes an interval of samples is not in its documents
    assert count == 2 * 101

    kernels = clone / "kernels/cpu.py"
    text = kernels.read_text()
    assert text.count(ADD) == 1
    kernels.write_text(text.replace(ADD, ADD + "    for i in range(total.size):\n" + ADD))
    git(clone, *COMMIT, "--message=slower")
    slower = make(clone, "bench-compare", *settings, "ROUNDS=1")
    assert slower.returncode != 0, slower.stdout
    assert "PERFORMANCE DECREASED" in slower.stdout
    assert "kernels.InCache.track_triads('add')" in slower.stdout

    published = make(clone, "bench-html")
    assert published.returncode == 0, published.stdout
    index = json.loads((clone / ".asv/html/index.json").read_text())
    assert len(index["revision_to_hash"]) == 3
    assert "collectives.SharedMemory.track_seconds" in index["benchmarks"]
