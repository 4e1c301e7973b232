"""What made a result is told of isthmus' own source, and of nothing around it."""

import subprocess
from pathlib import Path

import pytest

import isthmus
from isthmus.provenance import process_provenance


def repository(folder, *files):
    """Make a git repository of `files` with one commit; return the commit."""
    git = [
        "git",
        "-C",
        folder,
        "-c",
        "user.name=n",
        "-c",
        "user.email=n@x",
        "-c",
        "commit.gpgsign=false",
    ]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text('[project]\nname = "isthmus"\n')
    subprocess.run(["git", "init", "-q", folder], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    return subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], check=True, text=True, capture_output=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("package", "own"),
    [
        ("src/isthmus", True),
        (".venv/lib/python3.11/site-packages/isthmus", False),
        ("vendored/src/isthmus", False),
        ("isthmus", False),
    ],
)
def test_the_commit_is_that_of_the_source_and_never_of_what_is_around_it(
    tmp_path, monkeypatch, package, own
):
    commit = repository(tmp_path, f"{package}/__init__.py", "pyproject.toml")
    monkeypatch.setattr(isthmus, "__file__", str(tmp_path / package / "__init__.py"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # of a hook that started the run
    assert process_provenance()["commit"] == (commit if own else None)
    (tmp_path / package / "__init__.py").write_text("changed = True\n")
    assert process_provenance()["commit"] == (f"{commit}-dirty" if own else None)


def test_a_source_tree_of_another_project_is_not_asked(tmp_path, monkeypatch):
    repository(tmp_path, "src/isthmus/__init__.py")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    monkeypatch.setattr(isthmus, "__file__", str(Path(tmp_path, "src/isthmus/__init__.py")))
    assert process_provenance()["commit"] is None
