"""What no allreduce between sites can beat."""

from isthmus.timing.time_model import narrow_link_bound_seconds


def bound_seconds(cluster, nbytes, compressor=None):
    """Return the largest L + n b / B over the ways into and out of each site, in seconds.

    b: wire bytes for one byte of the vector; L: the least latency of the site's links that way; B:
    the bytes per second of all of them together. Each site must send what it knows and be told what
    the others know, so no allreduce with this wire is faster. 0 for a cluster of one site.
    """
    share = 1.0 if compressor is None else compressor.wire_nbytes(nbytes // 4) / nbytes
    bounds = [0.0]
    for name in cluster.names:
        for end in ("source", "target"):
            links = [link for link in cluster.links if getattr(link, end) == name]
            if links:
                rate_of_pipe = {link.pipe: link.bytes_per_second for link in links}
                bounds.append(
                    narrow_link_bound_seconds(
                        nbytes,
                        min(link.latency_seconds for link in links),
                        sum(rate_of_pipe.values()),
                        share,
                    )
                )
    return max(bounds)
