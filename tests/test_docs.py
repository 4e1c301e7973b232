"""The documents: examples print what is written below them, commands are commands, links lead somewhere.

A code block that names a file, as in "```toml run.toml", is that file. Python blocks of a page run in
order; a text block after one is what it prints, `...` for anything. Shell blocks run where they are
marked "sh run", and all commands of isthmus are held against the command line.
"""

import contextlib
import doctest
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, get_args

import pytest
from clusters import cluster_of
from patience import launched

from isthmus.cluster.cluster import Cluster
from isthmus.errors import ClusterError
from isthmus.jobs.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    *(ROOT / folder / "README.md" for folder in ("", "data", "slurm")),
    *DOCS,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
FENCED = re.compile(r"^```(?P<words>.*)\n(?P<text>(?:.*\n)*?)```$", re.M)
UNFINISHED = shutil.ignore_patterns("*.egg-info", "*.pyc.*", "*.tmp.*")
"""What a copy of the sources goes without; what Python and Numba have compiled goes along."""
ALONE = SimpleNamespace(rank=0, size=1, Barrier=lambda: None)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block: its language, what else stands beside that, its text, and what it prints."""

    language: str
    word: str
    text: str
    output: str | None


def blocks(page):
    found = [match.groups() for match in FENCED.finditer(page.read_text())]
    for (words, text), (next_words, output) in zip(found, [*found[1:], ("", "")]):
        language, _, word = words.partition(" ")
        yield Block(language, word, text, output if next_words == "text" else None)


def commands(block):
    """Yield the words of each command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def expect(block, printed):
    """Fail unless `printed` is what the page says."""
    if block.output is not None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(block.output, printed, flags), (
            f"{block.text}\nprints\n{printed}\nand the page says\n{block.output}"
        )


def run_python(block, names):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, block.text.splitlines()[0], "exec"), names)
    expect(block, printed.getvalue())


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """What a page adds to a table of the library is gone after its test."""
    from isthmus.planning.programme.objectives import OBJECTIVES

    for name in OBJECTIVES:
        monkeypatch.setitem(OBJECTIVES, name, OBJECTIVES[name])
    before = set(OBJECTIVES)
    yield
    for name in set(OBJECTIVES) - before:
        del OBJECTIVES[name]


@pytest.fixture
def desk(shared_folder):
    """An empty folder to work in, from which the repository's own files are seen."""
    with contextlib.suppress(FileExistsError):
        (shared_folder / "experiments").symlink_to(ROOT / "experiments")
    return shared_folder


