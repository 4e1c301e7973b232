"""What an editor and a type checker know: the public names, and the types of all that they give."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec

import jedi
import pytest

import isthmus
from isthmus.compression import COMPRESSORS
from isthmus.models import MODELS
from isthmus.training.strategies import STRATEGIES

CONTRACTS = {
    "isthmus.cluster.cluster": ["Link"],
    "isthmus.collectives.exact": ["Exact"],
    "isthmus.compression.compressor": ["Compressor"],
    "isthmus.folders.trained_model": ["TrainedModel"],
    "isthmus.links.comm": ["Comm", "Request", "Wrapped"],
    "isthmus.links.tiers": ["Tiers"],
    "isthmus.links.world": ["World"],
    "isthmus.models.model": ["Model"],
    "isthmus.planning.plan": ["Plan"],
    "isthmus.planning.programme.allocation": ["Allocation"],
    "isthmus.planning.programme.problem": ["Pipes", "Prices", "Problem"],
    "isthmus.planning.programme.terms": ["Objective", "PerByte", "PerSecond", "Term"],
    "isthmus.planning.single_pass.star": ["SinglePass"],
    "isthmus.planning.single_pass.tree": ["TreePass"],
    "isthmus.shards.batches": ["LocalSamples"],
    "isthmus.shards.manifest": ["Array", "Manifest", "Shard"],
    "isthmus.shards.shard_file": ["OpenShard"],
    "isthmus.timing.time_model": ["AllreduceTime"],
    "isthmus.training.strategies.strategy": ["Exchange", "Member", "Strategy"],
    "isthmus.training.strategies.sums": ["Sums"],
}
"""What the public names give and take, and what others may write one of: module -> classes."""
PAGES = (
    "README.md",
    "docs/allreduce.md",
    "docs/planning.md",
    "docs/add_a_compressor.md",
    "docs/tutorial.md",
)


def everything_typed():
    for public in (getattr(isthmus, name) for name in isthmus.__all__):
        if not inspect.ismodule(public):
            yield public
        elif public is not isthmus.torch or find_spec("torch"):
            yield from (getattr(public, name) for name in public.__all__)
    yield from (kind for table in (COMPRESSORS, MODELS, STRATEGIES) for kind in table.values())
    for module, names in CONTRACTS.items():
        yield from (getattr(import_module(module), name) for name in names)


def functions_of(thing):
    """Yield what is called or read of a function or a class: its own public verbs and properties."""
    if inspect.isfunction(thing):
        yield thing
        return
    for name, member in vars(thing).items():
        if isinstance(member, (property, cached_property)):
            member = member.fget if isinstance(member, property) else member.func
        elif isinstance(member, (classmethod, staticmethod)):
            member = member.__func__
        made = inspect.isfunction(member) and member.__code__.co_filename != "<string>"  # by dataclass
        if (
            made
            and member.__module__ == thing.__module__
            and (not name.startswith("_") or name in ("__init__", "__call__"))
        ):
            yield inspect.unwrap(member)


@pytest.mark.parametrize("thing", dict.fromkeys(everything_typed()), ids=lambda thing: thing.__name__)
def test_every_verb_of_a_public_name_says_what_it_takes_and_gives(thing):
    for function in functions_of(thing):
        signature = inspect.signature(function)
        bare = [
            name
            for name, each in signature.parameters.items()
            if each.annotation is each.empty and name not in ("self", "cls")
        ]
        if function.__name__ != "__init__" and signature.return_annotation is signature.empty:
            bare.append("what it gives")
        assert not bare, f"{function.__qualname__} does not say the types of {', '.join(bare)}"


@pytest.mark.slow
def test_an_editor_completes_every_public_name():
    offered = {each.name for each in jedi.Script("import isthmus\nisthmus.").complete(2, 8)}
    assert offered >= {*isthmus.__all__, "__version__"}
    told = {
        each.name
        for each in jedi.Script("import isthmus\nisthmus.Cluster.from_toml('a.toml').").complete(2, 36)
    }
    assert told >= {"sites", "links", "rates", "route", "hub"}


def test_the_stub_is_the_one_home_of_the_public_names(repository):
    stub = ast.parse((repository / "src/isthmus/__init__.pyi").read_text())
    names = {
        alias.asname: node.module and f"isthmus.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(names) == sorted(isthmus.__all__)
    for name, module in names.items():
        if module is None:  # a module itself
            assert getattr(isthmus, name).__name__ == f"isthmus.{name}"
        else:
            assert getattr(isthmus, name).__module__ == module
    assert "import_module" not in (repository / "src/isthmus/__init__.py").read_text()


def test_the_typed_program_uses_every_public_name(repository):
    program = ast.parse((repository / "tests/typed_face.py").read_text())
    used = {
        node.attr
        for node in ast.walk(program)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "isthmus"
    }
    assert used >= set(isthmus.__all__)


def test_types_are_shipped(repository):
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(declared["package-data"]["isthmus"]) == {"py.typed", "__init__.pyi"}
    for file in declared["package-data"]["isthmus"]:
        assert (repository / "src/isthmus" / file).is_file()


@pytest.mark.slow
def test_a_checker_finds_no_fault_but_a_mistyped_name(repository, tmp_path):
    """In the public face, the contracts and the programs of the pages, which are checked as `make lint`
    checks."""
    files = [
        repository / file
        for file in tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    ]
    for page in PAGES:
        text = (repository / page).read_text()
        files.append(tmp_path / f"page_{page.split('/')[-1].removesuffix('.md').lower()}.py")
        files[-1].write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)))
    files.append(tmp_path / "mistyped.py")
    files[-1].write_text("import isthmus\nisthmus.Allrduce\nisthmus.Int8(blok=3)\nisthmus.Int8()\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, files)],  # what it keeps is there for `make lint`
        cwd=repository,
        text=True,
        capture_output=True,
        timeout=900,
    )
    errors = [line for line in done.stdout.splitlines() if " error: " in line]  # and notes on them
    found = [line.partition("mistyped.py:")[2] for line in errors]
    assert len(found) == 2, done.stdout + done.stderr
    assert found[0].startswith('2: error: Module has no attribute "Allrduce"'), done.stdout
    assert found[1].startswith('3: error: Unexpected keyword argument "blok" for "Int8"'), done.stdout
