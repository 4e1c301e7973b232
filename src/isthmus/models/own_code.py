"""A user's own functions: found by "module:function", and what they raise told in one line.

Modules are looked for beside the settings that name them, and then on Python's path.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from isthmus.errors import IsthmusError, ModelError
from isthmus.extras import how_to_install

ISTHMUS = Path(__file__).resolve().parent.parent

_loaded: dict[str, str] = {}
"""Name -> digest of each module that was imported from a settings file's folder."""


def is_own(kind: Any) -> bool:
    """Tell whether `kind` names a function of the user's own, as "my_models:make_net" does."""
    return isinstance(kind, str) and ":" in kind


@dataclass(frozen=True)
class OwnCode:
    """Modules of a user. folder: that of the settings which name them; None: Python's path alone."""

    folder: Path | None = None

    def sources(self, *references: str) -> dict[str, str]:
        """Return file -> SHA-256 of the modules that "module:function" names, and of those beside them
        that they import. Reads them and runs nothing.

        Files are named from the folder that they were found in. ModelError if one is not there.
        """
        found: dict[str, str] = {}
        for reference in references:
            self._read(_parts(reference)[0], found)
        return dict(sorted(found.items()))

    def find(self, reference: str) -> Callable[..., Any]:
        """Return what "module:function" names; ModelError if it is not there or cannot be imported."""
        name, path = _parts(reference)
        file, _ = self._file(name)
        with self.running(f"importing {name}"):
            found: Any = self._import(name, file)
        for attribute in path.split("."):
            try:
                found = getattr(found, attribute)
            except AttributeError:
                close = difflib.get_close_matches(attribute, dir(found), n=1)
                raise ModelError(
                    f"{file}: there is no {attribute!r} in it; "
                    + (f"did you mean {close[0]!r}?" if close else "write it, or name another function")
                ) from None
        if not callable(found):
            raise ModelError(
                f"{file}: {path!r} is of type {type(found).__name__}; name a function or a class"
            )
        return found

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Turn what a user's code raises into a ModelError: what, its last line, its file and line.

        Memory that has run out stays a MemoryError, also where torch says so in its own words.
        """
        try:
            yield
        except (IsthmusError, MemoryError):
            raise
        except (Exception, SystemExit) as problem:
            if type(problem).__module__.startswith("mpi4py"):  # of what is sent meanwhile
                raise
            if "can't allocate memory" in str(problem) or type(problem).__name__ == "OutOfMemoryError":
                raise MemoryError(str(problem).partition("\n")[0]) from problem
            raise self._told(what, problem) from problem

    def _told(self, what, problem):
        if isinstance(problem, ModuleNotFoundError) and problem.name == "torch":
            return ModelError(
                f"{what} needs PyTorch, the extra isthmus[torch], which is not installed; "
                f"{how_to_install('torch')}"
            )
        words = " ".join(traceback.format_exception_only(problem)[-1].split())
        if isinstance(problem, SyntaxError) and problem.filename:
            return ModelError(
                f"{what} raises {words} at {problem.filename}:{problem.lineno}; mend that line"
            )
        frames = [
            frame
            for frame in traceback.extract_tb(problem.__traceback__)
            if not frame.filename.startswith("<") and ISTHMUS not in Path(frame.filename).parents
        ]
        own = [frame for frame in frames if not _is_library(Path(frame.filename))]
        last = (own or frames)[-1:]
        place = f" at {last[0].filename}:{last[0].lineno} ({last[0].name})" if last else ""
        return ModelError(f"{what} raises {words}{place}; mend it there, or what it is given")

    def _read(self, name, found):
        """Put into `found` the digests of the module `name` and of those beside it that it imports."""
        file, root = self._file(name)
        packages = [name[:place] for place, letter in enumerate(name) if letter == "."]
        above = [(package, _file_in(package, [str(root)])) for package in packages]
        waiting = [(name, file), *(each for each in above if each[1] is not None)]
        while waiting:
            name, file = waiting.pop()
            label = file.relative_to(root).as_posix() if root in file.parents else file.name
            if label in found:
                continue
            text = file.read_bytes()
            found[label] = hashlib.sha256(text).hexdigest()
            if file.suffix == ".py" and not _is_library(file):
                for imported in _imports(text, name, file.name == "__init__.py"):
                    beside = _file_in(imported, [str(root)])
                    if beside is not None:
                        waiting.append((imported, beside))

    def _file(self, name):
        """Return (the module's file, the folder that its top-level name was found in)."""
        top = name.partition(".")[0]
        if self.folder is not None:
            file = _file_in(name, [str(self.folder)])
            if file is not None:
                return file, self.folder
        spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
        places = [None] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        first = next((Path(place) for place in places if place and Path(place).exists()), None)
        if first is not None:
            root = first.parent.parent if first.name == "__init__.py" else first.parent
            file = _file_in(name, [str(root)])
            if file is not None:
                return file, root
        where = f"in {self.folder} or " if self.folder else ""
        raise ModelError(
            f"{name}: no module of that name is {where}on Python's path; put {top}.py beside the "
            "settings, or set PYTHONPATH"
        )

    def _import(self, name, file):
        if self.folder is None or self.folder not in file.parents:
            return importlib.import_module(name)
        here = str(self.folder)
        self._forget_others(name)
        sys.path.insert(0, here)
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(here)
            if here not in sys.path:
                sys.path.append(here)  # for what it imports later

    def _forget_others(self, name):
        """Forget modules of these names that were imported from another folder, or have changed."""
        digests: dict[str, str] = {}
        self._read(name, digests)
        marks, other = {}, False
        for label, digest in digests.items():
            name, file = label.removesuffix(".py").removesuffix("/__init__"), self.folder / label
            name = name.replace("/", ".")
            marks[name] = f"{file} {digest}"
            known = sys.modules.get(name)
            if known is None:
                continue
            there = getattr(known, "__file__", None)
            if name not in _loaded and (there is None or Path(there).resolve() != file.resolve()):
                raise ModelError(
                    f"{file}: Python knows another module of the name {name!r} ({there}); "
                    "give this one another name"
                )
            other |= name in _loaded and _loaded[name] != marks[name]
        if other:  # all of them: what one has imported from another it has kept
            for name in marks.keys() & _loaded.keys():
                sys.modules.pop(name, None)
        _loaded.update(marks)


def _parts(reference):
    """Return (module, attribute) of "module:attribute"."""
    module, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ModelError(f'{reference!r}: write it as "module:function", as in "my_models:make_net"')
    return module, attribute


def _file_in(name, path):
    """Return the file of the module `name` in the folders `path`; None if it is not there."""
    parts, spec = name.split("."), None
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


def _is_library(file):
    """Tell whether a file is of an installed package or of Python itself."""
    return bool({"site-packages", "dist-packages"} & set(file.parts)) or str(file).startswith(
        sysconfig.get_path("stdlib")
    )


def _imports(text, name, is_package):
    """Yield the modules that the source `text` of module `name` names in its imports."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # told when it is imported
        return
    parents = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names if alias.name != "*")]
        else:
            continue
        for whole in filter(None, names):
            parts = whole.split(".")
            yield from (".".join(parts[: number + 1]) for number in range(len(parts)))
