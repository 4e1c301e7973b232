"""Damage to the four files of a run that are text: one line or the same, never a traceback."""

import copy
import json

import numpy as np
import pytest
from test_report import TERMS, write_run

from isthmus.errors import IsthmusError, SettingsError
from isthmus.folders.reading import read_metrics, read_run
from isthmus.folders.record import RunFolder
from isthmus.folders.seals import FORMAT
from isthmus.folders.status import list_runs, status_table
from isthmus.jobs.simulate import read_stragglers
from isthmus.pages.compare import compare
from isthmus.pages.comparison_words import comparison_table
from isthmus.pages.report import write_report

FILES = ("run.json", "plan.json", "summary.json", "metrics.jsonl")
CASES = 12
"""Of each file and each way of damaging it; file, way and number alone decide a case."""
OTHERS = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    1e300,
    "",
    "x",
    "\x1b[31m",
    [],
    {},
    [[]],
    [None],
    [-1],
    {"": {}},
    {"b": 1},
    [[[]] * 9] * 9,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run whose files have checksums, and what its readers make of it."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "mine", 12)
    tables = {name: json.loads((folder / name).read_text()) for name in FILES[:3]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    change = {"rank": 1, "before": 10.0, "after": 5.0}
    lines.append(
        {
            "kind": "replanned",
            "step": 12,
            "epoch": 1,
            "seconds": 0.2,
            "changed": [change],
            "shards": 1,
            "nbytes": 10,
            "moving_seconds": 0.1,
            "staying_seconds": 2.0,
            "predicted_seconds": 1.0,
            "predicted_moving_seconds": 0.1,
            "samples_of_rank": [10, 20, 0],
        }
    )
    tables["run.json"] |= {
        "slurm_job": None,
        "emulated": [],
        "data": {"train": {"samples": 30, "sha256": "f" * 64}},
        "choice": {
            "reason": "it is fastest",
            "candidates": [{"name": "ring", "seconds": 0.1, "error": 0.0, "chunk_nbytes": 1024}],
        },
        "earlier": [{"started": "2026-11-20", "command": ["isthmus"], "until_step": 5}],
    }
    writer = RunFolder(folder)
    for name, table in tables.items():
        writer.write_json(name, table)
    (folder / "metrics.jsonl").unlink()
    for line in lines:
        writer.note(**line)
    writer.close()
    return folder


def readings(folder):
    """Return what each reader makes of the run: its words, or None where it refuses them in one line.

    All of `isthmus status` is read: it may tell of damage, and never end for it.
    """

    def trimmed():
        content = (folder / "metrics.jsonl").read_bytes()
        try:
            return RunFolder(folder).cut_back(11)
        finally:
            (folder / "metrics.jsonl").write_bytes(content)

    def compared():
        told = compare([folder, folder.parent / "other"], folder.parent / "page.html")
        comparison_table(told)
        return told

    found = {"status": sorted(list_runs(folder.parent), key=lambda row: row["name"])}
    status_table(found["status"], folder.parent)
    for name, read in {
        "report": lambda: write_report(folder).read_text(),
        "compare": compared,
        "stragglers": lambda: read_stragglers(str(folder)),
        "resume": trimmed,
    }.items():
        try:
            found[name] = repr(read())
        except IsthmusError as problem:
            found[name] = None if len(str(problem).splitlines()) == 1 else f"many lines: {problem}"
    return found


def flipped(content, draw):
    """Return other bytes: a bit flipped, a part cut off, zeroed, doubled or dropped, or junk put in."""
    place, length = int(draw.integers(len(content))), int(draw.integers(1, 200))
    before, part, after = (content[:place], content[place : place + length], content[place + length :])
    kind = int(draw.integers(8))
    if kind < 3:
        bit = 1 << 2 * kind + int(draw.integers(2))
        return before + bytes([content[place] ^ bit]) + content[place + 1 :]
    return (
        before,
        before + bytes(len(part)) + after,
        before + part + part + after,
        before + after,
        before + draw.bytes(9) + part + after,
    )[kind - 3]


def places(table, path=()):
    """Yield the path of each value inside a JSON table."""
    entries = (
        table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    )
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(table, draw):
    """Return the table with one value of it, or all of it, dropped or replaced by one of OTHERS."""
    found = list(places(table))
    other = copy.deepcopy(OTHERS[int(draw.integers(len(OTHERS)))])
    number = int(draw.integers(len(found) + 1))
    if number == len(found):
        return other
    *inside, key = found[number]
    table = copy.deepcopy(table)
    place = table
    for each in inside:
        place = place[each]
    if draw.integers(3):
        place[key] = other
    else:
        del place[key]
    return table


def restructured(name, content, draw):
    """Return the file with one value changed, without checksums: as an older or other program's."""
    if name != "metrics.jsonl":
        return json.dumps(changed(json.loads(content), draw)).encode()
    lines = content.splitlines()
    number = int(draw.integers(len(lines)))
    table = json.loads(lines[number])
    del table["crc32"]
    lines[number] = json.dumps(changed(table, draw)).encode()
    return b"\n".join([*lines, b""])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["bytes", "values"])
