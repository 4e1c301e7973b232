"""Tests that need ranks: `@pytest.mark.ranks(4)` and the fixture `comm`.

A test that needs ranks is an ordinary test. Started by plain pytest, all tests of one rank count run
in one mpirun, the first time one of them comes up; each then reports its own outcome and seconds. A test
that fails ends its job, and those that come after it are run in another. The launching
process imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
from patience import NOT_STARTED, SECONDS

# A shared machine has slow moments; CI tries the same examples each time, people's runs try new ones.
hypothesis.settings.register_profile(
    "isthmus",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("isthmus")

# Tests start many processes: each would compile all that it imports where byte code is not kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:  # others are at work beside this one
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of BLAS and PyTorch
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")

INSIDE = "ISTHMUS_TEST_RANKS"
OUTCOMES = "ISTHMUS_TEST_OUTCOMES"
MOST_JOBS = 5  # for the tests of one rank count
NOT_ENDED = "not ended"
_outcomes = {}


def ranks_of(item):
    mark = item.get_closest_marker("ranks")
    return mark.args[0] if mark else None


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    """One and two ranks are the fast part's; more are started by `make test` only."""
    if (ranks := ranks_of(item)) is not None:
        item.add_marker(pytest.mark.alone)
        if ranks > 2:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if INSIDE in os.environ:
        items[:] = [item for item in items if ranks_of(item) == int(os.environ[INSIDE])]
    else:
        items.sort(key=lambda item: ranks_of(item) or 0)


def pytest_sessionstart(session):
    """Where workers are to be at work, compile what ranks need; each rank of their first jobs would."""
    if session.config.getoption("numprocesses", None):
        subprocess.Popen([sys.executable, Path(__file__).with_name("compile_first.py")])


@pytest.fixture
def comm():
    """COMM_WORLD in the ranks; None in the launcher, which sets fixtures up too."""
    if INSIDE not in os.environ:
        yield None
        return
    from mpi4py import MPI

    world = MPI.COMM_WORLD.Dup()
    yield world
    world.Free()


@pytest.fixture
def shared_folder(comm, tmp_path):
    """One temporary folder for all ranks of a test (rank 0's)."""
    if comm is None:
        return tmp_path
    from isthmus.links.agreement import broadcast_json

    return Path(broadcast_json(comm, str(tmp_path)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    ranks = ranks_of(pyfuncitem)
    if ranks is None or INSIDE in os.environ:
        return None
    if (ranks, pyfuncitem.nodeid) not in _outcomes:
        left = [item.nodeid for item in pyfuncitem.session.items if ranks_of(item) == ranks]
        for _ in range(MOST_JOBS):
            run_together(ranks, left)
            left = [nodeid for nodeid in left if _outcomes[ranks, nodeid][0] == NOT_ENDED]
            if not left:
                break
    outcome, text, _ = _outcomes[ranks, pyfuncitem.nodeid]
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(text, pytrace=False)
    return True


def run_together(ranks, nodeids):
    """Run the tests `nodeids` in one mpirun and note what became of each."""
    from isthmus.jobs.launch import rank_command, rank_environment

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes.jsonl")
        command = rank_command(ranks, "-m", "pytest", "--color=no", "-p", "no:cacheprovider", *nodeids)
        environment = rank_environment(**{INSIDE: str(ranks), OUTCOMES: str(path)})
        for _ in range(3):
            failed, output = ended(command, environment, path)
            if NOT_STARTED not in output:
                break
        lines = path.read_text().splitlines() if path.exists() else []
    found = {}
    for nodeid, outcome, text, seconds in map(json.loads, lines):
        if found.get(nodeid, ("",))[0] != "failed":  # on any rank
            found[nodeid] = outcome, text, seconds
    if not found or (failed and len(found) == len(nodeids) and not _any_failed(found)):
        found[nodeids[-1] if found else nodeids[0]] = "failed", f"the job failed:\n{output}", 0.0
    elif failed and not _any_failed(found):  # the one that was at work ended the job without a word
        guilty = next(nodeid for nodeid in nodeids if nodeid not in found)
        found[guilty] = "failed", f"did not end in {ranks} ranks:\n{output}", 0.0
    for nodeid in nodeids:
        unknown = NOT_ENDED, f"was not reached in {ranks} ranks:\n{output}", 0.0
        _outcomes[ranks, nodeid] = found.get(nodeid, unknown)


def ended(command, environment, path):
    """Return (whether a job has failed, its words); it is ended where none of its tests ends for long.

    path: of the file in which each of them notes its outcome.
    """
    job = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    noted = None
    try:
        while True:
            try:
                output, _ = job.communicate(timeout=SECONDS)
                return job.returncode != 0, output
            except subprocess.TimeoutExpired as late:
                before, noted = noted, path.stat().st_size if path.exists() else 0
                if noted == before:
                    return True, f"no test has ended in {SECONDS} s\n{(late.stdout or b'').decode()}"
    finally:
        job.kill()
        job.wait()


def _any_failed(found):
    return any(outcome == "failed" for outcome, *_ in found.values())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Have the launcher's report of a test that ran in ranks tell the seconds that it took there."""
    report = yield
    if report.when == "call" and INSIDE not in os.environ and (ranks := ranks_of(item)) is not None:
        report.duration = _outcomes.get((ranks, item.nodeid), (None, None, report.duration))[2]
    return report


def pytest_runtest_logreport(report):
    """In rank 0, note the outcome of each test for the launcher."""
    if OUTCOMES not in os.environ or report.failed or (report.when != "call" and not report.skipped):
        return
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        text = str(report.longrepr[2]) if report.skipped else ""
        with open(os.environ[OUTCOMES], "a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, text, report.duration]) + "\n")


def pytest_exception_interact(report):
    """A test that fails on one rank ends the job: the other ranks would wait for ever."""
    if INSIDE in os.environ:
        from mpi4py import MPI

        with open(os.environ[OUTCOMES], "a") as file:
            file.write(
                json.dumps(
                    [
                        report.nodeid,
                        "failed",
                        f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}:\n{report.longreprtext}",
                        report.duration,
                    ]
                )
                + "\n"
            )
        print(f"rank {MPI.COMM_WORLD.rank} failed:\n{report.longreprtext}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).resolve().parent.parent
