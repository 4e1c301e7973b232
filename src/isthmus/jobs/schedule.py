"""`isthmus schedule`: a graph of tasks from a file, planned, and run where that is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from isthmus.cluster.cluster import Cluster
from isthmus.cluster.cluster_file import NotNegative
from isthmus.errors import PlanError, SettingsError
from isthmus.files import write_bytes, write_text
from isthmus.json_text import dumps
from isthmus.models.own_code import OwnCode
from isthmus.pages.gantt import draw_schedule
from isthmus.planning.tasks.graph import make_graph
from isthmus.planning.tasks.schedule import METHODS, schedule_graph
from isthmus.spare import if_possible
from isthmus.terminal import table_of
from isthmus.toml_files import FrozenModel, check_table, nearest, read_toml

Name = Annotated[str, Field(min_length=1)]
Place = int | str


class ClusterPart(FrozenModel):
    """Where tasks run. links: "paced" holds messages to the rates of the file, on one machine.

    compute: "paced" has a task with a function take as long as was planned, where that is longer.
    """

    file: Path
    links: Literal["real", "paced"] = "real"
    compute: Literal["real", "paced"] = "real"


class TaskTable(FrozenModel):
    """One `[[task]]`: what it takes, where it may run, and the function that it is."""

    name: Name
    units: NotNegative | None = None
    seconds: NotNegative | tuple[NotNegative, ...] | None = None
    pinned: Place | tuple[Place, ...] | None = None
    function: str | None = None

    @model_validator(mode="after")
    def _one_way_of_saying_what_it_takes(self):
        if (self.units is None) == (self.seconds is None):
            raise ValueError(f"task {self.name!r}: give either units or seconds")
        return self

    def seconds_of(self, cluster):
        """Return what each rank takes for it."""
        if self.units is not None:
            return [self.units / rate for rate in cluster.rates]
        if not isinstance(self.seconds, tuple):
            return [self.seconds] * cluster.size
        if len(self.seconds) != cluster.size:
            raise ValueError(
                f"task {self.name!r}: seconds has {len(self.seconds)} numbers for {cluster.size} ranks; "
                "give one number, or one a rank"
            )
        return list(self.seconds)


class EdgeTable(FrozenModel):
    """One `[[edge]]`: what a task passes on to another."""

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    nbytes: Annotated[int, Field(ge=0)]


class GraphFile(FrozenModel):
    """A file of tasks, as it is written."""

    cluster: ClusterPart
    method: str = "best"
    task: Annotated[tuple[TaskTable, ...], Field(min_length=1)]
    edge: tuple[EdgeTable, ...] = ()

    @model_validator(mode="after")
    def _names_are_known_and_said_once(self):
        if self.method not in ("best", *METHODS):
            raise ValueError(f"method must be one of best, {', '.join(METHODS)}, not {self.method!r}")
        seen: set[object] = set()
        names = [task.name for task in self.task]
        for each in [*names, *((edge.source, edge.target) for edge in self.edge)]:
            if each in seen:
                what = (
                    f"edge {each[0]!r} to {each[1]!r}" if isinstance(each, tuple) else f"task {each!r}"
                )
                raise ValueError(f"{what} stands there twice; take one out, or rename it")
            seen.add(each)
        for name in (name for edge in self.edge for name in (edge.source, edge.target)):
            if name not in names:
                close = nearest(name, names) or f"tasks are {', '.join(names)}"
                raise ValueError(f"an edge names task {name!r}, which is not there; {close}")
        return self


class Graph:
    """The file `path`, read: its tasks, their cluster, and what names mean. Raises SettingsError,
    ClusterError or PlanError in one line."""

    def __init__(self, path, method=None):
        self.path = Path(path)
        table = read_toml(path, SettingsError)
        if "site" in table:
            raise SettingsError(
                f"{path}: is a cluster file; give a file of tasks, which names it under [cluster] file"
            )
        if method is not None:
            table["method"] = method
        self.file = check_table(GraphFile, table, path, SettingsError)
        self.cluster_file = self.path.parent / self.file.cluster.file
        self.cluster = Cluster.from_toml(self.cluster_file)
        number = {task.name: index for index, task in enumerate(self.file.task)}
        try:
            self.graph = make_graph(
                self.cluster,
                [task.seconds_of(self.cluster) for task in self.file.task],
                {(number[e.source], number[e.target]): e.nbytes for e in self.file.edge},
                {number[t.name]: t.pinned for t in self.file.task if t.pinned is not None},
                names=number,
            )
        except PlanError as problem:
            raise PlanError(f"{path}: {problem}") from None
        except ValueError as problem:
            raise SettingsError(f"{path}: {problem}") from None

    def functions(self):
        """Return each task's own function, None where it names none. Raises ModelError."""
        code = OwnCode(self.path.resolve().parent)
        return [task.function and code.find(task.function) for task in self.file.task]


