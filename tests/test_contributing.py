"""CONTRIBUTING.md: what one more of each kind costs, done in a copy of the sources and used there."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from patience import launched
from test_docs import FENCED, ROOT, UNFINISHED, blocks

from isthmus.jobs.launch import rank_command, rank_environment

PAGE = ROOT / "CONTRIBUTING.md"


def extended(folder):
    """Make a copy of the sources with what the page adds; return path -> "new", or lines added."""
    shutil.copytree(ROOT / "src", folder / "src", symlinks=True, ignore=UNFINISHED)
    (folder / "kernels").symlink_to(ROOT / "kernels")
    files = {}
    for block in blocks(PAGE):
        if block.word:
            path = folder / block.word
            assert not path.exists(), path
            path.write_text(block.text)
            files[block.word] = "new"
        elif block.language == "diff":
            subprocess.run(
                ["git", "apply", "-"],
                input=block.text,
                text=True,
                check=True,
                cwd=folder,
                env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
            )
            for part in re.split(r"^--- a/", block.text, flags=re.M)[1:]:
                path, *changes = part.splitlines()
                files[path] = len([line for line in changes if re.match(r"\+(?!\+\+ ).*\S", line)])
    return files


@pytest.mark.slow
def test_one_more_of_each_kind_costs_what_the_page_says_and_works(tmp_path):
    """Checked links, a strategy, an objective, an algorithm and a check, in one job of two ranks."""
    files = extended(tmp_path)
    new = {path.removeprefix("src/isthmus/") for path, change in files.items() if change == "new"}
    assert new == {
        "links/checked.py",
        "training/strategies/every_nth.py",
        "collectives/star.py",
        "checks/open_files.py",
    }
    lines = {
        path.removeprefix("src/isthmus/"): change for path, change in files.items() if change != "new"
    }
    assert lines.pop("planning/programme/objectives.py") < 15
    assert lines.pop("timing/time_model.py") < 12
    assert lines == {
        "training/strategies/__init__.py": 2,
        "registry.py": 1,
        "collectives/exchanges.py": 2,
        "checks/checking.py": 2,
    }
    (example,) = [block.text for block in blocks(PAGE) if block.language == "python" and not block.word]
    (tmp_path / "example.py").write_text(example)
    places = (tmp_path / "src", ROOT / "tests", tmp_path)
    environment = rank_environment(PYTHONPATH=os.pathsep.join(map(str, places)))
    done = launched(rank_command(2, ROOT / "tests/contributed.py", tmp_path), env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = [sys.executable, "-m", "isthmus", "check", "--json"]
    done = launched(checked, env=environment, cwd=tmp_path)
    found = {each["subject"]: each["found"] for each in json.loads(done.stdout)["findings"]}
    assert found["open files"].endswith("at most")


def test_what_the_page_adds_passes_the_linter(tmp_path):
    sources = [tmp_path / path for path in extended(tmp_path)]
    ruff = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml"]
    done = launched([*ruff, *sources])
    assert done.returncode == 0, done.stdout


def test_it_is_one_page():
    prose = FENCED.sub("", PAGE.read_text())
    assert len(prose.splitlines()) < 80
