"""HDF5 as bytes: files are made in memory, so that HDF5 and h5py meet no disk that can fail."""

FORMAT = ("v110", "v110")
"""Versions of HDF5's format: the ones whose descriptions of data carry checksums, too."""


def hdf5_bytes(fill):
    """Return the bytes of the HDF5 file that `fill` has written, given an open h5py.File."""
    import h5py

    with h5py.File("in memory", "w", driver="core", backing_store=False, libver=FORMAT) as file:
        fill(file)
        file.flush()  # what h5py writes when it closes a file can fail without a word
        return file.id.get_file_image()
