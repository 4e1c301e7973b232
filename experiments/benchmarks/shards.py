"""Shards: how fast they are packed, verified and read."""

import tempfile

import numpy as np

import isthmus


class Shards:
    params = ("lz4", "zstd", "none")
    param_names = ("compression",)
    timeout = 120

    def setup(self, compression):
        draw = np.random.default_rng(0)
        images = (40 * draw.normal(size=(20_000, 28, 28)) ** 2).clip(0, 255).astype("u1")
        self.arrays = {"features": images}
        self.folder = tempfile.TemporaryDirectory()
        self.shards = isthmus.pack_shards(self.arrays, f"{self.folder.name}/set", 16, compression)

    def teardown(self, compression):
        self.folder.cleanup()

    def time_pack(self, compression):
        isthmus.pack_shards(self.arrays, f"{self.folder.name}/new", 16, compression, overwrite=True)

    def time_verify(self, compression):
        self.shards.verify()

    def time_read(self, compression):
        for number in range(16):
            self.shards.read(number)

    def track_stored_bytes_per_byte(self, compression):
        stored = sum((self.shards.folder / name).stat().st_size for name in self.shards.names)
        return stored / sum(self.shards.nbytes)