def test_no_damage_ends_in_a_traceback_and_none_to_bytes_goes_unnoticed(whole, name, way, tmp_path):
    write_run(whole.parent / "other")
    expected, content = readings(whole), (whole / name).read_bytes()
    assert None not in expected.values()
    noticed = 0
    try:
        for number in range(CASES):
            draw = np.random.default_rng([FILES.index(name), way == "bytes", number])
            spoilt = flipped(content, draw) if way == "bytes" else restructured(name, content, draw)
            (whole / name).write_bytes(spoilt)
            found = readings(whole)
            silent = [
                reader
                for reader in ("report", "compare")
                if found[reader] not in (None, expected[reader])
            ]
            assert way == "values" or not silent, (number, silent)
            noticed += found != expected
    finally:
        (whole / name).write_bytes(content)
    assert noticed > CASES // 2
    assert readings(whole) == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["[]", "{}", "", "null", "[" * 10**5, "\x00\x00"])
def test_status_goes_on_when_one_run_is_damaged(tmp_path, name, content):
    write_run(tmp_path / "good")
    (write_run(tmp_path / "bad") / name).write_text(content + "\n")
    rows = {row["name"]: row for row in list_runs(tmp_path)}
    assert (rows["good"]["state"], rows["good"]["problem"]) == ("finished", None)
    if content != "{}" or name == "metrics.jsonl":
        assert rows["bad"]["state"] == "damaged"
        assert name in rows["bad"]["problem"]
        assert status_table(list(rows.values()), tmp_path)[1:] == [rows["bad"]["problem"]]


def test_a_changed_number_is_noticed_and_named(tmp_path):
    folder = RunFolder(write_run(tmp_path / "mine", 3))
    for name in FILES[:3]:
        folder.write_json(name, json.loads((folder.path / name).read_text()))
    folder.note(
        "step",
        step=4,
        seconds=0.4,
        loss=float("nan"),
        step_seconds=0.1,
        terms=dict.fromkeys(TERMS, 0.1),
        sent_nbytes={"site": 1, "link": 1},
    )
    folder.close()
    assert np.isnan(read_run(folder.path).steps[-1]["loss"])
    assert '"loss": null' in folder.metrics.read_text()
    folder.metrics.write_text(folder.metrics.read_text().replace('"seconds": 0.4', '"seconds": 0.5'))
    with pytest.raises(SettingsError, match=r"line \d+ cannot be read \(its checksum is not that of"):
        read_metrics(folder.metrics)
    plan = folder.path / "plan.json"
    plan.write_text(plan.read_text().replace("0.0123", "0.0124"))
    with pytest.raises(SettingsError, match=r"plan.json: cannot be read \(its checksum is not that of"):
        read_run(folder.path)


def test_lines_after_a_damaged_one_are_kept(tmp_path):
    folder = RunFolder(write_run(tmp_path, 9, finished=False))
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    folder.metrics.write_bytes(b"".join([*lines[:2], b"[]\n", *lines[3:], b'{"kind": "st']))
    kept, damaged = folder.cut_back(8)
    assert [line["step"] for line in kept if line["kind"] == "step"] == [1, 2, 4, 5, 6, 7, 8]
    assert damaged == [3]
    assert (tmp_path / "damaged-lines").read_bytes() == b"[]\n"
    assert folder.metrics.read_bytes() == b"".join([*lines[:2], *lines[3:8], lines[-1]])


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named_and_left_as_it_is(tmp_path, name):
    """Whole as it is: no reader calls it damaged, and a resume puts no line of it aside."""
    folder = RunFolder(write_run(tmp_path / "mine", 12))
    tables = [json.loads(line) for line in (folder.path / name).read_text().splitlines()]

    def written(**changes):
        (folder.path / name).write_text("".join(json.dumps(table | changes) + "\n" for table in tables))
        return (folder.path / name).read_bytes()

    for found in (FORMAT + 1, 0, "x", None, True):
        content = written(format=found)
        line = "line 1 " if name == "metrics.jsonl" else ""
        told = (
            f"{folder.path / name}: {line}is of format {found!r}, this program reads {FORMAT}; use "
            "the isthmus that wrote it, whose version run.json tells"
        )
        with pytest.raises(SettingsError) as refused:
            read_run(folder.path)
        assert str(refused.value) == told
        (row,) = list_runs(tmp_path)
        assert row["problem"].endswith(told.partition(line or ": ")[2])
        if name == "metrics.jsonl":
            with pytest.raises(SettingsError, match="is of format"):
                folder.cut_back(8)
        assert (folder.path / name).read_bytes() == content
        assert not (folder.path / "damaged-lines").exists()
    written(format=FORMAT, more="than this version knows")
    assert read_run(folder.path).summary


def test_every_file_that_is_read_again_tells_its_format_first(tmp_path):
    folder = RunFolder(write_run(tmp_path / "mine", 3))
    for name in FILES[:3]:
        folder.write_json(name, json.loads((folder.path / name).read_text()))
    folder.metrics.unlink()
    folder.note("replicas", step=30, hash="f")
    folder.close()
    for name in FILES:
        assert next(iter(json.loads((folder.path / name).read_text()).items())) == ("format", FORMAT)
    assert "format" not in read_run(folder.path).provenance
