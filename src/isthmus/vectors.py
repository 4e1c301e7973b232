"""Where a flat vector is cut: bounds of parts and of chunks."""


def part_bounds(size, parts):
    """Cut `size` entries into `parts` that differ by at most one; return `parts + 1` bounds."""
    return [size * part // parts for part in range(parts + 1)]


def chunk_slices(first, last, chunk):
    """Cut the entries from `first` to `last` every `chunk`; the last slice may be short."""
    return [slice(start, min(start + chunk, last)) for start in range(first, last, chunk)]


def bucket_slices(tensors, buckets):
    """Group `tensors`, slices in order, into at most `buckets` slices of like size, the last first.

    No tensor is cut, and one without entries has no slice of its own. A gradient becomes ready from its
    end to its start; so does this list.
    """
    size = tensors[-1].stop if tensors else 0
    filled = [tensor for tensor in tensors if tensor.start < tensor.stop] or tensors[:1]
    cut, last = [], size
    for number, tensor in reversed(list(enumerate(filled))):
        if last - tensor.start >= size / buckets or number == 0:
            cut.append(slice(tensor.start, last))
            last = tensor.start
    return cut
