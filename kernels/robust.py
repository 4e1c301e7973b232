"""What is made of several vectors, some of which may hold anything: compiled, on one core.

`robust_reference` says what each loop means, bit for bit. Rows are sorted entry by entry with a sorting
network: the same comparisons for a block of entries at once, which LLVM makes of vectors.
"""

import numpy as np

from isthmus.kernels.compiled import compiled
from isthmus.kernels.reference import CHUNK

kernel = compiled(nogil=True, error_model="numpy")

BLOCK = 256
"""Entries that are sorted together: so many of each row are in the cache."""


def sorting_network(rows):
    """Return int64[n, 2]: which rows are compared, and swapped, one pair after another, to sort them.

    Batcher's merge exchange, for any number of rows (Knuth, The Art of Computer Programming 3, 5.2.2 M).
    """
    pairs, top = [], 1 << max(0, (rows - 1).bit_length() - 1)
    span = top
    while span and rows > 1:
        further, rest, distance = top, 0, span
        while True:
            pairs += [(i, i + distance) for i in range(rows - distance) if i & span == rest]
            if further == span:
                break
            distance, further, rest = further - span, further // 2, span
        span //= 2
    return np.array(pairs, np.int64).reshape(-1, 2)


@kernel
def trimmed_mean(rows, cut, network, mean):
    """Write the mean of each entry's values but for its `cut` least and `cut` largest into `mean`."""
    count, size = rows.shape
    room = np.empty((count + 1, BLOCK), np.float32)
    kept = np.float32(count - 2 * cut)
    for first in range(0, size, BLOCK):
        length = min(BLOCK, size - first)
        wrong, out = room[count, :length], mean[first : first + length]
        wrong[:] = 0
        for row in range(count):
            given, held = rows[row, first : first + length], room[row, :length]
            for i in range(length):
                held[i] = given[i]
                wrong[i] += given[i] - given[i]  # NaN where it is not finite
        for pair in range(len(network)):
            one, other = room[network[pair, 0], :length], room[network[pair, 1], :length]
            for i in range(length):
                a, b = one[i], other[i]
                one[i] = a if a < b else b
                other[i] = b if a < b else a
        for i in range(length):
            out[i] = wrong[i]
        for row in range(cut, count - cut):
            held = room[row, :length]
            for i in range(length):
                out[i] += held[i]
        for i in range(length):
            out[i] /= kept


@kernel
def add_square_distances(rows, sums):
    """Add the squared distance between each two rows to float64 `sums`, above the diagonal."""
    count, size = rows.shape
    lanes = np.empty(CHUNK, np.float64)
    for one in range(count):
        for other in range(one + 1, count):
            lanes[:] = 0.0
            for first in range(0, size, CHUNK):
                last = min(first + CHUNK, size)
                here, there = rows[one, first:last], rows[other, first:last]
                for i in range(last - first):
                    apart = np.float64(here[i]) - np.float64(there[i])
                    lanes[i] += apart * apart
            half = CHUNK // 2
            while half:
                for i in range(half):
                    lanes[i] += lanes[half + i]
                half //= 2
            sums[one, other] += lanes[0]
