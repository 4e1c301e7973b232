"""MPICH and Intel MPI, whose wheels `make other-mpis` puts beside the environment: Open MPI's bits.

mpi4py loads the library that MPI4PY_LIBMPI names, and takes that of its modules which has its ABI.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from clusters import cluster_of
from patience import launched
from test_cli import ISTHMUS, RUN, call, pack_lab, with_changes, write

from isthmus.checks.mpi import LAUNCHERS

pytestmark = [pytest.mark.slow, pytest.mark.alone]
FOLDER = Path(sys.prefix, "mpi")


def run(name, folder, *command):
    """Return what `command` prints where the MPI of the wheel `name` is the only one that is seen."""
    root = FOLDER / name
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMPI_", "PRTE_", "PMIX_"))
    }
    environment |= {"PATH": f"{root}/bin:/usr/bin:/bin", "MPI4PY_LIBMPI": f"{root}/lib/libmpi.so.12"}
    done = launched([*command, "--json"], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with a run of two ranks, whose waiting takes a core each, and its parameters' hash."""
    folder = tmp_path_factory.mktemp("two_ranks")
    pack_lab(folder)
    write(folder, cluster=cluster_of(1, 1), run=with_changes(RUN, {"training.epochs": 1}))
    done = call(folder, 2, "train", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)["parameter_hash"]


@pytest.mark.parametrize(("name", "vendor"), [("mpich", "MPICH"), ("impi-rt", "Intel MPI")])
def test_another_library_trains_to_the_same_bits_and_is_told_as_what_it_is(two_ranks, name, vendor):
    if not (FOLDER / name).exists():
        assert "CI" not in os.environ, f"{name} is not installed: make other-mpis"
        pytest.skip(f"{name} is not installed: make other-mpis")
    folder, expected = two_ranks
    summary = run(name, folder, FOLDER / name / "bin/mpirun", "-n", "2", *ISTHMUS, "train", "run.toml")
    assert summary["parameter_hash"] == expected
    made = json.loads(Path(summary["folder"], "run.json").read_text())
    assert vendor.split()[0] in made["mpi_library"]
    found = {each["subject"]: each for each in run(name, folder, *ISTHMUS, "check")["findings"]}
    assert found["MPI library"]["found"].startswith(vendor)
    assert found["MPI library"]["status"] == found["launcher"]["status"] == "PASS"
    assert "ulfm" not in json.dumps(found)
    assert "Open MPI" not in json.dumps(found)


def test_the_readme_names_the_libraries_that_are_tested(repository):
    text = (repository / "README.md").read_text()
    for vendor in LAUNCHERS:
        assert vendor in text
