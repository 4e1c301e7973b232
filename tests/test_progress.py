"""The bar of a run: where somebody looks, above it what is told, and nothing of it anywhere else."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading

import pytest
from patience import SECONDS, until
from test_cli import RUN, command, pack_lab, with_changes, write

from isthmus.cli import main as cli
from isthmus.cli.progress import columns_of_terminal, draw_bar
from isthmus.jobs.launch import rank_environment
from isthmus.terminal import OVERWRITE, Terminal
from isthmus.watching.pace import Pace, Pacer


def test_a_pace_is_shown_ten_times_a_second_and_at_the_end():
    moments, shown = [0.0], []
    pacer = Pacer(shown.append, 100, lambda: moments[0])
    for step in range(1, 101):
        moments[0] += 0.021 if step != 50 else 1.0  # an evaluation
        pacer.after(step, 0.5 if step > 10 else None)
    assert [pace.step for pace in shown][:3] == [1, 6, 11]
    assert shown[-1].step == 100
    assert len(shown) <= 1 + (99 * 0.021 + 1) / 0.1
    assert shown[0] == Pace(1, 100, None, None, None)
    assert shown[1].step_seconds == pytest.approx(0.021)
    assert shown[1].seconds_left == pytest.approx(94 * 0.021)
    assert shown[-1].step_seconds == pytest.approx(0.021)
    assert (shown[-1].seconds_left, shown[-1].loss) == (0.0, 0.5)


@pytest.mark.parametrize("columns", [30, 60, 100, 300])
def test_a_bar_stays_on_one_line_and_says_how_far_how_fast_and_how_long(capsys, columns):
    terminal = Terminal()
    terminal.columns = columns
    draw_bar(terminal, Pace(160, 470, 0.0323, 75.0, 0.4123))
    draw_bar(terminal, Pace(161, 470, 0.0323, 74.0, 0.4123))
    err = capsys.readouterr().err
    _, second = (text for text in err.split(OVERWRITE) if text)
    assert "\n" not in err
    shown = re.sub(r"\x1b\[[\d;]*m", "", second)
    assert len(shown) < columns
    assert shown.startswith(" 34 % ")
    if columns > 60:
        assert shown.endswith(" 161/470, 32.3 ms a step, 1 min 14 s left, loss 0.4123")
        assert "━" in shown


def test_what_is_told_goes_above_the_bar(capsys):
    terminal = Terminal()
    terminal.columns = 80
    draw_bar(terminal, Pace(1, 2, None, None, None))
    terminal.tell("warning: slow", "yellow")
    other = Terminal()  # of a rank that draws none
    other.columns = 80
    other.tell("step 1: rank 1 stalls")
    err = capsys.readouterr().err
    assert OVERWRITE + "\x1b[33mwarning: slow\x1b[0m\n" in err
    assert err.endswith(OVERWRITE + "step 1: rank 1 stalls\n")
    terminal.end_drawing()
    terminal.tell("plain")
    assert capsys.readouterr().err == OVERWRITE + "plain\n"


def test_a_bar_is_for_terminals_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    with open(os.devnull, "w") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        assert columns_of_terminal(None) is None
        assert columns_of_terminal(True) == 70
    control, terminal = pty.openpty()
    with open(terminal, "w") as screen:
        monkeypatch.setattr("sys.stderr", screen)
        assert columns_of_terminal(None) >= 70
        assert columns_of_terminal(False) is None
        monkeypatch.setenv("TERM", "dumb")
        assert columns_of_terminal(None) is None
    os.close(control)


def test_passing_lines_are_left_to_the_bar(capsys, monkeypatch):
    monkeypatch.setattr(cli, "terminal", Terminal())
    cli.terminal.columns = 80
    cli.tell("step 3/9: loss 1", passing=True)
    cli.tell("epoch 1: done")
    assert capsys.readouterr().err == OVERWRITE + "epoch 1: done\n"


@contextlib.contextmanager
def on_a_screen(folder, *arguments):
    """Give a process on a terminal of its own, and a list that gathers what is shown there."""
    control, terminal = pty.openpty()
    process = subprocess.Popen(
        command(3, *arguments),
        cwd=folder,
        env=rank_environment(TERM="xterm"),
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = []

    def read():
        with contextlib.suppress(OSError):
            while text := os.read(control, 1 << 16):
                shown.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, lambda: b"".join(shown).decode()
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(control)


@pytest.mark.slow
@pytest.mark.alone
def test_under_mpirun_a_bar_is_drawn_on_its_terminal_and_gives_way_to_last_words(tmp_path):
    pack_lab(tmp_path)
    with on_a_screen(tmp_path, "train", "run.toml", "--name", "whole") as (process, shown):
        assert process.wait(SECONDS) == 0
    text = shown()
    assert "100 % " in text
    assert " 40/40, " in text
    assert "step 40/40" not in text
    lines = text.replace("\r\n", "\n").split("\n")
    assert any(line.startswith(OVERWRITE + "epoch 4: test loss") for line in map(_last, lines))
    assert text.endswith(OVERWRITE)  # the bar is taken away
    log = (tmp_path / "runs/whole/logs/rank0000.log").read_text()
    assert "\x1b" not in log
    assert "step 40/40" in log

    write(tmp_path, run=with_changes(RUN, {"training.epochs": 10_000, "run.checkpoint_every": None}))
    for _ in range(5):  # a starved rank may be killed before it speaks
        with on_a_screen(tmp_path, "train", "run.toml") as (process, shown):
            until(lambda: "ms a step" in shown())
            process.send_signal(signal.SIGINT)
            process.wait(SECONDS)
        text = shown()
        if said := re.search(r"isthmus: interrupted in step \d+", text):
            break
    assert said
    assert re.search(r"\r\x1b\[2K(\x1b\[\d+m)?$", text[: said.start()])


def _last(line):
    """Return what a line looks like after all that was drawn over it."""
    return OVERWRITE + line.rpartition(OVERWRITE)[2]
