"""HDF5 as bytes: files are made in memory, so that HDF5 and h5py meet no disk that can fail."""

FORMAT = ("v110", "v110")
"""Versions of HDF5's format: the ones whose descriptions of data carry checksums, too."""


LEAST_NBYTES = 1 << 16
"""That a file in memory grows by."""


def hdf5_bytes(fill, nbytes=0):
    """Return the bytes of the HDF5 file that `fill` has written, given an open h5py.File.

    nbytes: what it will hold at most, where that is known: it then has its memory at once, and what
    grows leaves no holes of its size behind.
    """
    import h5py

    room = max(LEAST_NBYTES, nbytes + nbytes // 64)
    with h5py.File(
        "in memory", "w", driver="core", backing_store=False, libver=FORMAT, block_size=room
    ) as file:
        fill(file)
        file.flush()  # what h5py writes when it closes a file can fail without a word
        return file.id.get_file_image()
