"""What fails after a job's work: reports, pictures, last lines. The work stands; the cure is told."""

import json
import os
import subprocess
import sys

import pytest
from clusters import cluster_of
from test_cli import RUN, command, pack_lab, with_changes, write

from isthmus.errors import OutputError
from isthmus.jobs.launch import rank_environment
from isthmus.spare import if_possible
from isthmus.terminal import Content, Terminal

FULL = "/dev/full"


def test_what_fails_is_told_in_one_line_with_its_cure(caplog):
    def fail():
        raise ValueError("two\nlines")

    assert if_possible(lambda: 3, "the report", "make it") == 3
    assert not caplog.messages
    assert if_possible(fail, "the report", "make it") is None
    assert caplog.messages == ["the report is missing: ValueError: two lines; make it"]


@pytest.mark.parametrize("part", ["a line", Content("an object\n")])
def test_results_that_cannot_be_written_are_an_error_and_other_lines_are_not(monkeypatch, part):
    with open(FULL, "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        terminal = Terminal()
        terminal.tell("progress")
        with pytest.raises(OutputError, match="standard output: .* No space left on device; free space"):
            terminal.result(part)
        with pytest.raises(OSError, match="No space"):
            full.close()


@pytest.mark.parametrize("part", ["a line", Content("an object\n")])
def test_a_reader_that_has_gone_wants_no_more(monkeypatch, part):
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")  # noqa: SIM115 (its end is what fails)
    monkeypatch.setattr(sys, "stdout", stream)
    Terminal().result(part)
    Terminal().result(part)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_stream_that_is_closed_is_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    Terminal().tell("progress")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://nowhere.at_all", "no such thing"])
def test_no_window_is_asked_for_where_pictures_are_drawn(backend):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from isthmus.pages.page import chart\nmade = []\n"
            "with chart(made, 'a') as axis:\n    axis.plot([1, 2])\nprint(made[0][1][:4])",
        ],
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "<svg\n"), done.stderr


@pytest.mark.slow
def test_a_run_is_done_where_its_report_its_trace_and_its_last_line_cannot_be_written(tmp_path):
    pack_lab(tmp_path)
    write(
        tmp_path,
        run=with_changes(RUN, {"run.folder": "runs[bold]", "run.trace": True, "training.epochs": 1}),
        cluster=cluster_of(1),
    )
    folder = tmp_path / "runs[bold]/mine"
    for name in ("report.html", "trace.json"):
        (folder / name).mkdir(parents=True)
    with open(FULL, "w") as full:
        done = subprocess.run(
            command(0, "train", "run.toml", "--name", "mine"),
            cwd=tmp_path,
            env=rank_environment(ISTHMUS_RUN_NOTE="nowhere/run"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    told = done.stderr
    for words in (
        "trace.json is missing: ",
        "the report is missing: ",
        f"make it with `isthmus report '{folder}'`",
        "the last line is missing: ",
        f"the work is done: {folder / 'summary.json'}",
    ):
        assert words in told.replace("\n", " "), told
    assert json.loads((folder / "summary.json").read_text())["outcome"] == "finished"
    for name in ("report.html", "trace.json"):
        (folder / name).rmdir()
    again = subprocess.run(command(0, "report", folder), env=rank_environment(), capture_output=True)
    assert again.returncode == 0
    assert (folder / "report.html").stat().st_size > 10_000
