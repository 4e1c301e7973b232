"""Measure a cluster: write its file again with the rates and links that were found."""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from isthmus.compression.dense import Dense
from isthmus.devices import array_library
from isthmus.files import check_folder
from isthmus.planning.calibration import fit_link
from isthmus.runs.choosing import choose
from isthmus.runs.preparation import (
    check_shapes,
    open_where_seen,
    shared_settings,
    shared_tiers,
)
from isthmus.testbed import on_testbed
from isthmus.topology.agreement import from_root, gather_json, together
from isthmus.topology.cluster import Cluster
from isthmus.training.measuring import (
    MESSAGE_NBYTES,
    gradient_seconds,
    host_copy_bytes_per_second,
    kernel_bytes_per_second,
    message_seconds,
    own_message_seconds,
)


def calibrate(comm, settings_path, output, repetitions, tell):
    """Measure ranks and links of the run's cluster and write a cluster file to `output`.

    Rates are those of the run's own model on samples of its data's shape, all ranks computing at
    once; links and sites' networks are fitted to the times of messages of several sizes, each
    direction its own. Collective; returns the new file's table on every rank.
    """
    settings = shared_settings(comm, settings_path)
    from_root(comm, lambda: check_folder(Path(output).parent, "name another file with --output"))
    with threadpool_limits(settings.run.threads), shared_tiers(comm, settings) as tiers:
        settings, _ = choose(settings, tiers.cluster)
        table = tiers.cluster.to_table()
        measure_ranks(tiers, settings, repetitions, table, tell)
        for site in table["site"]:
            ranks = tiers.cluster.ranks_of_site(site["name"])
            if len(ranks) > 1:
                tell(f"measuring the network of site {site['name']}")
                site["network"] = network(tiers.world, ranks[0], ranks[1], repetitions)
        for link in table.get("link", ()):
            kind = "emulated" if on_testbed() else settings.cluster.links
            tell(f"measuring the link {link['from']} > {link['to']} ({kind})")
            ends = [tiers.cluster.ranks_of_site(link[end])[0] for end in ("from", "to")]
            link.update(network(tiers.world, *ends, repetitions))
        measured = Cluster(table, source=output)
        from_root(comm, lambda: measured.to_toml(output))
        return measured.to_table()


def measure_ranks(tiers, settings, repetitions, table, tell):
    """Put into `table` each rank's samples per second and each site's kernel rates."""
    world, cluster, model = tiers.world, tiers.cluster, settings.make_model()
    library = array_library(tiers.device)
    rates = gather_json(world, [*kernel_bytes_per_second(
        settings.make_compressor() or Dense(), model.size, repetitions, library),
        host_copy_bytes_per_second(repetitions, library)])
    own_seconds = gather_json(world, own_message_seconds(world, repetitions))
    computing = None
    if settings.cluster.compute == "paced":
        tell("computing is paced: the ranks keep the rates of the cluster file")
    else:
        tell("measuring the ranks: gradients of the run's model, all ranks at once")
        computing = compute_fits(world, settings, model, repetitions, library)
    for site in table["site"]:
        ranks = cluster.ranks_of_site(site["name"])
        for number, kernel in enumerate(("add", "encode", "decode", "host_copy")):
            slowest = min(rates[rank][number] for rank in ranks)
            site[f"{kernel}_bytes_per_second"] = _rounded(slowest)
        site["message_seconds"] = _rounded(max(own_seconds[rank] for rank in ranks))
        if computing:
            site["samples_per_second"] = [_rounded(computing[r].bytes_per_second) for r in ranks]
            site["fixed_seconds"] = _rounded(max(computing[r].latency_seconds for r in ranks))


def compute_fits(world, settings, model, repetitions, library):
    """Return a fit of seconds = fixed + samples / rate for each rank."""
    shards, _ = open_where_seen(world, settings.data.train)
    together(world, lambda: check_shapes(model, shards))
    shapes = next(shape for shape in gather_json(world, shards and {
        name: [list(shape), str(dtype)] for name, (shape, dtype) in shards.arrays.items()}) if shape)
    share = max(2, settings.training.batch_size // world.size)
    sizes = (max(1, share // 2), share, 2 * share)
    draw = np.random.default_rng(0)
    features, targets = (draw.integers(0, 2 if shape == [] else 255, (sizes[-1], *shape)).astype(dtype)
                         for shape, dtype in shapes.values())
    seconds = gradient_seconds(world, model, features, targets, sizes, repetitions, library)
    return [fit_link(sizes, row) for row in seconds]


def network(world, source, target, repetitions):
    """Return latency and rate of the way from rank `source` to rank `target`."""
    fit = fit_link(MESSAGE_NBYTES, message_seconds(world, source, target, repetitions))
    return {"latency_seconds": _rounded(fit.latency_seconds),
            "bytes_per_second": _rounded(fit.bytes_per_second)}


def _rounded(number):
    """Return `number` with four digits: what a measurement is good for."""
    return float(f"{number:.4g}")
