"""Vectors as messages: cut in pieces, so that no message and no inbox grows with the vector.

MPI counts what a message holds in 31 bits, which pieces do not come near. What is sent beside sums is
cut by `isthmus.links.comm.parts_of`.
"""

from isthmus import kernels
from isthmus.links.comm import message_nbytes
from isthmus.vectors import chunk_slices

PIECE_NBYTES = 4 * 1024 * 1024
"""Most bytes of a message; a vector that is longer goes in several."""


def pieces(vector, nbytes=None):
    """Return the slices of `vector` that are a message each; none of an empty vector.

    nbytes: most bytes of one; None: PIECE_NBYTES.
    """
    return chunk_slices(0, vector.size, (nbytes or PIECE_NBYTES) // vector.itemsize)


def inbox_entries(size):
    """Return the float32 entries of the inbox that `adding` needs for vectors of up to `size`."""
    return 2 * min(size, PIECE_NBYTES // 4)


def sending(comm, vector, target, tag=0):
    """Start to send `vector`; return the requests."""
    return [comm.Isend(vector[piece], target, tag) for piece in pieces(vector)]


def sending_nbytes(comm, size, itemsize, target, nbytes=None):
    """Return the bytes that sending so many entries comes to, with what wrappers add to messages.

    nbytes: most bytes of a message; None: as those of `sending`.
    """
    return sum(
        message_nbytes(comm, itemsize * (piece.stop - piece.start), target)
        for piece in chunk_slices(0, size, (nbytes or PIECE_NBYTES) // itemsize)
    )


def receiving(comm, vector, source, tag=0, nbytes=None):
    """Start to overwrite `vector` with what `source` sends; return the requests."""
    return [comm.Irecv(vector[piece], source, tag) for piece in pieces(vector, nbytes)]


def receiving_ahead(comm, source, inbox, sizes):
    """Yield what `source` sends, vectors of so many entries, each when it is there; the next then comes.

    inbox: [2, entries], whose rows take turns: what was yielded is overwritten two further on.
    """

    def receive(number):
        row = inbox[number % 2][: sizes[number]]
        return comm.Irecv(row, source), row

    ahead = receive(0) if source is not None and sizes else None
    for number in range(len(sizes) if ahead else 0):
        (request, row), ahead = ahead, receive(number + 1) if number + 1 < len(sizes) else None
        request.Wait()
        yield row


def arrived(requests):
    """Return at once whether all `requests` are done."""
    return all(request.Test() for request in requests)


def wait_for(requests):
    """Return when all `requests` are done."""
    for request in requests:
        request.Wait()


def wait_for_any(requests):
    """Return when one of `requests` is done."""
    while not any(request.Test() for request in requests):
        pass


def adding(comm, vector, source, inbox, nbytes=None):
    """Add what `source` sends to `vector`; yield each slice of it that is done.

    While one piece is added the next arrives, in the other half of `inbox`.
    """
    half = inbox.size // 2
    inboxes = inbox[:half], inbox[half:]
    todo = pieces(vector, nbytes)
    arriving = receiving_ahead(comm, source, inboxes, [piece.stop - piece.start for piece in todo])
    for piece, came in zip(todo, arriving):
        kernels.for_array(vector).add(came, vector[piece])
        yield piece
