"""Measure a cluster: write its file again with the rates, and the seconds by size, that were found."""

import time
from pathlib import Path

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from isthmus.cluster.cluster import Cluster
from isthmus.cluster.measured import Calibration, Host
from isthmus.compression import COMPRESSORS
from isthmus.compression.dense import Dense
from isthmus.compression.low_rank import LowRank
from isthmus.devices import array_library
from isthmus.files import check_folder
from isthmus.folders.pacing import link_not_held, ranks_not_held
from isthmus.jobs.choosing import choose
from isthmus.jobs.preparation import check_shapes, open_where_seen, opened_job
from isthmus.jobs.scaling import given_as
from isthmus.jobs.shared_model import shared_model
from isthmus.links.agreement import from_root, gather_json, together
from isthmus.measuring.computing import (
    VECTOR_NBYTES,
    add_bytes_per_second,
    busy_share,
    coding_seconds,
    gradient_seconds,
    host_copy_bytes_per_second,
    memory_bytes_per_second,
    own_message_seconds,
    update_seconds,
)
from isthmus.measuring.contenders import contenders
from isthmus.measuring.loop import LoopSeconds, loop_seconds
from isthmus.measuring.messages import NBYTES, SMALL_ENTRIES, allreduce_seconds, way_seconds
from isthmus.measuring.mpi_algorithm import allreduce_algorithm
from isthmus.measuring.passes import pass_table
from isthmus.registry import ALGORITHMS
from isthmus.testbed import on_testbed
from isthmus.timing.fits import fit_link, fit_table, rounded
from isthmus.timing.passes import passes_of
from isthmus.timing.time_model import mpi_seconds, predict_allreduce
from isthmus.training.optimisers import OPTIMISERS
from isthmus.training.optimisers.of_torch import OfTorch

MESSAGES_SECONDS = 14.0
"""For all messages of all links and networks together, where single ones are not slow."""
OVERHEAD_SECONDS = 1.0
"""For what allreduces take whatever their size, each algorithm."""
CODING_SECONDS = 0.05
"""For each length of vector, each compressor, and each of encoding and decoding."""
SHORT_NBYTES = 60 * 1024
"""Messages up to this length are sent at once: under the eager limit of MPI over TCP."""
WHOLE = 2**30


def calibrate(comm, settings_path, output, repetitions, tell):
    """Measure ranks and links of the run's cluster and write a cluster file to `output`.

    Rates are those of the run's own model on samples of its data's shape, all ranks computing at
    once; those of compressors are the leaders', all at once. Links and sites' networks are measured
    both ways at once, by size. Collective; returns the new file's table on every rank.
    """
    with opened_job(comm, settings_path) as (settings, tiers), threadpool_limits(settings.run.threads):
        from_root(
            tiers.world,
            lambda: check_folder(Path(output).parent, "name another file with --output"),
            tiers.home,
        )
        shared_model(tiers.world, settings)
        wanted, (settings, _) = settings, choose(settings, tiers.cluster)
        table = tiers.cluster.to_table()
        measure_ranks(tiers, settings, repetitions, table, tell)
        measure_updates(tiers, settings, repetitions, table, tell)
        measure_coding(tiers, settings, repetitions, table, tell)
        measure_passes(tiers, settings, repetitions, table, tell)
        kind = "emulated" if on_testbed() else settings.cluster.links
        measure_ways(tiers, repetitions, table, kind, tell)
        hosts = hosts_of(tiers.world)
        table["calibration"] = from_root(
            tiers.world,
            lambda: Calibration(
                made=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                ranks=comm.size,
                mpi_library=MPI.Get_library_version().partition(",")[0],
                mpi_algorithm=allreduce_algorithm(),
                hosts=hosts,
            ).model_dump(mode="json", exclude_none=True),
            tiers.home,
        )
        measure_allreduces(tiers, repetitions, table, settings.cluster.links, tell)
        if wanted.allreduce.algorithm == "auto":
            tell("measuring the allreduces that may be fastest, by size")
            table["calibration"]["contenders"] = contenders(tiers, wanted, repetitions, Cluster(table))
        measured = Cluster(table, source=output)
        from_root(tiers.world, lambda: measured.to_toml(output), tiers.home)
        return measured.to_table()


