"""What goes into one shard: rows of an array piece by piece, and how many are of which class."""

import numpy as np

MOST_CLASSES = 1 << 16
MOST_CLASS_NUMBER = 1 << 31


class Part:
    """The samples from `first` up to `last` of one array, in the order of packing (None: its own).

    look(piece): is shown every piece.
    """

    def __init__(self, values, first, last, order=None):
        self.values, self.first, self.last, self.order = values, first, last, order
        self.samples, self.shape = last - first, values.shape[1:]
        self.dtype = values.dtype.newbyteorder("<")
        self.sample_nbytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        self.look = lambda piece: None

    def pieces(self, rows):
        """Yield (number in the part, array) of at most so many `rows` at a time."""
        for first in range(self.first, self.last, rows):
            wanted = slice(first, min(first + rows, self.last))
            piece = self.values[wanted if self.order is None else self.order[wanted]]
            piece = np.ascontiguousarray(piece, self.dtype)
            self.look(piece)
            yield first - self.first, piece


class ClassCounts:
    """How many samples of each class the shards of a set have, if `values` are class numbers.

    These are whole numbers from 0 on, one a sample, of which there are not too many.
    found: a dict a shard; None for what are no class numbers.
    """

    def __init__(self, values):
        numbers = values.dtype.kind in "iu" and values.ndim == 1
        self.found = [] if numbers else None

    def of_shard(self):
        """Return what counts the pieces of the next shard."""
        if self.found is None:
            return lambda piece: None
        counted = {}
        self.found.append(counted)

        def look(piece):
            if self.found is None or not piece.size:
                return
            kinds, samples = np.unique(piece, return_counts=True)
            if kinds[0] < 0 or kinds[-1] >= MOST_CLASS_NUMBER:
                self.found = None
                return
            for kind, number in zip(kinds.tolist(), samples.tolist()):
                counted[kind] = counted.get(kind, 0) + number
            if len(counted) > MOST_CLASSES:
                self.found = None

        return look
