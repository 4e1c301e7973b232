"""Data in: tables, images and files larger than memory are packed; what is set apart is apart."""

import contextlib
import gzip
import itertools
import json
import os
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from PIL import Image
from test_shards import EndedError, contents, files_of, stopping

import isthmus
from isthmus.cli import main as command_line
from isthmus.errors import ShardError
from isthmus.extras import how_to_install
from isthmus.shards.order import packing_order
from isthmus.shards.sources import open_arrays, read_arrays

DRAW = np.random.default_rng(5)


def pack(capsys, monkeypatch, *arguments):
    """Run `isthmus pack` here; return its exit code, and the lines of both streams."""
    monkeypatch.setattr(sys, "argv", ["isthmus", "pack", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


@pytest.mark.parametrize("kind", ["plain", "big-endian", "by column", "empty", "npz", "npz by column"])
def test_npy_files_are_read_as_numpy_reads_them(tmp_path, kind):
    values = DRAW.normal(size=(23, 3, 4)).astype("f4")
    values = {
        "big-endian": values.astype(">f8"),
        "by column": np.asfortranarray(values),
        "npz by column": np.asfortranarray(values),
        "empty": values[:0],
    }.get(kind, values)
    path = tmp_path / "x.npy"
    if kind.startswith("npz"):
        path = tmp_path / "x.npz"
        np.savez_compressed(path, x=values)
    else:
        np.save(path, values)
    with open_arrays({"x": path}) as found:
        np.testing.assert_array_equal(found["x"][:], values)
        rows = DRAW.permutation(len(values))[:9].astype("u4")
        np.testing.assert_array_equal(found["x"][rows], values[rows])
        np.testing.assert_array_equal(found["x"][3:5], values[3:5])
        assert found["x"].dtype == values.dtype


def test_rows_of_every_kind_come_in_any_order(tmp_path):
    values = DRAW.integers(0, 9, (300, 700)).astype("u2")  # some rows close together, some not
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(7, 700), compression="gzip")
    np.save(tmp_path / "x.npy", values)
    rows = DRAW.integers(0, 300, 120)  # some twice
    with open_arrays({"a": tmp_path / "x.h5", "b": tmp_path / "x.npy"}) as found:
        for each in found.values():
            np.testing.assert_array_equal(each[rows], values[rows])


TABLE = "age, income,bought\n21,1.5,0\n\n30,2.25,1\n45,1e3,1\n"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "semicolons.csv"])
def test_a_table_gives_the_columns_that_are_named_and_the_rest(tmp_path, name):
    text = TABLE.replace(",", {"t.tsv": "\t", "semicolons.csv": ";"}.get(name, ","))
    content = b"\xef\xbb\xbf" + text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = read_arrays({"features": path, "targets": f"{path}:bought"})
    np.testing.assert_array_equal(found["features"], np.array([[21, 1.5], [30, 2.25], [45, 1e3]], "f4"))
    found |= read_arrays({"order": f"{path}:income,age"})
    np.testing.assert_array_equal(found["targets"], [0, 1, 1])
    assert found["targets"].dtype == np.int64
    np.testing.assert_array_equal(found["order"], np.array([[1.5, 21], [2.25, 30], [1e3, 45]], "f4"))
    assert found["order"].dtype == np.float32
    with pytest.raises(ShardError, match="no column is left"):
        read_arrays({"x": path, "y": f"{path}:age,income,bought"})


def test_a_table_without_names_has_numbered_columns_and_keeps_what_float32_would_blur(tmp_path):
    stamps = 1.7e9 + np.arange(5)
    np.savetxt(tmp_path / "t.csv", np.column_stack([stamps, stamps % 3 + 0.5]), "%.17g", ",")
    found = read_arrays({"x": f"{tmp_path}/t.csv:1", "y": f"{tmp_path}/t.csv:2,1"})
    np.testing.assert_array_equal(found["x"], stamps)
    assert found["y"].dtype == np.float64
    np.testing.assert_array_equal(found["y"][:, 1], stamps)


