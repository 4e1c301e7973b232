"""The house: floors, packaging, what an import loads, and what files must not say."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "errors cures extras registry kinds json_text vectors quantities terminal hdf5_files "
            "fabric segments picture_style spare",
            "files devices mpirun provenance",
            "toml_files checked_files kernels schedules outer security client staleness robust",
            "cluster compression models privacy",
            "links timing",
            "collectives shards planning testbed",
            "training watching",
            "folders torch recovery",
            "pages inference",
            "jobs",
            "measuring checks",
            "benchmarking",
            "cli",
            "__main__",
        )
    )
    for name in names.split()
}
LOWEST = ("errors", "cures", "extras")  # that the lowest floor itself may use
MODULES = sorted([*(ROOT / "src/isthmus").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@functools.cache
def tree_of(path):
    """Return the syntax tree of a source, which most tests here look at."""
    return ast.parse(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def trees_are_let_go():
    yield
    tree_of.cache_clear()


def room_of(path):
    """Return the folder or module of the package that a file is in; None for the package itself."""
    if path.is_relative_to(ROOT / "kernels"):
        return "kernels"
    inside = path.relative_to(ROOT / "src/isthmus")
    first = inside.parts[0]
    return None if first == "__init__.py" else first.removesuffix(".py")


def rooms_imported(path):
    """Yield (line, room) of every import of isthmus in a file, late ones included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: {node.lineno}: imports are absolute"
            modules = [
                f"{node.module}.{alias.name}" if node.module == "isthmus" else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "isthmus" and rest:
                yield node.lineno, rest.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_lower_floors_only(path):
    room = room_of(path)
    if room is None:
        return
    assert room in FLOORS, f"{path} is on no floor"
    for line, other in rooms_imported(path):
        assert other in FLOORS, f"{path}:{line} imports {other}, which is on no floor"
        assert other in (room, *LOWEST) or FLOORS[other] < FLOORS[room], (
            f"{path}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
        )


def name_of(path):
    """Return the dotted name of a file's module."""
    root, first = (
        (ROOT / "kernels", ["isthmus", "kernels"])
        if path.is_relative_to(ROOT / "kernels")
        else (ROOT / "src/isthmus", ["isthmus"])
    )
    return ".".join(
        first + [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
    )


def files_imported(path, files):
    """Yield the modules among `files` that a file imports, late imports included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [name for name in (whole, node.module) if name in files][:1]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)


def test_no_files_import_each_other_in_a_circle():
    """An import inside a function hides a circle and does not mend it."""
    files = {name_of(path): path for path in MODULES}
    left = {name: set(files_imported(path, files)) - {name} for name, path in files.items()}
    while free := [name for name in left if not left[name] & left.keys()]:
        for name in free:
            del left[name]
    # What is left imports something that is left: among these files are the circles.
    assert not left, {name: sorted(others & left.keys()) for name, others in left.items()}


def test_public_classes_of_the_planner_have_names_of_their_own():
    seen = {}
    for path in (ROOT / "src/isthmus/planning").glob("*.py"):
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert seen.setdefault(node.name, path) == path, f"{node.name}: {path}"


def test_sentences_of_the_planner_have_one_colon_at_most():
    """A list inside a list is read twice; a field or an argument has a line of its own."""
    for path in (ROOT / "src/isthmus/planning").glob("*.py"):
        for node in ast.walk(tree_of(path)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                text = re.sub(r"`[^`]*`|\{[^}]*\}", "", node.value.value)  # code has colons of its own
                lines = re.sub(r"\n(?= *\w+(?:, \w+)*: )", "\n\n", text)  # an argument's line
                for sentence in re.split(r"\.\s|\n\n", lines):
                    assert len(re.findall(r":\s", sentence)) < 2, f"{path}:{node.lineno}: {sentence}"


def test_planning_knows_no_mpi_and_no_data():
    for path in (ROOT / "src/isthmus/planning").glob("*.py"):
        text = path.read_text()
        assert "mpi4py" not in text
        assert "h5py" not in text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_a_main_program_says_comm_world(path):
    if room_of(path) != "cli":
        launchers_variables = "OMPI_COMM_WORLD_"
        assert "COMM_WORLD" not in path.read_text().replace(launchers_variables, "")


def test_json_is_written_and_read_in_one_place():
    """A manifest reads on its own, as it refuses names that stand twice; a relay runs on its own."""
    users = {
        path.name
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import) and "json" in [alias.name for alias in node.names]
    }
    assert users <= {"json_text.py", "manifest.py", "agreement.py", "tun_relay.py"}


def test_nothing_is_pickled():
    """No lower-case MPI calls, no pickle, no NumPy object files."""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                assert node.attr not in (
                    "allgather",
                    "gather",
                    "scatter",
                    "bcast",
                    "alltoall",
                    "isend",
                    "irecv",
                    "sendrecv",
                ), f"{path}:{node.lineno} {node.attr}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert "pickle" not in names, path


def test_the_packages_are_those_on_the_disk():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"isthmus", "isthmus.kernels"} | {
        "isthmus." + ".".join(path.parent.relative_to(ROOT / "src/isthmus").parts)
        for path in (ROOT / "src/isthmus").rglob("*/__init__.py")
    }
    assert set(declared) == found


def test_every_function_and_class_that_is_public_has_a_docstring_or_is_told_by_its_twin():
    """Kernels are told by `reference`; verbs of compressors and models by their protocol."""
    told_elsewhere = {
        "cpu.py",
        "gpu.py",
        "dense.py",
        "quantized.py",
        "top_k.py",
        "models.py",
        "paced.py",
    }
    for path in MODULES:
        if path.name in told_elsewhere:
            continue
        for node in tree_of(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name}"


def python(program):
    return subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)


def test_importing_isthmus_loads_nothing_heavy():
    done = python(
        "import sys, isthmus; print(*(name for name in ('scipy', 'h5py', 'matplotlib', "
        "'numba', 'mpi4py', 'numpy', 'pydantic', 'jinja2') if name in sys.modules))"
    )
    assert done.stdout.split() == []


def test_a_process_loads_of_scipy_what_it_computes_with():
    """Scipy's parts take a second to import, in each rank of each job: they are where they are used."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in tree_of(path).body:
            named = [node.module] if isinstance(node, ast.ImportFrom) else getattr(node, "names", [])
            named = [getattr(each, "name", each) for each in named]
            assert not any(str(name).split(".")[0] == "scipy" for name in named), f"{path}:{node.lineno}"


def test_planning_runs_without_mpi(tmp_path):
    """On a laptop: a plan must not initialise MPI; nor does one of few sites compile anything."""
    done = python(
        "import sys, isthmus\n"
        "c = isthmus.Cluster.from_toml('experiments/two_sites.toml')\n"
        "isthmus.plan_shards(c, [10] * 9, isthmus.Workload(size=100, batch_size=10,"
        " compressor=isthmus.Int8()))\n"
        "print(*(name for name in ('mpi4py.MPI', 'numba') if name in sys.modules))"
    )
    assert done.stdout == "\n", done.stderr


def test_a_job_loads_no_planner_before_it_needs_one():
    """A site that comes back gets its plan from the others, and a second or two earlier without it."""
    done = python(
        "import sys, mpi4py; mpi4py.rc.initialize = False\n"
        "import isthmus.jobs.train\n"
        "print(*(name for name in ('scipy', 'numba', 'matplotlib', 'torch') if name in sys.modules))"
    )
    assert done.stdout == "\n", done.stderr


def test_every_public_name_is_there_and_nothing_else():
    done = python(
        "import isthmus\n"
        "for name in isthmus.__all__: assert getattr(isthmus, name).__name__.endswith(name)\n"
        "try: isthmus.nonsense\n"
        "except AttributeError as error: print(error)"
    )
    assert done.stdout == "No isthmus attribute nonsense\n", done.stderr


def test_files_are_not_longer_than_a_screenful_of_screens():
    """The kernels of a device excepted: numba's cache sees only helpers in the file of their caller."""
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 370, path


def test_the_environment_of_ranks_is_explicit():
    from isthmus.jobs.launch import rank_command, rank_environment

    environment = rank_environment(EXTRA="1")
    assert environment["EXTRA"] == "1"
    assert environment["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert environment["PATH"] == os.environ["PATH"]
    command = rank_command(3, "program.py", 7)
    assert command[1:3] == ["-n", "3"]
    assert command[-2:] == ["program.py", "7"]
