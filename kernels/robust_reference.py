"""The loops of `robust` in NumPy: what each one means, bit for bit, without regard to speed."""

import numpy as np

from isthmus.kernels.reference import CHUNK


def trimmed_mean(rows, cut, network, mean):
    """Write the mean of each entry's values but for its `cut` least and `cut` largest into `mean`.

    rows: float32[vectors, n]. mean: float32[n]. The values that are left are added in ascending order,
    and a sum of nothing but zeros is +0. An entry of which a row holds no finite number becomes NaN.
    network: how the rows may be sorted.
    """
    order = np.sort(rows, axis=0)[cut : len(rows) - cut]
    mean[:] = np.where(np.isfinite(rows).all(axis=0), np.float32(0), np.float32(np.nan))
    for row in order:
        mean += row
    mean /= np.float32(len(order))


def add_square_distances(rows, sums):
    """Add the squared distance between each two rows to float64 `sums`, above the diagonal.

    Entry i belongs to lane i mod 128: each lane adds up in order, and the lanes are summed by halves,
    the upper half onto the lower one, again and again, in float64.
    """
    count, size = rows.shape
    padded = np.zeros((count, -(-size // CHUNK), CHUNK))
    padded.reshape(count, -1)[:, :size] = rows
    for one in range(count):
        for other in range(one + 1, count):
            lanes = np.zeros(CHUNK)
            for apart in padded[one] - padded[other]:
                lanes += apart * apart
            while lanes.size > 1:
                half = lanes.size // 2
                lanes = lanes[:half] + lanes[half:]
            sums[one, other] += lanes[0]