@pytest.mark.parametrize(
    ("text", "member", "message"),
    [
        ("", "", "is empty"),
        ("a,b\n", "", "no line after its first"),
        ("a,b\n1,2\n3,red\n", "", "line 3, column 'b': 'red' is not a number"),
        ("a,b\n1,2\n3,\n", "", "line 3, column 'b': a number is missing"),
        ("a,b\n1,nan\n", "", "'nan' is not a number"),
        ("a,b\n1,2\n3\n", "a", "line 3 has 1 columns, the first has 2"),
        ("a,b\n1,2,3\n", "a", "line 2 has 3 columns"),
        ("a,b\n1,2\n", "c", "no column 'c'; its columns are a, b"),
        ("a,a\n1,2\n", "", "two columns 'a'"),
        ('a,b\n"1,2\n', "", "is no table: unexpected end of data"),
        ("a,b\n1,\xff\n".encode("latin1"), "", "not text in UTF-8"),
        (b"1," * (9 << 20), "", "a line of 16 MiB"),
        (b"a,b\n1,\0\n", "", "not a number"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path, text, member, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ShardError, match=message) as caught:
        read_arrays({"x": f"{path}:{member}" if member else path})
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(path))


def photos(folder, size=(6, 4), colour=True):
    """Write images of three classes, whose pixels tell their number and class."""
    for number, kind in enumerate(["class2", "class10", "dog"]):
        (folder / kind).mkdir(parents=True)
        for each in (10, 9, 1):
            shape = (size[1], size[0], 3) if colour else (size[1], size[0])
            pixels = np.full(shape, 20 * each + number, "u1")
            if colour:
                pixels[..., 2] = 7
            Image.fromarray(pixels).save(folder / kind / f"photo{each}.png")


def test_images_are_packed_in_natural_order_with_the_classes_of_their_folders(
    tmp_path, capsys, monkeypatch
):
    photos(tmp_path / "photos")
    (tmp_path / "photos/dog/notes.txt").write_text("mine")
    code, out, err = pack(
        capsys,
        monkeypatch,
        *(tmp_path / "set", "-a", f"features={tmp_path}/photos"),
        *("-a", f"targets={tmp_path}/photos:class", "--shards", 2),
    )
    assert code == 0, err
    assert (
        "9 images, uint8 3 x 4 x 6; 1 files that are no images were left out, such as notes.txt" in err
    )
    shards = isthmus.ShardSet.open(tmp_path / "set")
    found = contents(shards)
    assert found["features"].shape == (9, 3, 4, 6)
    np.testing.assert_array_equal(found["targets"], np.repeat([0, 1, 2], 3))
    expected = 20 * np.tile([1, 9, 10], 3) + np.repeat([0, 1, 2], 3)
    np.testing.assert_array_equal(found["features"][:, 0, 3, 5], expected)
    assert (found["features"][:, 2] == 7).all()
    assert shards.manifest.class_names == ("class2", "class10", "dog")
    assert shards.manifest.samples_of_class == {0: 3, 1: 3, 2: 3}
    assert "0.7 kB raw, " in out
    assert "kB packed" in out


def test_grey_images_have_no_channels_and_16_bits_stay(tmp_path):
    photos(tmp_path / "grey", colour=False)
    assert read_arrays({"x": tmp_path / "grey"})["x"].shape == (9, 4, 6)
    (tmp_path / "deep").mkdir()
    values = DRAW.integers(0, 1 << 16, (4, 6), dtype="u2")
    Image.fromarray(values).save(tmp_path / "deep/a.tif")
    np.testing.assert_array_equal(read_arrays({"x": tmp_path / "deep"})["x"], values[None])


def spoil(kind, folder):
    """Do to a folder of `photos` what a stranger may have done; return the member to ask for."""
    if kind == "another size":
        Image.new("RGB", (5, 4)).save(folder / "dog/photo2.png")
    elif kind == "no image":
        (folder / "dog/photo2.png").write_bytes(b"hello")
    elif kind == "cut":
        path = folder / "dog/photo9.png"
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "empty class":
        (folder / "cat").mkdir()
    elif kind == "link":
        (folder / "dog/photo2.png").symlink_to("/etc/passwd")
    elif kind == "linked class":
        (folder / "cat").symlink_to("/")
    elif kind == "deep":
        (folder / "dog/more").mkdir()
    elif kind == "beside":
        Image.new("RGB", (6, 4)).save(folder / "photo.png")
    elif kind == "floats":
        Image.fromarray(np.zeros((4, 6), "f4")).save(folder / "dog/photo2.tiff")
    elif kind == "pipe":
        os.mkfifo(folder / "dog/photo2.png")
    elif kind == "bomb":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.new("1", (20_000, 10_000)).save(folder / "dog/photo2.png")
    return ":label" if kind == "member" else ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another size", "photo2.png: is 5 x 4 pixels, photo1.png is 6 x 4"),
        ("no image", "photo2.png: is no image"),
        ("cut", "photo9.png: cannot be decoded"),
        ("empty class", "cat: holds no images"),
        ("link", "photo2.png: is a symbolic link"),
        ("linked class", "cat: is a symbolic link"),
        ("deep", "more: is a folder in the folder of a class"),
        ("beside", "holds images and folders"),
        ("floats", "photo2.tiff: has pixels of kind F"),
        ("pipe", "photo2.png: cannot be decoded.*pipe"),
        ("bomb", "photo2.png: claims to have more pixels than Pillow's limit"),
        ("member", "'label' is nothing that a folder of images has"),
    ],
)
def test_a_bad_folder_of_images_is_refused_in_one_line(tmp_path, kind, message):
    photos(tmp_path / "photos")
    member = spoil(kind, tmp_path / "photos")
    with pytest.raises(ShardError, match=message) as caught:
        read_arrays({"x": f"{tmp_path}/photos{member}"})
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(tmp_path))


