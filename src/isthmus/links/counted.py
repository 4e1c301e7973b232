"""Bytes, counted where they are handed to MPI."""

from isthmus.links.comm import Wrapped, message_nbytes


class CountedComm(Wrapped):
    """A communicator that adds the bytes of each send to `sent[site of the peer]`.

    With what the wrappers below add to the message.
    """

    def __init__(self, comm, sent, site_of_peer):
        super().__init__(comm)
        self.sent, self.site_of_peer = sent, site_of_peer

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.sent[self.site_of_peer[dest]] += message_nbytes(self.comm, buffer.nbytes, dest)
        return self.comm.Isend(buffer, dest, tag)
