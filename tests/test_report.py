"""The report: one page, nothing from outside, every number of the run, and no way to break it."""

import json
import os
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.errors import SettingsError
from isthmus.pages.page import thin
from isthmus.pages.report import write_report
from isthmus.registry import STAGES

pytestmark = pytest.mark.slow

TERMS = tuple(STAGES)


def write_run(
    folder,
    steps=40,
    finished=True,
    name="site0",
    compressor="int8",
    digest="abcdef123456",
    loss=lambda step: 1 / step,
):
    """Write the folder of a run of `steps` steps on two sites."""
    folder.mkdir(parents=True, exist_ok=True)
    table = cluster_of(2, 1)
    table["site"][0]["name"] = name
    table["link"][0]["between"] = [name, "site1"]
    isthmus.Cluster(table).to_toml(folder / "cluster.toml")
    terms = dict.fromkeys(TERMS, 0.001)
    write = lambda file, table: (folder / file).write_text(json.dumps(table))  # noqa: E731
    write(
        "run.json",
        {
            "version": "0.1",
            "started": "2026-11-21T10:00:00",
            "command": ["isthmus", "train"],
            "commit": None,
            "python": "3.11",
            "versions": {"numpy": "2"},
            "mpi_library": "Open MPI\nx",
            "hosts": ["a", "a", "b"],
            "processor": "x86_64",
            "model_size": 1234,
            "settings": {
                "cluster": {"links": "paced", "compute": "real"},
                "model": {"kind": "perceptron"},
                "allreduce": {"algorithm": "hierarchical", "compressor": {"kind": compressor}},
            },
        },
    )
    write(
        "plan.json",
        {
            "shards_of_rank": [[0, 1], [2], []],
            "samples_of_rank": [20, 10, 0],
            "steps": 10,
            "seconds_of_rank": [0.2, 0.1, 0.0],
            "step_seconds": 0.0123,
            "epoch_seconds": 0.123,
            "staging_seconds": 0,
            "lower_bound_seconds": 0.12,
            "gap": 0.025,
            "terms": terms,
            "bound_by": "bound by the moon",
            "hash": "f" * 64,
            "sentences": ["10 % more on the moon saves 0.0435 s an epoch"],
            "shadow_prices": {"link": {"site0-site1": 0.0}, "storage": [0.0] * 3, "rate": [1e-5] * 3},
        },
    )
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "kind": "step",
                "step": step,
                "epoch": step // 10,
                "seconds": 0.01 * step,
                "loss": loss(step),
                "step_seconds": 0.01,
                "terms": terms,
                "sent_nbytes": {"site": step, "link": 1000 * step},
            }
        )
        if step % 10 == 0:
            lines.append(
                {
                    "kind": "evaluation",
                    "step": step,
                    "epoch": step // 10,
                    "seconds": 0.01 * step,
                    "link_nbytes": 1000 * step,
                    "loss": 0.5,
                    "accuracy": 0.8125,
                }
            )
            lines.append(
                {
                    "kind": "replicas",
                    "step": step,
                    "epoch": step // 10,
                    "hash": f"{step:04}" + ("same" if step < 30 else digest),
                }
            )
    lines.append({"kind": "non_finite", "step": 7, "ranks": [1, 2], "action": "skipped"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        write(
            "summary.json",
            {
                "outcome": "finished",
                "steps": steps,
                "seconds": 0.4,
                "loss": 0.5,
                "accuracy": 0.8125,
                "parameter_hash": digest * 5,
                "dense_link_nbytes": 4_000_000,
                "links": [
                    {
                        "source": name,
                        "target": "site1",
                        "sent_nbytes": 1_015_625,
                        "predicted_nbytes": 1_015_625,
                    },
                    {"source": "site1", "target": name, "sent_nbytes": 7, "predicted_nbytes": 8},
                ],
                "terms": [
                    {"name": term, "predicted_seconds": 0.0021, "measured_seconds": 0.0020}
                    for term in TERMS
                ],
                "step": {"predicted_seconds": 0.0168, "measured_seconds": 0.0160},
            },
        )
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch, run or show."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.tags, self.shown = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action") and not value.startswith("#"):
                self.fetched.append(value)
            assert not name.startswith("on"), f"{tag} runs a script: {name}"

    def handle_data(self, data):
        self.shown.append(data)


def page_of(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(folder):
    """The page of a finished run: its text, and what is in it."""
    return page_of(folder)


def test_the_page_needs_nothing_else(finished):
    text, page = finished
    assert page.fetched == ["data:,"]  # an empty icon, so that no browser asks for one
    assert "script" not in page.tags
    assert "@import" not in text
    assert "url(http" not in text
    assert page.tags.count("svg") == 11
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_tells_the_numbers_of_the_run(finished):
    shown = re.sub(r"\s+", " ", " ".join(finished[1].shown))
    for text in (
        "81.2 %",
        "16.0 ms",
        "predicted 16.8 ms",
        "+5.0 %",
        "1,015,625",
        "abcdef123456",
        "1.0 MB",
        "4.0 MB",
        "The plan: bound by the moon.",
        "gap 2.50 %",
        "Paced: links",
        "step 7: a gradient was not finite (ranks 1, 2); skipped",
        "equal",
        "differ",
        "10 % more on the moon saves 0.0435 s an epoch.",
        "More storage would save nothing.",
        "A faster site0-site1 would save nothing.",
        "site0 holds 30 (100 %), site1 holds 0 (0 %)",
        "compared between all 3 ranks after 4 steps: equal each time",
        "0020same",
        "x86_64",
        "Open MPI",
        "a (2 ranks), b (1 rank)",
        "numpy 2",
        "isthmus train",
    ):
        assert text in shown, text
    for term in TERMS:
        assert term in shown


def test_a_run_of_an_older_version_has_a_page_too(tmp_path):
    folder = write_run(tmp_path, 3)
    plan = json.loads((folder / "plan.json").read_text())
    del plan["sentences"], plan["shadow_prices"]
    (folder / "plan.json").write_text(json.dumps(plan))
    assert "would save" not in page_of(folder)[0]


def test_the_same_run_gives_the_same_page(folder, finished):
    assert page_of(folder)[0] == finished[0]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{$", "{{ 7 * 7 }}"])
def test_names_cannot_break_the_page(tmp_path, name):
    _, page = page_of(write_run(tmp_path, 3, name=name))
    assert "script" not in page.tags
    assert any(name in shown for shown in page.shown)


def test_a_folder_whose_name_is_no_text_has_a_page_too(tmp_path):
    text, _ = page_of(write_run(tmp_path / os.fsdecode(b"mine\xff"), 3))
    assert "mine\\udcff" in text


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_that_stopped_early_has_a_page_too(tmp_path, steps):
    _, page = page_of(write_run(tmp_path, steps, finished=False))
    assert "This run did not finish." in " ".join(page.shown)
    assert page.tags.count("svg") == (8 if steps else 3)


def test_a_line_that_was_being_written_is_passed_over(tmp_path):
    folder = write_run(tmp_path, 3, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')
    page_of(folder)


def test_a_long_run_makes_a_small_page(tmp_path):
    text, _ = page_of(write_run(tmp_path, 10_000))
    assert len(text) < 1_000_000


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.integers(1, 20),
    st.sampled_from([1.0, 0.0]),
)
def test_a_thinned_curve_keeps_its_ends_and_every_peak(values, buckets, step):
    x = step * np.arange(len(values)) ** 1.5
    kept_x, kept_y = thin(x, values, buckets)
    pairs = list(zip(x, values))
    kept = list(zip(kept_x, kept_y))
    rest = iter(pairs)
    assert all(pair in rest for pair in kept)  # in order, and none that was not there
    assert kept[0] == pairs[0]
    assert kept[-1] == pairs[-1]
    assert len(kept) <= 2 * buckets + 4
    edges = np.linspace(x[0], x[-1], buckets + 1)
    for low, high in pairwise(edges):  # the middle of a bucket: its ends are a matter of rounding
        inside = [y for each, y in pairs if low + 1e-9 * high < each < high - 1e-9 * high]
        if inside:
            near = [y for each, y in kept if low - 1e-9 * high <= each <= high + 1e-9 * high]
            assert min(near) <= min(inside)
            assert max(near) >= max(inside)


def test_a_thinned_curve_leaves_out_what_is_not_finite():
    x, y = thin([0, 1, 2, 3], [1.0, float("nan"), float("inf"), 4.0])
    assert x.tolist() == [0, 3]
    assert y.tolist() == [1, 4]


def test_every_term_looks_different_without_colour_too():
    assert len({stage.hatch for stage in STAGES.values()}) == len(STAGES)
    assert len({stage.colour for stage in STAGES.values()}) == len(STAGES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "run.json: no such file"),
        (lambda folder: (folder / "plan.json").write_text("{"), "plan.json: cannot be read"),
        (lambda folder: (folder / "plan.json").write_text("[]"), r"plan.json: holds \[\], which"),
        (lambda folder: (folder / "summary.json").write_text("x"), "summary.json: cannot be read"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{}x\n{}\n"), "line 1 cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, spoil, message):
    folder = write_run(tmp_path)
    spoil(folder)
    with pytest.raises(SettingsError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