def test_images_without_pillow_name_the_extra(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ShardError, match="images need Pillow") as caught:
        read_arrays({"x": tmp_path / "photos"})
    assert how_to_install("images") in str(caught.value)


NUMBERS = {"x": np.arange(100).reshape(100, 1), "y": np.repeat(np.arange(4), [40, 30, 20, 10])}


def test_a_shuffle_is_a_permutation_that_its_seed_decides(tmp_path):
    found = [
        contents(isthmus.pack_shards(NUMBERS, tmp_path / f"{i}", 7, shuffle=seed))
        for i, seed in enumerate([3, 3, 4])
    ]
    assert sorted(found[0]["x"].ravel()) == list(range(100))
    np.testing.assert_array_equal(NUMBERS["y"][found[0]["x"].ravel()], found[0]["y"])
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1") != files_of(tmp_path / "2")


@pytest.mark.parametrize("shuffle", [None, 1])
def test_stratified_shards_and_what_is_set_apart_have_their_share_of_every_class(tmp_path, shuffle):
    packed = isthmus.pack_shards(NUMBERS, tmp_path, 8, shuffle=shuffle, stratify=True, validation=0.2)
    apart = isthmus.ShardSet.open(tmp_path / "validation")
    packed.verify()
    apart.verify()
    assert (sum(packed.samples), sum(apart.samples), len(apart.samples)) == (80, 20, 2)
    assert apart.manifest.set_apart
    assert packed.manifest.set_apart is None
    both = np.concatenate([contents(packed)["x"], contents(apart)["x"]]).ravel()
    assert sorted(both) == list(range(100))
    for shard in (*packed.manifest.shards, *apart.manifest.shards):
        for kind, share in enumerate([0.4, 0.3, 0.2, 0.1]):
            assert abs(shard.samples_of_class.get(kind, 0) - share * shard.samples) <= 1


