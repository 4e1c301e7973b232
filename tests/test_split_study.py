"""The study of splits: layers by formula are those that run, and no policy beats who knows the rate."""

import pytest

pytest.importorskip("torch")

SETTINGS = {
    "edge_slower": 4.0,
    "cloud_faster": 20.0,
    "latency_seconds": 0.02,
    "activations": ["float32", "int8"],
    "recent": [5, 20],
    "seconds": 200,
    "seed": 0,
    "networks": {"small": "c4/7/4/0 p3/2 c6/3/1/1 p2/2 l10 l3"},
    "trace": [{"name": "stalls", "mbit_per_second": 9.0, "deviation": 0.5, "kept": 0.9, "stalled": 0.2}],
}


def test_layers_by_formula_are_those_that_run_and_nobody_beats_who_knows_the_rate(
    repository, monkeypatch
):
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    import split_study

    settings = split_study.Settings.model_validate(SETTINGS)
    layers = split_study.measured(SETTINGS["networks"]["small"])  # which compares shapes
    assert [each["name"] for each in layers] == [
        "convolution 1",
        "convolution 2",
        "linear 1",
        "linear 2",
    ]
    assert [tuple(each["shape"]) for each in layers] == [(4, 27, 27), (6, 13, 13), (10,), (3,)]
    assert [each["multiplications"] for each in layers] == [
        4 * 55 * 55 * 3 * 49,
        6 * 27 * 27 * 4 * 9,
        6 * 13 * 13 * 10,
        30,
    ]
    lines = list(split_study.compare("small", layers, settings))
    assert len(lines) == 2 * 7
    for some in (lines[:7], lines[7:]):
        seconds = {line["policy"]: line["mean_seconds"] for line in some}
        assert seconds["oracle"] == min(seconds.values())
        assert seconds["static"] <= min(seconds["data sent"], seconds["edge alone"])
        assert {"last rate", "last 5 s", "last 20 s"} <= seconds.keys()
