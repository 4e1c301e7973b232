"""Vectors as messages: cut in pieces, so that no message and no inbox grows with the vector.

MPI counts what a message holds in 31 bits; here alone is it seen to that none comes near.
"""

from isthmus import kernels
from isthmus.links.comm import message_nbytes
from isthmus.vectors import chunk_slices

PIECE_NBYTES = 4 * 1024 * 1024
"""Most bytes of a message; a vector that is longer goes in several."""


def pieces(vector):
    """Return the slices of `vector` that are a message each; none of an empty vector."""
    return chunk_slices(0, vector.size, PIECE_NBYTES // vector.itemsize)


def inbox_entries(size):
    """Return the float32 entries of the inbox that `adding` needs for vectors of up to `size`."""
    return 2 * min(size, PIECE_NBYTES // 4)


def sending(comm, vector, target):
    """Start to send `vector`; return the requests."""
    return [comm.Isend(vector[piece], target) for piece in pieces(vector)]


def sending_nbytes(comm, size, itemsize, target):
    """Return the bytes that `sending` so many entries comes to, with what wrappers add to messages."""
    return sum(
        message_nbytes(comm, itemsize * (piece.stop - piece.start), target)
        for piece in chunk_slices(0, size, PIECE_NBYTES // itemsize)
    )


def receiving(comm, vector, source):
    """Start to overwrite `vector` with what `source` sends; return the requests."""
    return [comm.Irecv(vector[piece], source) for piece in pieces(vector)]


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


def adding(comm, vector, source, inbox):
    """Add what `source` sends to `vector`; yield each slice of it that is done.

    While one piece is added the next arrives, in the other half of `inbox`.
    """
    half = inbox.size // 2
    inboxes = inbox[:half], inbox[half:]
    todo = pieces(vector)

    def receive(number):
        arriving = inboxes[number % 2][: todo[number].stop - todo[number].start]
        return comm.Irecv(arriving, source), arriving

    ahead = receive(0) if todo else None
    for number, piece in enumerate(todo):
        (request, arrived), ahead = ahead, receive(number + 1) if number + 1 < len(todo) else None
        request.Wait()
        kernels.for_array(vector).add(arrived, vector[piece])
        yield piece
