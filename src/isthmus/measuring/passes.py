"""What is done to vectors beside adding and coding them, measured on this rank: seconds by size."""

import numpy as np

from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.compression.fixed_point import FixedPoint
from isthmus.kernels import robust
from isthmus.links.sealed import TAG_NBYTES
from isthmus.measuring.computing import LONGEST_SECONDS, VECTOR_NBYTES, seconds_of
from isthmus.privacy.draws import NOISE, Draws
from isthmus.robust import RobustMean
from isthmus.security.masks import SEED_NBYTES, Stream
from isthmus.timing.fits import rounded
from isthmus.vectors import chunk_slices


def pass_table(name, seconds, repetitions):
    """Return what a cluster file says of the pass called `name` on this rank.

    seconds: for each size, as long as none of them takes too long.
    """
    found = {}
    for nbytes in VECTOR_NBYTES:
        call = _call_of(name, nbytes)
        found[nbytes] = rounded(np.median(seconds_of(call, repetitions, None, seconds)))
        if 16 * found[nbytes] > LONGEST_SECONDS:
            break
    return {"name": name, "nbytes": list(found), "seconds": list(found.values())}


def _call_of(name, nbytes):
    """Return a function that makes the pass once over so many bytes."""
    kind, _, rest = name.partition(" ")
    if kind == "seal":
        return _seal(nbytes)
    if kind == "noise":
        return _noise(nbytes // 4)
    if kind == "mask":
        return _mask(int(rest.split()[0]), nbytes)
    if kind == "fixed":
        return _fixed_point(int(rest.split()[1]), nbytes // 4)
    return _robust_mean(RobustMean(kind), int(rest.split()[1]), nbytes // 4)


def _seal(nbytes):
    """Return one that seals and opens messages, as `links.sealed` does."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, plain = AESGCM(bytes(32)), np.zeros(nbytes, np.uint8)
    parts = chunk_slices(0, nbytes, WIRE_NBYTES)
    sealed = np.empty(min(nbytes, WIRE_NBYTES) + TAG_NBYTES, np.uint8)

    def seal():
        for number, part in enumerate(parts):
            nonce, room = number.to_bytes(12, "big"), sealed[: part.stop - part.start + TAG_NBYTES]
            cipher.encrypt_into(nonce, plain[part].data, None, room.data)
            cipher.decrypt_into(nonce, room.data, None, plain[part].data)

    return seal


def _noise(size):
    draws, vector = Draws(bytes(32), 0, NOISE), np.zeros(size, np.float32)

    def add():
        noise = draws.noise(0, size)
        noise *= np.float32(1)
        np.add(vector, noise, out=vector)

    return add


def _mask(bits, nbytes):
    codes = np.zeros(max(1, nbytes * 8 // bits), np.uint8 if bits == 8 else np.uint16)
    return lambda: Stream(bytes(SEED_NBYTES), 1).mask(codes)


def _fixed_point(bits, size):
    wires, vector = FixedPoint(bits), np.zeros(size, np.float32)
    codes, ranges = np.zeros(size, wires.dtype), np.ones(wires.state_entries(size), np.float32)
    kept = np.zeros(size, np.float32)

    def code():
        wires.encode_codes(vector, kept, ranges, codes)
        wires.decode_codes(codes, ranges, vector)

    return code


def _robust_mean(combine, sites, size):
    """Return one that makes the robust mean of so many sites, in the chunks that links have."""
    rows = np.random.default_rng(0).standard_normal((sites, size), dtype=np.float32)
    parts = chunk_slices(0, size, WIRE_NBYTES // 4)
    chunks = [np.ascontiguousarray(rows[:, part]) for part in parts]
    mean, apart = np.empty(size, np.float32), np.zeros((sites, sites))
    network, cut = robust.sorting_network(sites), combine.cut(sites)

    def compare():
        for chunk in chunks:
            robust.add_square_distances(chunk, apart)

    def sort():
        for chunk, part in zip(chunks, parts):
            robust.trimmed_mean(chunk, cut, network, mean[part])

    return compare if combine.whole else sort
