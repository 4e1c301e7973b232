"""Shards: what is packed comes back, and whatever is broken is found and named."""

import contextlib
import fcntl
import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import OutputError, ShardError
from isthmus.shards.batches import LocalSamples
from isthmus.shards.shard_file import write_shard
from isthmus.shards.sources import read_arrays

DRAW = np.random.default_rng(0)
IMAGES = {
    "features": DRAW.integers(0, 255, (100, 6, 5), dtype="u1"),
    "targets": DRAW.integers(0, 10, 100, dtype="u1"),
}


def contents(shards):
    parts = [shards.read(number) for number in range(len(shards.samples))]
    return {name: np.concatenate([part[name] for part in parts]) for name in shards.arrays}


@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", "none"])
@pytest.mark.parametrize("shards", [1, 7, 100])
def test_what_is_packed_comes_back(tmp_path, compression, shards):
    packed = isthmus.pack_shards(IMAGES, tmp_path, shards, compression)
    opened = isthmus.ShardSet.open(tmp_path)
    opened.verify()
    for name, values in contents(opened).items():
        np.testing.assert_array_equal(values, IMAGES[name])
        assert values.dtype == IMAGES[name].dtype
    assert opened.names == packed.names == tuple(f"shard-{i:05d}.h5" for i in range(shards))
    assert sum(opened.samples) == 100
    assert sum(opened.nbytes) == 100 * 31


@given(
    samples=st.integers(0, 40),
    shape=st.lists(st.integers(1, 4), max_size=3),
    dtype=st.sampled_from(["u1", ">i4", "f4", "f8", "?"]),
    shards=st.integers(1, 5),
)
@settings(max_examples=25)
def test_any_array_of_numbers_comes_back(tmp_path_factory, samples, shape, dtype, shards):
    folder = tmp_path_factory.mktemp("set")
    values = np.random.default_rng(1).integers(0, 2, (samples, *shape)).astype(dtype)
    shards = min(shards, max(1, samples))
    opened = isthmus.pack_shards({"a": values}, folder, shards)
    opened.verify()
    np.testing.assert_array_equal(contents(opened)["a"], values)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        isthmus.pack_shards(IMAGES, tmp_path / folder, 5)
        time.sleep(1.1)  # a time stamp in a file would differ
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_packed_images_in_the_repository_are_whole(repository, part):
    shards = isthmus.ShardSet.open(repository / "data/fashion_mnist" / part)
    shards.verify()
    assert sum(shards.samples) == {"train": 12_000, "test": 2_000}[part]
    targets = np.concatenate([shards.read(i)["targets"] for i in range(len(shards.samples))])
    assert len(set(np.bincount(targets, minlength=10))) == 1


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory):
    """Incompressible samples in several HDF5 chunks a shard."""
    folder = tmp_path_factory.mktemp("noise")
    values = np.random.default_rng(2).integers(0, 255, (64, 32768), dtype="u1")
    return isthmus.pack_shards({"features": values}, folder, 2, "lz4")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_every_flipped_bit_is_found(noise_set, place, bit):
    path = noise_set.folder / noise_set.names[1]
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(broken))] ^= 1 << bit
    try:
        path.write_bytes(broken)
        with pytest.raises(ShardError, match="shard-00001.h5") as caught:
            noise_set.verify()
        assert "\n" not in str(caught.value)
    finally:
        path.write_bytes(whole)


def test_hdf5_is_never_given_a_file_that_is_not_what_was_packed(noise_set, monkeypatch):
    path = noise_set.folder / noise_set.names[0]
    whole = path.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("HDF5 has seen it"))
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for act in (
            noise_set.verify,
            lambda: noise_set.read(0),
            lambda: next(noise_set.pieces(0, "features")),
        ):
            with pytest.raises(ShardError, match="shard-00000.h5: its SHA-256 is not the manifest's"):
                act()
    finally:
        path.write_bytes(whole)


