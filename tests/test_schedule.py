"""`isthmus schedule`: a file of tasks, planned, drawn and run; and what is wrong with one."""

import json

import pytest
from clusters import cluster_of
from test_cli import write
from test_mistakes import told

from isthmus.cli import main as cli
from isthmus.errors import ModelError
from isthmus.jobs.schedule import plan_tasks, run_file, unshared_pipes

GRAPH = {
    "cluster": {"file": "cluster.toml", "links": "paced", "compute": "paced"},
    "method": "link_aware",
    "task": [
        {"name": "camera", "seconds": 0.03, "pinned": "site1", "function": "my_tasks:camera"},
        {"name": "detect", "seconds": [0.005, 0.2], "function": "my_tasks:detect"},
        {"name": "wait", "units": 10.0, "pinned": 0},
    ],
    "edge": [
        {"from": "camera", "to": "detect", "nbytes": 400_000},
        {"from": "camera", "to": "wait", "nbytes": 200_000},
        {"from": "detect", "to": "wait", "nbytes": 0},
    ],
}
TASKS = """
import pathlib, time
import numpy as np

def camera(inputs):
    time.sleep(0.03)
    return {"detect": np.arange(100_000, dtype="f4"), "wait": bytes(200_000)}

def detect(inputs):
    pathlib.Path(__file__).with_name("sum.txt").write_text(str(inputs["camera"].view("f4").sum(dtype="f8")))
    return np.empty(0)

def short(inputs):
    return b"too short"

def raises(inputs):
    return inputs["nothing"]
"""


@pytest.fixture
def desk(shared_folder):
    """A folder with a graph, its cluster and its functions."""
    link = {"latency_seconds": 0.01, "bytes_per_second": 1e7}
    write(shared_folder, cluster=cluster_of(1, 1, **link), graph=GRAPH)
    (shared_folder / "my_tasks.py").write_text(TASKS)
    return shared_folder


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_tasks_run_as_planned_and_get_what_was_passed_on(comm, desk):
    lines = []
    predicted = 0.03 + 0.06 + 0.01 + 0.01  # the camera, both messages, latency, and `wait`
    for _ in range(5):  # a machine has slow moments
        lines.clear()
        table = run_file(comm, desk / "graph.toml", output=desk / "out", tell=lines.append)
        if table["measured_seconds"] < predicted + 1.0:
            break
    assert "links are paced" in lines[0]
    assert "without a function" in lines[-1]
    assert float((desk / "sum.txt").read_text()) == 99_999 * 50_000
    assert table["seconds"] == pytest.approx(predicted)
    assert predicted < table["measured_seconds"] < predicted + 1.0
    assert json.loads((desk / "out/schedule.json").read_text())["tasks"] == table["tasks"]
    for task in table["tasks"]:
        assert task["measured_start_seconds"] >= task["start_seconds"] - 0.001
        took = task["measured_end_seconds"] - task["measured_start_seconds"]
        assert took >= task["end_seconds"] - task["start_seconds"] - 0.001  # `detect` is done at once
    words = {"short": "gives 9 bytes for task detect, and the graph says 400,000", "raises": "KeyError"}
    for name, wrong in words.items():
        comm.Barrier()
        if comm.rank == 0:
            task = GRAPH["task"][0] | {"pinned": 0, "function": f"my_tasks:{name}"}
            tasks = [task, {"name": "detect", "seconds": 0.0}]
            graph = GRAPH | {"task": tasks, "edge": GRAPH["edge"][:1]}
            write(desk, graph=graph | {"method": "greedy"})
        comm.Barrier()
        if comm.rank == 0:  # the other rank would wait, until the job is ended
            with pytest.raises(ModelError, match=wrong):
                alone(desk)
    comm.Barrier()


def alone(desk):
    """Run the graph in this rank, on a cluster of one."""
    from mpi4py import MPI

    graph = desk / "graph.toml"
    graph.write_text(graph.read_text().replace("cluster.toml", "one.toml"))
    write(desk, one=cluster_of(1))
    run_file(MPI.COMM_SELF, graph, tell=lambda line: None)


@pytest.mark.slow
def test_the_verb_tells_the_plan_and_draws_it(desk, capsys, monkeypatch):
    monkeypatch.chdir(desk)
    words = ["schedule", "graph.toml", "--method", "best", "--compare", "-o", "out"]
    assert not cli.app(words, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "best: 110.00 ms, the shortest there is" in printed
    assert "with links that carry all at once it would be 95.00 ms" in printed
    assert "heft: 110.00 ms, 1.000 times as long; promised 95.00" in printed
    assert "camera &gt; detect" in (desk / "out/schedule.svg").read_text()
    assert (desk / "out/schedule.png").stat().st_size > 5000
    assert not cli.app(["schedule", "graph.toml", "--json"], standalone_mode=False)
    table = json.loads(capsys.readouterr().out)
    assert [task["rank"] for task in table["tasks"]] == [1, 0, 0]
    assert table["method"] == "link_aware"


def test_links_that_several_ranks_share_at_both_ends_are_named(tmp_path):
    write(tmp_path, cluster=cluster_of(2, 2))
    tasks = [{"name": str(n), "seconds": 1.0, "pinned": rank} for n, rank in enumerate((2, 3, 0, 1))]
    edges = [{"from": "0", "to": "2", "nbytes": 9}, {"from": "1", "to": "3", "nbytes": 9}]
    write(tmp_path, graph={"cluster": {"file": "cluster.toml"}, "task": tasks, "edge": edges})
    assert unshared_pipes(plan_tasks(tmp_path / "graph.toml")[1]) == ["site1>site0"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"edge": [*GRAPH["edge"], {"from": "wait", "to": "camera", "nbytes": 1}]}, 6,
         "graph.toml: tasks wait for each other in a circle: "),
        ({"edge": [{"from": "camra", "to": "wait", "nbytes": 1}]}, 3,
         "an edge names task 'camra', which is not there; did you mean 'camera'?"),
        ({"edge": [*GRAPH["edge"], GRAPH["edge"][0]]}, 3,
         "edge 'camera' to 'detect' stands there twice"),
        ({"task": [*GRAPH["task"], {"name": "wait", "units": 1}]}, 3, "task 'wait' stands there twice"),
        ({"task": [{"name": "camera"}], "edge": []}, 3, "task 'camera': give either units or seconds"),
        ({"task": [{"name": "camera", "seconds": [1, 2, 3]}], "edge": []}, 3,
         "has 3 numbers for 2 ranks"),
        ({"task": [{"name": "a", "units": 1, "pinned": "moon"}], "edge": []}, 6,
         "task a is pinned to site 'moon', which does not exist"),
        ({"task": []}, 3, "task: must have an entry at least"),
        ({"method": "magic"}, 3, "method must be one of best, link_aware"),
        (cluster_of(1), 3, "graph.toml: is a cluster file; give a file of tasks"),
        ({"cluster": {"file": "nowhere.toml"}}, 4, "nowhere.toml: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_graph_is_one_line(desk, capsys, changes, code, words):
    write(desk, graph=GRAPH | changes)
    assert [code, 1] == [(ended := told(capsys, desk, "schedule", "graph.toml"))[0], len(ended[1])]
    assert words in ended[1][0]
