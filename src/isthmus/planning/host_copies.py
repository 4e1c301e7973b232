"""How long a GPU and its host take to copy what is sent and what is received. Seconds, bytes."""


def copy_seconds_of_exact(cluster, algorithm, nbytes):
    """Return the seconds of the copies in one exact allreduce of `nbytes`, at the slowest site.

    A rank copies all that it sends to its host and all that it receives from there: the vector once
    with MPI's own algorithm, up to twice in a tree, and 2 (p - 1) / p of it otherwise.
    """
    sent = {"mpi": 1, "tree": 2}.get(algorithm, 2 * (1 - 1 / cluster.size))
    return 2 * sent * nbytes / min(site.host_copy_bytes_per_second for site in cluster.sites)


def copy_seconds_of_chunks(cluster, chunk_nbytes, wire_nbytes):
    """Return (first chunk, every other chunk) of "hierarchical", at the slowest site.

    A chunk is copied out and in at each hop of its site's chain, up and down, and so are wires. The
    first takes all hops one after another; of every other the rank that copies most counts.
    """
    first, each, peers_of_hub = 0.0, 0.0, len(cluster.sites) - 1
    for index, site in enumerate(cluster.sites):
        wires = 2 * (peers_of_hub if index == cluster.hub else min(1, peers_of_hub)) * wire_nbytes
        hops, rate = 2 * (site.ranks - 1), site.host_copy_bytes_per_second
        first = max(first, (wires + 2 * hops * chunk_nbytes) / rate)
        each = max(each, (wires + min(hops, 4) * chunk_nbytes) / rate)
    return first, each