def measure_ranks(tiers, settings, repetitions, table, tell):
    """Put into `table` each rank's samples per second, and each site's adding, memory and messages."""
    world, cluster, model = tiers.world, tiers.cluster, settings.make_model()
    library = array_library(tiers.device)
    tell("measuring the ranks' memory and messages, all at once")
    measured = gather_json(
        world,
        {
            "add_bytes_per_second": add_bytes_per_second(model.size, repetitions, library),
            "memory_bytes_per_second": memory_bytes_per_second(repetitions),
            "host_copy_bytes_per_second": host_copy_bytes_per_second(repetitions, library),
            "message_seconds": own_message_seconds(world, repetitions),
        },
    )
    tell("measuring the ranks: gradients of the run's model, all ranks at once")
    computing = compute_fits(tiers, settings, model, repetitions, library)
    paced = settings.cluster.compute == "paced"
    if paced:
        tell("computing is paced: the file keeps the rates of the cluster file")
        for words in ranks_not_held(cluster, computing, settings.training.batch_size):
            tell(f"not held: {words}")
    for site in table["site"]:
        ranks = cluster.ranks_of_site(site["name"])
        for key, slowest in (
            ("add_bytes_per_second", min),
            ("memory_bytes_per_second", min),
            ("host_copy_bytes_per_second", min),
            ("message_seconds", max),
        ):
            site[key] = rounded(slowest(measured[rank][key] for rank in ranks))
        if not paced:
            site["samples_per_second"] = [rounded(computing[r].bytes_per_second) for r in ranks]
            site["fixed_seconds"] = rounded(max(computing[r].latency_seconds for r in ranks))


def measure_updates(tiers, settings, repetitions, table, tell):
    """Put into `table` what updates take by optimiser and size, and Python's own time of a step.

    The run's own optimiser at the run's own size is asked of the training loop.
    """
    size, library = settings.make_model().size, array_library(tiers.device)
    own, name = settings.make_optimiser(), settings.workload().optimiser
    tell("measuring the updates of the parameters, all ranks at once")
    loop = together(
        tiers.world, lambda: loop_seconds(size, own, settings.training.clip_norm, repetitions, library)
    )
    plain = settings.training.make_optimiser()
    named = {repr(kind): kind for kind in (plain, *(kind() for kind in OPTIMISERS.values()))}
    if isinstance(plain, OfTorch):  # that is of the model's own tensors
        del named[repr(plain)]
    rows = [
        [update_seconds(kind, nbytes, CODING_SECONDS, repetitions, library) for nbytes in VECTOR_NBYTES]
        for kind in named.values()
    ]
    measured = gather_json(tiers.world, [loop._asdict(), rows])
    for site in table["site"]:
        found = [measured[rank] for rank in tiers.cluster.ranks_of_site(site["name"])]
        update, compute, python = (
            rounded(max(loop[phase] for loop, _ in found)) for phase in LoopSeconds._fields
        )
        site["python_seconds"] = python
        if settings.cluster.compute != "paced":
            site["fixed_seconds"] = rounded(site["fixed_seconds"] + compute)
        by_size = {
            kind: dict(zip(VECTOR_NBYTES, map(rounded, row)))
            for kind, row in zip(named, np.max([rows for _, rows in found], axis=0))
        }
        by_size[name] = dict(sorted((by_size.get(name, {}) | {4 * size: update}).items()))
        site["update"] = [
            {"optimiser": kind, "nbytes": list(seconds), "seconds": list(seconds.values())}
            for kind, seconds in by_size.items()
        ]


def hosts_of(world):
    """Return the job's Hosts, each with as many cores as its ranks had together, all at once busy."""
    everyone = gather_json(world, [MPI.Get_processor_name(), busy_share(world)])
    names = dict.fromkeys(name for name, _ in everyone)
    ranks = {name: [rank for rank, (here, _) in enumerate(everyone) if here == name] for name in names}
    return tuple(
        Host(ranks=tuple(mine), cores=rounded(sum(everyone[rank][1] for rank in mine)))
        for mine in ranks.values()
    )


