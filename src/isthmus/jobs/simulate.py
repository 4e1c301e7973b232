"""Steps of a cluster file on any machine: its times, how it scales, and whether int8 pays."""

import statistics
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SettingsError
from isthmus.files import write_bytes, write_text
from isthmus.folders.reading import read_metrics
from isthmus.jobs.choosing import arrange, choose, settle
from isthmus.jobs.clients import client_shards
from isthmus.jobs.failing import failure_words
from isthmus.jobs.plan import plan_run, settled_plan, workload_of
from isthmus.jobs.settings import RunSettings
from isthmus.json_text import dumps
from isthmus.pages.pictures import draw_scaling
from isthmus.shards.shard_file import ShardSet
from isthmus.spare import if_possible
from isthmus.timing.scaling import Study, edge_counts
from isthmus.timing.simulation import Stragglers, simulate
from isthmus.timing.time_model import Workload
from isthmus.toml_files import read_toml

LINK_FACTORS = tuple(float(f"{factor:.3g}") for factor in np.geomspace(0.01, 100, 9))


def simulate_file(
    path,
    *,
    steps,
    local_steps,
    buckets,
    stragglers,
    seed,
    size,
    batch_size,
    edge_sites,
    output,
    other_cluster=None,
    failing=None,
):
    """Simulate a cluster file or a run's, and how it scales; return a dict of all results.

    local_steps: from one exchange to the next; None takes the run's.
    stragglers: the coefficient of variation of a rank's computing, or the folder of a run from whose
    steps factors are drawn. size, batch_size: of a step, None takes the run's. edge_sites: the most
    to try; 0 leaves scaling out. output: a folder for the pictures and the numbers, or None.
    other_cluster: a cluster file to take instead of the run's. failing: how often ranks and sites fail,
    and what that takes, a `Failing`; None leaves it out.
    """
    cluster, workload, strategy = _cluster_and_workload(path, other_cluster, size, batch_size)
    options = {
        "steps": steps,
        "local_steps": local_steps or round(workload.exchanged_share / workload.exchanges_per_step),
        "buckets": buckets,
        "stragglers": read_stragglers(stragglers),
        "seed": seed,
    }
    made = simulate(cluster, workload, **options)
    table = {
        "file": str(path),
        "workload": {
            "size": workload.size,
            "batch_size": workload.batch_size,
            "algorithm": workload.algorithm,
            "compressor": None if workload.compressor is None else repr(workload.compressor),
        },
        "options": options | {"stragglers": stragglers},
        "strategy": strategy,
        "simulation": asdict(made),
    }
    if edge_sites:
        study = Study(cluster, workload, **options)
        by_sites = study.edge_sites(edge_counts(edge_sites))
        stops = study.stops_paying(by_sites)
        table["scaling"] = {
            "edge_sites": [asdict(point) for point in by_sites],
            "link_rates": [asdict(point) for point in study.link_rates(LINK_FACTORS)],
            "int8_stops_paying_at": stops,
            "answer": int8_in_words(stops, edge_sites, cluster),
        }
    if failing is not None:
        round_seconds = options["local_steps"] * made.step_seconds  # what a failure undoes is a round
        table["failures"] = failing.told(made.ranks, len(cluster.sites), round_seconds)
    if output is not None:
        table["output"] = _write(Path(output), table)
    return table


def read_stragglers(text):
    """Return the Stragglers that `text` names: a number, or a run's folder with metrics.jsonl.

    A run's factors are its steps' computing over their median, of the rank that was waited for.
    """
    try:
        return Stragglers(variation=float(text))
    except ValueError as problem:
        if "variation" in str(problem):
            raise SettingsError(f"--stragglers {text}: {problem}") from None
    path = Path(text) / "metrics.jsonl"
    if not path.exists():
        raise SettingsError(
            f"{path}: no such file; --stragglers takes a number such as 0.1, or the folder of a run"
        )
    try:
        computed = [line["terms"]["compute"] for line in read_metrics(path) if line["kind"] == "step"]
        middle = statistics.median(computed)
        return Stragglers(measured=tuple(seconds / middle for seconds in computed))
    except (ValueError, KeyError, ZeroDivisionError):
        raise SettingsError(
            f"{path}: does not tell what its steps computed; give the folder of a run that has made some"
        ) from None


