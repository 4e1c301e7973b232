"""Runs side by side: what differs is told, what is equal is not, and only finished runs are taken."""

import json
import re
import sys

import numpy as np
import pytest
from test_report import TERMS, Page, write_run

from isthmus.cli import main as cli
from isthmus.errors import SettingsError
from isthmus.pages.compare import compare, differences
from isthmus.pages.comparison_pictures import look
from isthmus.pages.comparison_words import comparison_table, facts, fastest, parameter_words
from isthmus.pages.report import write_report
from isthmus.picture_style import HATCHES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: two with the same bits, one with another compressor."""
    parent = tmp_path_factory.mktemp("runs")
    return [
        write_run(parent / "first"),
        write_run(parent / "again"),
        write_run(parent / "fewer", compressor="one_bit", digest="9876fedcba55"),
    ]


@pytest.fixture(scope="module")
def told(runs):
    return compare(runs)


def test_what_differs_is_told_and_nothing_else(told):
    assert told["settings"] == {"allreduce.compressor.kind": ["int8", "int8", "one_bit"]}
    assert told["environment"] == {}
    assert [run["letter"] for run in told["runs"]] == ["A", "B", "C"]
    assert told["runs"][0]["measured_step_seconds"] == 0.016
    assert json.loads(json.dumps(told)) == told


def test_parameters_are_compared_after_every_step_that_has_a_hash(told):
    assert told["parameters"] == {
        "equal": False,
        "groups": [["A", "B"], ["C"]],
        "compared_steps": [10, 20, 30, 40],
        "first_difference": 30,
    }
    words = " ".join(parameter_words(told))
    assert "at the end, bit for bit: A = B." in words
    assert "equal after step 20, and not after step 30" in words


def test_the_page_needs_nothing_else_and_tells_what_came_of_the_runs(told, runs):
    assert told["page"] == str(runs[0].parent / "comparison.html")
    text = (runs[0].parent / "comparison.html").read_text(encoding="utf-8")
    page = Page(text.replace("<wbr>", ""))
    assert page.fetched == ["data:,"]
    assert "script" not in page.tags
    assert page.tags.count("svg") == 7
    shown = re.sub(r"\s+", " ", " ".join(page.shown))
    for words in (
        "3 runs side by side",
        "first",
        "again",
        "fewer",
        "81.25 %",
        "16.000",
        "16.800",
        "+5.0 %",
        "allreduce.compressor.kind",
        "one_bit",
        "1,015,625",
        "7 (formula 8)",
        "differ",
        "9876fedcba55" * 5,
        "The same versions",
        *TERMS,
    ):
        assert words in shown, words


def test_the_terminal_has_a_table_with_a_column_a_run(told):
    lines = comparison_table(told)
    assert lines[:3] == ["A: first", "B: again", "C: fewer"]
    assert [str(column.header) for column in lines[3].columns] == ["", "A", "B", "C"]
    assert str(list(lines[3].columns[3].cells)[-1]) == "one_bit"


def test_what_a_run_lacks_differs_from_what_another_has():
    assert differences([{"a": 1, "b": {}}, {"a": 1, "c": 2}]) == {"b": [{}, None], "c": [None, 2]}


def test_runs_with_the_same_bits_are_told_so(runs, tmp_path):
    told = compare(runs[:2], tmp_path / "page.html")
    assert told["parameters"]["equal"]
    assert told["parameters"]["first_difference"] is None
    assert parameter_words(told) == ["All runs ended with the same parameters, bit for bit."]
    assert "None: settings and cluster files are the same." in (tmp_path / "page.html").read_text()


def test_twelve_curves_are_told_apart_without_colour():
    looks = [look(number, "A", 12) for number in range(12)]
    assert len({(each["marker"], each["linestyle"]) for each in looks}) == 12
    bars = {(each["color"], HATCHES[number % len(HATCHES)]) for number, each in enumerate(looks)}
    assert len(bars) == 12


def going_on(folder):
    """A run that has finished, and was told to go on."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            json.dumps(json.loads((folder / "metrics.jsonl").read_text().split("\n")[0]) | {"step": 41})
            + "\n"
        )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "summary.json").unlink(), ["still going", "--resume"]),
        (going_on, ["still going", "--resume"]),
        (lambda folder: (folder / "run.json").unlink(), ["run.json: no such file", "folder of a run"]),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), ["metrics.jsonl: tells of no step"]),
        (lambda folder: (folder / "summary.json").write_text("{}"), ["summary.json: tells no 'terms'"]),
    ],
)
def test_what_cannot_be_compared_is_named(runs, tmp_path, spoil, words):
    folder = write_run(tmp_path / "wrong")
    spoil(folder)
    with pytest.raises(SettingsError) as caught:
        compare([runs[0], folder])
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def call(monkeypatch, *arguments):
    """Run the verb as the command line does; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["isthmus", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


def test_the_verb_answers_with_an_object(runs, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *runs[:2], "-o", tmp_path / "page.html", "--json") == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "page.html")


@pytest.mark.parametrize(
    ("which", "code", "words"),
    [([0], 2, "two to 12 runs"), ([0, 0], 2, "each once"), ([0, None], 3, "no such file")],
)
def test_the_verb_refuses_in_one_line(runs, monkeypatch, capsys, which, code, words):
    folders = [runs[0].parent / "nowhere" if number is None else runs[number] for number in which]
    assert call(monkeypatch, *folders) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("medians", "quartiles", "card"),
    [
        (
            (0.030, 0.050),
            ((0.029, 0.031), (0.049, 0.051)),
            ("A · 30.0 ms", "fastest step (median); B: 50.0 ms"),
        ),
        (
            (0.050, 0.049),
            ((0.048, 0.052), (0.047, 0.051)),
            ("49.0 ms", "fastest step (median): A and B within their spread; none is faster"),
        ),
        (
            (0.030, 0.031, 0.050),
            ((0.029, 0.032), (0.030, 0.033), (0.049, 0.051)),
            ("30.0 ms", "fastest step (median): A and B within their spread; C: 50.0 ms"),
        ),
        (
            (0.031, 0.030),
            ((0.031, 0.031), (0.030, 0.030)),
            ("B · 30.0 ms", "fastest step (median); A: 31.0 ms"),
        ),
    ],
)
def test_a_run_is_the_fastest_only_beyond_the_spread_of_steps(medians, quartiles, card):
    runs = [
        {"letter": letter, "measured_step_seconds": median, "step_seconds_quartiles": list(spread)}
        for letter, median, spread in zip("ABC", medians, quartiles)
    ]
    assert fastest(runs) == card


def test_what_is_not_finite_is_null_in_an_answer(capsys):
    cli.answer(True, {"loss": np.float32("nan"), "steps": np.int64(3), "most": [float("inf")]}, "")
    assert capsys.readouterr().out == '{"loss": null, "steps": 3, "most": [null]}\n'


@pytest.mark.slow
def test_a_report_and_a_comparison_tell_who_could_read_what_and_what_is_told_of_samples(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("plain", "private", "masked", "robust")]
    changes = [
        {},
        {"security": {"link": "sealed", "record": "signed"}},
        {"security": {"link": "sealed"}, "privacy": {"secure_sum": "reveal", "bits": 8}},
        {"allreduce": {"algorithm": "hierarchical", "compressor": None, "combine": "median"}},
    ]
    for folder, change in zip(folders, changes):
        table = json.loads((folder / "run.json").read_text())
        table["settings"] |= change
        if folder.name == "private":
            table["privacy"] = {
                "unit": "sample",
                "epsilon": 2.98,
                "delta": 1e-5,
                "accountant": "pld",
                "conversion": "never too small",
                "epsilon_by_rdp": 3.4,
                "adjacency": "add or remove one sample",
                "sampling": "Poisson",
                "sampling_probability": 0.064,
                "steps": 234,
                "noise": 1.62,
                "clip": 0.5,
                "epsilon_of_all_runs": 4.5,
                "budget": 8.0,
            }
        (folder / "run.json").write_text(json.dumps(table))
    pages = ["".join(Page(write_report(folder).read_text()).shown) for folder in folders]
    assert "were clear: who reads packets" in pages[0]
    assert "epsilon" not in pages[0]
    assert "by the site that takes it: site0 that of site1; site1 that of site0." in pages[0]
    for part in (
        "were sealed",
        "epsilon 2.98 at delta 1e-05 (pld: never too small; by Renyi divergences 3.4)",
        "add or remove one sample",
        "Poisson, with probability 0.064 in each of 234 steps; noise 1.62, clip 0.5",
        "4.5 of a budget of 8",
        "The record is signed",
    ):
        assert part in pages[1], part
    assert "(“reveal”, 8 bits an entry): site0, the hub, read their sum" in pages[2]
    assert "made the “median” of them" in pages[3]
    told = compare(folders)
    rows = dict(facts(told["runs"]))
    assert rows["epsilon"] == ["–", "2.98 at 1e-05, pld", "–", "–"]
    assert rows["links"] == ["clear", "sealed", "sealed", "clear"]
    assert rows["sums"] == ["sum", "sum", "masked, 8 bits", "median"]
    assert json.loads(json.dumps(told)) == told
    assert not {"epsilon", "sums", "links"} & set(dict(facts(told["runs"][:1])))
