"""What all studies share: a file of results that goes on where it was, and what made them."""

import argparse
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from isthmus.errors import IsthmusError, SettingsError

HERE = Path(__file__).resolve().parent


class Notebook:
    """The file of a study's results; goes on with one that the same code and settings have begun.

    study: its settings, with `results`, a path without its ending, and `place`. script: its name.
    packages: whose versions a line tells.
    """

    def __init__(self, study, script, packages):
        self.path = (HERE / study.results).with_suffix(".jsonl")
        text = study.model_dump_json().encode()
        self.common = {
            "place": study.place,
            "emulated": study.place != "localhost",
            **code(),
            "settings_sha256": hashlib.sha256(text).hexdigest()[:16],
            "versions": {name: version_of(name) for name in packages},
            "processor": f"{processor()}, {os.cpu_count()} cores",
            "command": " ".join(["python", f"experiments/{script}", *sys.argv[1:]]),
        }
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = list(map(json.loads, lines))
        if any(
            line[key] != self.common[key]
            for line in self.lines
            for key in ("code_sha256", "settings_sha256")
        ):
            raise SettingsError(
                f"{self.path}: was measured with other code or settings; move it away to measure anew"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def has(self, what):
        """Whether a launch has left its lines: they are written all at once, when it has ended."""
        return any(True for _ in self.lines_of(what))

    def lines_of(self, what):
        """Yield the lines that hold what the table `what` holds."""
        return (
            line for line in self.lines if all(line.get(key) == value for key, value in what.items())
        )

    def write(self, what, results):
        """Add a line for each of `results`, with `what` it is of and what made it."""
        now = {"date": time.strftime("%Y-%m-%dT%H:%M:%S"), **self.common}
        lines = [{**what, **result, **now} for result in results]
        self.lines += lines
        with open(self.path, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


class Lines:
    """What a study has asked and found, where that is the same with all code that keeps a run's bits.

    A line is found by what was asked, and is there once. path: of the file, of which nothing is lost.
    """

    def __init__(self, path):
        self.path = Path(path)
        text = self.path.read_text() if self.path.exists() else ""
        self.lines = list(map(json.loads, text.splitlines()))

    def all(self, **asked):
        """Return the lines that were asked for so."""
        asked = json.loads(json.dumps(asked))
        return [line for line in self.lines if all(line.get(key) == asked[key] for key in asked)]

    def add(self, lines):
        """Add lines with what made them, to a file that is whole at every moment."""
        made = {
            "commit": code()["commit"],
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "processor": f"{processor()}, {os.cpu_count()} cores",
        }
        self.lines += [json.loads(json.dumps(line | made)) for line in lines]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        new.replace(self.path)


def digest_of(settings):
    """Return a short digest of what JSON can say."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def version_of(name):
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor():
    """Return the processor's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def code():
    """Return the commit, "-dirty" if code was changed since, and what tells this code from other."""
    parts = ("src", "kernels", "experiments", "data/make_fashion_mnist.py")

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True).stdout

    changes = git("diff", "HEAD", "--", *parts)
    digest = hashlib.sha256(git("ls-tree", "HEAD", "--", *parts) + changes).hexdigest()
    name = git("rev-parse", "--short=12", "HEAD").decode().strip()
    return {"commit": name + ("-dirty" if changes else ""), "code_sha256": digest[:16]}


def row(first, cells):
    """Return a row of a Markdown table."""
    return "| " + " | ".join([first, *cells]) + " |"


def head(first, names):
    """Return the two rows that a Markdown table begins with."""
    return [row(first, names), row("---", ["---"] * len(names))]


def plain_numbers(side):
    """Write 1, 2, 5 and 10 times powers of ten on a logarithmic axis as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    side.set_major_locator(LogLocator(subs=(1, 2, 5)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter("{x:g}")


def svg_text(figure):
    """Return a figure of matplotlib as SVG, the same text for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return "\n".join(line.rstrip() for line in text[text.index("<svg") :].splitlines()) + "\n"


def tell(path, lines, picture):
    """Write the `lines` of a Markdown text and the SVG `picture` beside the results; print the text."""
    text = "\n".join(lines) + "\n"
    Path(path).with_suffix(".md").write_text(text)
    Path(path).with_suffix(".svg").write_text(picture)
    print(text)


def run_parts(program, text, run):
    """Call run(settings, parts, short) as the command line tells: [learn | time] and options.

    program, text: file and docstring of the study. What is wrong is told in one line.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is up is taken down
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["learn", "time"], help="one part alone")
    parser.add_argument("--settings", type=Path, default=Path(program).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="few samples and seeds, nothing kept")
    given = parser.parse_args()
    try:
        run(given.settings, [given.part] if given.part else ("learn", "time"), given.quick)
    except IsthmusError as problem:
        sys.exit(str(problem))