def plan_tasks(path, method=None, compare=False):
    """Return (Graph, Schedule, the dict that tells it) of the file `path`.

    compare: whether it also tells what the other methods' schedules take.
    """
    made = Graph(path, method)
    schedule = schedule_graph(made.graph, made.file.method)
    names, sites = made.graph.names, made.cluster.site_of_rank
    table: dict[str, Any] = {
        "file": str(path),
        "cluster": str(made.cluster_file),
        **{
            key: getattr(schedule, key)
            for key in ("method", "seconds", "lower_bound_seconds", "gap", "proved", "promised_seconds")
        },
        "tasks": [
            {
                "name": name,
                "site": made.cluster.names[sites[rank]],
                "rank": rank,
                "start_seconds": start,
                "end_seconds": end,
            }
            for name, rank, start, end in zip(names, schedule.rank_of, schedule.start, schedule.end)
        ],
        "messages": [
            each._asdict() | {"source": names[each.source], "target": names[each.target]}
            for each in schedule.messages
        ],
    }
    if compare:
        table["methods"] = {
            name: {"seconds": other.seconds, "promised_seconds": other.promised_seconds}
            for name in METHODS
            for other in [schedule_graph(made.graph, name)]
        }
    return made, schedule, table


def with_measured(table, times):
    """Return the table of `plan_tasks` with what was measured: float64[tasks, 2], starts and ends."""
    tasks = [
        task | {"measured_start_seconds": start, "measured_end_seconds": end}
        for task, (start, end) in zip(table["tasks"], times.tolist())
    ]
    return table | {"tasks": tasks, "measured_seconds": float(times.max())}


def unshared_pipes(schedule):
    """Return the pipes that several ranks send to several others on, who paced would not take turns."""
    ends: dict[str, tuple[set, set]] = {}
    for each in schedule.messages:
        for pipe in each.pipes:
            sources, targets = ends.setdefault(pipe, (set(), set()))
            sources.add(schedule.rank_of[each.source])
            targets.add(schedule.rank_of[each.target])
    return [pipe for pipe, both in ends.items() if min(map(len, both)) > 1]


def schedule_words(table: Mapping[str, Any]) -> list[Any]:
    """Return what to print: a row a task, what the whole takes, and how good that is."""
    measured = "measured_seconds" in table
    columns = ["site", "task", "rank", "start, ms", "end, ms"]
    columns += ["measured start, ms", "measured end, ms"] * measured
    rows = []
    for task in sorted(table["tasks"], key=lambda each: (each["rank"], each["start_seconds"])):
        keys = ["start_seconds", "end_seconds"]
        keys += ["measured_start_seconds", "measured_end_seconds"] * measured
        times = [f"{1e3 * task[key]:.2f}" for key in keys]
        rows.append(([task["site"], task["name"], task["rank"], *times], ""))
    whole, bound = table["seconds"], table["lower_bound_seconds"]
    lines = [
        f"{table['method']}: {1e3 * whole:.2f} ms, "
        + (
            "the shortest there is"
            if table["proved"]
            else f"no schedule takes less than {1e3 * bound:.2f}, gap {100 * table['gap']:.1f} %"
        )
    ]
    if table["promised_seconds"] < whole * (1 - 1e-9):
        lines.append(
            "they carry one message after another; with links that carry all at once it would be "
            f"{1e3 * table['promised_seconds']:.2f} ms"
        )
    lines += [
        f"  {name}: {1e3 * other['seconds']:.2f} ms, {other['seconds'] / whole:.3f} times as long; "
        f"promised {1e3 * other['promised_seconds']:.2f}"
        for name, other in table.get("methods", {}).items()
    ]
    if measured:
        ratio = table["measured_seconds"] / whole if whole else 1.0
        lines.append(
            f"predicted {1e3 * whole:.2f} ms, measured {1e3 * table['measured_seconds']:.2f} ms "
            f"({100 * (ratio - 1):+.1f} %)"
        )
    layout = [(title, "left" if title in ("site", "task") else "right") for title in columns]
    lines += [f"written: {', '.join(table['output'])}"] if table.get("output") else []
    return [table_of(layout, rows), *lines]


def write_schedule(folder, table):
    """Write a schedule's numbers and pictures into `folder`; return the table with their paths."""
    folder = Path(folder)
    numbers = folder / "schedule.json"
    write_text(numbers, dumps(table, indent=1))
    paths = [str(numbers)]
    for kind in ("svg", "png"):
        path = folder / f"schedule.{kind}"

        def draw(path=path, kind=kind):
            write_bytes(path, draw_schedule(table, kind))
            return str(path)

        paths.append(if_possible(draw, path, f"the numbers are in {numbers}"))
    return table | {"output": [path for path in paths if path]}


def run_file(comm, path, method=None, compare=False, output=None, tell=print):
    """Plan the file `path` and run its tasks, each on its rank; return the table. Collective.

    output: a folder for numbers and pictures, or None.
    """
    from isthmus.jobs.running_tasks import run_tasks
    from isthmus.links.agreement import from_root, together
    from isthmus.links.tiers import split_tiers

    made, schedule, table = together(comm, lambda: plan_tasks(path, method, compare))
    with split_tiers(comm, made.cluster) as tiers:
        functions = together(tiers.world, made.functions)
        paced = made.file.cluster.links == "paced"
        if paced:
            tell("links are paced: held to the rates of the cluster file")
            if pipes := unshared_pipes(schedule):
                tell(
                    f"paced, messages of several ranks to several others on {', '.join(pipes)} do not "
                    "wait for each other; on real links they do"
                )
        held = made.file.cluster.compute == "paced"
        if held:
            tell("computing is paced: a task takes as long as was planned, or longer")
        if None in functions:
            tell("tasks without a function wait as long as was planned, and send zeros")
        times = run_tasks(tiers.paced() if paced else tiers, made.graph, schedule, functions, held)
        table = with_measured(table, times)
        if output is not None:
            table = from_root(comm, lambda: write_schedule(output, table))
    return table
