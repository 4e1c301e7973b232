"""The README: its programs run, and what it lists is all that there is."""

import re
import subprocess

import pytest

import isthmus
from isthmus.errors import EXIT_CODES
from isthmus.runs.launch import rank_command, rank_environment


@pytest.fixture
def readme(repository):
    return (repository / "README.md").read_text()


def program(readme, heading):
    return re.search(rf"## {heading}.*?```python\n(.*?)```", readme, re.S)[1]


@pytest.mark.slow
def test_the_ten_lines_plan_and_the_twenty_lines_train(readme, repository, tmp_path):
    plan, train = (program(readme, heading) for heading in ("Plan in ten lines", "Train in twenty"))
    assert len([line for line in plan.splitlines() if line.strip()]) <= 10
    assert len([line for line in train.splitlines() if line.strip()]) <= 20
    for name, text in (("plan", plan), ("train", train)):
        (tmp_path / f"{name}.py").write_text(text)
    for ranks, name in ((1, "plan"), (4, "train")):
        done = subprocess.run(rank_command(ranks, tmp_path / f"{name}.py"), cwd=repository, text=True,
                              env=rank_environment(), capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    losses = [float(line.split()[2]) for line in done.stdout.splitlines() if " cloud " in line]
    assert len(losses) == 6
    assert max(losses) < 1.0


def test_the_single_pass_is_told_as_it_is(readme, capsys):
    exec(program(readme, "Before there is a cluster"), {"isthmus": isthmus})
    seconds = float(capsys.readouterr().out.split()[0])
    assert seconds == pytest.approx(10 / 17)


def test_every_exit_code_is_told(readme):
    for code in EXIT_CODES.values():
        assert re.search(rf"\| {code} \|", readme), code


def test_every_verb_is_told(readme):
    from isthmus.cli import app
    for command in app.registered_commands:
        assert f"| `{command.callback.__name__}` |" in readme
    for group in app.registered_groups:
        assert f"| `{group.name}` |" in readme
        for command in group.typer_instance.registered_commands:
            assert f"isthmus {group.name} {command.name or command.callback.__name__}" in readme