@pytest.mark.parametrize(
    "page", [page for page in DOCS if page.name != "tutorial.md"], ids=lambda page: page.stem
)
def test_what_a_page_runs_prints_what_the_page_says(page, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    names = {"__name__": page.stem}
    for block in blocks(page):
        if block.word.endswith(".py"):
            (desk / block.word).write_text(block.text)
        elif block.language == "python":
            run_python(block, names)
        elif block.word == "run":
            expect(block, "".join(run_isthmus(words, ALONE, capsys) for words in commands(block)))


@pytest.mark.ranks(4)
@pytest.mark.slow
def test_the_tutorial_goes_from_data_to_a_job(comm, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    names = {"__name__": "tutorial"}
    for block in blocks(ROOT / "docs/tutorial.md"):
        if comm.rank == 0 and block.language == "toml":
            (desk / block.word).write_text(block.text)
        if comm.rank == 0 and block.language == "python":
            run_python(block, names)
        comm.Barrier()
        if block.word == "run":
            printed = "".join(run_isthmus(words, comm, capsys) for words in commands(block))
            if comm.rank == 0:
                expect(block, printed)
    report = (desk / "runs/first/report.html").read_text()
    for title in re.findall(r"^\d\. \*\*(.*)\.\*\*", (ROOT / "docs/tutorial.md").read_text(), re.M):
        assert f"<h2>{title}</h2>" in report


def run_isthmus(words, comm, capsys):
    """Run one line, on all ranks after mpirun and else on the first alone; return what it printed."""
    from isthmus.cli import main as cli

    together = words[:3] == ["mpirun", "-n", str(comm.size)]
    arguments = words[3 if together else 0 :]
    assert arguments[0] == "isthmus", words
    capsys.readouterr()
    if together or comm.rank == 0:
        code = cli.app(arguments[1:], standalone_mode=False)
        assert not code, (words, capsys.readouterr())
    comm.Barrier()
    printed = capsys.readouterr()
    return printed.err + printed.out  # as a terminal shows them: what goes on, and then the result


@pytest.mark.slow
def test_a_new_compressor_takes_what_the_page_says_and_no_more(tmp_path):
    """The page's files and changes in a copy of the sources, under the library's own tests."""
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=UNFINISHED)
    (tmp_path / "kernels").symlink_to(ROOT / "kernels")
    places = {"two_bit.py": "src/isthmus/compression", "test_two_bit.py": "tests"}
    for block in blocks(ROOT / "docs/add_a_compressor.md"):
        if block.word in places:
            (tmp_path / places[block.word] / block.word).write_text(block.text)
            if block.word == "two_bit.py":
                assert len([line for line in block.text.splitlines() if line.strip()]) <= 60
        elif block.language == "diff":
            subprocess.run(
                ["git", "apply", "-"],
                input=block.text,
                text=True,
                check=True,
                cwd=tmp_path,
                env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
            )
        elif block.language == "sh":
            (words,) = commands(block)
    assert words[:3] == ["python", "-m", "pytest"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = launched([sys.executable, *words[1:]], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


@each_page
def test_every_command_is_one(page):
    from typer.main import get_command

    from isthmus.cli.main import app

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for block in blocks(page):
        for words in commands(block) if block.language == "sh" else ():
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= set(targets), words
            elif words[0] == "python" and words[1] != "-m":
                assert (ROOT / words[1]).exists(), words
            for place in [number for number, word in enumerate(words) if word == "isthmus"]:
                parse(get_command(app), words[place + 1 :])


def parse(command, words):
    """Hold a command line against the verbs and options of isthmus; raises what a user would be told."""
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context("isthmus", words)


def anchors(text):
    """Return the anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ +(.*)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page):
    """Yield (page or file, anchor) for each link of a page to one of the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if not target.startswith("https:"):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@each_page
def test_every_link_leads_somewhere(page):
    for other, anchor in links(page):
        assert other.exists(), other
        assert not anchor or anchor in anchors(other.read_text()), (other, anchor)


def test_every_page_is_reached_from_the_index():
    seen, todo = set(), [ROOT / "docs/index.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        todo += {other for other, _ in links(page) if other.suffix == ".md"} - seen
    assert set(PAGES) <= seen


def sections(page):
    """Return heading -> {key: what stands in the next cell} of each table with keys in `code`."""
    found = {}
    for part in re.split(r"^### ", page.read_text(), flags=re.M)[1:]:
        rows = re.findall(r"^\| (`[^|]*) \| ([^|]*)\|", part, re.M)
        found[part.split("`")[1]] = {
            key: cell.strip() for keys, cell in rows for key in re.findall(r"`(\w+)`", keys)
        }
    return found


def test_every_key_of_a_run_is_told_with_its_default():
    told = sections(ROOT / "docs/settings.md")
    for name, section in RunSettings.model_fields.items():
        kinds = get_args(section.annotation) or (section.annotation,)
        fields = {key: kind for kind in reversed(kinds) for key in kind.model_fields}
        untold = {"arguments"} | ({"folder", "sources"} if name == "model" else set())
        assert set(told[f"[{name}]"]) == set(fields) - untold, name
        for key, cell in told[f"[{name}]"].items():
            with contextlib.suppress(ValueError):
                default = json.loads(cell.strip("`"))
                ours = fields[key].model_construct().model_dump(mode="json")[key]
                assert default == ours, (name, key)


@pytest.mark.parametrize("table", ["site", "link"])
def test_every_key_of_a_cluster_is_told(table):
    made = cluster_of(1, 1)
    made[table][0]["qqq"] = 1
    with pytest.raises(ClusterError) as told:
        Cluster(made)
    known = re.search(r"known keys: ([\w, ]+)", str(told.value))[1].split(", ")
    assert set(sections(ROOT / "docs/settings.md")[f"[[{table}]]"]) == set(known)


@pytest.mark.slow
def test_the_api_pages_build_without_a_warning(tmp_path):
    """Every public name with its text; MPI is not started."""
    import isthmus

    done = launched([sys.executable, "-W", "error::UserWarning", ROOT / "docs/api.py", tmp_path])
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "isthmus.html").read_text()
    for name in isthmus.__all__:
        if inspect.ismodule(getattr(isthmus, name)):
            assert (tmp_path / f"isthmus/{name}.html").exists(), name
        else:
            assert f'id="{name}"' in page, name
        assert getattr(isthmus, name).__doc__, name
