"""The README: its programs run, and what it lists is all that there is."""

import re

import pytest

from isthmus.errors import EXIT_CODES


@pytest.fixture
def readme(repository):
    return (repository / "README.md").read_text()


def program(readme, heading, most_lines):
    text = re.search(rf"## {heading}.*?```python\n(.*?)```", readme, re.S)[1]
    assert len([line for line in text.splitlines() if line.strip()]) <= most_lines
    return text


def test_the_ten_lines_plan(readme, repository, monkeypatch, capsys):
    text = program(readme, "Plan in ten lines", 10)
    monkeypatch.chdir(repository)
    exec(text, {})
    assert capsys.readouterr().out.splitlines()[1:] == re.findall(r"# (.*)", text)


@pytest.mark.ranks(4)
def test_the_twenty_lines_train(comm, readme, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    exec(program(readme, "Train in twenty", 20), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(epoch, site) for epoch, site, *_ in lines] == [
        (str(epoch), "cloud" if comm.rank < 2 else "edge") for epoch in range(3)
    ]
    assert comm.rank >= 2 or max(float(line[2]) for line in lines) < 1.0


def test_every_exit_code_is_told(readme):
    for code in EXIT_CODES.values():
        assert re.search(rf"\| {code} \|", readme), code


def test_every_verb_is_told(readme):
    from isthmus.cli.main import app

    for command in app.registered_commands:
        assert f"| `{command.callback.__name__}` |" in readme
    for group in app.registered_groups:
        assert f"| `{group.name}` |" in readme
        for command in group.typer_instance.registered_commands:
            assert f"isthmus {group.name} {command.name or command.callback.__name__}" in readme
