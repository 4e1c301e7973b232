"""What a user may ask of the benchmarks between ranks, checked before MPI starts."""

from dataclasses import dataclass

from isthmus.compression import COMPRESSORS
from isthmus.registry import ALGORITHMS, algorithm_named

LINKS = ("real", "paced")


@dataclass(frozen=True)
class CollectivesOptions:
    """Which allreduces to measure, and how.

    algorithms: none named: all that the links allow. compressors: as `named_compressor` reads them.
    smallest_nbytes, largest_nbytes: of the float32 vector, whole entries. repetitions: at most so
    many for each result, and fewer, but no less than 2, where they would take more than `seconds`; a
    call of more than twice that counts although it is the first.
    """

    algorithms: tuple[str, ...] = ()
    compressors: tuple[str, ...] = ("none", "int8")
    links: str = "real"
    smallest_nbytes: int = 4
    largest_nbytes: int = 100_000_000
    repetitions: int = 20
    seconds: float = 1.0

    def __post_init__(self):
        for name in self.algorithms:
            algorithm_named(name)
        for text in self.compressors:
            named_compressor(text)
        check_links(self.links)
        check_sizes(self.smallest_nbytes, self.largest_nbytes)
        for name in self.algorithms:
            if self.links == "paced":
                ALGORITHMS[name].check_paced()
            problems = [_problem_with(name, text) for text in self.compressors]
            if all(problems):
                raise ValueError(f"{problems[0]}; change that, or add --compressor none")

    @property
    def combinations(self):
        """The (algorithm, name of its compressor) that go together, on such links."""
        known = [name for name, row in ALGORITHMS.items() if self.links == "real" or not row.unpaced]
        return [
            (name, text)
            for name in self.algorithms or known
            for text in self.compressors
            if _problem_with(name, text) is None
        ]


@dataclass(frozen=True)
class LinksOptions:
    """Which messages to time, and how; the fields are those of CollectivesOptions."""

    links: str = "real"
    smallest_nbytes: int = 4
    largest_nbytes: int = 4_000_000
    repetitions: int = 20
    seconds: float = 0.5

    def __post_init__(self):
        check_links(self.links)
        check_sizes(self.smallest_nbytes, self.largest_nbytes)


def check_links(links):
    """Raise ValueError unless `links` is "real" or "paced"."""
    if links not in LINKS:
        raise ValueError(f"links must be one of {', '.join(LINKS)}, not {links!r}")


def check_sizes(smallest_nbytes, largest_nbytes):
    """Raise ValueError unless both are whole float32 entries and in order."""
    for what, nbytes in (("smallest", smallest_nbytes), ("largest", largest_nbytes)):
        if nbytes < 4 or nbytes % 4:
            raise ValueError(f"{what} must be a positive multiple of 4 bytes, not {nbytes}")
    if smallest_nbytes > largest_nbytes:
        raise ValueError(f"smallest, {smallest_nbytes}, is more than largest, {largest_nbytes}")


def sizes_nbytes(smallest_nbytes, largest_nbytes):
    """Return the smallest, 4 times it, and so on, and at last the largest: bytes."""
    sizes, nbytes = [], smallest_nbytes
    while 2 * nbytes < largest_nbytes:
        sizes.append(nbytes)
        nbytes *= 4
    return [*sizes, largest_nbytes]


def named_compressor(text):
    """Return the compressor that `text` names, as in "int8" or "top_k:ratio=0.05"; None for "none".

    Raises ValueError with what would do.
    """
    name, _, arguments = text.partition(":")
    if name == "none" and not arguments:
        return None
    if name not in COMPRESSORS:
        raise ValueError(f"compressor must be one of none, {', '.join(COMPRESSORS)}, not {text!r}")
    known, given = COMPRESSORS[name].__dataclass_fields__, {}
    for item in filter(None, arguments.split(",")):
        key, _, value = item.partition("=")
        if key not in known or not value:
            raise ValueError(f"compressor {text!r}: write KEY=VALUE with a key of {', '.join(known)}")
        given[key] = _number_or_word(value, type(known[key].default))
    try:
        return COMPRESSORS[name](**given)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"compressor {text!r}: {problem}") from None


def _problem_with(algorithm, compressor):
    """Return why the algorithm cannot use the compressor, by their names, or None."""
    try:
        algorithm_named(algorithm).check_compressor(named_compressor(compressor))
    except ValueError as refused:
        return str(refused)
    return None


def _number_or_word(value, kind):
    """Return `value` as an int, a float or a str, whichever the argument is by default.

    What is None by default is a whole number where it is given.
    """
    try:
        return int(value) if kind is type(None) else kind(value) if kind in (int, float) else value
    except ValueError:
        return value
