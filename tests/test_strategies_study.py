"""The study of strategies: settings are read, numbers are right, a small one is the same on a link."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tomli_w

import isthmus
from isthmus.errors import SettingsError
from isthmus.toml_files import read_toml

LINE = {"commit": "0", "date": "d", "processor": "p"}


@pytest.fixture(autouse=True)
def experiments(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    return repository / "experiments"


@pytest.fixture
def table(experiments):
    return read_toml(experiments / "strategies.toml", SettingsError)


def study_of(table, folder):
    from calibrated import read_study
    from strategies_settings import Study

    (folder / "study.toml").write_text(tomli_w.dumps(table))
    return read_study(Study, folder / "study.toml")


def test_the_settings_are_read_and_every_row_has_a_table(table, tmp_path):
    study = study_of(table, tmp_path)
    tables = {each.name for each in study.tables}
    for row in study.rows:
        assert set(row.tables) <= tables
        assert set(row.whole) <= set(row.tables)
    for each in study.tables:
        assert len(each.seeds) >= 3
        assert "synchronous, int8" in [row.name for row in study.rows_of(each)]
        assert each.cluster(1e6, 0.01).size == each.sites * each.ranks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": {"kind": "sometimes"}}, "kind of strategy must be one of"),
        ({"strategy": {"kind": "local_steps", "often": 4}}, "often"),
        ({"strategy": {"kind": "local_steps", "every": 0}}, "every must be"),
        ({"compressor": "int9"}, "int9"),
    ],
)
def test_a_row_that_cannot_be_made_is_told(table, tmp_path, change, words):
    table["rows"][3] |= change
    with pytest.raises(SettingsError, match=words):
        study_of(table, tmp_path)


def test_samples_are_split_as_the_tables_say(table, tmp_path):
    from strategies_program import samples_of_ranks, site_of_sample

    study = study_of(table, tmp_path)
    targets = study.train_targets
    for each in study.tables:
        rows = samples_of_ranks(targets, each.split, each.cluster(1e6, 0.01))
        assert sorted(np.concatenate(rows)) == list(range(len(targets)))
    classes = [set(targets[site_of_sample(targets, "by_class", 2) == site]) for site in (0, 1)]
    assert classes == [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}]
    counts = [np.bincount(targets[site_of_sample(targets, split, 20) == 0]) for split in ("iid", 0.1)]
    assert counts[0].min() > 0.5 * counts[0].mean()
    assert np.sort(counts[1])[-2:].sum() > 0.7 * counts[1].sum()


def looks(*accuracies):
    """A run that is looked at every 8 steps: [step, seconds, bytes, validation, test, digest]."""
    return [[8 * n, 0.0, 1000 * n, each, each, f"d{n}"] for n, each in enumerate(accuracies)]


def test_an_accuracy_is_reached_when_the_mean_of_three_looks_is(table):
    from strategies_findings import best_rate, steps_to

    assert steps_to(looks(0.1, 0.9, 0.7, 0.8, 0.9), 0.8) == 24
    assert steps_to(looks(0.1, 0.9, 0.7, 0.7), 0.8) is None
    trials = [
        {"learning_rate": 0.1, "looks": looks(0.1, 0.7, 0.7, 0.75)},
        {"learning_rate": 0.2, "looks": looks(0.1, 0.8, 0.8, 0.8)},
        {"learning_rate": 0.3, "looks": looks(0.1, 0.1, 0.9, 0.9, 0.9)},
    ]
    assert best_rate(trials, 0.8) == (0.2, 24)
    assert best_rate(trials, 0.95) == (0.3, None)


@pytest.mark.slow
def test_findings_are_computed_from_the_lines(table, tmp_path):
    from strategies_findings import mean_in_words, ratio_in_words, tell_findings
    from study import Lines

    names = ["synchronous, int8", "4 local steps, int8"]
    table["tables"] = [table["tables"][0] | {"target": 0.8, "validation_target": 0.8}]
    table["timing"]["bytes_per_second"] = [12.5e6]
    table["rows"] = [
        row | {"tables": ["IID"], "whole": {}} for row in table["rows"] if row["name"] in names
    ]
    study, lines = study_of(table, tmp_path), Lines(tmp_path / "found.jsonl")
    for row, (accuracies, step_seconds) in zip(
        study.rows,
        (((0.1, 0.8, 0.8, 0.8, 0.81), 0.030), ((0.1, 0.4, 0.8, 0.8, 0.8), 0.015)),
        strict=True,
    ):
        settings = {"settings": study.digest_of(study.tables[0], row)}
        about = {"table": "IID", "row": row.name, **row.case, **settings}
        rate = {"learning_rate": 0.1}
        lines.add([{"part": "trial", **about, **rate, "looks": looks(*accuracies)}])
        for seed in (1, 2, 3):
            lines.add([{"part": "run", **about, **rate, "seed": seed, "looks": looks(*accuracies)}])
        timed = [[8, 1.0, 0, ""], [18, 1.0 + 10 * step_seconds, 0, ""]]
        lines.add(
            [
                {
                    "part": "seconds",
                    **about,
                    "bytes_per_second": 12.5e6,
                    "predicted_seconds": 1.1 * step_seconds,
                    "looks": timed,
                }
            ]
        )
        first = row.name == names[0]
        took, digest = (0.72, "d3") if first else (0.40, "another")
        whole = [[0, 0.0, 0, "d0"], [24, took, 0, digest]]
        more = {"bytes_per_second": 12.5e6, **rate, "seed": 1, "looks": whole}
        lines.add([{"part": "whole", **about, **more}])
    tell_findings(study, lines)
    text = (tmp_path / "found.md").read_text()
    assert (
        "| synchronous, int8 | 0.1 | 24 ± 0 | 1.00 (1.00 to 1.00) | 0.003 | 66.2 ± 0.0 | 0.72 |" in text
    )
    assert "| 4 local steps, int8 | 0.1 | 32 ± 0 | 1.33 (1.33 to 1.33) | 0.004 |" in text
    assert "| 0.48, 1.50 (1.50 to 1.50) |" in text
    assert "100 Mbit/s: 4 local steps, int8, 1.50 (1.50 to 1.50) times sooner" in text
    assert "| IID, synchronous, int8, 100 Mbit/s | 24 | 0.72 | +0.0 % | yes |" in text
    assert "| IID, 4 local steps, int8, 100 Mbit/s | 24 | 0.40 | -10.0 % | **no** |" in text
    assert "(4 local steps, int8) | 1.50, 1.33 | >= 1.4, <= 1.4 | yes |" in text
    assert "| median error of predicted seconds | 10.0 % | <= 5 % | **no** |" in text
    assert "10.0 % off in the median of 2" in text
    assert ratio_in_words([1.0, 2.0, 4.0]) == "2.00 (0.36 to 11.19)"
    assert mean_in_words([1.0, 2.0, 3.0], ".2f") == "2.00 ± 2.48"
    assert (tmp_path / "found.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_a_run_on_a_link_ends_with_the_bits_of_one_without_and_nothing_is_done_twice(
    table, tmp_path, capsys
):
    import strategies

    whole = {"whole": {"IID": [12.5e6]}, "tables": ["IID"]}
    small = {"ranks": 1, "place": "paced", "epochs": 1, "seeds": [1], "target": 0.3}
    table |= {
        "results": str(tmp_path / "results"),
        "tables": [table["tables"][0] | small | {"validation_target": 0.3}],
        "job": table["job"] | {"hidden": [8], "learning_rates": [0.1]},
        "timing": table["timing"] | {"bytes_per_second": [12.5e6], "seconds": 0.1},
        "rows": [row | whole for row in table["rows"] if row["name"] == "4 local steps, int8"],
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    strategies.run(tmp_path / "study.toml")
    text = (tmp_path / "results.jsonl").read_text()
    lines = list(map(json.loads, text.splitlines()))
    assert [line["part"] for line in lines] == ["trial", "run", "seconds", "whole"]
    trial, run, seconds, whole = (line["looks"] for line in lines)
    assert len(trial) < len(run) == 5  # it ends where the validation set says so
    reached = {look[0]: look[-1] for look in run}
    assert reached[whole[-1][0]] == whole[-1][-1]
    assert seconds[1][1] - seconds[0][1] >= 2 * 0.01  # two exchanges over the link's latency
    size = 784 * 8 + 8 + 8 * 10 + 10
    exchange = 2 * isthmus.Int8(block=256).wire_nbytes(size)
    assert [look[2] for look in run] == [exchange * (look[0] // 4) for look in run]
    assert "| yes |" in (tmp_path / "results.md").read_text()
    strategies.run(tmp_path / "study.toml")
    assert (tmp_path / "results.jsonl").read_text() == text


def test_the_drivers_import_no_mpi(experiments):
    """A process that has initialised MPI must not start mpirun."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, strategies, language_model_study; print('mpi4py.MPI' in sys.modules)",
        ],
        cwd=experiments,
        text=True,
        capture_output=True,
    )
    assert done.stdout.split() == ["False"], done.stderr