def test_the_share_that_is_set_apart_without_a_shuffle_is_the_last(tmp_path):
    isthmus.pack_shards(NUMBERS, tmp_path, 3, validation=0.1)
    apart = contents(isthmus.ShardSet.open(tmp_path / "validation"))
    np.testing.assert_array_equal(apart["x"], NUMBERS["x"][90:])


def test_stretches_of_a_stratified_order_are_fair():
    labels = DRAW.integers(0, 5, 997) ** 2
    order = packing_order(997, 0, labels)
    for first, last in ((0, 100), (500, 800), (900, 997)):
        for kind in np.unique(labels):
            found = (labels[order[first:last]] == kind).sum()
            assert abs(found - (labels == kind).mean() * (last - first)) <= 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"validation": 1.0}, ValueError, "below 1|up to 1"),
        ({"validation": -0.1}, ValueError, "share from 0"),
        ({"validation": 0.001}, ShardError, "0.001 of 100 samples are 0"),
        ({"validation": 0.999}, ShardError, "0.999 of 100 samples are 100"),
        ({"validation": 0.5, "shards": 51}, ShardError, "50 samples cannot make 51 shards"),
        ({"shuffle": -1}, ValueError, "shuffle"),
        (
            {"stratify": True, "arrays": {"y": NUMBERS["y"], "x": NUMBERS["x"]}},
            ShardError,
            "'x', the last",
        ),
        ({"stratify": True, "arrays": {"y": NUMBERS["y"] + 0.5}}, ShardError, "class numbers"),
    ],
)
def test_orders_and_shares_that_make_no_sense_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        isthmus.pack_shards(**{"arrays": NUMBERS, "folder": tmp_path / "set", "shards": 4, **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_counts_are_of_classes_and_of_nothing_else(tmp_path):
    for number, (values, counts) in enumerate(
        [
            (np.array([2, 0, 2]), {0: 1, 2: 2}),
            (np.array([0.0, 1.0, 1.0]), None),
            (np.array([-1, 0, 1]), None),
            (np.array([[0], [1], [2]]), None),
            (np.array([1, 2**40, 3]), None),
        ]
    ):
        packed = isthmus.pack_shards({"y": values}, tmp_path / str(number), 2)
        assert packed.manifest.samples_of_class == counts
    text = (tmp_path / "0/manifest.json").read_text()
    (tmp_path / "0/manifest.json").write_text(text.replace('"2": 1', '"2": 9', 1))
    with pytest.raises(ShardError, match="samples, and [0-9]+ of all classes"):
        isthmus.ShardSet.open(tmp_path / "0")


def test_what_was_set_apart_goes_with_its_set_and_what_was_not_stays(tmp_path):
    isthmus.pack_shards(NUMBERS, tmp_path, 3, validation=0.1)
    isthmus.pack_shards(NUMBERS, tmp_path, 3, overwrite=True)
    assert not (tmp_path / "validation").exists()
    isthmus.pack_shards(NUMBERS, tmp_path / "validation", 2)
    isthmus.pack_shards(NUMBERS, tmp_path, 3, overwrite=True)
    isthmus.ShardSet.open(tmp_path / "validation").verify()
    isthmus.pack_shards(NUMBERS, tmp_path / "other/validation", 2)
    with pytest.raises(ShardError, match="validation: already holds a packed set"):
        isthmus.pack_shards(NUMBERS, tmp_path / "other", 3, validation=0.1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["validation"]


@pytest.mark.slow
def test_a_pack_that_is_stopped_anywhere_sets_nothing_apart_that_its_set_holds(tmp_path, monkeypatch):
    """Every call that changes the folder fails in turn, where a set and its share stand already."""
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        isthmus.pack_shards(NUMBERS, folder, 2, "none", validation=0.2)
        with monkeypatch.context() as patch, contextlib.suppress(EndedError):
            stopping(patch, calls)
            isthmus.pack_shards(NUMBERS, folder, 2, "none", overwrite=True, shuffle=7, validation=0.2)
            break
        kept = contents(isthmus.ShardSet.open(folder))["x"]
        assert len(kept) == 80
        if (folder / "validation/manifest.json").exists():
            apart = contents(isthmus.ShardSet.open(folder / "validation"))["x"]
            assert not set(kept.ravel()) & set(apart.ravel())
        isthmus.pack_shards(NUMBERS, folder, 2, "none", overwrite=True, shuffle=7, validation=0.2)
        assert len(list(folder.rglob("*.h5"))) == 3
    assert calls >= 20


def test_a_pack_with_a_share_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch):
    isthmus.pack_shards(NUMBERS, tmp_path, 3, validation=0.1)
    before = [files_of(tmp_path / "validation"), sorted(tmp_path.rglob("*"))]

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(isthmus.IsthmusError, match="free space"):
        isthmus.pack_shards(NUMBERS, tmp_path, 4, shuffle=1, validation=0.2, overwrite=True)
    assert [files_of(tmp_path / "validation"), sorted(tmp_path.rglob("*"))] == before


def test_what_is_told_of_classes_that_are_not_mixed(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "x.npz", **NUMBERS)
    source = ["-a", f"x={tmp_path}/x.npz:x", "-a", f"y={tmp_path}/x.npz:y", "--shards", 10]
    code, out, _ = pack(capsys, monkeypatch, tmp_path / "a", *source, "--validation", 0.1)
    assert code == 0
    assert "classes: 0 (40), 1 (30), 2 (20)" in out
    assert "shards hold samples of one class alone; --shuffle SEED or --stratify" in out
    assert "a/validation: 10 samples in 1 shards" in out
    assert "name it under [data] validation" in out
    assert "a/validation: has no sample of class 0, 1, 2" in out
    code, out, _ = pack(
        capsys, monkeypatch, tmp_path / "b", *source, "--validation", 0.1, "--stratify", "--json"
    )
    table = json.loads(out)
    assert table["validation"]["samples_of_class"] == {"0": 4, "1": 3, "2": 2, "3": 1}
    assert table["packed_nbytes"] == sum(path.stat().st_size for path in (tmp_path / "b").glob("*.h5"))
    code, _, err = pack(capsys, monkeypatch, tmp_path / "c", *source, "--validation", 1.5)
    assert code == 2
    assert len(err.splitlines()) == 1


LARGE = """
import resource, sys, threading, time
import hdf5plugin, numpy as np, isthmus
from isthmus.shards.sources import open_arrays

isthmus.pack_shards({"x": np.zeros((8, 9), "u1")}, sys.argv[2] + "/warm", 2)
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) << 10
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
watching = threading.Thread(target=watch)
watching.start()
with open_arrays({"x": sys.argv[1]}, sys.argv[2]) as arrays:
    packed = isthmus.pack_shards(arrays, sys.argv[2] + "/set", 10, "none", shuffle=3, validation=0.1)
done = True
watching.join()
print(peak - before, max(packed.nbytes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5"])
def test_a_file_of_many_times_the_memory_is_packed_in_that_of_two_shards(tmp_path, name):
    """268 MB of noise in 10 shards of 24 MB, mixed, and a share of it set apart."""
    values = np.random.default_rng(0).integers(0, 255, (4096, 65536), dtype="u1")
    if name == "x.npy":
        np.save(tmp_path / name, values)
    elif name == "x.npz":
        np.savez(tmp_path / name, x=values)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("x", data=values, chunks=(1, 65536))
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path / name, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, shard = map(int, done.stdout.split())
    assert peak < 2 * shard + (46 << 20), f"{peak / 1e6:.1f} MB, a shard has {shard / 1e6:.1f} MB"
    rows = {row.tobytes() for row in values}
    packed = isthmus.ShardSet.open(tmp_path / "set")
    assert all(row.tobytes() in rows for row in packed.read(5)["x"])
