"""Where a flat vector is cut: bounds of parts and of chunks."""


def part_bounds(size, parts):
    """Cut `size` entries into `parts` that differ by at most one; return `parts + 1` bounds."""
    return [size * part // parts for part in range(parts + 1)]


def chunk_slices(first, last, chunk):
    """Cut the entries from `first` to `last` every `chunk`; the last slice may be short."""
    return [slice(start, min(start + chunk, last)) for start in range(first, last, chunk)]