def test_reading_needs_no_locks(tmp_path):
    """Neither of shards nor of what is packed: on file systems without locks there is nothing to set."""
    shards = isthmus.pack_shards({"a": np.arange(9)}, tmp_path, 1)
    with open(tmp_path / shards.names[0], "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        np.testing.assert_array_equal(shards.read(0)["a"], np.arange(9))
        np.testing.assert_array_equal(read_arrays({"a": file.name})["a"], np.arange(9))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    shards = isthmus.pack_shards(IMAGES, tmp_path / "set", 2)
    for path in (shards.folder / shards.names[0], shards.folder / "manifest.json", tmp_path / "source"):
        path.unlink(missing_ok=True)
        {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[
            kind
        ](path)
    for act in (
        shards.verify,
        lambda: shards.read(0),
        lambda: isthmus.ShardSet.open(shards.folder),
        lambda: read_arrays({"a": tmp_path / "source"}),
    ):
        with pytest.raises(ShardError, match=r"is a pipe or a device|[Ii]s a (directory|folder)"):
            act()


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_cut_file_is_named(tmp_path, kept):
    shards = isthmus.pack_shards(IMAGES, tmp_path, 2)
    path = tmp_path / shards.names[1]
    path.write_bytes(path.read_bytes()[:kept])
    for act in (shards.verify, lambda: shards.read(1)):
        with pytest.raises(ShardError, match="shard-00001.h5"):
            act()


def strange(kind):
    """Return a writer of a shard file that a stranger could send."""

    def write(path):
        with h5py.File(path, "w") as file:
            if kind == "external link":
                file["targets"] = h5py.ExternalLink("/etc/passwd", "x")
            elif kind == "soft link":
                file["targets"] = h5py.SoftLink("/elsewhere")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((50,), "u1")
                file.create_virtual_dataset("targets", layout)
            elif kind == "external storage":
                file.create_dataset("targets", (50,), "u1", external=[("/etc/passwd", 0, 50)])
            elif kind == "text":
                file["targets"] = ["a"] * 50
            elif kind == "another shape":
                file["targets"] = np.zeros((50, 2), "u1")
            elif kind == "another dtype":
                file["targets"] = np.zeros(50, "f4")
            elif kind == "a group":
                file.create_group("targets")
            elif kind == "a filter":
                file.create_dataset("targets", data=np.zeros(50, "u1"), compression="lzf")
            elif kind == "other numbers":
                file["targets"] = np.full(50, 99, "u1")

    return write


def trust(folder, name):
    """Have the manifest say that shard `name` is as it is: a whole set from a stranger."""
    edited(
        folder / "manifest.json",
        lambda table: next(shard for shard in table["shards"] if shard["file"] == name).update(
            sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest()
        ),
    )
    return isthmus.ShardSet.open(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "nothing",
        "external link",
        "soft link",
        "virtual",
        "text",
        "external storage",
        "another shape",
        "another dtype",
        "a group",
        "a filter",
        "other numbers",
    ],
)
def test_a_strange_file_is_refused(tmp_path, kind):
    shards = isthmus.pack_shards({"targets": IMAGES["targets"]}, tmp_path, 2)
    strange(kind)(tmp_path / shards.names[0])
    with pytest.raises(ShardError, match="SHA-256"):
        shards.read(0)
    with pytest.raises(ShardError, match="dataset 'targets'"):
        trust(tmp_path, shards.names[0]).read(0)


def claimed(folder, rows, chunk):
    """Write a shard and a source of a few hundred bytes that claim to be gigabytes of zeros."""
    with h5py.File(folder / "shard-00000.h5", "w") as file:
        file.create_dataset(
            "targets", (rows,), "u1", chunks=(chunk,), maxshape=(None,), compression="gzip"
        )
    edited(
        folder / "manifest.json",
        lambda table: table["shards"][0].update(samples=rows, samples_of_class={0: rows}),
    )


@pytest.mark.parametrize(("rows", "chunk"), [(68 << 30, 1 << 20), (1000, 1 << 31)])
def test_a_small_file_that_claims_gigabytes_is_refused_before_they_are_read(tmp_path, rows, chunk):
    isthmus.pack_shards({"targets": IMAGES["targets"]}, tmp_path, 1)
    claimed(tmp_path, rows, chunk)
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(1 << 20))
    (tmp_path / "idx.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 2]) + b"\x7f\xff\xff\xff" * 2))
    sources = [tmp_path / "shard-00000.h5", tmp_path / "idx.gz"]
    for act in (
        lambda: trust(tmp_path, "shard-00000.h5").read(0),
        *(lambda source=source: read_arrays({"a": source}) for source in sources),
    ):
        with pytest.raises(ShardError, match="claims to hold [0-9,]{13,} bytes and has [0-9,]{2,6};"):
            act()
    assert read_arrays({"a": tmp_path / "zeros.npz"})["a"].size == 1 << 20


def test_what_compresses_best_is_no_false_claim(tmp_path):
    shards = isthmus.pack_shards({"a": np.zeros((80, 1 << 20), "u1")}, tmp_path, 1, "zstd")
    stored = (tmp_path / shards.names[0]).stat().st_size
    assert 10_000 < shards.nbytes[0] / stored < 40_000
    assert not shards.read(0)["a"].any()


def edited(path, change):
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("shards"), "shards: this key is missing"),
        (lambda t: t.update(extra=1), "no key is called 'extra'"),
        (lambda t: t["shards"][0].update(file="../../etc/x.h5"), "file"),
        (lambda t: t["shards"][0].update(samples=-1), "samples"),
        (lambda t: t["shards"][0].update(sha256="0"), "sha256"),
        (lambda t: t["arrays"]["targets"].update(dtype="O"), "dtype"),
        (lambda t: t["arrays"]["targets"].update(dtype="cheese"), "not a dtype"),
        (lambda t: t["shards"][0]["arrays_sha256"].pop("targets"), "lists arrays"),
        (lambda t: t.update(version=9), "version"),
        (lambda t: t["shards"].append(t["shards"][0]), "'shard-00000.h5' stands there twice"),
        (
            lambda t: (
                t["shards"][0].update(samples=2**40)
                or t["arrays"]["features"].update(shape=[2**31, 2**31])
            ),
            "more bytes than there are",
        ),
        (lambda t: t["arrays"]["targets"].update(dtype="|,B"), "not a dtype"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, change, message):
    isthmus.pack_shards(IMAGES, tmp_path, 2)
    edited(tmp_path / "manifest.json", change)
    with pytest.raises(ShardError, match=message) as caught:
        isthmus.ShardSet.open(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "manifest.json"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"arrays": {}}, ShardError, "nothing to pack"),
        ({"arrays": {"a": [1, 2], "b": [1]}}, ShardError, "a has 2, b has 1"),
        ({"arrays": {"a": ["x"]}}, ShardError, "dtype"),
        ({"arrays": {"a": 3}}, ShardError, "a row|one row"),
        ({"arrays": {"a b": [1]}}, ShardError, "letters"),
        ({"shards": 0}, ShardError, "1 to 100"),
        ({"shards": 101}, ShardError, "1 to 100"),
        ({"compression": "zip"}, ShardError, "'zip'"),
        ({"folder": "/proc/nowhere"}, OutputError, "cannot be written"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        isthmus.pack_shards(**{"arrays": IMAGES, "folder": tmp_path, "shards": 4, **arguments})
    assert not list(tmp_path.glob("manifest.json"))


def test_a_packed_folder_is_not_overwritten_by_accident(tmp_path):
    isthmus.pack_shards(IMAGES, tmp_path, 9)
    with pytest.raises(ShardError, match="--overwrite"):
        isthmus.pack_shards(IMAGES, tmp_path, 3)
    isthmus.pack_shards(IMAGES, tmp_path, 3, overwrite=True)
    assert len(list(tmp_path.glob("*.h5"))) == 3
    isthmus.ShardSet.open(tmp_path).verify()


@pytest.mark.parametrize("text", ["[" * 200_000, '{"shards": [], "shards": []}', "", "\0" * 50])
def test_a_manifest_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match="cannot be read|stands there twice") as caught:
        isthmus.ShardSet.open(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


PACK = """
import sys, numpy as np, isthmus
values = np.random.default_rng(0).integers(0, 255, (4000, 2000), dtype="u1")
print("ready", flush=True)
isthmus.pack_shards({"a": values}, sys.argv[1], 40, overwrite=True)
"""


@pytest.mark.slow
def test_a_killed_packer_leaves_a_whole_set_or_none_and_the_next_one_no_trace_of_it(tmp_path):
    """In a folder that was empty, and in one where another set stands."""
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        if old := attempt % 2:
            isthmus.pack_shards(IMAGES, folder, 9)
        (folder / "mine.txt").parent.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("whatever")
        process = subprocess.Popen(
            [sys.executable, "-c", PACK, str(folder)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.1 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if old or (folder / "manifest.json").exists():
            stands = isthmus.ShardSet.open(folder)
            stands.verify()
            assert len(stands.names) in (9 if old else 40, 40)
        isthmus.pack_shards(IMAGES, folder, 3, overwrite=True)
        assert {path.name for path in folder.iterdir()} == {
            "manifest.json",
            "mine.txt",
            *(f"shard-{number:05d}.h5" for number in range(3)),
        }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class EndedError(Exception):
    pass


def stopping(patch, after):
    """Have each call that changes a folder raise from number `after` on, as if the process had ended."""
    calls = itertools.count()

    def counted(real):
        def act(*given, **named):
            if next(calls) >= after:
                raise EndedError
            return real(*given, **named)

        return act

    for kind in ("replace", "link", "unlink", "fsync"):
        patch.setattr(os, kind, counted(getattr(os, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, 1, 4])
def test_a_pack_that_is_stopped_anywhere_leaves_a_whole_set(tmp_path, monkeypatch, old):
    """Every call that changes the folder fails in turn; the old set stands until the new one does."""
    other = {name: values[::-1] for name, values in IMAGES.items()}
    fresh = isthmus.pack_shards(other, tmp_path / "fresh", 2, "none")
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        if old:
            isthmus.pack_shards(IMAGES, folder, old, "none")
        with monkeypatch.context() as patch, contextlib.suppress(EndedError):
            stopping(patch, calls)
            isthmus.pack_shards(other, folder, 2, "none", overwrite=True)
            break
        if old or (folder / "manifest.json").exists():
            targets = contents(isthmus.ShardSet.open(folder))["targets"].tobytes()
            assert targets in (IMAGES["targets"].tobytes(), other["targets"].tobytes())
        isthmus.pack_shards(other, folder, 2, "none", overwrite=True)
        assert files_of(folder) == files_of(fresh.folder)
    assert calls >= 12
    assert files_of(folder) == files_of(fresh.folder)


def test_files_that_no_pack_has_written_are_left_alone(tmp_path):
    for name in ("shard-00007.h5", "shard-00000.h5", "photo.jpg.partial", "shard-1.h5"):
        (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(ShardError, match="shard-00000.h5: is there, and is of no packed set"):
        isthmus.pack_shards(IMAGES, tmp_path, 2)
    isthmus.pack_shards(IMAGES, tmp_path, 2, overwrite=True).verify()
    (tmp_path / "shard-00000.h5.4711.partial").write_bytes(b"a killed pack's")
    isthmus.pack_shards(IMAGES, tmp_path, 2, overwrite=True).verify()
    assert set(files_of(tmp_path)) == {
        "shard-00007.h5",
        "photo.jpg.partial",
        "shard-1.h5",
        "manifest.json",
        "shard-00000.h5",
        "shard-00001.h5",
    }


def test_two_packs_into_one_folder_at_once_are_one_and_an_error(tmp_path, monkeypatch):
    def second(*given):
        with pytest.raises(OutputError, match="another process packs into this folder"):
            isthmus.pack_shards(IMAGES, tmp_path, 3)
        return write_shard(*given)

    with monkeypatch.context() as patch:
        patch.setattr("isthmus.shards.packing.write_shard", second)
        isthmus.pack_shards(IMAGES, tmp_path, 2)
    isthmus.pack_shards(IMAGES, tmp_path, 2, overwrite=True).verify()


def idx(values):
    code = {"u1": 8, ">i4": 12, ">f4": 13}[values.dtype.str.lstrip("|")]
    return bytes([0, 0, code, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.mark.parametrize(
    "values", [IMAGES["features"], IMAGES["targets"], DRAW.normal(size=(7, 3)).astype(">f4")]
)
def test_arrays_are_read_from_every_kind_of_file(tmp_path, values):
    (tmp_path / "plain").write_bytes(idx(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(values)))
    np.savez_compressed(tmp_path / "one.npz", x=values)
    np.savez(tmp_path / "two.npz", x=values, y=values[::-1])
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file["group/x"], file["other"] = values, [1]
    with h5py.File(tmp_path / "a:colon.h5", "w") as file:
        file["b:x"], file["other"] = values, [1]
    sources = {
        "a": "plain",
        "b": "packed.gz",
        "c": "one.npz",
        "d": "two.npz:x",
        "e": "deep.h5:group/x",
        "f": "deep.h5:/group/x",
        "g": "a:colon.h5:b:x",
    }
    found = read_arrays({name: f"{tmp_path}/{source}" for name, source in sources.items()})
    for read in found.values():
        np.testing.assert_array_equal(read, values)


def matlab(path, **arrays):
    """Write arrays as MATLAB does with -v7.3: a header, then HDF5 with dimensions in reverse order."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = np.atleast_2d(values).T
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def test_arrays_of_matlab_have_the_rows_that_they_have_there(tmp_path):
    values = DRAW.normal(size=(7, 3, 2))
    matlab(tmp_path / "data.mat", features=values, row=np.arange(7.0), column=np.arange(7.0)[:, None])
    found = read_arrays({name: f"{tmp_path}/data.mat:{name}" for name in ("features", "row", "column")})
    np.testing.assert_array_equal(found["features"], values)
    for name in ("row", "column"):
        np.testing.assert_array_equal(found[name], np.arange(7.0))


def test_a_manifest_with_a_byte_order_mark_is_read(tmp_path):
    shards = isthmus.pack_shards({"x": np.arange(10)}, tmp_path, shards=2)
    path = tmp_path / "manifest.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert isthmus.ShardSet.open(tmp_path).manifest == shards.manifest


def test_bad_files_are_refused_in_one_line(tmp_path):
    good = idx(IMAGES["targets"])
    np.savez(tmp_path / "objects.npz", x=np.array([{}, 1], dtype=object))
    np.savez(tmp_path / "two.npz", x=[1], y=[2])
    for name, content in {
        "cut": good[:-1],
        "long": good + b"x",
        "text": b"hello world",
        "empty": b"",
        "header": good[:6],
        "zip.gz": gzip.compress(good)[:-9],
        "old.mat": b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(200),
        "half.npz": (tmp_path / "two.npz").read_bytes()[:60],
    }.items():
        (tmp_path / name).write_bytes(content)
    for source, message in {
        "cut": "its header says",
        "long": "its header says",
        "text": "68 65",
        "empty": "nothing",
        "header": "is cut",
        "zip.gz": "cannot be read",
        "half.npz": "cannot be read",
        "objects.npz": "Python objects",
        "two.npz": "write .*two.npz:NAME with one of x, y",
        "old.mat": "save it with -v7.3",
        "two.npz:z": "has no array 'z'",
        "missing": "no such file",
    }.items():
        with pytest.raises(ShardError, match=message) as caught:
            read_arrays({"a": f"{tmp_path}/{source}"})
        assert "\n" not in str(caught.value)


@given(
    samples=st.integers(0, 50),
    size=st.integers(1, 20),
    steps=st.integers(1, 30),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 5),
    start=st.integers(0, 30),
)
def test_batches_go_once_through_the_data(samples, size, steps, seed, epoch, start):
    local = LocalSamples({"a": np.arange(samples), "b": np.arange(samples) * 2})
    by_size = list(local.batches(size, seed, epoch=epoch))
    assert all(len(a) == size for a, _ in by_size[:-1])
    by_steps = list(local.batches(steps=steps, seed=seed, epoch=epoch))
    assert len(by_steps) == steps
    assert max(len(a) for a, _ in by_steps) - min(len(a) for a, _ in by_steps) <= 1
    for batches in (by_size, by_steps):
        order = np.concatenate([np.empty(0, int), *(a for a, _ in batches)])
        assert sorted(order) == list(range(samples))
        for a, b in batches:
            np.testing.assert_array_equal(2 * a, b)
    resumed = list(local.batches(steps=steps, seed=seed, epoch=epoch, start=start))
    assert len(resumed) == max(0, steps - start)
    for (a, _), (again, _) in zip(by_steps[start:], resumed):
        np.testing.assert_array_equal(a, again)


def test_epochs_and_seeds_give_other_orders():
    local = LocalSamples({"a": np.arange(1000)})
    orders = {
        next(iter(local.batches(1000, seed, epoch=epoch)))[0].tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize("arguments", [{}, {"size": 3, "steps": 3}, {"size": 0}, {"steps": -1}])
def test_batches_want_a_size_or_steps(arguments):
    with pytest.raises(ValueError, match="size|steps"):
        next(LocalSamples({"a": np.arange(5)}).batches(**arguments))


def test_opening_a_set_does_not_load_hdf5(repository):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, isthmus; isthmus.ShardSet.open('data/fashion_mnist/test'); "
            "sys.exit('h5py' in sys.modules)",
        ],
        cwd=repository,
        env=os.environ,
    )
    assert done.returncode == 0