def compute_fits(tiers, settings, model, repetitions, library):
    """Return a fit of seconds = fixed + samples / rate for each rank."""
    world = tiers.world
    shards, _ = open_where_seen(tiers, settings.data.train, settings.security.keys)
    together(world, lambda: check_shapes(model, shards, settings.data.scale))
    shapes = next(
        shape
        for shape in gather_json(
            world,
            shards
            and {name: [list(shape), str(dtype)] for name, (shape, dtype) in shards.arrays.items()},
        )
        if shape
    )
    share = max(2, settings.training.batch_size // world.size)
    sizes = (max(1, share // 2), share, 2 * share)
    draw = np.random.default_rng(0)
    features, targets = (
        draw.integers(0, _beyond(shape, dtype), (sizes[-1], *shape)).astype(dtype)
        for shape, dtype in shapes.values()
    )
    features = features.astype(given_as(settings.data.scale, features.dtype), copy=False)
    seconds = gradient_seconds(world, model, features, targets, sizes, repetitions, library)
    return [fit_link(sizes, row) for row in seconds]


def _beyond(shape, dtype):
    """Return the number below which all made-up numbers are: whole ones may be words or classes."""
    return 2 if shape == [] or (dtype != "uint8" and np.dtype(dtype).kind in "iu") else 255


def measure_coding(tiers, settings, repetitions, table, tell):
    """Put into `table` what encoding and decoding take on the leaders, for every compressor.

    A site's own rates are those of the run's compressor, for a vector as long as the run's gradient.
    """
    own, size = settings.make_compressor() or Dense(), settings.make_model().size
    kinds = [kind for kind in COMPRESSORS.values() if tiers.device == "cpu" or kind is not LowRank]
    every = [own, *(kind() for kind in kinds), Dense("float16"), Dense("bfloat16")]
    tell("measuring the compressors on the leaders, all leaders at once")
    leads = tiers.world.rank in {tiers.cluster.ranks_of_site(name)[0] for name in tiers.cluster.names}
    library = array_library(tiers.device)
    mine = together(
        tiers.world,
        lambda: (
            [coding(compressor, repetitions, library) for compressor in dict.fromkeys(every)]
            if leads
            else []
        ),
    )
    found = gather_json(tiers.world, mine)
    for site in table["site"]:
        site["coding"] = found[tiers.cluster.ranks_of_site(site["name"])[0]]
        first = site["coding"][0]
        for verb in ("encode", "decode"):
            seconds = np.interp(4 * size, first["nbytes"], first[f"{verb}_seconds"])
            more = max(1.0, 4 * size / first["nbytes"][-1]) * (2 if verb == "decode" else 1)
            site[f"{verb}_bytes_per_second"] = rounded(4 * size / (more * seconds))


def coding(compressor, repetitions, library):
    """Return what a cluster file says of a compressor on this rank."""
    nbytes, *seconds = coding_seconds(compressor, CODING_SECONDS, repetitions, library)
    return {"compressor": repr(compressor), "nbytes": nbytes.astype(int).tolist()} | {
        f"{verb}_seconds": [rounded(each) for each in column]
        for verb, column in zip(("encode", "decode"), seconds)
    }


def measure_passes(tiers, settings, repetitions, table, tell):
    """Put into `table` what leaders take for what else the settings have done to a vector."""
    workload = settings.workload()
    wanted = dict.fromkeys(each.name for each in passes_of(tiers.cluster, workload, workload.size))
    if not wanted:
        return
    tell(f"measuring {', '.join(wanted)} on the leaders, all leaders at once")
    leads = tiers.world.rank in {tiers.cluster.ranks_of_site(name)[0] for name in tiers.cluster.names}
    mine = together(
        tiers.world,
        lambda: [pass_table(name, CODING_SECONDS, repetitions) for name in wanted] if leads else [],
    )
    found = gather_json(tiers.world, mine)
    for site in table["site"]:
        site["passes"] = found[tiers.cluster.ranks_of_site(site["name"])[0]]


def measure_ways(tiers, repetitions, table, kind, tell):
    """Put into `table` latency, rate and seconds by size of the sites' networks and of the links."""
    cluster, links = tiers.cluster, table.get("link", ())
    ends = sorted({tuple(sorted((link["from"], link["to"]), key=cluster.names.index)) for link in links})
    measured = {}  # link -> its samples: bytes and seconds
    each = min(1.0, MESSAGES_SECONDS / len(NBYTES) / (1 + 2 * len(ends)))
    tell("measuring the networks of the sites, all at once")
    own = None
    if tiers.site.size > 1:
        own = way_seconds(tiers.site, 0, 1, each, repetitions, WHOLE).tolist()
    found = gather_json(tiers.world, own if tiers.site.rank == 0 else None)
    for site in table["site"]:
        if site["ranks"] > 1:
            nbytes, there, back = found[cluster.ranks_of_site(site["name"])[0]]
            samples = np.tile(nbytes, 2), np.concatenate([there, back])
            site["network"] = line_of(*samples)
            site["network"]["messages"] = by_size(site["network"], *samples)
    for first, second in ends:
        tell(f"measuring the link {first} - {second}, both ways at once ({kind})")
        leaders = [cluster.ranks_of_site(name)[0] for name in (first, second)]
        streams = way_seconds(tiers.world, *leaders, each, repetitions)
        whole = way_seconds(tiers.world, *leaders, each, repetitions, WHOLE, SHORT_NBYTES + 1)
        short = streams[:, streams[0] <= SHORT_NBYTES]
        messages = np.concatenate([short, whole], axis=1)
        for link in links:
            if {link["from"], link["to"]} == {first, second}:
                way = 1 if link["from"] == first else 2
                link.update(line_of(streams[0], streams[way]))
                measured[link["from"], link["to"]] = {
                    "streams": streams[[0, way]],
                    "messages": messages[[0, way]],
                }
    for link in cluster.links if kind == "paced" else ():
        words = link_not_held(link, line_of(*measured[link.source, link.target]["streams"]))
        if words:
            tell(f"not held: {words}")
    rates = {}  # what is shared has one rate: that of its links in the middle
    for link, known in zip(links, cluster.links):
        rates.setdefault(known.pipe, []).append(link["bytes_per_second"])
    for link, known in zip(links, cluster.links):
        link["bytes_per_second"] = rounded(np.median(rates[known.pipe]))
        for name, samples in measured[link["from"], link["to"]].items():
            link[name] = by_size(link, *samples)


def measure_allreduces(tiers, repetitions, table, links, tell):
    """Put into `table` what allreduces took beyond the time model: MPI's own by size, all others once.

    Those of a few entries: what they take more, others do whatever their size. Paced links leave out
    what cannot be held to their rates.
    """
    cluster, found = Cluster(table), {}
    small = 4 * SMALL_ENTRIES * tiers.world.size
    for algorithm, row in ALGORITHMS.items():
        if not row.own or (links == "paced" and row.unpaced):
            continue
        tell(f"measuring what an allreduce by {algorithm} takes whatever its size")
        _, seconds = allreduce_seconds(tiers, algorithm, [small], OVERHEAD_SECONDS, 2 * repetitions)
        foretold = predict_allreduce(cluster, small // 4, algorithm=algorithm).seconds
        found[algorithm] = rounded(max(0.0, np.median(seconds) - foretold))
    table["calibration"]["overhead_seconds"] = found
    if links != "paced" and not tiers.sealed:
        tell("measuring MPI's own allreduce")
        adds = min(site.add_bytes_per_second for site in cluster.sites)
        expected = np.vectorize(lambda size: mpi_seconds(cluster, size, adds))
        table["calibration"]["allreduce"] = (
            fit_table(
                *allreduce_seconds(tiers, "mpi", NBYTES, MESSAGES_SECONDS / 2 / len(NBYTES), repetitions)
            )
            .over(expected)
            .model_dump(mode="json")
        )


def line_of(nbytes, seconds):
    """Return latency and rate of samples, as a cluster file has them."""
    fit = fit_link(nbytes, seconds)
    return {
        "latency_seconds": rounded(fit.latency_seconds),
        "bytes_per_second": rounded(fit.bytes_per_second),
    }


def by_size(way, nbytes, seconds):
    """Return the table of samples' seconds by size over those of the latency and rate of `way`."""
    return (
        fit_table(nbytes, seconds)
        .over(lambda sizes: way["latency_seconds"] + sizes / way["bytes_per_second"])
        .model_dump(mode="json")
    )
