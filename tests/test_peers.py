"""The study of peers: its settings are read, and its programs sum right on a few ranks."""

import importlib.util
import json
import subprocess
import sys

import pytest
from patience import launched

from isthmus.errors import SettingsError
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.registry import ALGORITHMS

pytestmark = pytest.mark.slow


@pytest.fixture
def study(repository, monkeypatch):
    """The module experiments/compare_peers.py."""
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    import compare_peers

    return compare_peers


def results_of(study, program, tmp_path, **more):
    """Run a program of the study on a tiny vector in three ranks at two sites; return its lines."""
    cluster = study.ClusterSettings(
        name="2+1", ranks_of_sites=(2, 1), bytes_per_second=1e8, calls=(2,), rounds=1
    )
    (tmp_path / "cluster.toml").write_text(study.tomli_w.dumps(cluster.table()))
    settings = study.ProgramSettings(name="tried", program=program, tasks=("allreduce",), **more)
    task = {
        "task": "allreduce",
        "program": settings.model_dump(),
        "sizes_nbytes": [4_000],
        "calls": [3],
        "cluster": str(tmp_path / "cluster.toml"),
        "rendezvous": str(tmp_path / "rendezvous"),
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    command = [*rank_command(3)[:3], *settings.command(tmp_path / "task.json")]
    done = launched(command, env=rank_environment())
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("behind", [(0,), (0, 2), (0, -1), (0, 0, 0)])
def test_a_site_is_behind_one_that_is_named_before_it(study, behind):
    with pytest.raises(ValueError, match="behind needs"):
        study.ClusterSettings(
            name="x", ranks_of_sites=(1, 1, 1), bytes_per_second=1e6, calls=(1,), rounds=1, behind=behind
        )


def test_the_settings_are_read_and_fit(study, repository):
    settings = study.read_study(repository / "experiments/compare_peers.toml")
    shapes = {(cluster.ranks_of_sites, cluster.bytes_per_second) for cluster in settings.clusters}
    assert shapes >= {(ranks, rate) for ranks in [(2, 2), (2, 2, 2)] for rate in [12.5e6, 125e6]}
    assert len({program.name for program in settings.programs}) == len(settings.programs)
    chain = next(cluster.table() for cluster in settings.clusters if cluster.behind)
    ends = [link["between"] for link in chain["link"]]
    assert ends == [["cloud", "edge1"], ["edge1", "edge2"], ["edge1", "edge3"], ["edge1", "edge4"]]
    short = study.read_study(repository / "experiments/short_vectors.toml")
    named = {program.name: program.model_dump(exclude={"tasks"}) for program in settings.programs}
    for program in short.programs:  # a name is one thing in both
        assert named.setdefault(program.name, program.model_dump(exclude={"tasks"})) == (
            program.model_dump(exclude={"tasks"})
        )


def test_settings_that_do_not_fit_are_refused(study, repository, tmp_path):
    text = (repository / "experiments/compare_peers.toml").read_text()
    assert "calls = [100, 10, 4, 3, 1]" in text
    (tmp_path / "short.toml").write_text(text.replace("calls = [100, 10, 4, 3, 1]", "calls = [20]"))
    (tmp_path / "nonsense.toml").write_text(text.replace('"basic_linear"', '"fastest"'))
    (tmp_path / "learns.toml").write_text(
        text.replace('tasks = ["allreduce", "train"]', 'algorithm = "auto"\ntasks = ["train"]', 1)
    )
    (tmp_path / "untold.toml").write_text(
        text[: text.index("[training]")] + text[text.index("[[programs]]") :]
    )
    for name, words in (
        ("short", "calls"),
        ("nonsense", "fastest"),
        ("learns", "auto"),
        ("untold", r"\[training\]"),
    ):
        with pytest.raises(SettingsError, match=words):
            study.read_study(tmp_path / f"{name}.toml")


@pytest.mark.parametrize(
    ("program", "more", "largest_error"),
    [
        ("isthmus", {}, 1e-6),
        ("isthmus", {"compressor": {"kind": "int8"}}, 0.02),
        ("isthmus", {"algorithm": "auto"}, 1e-6),
        ("mpi", {"algorithm": "default"}, 1e-6),
        ("mpi", {"algorithm": "ring"}, 1e-6),
        ("torch", {"kind": "gloo"}, 1e-6),
        ("torch", {"kind": "ddp", "hook": "fp16"}, 0.002),
    ],
)
def test_a_program_sums_right(study, tmp_path, program, more, largest_error):
    if program == "torch" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed (pip install -e '.[peers]')")
    (line,) = results_of(study, program, tmp_path, **more)
    assert line["nbytes"] == 4_000
    assert len(line["seconds"]) == 2
    assert line["error"] <= largest_error
    assert line["algorithm"] in (ALGORITHMS if program == "isthmus" else {None})


def test_findings_are_computed_from_the_lines(study, tmp_path):
    common = {
        "cluster": "narrow",
        "ranks_of_sites": [2, 2],
        "bytes_per_second": 12.5e6,
        "turn": 0,
        "command": "c",
        "commit": "0",
        "processor": "p",
        "emulated": True,
    }
    sums = [
        {"task": "allreduce", "program": name, "nbytes": 16_000_000, "seconds": seconds, **common}
        for name, seconds in (
            ("isthmus dense", [1.3, 1.4, 9.0]),
            ("Gloo float32", [2.8]),
            ("Open MPI ring", [2.1]),
        )
    ]
    sums += [
        {"task": "allreduce", "program": name, "nbytes": 1000, "seconds": seconds, **more, **common}
        for name, seconds, more in (
            ("isthmus auto", [1e-4], {"algorithm": "doubling"}),
            ("isthmus auto", [3e-4, 1.5e-4], {"algorithm": "mpi"}),
            ("Open MPI ring", [1e-4], {}),
        )
    ]
    jobs = [
        {
            "task": "train",
            "program": name,
            "reached": True,
            "steps": 20,
            "seconds": seconds,
            "sent_nbytes_of_hosts": [5_000_000, 4],
            "curve": [[20, seconds, 5_000_000, 0.9]],
            **common,
        }
        for name, seconds in (("isthmus dense", 2.0), ("DDP float32", 8.0))
    ]
    failed = {"task": "train", "program": "DDP fp16 hook", "failed": "no end", **common}
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*sums, *jobs, failed]))
    study.tell_findings(path)
    text = path.with_suffix(".md").read_text()
    assert "| dense: seconds over bytes / rate, 16 MB | 1.09 | <= 1.1 | yes |" in text
    assert "the best exact peer (Open MPI ring) | 1.50 | > 1 | yes |" in text
    assert "(isthmus dense): times fewer seconds than DDP float32 | 4.00 | >= 5 | **no** |" in text
    assert "DDP fp16 hook: no end" in text
    assert "times the seconds of the best exact peer (Open MPI ring) | 1.50 | <= 1.2 | **no** |" in text
    assert "| narrow | 0.67 (Open MPI ring) by doubling or mpi |" in text
    assert path.with_suffix(".svg").read_text().startswith("<svg")


def test_the_driver_imports_no_mpi(repository):
    """A process that has initialised MPI must not start mpirun."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, compare_peers; print('mpi4py.MPI' in sys.modules, 'torch' in sys.modules)",
        ],
        cwd=repository / "experiments",
        text=True,
        capture_output=True,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
