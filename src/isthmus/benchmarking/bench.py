"""One function a benchmark: measure, keep each result, draw; return the object that --json prints."""

from isthmus.benchmarking.pictures import draw_by_size
from isthmus.benchmarking.results import Results


def run_collectives(comm, cluster_path, options, folder, tell):
    """Measure allreduces on the cluster; leave their results and picture in `folder`. Collective."""
    from isthmus.benchmarking.collectives import bench_collectives

    return _run_between_ranks(
        comm,
        cluster_path,
        options,
        folder,
        tell,
        "collectives",
        bench_collectives,
        lambda results: draw_by_size(
            results,
            lambda result: f"{result['algorithm']}, {result['compressor']}".removesuffix(", none"),
            (("predicted_seconds", "model", "--"), ("bound_seconds", "bound L + n b / B", ":")),
            folder,
            "bench_collectives",
            f"allreduce, slowest rank, {options.links} links",
        ),
    )


def run_links(comm, cluster_path, options, folder, tell):
    """Measure links and networks of the cluster; leave results and picture in `folder`. Collective."""
    from isthmus.benchmarking.links import bench_links

    return _run_between_ranks(
        comm,
        cluster_path,
        options,
        folder,
        tell,
        "links",
        bench_links,
        lambda results: draw_by_size(
            [result for result in results if result["kind"] == "ping-pong"],
            lambda result: "{source} rank {ranks[0]} - {target} rank {ranks[1]}".format(**result),
            (("file_seconds", "cluster file", "--"),),
            folder,
            "bench_links",
            f"ping-pong, half a round trip, {options.links} links",
        ),
    )


def run_kernels(options, folder, tell):
    """Measure kernels in this process; leave their results in `folder`."""
    from isthmus.benchmarking.kernels import bench_kernels

    store = Results(folder, "kernels")
    provenance = store.start()
    return {
        "benchmark": "kernels",
        "results": bench_kernels(options, tell, store.keep),
        "provenance": provenance,
        "file": str(store.path),
    }


def _run_between_ranks(comm, cluster_path, options, folder, tell, name, bench, draw):
    """Run `bench` on the tiers of the cluster file; the job's rank 0 alone writes."""
    from mpi4py import MPI
    from threadpoolctl import threadpool_limits

    from isthmus.links.agreement import from_root, gather_json
    from isthmus.links.tiers import tiers_of_file
    from isthmus.spare import if_possible

    store = Results(folder, name)
    with threadpool_limits(1), tiers_of_file(comm, cluster_path, options.links == "paced") as tiers:
        facts = {
            "hosts": gather_json(comm, MPI.Get_processor_name()),
            "mpi_library": MPI.Get_library_version().strip("\0").partition(",")[0],
        }
        provenance = from_root(comm, lambda: store.start(**facts))
        results = bench(tiers, options, tell, lambda so_far: from_root(comm, lambda: store.keep(so_far)))
        pictures = from_root(
            comm,
            lambda: if_possible(
                lambda: draw(results), "the picture", f"the results are in {store.path}"
            ),
        )
    return {
        "benchmark": name,
        "results": results,
        "provenance": provenance,
        "file": str(store.path),
        "pictures": pictures or [],
    }
