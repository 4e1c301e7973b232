"""Text is data: brackets stand, what is invisible is shown; results and progress have a stream each."""

import ast
import json
import sys
from pathlib import Path

import pytest
from clusters import cluster_of
from rich.table import Table

import isthmus
from isthmus.cli import main as cli
from isthmus.folders.status import status_table
from isthmus.jobs.plan import plan_table
from isthmus.terminal import Terminal, styled, table_of, visible

MEAN = "[red]x[/red] [/] [link=http://a] \x1b[31m\x07\r\n\u202e\udcff 8 µs →"
SHOWN = "[red]x[/red] [/] [link=http://a] \\x1b[31m\\x07\\r\\n\\u202e\\udcff 8 µs →"


def test_what_is_invisible_is_written_out_and_the_rest_is_left_alone():
    assert visible(MEAN) == SHOWN
    assert visible("a [b] é 字 — 1 %") == "a [b] é 字 — 1 %"
    assert visible(Path("x\ty")) == "x\\ty"


def test_lines_and_cells_show_text_as_it_is(capsys):
    terminal = Terminal()
    terminal.tell(MEAN)
    terminal.result(MEAN)
    terminal.result(styled((MEAN, "red")))
    terminal.result(table_of([(MEAN, "left")], [([MEAN], "cyan")]))
    out, err = capsys.readouterr()
    assert err == f"{SHOWN}\n"
    assert out.count(SHOWN) == 4
    assert all(character.isprintable() or character == "\n" for character in out)


def test_a_table_in_a_file_is_as_wide_as_it_wants(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Terminal().result(
        table_of([("a", "left"), ("b", "right")], [(["x" * 90, 3], ""), (["y", "z" * 50], "")])
    )
    out = capsys.readouterr().out
    assert "x" * 90 in out
    assert "z" * 50 in out


def test_tables_of_verbs_take_names_with_brackets(capsys):
    site = "[bold]moon[/bold]"
    table = cluster_of(1, 1)
    table["site"][1]["name"] = site
    table["link"][0]["between"] = ["site0", site]
    cluster = isthmus.Cluster(table)
    plan = isthmus.plan_shards(cluster, [10] * 4, isthmus.Workload(100, 10))
    runs = [
        dict.fromkeys(("job", "loss", "problem", "started", "since", "seconds_left"))
        | {"name": site, "state": "[/]", "step": 1, "steps": 2, "metrics": {site: 0.5}}
        | {"ranks": 1, "ranks_in_all": 2}
    ]
    for part in (*plan_table(plan, cluster, ["set [plan] x"]), *status_table(runs, ".")):
        Terminal().result(part)
    out = capsys.readouterr().out
    assert out.count(site) >= 2
    assert "set [plan] x" in out
    assert "[/]" in out


@pytest.mark.parametrize("name", ["[red]gone[/red]", "[/x]", "a\x1b[2Jb"])
def test_a_folder_with_such_a_name_is_told_as_it_is(capsys, monkeypatch, tmp_path, name):
    """In an error, on standard error; and as a result, on standard output."""
    monkeypatch.chdir(tmp_path)
    for arguments, made in ((["status", name], False), (["status", name], True)):
        if made:
            Path(name).mkdir(parents=True)
        monkeypatch.setattr(sys, "argv", ["isthmus", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        streams = capsys.readouterr()
        told, silent = (streams.out, streams.err) if made else (streams.err, streams.out)
        assert bool(ended.value.code) != made
        assert told.startswith(visible(name) if made else f"isthmus: {visible(name)}: no such folder")
        assert silent == ""


def test_version_and_help_have_their_words(capsys, monkeypatch):
    for argument, words in (("--version", f"isthmus {isthmus.__version__}"), ("-h", "Usage: isthmus")):
        monkeypatch.setattr(sys, "argv", ["isthmus", argument])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        streams = capsys.readouterr()
        assert words in streams.out
        assert streams.err == ""


def test_results_go_to_standard_output_in_both_forms(capsys, monkeypatch, tmp_path):
    for form in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["isthmus", "status", str(tmp_path), *form])
        with pytest.raises(SystemExit):
            cli.main()
        streams = capsys.readouterr()
        assert streams.err == ""
        assert (json.loads(streams.out) == {"runs": []}) if form else "no runs yet" in streams.out


def test_text_reaches_the_terminal_in_one_place(repository):
    """Nothing else makes tables or markup, or prints."""
    assert Table.__module__ == "rich.table"
    for path in (repository / "src/isthmus").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert path.name == "terminal.py" or not any(
                    name.split(".")[0] == "rich" for name in names
                ), path
        printed = [
            ast.unparse(node.args[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert printed == {"testbed/tun_relay.py": ["'ready'"]}.get(
            f"{path.parent.name}/{path.name}", []
        ), path
