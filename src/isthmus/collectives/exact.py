"""What the exact algorithms share: they begin when the whole vector is there."""


class Exact:
    """An exchange that leaves the sum over all ranks in `total` when it is called."""

    def start(self, total, number, key):
        """Leave bucket `number` for the end: these algorithms cut the whole vector into parts."""

    def finish(self, total, key):
        self(total)
