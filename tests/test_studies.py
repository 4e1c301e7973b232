"""The studies of predictions and of plans: settings are read, numbers are right, small ones run."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tomli_w

import isthmus
from isthmus.errors import PlanError, SettingsError

pytestmark = pytest.mark.slow

LINE = {"turn": 0, "command": "c", "commit": "0", "processor": "p", "place": "testbed", "note": "n"}
CLUSTER = {
    "name": "1+1",
    "link": [{"between": ["cloud", "edge"], "latency_seconds": 0.002, "bytes_per_second": 1e7}],
    "site": [
        {"name": "cloud", "tier": "cloud", "ranks": 1, "samples_per_second": 4e3},
        {"name": "edge", "tier": "edge", "ranks": 1, "samples_per_second": 1e3},
    ],
}


@pytest.fixture(autouse=True)
def experiments(repository, monkeypatch):
    """The folder of the studies, whose modules import each other by name."""
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    return repository / "experiments"


@pytest.fixture
def tiny(tmp_path):
    """Settings that both studies have, for two paced ranks and 64 random images."""
    draw = np.random.default_rng(0)
    isthmus.pack_shards(
        {
            "features": draw.integers(0, 255, (64, 28, 28), np.uint8),
            "targets": draw.integers(0, 10, 64, np.uint8),
        },
        tmp_path / "data",
        shards=8,
    )
    return {
        "results": str(tmp_path / "results"),
        "place": "paced",
        "launch_limit_seconds": 300.0,
        "calibration_repetitions": 2,
        "rounds": 1,
        "plans": ["even", "planned"],
        "job": {
            "train": str(tmp_path / "data"),
            "test": str(tmp_path / "data"),
            "hidden": [4],
            "batch_size": 16,
            "learning_rate": 0.1,
            "compressor": "int8",
        },
    }


def lines_of(study, tmp_path, settings):
    """Run a study on settings; return its lines and its table."""
    (tmp_path / "study.toml").write_text(tomli_w.dumps(settings))
    study.run(tmp_path / "study.toml")
    return (
        list(map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())),
        (tmp_path / "results.md").read_text(),
    )


def test_the_settings_are_read_and_fit(experiments):
    import plan_against_even
    import prediction
    from calibrated import read_study
    from epochs import place_shards

    for module in (prediction, plan_against_even):
        study = read_study(module.Study, experiments / f"{module.__name__}.toml")
        assert study.job.shards.samples
        assert len({cluster.name for cluster in study.clusters}) == len(study.clusters)
    for case in study.clusters:
        workload = study.job.workload(case.data_site)
        for plan in study.plans:
            held = place_shards(plan, case.cluster, study.job.shards, workload, case.pinned, case.epochs)
            assert sorted(sum(held, ())) == list(range(len(study.job.shards.samples)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"rates^2"', '"fastest"', "fastest"),
        ('"ring", ', '"rings", ', "rings"),
        ('compressor = "int8"', 'compressor = "int9"', "int9"),
        ('between = ["cloud", "edge"]', 'between = ["cloud", "age"]', "age"),
    ],
)
def test_settings_that_do_not_fit_are_refused(experiments, tmp_path, old, new, words):
    import prediction
    from calibrated import read_study

    text = (experiments / "prediction.toml").read_text()
    assert old in text
    (tmp_path / "wrong.toml").write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=words):
        read_study(prediction.Study, tmp_path / "wrong.toml")


def test_shards_are_dealt_by_weight_to_whom_has_room_and_may(experiments):
    from epochs import deal

    class Shards:
        samples, nbytes = (10,) * 12, (100.0,) * 12

    table = {
        "site": [
            dict(CLUSTER["site"][0], ranks=2, samples_per_second=[3.0, 2.0]),
            dict(CLUSTER["site"][1], samples_per_second=1.0),
        ],
        "link": CLUSTER["link"],
    }
    cluster = isthmus.Cluster(table)
    assert [len(mine) for mine in deal(cluster, Shards, np.ones(3), {})] == [4, 4, 4]
    assert [len(mine) for mine in deal(cluster, Shards, np.array(cluster.rates), {})] == [6, 4, 2]
    pinned = dict.fromkeys((1, 5, 6, 7), "edge")
    held = deal(cluster, Shards, np.array(cluster.rates), pinned)
    assert held[2] == (1, 5, 6, 7)
    table["site"][0]["storage_nbytes"] = 350.0
    assert [len(mine) for mine in deal(isthmus.Cluster(table), Shards, np.ones(3), {})] == [3, 3, 6]
    table["site"][1]["storage_nbytes"] = 350.0
    with pytest.raises(PlanError, match="room"):
        deal(isthmus.Cluster(table), Shards, np.ones(3), {})


def test_a_plan_is_predicted_as_it_predicts_itself(experiments):
    import plan_against_even
    from calibrated import read_study
    from epochs import predict

    study = read_study(plan_against_even.Study, experiments / "plan_against_even.toml")
    for case in study.clusters:
        workload = study.job.workload(case.data_site)
        plan = isthmus.plan_shards(case.cluster, study.job.shards, workload, pinned=case.pinned)
        assert predict(case.cluster, study.job.shards, plan.shards_of_rank, workload) == pytest.approx(
            (plan.staging_seconds, plan.epoch_seconds)
        )


def planted(cluster, nbytes, measured, predicted):
    """Return lines of one round: algorithm -> seconds, and what two of the models say of them."""
    return [
        {
            "task": "allreduce",
            "cluster": cluster,
            "nbytes": nbytes,
            "algorithm": name,
            "compressor": "none",
            "seconds": seconds,
            **LINE,
            "predicted_seconds": {"calibrated": predicted[name], "file": predicted[name], "n/B": 0.5},
        }
        for name, seconds in measured.items()
    ]


def test_findings_of_predictions_are_computed_from_the_lines(experiments, tmp_path):
    from prediction_findings import cases_of, choice, kendall, pairs_right, tell_findings

    first = planted(
        "one",
        1000,
        {"hierarchical": 1.00, "ring": 2.00, "tree": 4.0},
        {"hierarchical": 2.20, "ring": 2.10, "tree": 4.0},
    )
    again = [
        line | {"turn": 1, "seconds": more * line["seconds"]}
        for line, more in zip(first, (1.02, 1.02, 1.1))
    ]
    epochs = [
        {
            "task": "epochs",
            "cluster": "one",
            "plan": plan,
            "seconds": seconds,
            **LINE,
            "predicted_seconds": {"calibrated": seconds, "file": 2 * seconds, "n/B": 1.0},
        }
        for plan, seconds in (("planned", 1.0), ("even", 3.0))
    ]
    failed = {"task": "allreduce", "cluster": "two", "failed": "no end after 3 s", **LINE}
    lines = [*first, *again, *epochs, failed]
    sums = [case for case in cases_of(lines) if case.task == "allreduce"]
    assert [case.seconds for case in sums] == pytest.approx([1.01, 2.02, 4.2])
    assert [case.agreement for case in sums] == pytest.approx([0.02, 0.02, 0.1])
    assert sums[0].error("calibrated") == pytest.approx(2.2 / 1.01 - 1)
    assert kendall(sums, "calibrated") == pytest.approx(1 / 3)  # two of three pairs are in order
    assert pairs_right(sums, "calibrated") == (2, 3)
    chosen, best, regret = choice(sums, "calibrated")
    assert (chosen.name, best.name) == ("ring", "hierarchical")
    assert regret == pytest.approx(1)
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tell_findings(path)
    text = path.with_suffix(".md").read_text()
    assert "(2 of 5) | 60.9 % | <= 5 % | **no** |" in text
    assert "| median error elsewhere | 0.0 % | <= 10 % | yes |" in text
    assert "least of all clusters | 1.00 | >= 0.9 | yes |" in text
    assert "| one | 1,000 | 0.33 | 0.50 |" in text
    assert "Chosen by calibrated among exact: 100.0 % over the best" in text
    assert "two, allreduce: no end after 3 s" in text
    assert path.with_suffix(".svg").read_text().startswith("<svg")


def test_findings_of_plans_are_computed_from_the_lines(experiments, tmp_path):
    from plan_against_even import tell_findings

    lines = [
        {
            "task": "epochs",
            "cluster": "c",
            "plan": plan,
            "seconds": seconds,
            **LINE,
            "predicted_seconds": 3.0,
            "staging_seconds": 0.6,
            "predicted_staging_seconds": 0.5,
            "samples_of_rank": [1, 2],
        }
        for plan, times in (("even", (5.0, 7.0)), ("planned", (3.0, 3.5)))
        for seconds in times
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tell_findings(path)
    text = path.with_suffix(".md").read_text()
    assert "| c | even | 1 2 | 3.000 | 6.000 | -50.0 % | 1.00 | 0.50, 0.60 |" in text
    assert "| c | planned | 1 2 | 3.000 | 3.250 | -7.7 % | 1.85 | 0.50, 0.60 |" in text
    assert "1.85 times faster; wanted >= 1.5: met." in text
    assert path.with_suffix(".svg").read_text().startswith("<svg")


def test_predictions_are_measured_and_a_study_goes_on(experiments, tmp_path, tiny):
    import prediction

    settings = tiny | {
        "clusters": [CLUSTER | {"largest_nbytes": 4096}],
        "allreduces": {
            "algorithms": ["hierarchical", "mpi"],
            "compressors": ["none", "int8"],
            "smallest_nbytes": 4096,
            "repetitions": 3,
            "seconds": 0.05,
        },
    }
    lines, text = lines_of(prediction, tmp_path, settings)
    assert not [line for line in lines if "failed" in line]
    calibration, *results = lines
    assert isthmus.Cluster(calibration["table"]).names == ("cloud", "edge")
    names = [(line.get("compressor"), line.get("plan")) for line in results]
    assert names == [("none", None), ("int8", None), (None, "even"), (None, "planned")]
    for line in results:
        assert line["seconds"] >= 0.002  # what the paced link takes at least
        assert set(line["predicted_seconds"]) == {"calibrated", "file", "n/B"}
        assert min(line["predicted_seconds"].values()) > 0
    assert results[2]["samples_of_rank"] == [32, 32]
    assert "## Plans" in text
    assert lines_of(prediction, tmp_path, settings)[0] == lines  # nothing is done twice


def test_data_is_brought_and_trained_on_under_each_plan(experiments, tmp_path, tiny):
    import plan_against_even
    from calibrated import PACKAGES, Notebook

    settings = tiny | {
        "clusters": [
            CLUSTER | {"data_site": "edge", "epochs": 2, "pinned_shards": 1, "pinned_site": "edge"}
        ]
    }
    study = plan_against_even.Study.model_validate(settings)
    Notebook(study, "plan_against_even.py", PACKAGES).write(
        {"task": "calibration", "cluster": "1+1"},
        [{"table": study.clusters[0].cluster.to_table(), "note": ""}],
    )
    (_, *results), text = lines_of(plan_against_even, tmp_path, settings)
    assert [line["plan"] for line in results] == ["even", "planned"]
    for line in results:
        brought = 785 * line["samples_of_rank"][0]
        assert line["steps"] == 8
        assert line["staging_seconds"] >= brought / 1e7
        assert line["predicted_staging_seconds"] == pytest.approx(brought / 1e7)
        assert line["seconds"] == pytest.approx(line["epoch_seconds"] + line["staging_seconds"] / 2)
        assert line["epoch_seconds"] >= max(np.array(line["samples_of_rank"]) / [4e3, 1e3])
    assert "times faster; wanted >= 1.5" in text


def test_the_drivers_import_no_mpi(experiments):
    """A process that has initialised MPI must not start mpirun."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, prediction, plan_against_even; print('mpi4py.MPI' in sys.modules)",
        ],
        cwd=experiments,
        text=True,
        capture_output=True,
    )
    assert done.stdout.split() == ["False"], done.stderr
