"""docs/stable.md lists what the package has, no more and no less; the version is told once."""

import ast
import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import PurePath

import pytest
from test_docs import PAGES, ROOT, blocks

import isthmus

PAGE = (ROOT / "docs/stable.md").read_text()
MODULES = set(re.findall(r"`(isthmus\.[\w.]+)`", PAGE))


def rows(heading):
    """Return the cells of each row of the table below the first line that begins with `heading`."""
    table = PAGE.partition(heading)[2].strip().partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def imported(page):
    """Yield each module of isthmus that a page's programs import from, but for those that it makes."""
    made = {PurePath(block.word).stem for block in blocks(page)}
    for block in blocks(page):
        for node in ast.walk(ast.parse(block.text if block.language == "python" else "")):
            names = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{each.name}" for each in node.names]
            for name in names:
                module = name if is_module(name) else name.rpartition(".")[0]
                if name.startswith("isthmus.") and module.rpartition(".")[2] not in made:
                    yield module


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of what it would be in
        return False


def test_the_public_names_are_those_of_the_package():
    told = [
        name for _, names in rows("\n| what for | names |") for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(told) == sorted({*isthmus.__all__} - {"__version__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_import_from_the_public_face_or_from_a_module_that_is_listed(page):
    assert set(imported(page)) <= MODULES | {"isthmus"}


def test_no_module_is_listed_that_no_document_imports_from():
    assert set().union(*map(imported, PAGES)) - {"isthmus"} == MODULES


def test_the_version_is_told_once():
    """In the package, as a plain literal that is read without an import; the changelog has its day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "isthmus.__version__"}
    package = ast.parse((ROOT / "src/isthmus/__init__.py").read_text())
    (literal,) = [
        node.value.value
        for node in package.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literal == isthmus.__version__ == importlib.metadata.version("isthmus")


def test_the_changelog_has_the_version_and_only_the_headings_of_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.M)
    headings = re.findall(r"^## .*", text, re.M)
    assert headings[0] == "## [Unreleased]"
    assert released[0] == isthmus.__version__
    assert len(released) == len(headings) - 1
    assert set(re.findall(r"^### (.*)", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_before_a_commit_that_is_checked_which_make_lint_checks():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: ([^,]*)", hooks) == ["make lint"]