def int8_in_words(stops, most, cluster):
    """Return the answer to: from how many edge sites on does int8 stop paying?"""
    measured = all(site.encode_bytes_per_second < float("inf") for site in cluster.sites)
    hint = (
        ""
        if measured
        else (
            "; the cluster file does not say what encoding takes, so it counts as "
            "nothing: `isthmus calibrate` measures it"
        )
    )
    if stops is None:
        return f"int8 pays at every number of edge sites tried, up to {most}{hint}"
    if stops <= 1:
        return f"int8 does not pay at any number of edge sites from 1 to {most}{hint}"
    return f"int8 pays up to {stops - 1} edge sites; from {stops} on it stops paying{hint}"


def simulation_words(table):
    """Return what to print: the times of a step, the links' use, and the scaling's answer."""
    made, steps = table["simulation"], table["simulation"]["steps"]
    lines = [
        f"{made['ranks']} ranks, {steps} steps: {made['seconds']:.3f} s, "
        f"{made['samples_per_second']:.0f} samples/s",
        f"a step: {1e3 * made['step_seconds']:.2f} ms (computing "
        f"{1e3 * made['compute_seconds'] / steps:.2f}, waiting for the slowest "
        f"{1e3 * made['wait_seconds'] / steps:.2f}, exchange "
        f"{1e3 * made['exchange_seconds'] / steps:.2f}, update "
        f"{1e3 * made['update_seconds'] / steps:.2f})",
    ]
    busiest = sorted(made["utilisation"].items(), key=lambda item: -item[1])[:4]
    lines += (
        [f"links in use: {', '.join(f'{pipe} {100 * share:.0f} %' for pipe, share in busiest)}"]
        if busiest
        else []
    )
    lines += [table["scaling"]["answer"]] if "scaling" in table else []
    lines += failure_words(table["failures"]) if "failures" in table else []
    if table["strategy"]:
        lines.append(
            f"that is of sites that all wait for each other with equal shares; {table['strategy']}"
        )
    return lines + ([f"written: {', '.join(table['output'])}"] if "output" in table else [])


def _cluster_and_workload(path, other_cluster, size, batch_size):
    """Return what a cluster file or a run's settings ask for; options win over settings.

    And what its plan says of rounds that are not simulated: of clients, or of changes that arrive.
    """
    told = None
    if "cluster" in read_toml(path, SettingsError):
        settings = RunSettings.from_toml(path)
        if other_cluster:
            settings = settings.with_cluster(other_cluster)
        cluster = settings.read_cluster()
        settings = choose(settings, cluster)[0]
        cluster = arrange(settings, cluster)[0]
        shards = _shards(settings, cluster)
        settings = _settled(settings, cluster, shards)
        workload, rounds = workload_of(settings, shards), settings.make_strategy()
        if shards is not None and (rounds.plays_clients or rounds.without_rounds):
            told = plan_run(settings, cluster, shards).sentences[-1]
    elif other_cluster:
        raise SettingsError(f"{path}: is a cluster file already; --cluster goes with a run's settings")
    else:
        cluster, workload = Cluster.from_toml(path), Workload(size=1_000_000)
    given = {"size": size, "batch_size": batch_size}
    return cluster, replace(workload, **{key: value for key, value in given.items() if value}), told


def _shards(settings, cluster):
    """Return the ShardSet that a run learns from; None where its data are not here."""
    if not settings.data.train.is_dir():
        return None
    return client_shards(
        settings, ShardSet.open(settings.data.train, settings.security.keys), cluster.size
    )


def _settled(settings, cluster, shards):
    """Return the settings with nothing left open, as the run would have them where its data are here."""
    settled, why = settle(settings, cluster)
    if why is None or shards is None:
        return settled
    return settled_plan(settings, cluster, shards)[0]


def _write(folder, table):
    """Write numbers and pictures into `folder`; return their paths."""
    write_text(folder / "simulation.json", dumps(table, indent=1))
    paths = [folder / "simulation.json"]
    if "scaling" in table:
        for kind in ("svg", "png"):
            path = folder / f"scaling.{kind}"
            paths.append(
                if_possible(
                    lambda path=path, kind=kind: _draw(path, table["scaling"], kind),
                    path,
                    f"the numbers are in {paths[0]}",
                )
            )
    return [str(path) for path in paths if path]


def _draw(path, scaling, kind):
    """Write the picture of `scaling` to `path`, which is returned."""
    write_bytes(path, draw_scaling(scaling, kind))
    return path
